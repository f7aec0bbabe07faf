"""A job's work on trials, one after another or several at once. Loads no torch.

A trial that fails leaves its reason in its folder, for `carabid status` and `results`; the next attempt removes it.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from pipeline.amounts import parse_time
from pipeline.disk.layout import PROJECT, TrialDir, experiment_dir
from pipeline.disk.provenance import job_id, now
from pipeline.disk.secrets import complain, hide, print_traceback
from pipeline.disk.writing import read_record, write_json
from pipeline.errors import (
    REQUEUE_STATUS,
    Interrupted,
    MissingFeatures,
    NotFetched,
    OutOfTime,
    RunAgain,
    TakenOver,
    UserError,
    WorkError,
    causes,
)
from pipeline.experiments.reading import Trial
from pipeline.launch.manifest.manifest import Manifest, alike_together
from pipeline.launch.watching.failures import kind_of
from pipeline.signals import StopFlag, at_walltime, warning_seconds
from pipeline.stages.shared import Shared
from pipeline.streams import append_line, open_streams, output_to, print_line
from pipeline.sweeps import sweep_seldom
from pipeline.training.process_ranks import launched

if TYPE_CHECKING:
    from pipeline.stages.train import Training

MOST_TOGETHER = 64
"""Trials that are trained together: more of them would be lost at once."""


def stacks(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that may be trained together, by their shape; each of the others by itself. Of one stack in the order of their
    names: two jobs that take the leases of the same trials then do not wait for one another."""
    from pipeline.training.stacked import shape

    found: dict[str, list[Trial]] = {}
    for trial in trials:
        found.setdefault(shape(trial.config) or trial.name, []).append(trial)
    alike = [sorted(each, key=lambda trial: trial.name) for each in found.values()]
    return [each[first : first + MOST_TOGETHER] for each in alike for first in range(0, len(each), MOST_TOGETHER)]


class Watch(Protocol):
    """Who wants to know of each trial of a process."""

    def log_of(self, trial: Trial) -> Path:
        """Where what its training says goes."""

    def begun(self, trial: Trial) -> None:
        """It begins."""

    def ended(self, trial: Trial, error: Exception | None) -> None:
        """It has ended, with what it raised."""


@dataclass
class Trainings:
    """Trainings of one process: they share what they load, and are told together to stop."""

    flag: StopFlag
    watch: Watch | None = None
    """None: what they say goes to stdout."""
    shared: Shared = field(default_factory=Shared)
    any_before: bool = False
    """Whether others have been trained in this process."""
    any_done: bool = False
    """Whether one has become done in this process: the walltime then went to that one too."""

    def train(self, trials: Sequence[Trial]) -> list[Exception | None]:
        """Train trials of one shape; of each what it raised, as `training` does, but for a walltime that went to others. A GPU
        that has not the memory for all of them at once, or beside what those before have left, may have it for each."""
        from pipeline.stages.train import carry_out

        before = [time_of(trial_dir(trial).trained) for trial in trials]
        errors = carry_out([self._training(trial, named=len(trials) > 1) for trial in trials])
        for place, error in enumerate(errors):
            _let_go(error)
            if (len(trials) > 1 or self.any_before) and error is not None and kind_of(error) == "gpu-oom":
                self.shared.let_go()
                (errors[place],) = carry_out([self._training(trials[place])])
                _let_go(errors[place])
        self.any_before = True
        self.any_done |= before != [time_of(trial_dir(trial).trained) for trial in trials]
        return errors

    def _training(self, trial: Trial, named: bool = False) -> Training:
        """One of them; `named` in each line, if it is one of several at once on stdout."""
        no_further = RunAgain if self.any_done else OutOfTime
        if self.watch is None:
            name = f"{trial.name}: " * named
            return training(trial, self.flag, self.shared, no_further, lambda line: print_line(name + line))
        say = partial(append_line, self.watch.log_of(trial))
        return _watched(trial, training(trial, self.flag, self.shared, no_further, say), self.watch)


def _let_go(error: Exception | None) -> None:
    """Free what the frames of an error hold, and those that called them, a model and its optimiser perhaps: who keeps the error
    is not to keep these."""
    for each in causes(error, hidden=True) if error else ():
        for frame, _ in traceback.walk_tb(each.__traceback__):
            caller: FrameType | None = frame
            with suppress(RuntimeError):  # of one that goes on
                while caller:
                    caller.clear()
                    caller = caller.f_back


def _watched(trial: Trial, training: Training, watch: Watch) -> Training:
    """A training with what it says in a file, and a word when it begins and ends."""
    path = watch.log_of(trial)
    watch.begun(trial)
    with closing(training):
        try:
            with output_to(path):
                log_attempt("train", trial.name)
                prepared = next(training, None)
            if prepared is not None:
                try:
                    go_on = partial(training.send, (yield prepared))
                except Exception as error:
                    go_on = partial(training.throw, error)
                with output_to(path), suppress(StopIteration):
                    go_on()
        except Exception as error:
            watch.ended(trial, error)
            raise
    watch.ended(trial, None)


def train_index(manifest: Manifest, index: int, shared: Shared | None = None) -> None:
    """Train trial `index`."""
    trial = manifest.trial(index)
    log_attempt("train", trial.name)
    warning = warning_seconds(parse_time(trial.config.resources.train.time))
    with StopFlag(warning).installed() as flag:
        exit_on_error(lambda: train_trial(trial, flag, shared))


def train_trials(trials: Sequence[Trial]) -> None:
    """Train trials one after another, or those of one shape together; told to stop, it does not begin the next one."""
    with StopFlag().installed() as flag:
        each_stack(stacks(alike_together(trials)), "train", Trainings(flag).train)


def evaluate_trials(trials: Sequence[Trial], shared: Shared | None = None) -> None:
    """Evaluate trials one after another."""
    with at_walltime(out_of_time):
        each_stack([[trial] for trial in alike_together(trials)], "evaluate", partial(_evaluate_each, shared or Shared()))


def each_stack(stacks: Sequence[Sequence[Trial]], verb: str, work: Callable[[Sequence[Trial]], list[Exception | None]]) -> None:
    """Do every trial, those of a stack by one call of `work`; one that fails leaves the others alone. Raises WorkError only if
    all of them did."""
    n, number, failed = sum(map(len, stacks)), 0, 0
    if not stacks:
        print(f"carabid {verb}: there are fewer trials than job tasks of this array: nothing is left for this one", flush=True)
    for trials in stacks:
        started = time.monotonic()
        for trial in trials:
            number += 1
            print(f"carabid {verb}: trial {number} of {n}: {trial.name}", flush=True)
        for trial, error in zip(trials, work(trials), strict=True):
            failed += _has_failed(trial, error)
            if error is None:
                print(f"carabid {verb}: {trial.name}: done in {time.monotonic() - started:.1f} s", flush=True)
    if failed and failed == n:
        raise WorkError(f"{verb}: none of {failed} trials ended well")


def _has_failed(trial: Trial, error: Exception | None) -> bool:
    """Whether it has, which is said. Raises what says that the job's time is up: another trial would be killed."""
    if isinstance(error, Interrupted | OutOfTime):
        raise error
    if error is None:
        return False
    if not isinstance(error, UserError | WorkError | OSError):
        print_traceback(error)
    complain(f"{trial.name}: {error}")
    return True


def training(
    trial: Trial,
    flag: StopFlag,
    shared: Shared | None = None,
    no_further: type[RunAgain | OutOfTime] = OutOfTime,
    say: Callable[[str], None] = print_line,
) -> Training:
    """Train one trial, as `stages.train.training` does. Told to stop, it writes a checkpoint; raises RunAgain if it is the
    walltime that ended.

    Raises `no_further` instead if this attempt came no further: alone, each one after it would be cut off at the same place.
    """
    from pipeline.stages import train as stage
    from pipeline.stages.several import follow_launched

    folder = trial_dir(trial)
    if (rank := launched(trial.config.train.processes)) and not rank.is_main:
        follow_launched(trial.config, folder, flag, rank, stage.follow)
        return
    if flag.asked():
        kind = RunAgain if flag.out_of_time() else Interrupted
        raise kind(f"told to stop before {trial.name} began: run it again to go on")
    before = time_of(folder.resume_state)
    with recorded_failure(folder, "train"):
        try:
            yield from stage.training(trial.config, folder, flag, shared, say)
        except Interrupted as error:
            if not flag.out_of_time():
                raise
            if time_of(folder.resume_state) == before:
                raise no_further("not one epoch fits into the walltime: give it more (resources.train.time)") from error
            raise RunAgain(str(error)) from error


def train_trial(trial: Trial, flag: StopFlag, shared: Shared | None = None) -> None:
    """Train one trial by itself. Raises as `training`."""
    from pipeline.stages.train import finish

    finish(training(trial, flag, shared))


def _evaluate_each(shared: Shared, trials: Sequence[Trial]) -> list[Exception | None]:
    """Evaluate trials; of each what it raised."""
    found: list[Exception | None] = []
    for trial in trials:
        try:
            evaluate_trial(trial, shared)
            found.append(None)
        except Exception as error:  # whatever it is, the other trials are not to suffer
            found.append(error)
    return found


def evaluate_trial(trial: Trial, shared: Shared | None = None) -> None:
    """Evaluate one trial."""
    from pipeline.stages import evaluate as stage

    folder = trial_dir(trial)
    with recorded_failure(folder, "evaluate"):
        stage.run(trial.config, folder, shared)


def time_of(path: Path) -> int:
    """When a file was written, in nanoseconds; 0 if it is not there."""
    with suppress(OSError):
        return path.stat().st_mtime_ns
    return 0


def out_of_time() -> NoReturn:
    """The walltime of a stage that would begin anew: queued again it would be cut off again."""
    raise OutOfTime("the walltime is over before it was done: give it more (resources.<stage>.time, or sbatch --time)")


def trial_dir(trial: Trial) -> TrialDir:
    return experiment_dir(trial.config).trial(trial.name)


@contextmanager
def recorded_failure(trial: TrialDir, stage: str) -> Iterator[None]:
    """failure.json of an earlier attempt goes when the block starts, and comes if it raises.

    An evaluation that finds no model is no failure of its own: the reason that training left stays. Nor is a training
    that finds no features: the reason that extraction left comes back.
    """
    earlier: dict[str, Any] = {}
    if stage == "train" or trial.trained.exists():
        earlier = read_record(trial.failure)
        trial.failure.unlink(missing_ok=True)
    try:
        yield
    except (Interrupted, TakenOver):
        raise
    except Exception as error:
        if isinstance(error, NotFetched):
            error.config = trial.config
        is_of_extraction = earlier.get("stage") == "extract" and isinstance(error, MissingFeatures)
        why = earlier if is_of_extraction else failure_record(stage, error)
        if not trial.failure.exists():
            with suppress(OSError):  # a full or vanished disk may be what failed; the error itself says so
                write_json(trial.failure, why)
        raise


def failure_record(stage: str, error: Exception) -> dict[str, str | None]:
    for_people = isinstance(error, UserError | WorkError)
    return {
        "stage": stage,
        "kind": kind_of(error),
        "message": hide(str(error) if for_people else f"{type(error).__name__}: {error}"),
        "traceback": None if for_people else hide("".join(traceback.format_exception(error))),
        "written": now(),
    }


def log_attempt(stage: str, what: str) -> None:
    """The first line of each attempt in a job's log, which all attempts share."""
    open_streams()
    sweep_seldom()
    job, restarts = job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    where = f"Slurm job {job} on {socket.gethostname()}, attempt {restarts + 1}" if job else socket.gethostname()
    print(f"──── carabid {stage}: {what} ({where}, {now()}, code {PROJECT})", flush=True)


def exit_on_error(work: Callable[[], object]) -> None:
    """An error made for people ends the job with its message and status 1, without a traceback; submitit sees none, and so
    keeps none in its own files."""
    try:
        work()
    except Exception as error:
        raise SystemExit(status_of(error)) from error


def status_of(error: Exception | None) -> int:
    """With which status a job ends that raised this, which is said; a traceback of what was not foreseen alone."""
    if error is None:
        return 0
    if isinstance(error, UserError | WorkError):
        complain(error)
        return REQUEUE_STATUS if isinstance(error, RunAgain) else 1
    print_traceback(error)
    return 1
