"""The whole chain on a real slurmctld: submissions, failures, and sbatch scripts typed by hand."""

from __future__ import annotations

import csv
import json
import os
import pickletools
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import read_json
from pipeline.launch.drafting.scripts import copy_scripts
from pipeline.tasks import load_task
from tests.broken_tables import BROKEN, Broken
from tests.cluster.cluster import Cluster, user_name
from tests.conftest import Assets, carabid, slurm_environ, started

pytestmark = pytest.mark.slurm
NO_GPU = tuple(f"resources.{stage}.gpus_per_node=0" for stage in ("extract", "train", "evaluate"))
SMALL = tuple(f"resources.{stage}.{what}" for stage in ("extract", "train", "evaluate") for what in ("mem=4G", "cpus_per_task=1"))


def slow(epochs: int) -> tuple[str, ...]:
    """Long enough, with a checkpoint after each epoch, that a test which waits for the first one finds the training at work: an
    epoch takes a fortieth of a second on pixels, a tenth of a tail."""
    return f"train.epochs={epochs}", "resources.checkpoint_epochs=1"


def wait_for_all(seconds: float = 400) -> None:
    """Until no job is queued or running."""
    deadline = time.monotonic() + seconds
    while subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout.strip():
        assert time.monotonic() < deadline, subprocess.run(["squeue"], capture_output=True, text=True).stdout
        time.sleep(0.5)


def sbatch(*arguments: str | Path, cwd: Path) -> str:
    """Submit as a user would, on nodes whose GPUs are pretended ones; returns the job id."""
    command = ["sbatch", "--parsable", "--gpus-per-node=0", "--mem=4G", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


def results(root: Path) -> dict[str, dict[str, Any]]:
    """Trial name → its results.json without what names the place or the way it was made."""
    found = {}
    for path in root.glob("trained/*/*/results.json"):
        found[path.parent.name] = json.loads(path.read_text())
    return found


def logs(root: Path) -> str:
    return "\n".join(f"{p}:\n{p.read_text()}" for p in [*root.rglob("*.out"), *root.rglob("*.log")])


def test_a_grid_submitted_to_slurm_by_hand_and_locally_gives_identical_results(assets: Assets, environ: Path) -> None:
    overrides = (*assets.overrides("baseline"), "optim.lr=1e-3,3e-3", "seed=0,1", "train.epochs=2")
    config = "configs/beetles/baseline.yaml"
    done = carabid("submit", config, *overrides, *NO_GPU, *SMALL, root=environ / "slurm")
    assert re.findall(r"^(\w+) +job \d+$", done.stdout, re.M) == ["extract", "train", "evaluate", "collect"]
    sbatch(PROJECT / "jobs" / "train_baseline.sh", *overrides, f"paths.trained={environ}/hand/trained",
           f"paths.features={environ}/slurm/features", cwd=environ)  # fmt: skip
    carabid("submit", config, *overrides, "--cluster", "local", "--workers", "2", root=environ / "local")
    wait_for_all()
    ways = {way: results(environ / way) for way in ("slurm", "hand", "local")}
    assert {way: len(found) for way, found in ways.items()} == {"slurm": 4, "hand": 4, "local": 4}, logs(environ)
    assert ways["slurm"] == ways["hand"] == ways["local"]
    with (environ / "slurm" / "trained" / "beetles-baseline" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["done"] * 6
    assert sum(row["members"] != "" for row in rows) == 2, "of each rate, the two seeds are an ensemble too"
    page = (environ / "slurm" / "trained" / "beetles-baseline" / "report.html").read_text()
    assert "What was predicted" in page and "Of the memory that" in page, logs(environ)


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sequence[str]]:
    """A root whose name a shell would misread, and the command that submitted two trials there, which have ended."""
    root = tmp_path_factory.mktemp("misread") / 'it\'s $HOME; "touch hit" & (more) #1'
    command = ("submit", "configs/beetles/pixels.yaml", *assets.overrides("pixels"), "seed=0,1", *NO_GPU, *SMALL, "--pack", "1")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in slurm_environ(cluster).items():
            patch.setenv(name, value)
        carabid(*command, root=root)
        wait_for_all()
    return root, command


def test_a_root_whose_name_a_shell_would_misread_is_no_obstacle(submitted: tuple[Path, Sequence[str]]) -> None:
    root, _ = submitted
    assert len(results(root)) == 2, logs(root)
    assert len(list(root.glob("trained/*/logs/1-train/*_log.out"))) == 2
    assert not list(root.parent.rglob("hit")) and not (PROJECT / "hit").exists()


def test_a_pickle_names_a_function_a_manifest_and_an_index(submitted: tuple[Path, Sequence[str]]) -> None:
    root, _ = submitted
    pickles = list(root.glob("trained/beetles-pixels/logs/*/*_submitted.pkl"))
    assert len(pickles) == 6, "one each for extraction and collection, two each for training and evaluation"
    for path in pickles:
        words = {str(argument) for code, argument, _ in pickletools.genops(path.read_bytes()) if "UNICODE" in code.name}
        stage = path.parent.name.removeprefix("1-")
        ours = {word for word in words if "pipeline" in word or "/" in word}
        assert ours == {"pipeline.launch.jobs.jobs", str(root / "trained/beetles-pixels/submissions/1.json")}
        assert stage in words and path.stat().st_size < 1000


def test_when_all_is_done_nothing_is_queued_again(environ: Path, submitted: tuple[Path, Sequence[str]]) -> None:
    root, command = submitted
    assert "nothing to do" in carabid(*command, root=root).stdout
    assert not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_table_that_no_job_could_train_on_queues_nothing(environ: Path, broken: Broken) -> None:
    done = carabid("submit", *broken.arguments(environ / "data"), *NO_GPU, *SMALL, root=environ, check=False)
    assert done.returncode == 2 and re.search(broken.says, done.stderr) and "job" not in done.stdout, done.stderr
    assert not subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout
    assert not list(environ.glob("trained/*/submissions/*"))


@pytest.fixture(scope="module")
def plain_cluster() -> Iterator[Cluster]:
    """One without accounting, where an array may have two tasks."""
    folder = Path(tempfile.gettempdir()) / f"carabid-plain-{os.getpid()}"
    with started(Cluster(folder, accounting=False, max_array_size=2)) as slurm:
        yield slurm


@pytest.fixture
def plain(plain_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root on it."""
    for name, value in slurm_environ(plain_cluster).items():
        monkeypatch.setenv(name, value)
    return tmp_path


def test_more_trials_than_an_array_may_have_are_all_done_and_none_is_queued_twice(assets: Assets, plain: Path) -> None:
    """Three trials where an array may have two tasks; submitted again while they wait."""
    overrides = (*assets.overrides("pixels"), "seed=0,1,2", *NO_GPU, *SMALL)
    one_each = ("--pack", "1")
    config = "configs/beetles/pixels.yaml"
    done = carabid("submit", config, *overrides, *one_each, root=plain)
    queued = re.findall(r"^([\w-]+) +job \d+$", done.stdout, re.M)
    assert queued == ["extract", "train", "train-2", "evaluate", "evaluate-2", "collect"]
    again = carabid("submit", config, *overrides, *one_each, root=plain)
    assert "3 trials are queued or running already" in again.stdout and " job " not in again.stdout
    assert re.search(r"^queued .*train: job \d+", carabid("plan", config, *overrides, root=plain).stdout, re.M)
    wait_for_all()
    assert len(results(plain)) == 3, logs(plain)
    assert "\n3 trials: 3 done (in " in carabid("plan", config, *overrides, root=plain).stdout


def test_one_failing_training_stops_its_own_evaluation_and_no_other(assets: Assets, environ: Path) -> None:
    overrides = (*assets.on_pixels(), "optim.lr=1e-3,1e30,3e-3", "train.epochs=2", *NO_GPU, *SMALL)
    carabid("submit", "configs/beetles/frozen.yaml", *overrides, root=environ)
    wait_for_all()
    rates = [part for name in results(environ) for part in name.split(",") if part.startswith("lr=")]
    assert sorted(rates) == ["lr=1e-3", "lr=3e-3"], logs(environ)
    table = carabid("results", "--format", "csv", root=environ).stdout
    rows = {row["trial"]: row for row in csv.DictReader(table.splitlines())}
    failed = [row for row in rows.values() if row["state"] != "done"]
    assert len(rows) == 3 and len(failed) == 1
    assert failed[0]["state"] == "failed" and "loss became" in failed[0]["reason"] and "not evaluated" in failed[0]["reason"]
    assert "failed" in carabid("status", root=environ).stdout


@pytest.mark.parametrize(
    "array", [pytest.param((), marks=pytest.mark.long), ("--array=0-1",)], ids=["single job", "array of two"]
)
def test_sbatch_alone_extracts_trains_and_evaluates(assets: Assets, environ: Path, array: Sequence[str]) -> None:
    """Nothing extracted before; the evaluation is queued once for the whole array; the log lies where sbatch was typed."""
    overrides = [f"data.source={assets.data}", f"backbone.name=local-dir:{assets.clip}", "train.epochs=1"]
    copy_scripts(environ / "scripts")
    job = sbatch(*array, environ / "scripts" / "train_lora.sh", *overrides, "seed=0,1", cwd=environ)
    wait_for_all()
    assert len(results(environ)) == 2, logs(environ)
    names = subprocess.run(["sacct", "-X", "-n", "-o", "jobname%60,jobid%40"], capture_output=True, text=True, check=True).stdout
    evaluations = [line.split()[1] for line in names.splitlines() if f"carabid-evaluate-{job}" in line]
    assert len({evaluation.partition("_")[0] for evaluation in evaluations}) == 1
    assert len(evaluations) == max(2 * len(array), 1)
    assert list(environ.glob("carabid-train-lora-*.out"))
    assert len(list((environ / "features").glob("*/manifest.json"))) == 1


def test_where_nodes_may_not_queue_jobs_the_training_job_evaluates_itself(assets: Assets, environ: Path) -> None:
    """A node without sbatch: a PATH whose sbatch refuses."""
    refusing = environ / "bin"
    refusing.mkdir()
    (refusing / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: Memory specification can not be satisfied' >&2\nexit 1\n")
    (refusing / "sbatch").chmod(0o755)
    command = ["configs/beetles/frozen.yaml", *assets.on_pixels(), "train.epochs=1"]
    sbatch(f"--export=ALL,PATH={refusing}:{os.environ['PATH']}", PROJECT / "jobs" / "train.sh", *command, cwd=environ)
    wait_for_all()
    (log,) = environ.glob("carabid-train-*.out")
    assert "evaluating in this job" in log.read_text(), log.read_text()
    assert "carabid: sbatch refused it: sbatch: error: Memory specification can not be satisfied\n" in log.read_text()
    assert "may not queue" not in log.read_text(), "it is not the node"
    assert len(results(environ)) == 1


def shown(job: str) -> dict[str, str]:
    """What Slurm shows of a job: its comment, which may hold blanks, and the other fields."""
    text = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"(\S+?)=(\S*)", text)) | {"Comment": re.sub(r"(?s).*^ +Comment=(.*?) ?$.*", r"\1", text, flags=re.M)}


@pytest.fixture
def reservation(environ: Path) -> Iterator[str]:
    """A reservation of both nodes; one of them is fast."""
    subprocess.run(["scontrol", "update", "NodeName=n1", "AvailableFeatures=fast", "ActiveFeatures=fast"], check=True)
    made = ["ReservationName=course", "StartTime=now", "Duration=60", "Flags=IGNORE_JOBS", "Nodes=n1,n2"]
    subprocess.run(["scontrol", "create", "reservation", f"Users={user_name()}", *made], check=True)
    yield "course"
    subprocess.run(["scancel", "--me"], check=True)
    wait_for_all()
    subprocess.run(["scontrol", "delete", "ReservationName=course"], check=True)


def test_the_evaluation_that_a_job_queues_is_given_what_its_job_was(assets: Assets, environ: Path, reservation: str) -> None:
    """Not the 32 GB and four CPUs of evaluate.sh, which its nodes may not have."""
    asked = ("--mem=3G", "--cpus-per-task=2", "--constraint=fast", "--exclude=n2", f"--reservation={reservation}", "--time=20")
    command = ["configs/beetles/frozen.yaml", *assets.on_pixels(), *slow(100)]
    job = sbatch(*asked, "--partition=low", PROJECT / "jobs" / "train.sh", *command, cwd=environ)
    wait_for_checkpoint(environ, "seed=0")
    (line,) = [line for line in squeue("%j %A") if line.startswith("carabid-evaluate-")]
    evaluation, training = shown(line.split()[1]), shown(job)
    alike = ("MinMemoryNode", "CPUs/Task", "Features", "ExcNodeList", "Reservation", "Partition", "Account", "QOS", "TimeLimit")
    assert {key: evaluation[key] for key in alike} == {key: training[key] for key in alike}
    wanted = {"MinMemoryNode": "3G", "Features": "fast", "Reservation": "course", "Partition": "low", "TimeLimit": "00:20:00"}
    assert {key: evaluation[key] for key in wanted} == wanted
    subprocess.run(["scancel", job], check=True)


def squeue(words: str) -> list[str]:
    command = ["squeue", "--noheader", "--me", f"--format={words}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_slurm_is_asked_for_what_the_resources_say_and_for_what_the_shell_says_beside_them(
    assets: Assets, environ: Path, reservation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values arrive as they are; in a job, what it inherited is not the person's."""
    words = 'it\'s "so" #1; $HOME & `ls` %j'
    options = ("exclude=n2", f"comment={json.dumps(words)}", "nice=5", "mem_per_cpu=700M", "sbatch={hold: true, switches: 1}")
    overrides = (*assets.overrides("pixels"), *NO_GPU, "seed=0,1", *(f"resources.train.{each}" for each in options))
    held = tuple(f"resources.{stage}.sbatch={{hold: true}}" for stage in ("extract", "evaluate"))
    variables = {"RESERVATION": reservation, "CONSTRAINT": "fast", "TIMELIMIT": "1", "JOB_NAME": "mine", "ARRAY_INX": "0-3"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    kept = queued(carabid("submit", "configs/beetles/pixels.yaml", *overrides, *held, root=environ))
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    left = queued(carabid("submit", "configs/beetles/pixels.yaml", *overrides, *held, root=environ / "other"))
    training, extraction = shown(kept["train"]), shown(kept["extract"])
    assert training["Comment"] == words
    wanted = {"ExcNodeList": "n2", "Nice": "5", "MinMemoryCPU": "700M", "Reservation": reservation, "Features": "fast"}
    assert {key: training[key] for key in wanted} == wanted
    assert training["TimeLimit"] == extraction["TimeLimit"] == "04:00:00" and extraction["Reservation"] == reservation
    assert extraction["JobName"].endswith("-1-extract") and "ArrayJobId" not in extraction
    assert not any("Reservation" in shown(job) for job in left.values()) and shown(left["train"])["Features"] == "(null)"


def queued(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Stage → its job."""
    return dict(re.findall(r"^(\w+) +job (\d+)$", done.stdout, re.M))


def test_a_requeued_training_goes_on_and_finds_its_evaluation_by_name(assets: Assets, environ: Path) -> None:
    overrides = [*assets.overrides("baseline"), *slow(40)]
    job = sbatch(PROJECT / "jobs" / "train_baseline.sh", *overrides, cwd=environ)
    wait_for_checkpoint(environ, "seed=0")
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_for_all()
    assert len(results(environ)) == 1, logs(environ)
    (log,) = environ.glob("carabid-train-baseline-*.out")
    assert len(set(re.findall(r"evaluation: job (\d+)", log.read_text()))) == 1
    assert restarts(environ) == {"seed=0": "1"}
    (path,) = environ.glob("trained/*/*/provenance.json")
    training = json.loads(path.read_text())["train"]
    assert [(each["job"], each["restart"]) for each in training["attempts"]] == [(job, 0), (job, 1)]
    assert training["restarts"] == 1 and training["seconds"] > training["attempts"][1]["seconds"]


def test_the_walltime_of_one_task_of_an_array_requeues_it_and_leaves_its_neighbour_alone(assets: Assets, environ: Path) -> None:
    """Features are there already, so both tasks want to queue the evaluation at the same moment: it is queued once."""
    command = ["configs/beetles/frozen.yaml", *assets.on_pixels(), "seed=0,1", *slow(200)]
    carabid("extract", *command, root=environ)
    job = sbatch("--array=0-1", PROJECT / "jobs" / "train.sh", *command, cwd=environ)
    wait_for_checkpoint(environ, "seed=1")
    assert not list(environ.glob("trained/*/*seed=0-*/trained.json")), "the neighbour is at work"
    subprocess.run(["scancel", "--signal=USR2", f"{job}_1"], check=True)
    wait_for_all()
    assert len(results(environ)) == 2, logs(environ)
    assert restarts(environ) == {"seed=0": None, "seed=1": "1"}
    queued = set(re.findall(r"evaluation: job (\d+)", logs(environ)))
    assert len(queued) == 1, logs(environ)


def wait_for_checkpoint(root: Path, trial: str) -> None:
    """Until the one trial whose name holds `trial` has a checkpoint. (Others may be done, and have theirs removed.)"""
    deadline = time.monotonic() + 200
    while not list(root.glob(f"trained/*/*{trial}-*/checkpoint/state.pt")):
        assert time.monotonic() < deadline, logs(root)
        time.sleep(0.1)


def restarts(root: Path) -> dict[str, str | None]:
    """Each trial's seed → how often Slurm queued its training again."""
    counts = {}
    for path in root.glob("trained/*/*/provenance.json"):
        seed = path.parent.name.rpartition("-")[0].rpartition(",")[2]
        counts[seed] = json.loads(path.read_text())["train"]["slurm"].get("restart_count")
    return counts


def test_a_job_that_was_given_a_gpu_torch_cannot_use_stops_and_says_so(assets: Assets, environ: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    options = ["--parsable", "--wait", "--gpus-per-node=1", "--cpus-per-task=1", "--mem=4G"]
    script = [str(PROJECT / "jobs" / "extract.sh"), "configs/beetles/frozen.yaml"]
    overrides = [o for o in assets.overrides("frozen") if not o.startswith("device")]
    done = subprocess.run(["sbatch", *options, *script, *overrides], cwd=environ, capture_output=True, text=True)
    assert done.returncode == 1
    (log,) = environ.glob("carabid-extract-*.out")
    assert "was given a GPU" in log.read_text() and "Traceback" not in log.read_text()


SILHOUETTES = PROJECT.parent / "shared" / "data" / "neon-beetles" / "images"


@pytest.mark.long
@pytest.mark.skipif(not SILHOUETTES.is_dir(), reason="the real silhouettes (../shared/data/neon-beetles) are not here")
def test_shape_of_real_images_is_learned_and_permuted_targets_are_not(assets: Assets, environ: Path) -> None:
    """181 real silhouettes as a CSV with an image folder, three shape measures, five folds, on the real slurmctld."""
    from benchmarks.silhouettes import write_csv

    assert write_csv(SILHOUETTES, environ / "silhouettes.csv") == 181
    overrides = [f"data.source={environ}/silhouettes.csv", f"data.images={SILHOUETTES}", "backbone.kind=dinov2",
                 f"backbone.name={assets.dinov2}", "features.dtype=fp32", "device=cpu"]  # fmt: skip
    script = PROJECT / "jobs" / "train.sh"
    sbatch("--array=0-1", script, "configs/beetles/silhouettes.yaml", *overrides, cwd=environ)
    wait_for_all()
    r2: dict[bool, list[float]] = {False: [], True: []}
    for found in results(environ).values():
        r2[found["summary"]["permuted_targets"]].append(found["summary"]["r2"])
    assert {permuted: len(values) for permuted, values in r2.items()} == {False: 5, True: 5}, logs(environ)
    assert sum(r2[False]) / 5 > 0.2
    assert sum(r2[True]) / 5 < 0.05


@pytest.mark.long
def test_folds_of_biomass_are_scored_together_and_make_a_submission(environ: Path) -> None:
    """Two streams through a tiny network, both phases, on the real slurmctld."""
    load_task("biomass").generate(environ / "quadrats", scale=0.2)
    seen = ("backbone.name=test_resnet", "backbone.pretrained=false", "backbone.views.sizes=[32]", "device=cpu")
    phases = ("train.epochs=3", "train.head_first.epochs=1", "train.precision=fp32", "data.split.fold=0,1,2,3,4")
    source = f"data.source={environ}/quadrats/train.csv"
    carabid("submit", "configs/biomass/two_stream.yaml", source, *seen, *phases, *NO_GPU, *SMALL, root=environ)
    wait_for_all()
    shown = carabid("results", root=environ).stdout
    assert "out of 5 folds" in shown, shown + logs(environ)
    (together,) = environ.glob("trained/biomass-two_stream/ensembles/*")
    figures = read_json(together / "results.json")["figures"]
    assert figures["score"] is not None
    assert all(figures[f"Dry_{part}_g.r2"] is not None for part in ("Total", "Green", "Dead", "Clover"))
    out, test = environ / "submission", environ / "quadrats" / "test.csv"
    carabid("export", together, "--to", "kaggle", "--test", test, "--out", out, root=environ)
    assert "40 rows" in carabid("export", "--check", out, "--test", test, root=environ).stdout


def test_what_ran_out_of_memory_is_named_and_retried_with_more_and_a_short_job_is_no_timed_out_one(
    assets: Assets, environ: Path
) -> None:
    """One of two trials is given too little; a walltime of two minutes is enough for both."""
    short = tuple(f"resources.{stage}.time=2" for stage in ("extract", "train", "evaluate"))
    overrides = (*assets.on_pixels(), "train.epochs=2", *short, *NO_GPU, *SMALL)
    config = "configs/beetles/frozen.yaml"
    carabid("submit", config, *overrides, "seed=0", root=environ)
    little = [o for o in overrides if o != "resources.train.mem=4G"]
    carabid("submit", config, *little, "seed=1", "resources.train.mem=100M", root=environ)
    wait_for_all()
    status = carabid("status", "beetles-frozen", root=environ).stdout
    assert re.search(r"^done +beetles-frozen/.*seed=0", status, re.M) and "1 failed, 1 done" in status, status + logs(environ)
    assert re.search(r"^failed +beetles-frozen/.*seed=1.*  oom: train: ", status, re.M), status
    assert "`carabid retry beetles-frozen --only oom --mem 2x`" in status
    assert "nothing to retry" in carabid("retry", "beetles-frozen", "--only", "time", root=environ).stdout
    again = carabid("retry", "beetles-frozen", "--only", "oom", "--mem", "40x", root=environ).stdout
    assert re.search(r"^1 of 1 trials, submission ", again, re.M) and "evaluate  job" in again
    wait_for_all()
    assert len(results(environ)) == 2 and ": 2 done" in carabid("status", root=environ).stdout, logs(environ)
    log = carabid("logs", "beetles-frozen", "seed=1", "--stage", "train", root=environ).stdout
    assert "attempt 1" in log and "/code/" in log
    assert restarts(environ) == {"seed=0": None, "seed=1": None}


def test_without_accounting_the_chain_runs_and_failures_are_told_from_logs(assets: Assets, plain: Path) -> None:
    overrides = (*assets.on_pixels(), "train.epochs=2", "optim.lr=1e-3,1e30", *NO_GPU, *SMALL)
    carabid("submit", "configs/beetles/frozen.yaml", *overrides, root=plain)
    wait_for_all()
    status = carabid("status", root=plain)
    assert "1 failed, 1 done" in status.stdout and "error: train: the training loss became" in status.stdout, status
    assert status.stderr == ""
