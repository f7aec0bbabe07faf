"""How long work shows itself: a bar while a person watches (stderr is a terminal), else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

SECONDS_BETWEEN_LINES = 30.0


def log(text: str) -> None:
    """One line to whoever watches or reads the log."""
    print(text, file=sys.stderr, flush=True)


def progress(what: str, total: int, unit: str = "images") -> AbstractContextManager[Callable[[int], None]]:
    """Show the progress of `total` units; the block calls what it is given with the number of units just done."""
    return (_bar if sys.stderr.isatty() else _lines)(what, total, unit)


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda n: bars.advance(bar, n)


class _Rate(ProgressColumn):
    """Units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.0f} {self.unit}/s")


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    done, began = 0, monotonic()
    told = began

    def advance(n: int) -> None:
        nonlocal done, told
        done += n
        now = monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told = now
            log(f"{what}: {done} of {total} {unit}, {done / (now - began):.0f} {unit}/s")

    yield advance
