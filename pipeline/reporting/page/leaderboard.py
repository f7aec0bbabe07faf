"""Which trials are best: mean ± sd over seeds and folds, and how far methods are apart on the same images. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pipeline.disk.layout import ExperimentDir
from pipeline.disk.reading import Damaged, reading
from pipeline.disk.writing import read_json
from pipeline.reporting.page.section import Cell, Section, Table, number, text
from pipeline.reporting.results import MADE_AGAIN, Line, Look, Row, by_look, summarize
from pipeline.reporting.terminal import short_names


def leaderboard(experiments: Sequence[ExperimentDir], rows: Sequence[Row]) -> Section:
    """A table for each set of headline figures, the best first, and the comparison of methods that collection has made."""
    tables = [table for look, some in by_look(rows).items() if (table := _table(look, summarize(some, look.sort))).rows]
    compared = list(_comparisons(experiments))
    words = [
        "Mean ± sd over repetitions, n of them: trials that differ in seed and fold alone. The order is that of what was tested: "
        "a method is to be chosen on validation."
    ]
    if any(row.optimistic for row in rows):
        words.append("Figures marked optimistic are of the split that trials were chosen on.")
    return Section("leaderboard", "Leaderboard", words if tables else ["No trial has results yet."], [*tables, *compared])


def _table(look: Look, lines: Sequence[Line]) -> Table:
    done = [line for line in lines if line.state == "done"]
    names = short_names([(line.experiment, line.name) for line in done])
    rows = [_row(look, line, name) for line, name in zip(done, names, strict=True)]
    return Table.of_first(f"Best by {look.columns[0][1]} first", look.header, rows, "results.csv").without_empty()


def _row(look: Look, line: Line, name: str) -> list[Cell]:
    split = line.split + (" (optimistic)" if line.optimistic else "")
    return [
        text(line.experiment),
        text(name),
        number(line.n, "d"),
        text(split),
        *(_figure(line, each) for each, _ in look.columns),
    ]


def _figure(line: Line, name: str) -> Cell:
    sd = line.sds.get(name)
    return number(line.means.get(name), more=f" ± {sd:.3f}" if sd is not None else "")


def _comparisons(experiments: Sequence[ExperimentDir]) -> Iterator[Table]:
    for experiment in experiments:
        with suppress(OSError, Damaged), reading(experiment.comparison_json, MADE_AGAIN):
            found = read_json(experiment.comparison_json)
            caption = (
                f"Methods of {experiment.path.name} on the same {found['of']}: {found['figure']} on {found['split']}, chosen by "
                f"{found['metric']} on validation; 95 % intervals of {found['draws']} draws of groups"
            )
            header = ("method", "validation", "test", "folds", "chosen − this", "95 % interval")
            yield Table(caption, header, [_compared(line) for line in (found["chosen"], *found["lines"])])


def _compared(line: dict[str, Any]) -> list[Cell]:
    sd = f" ± {line['sd']:.3f}" if line["sd"] is not None else ""
    interval = line["interval"]
    between = Cell(f"{interval[0]:+.3f} to {interval[1]:+.3f}", float(interval[0])) if interval else number(None)
    test, apart = number(line["test"], more=sd), number(line["difference"], "+.3f")
    return [text(line["method"]), number(line["validation"]), test, number(len(line["trials"]), "d"), apart, between]
