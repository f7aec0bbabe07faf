"""How long work shows itself: a bar while a person watches (stderr is a terminal), else a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from pipeline.streams import is_watched

SECONDS_BETWEEN_LINES = 30.0


def log(text: str) -> None:
    """One line to whoever watches or reads the log."""
    print(text, file=sys.stderr, flush=True)


def progress(what: str, total: int, unit: str = "images") -> AbstractContextManager[Callable[[int], None]]:
    """Show the progress of `total` units; the block calls what it is given with the number of units just done."""
    return (_bar if is_watched(sys.stderr) else _lines)(what, total, unit)


@contextmanager
def epochs(total: int, done: int) -> Iterator[Callable[[float, str], None] | None]:
    """Show a training's `total` epochs, `done` of them, while a person watches: the block calls what it is given with the number
    that is done (and the share of the one that runs) and what there is to say of them. None where nobody watches."""
    if not is_watched(sys.stderr):
        yield None
        return
    with _bars(TextColumn("{task.fields[said]}", table_column=_one_line())) as bars:
        bar = bars.add_task("train", total=total, completed=done, said="")
        yield lambda done, said: bars.update(bar, completed=done, said=said)


@contextmanager
def _bar(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    with _bars(_Rate(unit)) as bars:
        bar = bars.add_task(what, total=total)
        yield lambda n: bars.advance(bar, n)


def _bars(*more: ProgressColumn) -> Progress:
    """As wide as the terminal. What is printed meanwhile stands above them; what goes to a file goes there."""
    columns = (TextColumn("{task.description}", table_column=_one_line()), BarColumn(None), MofNCompleteColumn())
    console = Console(stderr=True, highlight=False)
    return Progress(*columns, *more, TimeRemainingColumn(), console=console, redirect_stdout=sys.stdout.isatty(), expand=True)


def _one_line() -> Column:
    """A column of text that is cut where there is no room."""
    return Column(no_wrap=True, overflow="ellipsis")


class _Rate(ProgressColumn):
    """Units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__(Column(no_wrap=True))
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(_rate(task.finished_speed or task.speed or task.completed / (task.elapsed or 1), self.unit))


def _rate(speed: float, unit: str) -> str:
    """Two digits of what is slow."""
    return f"{speed:.0f} {unit}/s" if speed >= 10 else f"{speed:.2g} {unit}/s"


@contextmanager
def _lines(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    done, began = 0, monotonic()
    told = began

    def advance(n: int) -> None:
        nonlocal done, told
        done += n
        now = monotonic()
        if now - told >= SECONDS_BETWEEN_LINES:
            told, speed = now, done / (now - began)
            left = f", {timedelta(seconds=round((total - done) / speed))} left" if 0 < done < total else ""
            log(f"{what}: {done} of {total} {unit}, {_rate(speed, unit)}{left}")

    yield advance
