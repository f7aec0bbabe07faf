"""A lease: the right to do one piece of work, held by one process of many that share a file system and nothing else.

A lease is a folder of numbered files, of which the highest number counts. A file names its owner and holds a beat,
which a thread of the owner rewrites; when it is done the owner writes `released` there. Whoever finds the highest file
released, or silent for too long, creates the next number with O_EXCL: that one step is the takeover, so one of any
number of waiters wins, and nothing can die half-way through it. Files that have been outbid are deleted; the highest
never is, so numbers only grow. Whoever has finished the work for good may delete the folder: a waiter that then makes it
anew finds the work done.

An owner on the waiter's own machine whose process is gone is dead at once. Elsewhere silence tells, measured by the
waiter's own monotonic clock, because clocks and mtimes differ between nodes. An owner that was suspended for so long that
it lost the lease finds out by `still_mine`. The owner writes through the descriptor that it opened at first, so that it
can never write into its successor's file. This module loads no torch.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.disk.provenance import job_id, now

BEATS = 6
"""Beats in the time after which a silent owner counts as dead."""
LONGEST_PAUSE = 5.0
"""A waiter looks at least this often (seconds), so that it goes on soon after the work is done."""
RELEASED = "released"
FIELDS = {"beat": str, "host": str, "pid": int, "space": str, "job": str, "since": str}
"""What an owner writes of itself."""
LARGEST_PID = 2**31


@dataclass(frozen=True)
class Held:
    """What waiting for a lease came to: true if this process holds it, false if the work was done by another."""

    _claim: _Claim | None

    def __bool__(self) -> bool:
        return self._claim is not None

    def still_mine(self) -> bool:
        """Whether this process holds the lease and no other has taken it over, as the disk says now."""
        return self._claim is not None and self._claim.counts()


class _Claim:
    """A file of the lease that this process has created and keeps alive; `number` is the file's."""

    def __init__(self, lease: Lease, number: int, descriptor: int) -> None:
        self._lease, self._number, self._descriptor = lease, number, descriptor
        self._owner = _describe_self()
        self._stop = threading.Event()
        self._write(0)
        self._thread = threading.Thread(target=self._beat, name=f"lease {lease.path.name}", daemon=True)
        self._thread.start()

    def counts(self) -> bool:
        """Whether the file is still there, and the highest."""
        return self._lease.highest() == self._number

    def release(self) -> None:
        """Stop beating and let the next one in at once."""
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            self._write(RELEASED)
        os.close(self._descriptor)

    def _beat(self) -> None:
        beat = 0
        while not self._stop.wait(self._lease.seconds / BEATS):
            beat += 1
            # A beat that cannot be written (disk full, file outbid and gone) is no reason to stop: still_mine tells.
            with suppress(OSError):
                self._write(beat)

    def _write(self, beat: int | str) -> None:
        # Every content has the same length, so that one write replaces the one before.
        text = json.dumps({"beat": f"{beat:>12}", **self._owner}) + "\n"
        os.pwrite(self._descriptor, text.encode(), 0)
        os.fsync(self._descriptor)


class Lease:
    """The lease at folder `path`; an owner that shows no beat for `seconds` has died."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.pause = min(seconds / BEATS, LONGEST_PAUSE)

    @contextmanager
    def hold(self, done: Callable[[], bool] = lambda: False) -> Iterator[Held]:
        """Wait until this process holds the lease (yields true) or `done()` says the work is done (yields false).

        The lease is released at the end of the block, whichever way it ends.
        """
        claim = self._wait(done)
        try:
            yield Held(claim)
        finally:
            if claim:
                claim.release()

    def highest(self) -> int:
        """The number that counts; 0 if nobody has ever held the lease."""
        with suppress(FileNotFoundError):
            return max((int(name) for name in os.listdir(self.path) if name.isdecimal()), default=0)
        return 0

    def _wait(self, done: Callable[[], bool]) -> _Claim | None:
        """A claim once there is one to be had; None as soon as the work is done."""
        watch = _Watch(self)
        while not done():
            number = self.highest()
            claim = self._claim(number + 1) if watch.may_claim(number, self._read(number)) else None
            if claim and not done():
                return claim
            if claim:
                claim.release()
                return None
            time.sleep(self.pause)
        return None

    def _claim(self, number: int) -> _Claim | None:
        """Create file `number`; None if another process did, or higher numbers or the whole folder went meanwhile."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._file(number), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except (FileExistsError, FileNotFoundError):
            return None
        if self.highest() != number:
            os.close(descriptor)
            self._file(number).unlink(missing_ok=True)
            return None
        claim = _Claim(self, number, descriptor)
        with suppress(FileNotFoundError):  # the folder is gone: then the work is done
            for name in os.listdir(self.path):
                if name.isdecimal() and int(name) < number:
                    (self.path / name).unlink(missing_ok=True)
        return claim

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06d}"

    def _read(self, number: int) -> str:
        try:
            return self._file(number).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


class _Watch:
    """One waiter's view of the owner it waits for: how long it has been silent."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._seen: tuple[int, str] | None = None
        self._silence, self._last, self._told = 0.0, 0.0, -1

    def may_claim(self, number: int, content: str) -> bool:
        """Whether the lease is free: never held, released, or its owner silent for too long."""
        if number == 0 or _parse(content).get("beat") == RELEASED:
            return True
        if is_gone(_parse(content)):
            _log(f"{self._lease.path}: taking over from {_name(content)}, which is gone")
            return True
        now = time.monotonic()
        # We may have been suspended ourselves, together with the owner: what we slept through is no silence of its.
        passed = min(now - self._last, 2 * self._lease.pause)
        self._silence = self._silence + passed if (number, content) == self._seen else 0.0
        self._seen, self._last = (number, content), now
        if self._silence >= self._lease.seconds:
            _log(f"{self._lease.path}: taking over from {_name(content)}, silent for {self._lease.seconds:g} s")
            return True
        if number != self._told:
            _log(f"{self._lease.path}: waits for {_name(content)}")
        self._told = number
        return False


def owner(path: Path) -> dict[str, Any] | None:
    """Who holds the lease at `path` (host, pid, job, since), dead or alive; None if nobody does."""
    lease = Lease(path, 1.0)
    fields = _parse(lease._read(lease.highest()))
    return fields if fields and fields.pop("beat") != RELEASED else None


def _parse(content: str) -> dict[str, Any]:
    """The fields of a lease file; none while it is being written, or of one that no owner has written so."""
    try:
        fields: dict[str, Any] = {**json.loads(content)}
    except (ValueError, TypeError, RecursionError):
        return {}
    is_whole = all(isinstance(fields.get(name), kind) for name, kind in FIELDS.items()) and 0 < fields["pid"] < LARGEST_PID
    return {**fields, "beat": fields["beat"].strip()} if is_whole else {}


def is_gone(fields: dict[str, Any]) -> bool:
    """Whether the owner ran where we do and is no more: then there is no silence to wait for."""
    space = _process_space()
    if not space or fields.get("space") != space:
        return False
    try:
        os.kill(fields["pid"], 0)
    except OSError as error:  # PermissionError: it lives, as another user
        return isinstance(error, ProcessLookupError)
    return False


def _process_space() -> str:
    """Identity of the numbering of processes: this boot of this machine, and this container. Empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _describe_self() -> dict[str, str | int]:
    me: dict[str, str | int] = {"host": socket.gethostname(), "pid": os.getpid(), "space": _process_space()}
    return me | {"job": job_id() or "", "since": now(), "id": uuid.uuid4().hex}


def _name(content: str) -> str:
    fields = _parse(content)
    if not fields:
        return "a process that has not yet written its name"
    job = f", Slurm job {fields['job']}" if fields["job"] else ""
    return f"process {fields['pid']} on {fields['host']}{job} (since {fields['since']})"


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
