"""Getting trials to run: who does which, what is frozen when, what state a folder shows, and how jobs end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipeline.stages
from pipeline.config.identity import config_hash, plain
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT, TrialDir, features_root
from pipeline.disk.lease import Lease
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.errors import REQUEUE_STATUS, Interrupted, MissingFeatures, OutOfTime, RunAgain, TakenOver, UserError, WorkError
from pipeline.experiments import reading
from pipeline.experiments.reading import Experiment, Trial, dump_config
from pipeline.launch.jobs import jobs
from pipeline.launch.jobs.extraction import _n_records
from pipeline.launch.jobs.trials import evaluate_trials, recorded_failure, train_trials, trial_dir
from pipeline.launch.manifest import job_names as parts
from pipeline.launch.manifest import manifest
from pipeline.launch.manifest.manifest import Manifest, Terms, load_manifest, make_manifest, preview_manifest
from pipeline.launch.manifest.sharding import array_rank, my_share
from pipeline.launch.scheduler import queue
from pipeline.launch.submitting import evaluation, local, submit
from pipeline.launch.submitting import sbatch as slurm
from pipeline.launch.submitting.settings import environment_for, only_what_counts
from pipeline.launch.watching import plan
from pipeline.reporting.state import planned_trials, trial_config, trial_state
from pipeline.signals import WALLTIME_SIGNAL, StopFlag
from pipeline.stages import train as train_stage
from tests.signalled import work
from tests.small import load_named as load_experiment
from tests.small import start

LORA = PROJECT / "configs" / "beetles" / "lora.yaml"
pytestmark = [pytest.mark.jobs, pytest.mark.usefixtures("root", "empty_queue")]


def load(*overrides: str) -> Experiment:
    return load_experiment(LORA, overrides)


def fake_command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a command `name` first on the PATH; it appends its arguments to the returned file and then runs `script`."""
    folder.mkdir(exist_ok=True)
    calls = folder / f"{name}.calls"
    calls.touch()
    command = folder / name
    command.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n{script}\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return calls


@pytest.fixture
def empty_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Slurm that has nothing queued, whether or not this machine has one."""
    fake_command(tmp_path / "slurm", "squeue", "", monkeypatch)
    fake_command(tmp_path / "slurm", "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1", monkeypatch)


# ---------------------------------------------------------------- dealing trials out
def slurm_array(n: int, start: int, step: int, rank: int) -> dict[str, str]:
    """What Slurm tells task `rank` of an array of `n`."""
    values = {"ID": start + rank * step, "MIN": start, "MAX": start + (n - 1) * step, "STEP": step, "COUNT": n}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


@given(st.integers(0, 40), st.integers(1, 12), st.integers(0, 500), st.integers(1, 7))
def test_the_tasks_of_any_array_do_every_trial_exactly_once(n_trials: int, n: int, start: int, step: int) -> None:
    trials = list(range(n_trials))
    shares = [my_share(trials, slurm_array(n, start, step, rank)) for rank in range(n)]
    assert sorted(trial for share in shares for trial in share) == trials
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_outside_an_array_one_job_does_all_trials() -> None:
    assert my_share([1, 2, 3], {}) == [1, 2, 3]
    assert my_share([1, 2, 3], {"SLURM_JOB_ID": "7"}) == [1, 2, 3]


@given(st.sets(st.integers(0, 60), min_size=2, max_size=10))
def test_an_array_with_gaps_is_refused_with_one_that_works(tasks: set[int]) -> None:
    """Its tasks cannot tell their rank: some trials would be done twice and others never."""
    ids = sorted(tasks)
    environ = slurm_array(len(ids), ids[0], 1, 0) | {"SLURM_ARRAY_TASK_MAX": str(ids[-1])}
    if ids == list(range(ids[0], ids[-1] + 1)):
        assert array_rank(environ) == (0, len(ids))
    else:
        with pytest.raises(UserError, match=f"--array=0-{len(ids) - 1}"):
            array_rank(environ)


# ---------------------------------------------------------------- the manifest
def trials_of(made: Manifest) -> list[Trial]:
    return [made.trial(index) for index in range(len(made.entries))]


def extractions(experiment: Experiment) -> list[tuple[int, int, int]]:
    return preview_manifest(experiment, experiment.trials, Terms()).extractions


def test_a_manifest_freezes_what_a_queued_job_will_do(tmp_path: Path) -> None:
    source = tmp_path / "mine.yaml"
    source.write_text("optim: {lr: 1e-3}\n")
    experiment = load_experiment(source, ["seed=0,1"])
    made = make_manifest(experiment, experiment.trials, Terms(argv=("carabid", "submit")))
    source.write_text("optim: {lr: 9}\n")
    loaded = load_manifest(made.path)
    assert trials_of(loaded) == experiment.trials and [t.config.optim.lr for t in trials_of(loaded)] == [1e-3, 1e-3]
    assert made.experiment.record.read_text() == "optim: {lr: 1e-3}\n"
    assert read_json(made.path)["argv"] == ["carabid", "submit"] and read_json(made.path)["overrides"] == ["seed=0,1"]


def test_submissions_are_numbered_from_one_and_beyond_ten() -> None:
    experiment = load()
    numbers = [make_manifest(experiment, experiment.trials).number for _ in range(11)]
    assert numbers == [str(n) for n in range(1, 12)]


def test_submissions_at_once_get_different_numbers_and_lose_nothing() -> None:
    experiment = load("seed=0,1,2,3,4,5,6,7,8,9,10,11")
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda trial: make_manifest(experiment, [trial]), experiment.trials))
    assert sorted(int(m.number) for m in made) == list(range(1, 13))
    assert [trials_of(load_manifest(m.path)) for m in made] == [[trial] for trial in experiment.trials]
    assert sorted(p.name for p in experiment.dir.submissions.iterdir()) == sorted(f"{n}.json" for n in range(1, 13))


def test_a_number_that_another_submission_takes_meanwhile_is_not_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one may be over and done with between looking for a free number and claiming it."""
    first, second = load("seed=0"), load("seed=1")
    real_open, other = os.open, []

    def open_late(*arguments: Any) -> int:
        if not other:
            other.append(None)
            other[0] = make_manifest(first, first.trials)
        return real_open(*arguments)

    monkeypatch.setattr(manifest.os, "open", open_late)
    mine = make_manifest(second, second.trials)
    assert mine.path != other[0].path
    assert trials_of(load_manifest(other[0].path)) == first.trials
    assert trials_of(load_manifest(mine.path)) == second.trials


def test_trials_that_read_the_same_features_share_one_extraction() -> None:
    assert extractions(load("seed=0,1", "optim.lr=1e-3,1e-4", "resources.extract_tasks=3")) == [(0, 0, 3), (0, 1, 3), (0, 2, 3)]


@pytest.mark.parametrize(
    "axis",
    [
        "model.encoder.blocks=2,3",
        "features.dtype=bf16,fp32",
        "backbone.name=ViT-B-32,ViT-B-16",
        "data.source=a,b",
        "data.revision=v1,v2",
        "data.columns.image=front,back",
        "features.shard_size=10,20",
        "extract.decode=exact,fast",
    ],
)
def test_trials_that_read_different_features_have_extractions_of_their_own(axis: str) -> None:
    assert extractions(load(axis)) == [(0, 0, 1), (1, 0, 1)]


SPECIES = PROJECT / "configs/species/projection.yaml"


@pytest.mark.parametrize(
    "axis",
    [
        "data.label=genus,species",
        "data.columns.common=de,en",
        "data.columns.sex=null,sex",
        "data.columns.view=null,side",
        "data.columns.ranks=[genus],[family,genus]",
        "data.missing=[none],[unknown]",
        "texts.evaluation=$COM$,$SCI$",
    ],
)
def test_trials_whose_texts_differ_have_extractions_of_their_own(axis: str) -> None:
    experiment = reading.load_experiment(SPECIES, ["data.source=a", axis, "seed=0"])
    assert extractions(experiment) == [(0, 0, 1), (1, 0, 1)]


def test_trials_whose_texts_are_the_same_share_one_extraction() -> None:
    axes = ["data.shots=1,5", "data.draw=0,1", "data.split={kind: species, name: D10},{kind: species, name: S29-42}"]
    experiment = reading.load_experiment(SPECIES, ["data.source=a", *axes, "seed=0"])
    assert len(experiment.trials) == 8 and extractions(experiment) == [(0, 0, 1)]


def test_columns_of_texts_make_no_other_features_where_none_are_read() -> None:
    named = ["data.label=a,b", "data.columns.common=de,en"]
    experiment = reading.load_experiment(PROJECT / "configs/generic/classify.yaml", ["data.source=a", *named])
    assert len(experiment.trials) == 4 and extractions(experiment) == [(0, 0, 1)]


def test_folds_and_targets_of_the_same_images_share_one_extraction() -> None:
    experiment = load("data.split.kind=folds", "data.split.fold=0,1,2", "data.targets=[SPEI_1y],[SPEI_2y]")
    assert len(experiment.trials) == 6 and len(extractions(experiment)) == 1


# ---------------------------------------------------------------- states
@pytest.fixture
def config() -> Config:
    return load().config


@pytest.fixture
def trial(tmp_path: Path, config: Config) -> TrialDir:
    folder = TrialDir(tmp_path / "seed=0-abcdef")
    write_text(folder.config, dump_config(config))
    return folder


def set_trained(trial: TrialDir, config: Config) -> None:
    write_json(trial.trained, {"config_hash": config_hash(config)})


def set_done(trial: TrialDir, config: Config) -> None:
    values = {"config_hash": config_hash(config), "evaluation": plain(config.evaluate)}
    write_json(trial.results, values)


def test_a_folder_that_does_not_exist_is_a_missing_trial(tmp_path: Path, config: Config) -> None:
    assert trial_state(TrialDir(tmp_path / "nothing"), config).state == "missing"


def test_a_trial_goes_through_its_states(trial: TrialDir, config: Config) -> None:
    states = [trial_state(trial, config).state]
    with Lease(trial.lease, 120).hold():
        states.append(trial_state(trial, config).state)
    write_text(trial.checkpoint / "state.pt", "")
    states.append(trial_state(trial, config).state)
    set_trained(trial, config)
    states.append(trial_state(trial, config).state)
    set_done(trial, config)
    states.append(trial_state(trial, config).state)
    assert states == ["missing", "running", "interrupted", "trained", "done"]


def test_a_failed_trial_says_at_which_stage_and_why_in_one_line(trial: TrialDir, config: Config) -> None:
    write_json(trial.failure, {"stage": "train", "message": "the loss became nan in epoch 3\nLower optim.lr."})
    state = trial_state(trial, config)
    assert state.state == "failed" and state.reason.startswith("train: the loss became nan in epoch 3")
    assert "\n" not in state.reason and "not evaluated" in state.reason


def test_a_training_that_failed_is_reported_rather_than_its_checkpoint(trial: TrialDir, config: Config) -> None:
    write_text(trial.checkpoint / "state.pt", "")
    write_json(trial.failure, {"stage": "train", "message": "why"})
    assert trial_state(trial, config).state == "failed"


def test_a_job_that_stopped_renewing_its_lease_is_not_running(trial: TrialDir, config: Config) -> None:
    with Lease(trial.lease, 120).hold():
        long_ago = 1e9
        for path in trial.lease.iterdir():
            os.utime(path, (long_ago, long_ago))
        assert trial_state(trial, config).state == "missing"


def test_results_of_another_configuration_do_not_count(trial: TrialDir, config: Config) -> None:
    other = load("optim.lr=1").config
    set_trained(trial, config)
    set_done(trial, config)
    assert trial_state(trial, config).state == "done"
    assert trial_state(trial, other).state == "missing"
    assert trial_state(trial).state == "done"


def test_another_evaluation_is_asked_for_but_no_other_training(trial: TrialDir, config: Config) -> None:
    set_trained(trial, config)
    set_done(trial, config)
    state = trial_state(trial, load("evaluate.inputs=images").config)
    assert (state.state, state.reason) == ("trained", "evaluated in another way")


def test_what_a_job_asked_slurm_for_does_not_make_results_stale(trial: TrialDir, config: Config) -> None:
    set_done(trial, config)
    assert trial_state(trial, load("resources.train.mem=1G", "device=cpu").config).state == "done"


def test_an_unreadable_config_in_a_folder_is_no_obstacle(trial: TrialDir) -> None:
    write_text(trial.config, "optim: {lrr: 1}\n")
    assert trial_config(trial) is None and trial_state(trial).state == "missing"


def test_every_trial_that_was_ever_submitted_or_trained_is_known_in_that_order() -> None:
    experiment = load("seed=0,1,2,3,4,5,6,7,8,9,10,11")
    for single in experiment.trials[:-1]:
        make_manifest(experiment, [single])
    by_script = experiment.trials[-1]
    write_text(experiment.dir.trial(by_script.name).config, dump_config(by_script.config))
    make_manifest(experiment, [experiment.trials[0]])
    assert planned_trials(experiment.dir) == [t.name for t in experiment.trials]


# ---------------------------------------------------------------- failures
def test_a_failure_for_people_is_recorded_without_a_traceback(trial: TrialDir) -> None:
    with pytest.raises(WorkError), recorded_failure(trial, "train"):
        raise WorkError("the loss became nan")
    record = read_json(trial.failure)
    assert (record["stage"], record["message"], record["traceback"]) == ("train", "the loss became nan", None)


def test_an_unexpected_failure_is_recorded_with_its_traceback(trial: TrialDir) -> None:
    with pytest.raises(ZeroDivisionError), recorded_failure(trial, "evaluate"):
        _ = 1 / 0
    record = read_json(trial.failure)
    assert record["message"] == "ZeroDivisionError: division by zero" and __file__ in record["traceback"]


def test_the_next_attempt_removes_the_failure_of_the_last_one(trial: TrialDir) -> None:
    write_json(trial.failure, {"stage": "train", "message": "old"})
    with recorded_failure(trial, "train"):
        assert not trial.failure.exists()
    assert not trial.failure.exists()


def test_an_evaluation_without_a_model_leaves_the_reason_that_training_gave(trial: TrialDir) -> None:
    write_json(trial.failure, {"stage": "train", "message": "the loss became nan"})
    with pytest.raises(WorkError), recorded_failure(trial, "evaluate"):
        raise WorkError("not trained")
    assert read_json(trial.failure)["message"] == "the loss became nan"


def test_an_evaluation_of_a_trained_model_replaces_an_older_failure(trial: TrialDir, config: Config) -> None:
    write_json(trial.failure, {"stage": "evaluate", "message": "old"})
    set_trained(trial, config)
    with pytest.raises(WorkError), recorded_failure(trial, "evaluate"):
        raise WorkError("new")
    assert read_json(trial.failure)["message"] == "new"


def test_a_training_without_features_leaves_the_reason_that_extraction_gave(trial: TrialDir) -> None:
    write_json(trial.failure, {"stage": "extract", "message": "table.csv, line 9: cannot be read"})
    with pytest.raises(MissingFeatures), recorded_failure(trial, "train"):
        raise MissingFeatures("these features are not there")
    assert trial_state(trial).reason == "extract: table.csv, line 9: cannot be read; not trained"


def test_a_training_with_features_does_not_blame_an_extraction_of_the_past(trial: TrialDir) -> None:
    write_json(trial.failure, {"stage": "extract", "message": "long ago"})
    with pytest.raises(WorkError), recorded_failure(trial, "train"):
        raise WorkError("the loss became nan")
    assert read_json(trial.failure)["message"] == "the loss became nan"


def test_a_trial_that_another_job_has_taken_over_has_not_failed(trial: TrialDir) -> None:
    with pytest.raises(TakenOver), recorded_failure(trial, "train"):
        raise TakenOver("another job has it")
    assert not trial.failure.exists()


def test_being_told_to_stop_is_no_failure(trial: TrialDir) -> None:
    with pytest.raises(Interrupted), recorded_failure(trial, "train"):
        raise Interrupted("told to stop")
    assert not trial.failure.exists()


# ---------------------------------------------------------------- what a job runs
Stage = Callable[[Config, TrialDir, Any], None]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stage], None]:
    """Put a function in the place of the training stage."""

    def replace(run: Stage) -> None:
        def training(config: Config, trial: TrialDir, flag: Any, *_: object) -> Iterator[Any]:
            run(config, trial, flag)
            yield from ()

        stand_in = types.SimpleNamespace(training=training, carry_out=train_stage.carry_out, finish=train_stage.finish)
        monkeypatch.setattr(pipeline.stages, "train", stand_in, raising=False)
        monkeypatch.setitem(sys.modules, "pipeline.stages.train", stand_in)

    return replace


def test_a_job_trains_the_trial_of_its_index_as_it_was_when_it_was_submitted(training: Any) -> None:
    experiment, seen = load("seed=0,1"), []
    made = make_manifest(experiment, experiment.trials)
    training(lambda config, folder, stop: seen.append((config, folder.path.name)))
    jobs.train(str(made.path), 1)
    assert seen == [(experiment.trials[1].config, experiment.trials[1].name)]


def test_a_job_that_fails_ends_with_status_1_its_message_and_no_traceback(
    training: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load()
    made = make_manifest(experiment, experiment.trials)

    def fail(*_: Any) -> None:
        raise UserError("data.csv, row 17: SPEI_1y is empty")

    training(fail)
    with pytest.raises(SystemExit) as caught:
        jobs.train(str(made.path), 0)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "carabid: data.csv, row 17: SPEI_1y is empty\n"
    assert trial_state(experiment.dir.trial(experiment.trials[0].name)).state == "failed"


def test_a_signal_asks_training_to_stop_and_the_old_handlers_come_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(WALLTIME_SIGNAL)
    for number in (signal.SIGTERM, WALLTIME_SIGNAL):
        flag = StopFlag()
        with flag.installed():
            assert not flag.asked()
            os.kill(os.getpid(), number)
            assert flag.asked() and flag.signal == number and not flag.overdue()
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(WALLTIME_SIGNAL)) == before
    assert "SIGTERM: stopping after this epoch" in capsys.readouterr().out


def test_the_end_of_the_walltime_is_not_taken_for_a_cancellation() -> None:
    """Slurm sends SIGTERM when the time that USR2 warned of is over: the job must still be queued again."""
    flag = StopFlag()
    with flag.installed():
        for number in (WALLTIME_SIGNAL, signal.SIGTERM):
            os.kill(os.getpid(), number)
    assert flag.out_of_time()


def test_a_training_out_of_time_asks_to_be_queued_again_and_is_no_failure(training: Any) -> None:
    training(stop_when_signalled(WALLTIME_SIGNAL, checkpoint=True))
    (trial,) = load().trials
    with pytest.raises(RunAgain):
        train_trials([trial])
    assert not trial_dir(trial).failure.exists()
    made = make_manifest(load(), load().trials)
    with pytest.raises(SystemExit) as caught:
        jobs.train(str(made.path), 0)
    assert caught.value.code == REQUEUE_STATUS


def test_a_training_that_came_no_further_before_its_time_was_over_is_not_queued_again(training: Any) -> None:
    """Each attempt would be cut off at the same place, for ever."""
    training(stop_when_signalled(WALLTIME_SIGNAL))
    (trial,) = load().trials
    with pytest.raises(OutOfTime, match="not one epoch"):
        train_trials([trial])
    assert "not one epoch fits into the walltime" in trial_state(trial_dir(trial)).reason


def test_a_training_told_to_stop_for_another_reason_does_not_ask_to_be_queued_again(training: Any) -> None:
    training(stop_when_signalled(signal.SIGTERM))
    with pytest.raises(Interrupted) as caught:
        train_trials(load().trials)
    assert not isinstance(caught.value, RunAgain)


def test_a_signal_during_one_trials_last_epoch_is_not_lost_on_the_next_trial(training: Any) -> None:
    trained = []

    def end_normally(config: Config, folder: TrialDir, flag: StopFlag) -> None:
        trained.append(config.seed)
        os.kill(os.getpid(), WALLTIME_SIGNAL)

    training(end_normally)
    with pytest.raises(RunAgain, match="before"):
        train_trials(load("seed=0,1").trials)
    assert trained == [0]


@pytest.mark.parametrize(
    ("environ", "requeued"),
    [
        ({"SLURM_JOB_ID": "42"}, "requeue 42\n"),
        # The id of one task of every array is the whole array's: its neighbours must not be requeued with it.
        ({"SLURM_JOB_ID": "42", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 42_3\n"),
    ],
)
@pytest.mark.parametrize("status", [0, 1, REQUEUE_STATUS])
@pytest.mark.parametrize("how", ["submitted", "typed"])
def test_a_job_script_queues_its_own_task_again_if_its_command_asks_for_it_and_ends_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scripts: Any, environ: dict[str, str], requeued: str, status: int, how: str
) -> None:
    calls = fake_command(tmp_path / "bin", "scontrol", "", monkeypatch)
    fake_command(tmp_path / "bin", "srun", f"exit {status}", monkeypatch)
    script = scripts()["train"] if how == "submitted" else f"set -e; jobs=/; source {PROJECT}/jobs/setup.sh; run true"
    environ |= {"PATH": os.environ["PATH"]}
    done = subprocess.run(["bash", "-c", script], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert calls.read_text() == (requeued if status == REQUEUE_STATUS else "")


def stop_when_signalled(number: int, checkpoint: bool = False) -> Callable[[Config, TrialDir, StopFlag], None]:
    def run(config: Config, folder: TrialDir, flag: StopFlag) -> None:
        os.kill(os.getpid(), number)
        assert flag.asked()
        if checkpoint:
            write_text(folder.resume_state, "")
        raise Interrupted("told to stop")

    return run


def test_a_job_whose_time_went_to_earlier_trials_is_queued_again_for_the_one_it_began_late(training: Any) -> None:
    def run(config: Config, folder: TrialDir, flag: StopFlag) -> None:
        if config.seed == 0:
            set_trained(folder, config)
            return
        os.kill(os.getpid(), WALLTIME_SIGNAL)
        raise Interrupted("in its first epoch")

    training(run)
    trials = load("seed=0,1").trials
    with pytest.raises(RunAgain):
        train_trials(trials)
    training(lambda config, folder, flag: run(config, folder, flag) if config.seed else None)
    with pytest.raises(OutOfTime):  # the first one is trained already: this attempt had all the time
        train_trials(trials)


# ---------------------------------------------------------------- signals to stages without a checkpoint
def signalled(stage: str, number: int, comes_further: bool = False) -> tuple[int, str]:
    """Exit status and output of a job of a stage that gets a signal while it works."""
    experiment = load()
    made = make_manifest(experiment, experiment.trials)
    write_json(experiment.dir.trial(experiment.trials[0].name).trained, {})
    out = made.path.with_suffix(".out")
    out.touch()
    job = start(work, stage, str(made.path), dict(os.environ), str(out), comes_further)
    deadline = time.monotonic() + 60
    try:
        while "working\n" not in out.read_text():
            assert time.monotonic() < deadline and job.is_alive(), out.read_text()
            time.sleep(0.01)
        assert job.pid
        os.kill(job.pid, number)
        job.join(30)
        assert job.exitcode is not None, out.read_text()
    finally:
        job.kill()
    return job.exitcode, out.read_text()


def test_an_extraction_out_of_time_asks_to_be_queued_again_and_is_no_failure() -> None:
    status, out = signalled("extract", WALLTIME_SIGNAL, comes_further=True)
    assert status == REQUEUE_STATUS and "the walltime is near" in out and "Traceback" not in out
    assert not load().dir.trial(load().trials[0].name).failure.exists()


def test_what_is_half_written_or_held_is_no_progress_of_an_extraction() -> None:
    """It is there in each attempt that is cut off at the same place."""
    store = features_root(load().config) / "key"
    before = _n_records(load().config)
    for name in (".shard-00000-of-00002.json.0123456789ab.tmp", "shard-00000-of-00002.safetensors", "extract.lease/000001"):
        write_text(store / name, "")
    write_text(store / ".manifest.json", "")
    assert _n_records(load().config) == before
    write_text(store / "shard-00000-of-00002.json", "")
    assert _n_records(load().config) == before + 1


def test_an_extraction_that_came_no_further_before_its_time_was_over_is_not_queued_again() -> None:
    status, out = signalled("extract", WALLTIME_SIGNAL)
    assert status == 1 and "not one shard fits" in out and "Traceback" not in out
    assert trial_state(load().dir.trial(load().trials[0].name)).reason.startswith("extract: not one shard fits")


@pytest.mark.parametrize("stage", ["evaluate", "collect"])
def test_what_would_begin_anew_says_that_its_time_was_too_short_and_is_not_queued_again(stage: str) -> None:
    status, out = signalled(stage, WALLTIME_SIGNAL)
    assert status == 1 and "give it more" in out and "Traceback" not in out
    if stage == "evaluate":
        state = trial_state(load().dir.trial(load().trials[0].name))
        assert state.state == "failed" and state.reason.startswith("evaluate: the walltime is over")


def test_out_of_time_no_other_evaluation_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def evaluate(config: Config, folder: TrialDir, shared: object = None) -> None:
        begun.append(config.seed)
        os.kill(os.getpid(), WALLTIME_SIGNAL)

    monkeypatch.setattr(pipeline.stages, "evaluate", types.SimpleNamespace(run=evaluate), raising=False)
    with pytest.raises(OutOfTime):
        evaluate_trials(load("seed=0,1,2").trials)
    assert begun == [0]


@pytest.mark.parametrize("stage", ["extract", "evaluate", "collect"])
def test_a_stage_that_is_cancelled_ends_at_once(stage: str) -> None:
    assert signalled(stage, signal.SIGTERM)[0] == -signal.SIGTERM


# ---------------------------------------------------------------- on this machine
def test_an_unexpected_failure_of_one_trial_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, done = load("seed=0,1,2"), []
    made = make_manifest(experiment, experiment.trials)

    def note(stage: str) -> Callable[[str, int], None]:
        def work(path: str, index: int = 0, shared: object = None) -> None:
            if (stage, index) == ("train", 1):
                raise KeyError("weight")
            done.append((stage, index))

        return work

    for stage in ("extract", "train", "evaluate", "collect"):
        monkeypatch.setattr(jobs, stage, note(stage))
    monkeypatch.setattr(local, "_pool", lambda workers: ThreadPoolExecutor(1))
    assert local.run([made], 1) is False
    said = capsys.readouterr().out.splitlines()
    assert {index for stage, index in done if stage == "evaluate"} == {0, 2} and done[-1] == ("collect", 0)
    assert any("failed" in line and experiment.trials[1].name in line for line in said)


def test_what_lacks_features_is_not_begun_what_has_them_goes_on_and_why_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each store is made by three job tasks, of which two fail with the same word."""
    experiment, done = load("model.encoder.blocks=1,2", "seed=0,1", "resources.extract_tasks=3"), []
    made = make_manifest(experiment, experiment.trials)
    lacking = {i for i, entry in enumerate(made.entries) if entry.features == 1}

    def note(stage: str) -> Callable[[str, int], None]:
        def work(path: str, index: int = 0, shared: object = None) -> None:
            done.append((stage, index))
            if stage == "extract" and made.extractions[index][0] == 1 and index > 3:
                raise UserError("table.csv, line 9: the image cannot be read")

        return work

    for stage in ("extract", "train", "evaluate", "collect"):
        monkeypatch.setattr(jobs, stage, note(stage))
    monkeypatch.setattr(local, "_pool", lambda workers: ThreadPoolExecutor(1))
    assert local.run([made], 1) is False
    said = capsys.readouterr().out
    assert said.count("extract: failed") == said.count("not begun") == 1
    assert {index for stage, index in done if stage == "train"} == set(range(4)) - lacking and len(lacking) == 2
    assert f"not begun, for want of these features: {', '.join(made.names[i] for i in sorted(lacking))}" in said
    assert done[-1] == ("collect", 0)


# ---------------------------------------------------------------- Slurm
def test_a_nested_submission_does_not_inherit_the_jobs_own_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"SLURM_JOB_ID": "1", "SLURM_CPU_BIND": "x", "SLURM_MEM_PER_NODE": "9", "SBATCH_PARTITION": "debug"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "PATH": os.environ["PATH"], "MY_SLURM_NOTE": "mine"}
    for name, value in (own | kept).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ZeroDivisionError), only_what_counts(""):
        inside = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
        _ = 1 / 0
    assert not any(f"{name}=" in inside for name in own)
    assert all(f"{name}={value}\n" in inside for name, value in kept.items())
    assert all(os.environ[name] == value for name, value in (own | kept).items())


@pytest.mark.parametrize(
    ("script", "variables", "counts"),
    [
        (
            "",
            {"ACCOUNT": "lab", "RESERVATION": "course", "PARTITION": "gpu", "QOS": "high", "WCKEY": "w", "GRES": "nvme:1"},
            True,
        ),
        ("#SBATCH --mem=4G", {"CONSTRAINT": "a100", "EXCLUSIVE": "user", "HINT": "nomultithread"}, True),
        ("", {"MEM_PER_CPU": "4G"}, True),  # where no memory is asked for, the shell may ask
        ("#SBATCH --mem=4G", {"MEM_PER_CPU": "4G", "MEM_PER_GPU": "4G", "MEM_PER_NODE": "4G"}, False),
        ("#SBATCH --account=mine\n#SBATCH --reservation=x", {"ACCOUNT": "lab", "RESERVATION": "course"}, False),
        ("", {"TIMELIMIT": "5", "GPUS": "8", "GPUS_PER_NODE": "8", "GRES": "gpu:8", "CPUS_PER_GPU": "1"}, False),
        ("", {"JOB_NAME": "x", "ARRAY_INX": "0-9", "OUTPUT": "x", "WAIT": "1", "NO_REQUEUE": "1", "EXPORT": "NONE"}, False),
        ("", {"SIGNAL": "9", "OPEN_MODE": "truncate", "CLUSTERS": "other"}, False),
    ],
)
def test_what_a_person_has_set_for_sbatch_counts_where_the_script_does_not_say_it(
    monkeypatch: pytest.MonkeyPatch, script: str, variables: dict[str, str], counts: bool
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    kept = {name for name in variables if f"SBATCH_{name}" in environment_for(script)}
    assert kept == (set(variables) if counts else set())
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not any(name.startswith("SBATCH_") for name in environment_for(script)), "a job has inherited it"


def test_submissions_and_their_checks_are_made_with_the_persons_account_and_what_does_not_count_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = tmp_path / "seen"
    script = f'echo "$SBATCH_ACCOUNT/$SBATCH_RESERVATION/$SBATCH_TIMELIMIT/$SLURM_CLUSTERS" >> {seen}; echo Submitted batch job 7'
    fake_command(tmp_path / "bin", "sbatch", script, monkeypatch)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name, value in {"SBATCH_ACCOUNT": "lab", "SBATCH_RESERVATION": "course", "SBATCH_TIMELIMIT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CLUSTERS", "big")
    experiment = load("resources.train.account=paid")
    made = make_manifest(experiment, experiment.trials)
    slurm.submit(made, slurm.chain(made))
    assert slurm.refusal("#!/bin/bash\n") is None
    assert seen.read_text().split() == ["lab/course//big", "/course//big", *["lab/course//big"] * 3]
    said = capsys.readouterr().err
    assert "SBATCH_ACCOUNT, SBATCH_TIMELIMIT: does not count where `resources`" in said and "RESERVATION" not in said
    assert os.environ["SBATCH_TIMELIMIT"] == "1"


@pytest.fixture
def scripts() -> Callable[..., dict[str, str]]:
    """Stage → its sbatch script, for overrides of the LoRA config."""

    def make(*overrides: str) -> dict[str, str]:
        experiment = load(*overrides)
        made = make_manifest(experiment, experiment.trials)
        return dict(slurm.scripts(made, slurm.chain(made)))

    return make


def options(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")}


def test_the_chain_of_a_grid_lets_each_evaluation_wait_for_its_own_training(scripts: Any) -> None:
    made = scripts("seed=0,1,2", "resources.extract_tasks=4")
    assert list(made) == ["extract", "train", "evaluate", "collect"]
    arrays = {stage: {o for o in options(script) if o.startswith("--array")} for stage, script in made.items()}
    assert arrays == {"extract": {"--array=0-3%4"}, "train": {"--array=0-2%3"}, "evaluate": {"--array=0-2%3"}, "collect": set()}
    assert "--dependency='afterany:<extract>'" in options(made["train"])
    assert "--dependency='aftercorr:<train>'" in options(made["evaluate"])
    assert "--dependency='afterany:<evaluate>'" in options(made["collect"])
    assert not any(o.startswith("--dependency") for o in options(made["extract"]))


def test_an_array_longer_than_slurm_allows_is_several_each_with_its_own_evaluation() -> None:
    experiment = load("seed=0,1,2,3,4,5,6")
    made = make_manifest(experiment, experiment.trials, Terms(array_size=3, max_parallel=2))
    stages = {stage.name: stage for stage in slurm.chain(load_manifest(made.path))}
    names = ["train", "train-2", "train-3", "evaluate", "evaluate-2", "evaluate-3"]
    assert list(stages) == ["extract", *names, "collect"]
    assert [list(stages[name].indices) for name in names[:3]] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [(stages[name].dependency, stages[name].after) for name in names] == [
        *[("afterany", ("extract",))] * 3,
        ("aftercorr", ("train",)),
        ("aftercorr", ("train-2",)),
        ("afterok", ("train-3",)),  # a single task is a plain job
    ]
    assert stages["collect"].after == ("evaluate", "evaluate-2", "evaluate-3")
    texts = dict(slurm.scripts(made, list(stages.values())))
    assert "--array=0-2%2" in options(texts["train-2"]) and "--array" not in texts["train-3"]
    assert "--dependency='afterany:<evaluate>:<evaluate-2>:<evaluate-3>'" in options(texts["collect"])
    assert f"--job-name={parts.job_name(made, 'train-2')}" in options(texts["train-2"])


@given(st.integers(1, 200), st.integers(1, 50))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_hold_every_trial_once_and_none_is_longer_than_slurm_allows(n: int, size: int) -> None:
    (trial,) = load().trials
    made = preview_manifest(load(), [trial] * n, Terms(array_size=size))
    for kind in ("train", "evaluate"):
        chunks = [stage.indices for stage in slurm.chain(made) if stage.kind == kind]
        assert [index for chunk in chunks for index in chunk] == list(range(n))
        assert max(map(len, chunks)) <= size


def test_the_tasks_of_a_submission_are_worked_out_once() -> None:
    """They are looked up for each line of the queue: made anew each time, ten thousand trials take minutes."""
    made = preview_manifest(load(), load().trials, Terms())
    assert made.job_tasks is made.job_tasks


def queue_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    said = "\n".join(lines)
    fake_command(tmp_path / "bin", "squeue", f"cat <<'EOF'\n{said}\nEOF", monkeypatch)


def test_what_slurm_has_queued_is_known_by_trial_and_not_submitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load("seed=0,1,2,3,4,5")
    first, other = load("seed=0,1,2,3").trials, load("seed=0", "experiment=beetles")
    name = partial(parts.job_name, make_manifest(experiment, first, Terms(array_size=3)))
    gone = parts.job_name(make_manifest(experiment, first), "train").replace("-2-", "-9-")
    theirs = parts.job_name(make_manifest(other, other.trials), "train")
    queue_holds(
        tmp_path,
        monkeypatch,
        f"{name('evaluate')}|42|1|PENDING|Dependency",
        f"{name('train')}|41|1|RUNNING|None",
        f"{name('train')}|41|2|COMPLETING|None",  # it has ended
        f"{name('train-2')}|43|N/A|PENDING|None",  # the fourth trial, alone in its chunk
        f"{name('collect')}|44|N/A|PENDING|None",
        f"{theirs}|45|N/A|PENDING|None",  # another experiment whose name begins alike
        f"{gone}|46|0|PENDING|None",
        "somebody-elses|47|N/A|PENDING|None",
    )
    how = plain(first[0].config.evaluate)
    assert queue.queued_trials(parts.Parts(experiment.dir), queue.my_job_tasks()) == {
        first[1].name: queue.Queued(first[1].name, how, "train", "41_1", "running"),
        first[3].name: queue.Queued(first[3].name, how, "train", "43", "pending"),
    }
    states = plan.plan(experiment)[1]
    assert [state.state for state in states] == ["missing", "running", "missing", "queued", "missing", "missing"]
    assert states[1].reason == "train: job 41_1, running"
    submit.submit(experiment, submit.Request(dry_run=True))
    out = capsys.readouterr().out
    assert "2 trials are queued or running already" in out and "4 of 6 trials would be queued" in out


def test_a_job_that_evaluates_in_another_way_does_not_do_what_is_asked_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = load()
    made = make_manifest(experiment, experiment.trials)
    queue_holds(tmp_path, monkeypatch, f"{parts.job_name(made, 'train')}|41|N/A|PENDING|None")
    assert [state.state for state in plan.plan(experiment)[1]] == ["queued"]
    assert [state.state for state in plan.plan(load("evaluate.split=validation"))[1]] == ["missing"]


def test_the_manifest_of_a_long_queue_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, reads = load("seed=0,1,2,3,4,5,6,7"), []
    name = parts.job_name(make_manifest(experiment, experiment.trials), "train")
    queue_holds(tmp_path, monkeypatch, *(f"{name}|41|{i}|PENDING|None" for i in range(8)))
    monkeypatch.setattr(parts, "load_manifest", lambda path: reads.append(path) or load_manifest(path))
    assert len(queue.queued_trials(parts.Parts(experiment.dir), queue.my_job_tasks())) == 8 and len(reads) == 1


def test_the_number_of_a_refused_submission_is_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of it that sbatch queued all the same would do the trials of another manifest."""
    experiment = load(f"data.source={tmp_path / 'data.csv'}")
    fake_command(tmp_path / "bin", "sbatch", "exit 1", monkeypatch)
    fake_command(tmp_path / "bin", "scancel", "", monkeypatch)
    with pytest.raises(WorkError):
        submit.submit(experiment, submit.Request(check=False))
    assert make_manifest(experiment, experiment.trials).number == "2"


def test_a_squeue_that_fails_stops_a_submission_and_not_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be seen in the queue could be queued twice."""
    fake_command(tmp_path / "bin", "squeue", "echo 'Unable to contact slurm controller' >&2; exit 1", monkeypatch)
    with pytest.raises(WorkError, match="Unable to contact"):
        submit.submit(load(), submit.Request())
    assert [state.state for state in plan.plan(load())[1]] == ["missing"]
    assert "what is queued is not known" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "size"),
    [("echo 'MaxArraySize            = 11'", 11), ("echo MaxArraySize = 0", 1), ("echo MaxJobCount = 3", 1001), ("exit 1", 1001)],
)
def test_the_limit_of_arrays_is_asked_of_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, size: int) -> None:
    fake_command(tmp_path / "bin", "scontrol", script, monkeypatch)
    assert queue.max_array_size() == size


def test_a_chain_that_sbatch_refuses_half_way_is_taken_back_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and not by id: an sbatch that failed may have queued its job all the same."""
    refuse = f"test -e {tmp_path}/one && exit 1; touch {tmp_path}/one; echo Submitted batch job 5"
    fake_command(tmp_path / "bin", "sbatch", refuse, monkeypatch)
    calls = fake_command(tmp_path / "bin", "scancel", "", monkeypatch)
    experiment = load()
    made = make_manifest(experiment, experiment.trials)
    with pytest.raises(WorkError, match=r"did not take the train job.*Jobs 5, queued before it, were cancelled\."):
        slurm.submit(made, slurm.chain(made))
    wanted = [f"--me --name={parts.job_name(made, stage)}" for stage in ("extract", "train", "evaluate", "collect")]
    assert calls.read_text().splitlines() == wanted


def test_a_grid_of_one_trial_is_a_chain_of_plain_jobs(scripts: Any) -> None:
    made = scripts()
    assert not any(o.startswith("--array") for script in made.values() for o in options(script))
    assert "--dependency='afterok:<train>'" in options(made["evaluate"])


def test_a_job_whose_predecessor_failed_does_not_wait_for_ever(scripts: Any) -> None:
    for stage, script in scripts("seed=0,1").items():
        assert ("--kill-on-invalid-dep=yes" in options(script)) == (stage != "extract")


def test_jobs_ask_for_what_the_resources_say_and_are_warned_before_their_time_is_up(scripts: Any) -> None:
    made = scripts(
        "resources.train.partition=gpu", "resources.train.mem=200G", "resources.train.time=2-00:00:00",
        "resources.train.cpus_per_task=7", "resources.train.gpus_per_node=2", "resources.train.account=lab",
    )  # fmt: skip
    train = options(made["train"])
    wanted = {"--partition=gpu", "--mem=200G", "--time=2-00:00:00", "--cpus-per-task=7", "--gpus-per-node=2", "--account=lab"}
    assert wanted | {"--signal=USR2@120", "--requeue", "--open-mode=append"} <= train
    assert "srun" in made["train"] and "--cpus-per-task=7" in made["train"].rpartition("srun")[2]


def test_collecting_asks_for_no_gpu_and_no_job_for_two_nodes(scripts: Any) -> None:
    """Mistake 10: 2 nodes × 4 GPUs were asked for and one GPU used."""
    made = scripts()
    assert not any("gpu" in option for option in options(made["collect"]))
    for stage, script in made.items():
        assert "--nodes=1" in options(script)
        assert stage == "collect" or "--gpus-per-node=1" in options(script)
        assert "pip install" not in script


def test_job_names_are_readable_and_of_one_submission_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are cancelled by name: another root's experiment of the same name and number must not be hit."""
    names = []
    for root in (tmp_path / "one", tmp_path / "other"):
        monkeypatch.setenv("CARABID_ROOT", str(root))
        experiment = load()
        names += [parts.job_name(make_manifest(experiment, experiment.trials), "train") for _ in range(2)]
    assert len(set(names)) == 4
    assert all(re.fullmatch(r"carabid-beetles-lora-[0-9a-f]{6}-[12]-train", name) for name in names)


def test_a_submission_queues_the_chain_with_real_dependencies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    script = f'echo x >> {count}\ncat "$1" | grep SBATCH >> {tmp_path}/scripts\n'
    fake_command(tmp_path / "bin", "sbatch", script + f"echo Submitted batch job 10$(wc -l < {count})", monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    experiment = load("seed=0,1")
    made = make_manifest(experiment, experiment.trials)
    ids = slurm.submit(made, slurm.chain(made))
    assert ids == {"extract": "101", "train": "102", "evaluate": "103", "collect": "104"}
    queued = (tmp_path / "scripts").read_text()
    for dependency in ("afterany:101", "aftercorr:102", "afterany:103"):
        assert dependency in queued


@pytest.mark.parametrize("script", ["echo 'sbatch: error: Invalid account' >&2; exit 1", None])
def test_a_submission_that_slurm_refuses_says_why_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None
) -> None:
    if script:
        fake_command(tmp_path / "bin", "sbatch", script, monkeypatch)
    else:
        monkeypatch.setenv("PATH", str(tmp_path))
    experiment = load(f"data.source={tmp_path / 'data.csv'}")
    with pytest.raises(WorkError, match="Invalid account" if script else "sbatch"):
        submit.submit(experiment, submit.Request(check=False))
    assert planned_trials(experiment.dir) == [], "what was never queued is not planned"


def test_data_that_are_not_there_are_refused_before_anything_is_queued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_command(tmp_path / "bin", "sbatch", "echo Submitted batch job 1", monkeypatch)
    with pytest.raises(UserError, match=r"mistyped\.csv: there is no such file"):
        submit.submit(load("data.source=mistyped.csv"), submit.Request())
    assert calls.read_text() == "" and planned_trials(load().dir) == []


def test_a_training_job_queues_its_evaluation_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = tmp_path / "queue"
    queue.touch()
    fake_command(tmp_path / "bin", "squeue", f"cat {queue}", monkeypatch)
    script = f"sleep 0.1; printf '77 2\\n77 4\\n77 6\\n' > {queue}; echo 77"
    calls = fake_command(tmp_path / "bin", "sbatch", script, monkeypatch)
    for name, value in slurm_array(3, 2, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    with ThreadPoolExecutor(3) as together:
        found = list(together.map(lambda _: evaluation.queue_evaluation(load(), ["configs/x.yaml", "seed=0,1"]), range(3)))
    assert found == ["77"] * 3
    (call,) = calls.read_text().splitlines()
    assert "--dependency=aftercorr:40" in call and "--array=2-6:2" in call and "--job-name=carabid-evaluate-40" in call
    assert call.endswith("evaluate.sh configs/x.yaml seed=0,1")


def test_the_evaluation_that_is_queued_is_of_the_script_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that a site has edited, by `carabid init --jobs`."""
    assert evaluation.script() == PROJECT / "jobs" / "evaluate.sh"
    monkeypatch.setenv("CARABID_JOBS", str(tmp_path))
    assert evaluation.script() == PROJECT / "jobs" / "evaluate.sh"
    (tmp_path / "evaluate.sh").write_text("#!/bin/bash")
    assert evaluation.script() == tmp_path / "evaluate.sh"


GIVEN = "lab\thens\tlong\tcourse\tfast|big\tn2\t\t(null)\t0\tgres:gpu:a100:1\t20:00"
"""What squeue says of a job, as it is asked."""


@pytest.mark.parametrize(
    ("told", "squeue", "script", "wanted"),
    [
        ({"MEM_PER_NODE": "2048", "CPUS_PER_TASK": "3", "GPUS_ON_NODE": "1"}, GIVEN, "#SBATCH --time=01:00:00",
         "--partition=lab --account=hens --qos=long --reservation=course --constraint=fast|big --exclude=n2 "
         "--gpus-per-node=a100:1 --cpus-per-task=3 --mem=2048M --time=20:00"),
        ({"MEM_PER_CPU": "1000", "CPUS_PER_TASK": "3"}, "", "", "--gpus-per-node=0 --cpus-per-task=3 --mem=3000M"),
        ({"MEM_PER_GPU": "8000", "GPUS_ON_NODE": "2"}, "", "", "--gpus-per-node=2 --cpus-per-task=1 --mem=16000M"),
        ({"MEM_PER_NODE": "1001", "CPUS_PER_TASK": "2"}, "", "#SBATCH --mem-per-cpu=4G",
         "--gpus-per-node=0 --cpus-per-task=2 --mem-per-cpu=501M"),
        ({"CPUS_PER_TASK": "2"}, GIVEN.replace("20:00", "UNLIMITED"), "#SBATCH --time=01:00:00",
         "--partition=lab --account=hens --qos=long --reservation=course --constraint=fast|big --exclude=n2 "
         "--gpus-per-node=a100:0 --cpus-per-task=2 --mem=0"),
        ({}, GIVEN.replace("20:00", "2-00:00:00").replace("\t0\t", "\t10G\t").replace("a100:", ""), "#SBATCH --time=01:00:00",
         "--partition=lab --account=hens --qos=long --reservation=course --constraint=fast|big --exclude=n2 --tmp=10G "
         "--gpus-per-node=0 --cpus-per-task=1 --mem=0"),
    ],
)  # fmt: skip
def test_an_evaluation_is_given_what_its_job_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, str], squeue: str, script: str, wanted: str
) -> None:
    """Memory in the way in which evaluate.sh asks for it: sbatch takes no two."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    (tmp_path / "said").write_text(squeue + "\n")
    fake_command(tmp_path / "bin", "squeue", f"cat {tmp_path / 'said'}", monkeypatch)
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert " ".join(evaluation._alike(script)) == wanted


def test_an_evaluation_that_lacks_this_task_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task failed once, its evaluation was cancelled, and somebody queued it again."""
    fake_command(tmp_path / "bin", "squeue", "echo 77 4", monkeypatch)
    fake_command(tmp_path / "bin", "sbatch", "echo 79", monkeypatch)
    for name, value in slurm_array(3, 2, 2, 0).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "40")
    assert evaluation.queue_evaluation(load(), ["configs/x.yaml"]) == "79"


def test_a_plain_training_job_queues_an_evaluation_that_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_command(tmp_path / "bin", "squeue", "", monkeypatch)
    calls = fake_command(tmp_path / "bin", "sbatch", "echo '78;cluster'", monkeypatch)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    assert evaluation.queue_evaluation(load(), ["x.yaml"]) == "78"
    assert "--dependency=afterok:41" in calls.read_text() and "--array" not in calls.read_text()


@pytest.mark.parametrize("refusing", ["squeue", "sbatch", "both are missing"])
def test_a_node_that_may_not_call_slurm_says_so_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    for name in ("squeue", "sbatch"):
        fake_command(tmp_path / "bin", name, "echo not here >&2; exit 1" if name == refusing else "", monkeypatch)
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    if refusing == "both are missing":
        monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(WorkError, match=r"on this node|sbatch refused it"):
        evaluation.queue_evaluation(load(), ["x.yaml"])


def test_a_squeue_that_does_not_answer_says_nothing_about_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for script, queued in [
        ("echo RUNNING", True),
        ("", False),
        ("echo Socket timed out >&2; exit 1", True),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", False),
    ]:
        fake_command(tmp_path / "bin", "squeue", script, monkeypatch)
        assert queue.is_queued("7") is queued, script


# ---------------------------------------------------------------- submit
def run_submit(experiment: Experiment, dry_run: bool = False) -> None:
    submit.submit(experiment, submit.Request(dry_run=dry_run))


def test_only_trials_without_results_are_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, queued = load("seed=0,1,2"), []
    set_done(experiment.dir.trial(experiment.trials[1].name), experiment.trials[1].config)
    monkeypatch.setattr(slurm, "submit", lambda manifest, *_: queued.append(trials_of(manifest)) or {"collect": "1"})
    run_submit(experiment)
    assert queued == [[experiment.trials[0], experiment.trials[2]]]


def test_when_all_is_done_nothing_is_submitted_and_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    experiment = load()
    set_done(experiment.dir.trial(experiment.trials[0].name), experiment.trials[0].config)
    run_submit(experiment)
    assert "nothing to do" in capsys.readouterr().out and not experiment.dir.submissions.exists()


def test_a_dry_run_shows_every_script_and_leaves_nothing_behind(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = load("seed=0,1")
    run_submit(experiment, dry_run=True)
    out = capsys.readouterr().out
    assert out.count("#!/bin/bash") == 4 and "dry run: 2 of 2 trials" in out
    assert str(experiment.dir.logs) in out and list(root.iterdir()) == []


def test_a_manifest_holds_nothing_but_json(root: Path) -> None:
    experiment = load()
    made = make_manifest(experiment, experiment.trials, Terms(argv=("carabid",)))
    assert json.loads(made.path.read_text())["schema_version"] == 2
