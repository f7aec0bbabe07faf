"""The two ways a command ends badly, and kinds of the second; their messages are for people, without a traceback."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

MOST = 50  # names that a message lists
LONGEST = 2000  # characters of a message
SHOWN_OF_WORD = 300
LONG_WORD = re.compile(r"\S{400,}")
REQUEUE_STATUS = 75
"""Exit status (EX_TEMPFAIL) that a job script answers with `scontrol requeue`."""


class _ForPeople(Exception):
    """Its message is read by people, whatever stands in the cell that it is of: long words, and its middle, are cut."""

    def __init__(self, message: str = "") -> None:
        text = LONG_WORD.sub(lambda word: f"{word[0][:SHOWN_OF_WORD]}…", message)
        super().__init__(f"{text[: LONGEST - 400]} … {text[-300:]}" if len(text) > LONGEST else text)


class UserError(_ForPeople):
    """The request, its configuration or its data is wrong: the message says what, where and what to do. Exit status 2."""


class WorkError(_ForPeople):
    """The request was right but the work failed: the message says what to do. Exit status 1."""


class Interrupted(WorkError):
    """A run was told to stop; its checkpoint is written and the same command goes on from it."""


class RunAgain(Interrupted):
    """The walltime is near and a checkpoint is written: the job is to be queued again. Exit status 75."""


class OutOfTime(WorkError):
    """The walltime is over before the work was: begun anew it would be cut off again, and so would what comes after it."""


class TakenOver(WorkError):
    """Another job does this work now: this one leaves it alone, and it has not failed."""


class MissingFeatures(WorkError):
    """The features that a stage reads are not there, or not all of them; why, the extraction knows."""


class NotFetched(WorkError):
    """Data or weights of the Hub are not on this machine; `why` says which. `carabid fetch` brings them."""

    config: Path | None = None
    """The YAML to fetch with, where it is known: a job's message is read far from the command line that began it."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        command = shlex.join(["carabid", "fetch", str(self.config or "CONFIG")])
        return f"{self.why} On a machine with internet (a cluster's login node) run `{command}`, and then this again."


def causes(error: BaseException, hidden: bool = False) -> Iterator[BaseException]:
    """An error and what led to it, as a traceback would show them; with what `from None` has `hidden`, if that is asked for."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or (following.__context__ if hidden or not following.__suppress_context__ else None)


def nearest(name: str, known: Iterable[str], listed: bool = False) -> str:
    """Of the names that there are the one that was meant, else (or `listed` too) the first ones."""
    names = list(known)
    meant = [f"did you mean {near}?" for near in difflib.get_close_matches(name, names, n=1)]
    there = ", ".join(names[:MOST] + ["…"] * (len(names) > MOST)) or "none"
    return " ".join(meant + [f"there are: {there}"] * (listed or not meant))
