"""Being told to stop: Slurm's warning before the walltime (USR2), SIGTERM from preemption or scancel, Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

WALLTIME_SIGNAL = signal.SIGUSR2
LISTENED = (signal.SIGTERM, signal.SIGINT, WALLTIME_SIGNAL)
WARNING_SECONDS = 120


def warning_seconds(walltime: int) -> int:
    """How long before the end of its walltime (seconds) a job is warned: two minutes, a fifth of a short one.

    A job of a few minutes that is warned two minutes before its end would be told to stop when it has hardly begun.
    """
    return max(10, min(WARNING_SECONDS, walltime // 5))


class StopFlag:
    """Whether a signal has asked this process to stop, and how long ago.

    Training looks at `asked` after each epoch, where it writes a checkpoint first, and at `overdue` after each batch.
    """

    def __init__(self, warning: int = WARNING_SECONDS) -> None:
        """`warning`: how long before the walltime's end the signal comes; half of it an epoch may go on."""
        self.signal: int | None = None
        self.grace = warning / 2
        self._since = 0.0

    def asked(self) -> bool:
        """Stop at the next good moment."""
        return self.signal is not None

    def overdue(self) -> bool:
        """Stop now: there may be no time left for the end of an epoch."""
        return self.asked() and time.monotonic() - self._since > self.grace

    @property
    def urgency(self) -> int:
        """Which signal it was, as a number: 0 none, the walltime's the highest."""
        return 0 if self.signal is None else 1 + LISTENED.index(signal.Signals(self.signal))

    def hear(self, urgency: int) -> None:
        """Another process of the same work has been told so."""
        if urgency > self.urgency:
            self._note(LISTENED[urgency - 1], None)

    def out_of_time(self) -> bool:
        """Whether it was the walltime. (A preempted job is queued again by Slurm, a cancelled one is not to be.)"""
        return self.signal == WALLTIME_SIGNAL

    @contextmanager
    def installed(self) -> Iterator[StopFlag]:
        """Listen while in the block; afterwards the old handlers are back. submitit's are replaced: they guess wrongly."""
        before = {number: signal.signal(number, self._note) for number in LISTENED}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt  # Ctrl-C twice: at once
        if self.signal is None:
            self._since = time.monotonic()
            print(f"carabid: {signal.Signals(number).name}: stopping after this epoch, with a checkpoint", flush=True)
        if self.signal != WALLTIME_SIGNAL:  # what comes later is the end of the same walltime
            self.signal = number


@contextmanager
def at_walltime(end: Callable[[], None]) -> Iterator[None]:
    """Call `end`, which should raise, when the walltime is near; SIGTERM ends the process as it does everywhere.

    For stages without a checkpoint of their own. submitit's handlers are replaced here too: they swallow SIGTERM.
    """

    before = signal.signal(WALLTIME_SIGNAL, lambda number, frame: end()), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, old in zip((WALLTIME_SIGNAL, signal.SIGTERM), before, strict=True):
            signal.signal(number, old or signal.SIG_DFL)  # None: not one of Python's
