"""How training went: losses and the figure that chooses, epoch by epoch, of the best trials. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.disk.layout import ExperimentDir
from pipeline.metrics.charts.chart import Chart
from pipeline.metrics.charts.drawing import SERIES, labelled
from pipeline.reporting.page.section import Section
from pipeline.reporting.results import Row, by_look, sort_rows
from pipeline.reporting.terminal import short_names

if TYPE_CHECKING:
    import pandas as pd

MOST = len(SERIES)
"""Trials that are shown, the best."""


def courses(experiments: Sequence[ExperimentDir], rows: Sequence[Row]) -> Section:
    """Of the best trials that were trained in epochs."""
    folders = {experiment.path.name: experiment for experiment in experiments}
    best = [
        row
        for look, some in by_look(rows).items()
        for row in sort_rows(some, look.sort)
        if row.state == "done" and not row.members
    ]
    read = [(row, lines) for row in best[: 4 * MOST] if len(lines := _lines(folders[row.experiment], row.trial)) > 1][:MOST]
    names = short_names([(row.experiment, row.trial) for row, _ in read])
    charts = list(_charts({name: lines for name, (_, lines) in zip(names, read, strict=True)}))
    which = f"The {len(read)} best trials" if len(read) > 1 else "The best trial"
    words = [f"{which} of those that were trained in epochs."] if charts else []
    return Section("courses", "How training went", words, charts=charts)


def _lines(experiment: ExperimentDir, trial: str) -> list[dict[str, Any]]:
    """Of metrics.jsonl, as far as it can be read."""
    try:
        text = experiment.trial(trial).metrics.read_text(encoding="utf-8", errors="replace")
        return [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError):
        return []


def _charts(of: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Chart]:
    import pandas as pd

    every = {key for lines in of.values() for key in lines[0]}
    chosen_by = sorted(key for key in every if key.startswith("val/") and key != "val/loss" and not key.startswith("val/r2_"))
    for key, title in (
        *((key, f"Validation: {key[4:]}") for key in chosen_by[:1]),
        ("val/loss", "Loss on validation"),
        ("train/loss", "Loss in training"),
    ):
        rows = [
            {"trial": name, "epoch": line["epoch"], "value": line[key]}
            for name, lines in of.items()
            for line in lines
            if line.get(key) is not None
        ]
        if rows:
            said = f"{title} by epoch, a line for each of {len(of)} trials."
            yield Chart(
                f"course-{key.replace('/', '-')}", title, said, pd.DataFrame(rows), partial(_draw, title=title), (5.4, 3.2)
            )


def _draw(axes: Any, table: pd.DataFrame, title: str) -> None:
    for color, (name, line) in zip(SERIES, table.groupby("trial", sort=False), strict=False):
        axes.plot(line["epoch"], line["value"], color=color, label=labelled(name))
    axes.set(xlabel="epoch", ylabel=title)
    axes.legend(fontsize=7)
