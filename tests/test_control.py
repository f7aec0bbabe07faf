"""status, logs, cancel and retry: what they say and whom they touch, with Slurm's commands as scripts on the PATH."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.resources import MEMORY_KEYS
from pipeline.disk.layout import PROJECT, all_experiments
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.errors import UserError, WorkError
from pipeline.experiments.cluster import Profile
from pipeline.experiments.reading import Experiment, load_experiment
from pipeline.launch.manifest.job_names import job_name
from pipeline.launch.manifest.manifest import Manifest, Terms, load_manifest, make_manifest, record_plan
from pipeline.launch.scheduler.queue import cancel_stuck, my_job_tasks
from pipeline.launch.submitting import sbatch as slurm
from pipeline.launch.submitting import submit as submitting
from pipeline.launch.submitting.cancel import cancel_trials
from pipeline.launch.submitting.retry import Changes, retry
from pipeline.launch.submitting.submit import Request, submit, tell_idle_gpus
from pipeline.launch.watching import show
from pipeline.launch.watching.history import History
from pipeline.launch.watching.plan import plan
from pipeline.reporting.state import TrialState
from tests.test_launch import fake_command, set_done, set_trained

pytestmark = pytest.mark.usefixtures("root")
FROZEN = PROJECT / "configs" / "beetles" / "frozen.yaml"


def planned(experiment: Experiment) -> list[TrialState]:
    """The states that `carabid plan` shows."""
    return plan(experiment)[1]


def load(*overrides: str) -> Experiment:
    return load_experiment(FROZEN, overrides)


class Site:
    """A Slurm whose answers a test writes down; `calls` holds what it was asked."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.queue, self.accounts = folder / "queue", folder / "accounts"
        for path in (self.queue, self.accounts):
            path.parent.mkdir(exist_ok=True)
            path.touch()
        self.cancelled = fake_command(folder, "scancel", "", patch)
        self.asked = fake_command(folder, "sacct", f"cat {self.accounts}", patch)
        fake_command(folder, "squeue", f"cat {self.queue}", patch)
        fake_command(folder, "scontrol", "echo 'MaxArraySize = 1001'", patch)
        self.submitted = fake_command(folder, "sbatch", f'cat "$1" >> {folder}/scripts; echo Submitted batch job 77', patch)
        self.scripts = folder / "scripts"

    def holds(self, *lines: str) -> None:
        self.queue.write_text("".join(f"{line}\n" for line in lines))

    def ended(self, name: str, *tasks: tuple[str, str, str], node: str = "n1") -> None:
        """(job, state, exit) of tasks of one job name."""
        with self.accounts.open("a") as file:
            for job, state, code in tasks:
                file.write(f"{job}|100|{state}|{code}|0:0|100|100|4G|{node}|None|{name}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def grid(tmp_path: Path) -> tuple[Experiment, Manifest]:
    """Four submitted trials."""
    (tmp_path / "data.csv").write_text("file_path,split\n")
    experiment = load("seed=0,1,2,3", f"data.source={tmp_path / 'data.csv'}", "resources.train.mem=4G")
    return experiment, make_manifest(experiment, experiment.trials, Terms(array_size=1001))


# ---------------------------------------------------------------- status and plan
def test_a_task_that_slurm_killed_without_a_word_is_a_failure_with_its_class(
    site: Site, grid: tuple[Experiment, Manifest]
) -> None:
    experiment, made = grid
    set_done(experiment.dir.trial(made.names[0]), experiment.trials[0].config)
    site.holds(f"{job_name(made, 'train')}|41|1|RUNNING|None", f"{job_name(made, 'evaluate')}|42|1|PENDING|Dependency")
    site.ended(
        job_name(made, "train"), ("41_0", "COMPLETED", "0:0"), ("41_2", "OUT_OF_MEMORY", "0:125"), ("41_3", "TIMEOUT", "0:0")
    )
    states = [(state.state, state.reason.split(":")[0]) for state in planned(experiment)]
    assert states == [("done", ""), ("running", "train"), ("failed", "oom"), ("failed", "time")]
    lines = list(show.status_lines([experiment.dir]))
    assert lines[4] == "beetles-frozen: 2 failed, 1 running, 1 done"
    assert "`carabid retry beetles-frozen --only oom --mem 2x`" in lines[5] and "--time 2x" in lines[6]
    assert len(site.asked.read_text().splitlines()) == 2, "one call of sacct for each look, however many trials there are"


def test_sacct_is_not_asked_where_every_trial_is_done_or_queued(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    site.holds(*(f"{job_name(made, 'train')}|41|{i}|PENDING|None" for i in range(4)))
    assert {state.state for state in planned(experiment)} == {"queued"} and site.asked.read_text() == ""


def test_a_task_that_will_never_begin_is_a_failure_and_not_queued(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    set_trained(experiment.dir.trial(made.names[2]), experiment.trials[2].config)
    site.holds(f"{job_name(made, 'evaluate')}|42|2|PENDING|DependencyNeverSatisfied")
    state = planned(experiment)[2]
    assert (state.state, state.reason.split(":")[0]) == ("failed", "dependency")


def test_what_extraction_was_killed_for_is_not_blamed_on_training(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    site.ended(job_name(made, "extract"), ("40", "OUT_OF_MEMORY", "0:125"))
    write_json(
        experiment.dir.trial(made.names[0]).failure,
        {"stage": "train", "kind": "dependency", "message": "these features are not there", "traceback": None},
    )
    assert planned(experiment)[0].reason.startswith("oom: extract: it used more memory")


@pytest.mark.parametrize("killed", [0, 1])
def test_of_the_tasks_that_extract_together_the_one_that_failed_counts(site: Site, tmp_path: Path, killed: int) -> None:
    """Whichever of them ended last, by its number or by its log."""
    experiment = load("resources.extract_tasks=2")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=1001))
    states = [("40_0", "COMPLETED", "0:0"), ("40_1", "COMPLETED", "0:0")]
    states[killed] = (f"40_{killed}", "FAILED", "0:9")
    site.ended(job_name(made, "extract"), *states)
    write_log(made, f"1-extract/40_{killed}_0_log.out", "slurmstepd: error: Exceeded job memory limit\n", 1e9)
    write_log(made, f"1-extract/40_{1 - killed}_0_log.out", "features/0: 9 images, 3 images/s\n", 2e9)
    (state,) = planned(experiment)
    assert state.reason.startswith("oom: extract: "), state


def test_what_slurm_says_of_a_packed_task_is_known_of_its_trials(site: Site) -> None:
    """It stands in the task's log, and the trials have logs of their own."""
    experiment = load("seed=0,1,2")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=1001, pack=2))
    site.ended(job_name(made, "train"), ("41_0", "FAILED", "0:9"), ("41_1", "COMPLETED", "0:0"))
    write_log(made, "1-train/41_0_0_log.out", "slurmstepd: error: Exceeded job memory limit\n")
    for index in range(3):
        write_log(made, f"1-train/{index}.log", "epoch 0\n", 2e9)
    assert [s.reason.split(":")[0] for s in planned(experiment)] == ["oom", "oom", "not run"]


def test_of_two_submissions_in_one_second_the_later_one_counts(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    for number in range(2, 12):
        values = read_json(made.path) | {"argv": [str(number)]}
        write_json(experiment.dir.submission(number), values)
    assert History(experiment.dir).last[made.names[0]][0].terms.argv == ("11",)


def test_a_job_that_was_typed_by_hand_is_known_by_its_array(site: Site) -> None:
    experiment = load("seed=0,1,2,3,4")
    record_plan(experiment, "50", (2, 2, 3))  # --array=2-6:2
    site.holds("carabid-train|50|4|RUNNING|None", "carabid-evaluate-50|51|6|PENDING|Dependency")
    assert [s.state for s in planned(experiment)] == ["missing", "running", "queued", "missing", "running"]


def test_typed_jobs_and_submitted_ones_stand_side_by_side(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    record_plan(experiment, "50", (0, 1, 1))
    site.ended(job_name(made, "train"), *((f"41_{i}", "TIMEOUT", "0:0") for i in range(4)))
    site.ended("anything", ("50", "NODE_FAIL", "0:0"))
    assert [s.reason.split(":")[0] for s in planned(experiment)] == ["node"] * 4, "the later job is what counts"


# ---------------------------------------------------------------- logs
def write_log(made: Manifest, name: str, text: str, seconds: float = 1e9) -> Path:
    path = made.experiment.logs / name
    write_text(path, text)
    os.utime(path, (seconds, seconds))
    return path


def test_the_log_of_a_trial_is_that_of_its_last_attempt(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    write_log(made, "1-train/41_1_0_log.out", "first\n")
    write_log(made, "1-train/41_11_0_log.out", "another trial\n", 3e9)
    wanted = write_log(made, "1-evaluate/42_1_0_log.out", "second\n", 2e9)
    assert show.find_log(experiment.dir, "seed=1", None) == (made.names[1], "evaluate", wanted)
    assert show.find_log(experiment.dir, made.names[1], "train")[2].read_text() == "first\n"
    with pytest.raises(UserError, match="no log"):
        show.find_log(experiment.dir, "seed=2", None)
    with pytest.raises(UserError, match="4 trials are called so"):
        show.find_log(experiment.dir, "seed=", None)
    with pytest.raises(UserError, match="choose extract, train, evaluate"):
        show.find_log(experiment.dir, "seed=1", "trian")


def test_the_log_that_is_shown_is_that_of_the_stage_that_failed(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    """Training could only say that it found no features; why, extraction's log says."""
    experiment, made = grid
    cause = write_log(made, "1-extract/40_0_log.out", "carabid: table.csv, line 9: cannot be read\n")
    write_log(made, "1-train/41_1_0_log.out", "carabid: these features are not there\n", 2e9)
    record = {"stage": "extract", "kind": "data", "message": "table.csv, line 9: cannot be read", "traceback": None}
    write_json(experiment.dir.trial(made.names[1]).failure, record)
    assert show.find_log(experiment.dir, "seed=1", None)[1:] == ("extract", cause)


def test_trials_of_one_packed_task_have_logs_of_their_own() -> None:
    experiment = load("seed=0,1,2")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=1001, pack=2))
    write_log(made, "1-train/41_0_0_log.out", "the task\n", 2e9)
    wanted = write_log(made, "1-train/1.log", "the trial\n")
    assert show.find_log(experiment.dir, "seed=1", "train")[2] == wanted


def test_the_log_of_a_later_chunk_is_found_by_its_place_there() -> None:
    experiment = load("seed=0,1,2,3,4")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=2))
    second = write_log(made, "1-train-2/42_1_0_log.out", "")
    alone = write_log(made, "1-train-3/43_0_log.out", "")
    assert [show.find_log(experiment.dir, f"seed={n}", None)[2] for n in (3, 4)] == [second, alone]


def test_only_the_last_lines_of_a_log_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text(tmp_path / "log", "".join(f"{i}\n" for i in range(200)))
    show.print_log(tmp_path / "log", 2, follow=False)
    assert capsys.readouterr().out == "198\n199\n"


# ---------------------------------------------------------------- watch
def test_watched_into_a_file_the_states_are_written_line_by_line(
    site: Site, grid: tuple[Experiment, Manifest], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, made = grid
    site.holds(f"{job_name(made, 'train')}|41|0|PENDING|None")
    monkeypatch.setattr(show.time, "sleep", lambda seconds: site.holds())
    show.watch([experiment.dir], 5)
    out = capsys.readouterr().out
    assert f"queued      beetles-frozen/{made.names[0]}  train: job 41_0, pending" in out
    assert "beetles-frozen: 1 queued, 3 missing" in out and out.rstrip().endswith("beetles-frozen: 4 missing")


# ---------------------------------------------------------------- cancel
def test_cancelling_an_experiment_takes_its_jobs_and_no_other(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    other = load("experiment=beetles", "seed=0")
    theirs = make_manifest(other, other.trials)
    site.holds(
        f"{job_name(made, 'train')}|41|0|RUNNING|None",
        f"{job_name(made, 'train')}|41|1|PENDING|None",
        f"{job_name(made, 'collect')}|43|N/A|PENDING|Dependency",
        f"{job_name(theirs, 'train')}|44|N/A|PENDING|None",
    )
    assert cancel_trials(experiment.dir) == ["41", "43"] and site.cancelled.read_text() == "41 43\n"


def test_cancelling_a_trial_leaves_its_siblings_and_what_all_share(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    site.holds(
        f"{job_name(made, 'extract')}|40|N/A|RUNNING|None",
        *(f"{job_name(made, 'train')}|41|{i}|PENDING|Dependency" for i in range(4)),
        f"{job_name(made, 'evaluate')}|42|2|PENDING|Dependency",
        f"{job_name(made, 'collect')}|43|N/A|PENDING|Dependency",
    )
    assert cancel_trials(experiment.dir, [made.names[2]]) == ["41_2", "42_2"]


def test_a_trial_of_a_packed_task_is_not_cancelled_with_its_siblings_by_mistake(site: Site) -> None:
    experiment = load("seed=0,1")
    made = make_manifest(experiment, experiment.trials, Terms(pack=2))
    site.holds(f"{job_name(made, 'train')}|41|N/A|RUNNING|None")
    with pytest.raises(UserError, match="name all of its trials"):
        cancel_trials(experiment.dir, [made.names[0]])
    assert site.cancelled.read_text() == "" and cancel_trials(experiment.dir, made.names) == ["41"]


def test_jobs_that_will_never_begin_are_cancelled_by_the_next_submission(
    site: Site, grid: tuple[Experiment, Manifest], capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, made = grid
    site.holds(
        f"{job_name(made, 'evaluate')}|42|2|PENDING|DependencyNeverSatisfied",
        "somebody-elses|50|N/A|PENDING|DependencyNeverSatisfied",
    )
    assert [job_task.stuck for job_task in my_job_tasks()] == [True, True]
    submit(experiment, Request(check=False))
    assert site.cancelled.read_text().splitlines()[0] == "42_2" and "cancelled 42_2" in capsys.readouterr().out
    assert load_manifest(experiment.dir.submission(2)).names == made.names, "what was stuck is queued again"
    site.holds()
    assert cancel_stuck(experiment.dir) == []


# ---------------------------------------------------------------- two at once
def test_of_two_submissions_at_once_one_queues_and_the_other_sees_it(
    site: Site, grid: tuple[Experiment, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, made = grid
    made.path.unlink()
    monkeypatch.setattr(submitting, "LEASE_SECONDS", 1.0)
    take = f"""name=$(sed -n 's/^#SBATCH --job-name=//p' "$1"); sleep 0.2
for i in 0 1 2 3; do echo "$name|77|$i|PENDING|None" >> {site.queue}; done; echo Submitted batch job 77"""
    calls = fake_command(tmp_path / "slurm", "sbatch", take, monkeypatch)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: submit(experiment, Request(check=False)), range(2)))
    assert len(calls.read_text().splitlines()) == 4, "extract, train, evaluate, collect, once"
    assert [path.stem for path in experiment.dir.submissions.glob("*.json")] == ["1"]


def test_fewer_trials_than_a_pack_holds_ask_for_what_they_need() -> None:
    experiment = load("seed=0,1,2,3,4,5,6,7,8")
    terms = [Request(Profile(), pack=4).terms(experiment, experiment.trials[:n]) for n in (1, 3, 9)]
    assert [each.pack for each in terms] == [1, 3, 4]


@pytest.mark.parametrize(
    ("config", "overrides", "idle"),
    [
        ("butterflies/logistic", (), "resources.train.gpus_per_node=0 resources.evaluate.gpus_per_node=0"),
        ("butterflies/logistic", ("resources.train.gpus_per_node=0",), ": resources.evaluate.gpus_per_node=0"),
        ("butterflies/logistic", ("resources.train.gpus_per_node=0", "resources.evaluate.gpus_per_node=0"), None),
        ("beetles/frozen", (), None),
    ],
)
def test_a_gpu_that_would_idle_is_told(
    config: str, overrides: tuple[str, ...], idle: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_experiment(PROJECT / "configs" / f"{config}.yaml", overrides)
    tell_idle_gpus(experiment.trials, Request())
    assert (idle or "") in (said := capsys.readouterr().out) and bool(said) == (idle is not None)
    tell_idle_gpus(experiment.trials, Request(Profile(scheduler="local")))
    assert not capsys.readouterr().out


def test_a_retry_of_a_submission_that_was_packed_by_the_forecast_is_so_too(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("file_path,split\n")
    experiment = load("seed=0,1,2,3", f"data.source={tmp_path / 'data.csv'}")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=1001, pack=None, sizes=((3, 1), (1, 1))))
    assert load_manifest(made.path).job_tasks == [range(3), range(3, 4)]
    site.ended(job_name(made, "train"), ("41_0", "TIMEOUT", "0:0"), ("41_1", "COMPLETED", "0:0"))
    retry(experiment.dir, [], Changes(), Request(check=False))
    terms = last_submission(experiment).terms
    assert (terms.pack, sum(size * n for size, n in terms.sizes)) == (None, 3)


# ---------------------------------------------------------------- retry
@pytest.fixture
def failed(site: Site, grid: tuple[Experiment, Manifest]) -> Experiment:
    """Trial 0 done, 1 out of memory, 2 out of time, 3 running."""
    experiment, made = grid
    set_done(experiment.dir.trial(made.names[0]), experiment.trials[0].config)
    site.holds(f"{job_name(made, 'train')}|41|3|RUNNING|None")
    site.ended(job_name(made, "train"), ("41_1", "OUT_OF_MEMORY", "0:125"), ("41_2", "TIMEOUT", "0:0"))
    return experiment


def last_submission(experiment: Experiment) -> Manifest:
    numbers = [int(path.stem) for path in experiment.dir.submissions.glob("*.json")]
    return load_manifest(experiment.dir.submission(max(numbers)))


def test_retry_queues_just_what_failed_in_the_way_named_with_more_memory(
    site: Site, failed: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    retry(failed.dir, ["oom"], Changes(mem="2x"), Request(check=False))
    made = last_submission(failed)
    assert made.number == "2" and made.names == [failed.trials[1].name]
    assert (made.resources.train.mem, made.resources.extract.mem, made.resources.evaluate.mem) == ("8G", "32G", "32G")
    assert made.trial(0).config.model_copy(update={"resources": failed.trials[1].config.resources}) == failed.trials[1].config
    assert "left alone: 1 × time" in capsys.readouterr().out


def test_retry_without_a_kind_queues_all_that_failed_and_nothing_that_runs(site: Site, failed: Experiment) -> None:
    retry(failed.dir, [], Changes(time="2x"), Request(check=False))
    made = last_submission(failed)
    assert made.names == [failed.trials[1].name, failed.trials[2].name] and made.resources.train.time == "08:00:00"


def test_memory_doubled_twice_is_four_times_as_much(site: Site, failed: Experiment) -> None:
    retry(failed.dir, ["oom"], Changes(mem="2x"), Request(check=False))
    site.ended(job_name(last_submission(failed), "train"), ("77", "OUT_OF_MEMORY", "0:125"))
    retry(failed.dir, ["oom"], Changes(mem="2x"), Request(check=False))
    assert last_submission(failed).resources.train.mem == "16G"


@pytest.mark.parametrize(
    ("asked", "change", "wanted"),
    [
        ("mem_per_cpu=2G", "2x", {"mem_per_cpu": "4G"}),
        ("mem_per_gpu=20G", "1.5x", {"mem_per_gpu": "30G"}),
        ("mem_per_cpu=2G", "64G", {"mem": "64G"}),  # an amount is one of the node, however it was asked for
        ("mem=null", "64G", {"mem": "64G"}),
    ],
)
def test_more_memory_is_asked_for_in_the_way_it_was(site: Site, tmp_path: Path, asked: str, change: str, wanted: Any) -> None:
    (tmp_path / "data.csv").write_text("file_path,split\n")
    experiment = load(f"data.source={tmp_path / 'data.csv'}", f"resources.train.{asked}")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=1001))
    site.ended(job_name(made, "train"), ("41", "OUT_OF_MEMORY", "0:125"))
    retry(experiment.dir, ["oom"], Changes(mem=change), Request(check=False))
    job = last_submission(experiment).resources.train
    assert {key: value for key in MEMORY_KEYS if (value := getattr(job, key))} == wanted


def test_a_node_that_failed_is_not_chosen_again_by_the_trials_that_it_failed(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside what is kept off already, in all stages; trials that failed in other ways may run there."""
    (tmp_path / "data.csv").write_text("file_path,split\n")
    experiment = load("seed=0,1,2", f"data.source={tmp_path / 'data.csv'}", "resources.train.exclude=n[7-9]")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=1001))
    name = job_name(made, "train")
    site.ended(name, ("41_0", "NODE_FAIL", "0:0"), ("41_2", "TIMEOUT", "0:0"))
    site.ended(name, ("41_1", "NODE_FAIL", "0:0"), node="n4")  # requeued by Slurm, and again
    site.ended(name, ("41_1", "NODE_FAIL", "0:0"), node="n5")
    retry(experiment.dir, ["node"], Changes(), Request(check=False))
    again = last_submission(experiment)
    assert again.names == made.names[:2] and again.resources.train.exclude == "n[7-9],n1,n4,n5"
    assert {getattr(again.resources, stage).exclude for stage in ("extract", "evaluate", "collect")} == {"n1,n4,n5"}
    assert "kept off n1, n4, n5, which failed (--exclude): 2 trials" in capsys.readouterr().out
    assert "#SBATCH --exclude='n[7-9],n1,n4,n5'" in site.scripts.read_text()
    site.ended(job_name(again, "train"), ("77_0", "NODE_FAIL", "0:0"), node="n4")
    site.ended(job_name(again, "train"), ("77_1", "NODE_FAIL", "0:0"), node="n6")
    retry(experiment.dir, [], Changes(), Request(check=False))
    retried = [load_manifest(experiment.dir.submission(number)) for number in (3, 4)]
    kept_off = {tuple(each.names): each.resources.train.exclude for each in retried}
    assert kept_off == {tuple(made.names[:2]): "n[7-9],n1,n4,n5,n6", tuple(made.names[2:]): "n[7-9]"}


def test_without_accounting_the_log_names_the_node_that_failed(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    ended = "slurmstepd-n2: error: *** JOB 41 ON n2 CANCELLED AT 2026-03-01T12:10:00 DUE TO NODE FAILURE, SEE LOG ***\n"
    for index, text in enumerate((ended, "epoch 1\nsrun: error: Node failure on n3\n")):
        write_log(made, f"1-train/41_{index}_0_log.out", text)
    retry(experiment.dir, ["node"], Changes(), Request(check=False))
    assert last_submission(experiment).resources.train.exclude == "n2,n3"


def test_the_stage_that_failed_is_the_one_that_gets_more(site: Site, grid: tuple[Experiment, Manifest]) -> None:
    experiment, made = grid
    set_trained(experiment.dir.trial(made.names[0]), experiment.trials[0].config)
    site.ended(job_name(made, "evaluate"), ("42_0", "OUT_OF_MEMORY", "0:125"))
    retry(experiment.dir, [], Changes(mem="2x"), Request(check=False))
    assert (last_submission(experiment).resources.evaluate.mem, last_submission(experiment).resources.train.mem) == ("64G", "4G")


def test_a_retry_is_throttled_and_packed_as_the_submission_was(site: Site, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("file_path,split\n")
    experiment = load("seed=0,1,2,3", f"data.source={tmp_path / 'data.csv'}")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=1001, pack=2, max_parallel=1))
    site.ended(job_name(made, "train"), ("41_0", "TIMEOUT", "0:0"), ("41_1", "TIMEOUT", "0:0"))
    retry(experiment.dir, [], Changes(), Request(check=False))
    terms = last_submission(experiment).terms
    assert (terms.pack, terms.max_parallel) == (2, 1) and "--array=0-1%1" in site.scripts.read_text()
    site.holds()
    site.ended(job_name(last_submission(experiment), "train"), ("77_0", "TIMEOUT", "0:0"), ("77_1", "TIMEOUT", "0:0"))
    retry(experiment.dir, [], Changes(max_parallel=3, pack=1), Request(check=False))
    assert last_submission(experiment).terms.max_parallel == 3 and last_submission(experiment).terms.pack == 1


def test_a_submission_of_another_version_is_refused_in_words(site: Site, failed: Experiment) -> None:
    path = failed.dir.submission(1)
    values = read_json(path)
    write_json(path, values | {"common": values["common"] | {"of_another_version": 1}})
    with pytest.raises(UserError, match="submitted with another version of carabid"):
        retry(failed.dir, ["oom"], Changes(), Request(check=False))


def test_nothing_to_retry_is_said_and_nothing_is_queued(
    site: Site, failed: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    retry(failed.dir, ["data"], Changes(), Request(check=False))
    assert "nothing to retry: 1 × oom, 1 × time" in capsys.readouterr().out and site.submitted.read_text() == ""


def test_a_kind_of_failure_that_there_is_not_is_refused_with_those_there_are(failed: Experiment) -> None:
    with pytest.raises(UserError, match="--only ooom: the kinds of failure are: oom, gpu-oom"):
        retry(failed.dir, ["ooom"], Changes(), Request(check=False))
    with pytest.raises(UserError, match="no factor"):
        retry(failed.dir, [], Changes(mem="lotsx"), Request(check=False))


# ---------------------------------------------------------------- places
def test_an_experiment_is_the_same_however_its_folder_is_named(
    site: Site, grid: tuple[Experiment, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Job names hold a hash of the place: by a relative path or a link, the queue would seem empty."""
    experiment, made = grid
    site.holds(f"{job_name(made, 'train')}|41|0|RUNNING|None")
    (tmp_path / "link").symlink_to(experiment.dir.path.parent)
    monkeypatch.chdir(experiment.dir.path.parent.parent)
    for trained in (Path("trained"), tmp_path / "link"):
        (found,) = all_experiments(trained)
        assert show.views(found)[0].state.state == "running" and cancel_trials(found) == ["41"]


# ---------------------------------------------------------------- sbatch that fails
def test_a_job_that_a_failing_sbatch_had_queued_is_found_by_its_name_and_kept(
    site: Site, grid: tuple[Experiment, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not queued twice, and finds the pickles that it will look for."""
    _, made = grid
    fail = 'grep -q "\\-train" "$1" && { echo "91 0\\n91 1\\n91 2\\n91 3" > QUEUE; echo "Socket timed out" >&2; exit 1; }'
    calls = fake_command(
        tmp_path / "slurm", "sbatch", fail.replace("QUEUE", str(site.queue)) + "; echo Submitted batch job 5", monkeypatch
    )
    ids = slurm.submit(made, slurm.chain(made))
    assert ids["train"] == "91" and len(calls.read_text().splitlines()) == 4
    folder = made.experiment.stage_logs(made.number, "train")
    assert len(list(folder.glob("91_*_submitted.pkl"))) == 4


def test_a_job_that_shows_a_little_later_is_not_queued_twice(
    site: Site, grid: tuple[Experiment, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller was busy: what it took before sbatch gave up is seen some seconds after."""
    _, made = grid
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: site.holds("91 0", "91 1", "91 2", "91 3"))
    fail = 'grep -q "\\-train" "$1" && { echo "Socket timed out" >&2; exit 1; }; echo Submitted batch job 5'
    calls = fake_command(tmp_path / "slurm", "sbatch", fail, monkeypatch)
    assert slurm.submit(made, slurm.chain(made))["train"] == "91"
    assert len(calls.read_text().splitlines()) == 4


def test_a_controller_that_does_not_answer_is_asked_again(
    site: Site, grid: tuple[Experiment, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, made = grid
    monkeypatch.setattr(slurm, "PAUSES", (0.0, 0.0))
    count = f"n=$(cat {tmp_path}/n 2>/dev/null); echo x$n > {tmp_path}/n"
    silent = '{ echo "Unable to contact slurm controller" >&2; exit 1; }'
    script = f'{count}; [ "$n" = xx ] || {silent}'
    calls = fake_command(tmp_path / "slurm", "sbatch", f"{script}; echo Submitted batch job 5", monkeypatch)
    with pytest.raises(WorkError, match="Unable to contact"):
        slurm.submit(made, slurm.chain(made))  # the second job needs more patience than there is
    assert len(calls.read_text().splitlines()) == 6


def test_a_request_that_is_refused_is_not_made_again(
    site: Site, grid: tuple[Experiment, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_command(tmp_path / "slurm", "sbatch", "echo 'Invalid account' >&2; exit 1", monkeypatch)
    with pytest.raises(WorkError, match="Invalid account"):
        slurm.submit(grid[1], slurm.chain(grid[1]))
    assert len(calls.read_text().splitlines()) == 1
