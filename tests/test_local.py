"""The chain on this machine, in real worker processes: interrupted, and with trials that cannot be done."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.disk.attempts import read_attempts
from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import read_json
from tests.conftest import Assets, carabid, hear_ctrl_c
from tests.small import image_files

pytestmark = pytest.mark.jobs

CONFIG = "configs/beetles/frozen.yaml"


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    environ = {**os.environ, "CARABID_ROOT": str(root)}
    return subprocess.Popen(
        command,
        cwd=PROJECT,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    )


def wait_for_epochs(root: Path, n_trials: int) -> None:
    deadline = time.monotonic() + 120
    while sum(p.stat().st_size > 0 for p in root.glob("trained/*/*/metrics.jsonl")) < n_trials:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(session: int) -> list[str]:
    """Processes that are left of a session that began with process `session`."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True).stdout
    return [line for line in found.splitlines() if line.split()[1][0] != "Z"]


def wait_until_gone(session: int) -> None:
    deadline = time.monotonic() + 30
    while left := alive(session):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


@pytest.mark.parametrize(("number", "send"), [(signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)], ids=["Ctrl-C", "SIGTERM"])
def test_interrupted_it_writes_checkpoints_begins_nothing_more_and_leaves_no_process(
    assets: Assets, root: Path, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    """By a terminal, which tells all of them, and by a person who names the one process."""
    overrides = (*assets.on_pixels(), "seed=0,1,2,3", "train.epochs=100000")
    process = start(root, "submit", CONFIG, *overrides, "--cluster", "local", "--workers", "2")
    wait_for_epochs(root, 2)
    send(process.pid, number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "the same command goes on" in out and "Traceback" not in out
    assert len(list(root.glob("trained/*/*/checkpoint/state.pt"))) == 2
    assert len(list(root.glob("trained/*/*/config.yaml"))) == 2
    attempts = [each for path in root.glob("trained/*/*/attempts.json") for each in read_attempts(read_json(path))]
    assert [attempt.shared_by for attempt in attempts] == [2, 2]  # a GPU of theirs counts once
    wait_until_gone(process.pid)


def test_workers_end_when_the_process_that_started_them_is_killed(assets: Assets, root: Path) -> None:
    overrides = (*assets.on_pixels(), "seed=0,1", "train.epochs=100000")
    process = start(root, "submit", CONFIG, *overrides, "--cluster", "local")
    wait_for_epochs(root, 1)
    process.kill()
    process.wait()
    wait_until_gone(process.pid)
    assert len(list(root.glob("trained/*/*/checkpoint/state.pt"))) == 1


PATIENT = """
import signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from pipeline.launch.jobs import jobs
from pipeline.launch.submitting import local

def patient(place, number, shared):
    Path(place, f"{number} began").touch()
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    while not heard:
        time.sleep(0.05)
    time.sleep(1)
    Path(place, f"{number} ended").touch()
    signal.signal(signal.SIGTERM, before)

jobs.patient = patient
experiment = SimpleNamespace(own_log=lambda *_: Path(sys.argv[1], "log"))
jobs.manifest_at = lambda *_: SimpleNamespace(experiment=experiment, number=1)

if __name__ == "__main__":
    with local._pool(1) as pool:
        works = [pool.submit(local._work, Path(sys.argv[1]), "patient", number) for number in range(3)]
        works[0].result()
"""
"""Works that take a second to end well when they are told to stop, as a training in its last epoch does."""


@pytest.fixture
def patient(tmp_path: Path) -> subprocess.Popen[str]:
    """A process whose worker is at such a work."""
    (tmp_path / "patient.py").write_text(PATIENT)
    command = [sys.executable, str(tmp_path / "patient.py"), str(tmp_path)]
    environ = {**os.environ, "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, start_new_session=True, env=environ, text=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "0 began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def test_a_worker_that_is_left_alone_begins_nothing_more(patient: subprocess.Popen[str], tmp_path: Path) -> None:
    """Its pool has handed over the next work already."""
    patient.kill()
    patient.wait()
    wait_until_gone(patient.pid)
    assert (tmp_path / "0 ended").exists() and not (tmp_path / "1 began").exists()


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to one", "to all"])
def test_told_to_stop_the_first_process_ends_last(
    patient: subprocess.Popen[str], tmp_path: Path, send: Callable[[int, int], None]
) -> None:
    """Where it ends, a scheduler takes the job for ended; and nothing more is begun."""
    send(patient.pid, signal.SIGTERM)
    patient.wait(timeout=30)
    assert (tmp_path / "0 ended").exists() and not (tmp_path / "1 began").exists()
    wait_until_gone(patient.pid)


def test_workers_run_the_package_of_the_process_that_started_them(assets: Assets, root: Path, tmp_path: Path) -> None:
    """Whatever the current folder calls by its name: another clone, or some results."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "notes.txt").write_text("the steps of our pipeline")
    command = [str(Path(sys.executable).with_name("carabid")), "submit", str(PROJECT / "configs/beetles/climatology.yaml")]
    command += [*assets.overrides("climatology"), "--cluster", "local"]
    environ = {**os.environ, "CARABID_ROOT": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and list(root.glob("trained/*/*/results.json")), done


def test_a_training_stopped_by_hand_writes_a_checkpoint_and_says_how_to_go_on(assets: Assets, root: Path) -> None:
    overrides = (*assets.overrides("frozen"), "train.epochs=100000")
    carabid("extract", CONFIG, *overrides, root=root)
    process = start(root, "train", CONFIG, *overrides)
    wait_for_epochs(root, 1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "run it again to go on" in out and "Traceback" not in out
    assert "interrupted" in carabid("status", root=root).stdout


def test_a_trial_whose_features_cannot_be_made_leaves_the_others_alone(assets: Assets, root: Path) -> None:
    overrides = (*assets.overrides("finetune"), "model.encoder.blocks=2,50", "train.epochs=1")
    done = carabid("submit", "configs/beetles/finetune.yaml", *overrides, "--cluster", "local", root=root, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert done.stdout.count("failed") == 1 and "not begun, for want of these features: " in done.stdout, done.stdout
    assert [path.name for path in root.glob("trained/*/logs/*-train/*.log")] == ["0.log"]
    rows = list(csv.DictReader(carabid("results", "--format", "csv", root=root).stdout.splitlines()))
    assert [row["state"] for row in rows] == ["done", "failed"]
    assert "blocks" in rows[1]["reason"]


def test_an_unreadable_image_is_named_in_the_state_of_the_trials_that_it_stops(assets: Assets, root: Path, own: Path) -> None:
    """Whether they were submitted or are typed stage by stage; and the next attempt, without it, is free of it."""
    broken = image_files(own)[9]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:300])
    source = (f"data.source={own}", *(o for o in assets.overrides("frozen") if not o.startswith("data.source")))
    overrides = (*source, "data.columns.group=null", "seed=0,1", "train.epochs=1", "select.metric=MAE")
    said = carabid("submit", CONFIG, *overrides, "--cluster", "local", root=root, check=False).stdout
    assert said.count("line 11") == 1 and "not begun" in said and not list(root.glob("trained/*/logs/*-train/*")), said
    by_submit = carabid("status", root=root).stdout.splitlines()
    for stage in ("extract", "train"):
        assert carabid(stage, CONFIG, *overrides, root=root, check=False).returncode == 1
    for lines in (by_submit, carabid("status", root=root).stdout.splitlines()):
        assert all("data: extract: " in line and "line 11" in line for line in lines[:2]), lines
        assert lines[2] == "beetles-frozen: 2 failed"
    broken.write_bytes(whole)
    carabid("submit", CONFIG, *overrides, "--cluster", "local", root=root)
    lines = carabid("status", root=root).stdout.splitlines()
    assert [line.startswith("done") for line in lines] == [True, True, False] and lines[2].endswith(": 2 done")


def test_a_worker_that_is_killed_while_it_extracts_is_reported_and_the_rest_is_collected(assets: Assets, root: Path) -> None:
    overrides = (*assets.on_pixels(), "train.epochs=1")
    process = start(root, "submit", CONFIG, *overrides, "--cluster", "local")
    deadline = time.monotonic() + 120
    while not (workers := worker_processes(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "worker process was killed" in out and "Traceback" not in out
    assert list(root.glob("trained/*/results.csv"))


def test_where_torch_cannot_be_loaded_the_trials_say_so(assets: Assets, root: Path, tmp_path: Path) -> None:
    """The process that workers are forked from loads it first, and may not end by that."""
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    environ = {**os.environ, "CARABID_ROOT": str(root), "PYTHONPATH": str(tmp_path)}
    line = ("submit", "configs/beetles/pixels.yaml", *assets.overrides("pixels"), "--cluster", "local", "--workers", "1")
    command = [sys.executable, "-m", "pipeline.cli", *line]
    done = subprocess.run(command, cwd=PROJECT, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr, done
    assert "extract: failed" in done.stdout and "libcudart.so.12" in done.stdout and "not begun" in done.stdout


def worker_processes(session: int) -> list[int]:
    """The pool's workers in a session: forked from one process (beside it multiprocessing keeps a tracker of resources)."""
    command = ["ps", "-ww", "-o", "pid=,ppid=,args=", "-s", str(session)]
    found = [line.split(maxsplit=2) for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]
    servers = {pid for pid, _, line in found if "forkserver import main" in line}
    return [int(pid) for pid, parent, _ in found if parent in servers]


def test_features_that_cannot_be_made_are_the_failure_of_the_trials_that_need_them(assets: Assets, root: Path) -> None:
    overrides = (*assets.overrides("finetune"), "model.encoder.blocks=2,50", "train.epochs=1")
    done = carabid("extract", "configs/beetles/finetune.yaml", *overrides, root=root)
    assert "blocks" in done.stderr
    assert "extract: " in carabid("status", root=root).stdout
    alone = carabid(
        "extract", "configs/beetles/finetune.yaml", *overrides[:-2], "model.encoder.blocks=50", root=root, check=False
    )
    assert alone.returncode == 1
