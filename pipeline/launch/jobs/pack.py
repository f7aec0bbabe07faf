"""Several trials in one job task, one after another in one process: Python, its libraries, table, features and backbone are
loaded once for all of them. Each has a log of its own. Loads no torch.

That process is not the job task's own: one that is killed (out of memory), or in which something unforeseen has happened, takes
the trial that it was at along, and those behind it are trained in another one; so is that trial, by itself, if there were others
before it. `python -m pipeline.launch.jobs.pack MANIFEST PIPE together|alone INDEX …` is such a process; it says on a pipe which
trial it begins, and how that ends.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TextIO

from pipeline.amounts import parse_time
from pipeline.disk.writing import write_json
from pipeline.errors import REQUEUE_STATUS, Interrupted, RunAgain, UserError, WorkError
from pipeline.experiments.reading import Trial
from pipeline.launch.jobs.trials import Trainings, failure_record, stacks, status_of, time_of
from pipeline.launch.manifest.manifest import Manifest, load_manifest
from pipeline.signals import LISTENED, WALLTIME_SIGNAL, StopFlag, warning_seconds
from pipeline.streams import output_to

TOGETHER, ALONE = "together", "alone"
"""Whether trials of one shape may be trained at once."""


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


@dataclass
class Ended:
    """What one process came to: how its trials ended, which it had begun, its own exit status."""

    statuses: dict[int, int] = field(default_factory=dict)
    begun: list[int] = field(default_factory=list)
    status: int = 0

    @property
    def open(self) -> list[int]:
        """Trials that had begun and did not end."""
        return [index for index in dict.fromkeys(self.begun) if index not in self.statuses]


def train(manifest: Manifest, indices: Sequence[int]) -> None:
    """Train these trials; done if any of them is, so that `aftercorr` lets the evaluation of this job task begin.

    Raises RunAgain if the walltime interrupted them and they came further, WorkError if none is done.
    """
    statuses, how, again = dict[int, int](), TOGETHER, list[int]()
    before = {index: _marks(manifest, index) for index in indices}
    with _listening() as told:
        while (left := [index for index in indices if index not in statuses]) and not told.numbers:
            some, again = again or left, []
            ended = _run(manifest, some, told, how)
            statuses |= ended.statuses
            if told.numbers:
                continue  # to count what is left
            if len(ended.open) > 1:
                how = ALONE  # which of them it was shows when each is by itself
            elif ended.open and len(set(ended.begun)) > 1:
                again = ended.open  # in a process of its own there is nothing that those before it have left
            else:
                statuses |= _lost(manifest, some, ended, before)
    came_further = any(_marks(manifest, index) != marks for index, marks in before.items())
    if REQUEUE_STATUS in statuses.values() or (left and WALLTIME_SIGNAL in told.numbers):
        if came_further:
            raise RunAgain("the walltime is near: trials that are not done go on, or begin, when this job runs again")
        print("carabid train: the walltime is near, and nothing came further: this job is not queued again", flush=True)
    if not any(status == 0 for status in statuses.values()):
        raise WorkError(f"none of the {len(indices)} trials of this job task is trained")


def log_path(manifest: Manifest, index: int) -> Path:
    """The log of one trial of a packed job task."""
    return manifest.experiment.own_log(manifest.number, "train", index)


def _marks(manifest: Manifest, index: int) -> tuple[int, int]:
    """What changes when a trial comes further: when it was trained, and its last checkpoint."""
    trial = manifest.experiment.trial(manifest.entries[index].name)
    return time_of(trial.trained), time_of(trial.resume_state)


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


def _run(manifest: Manifest, indices: Sequence[int], told: Told, how: str) -> Ended:
    """Train these trials in a process of their own, which says on a pipe which it begins and how each ends."""
    hears, says = os.pipe()
    command = [sys.executable, "-u", "-m", "pipeline.launch.jobs.pack", str(manifest.path), str(says), how, *map(str, indices)]
    ended = Ended()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(says,), text=True) as child:
        os.close(says)
        told.child = child
        for number in list(told.numbers):  # it was told before the child was there
            told.pass_on(number)
        with os.fdopen(hears) as words:
            for word, index, *status in map(str.split, words):
                if word == "begin":  # perhaps once more, by itself
                    ended.begun.append(int(index))
                    ended.statuses.pop(int(index), None)
                else:
                    ended.statuses[int(index)] = int(status[0])
                    _log_end(manifest, int(index), status[1])
    told.child = None
    ended.status = child.returncode
    return ended


def _lost(manifest: Manifest, left: Sequence[int], ended: Ended, before: Mapping[int, tuple[int, int]]) -> dict[int, int]:
    """Trials that a process took along when it ended, with statuses: the one that it was at; all, if it came to none of them."""
    came_to_nothing = not ended.begun and not ended.statuses
    lost = list(left) if came_to_nothing else ended.open if len(ended.open) == 1 else []
    trained = [index for index in lost if _marks(manifest, index)[0] != before[index][0]]  # it had just been
    for index in lost:
        if index not in trained:
            _record(manifest, index, ended.status)
    return {index: 0 if index in trained else ended.status or 1 for index in lost}


def _record(manifest: Manifest, index: int, status: int) -> None:
    """Write down how a trial's process ended: it could leave no word itself, and Slurm may call the job task done."""
    how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"its process ended with status {status}"
    record = failure_record("train", WorkError(f"{how}{' (out of memory?)' * (status < 0)}"))
    with suppress(OSError):
        path = manifest.experiment.trial(manifest.entries[index].name).failure
        write_json(path, record | ({"kind": "killed"} if status < 0 else {}))
    _log_end(manifest, index, how)


def _log_end(manifest: Manifest, index: int, how: str) -> None:
    print(f"carabid train: {manifest.entries[index].name}: {how} (log: {log_path(manifest, index)})", flush=True)


# ---------------------------------------------------------------- in the process of its own
@dataclass
class Said:
    """What that process says of its trials: which it begins, and how each ends; `trials.Watch`."""

    manifest: Manifest
    words: TextIO
    places: Mapping[str, int]

    def log_of(self, trial: Trial) -> Path:
        return log_path(self.manifest, self.places[trial.name])

    def begun(self, trial: Trial) -> None:
        print("begin", self.places[trial.name], file=self.words, flush=True)

    def ended(self, trial: Trial, error: Exception | None) -> None:
        """With which status a job of this trial alone would have ended, which says why in its log."""
        with output_to(self.log_of(trial)):
            status = status_of(error)
        how = "interrupted" if isinstance(error, Interrupted | RunAgain) else "failed" if error else "done"
        print("end", self.places[trial.name], status, how, file=self.words, flush=True)


def main(manifest: Manifest, words: TextIO, how: str, indices: Sequence[int]) -> None:
    """Train these trials, those of one shape at once, until told to stop, or until something unforeseen has happened in one: this
    process (that has lost its GPU, say) is not to harm the next."""
    said = Said(manifest, words, {manifest.entries[index].name: index for index in indices})
    warning = warning_seconds(parse_time(manifest.resources.train.time))
    trials = [manifest.trial(index) for index in indices]
    with StopFlag(warning).installed() as flag:
        trainings = Trainings(flag, said)
        for some in stacks(trials) if how == TOGETHER else [[trial] for trial in trials]:
            errors = trainings.train(some)
            if flag.asked() or not all(error is None or isinstance(error, UserError | WorkError) for error in errors):
                return


if __name__ == "__main__":
    main(load_manifest(Path(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w"), sys.argv[3], [int(i) for i in sys.argv[4:]])
