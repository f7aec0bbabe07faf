"""Several trials in one job task, one after another in one process: Python, its libraries, table, features and backbone are
loaded once for all of them. Each has a log of its own. Loads no torch.

That process is not the job task's own: one that is killed (out of memory), or in which something unforeseen has happened, takes
the trial that it was at along, and those behind it are trained in another one. `python -m pipeline.launch.jobs.pack MANIFEST
INDEX …` is such a process; it says of each trial how that ended, by a line on its standard output.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from pipeline.amounts import parse_time
from pipeline.disk.writing import write_json
from pipeline.errors import REQUEUE_STATUS, RunAgain, UserError, WorkError
from pipeline.experiments.reading import Trial
from pipeline.launch.jobs.trials import Trainings, failure_record, stacks, status_of
from pipeline.launch.manifest.manifest import Manifest, load_manifest
from pipeline.signals import LISTENED, WALLTIME_SIGNAL, StopFlag, warning_seconds
from pipeline.streams import output_to

WORDS = {0: "done", REQUEUE_STATUS: "interrupted"}
"""What exit statuses mean."""


@dataclass
class Told:
    """What this process has been told by signals, which it passes on to its child."""

    child: subprocess.Popen[str] | None = None
    numbers: list[int] = field(default_factory=list)

    def tell(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)
        self.pass_on(number)

    def pass_on(self, number: int) -> None:
        with suppress(ProcessLookupError):
            if self.child:
                self.child.send_signal(number)


def train(manifest: Manifest, indices: Sequence[int]) -> None:
    """Train these trials; done if any of them is, so that `aftercorr` lets the evaluation of this job task begin.

    Raises RunAgain if the walltime interrupted them, WorkError if none is done.
    """
    statuses: dict[int, int] = {}
    with _listening() as told:
        while (left := [index for index in indices if index not in statuses]) and not told.numbers:
            statuses |= _train_some(manifest, left, told)
    if REQUEUE_STATUS in statuses.values() or (left and WALLTIME_SIGNAL in told.numbers):
        raise RunAgain("the walltime is near: trials that are not done go on, or begin, when this job runs again")
    if not any(status == 0 for status in statuses.values()):
        raise WorkError(f"none of the {len(indices)} trials of this job task is trained")


def log_path(manifest: Manifest, index: int) -> Path:
    """The log of one trial of a packed job task."""
    return manifest.experiment.own_log(manifest.number, "train", index)


@contextmanager
def _listening() -> Iterator[Told]:
    """What this process is told, its child is told too: it writes a checkpoint, and this one waits for it."""
    told = Told()
    before = {number: signal.signal(number, told.tell) for number in LISTENED}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _train_some(manifest: Manifest, indices: Sequence[int], told: Told) -> dict[int, int]:
    """Exit statuses of those of these trials that one process came to; at least of one, unless it was told to stop."""
    command = [sys.executable, "-u", "-m", "pipeline.launch.jobs.pack", str(manifest.path), *map(str, indices)]
    statuses: dict[int, int] = {}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
        told.child = child
        for number in list(told.numbers):  # it was told before the child was there
            told.pass_on(number)
        assert child.stdout is not None
        for line in child.stdout:
            index, status = map(int, line.split())
            statuses[index] = status
            _log_end(manifest, index, status)
    told.child = None
    if child.returncode and not told.numbers and (rest := [index for index in indices if index not in statuses]):
        statuses[rest[0]] = child.returncode
        _log_end(manifest, rest[0], child.returncode)
    return statuses


def _log_end(manifest: Manifest, index: int, status: int) -> None:
    name, how = manifest.entries[index].name, WORDS.get(status, "failed")
    if status < 0:
        how = f"killed by {signal.Signals(-status).name}"
        record = failure_record("train", WorkError(f"{how} (out of memory?)")) | {"kind": "killed"}
        with suppress(OSError):  # it could leave no word itself, and Slurm may call the job task done
            write_json(manifest.experiment.trial(name).failure, record)
    print(f"carabid train: {name}: {how} (log: {log_path(manifest, index)})", flush=True)


# ---------------------------------------------------------------- in the process of its own
def main(manifest: Manifest, indices: Sequence[int]) -> int:
    """Train these trials, those of one shape together, until told to stop; the exit status."""
    said = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library may print goes to the job task's log
    places = {manifest.entries[index].name: index for index in indices}
    warning = warning_seconds(parse_time(manifest.resources.train.time))
    with StopFlag(warning).installed() as flag:
        trainings = Trainings(flag, lambda trial: log_path(manifest, places[trial.name]))
        for stack in stacks([manifest.trial(index) for index in indices]):
            errors = trainings.train(stack)
            for trial, error in zip(stack, errors, strict=True):
                print(places[trial.name], _status(trial, error, trainings), file=said, flush=True)
            if flag.asked():
                return 0
            if not all(error is None or isinstance(error, UserError | WorkError) for error in errors):
                return 1  # a process in which something unforeseen has happened (a GPU that is lost) is not to harm the next
    return 0


def _status(trial: Trial, error: Exception | None, trainings: Trainings) -> int:
    """With which status a job of this trial alone would have ended, which says why in its log."""
    assert trainings.log_of is not None
    with output_to(trainings.log_of(trial)):
        return status_of(error)


if __name__ == "__main__":
    raise SystemExit(main(load_manifest(Path(sys.argv[1])), [int(index) for index in sys.argv[2:]]))
