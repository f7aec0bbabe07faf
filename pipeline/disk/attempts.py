"""What a stage of a trial has cost: its attempts, with the job, the node, the GPUs and the time of each. Loads no torch.

A training's attempts stand in attempts.json until it is done, then in its provenance. One that ends by itself, well or
badly or told to stop, counts whole; one that is killed counts up to its last checkpoint. The time is that of the stage:
Slurm also bills what a job needs to start.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.disk.provenance import job_id
from pipeline.disk.reading import is_number
from pipeline.disk.writing import read_record, write_json

SHARED_BY = "CARABID_SHARED_BY"
"""Environment variable: how many trials run side by side on the GPUs of this process."""
TOO_MANY = 1e10
"""No attempt has so many GPUs, or seconds."""


@dataclass
class Attempt:
    """One process that worked at a stage of a trial."""

    job: str | None
    """Slurm's `41`, or `41_3` for a job task."""
    restart: int
    """How often Slurm had queued that job again by then."""
    node: str
    gpu: str | None
    """Name of the GPU that was computed on; None: on the CPU."""
    gpus: int
    """How many the job had, used or not."""
    shared_by: int
    """How many trials had them at once."""
    seconds: float = 0.0


def this_attempt(gpu: str | None, seconds: float = 0.0, gpus: int = 1) -> Attempt:
    """The attempt that this process is. Outside Slurm it has the GPU that it computes on; of several processes each has one."""
    return Attempt(
        job=job_id(),
        restart=_number("SLURM_RESTART_COUNT", 0),
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        gpu=gpu,
        gpus=max(_number("SLURM_GPUS_ON_NODE", 0), gpus * int(gpu is not None)),
        shared_by=_number(SHARED_BY, 1),
        seconds=round(seconds, 2),
    )


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


def spent(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """What attempts came to, as provenance keeps it."""
    return {
        "seconds": round(sum(attempt.seconds for attempt in attempts), 2),
        "gpu_hours": round(sum(a.seconds * a.gpus / a.shared_by for a in attempts) / 3600, 8),
        "restarts": restarts(attempts),
        "attempts": [asdict(attempt) for attempt in attempts],
    }


def restarts(attempts: Sequence[Attempt]) -> int:
    """How often work was begun again: by Slurm's count within a job, where attempts may have died without a record."""
    counts: dict[str, int] = {}
    for attempt in attempts:
        if attempt.job:
            counts[attempt.job] = max(attempt.restart, counts.get(attempt.job, 0))
    begun = sum(count + 1 for count in counts.values()) + sum(attempt.job is None for attempt in attempts)
    return max(begun, len(attempts)) - 1 if attempts else 0


def read_attempts(record: Any) -> list[Attempt]:
    """The attempts in a record: of attempts.json, or a stage's provenance; none if it has none that can be read."""
    with suppress(KeyError, TypeError):
        attempts = [Attempt(**attempt) for attempt in record["attempts"]]
        return attempts if all(map(_is_whole, attempts)) else []
    return []


def _is_whole(attempt: Attempt) -> bool:
    """Whether each value is of its kind, and none so large that no attempt can have it."""
    texts = [attempt.node, *(text for text in (attempt.job, attempt.gpu) if text is not None)]
    counts = (attempt.restart, attempt.gpus, attempt.shared_by - 1, attempt.seconds)
    return all(isinstance(text, str) for text in texts) and all(is_number(n) and 0 <= n < TOO_MANY for n in counts)


class Attempts:
    """The attempts at one training, this process's last. `identity` names what is trained: others' do not count."""

    def __init__(self, path: Path, identity: str, attempt: Attempt, started: float) -> None:
        """`started`: when this attempt began, by `time.monotonic`."""
        self._path, self._identity, self._mine, self._started = path, identity, attempt, started
        self._of_others = 0.0
        self._waits_since: float | None = None
        record = read_record(path)
        self._earlier = read_attempts(record) if record.get("identity") == identity else []

    def all(self) -> list[Attempt]:
        """Every attempt, this one with the time it has taken until now."""
        until = time.monotonic() if self._waits_since is None else self._waits_since
        self._mine.seconds = round(until - self._started - self._of_others, 2)
        return [*self._earlier, self._mine]

    def wait(self) -> None:
        """This process works at others too, until `go_on`."""
        self._waits_since = time.monotonic()

    def go_on(self, share: float) -> None:
        """Of the time since then so many seconds were this training's."""
        if self._waits_since is not None:
            self._of_others += time.monotonic() - self._waits_since - share
            self._waits_since = None

    def note(self) -> None:
        """Bring the file up to date. A disk that is full is no reason for the training to end here."""
        with suppress(OSError):
            write_json(self._path, {"identity": self._identity, **spent(self.all())})

    @contextmanager
    def noted(self, still_mine: Callable[[], bool]) -> Iterator[None]:
        """Note this attempt when the block begins, and when it ends, unless the trial is another job's by then."""
        self.note()
        try:
            yield
        finally:
            if still_mine():
                self.note()
