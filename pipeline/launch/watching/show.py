"""What `carabid status` and `carabid logs` show. Loads no torch."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.disk.layout import ExperimentDir
from pipeline.errors import UserError
from pipeline.launch.watching.history import History, View
from pipeline.reporting.state import State, planned_trials, trial_state
from pipeline.reporting.terminal import cut, short_names
from pipeline.streams import is_watched

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable

STAGES = ("evaluate", "train", "extract")
"""In the order in which their logs are looked for."""
ORDER: tuple[State, ...] = ("failed", "running", "queued", "interrupted", "trained", "missing", "stale", "done")
FOLLOW_SECONDS = 0.5


# ---------------------------------------------------------------- status
def views(experiment: ExperimentDir) -> list[View]:
    """Every trial that was ever planned."""
    history = History(experiment)
    return [history.view(name, trial_state(experiment.trial(name))) for name in planned_trials(experiment)]


def status_lines(experiments: Sequence[ExperimentDir]) -> Iterator[str]:
    """A line per trial; below them how many there are of each state, and what to do about each way of failing."""
    return _lines((experiment, views(experiment)) for experiment in experiments)


def _lines(found: Iterable[tuple[ExperimentDir, Sequence[View]]]) -> Iterator[str]:
    for experiment, them in found:
        for view in them:
            reason = f"  {view.state.reason}" if view.state.reason else ""
            yield f"{view.state.state:<12}{experiment.path.name}/{view.name}{reason}"
        yield from summary(experiment, them)


def summary(experiment: ExperimentDir, found: Sequence[View]) -> Iterator[str]:
    """`beetles-lora: 2 failed, 7 done`, and a line for each kind of failure with its remedy."""
    if not found:
        return
    counts = Counter(view.state.state for view in found)
    yield f"{experiment.path.name}: " + ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
    remedies = {view.failure.kind: view.failure.remedy for view in found if view.failure}
    for kind, remedy in sorted(remedies.items()):
        yield f"  {kind}: {remedy.replace('EXPERIMENT', experiment.path.name)}"


def watch(experiments: Sequence[ExperimentDir], seconds: float) -> None:
    """The status as a table that is drawn again every so many seconds, until Ctrl-C or until nothing waits or runs.

    Into a file or a pipe, where nothing can be drawn over, the lines of `carabid status` again and again.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console()
    drawn = Live(console=console, auto_refresh=False, vertical_overflow="ellipsis") if is_watched(sys.stdout) else None
    with drawn or nullcontext():
        while True:
            found = [(experiment, views(experiment)) for experiment in experiments]
            if drawn:
                drawn.update(_table(found, console.width), refresh=True)
            else:
                print(time.strftime("%H:%M:%S"), *_lines(found), sep="\n", flush=True)
            if not any(view.state.state in ("queued", "running") for _, them in found for view in them):
                return
            time.sleep(seconds)


def _table(found: Sequence[tuple[ExperimentDir, Sequence[View]]], width: int) -> ConsoleRenderable:
    """A row for each trial, as wide as that at most: of names what tells them apart, of several experiments the name of each."""
    from rich.console import Group
    from rich.table import Column, Table
    from rich.text import Text

    pairs = [(experiment, view) for experiment, them in found for view in them]
    names = short_names([(experiment.path.name, view.name) for experiment, view in pairs])
    rows = sorted(zip(pairs, names, strict=True), key=lambda row: ORDER.index(row[0][1].state.state))
    n = len({experiment.path.name for experiment, _ in pairs}) > 1
    most = (width - 24 - 3 * n) // (2 + n)  # of what borders and the state leave, the reason has the rest
    several = [Column("experiment", overflow="fold", max_width=most)] if n else []
    table = Table(Column("state", no_wrap=True), *several, Column("trial", no_wrap=True), Column("why", overflow="fold"))
    for (experiment, view), name in rows:
        before = [experiment.path.name] * n
        table.add_row(*map(Text, (view.state.state, *before, cut(name, most), view.state.reason)))
    below = [Text(line) for experiment, them in found for line in summary(experiment, them)]
    return Group(*below, table, Text(time.strftime("%H:%M:%S")))


# ---------------------------------------------------------------- logs
def find_log(experiment: ExperimentDir, trial: str, stage: str | None) -> tuple[str, str, Path]:
    """A trial's name, stage and log: of `stage`, else of the last stage that has one; `trial` may be a part of the name.

    Raises UserError naming the trials, or the stages, that there are.
    """
    if stage and stage not in STAGES:
        raise UserError(f"--stage {stage}: choose {', '.join(reversed(STAGES))}")
    history, name = History(experiment), find_trial(experiment, trial)
    failed, failure = ("", None) if stage else history.failure(name)
    stages = [stage] if stage else [failed] if failure and history.log(name, failed) else STAGES
    found = [(s, path) for s in stages if (path := history.log(name, s))]
    if not found:
        raise UserError(
            f"{experiment.path.name}/{name}: no log{f' of {stage}' if stage else ''} in {experiment.logs}. (A job that was "
            "typed by hand writes its log where sbatch was typed.)"
        )
    return name, *max(found, key=lambda pair: pair[1].stat().st_mtime)


def find_trial(experiment: ExperimentDir, part: str) -> str:
    """The trial of that name, or the one whose name holds it. Raises UserError if there is none, or several."""
    names = planned_trials(experiment)
    found = [name for name in names if name == part] or [name for name in names if part in name]
    if len(found) != 1:
        what = f"{len(found)} trials are called so" if found else "there is no such trial"
        raise UserError(f"{experiment.path.name}: {part}: {what}; name one of: {', '.join((found or names)[:8])}")
    return found[0]


def print_log(path: Path, lines: int, follow: bool) -> None:
    """The last lines of a log; with `follow`, what comes after them too, until Ctrl-C."""
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read().splitlines(keepends=True)
        sys.stdout.writelines(text[-lines:])
        while follow:
            sys.stdout.write(file.read())
            sys.stdout.flush()
            time.sleep(FOLLOW_SECONDS)
