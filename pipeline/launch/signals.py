"""Being told to stop: Slurm's warning before the walltime (USR2), SIGTERM from preemption or scancel. Loads no torch."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

WALLTIME_SIGNAL = signal.SIGUSR2


class StopFlag:
    """Callable: whether a signal has asked this process to stop. Training looks at the end of each epoch."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen while in the block; afterwards the old handlers are back. submitit's are replaced: they guess wrongly."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, WALLTIME_SIGNAL)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        print(f"carabid: {signal.Signals(number).name}: stopping after this epoch, with a checkpoint", flush=True)


def requeue_if_out_of_time(flag: StopFlag) -> None:
    """Queue this Slurm job again if it was its walltime that ended; preempted jobs are queued again by Slurm itself."""
    job = os.environ.get("SLURM_JOB_ID")
    if flag.signal == WALLTIME_SIGNAL and job:
        subprocess.run(["scontrol", "requeue", job], check=False, timeout=60)
