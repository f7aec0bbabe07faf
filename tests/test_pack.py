"""Trials side by side in one task: what befalls one leaves its siblings alone, and the results are those of trials alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pipeline.disk.attempts import read_attempts
from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import REQUEUE_STATUS
from pipeline.experiments.reading import load_experiment
from pipeline.launch.jobs import jobs, pack
from pipeline.launch.manifest.manifest import Manifest, Terms, make_manifest
from pipeline.signals import WALLTIME_SIGNAL
from pipeline.stages import extract
from tests.conftest import Assets, carabid
from tests.test_slurm import NO_GPU, SMALL, logs, results, wait_for_all

pytestmark = pytest.mark.jobs

CONFIG = "configs/beetles/frozen.yaml"
MakeManifest = Callable[..., Manifest]


@pytest.fixture
def manifest(assets: Assets, root: Path, monkeypatch: pytest.MonkeyPatch) -> MakeManifest:
    """A submission of packed trials: `manifest("seed=0,1", pack=2)`."""
    monkeypatch.chdir(PROJECT)

    def make(*overrides: str, pack: int = 2, epochs: int = 2) -> Manifest:
        experiment = load_experiment(CONFIG, (*assets.overrides("frozen"), f"train.epochs={epochs}", *overrides))
        return make_manifest(experiment, experiment.trials, Terms(pack=pack))

    return make


def folder(manifest: Manifest, index: int) -> TrialDir:
    return manifest.experiment.trial(manifest.names[index])


def status_of(manifest: Manifest, task: int = 0) -> int:
    """How a task of the training ends: its exit status."""
    try:
        jobs.train(str(manifest.path), task)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    return 0


# ---------------------------------------------------------------- how a task ends, by how its trials do
@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """Put lines of shell, by index, in the place of the trials' processes."""

    def replace(lines: Sequence[str]) -> None:
        cases = "\n".join(f"{index}) {line} ;;" for index, line in enumerate(lines))
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\necho "trial $5, sharing with $CARABID_SHARED_BY"\ncase "$5" in\n{cases}\nesac\n')
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return replace


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["exit 0", "exit 0"], 0),
        (["exit 1", "exit 0"], 0),
        (["kill -9 $$", "exit 0"], 0),
        (["exit 1", "exit 1"], 1),
        (["kill -9 $$", "kill -9 $$"], 1),
        (["exit 1", "kill -9 $$"], 1),
        (["exit 75", "exit 0"], REQUEUE_STATUS),
        (["exit 1", "exit 75"], REQUEUE_STATUS),
        (["kill -9 $$", "exit 75"], REQUEUE_STATUS),
        (["exit 0", "exit 0", "exit 1", "exit 2"], 0),
    ],
)
def test_a_task_ends_well_if_a_trial_did_and_asks_to_run_again_if_one_does(
    lines: list[str], status: int, manifest: MakeManifest, children: Callable[[Sequence[str]], None]
) -> None:
    children(lines)
    seeds = ",".join(str(seed) for seed in range(len(lines)))
    assert status_of(manifest(f"seed={seeds}", pack=len(lines))) == status


def test_each_trial_has_a_log_and_knows_with_how_many_it_shares_a_gpu(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    children(["exit 0"] * 5)
    made = manifest("seed=0,1,2,3,4", pack=3)
    assert [status_of(made, task) for task in range(2)] == [0, 0]
    said = [pack.log_path(made, index).read_text() for index in range(5)]
    assert said == [f"trial {index}, sharing with {3 if index < 3 else 2}\n" for index in range(5)]
    printed = capsys.readouterr().out
    assert all(f"{name}: done (log: {pack.log_path(made, i)})" in printed for i, name in enumerate(made.names))


@pytest.mark.parametrize(("chosen", "threads"), [(None, 3), ("2", 2)])
def test_each_trial_has_the_threads_that_it_would_have_alone(
    chosen: str | None,
    threads: int,
    manifest: MakeManifest,
    children: Callable[[Sequence[str]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other threads would give other bits; a smaller last task has no more of them."""
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    monkeypatch.delenv("OMP_NUM_THREADS")
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    children(["echo $OMP_NUM_THREADS threads"] * 5)
    made = manifest("seed=0,1,2,3,4", "resources.train.cpus_per_task=3", pack=3)
    assert [status_of(made, task) for task in range(2)] == [0, 0]
    said = [pack.log_path(made, index).read_text().splitlines()[-1] for index in range(5)]
    assert said == [f"{threads} threads"] * 5


def test_what_was_killed_is_recorded_for_it_and_for_no_sibling(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    children(["exit 0", "kill -9 $$", "exit 1"])
    made = manifest("seed=0,1,2", pack=3)
    status_of(made)
    failure = read_json(folder(made, 1).failure)
    assert (failure["stage"], failure["kind"]) == ("train", "killed") and "killed by SIGKILL" in failure["message"]
    assert not folder(made, 0).failure.exists() and not folder(made, 2).failure.exists()
    printed = capsys.readouterr().out
    assert f"{made.names[1]}: killed by SIGKILL" in printed and f"{made.names[2]}: failed" in printed


@pytest.mark.parametrize(("number", "status"), [(WALLTIME_SIGNAL, REQUEUE_STATUS), (signal.SIGTERM, 1)])
def test_a_trial_that_is_told_to_stop_before_it_listens_has_not_failed(
    number: int, status: int, manifest: MakeManifest, children: Callable[[Sequence[str]], None]
) -> None:
    """Python needs seconds to begin, and a signal ends it until then."""
    children([f"kill -{int(number)} $$"] * 2)
    made = manifest("seed=0,1")
    assert status_of(made) == status
    assert not folder(made, 0).failure.exists() and not folder(made, 1).failure.exists()


# ---------------------------------------------------------------- real trainings
def test_a_trial_that_fails_leaves_its_sibling_alone_and_the_evaluation_reports_it(
    manifest: MakeManifest, capfd: pytest.CaptureFixture[str]
) -> None:
    made = manifest("optim.lr=1e30,1e-3")
    extract.ensure(made.trial(0).config)
    assert status_of(made) == 0
    assert "loss became" in read_json(folder(made, 0).failure)["message"]
    assert folder(made, 1).trained.exists() and not folder(made, 1).failure.exists()
    assert "loss became" in pack.log_path(made, 0).read_text() and "epoch 1" in pack.log_path(made, 1).read_text()
    printed = capfd.readouterr().out
    assert "val/loss" not in printed and f"{made.names[0]}: failed" in printed
    jobs.evaluate(str(made.path), 0)
    said = capfd.readouterr().err
    assert made.names[0] in said and "training has not finished" in said
    assert folder(made, 1).results.exists() and not folder(made, 0).results.exists()
    assert "loss became" in read_json(folder(made, 0).failure)["message"]
    origin = read_json(folder(made, 1).provenance)
    assert [read_attempts(origin[stage])[0].shared_by for stage in ("train", "evaluate")] == [2, 1]


def test_one_that_is_killed_leaves_its_sibling_at_work_which_is_told_of_the_walltime(manifest: MakeManifest) -> None:
    made = manifest("seed=0,1", epochs=100_000)
    extract.ensure(made.trial(0).config)
    code = f"from pipeline.launch.jobs import jobs; jobs.train({str(made.path)!r}, 0)"
    task = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: all(n_epochs(made, index) for index in range(2)))
        os.kill(process_of(task.pid, index=0), signal.SIGKILL)
        seen = n_epochs(made, 1)
        wait_until(lambda: n_epochs(made, 1) > seen)
        task.send_signal(WALLTIME_SIGNAL)
        assert task.wait(timeout=60) == REQUEUE_STATUS
    finally:
        task.terminate()  # it tells its trials
        task.wait()
    assert read_json(folder(made, 0).failure)["kind"] == "killed"
    assert folder(made, 1).resume_state.exists() and not folder(made, 1).failure.exists()


def n_epochs(manifest: Manifest, index: int) -> int:
    path = folder(manifest, index).metrics
    return path.read_text().count("\n") if path.exists() else 0


def process_of(task: int, index: int) -> int:
    """The process of trial `index` among the children of a task's."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(task)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (pid,) = [int(line.split()[0]) for line in lines if line.endswith(f".json {index}")]
    return pid


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ---------------------------------------------------------------- on Slurm
@pytest.mark.slurm
def test_packed_trials_give_the_results_of_trials_alone_and_one_that_fails_stops_no_other(assets: Assets, environ: Path) -> None:
    """Five trials in tasks of three and two, each task with a (pretended) GPU of which each trial has its share."""
    grid = ("optim.lr=1e-3,1e30,3e-3,4e-3,5e-3", "train.epochs=2")
    resources = (*(each for each in NO_GPU if "train" not in each), *SMALL, "resources.train.gpus_per_node=1")
    overrides = (*assets.overrides("frozen"), *grid, *resources)
    carabid("submit", CONFIG, *overrides, "--pack", "3", root=environ / "packed")
    carabid("submit", CONFIG, *overrides, "--cluster", "local", root=environ / "alone", check=False)
    wait_for_all()
    packed = results(environ / "packed")
    assert len(packed) == 4 and packed == results(environ / "alone"), logs(environ / "packed")
    experiment = environ / "packed" / "trained" / "beetles-frozen"
    assert sorted(path.name for path in experiment.glob("logs/1-train/?.log")) == [f"{i}.log" for i in range(5)]
    (failed,) = experiment.glob("*/failure.json")
    evaluations = "".join(path.read_text() for path in experiment.glob("logs/1-evaluate/*_log.out"))
    assert f"{failed.parent.name}: " in evaluations and "training has not finished" in evaluations
    check_shares(experiment)


def check_shares(experiment: Path) -> None:
    trainings = [read_json(path)["train"] for path in sorted(experiment.glob("*/provenance.json"))]
    attempts = [attempt for training in trainings for attempt in read_attempts(training)]
    assert [(a.gpus, a.shared_by) for a in attempts] == [(1, 3)] * 2 + [(1, 2)] * 2
    assert len({a.job for a in attempts}) == 2 and {a.node for a in attempts} <= {"n1", "n2"}
    hours = [a.seconds / a.shared_by / 3600 for a in attempts]
    assert [training["gpu_hours"] for training in trainings] == pytest.approx(hours, abs=1e-6)
