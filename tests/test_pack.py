"""Trials one after another in one job task: what befalls one leaves its siblings alone, and the results are those of trials
alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pipeline.disk.attempts import read_attempts
from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import REQUEUE_STATUS, OutOfTime, RunAgain, WorkError
from pipeline.experiments.reading import load_experiment
from pipeline.launch.jobs import jobs, pack
from pipeline.launch.jobs.trials import Trainings
from pipeline.launch.manifest.manifest import Manifest, Terms, make_manifest
from pipeline.signals import WALLTIME_SIGNAL, StopFlag
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
STAND_IN = """#!/bin/bash
shift 4
fd=$1 how=$2
shift 2
for i in "$@"; do
echo "begin $i" >&$fd
status=0
case "$i" in
{cases}
esac
((status)) && word=failed || word=done
echo "end $i $status $word" >&$fd
done
"""


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """Put lines of shell, by index, in the place of the trainings of a process; each comes further."""
    seen = iter(range(10**6))
    monkeypatch.setattr(pack, "_marks", lambda *_: (0, next(seen)))

    def replace(lines: Sequence[str]) -> None:
        program = tmp_path / "python"
        program.write_text(STAND_IN.format(cases="\n".join(f"{index}) {line} ;;" for index, line in enumerate(lines))))
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return replace


KILLED, TOLD = "kill -9 $$", "kill -USR2 $PPID; echo end $i 75 interrupted >&$fd; exit 0"


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["true", "true"], 0),
        (["status=1", "true"], 0),
        ([KILLED, "true"], 0),
        (["status=1", "status=1"], 1),
        ([KILLED, KILLED], 1),
        (["status=1", KILLED], 1),
        ([TOLD, "true"], REQUEUE_STATUS),
        (["true", TOLD], REQUEUE_STATUS),
        ([KILLED, TOLD], REQUEUE_STATUS),
        (["true", "true", "status=1", "exit 2"], 0),
        (["echo Loading modules", "true"], 0),
        (["exit 3", "true"], 0),
    ],
)
def test_a_task_ends_well_if_a_trial_did_and_asks_to_run_again_if_one_does(
    lines: list[str], status: int, manifest: MakeManifest, children: Callable[[Sequence[str]], None]
) -> None:
    children(lines)
    seeds = ",".join(str(seed) for seed in range(len(lines)))
    assert status_of(manifest(f"seed={seeds}", pack=len(lines))) == status


def test_what_was_killed_is_recorded_for_it_and_those_behind_it_are_trained_in_another_process(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    children(["true", KILLED, "status=1", "true"])
    made = manifest("seed=0,1,2,3", pack=4)
    assert status_of(made) == 0
    failure = read_json(folder(made, 1).failure)
    assert (failure["stage"], failure["kind"]) == ("train", "killed") and "killed by SIGKILL" in failure["message"]
    assert not any(folder(made, index).failure.exists() for index in (0, 2, 3))
    said = [line for line in capsys.readouterr().out.splitlines() if "(log: " in line]
    how = ("done", "killed by SIGKILL", "failed", "done")
    wanted = enumerate(zip(made.names, how, strict=True))
    assert said == [f"carabid train: {name}: {word} (log: {pack.log_path(made, i)})" for i, (name, word) in wanted]


@pytest.mark.parametrize(("number", "status"), [(WALLTIME_SIGNAL, REQUEUE_STATUS), (signal.SIGTERM, 1)])
def test_what_is_told_to_stop_before_it_listens_has_not_failed_and_nothing_more_is_begun(
    number: int, status: int, manifest: MakeManifest, children: Callable[[Sequence[str]], None]
) -> None:
    """Python needs seconds to begin, and a signal ends it until then."""
    children([f"kill -{int(number)} $PPID; kill -{int(number)} $$", "true"])
    made = manifest("seed=0,1")
    assert status_of(made) == status
    assert not folder(made, 0).failure.exists() and not folder(made, 1).failure.exists()


def test_what_is_told_of_the_walltime_when_all_have_ended_does_not_run_again(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None]
) -> None:
    children(["true", "echo end $i 0 done >&$fd; kill -USR2 $PPID; exit 0"])
    assert status_of(manifest("seed=0,1")) == 0


def test_a_child_is_told_what_was_said_before_it_was_there(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal between the start of a process and the word of that."""
    start = subprocess.Popen

    def told_meanwhile(*args: Any, **more: Any) -> Any:
        os.kill(os.getpid(), WALLTIME_SIGNAL)
        return start(*args, **more)

    children(["trap 'echo end 0 75 interrupted >&$fd; exit 0' USR2; while :; do sleep 0.1; done"])
    made = manifest("seed=0,1")
    monkeypatch.setattr(subprocess, "Popen", told_meanwhile)
    assert status_of(made) == REQUEUE_STATUS


def test_a_walltime_in_which_nothing_came_further_asks_for_no_other(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be cut off at the same place, again and again."""
    children(["status=1; kill -USR2 $PPID; echo end $i $status interrupted >&$fd; exit 0", "true"])
    monkeypatch.setattr(pack, "_marks", lambda *_: (0, 0))
    assert status_of(manifest("seed=0,1")) == 1


def test_of_several_at_once_that_were_killed_each_is_tried_by_itself(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The memory was too little for all, or one of them takes too much alone."""
    begin = 'if [ $how = together ]; then for i in "$@"; do echo "begin $i" >&$fd; done; kill -9 $$; fi'
    children([begin, KILLED, "true"])
    made = manifest("seed=0,1,2", pack=3)
    assert status_of(made) == 0
    said = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines() if "(log: " in line]
    assert [re.sub(r".*: (.*) \(log.*", r"\1", line) for line in said] == ["done", "killed by SIGKILL", "done"]
    assert folder(made, 1).failure.exists() and not folder(made, 0).failure.exists()


def test_one_that_is_killed_when_it_is_tried_once_more_is_the_one_that_is_recorded(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None]
) -> None:
    """A GPU had no memory for several at once, and this one alone takes too much of the host's."""
    children(["echo end $i 1 failed >&$fd; echo begin $i >&$fd; kill -9 $$", "true"])
    made = manifest("seed=0,1")
    assert status_of(made) == 0
    assert read_json(folder(made, 0).failure)["kind"] == "killed" and not folder(made, 1).failure.exists()


def test_one_that_is_killed_beside_what_others_have_left_is_tried_by_itself(
    manifest: MakeManifest, children: Callable[[Sequence[str]], None]
) -> None:
    """What those before it in the process left in memory may be what it lacks."""
    children(["true", '[ "$#" = 1 ] || kill -9 $$', "true"])
    made = manifest("seed=0,1,2", pack=3)
    assert status_of(made) == 0 and not any(folder(made, index).failure.exists() for index in range(3))


def test_a_process_that_comes_to_nothing_is_the_failure_of_all_and_not_begun_again(
    manifest: MakeManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/bash\necho x >> {tmp_path}/begun\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    made = manifest("seed=0,1")
    assert status_of(made) == 1 and (tmp_path / "begun").read_text() == "x\n"
    assert all("ended with status 3" in read_json(folder(made, index).failure)["message"] for index in range(2))


# ---------------------------------------------------------------- real trainings
def test_one_that_is_told_to_stop_is_interrupted_and_has_not_failed(
    manifest: MakeManifest, capfd: pytest.CaptureFixture[str]
) -> None:
    made = manifest("seed=0", pack=1, epochs=100_000)
    extract.ensure(made.trial(0).config)

    def stop_once_it_trains() -> None:
        while not folder(made, 0).metrics.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop_once_it_trains)
    watcher.start()
    with pytest.raises(WorkError, match="none of the 1 trials"):
        pack.train(made, [0])
    watcher.join()
    assert ": interrupted (log: " in capfd.readouterr().out and folder(made, 0).resume_state.exists()


def test_behind_something_unforeseen_the_next_is_trained_in_another_process(
    manifest: MakeManifest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A process whose every training fails so is begun anew for each of them."""
    made = manifest("seed=0,1,2", pack=3)
    extract.ensure(made.trial(0).config)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(PROJECT / "tests" / "breaking"), str(PROJECT)]))
    monkeypatch.setenv("BREAK", "error")
    assert status_of(made) == 1
    assert all("ZeroDivisionError" in read_json(folder(made, index).failure)["message"] for index in range(3))
    assert all("──── carabid train: " in pack.log_path(made, index).read_text() for index in range(3))
    assert capfd.readouterr().out.count(": failed (log: ") == 3


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


def test_one_that_is_killed_leaves_its_sibling_to_be_trained_which_is_told_of_the_walltime(manifest: MakeManifest) -> None:
    made = manifest("seed=0,1", epochs=100_000)
    extract.ensure(made.trial(0).config)
    code = f"from pipeline.launch.jobs import jobs; jobs.train({str(made.path)!r}, 0)"
    task = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: n_epochs(made, 0) > 0)
        assert n_epochs(made, 1) == 0
        os.kill(child_of(task.pid), signal.SIGKILL)
        wait_until(lambda: n_epochs(made, 1) > 0)
        task.send_signal(WALLTIME_SIGNAL)
        assert task.wait(timeout=60) == REQUEUE_STATUS
    finally:
        task.terminate()  # it tells its child
        task.wait()
    assert read_json(folder(made, 0).failure)["kind"] == "killed"
    assert folder(made, 1).resume_state.exists() and not folder(made, 1).failure.exists()


def test_a_walltime_that_went_to_trials_before_it_is_no_failure_of_the_next(manifest: MakeManifest) -> None:
    """Alone in a job whose walltime holds not one epoch of it, it would fail each time."""
    made = manifest("seed=0,1", epochs=100_000)
    extract.ensure(made.trial(0).config)

    class Flag(StopFlag):
        def overdue(self) -> bool:
            """After the first batch the walltime is over."""
            self._note(WALLTIME_SIGNAL, None)
            return True

    for index, (any_done, kind) in enumerate(((True, RunAgain), (False, OutOfTime))):
        (error,) = Trainings(Flag(), any_done=any_done).train([made.trial(index)])
        assert type(error) is kind


def n_epochs(manifest: Manifest, index: int) -> int:
    path = folder(manifest, index).metrics
    return path.read_text().count("\n") if path.exists() else 0


def child_of(task: int) -> int:
    """The process that the trials of a task are trained in."""
    command = ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(task)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    (pid,) = [int(line.split()[0]) for line in lines if "pipeline.launch.jobs.pack" in line]
    return pid


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


# ---------------------------------------------------------------- on Slurm
@pytest.mark.slurm
def test_packed_trials_give_the_results_of_trials_alone_and_one_that_fails_stops_no_other(assets: Assets, environ: Path) -> None:
    """Five trials in tasks of three and two, each of which asks for what a trial asks for alone."""
    grid = ("optim.lr=1e-3,1e30,3e-3,4e-3,5e-3", "train.epochs=2")
    resources = (*(each for each in NO_GPU if "train" not in each), *SMALL, "resources.train.gpus_per_node=1")
    overrides = (*assets.on_pixels(), *grid, *resources)
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
    """Each has the task's GPU to itself while it trains."""
    trainings = [read_json(path)["train"] for path in sorted(experiment.glob("*/provenance.json"))]
    attempts = [attempt for training in trainings for attempt in read_attempts(training)]
    assert [(a.gpus, a.shared_by) for a in attempts] == [(1, 1)] * 4
    assert len({a.job for a in attempts}) == 2 and {a.node for a in attempts} <= {"n1", "n2"}
    hours = [a.seconds / a.shared_by / 3600 for a in attempts]
    assert [training["gpu_hours"] for training in trainings] == pytest.approx(hours, abs=1e-6)
