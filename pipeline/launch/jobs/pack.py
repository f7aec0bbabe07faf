"""Several trials in one job task, side by side on its GPU: a process and a log each. Loads no torch.

A trial that fails, or is killed, leaves its siblings alone. `python -m pipeline.launch.jobs.pack MANIFEST INDEX` is one of
the processes.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from pipeline.disk.attempts import SHARED_BY
from pipeline.disk.writing import write_json
from pipeline.errors import REQUEUE_STATUS, RunAgain, WorkError
from pipeline.launch.jobs.trials import failure_record, train_index
from pipeline.launch.manifest.manifest import Manifest, load_manifest
from pipeline.signals import LISTENED, WALLTIME_SIGNAL

WORDS = {0: "done", REQUEUE_STATUS: "interrupted", **{-number: "interrupted" for number in LISTENED}}
"""What exit statuses mean. A child that has only just begun does not listen yet: what it is told ends it."""


def train(manifest: Manifest, indices: range) -> None:
    """Train these trials at once; done if any of them is, so that `aftercorr` lets the evaluation of this job task begin.

    Raises RunAgain if the walltime interrupted one, WorkError if none is done.
    """
    # Each has the threads that it has alone, so that it computes the same bits. (Slurm tells it the CPUs of all of them.)
    threads = str(manifest.resources.train.cpus_per_task)
    environ = {"OMP_NUM_THREADS": threads, **os.environ, SHARED_BY: str(len(indices))}
    children = {index: _start(manifest, index, environ) for index in indices}
    with _passing_signals_on(children):
        statuses = {index: child.wait() for index, child in children.items()}
    for index, status in statuses.items():
        _log_end(manifest, index, status)
    if {REQUEUE_STATUS, -WALLTIME_SIGNAL} & set(statuses.values()):
        raise RunAgain("the walltime is near: trials that are not done have written checkpoints")
    if all(statuses.values()):
        raise WorkError(f"none of the {len(indices)} trials of this job task is trained")


def log_path(manifest: Manifest, index: int) -> Path:
    """The log of one trial of a packed job task."""
    return manifest.experiment.own_log(manifest.number, "train", index)


def _start(manifest: Manifest, index: int, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    path = log_path(manifest, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-u", "-m", "pipeline.launch.jobs.pack", str(manifest.path), str(index)]
    with path.open("ab") as log:
        return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


@contextmanager
def _passing_signals_on(children: Mapping[int, subprocess.Popen[bytes]]) -> Iterator[None]:
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


def _log_end(manifest: Manifest, index: int, status: int) -> None:
    name, how = manifest.entries[index].name, WORDS.get(status, "failed")
    if status < 0 and status not in WORDS:
        how = f"killed by {signal.Signals(-status).name}"
        record = failure_record("train", WorkError(f"{how} (out of memory?)")) | {"kind": "killed"}
        with suppress(OSError):  # it could leave no word itself, and Slurm may call the job task done
            write_json(manifest.experiment.trial(name).failure, record)
    print(f"carabid train: {name}: {how} (log: {log_path(manifest, index)})", flush=True)


if __name__ == "__main__":
    train_index(load_manifest(Path(sys.argv[1])), int(sys.argv[2]))
