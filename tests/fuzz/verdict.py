"""What a failure is: an exception that is not ours, a message that is too long or names no place, a hang."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from unittest import mock

from pipeline.errors import UserError, WorkError

LONGEST = 2000
"""Characters of a message."""
SECONDS = 10
"""What takes longer hangs, computing or waiting; but for the time in which other work on the machine had the CPU."""
STATUSES = (0, 1, 2)
"""How a command may end."""


@dataclass(frozen=True)
class Case:
    """One input and what is done with it."""

    name: str
    """`configs 17`: how it is asked for again."""
    act: Callable[[], object]
    places: Sequence[str] = ()
    """File names, keys and columns, one of which a refusal must name."""
    is_one: bool = True
    """Whether it may take no longer than one command; one of several looks at the time of each itself."""


@dataclass(frozen=True)
class Failure:
    """What is wrong with how a case ended."""

    case: str
    what: str


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


class Hang(BaseException):
    """A case takes too long. (No Exception: nothing that catches these may swallow it.)"""


def judge(case: Case, seconds: float = SECONDS) -> Failure | None:
    """None if the case ended well, or was refused in words for people."""
    try:
        with at_most(seconds) if case.is_one else contextlib.nullcontext():
            case.act()
    except (UserError, WorkError) as error:
        return _of_message(case, str(error))
    except Hang:
        return Failure(case.name, f"no answer within {seconds} s")
    except (Exception, SystemExit):
        return Failure(case.name, traceback.format_exc(limit=-6))
    return None


def _of_message(case: Case, text: str) -> Failure | None:
    if len(text) > LONGEST:
        return Failure(case.name, f"a message of {len(text)} characters: {text[:300]} …")
    if not text.strip() or (case.places and not any(place in text for place in case.places)):
        return Failure(case.name, f"a message that names none of {', '.join(case.places)[:200]}: {text[:600]}")
    return None


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises Hang in whatever runs longer."""

    began, queued = time.monotonic(), _queued()

    def stop(number: int, frame: FrameType | None) -> None:
        left = seconds - (time.monotonic() - began - (_queued() - queued))
        if left <= 0.01:
            raise Hang
        signal.setitimer(signal.ITIMER_REAL, left)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _queued() -> float:
    """Seconds in which this process could have run and another one did."""
    return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9


def command(*arguments: str) -> Ended:
    """A command of the command line, in this process."""
    from pipeline.cli import main

    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with (
        mock.patch.object(sys, "argv", ["carabid", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as ended:
            status = ended.code
    return Ended(status if isinstance(status, int) else 0 if status is None else 1, out.getvalue(), err.getvalue())


def refused_or_done(ended: Ended) -> None:
    """Raises what the command said where it did not end well, AssertionError where it ended in a way of no command."""
    assert ended.status in STATUSES, f"exit status {ended.status}: {ended.err}"
    assert "Traceback" not in ended.err and len(ended.err) <= LONGEST, ended.err
    if ended.status:
        raise WorkError(ended.err)
