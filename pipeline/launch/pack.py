"""Several trials in one task, side by side on its GPU: a process and a log each. Loads no torch.

A trial that fails, or is killed, leaves its siblings alone. `python -m pipeline.launch.pack MANIFEST INDEX` is one of
the processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pipeline.attempts import SHARED_BY
from pipeline.errors import REQUEUE_STATUS, RunAgain, WorkError
from pipeline.launch import jobs
from pipeline.launch.manifest import Manifest, load_manifest
from pipeline.layout import TrialDir, write_json
from pipeline.signals import LISTENED

Children = Mapping[int, subprocess.Popen[bytes]]


def train(manifest: Manifest, indices: range) -> None:
    """Train these trials at once; done if any of them is, so that `aftercorr` lets the evaluation of this task begin.

    Raises RunAgain if the walltime interrupted one, WorkError if none is done.
    """
    environ = {**os.environ, SHARED_BY: str(len(indices))}
    children = {index: _start(manifest, index, environ) for index in indices}
    with _passing_signals_on(children):
        statuses = {index: child.wait() for index, child in children.items()}
    for index, status in statuses.items():
        _say_end(manifest, index, status)
    if REQUEUE_STATUS in statuses.values():
        raise RunAgain("the walltime is near: trials that are not done have written checkpoints")
    if all(statuses.values()):
        raise WorkError(f"none of the {len(indices)} trials of this task is trained")


def log_path(manifest: Manifest, index: int) -> Path:
    """The log of one trial of a packed task."""
    return manifest.experiment.stage_logs(manifest.number, "train") / f"{index}.log"


def _start(manifest: Manifest, index: int, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    path = log_path(manifest, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-u", "-m", "pipeline.launch.pack", str(manifest.path), str(index)]
    with path.open("ab") as log:
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


@contextmanager
def _passing_signals_on(children: Children) -> Iterator[None]:
    """What this process is told, its children are told too: they write their checkpoints, and this one waits for them."""

    def tell(number: int, frame: FrameType | None) -> None:
        for child in children.values():
            with suppress(ProcessLookupError):
                child.send_signal(number)

    before = {number: signal.signal(number, tell) for number in LISTENED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_end(manifest: Manifest, index: int, status: int) -> None:
    words = {0: "done", REQUEUE_STATUS: "interrupted"}
    name, log = manifest.entries[index].name, log_path(manifest, index)
    if status < 0:
        killed = f"killed by {signal.Signals(-status).name}"
        _record_kill(manifest.experiment.trial(name), killed)
    print(f"carabid train: {name}: {killed if status < 0 else words.get(status, 'failed')} (log: {log})", flush=True)


def _record_kill(trial: TrialDir, killed: str) -> None:
    """What was killed could leave no word itself, and Slurm may call the task done."""
    with suppress(OSError):
        write_json(
            trial.failure, jobs.failure_record("train", WorkError(f"{killed} (out of memory?)")) | {"kind": "killed"}
        )


if __name__ == "__main__":
    jobs.train_index(load_manifest(Path(sys.argv[1])), int(sys.argv[2]))
