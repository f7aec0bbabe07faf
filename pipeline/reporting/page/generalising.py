"""What trials keep where training saw the domains or classes, against what they have where it did not. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.metrics.charts.chart import Chart, sampled
from pipeline.metrics.charts.drawing import QUIET, SERIES, labelled
from pipeline.reporting.page.section import Section
from pipeline.reporting.results import Look, Row, by_look

if TYPE_CHECKING:
    import pandas as pd

MARKERS = "o^sD"
"""Of experiments that have the same colour."""
FEWEST = 3
"""Trials that make a picture."""
PARTS = (("in_domain.", "out_of_domain."), ("id.", "ood."))
"""How names of figures begin, of what training saw and of what it did not."""


def generalising(rows: Sequence[Row]) -> Section:
    """Of all trials with results."""
    done = [row for row in rows if row.state == "done"]
    charts = [chart for look, some in by_look(done).items() for chart in _known_against_new(look, some)]
    return Section("generalising", "What was seen in training, and what was not", charts=charts)


def _known_against_new(look: Look, rows: Sequence[Row]) -> Iterator[Chart]:
    """A point for each trial, of the first headline figure that has both."""
    import pandas as pd

    titles = dict(look.columns)
    for known, new in PARTS:
        for name in [each for each in titles if each.startswith(known) and each.replace(known, new, 1) in titles][:1]:
            other = name.replace(known, new, 1)
            values = [
                (row.experiment, row.trial, row.figures.get(name), row.figures.get(other)) for row in rows if not row.members
            ]
            table = pd.DataFrame(values, columns=["experiment", "trial", "known", "new"]).dropna()
            if len(table) >= FEWEST:
                yield _chart(name.replace(known, "", 1), table, titles[name], titles[other], rows[0].rank(name, 1) > 0)


def _chart(figure: str, table: pd.DataFrame, known: str, new: str, lower: bool) -> Chart:
    """`lower`: less is better."""
    best = frontier(table, lower)
    shown, more = sampled(table)
    said = (
        f"{new} against {known}, a point for each trial; the line joins the {len(best)} that no other beats in both.{more} "
        "Trials that are alike on what training saw may be far apart on what it did not."
    )
    draw = partial(_draw, best=best, known=known, new=new)
    size = (6.4 if shown["experiment"].nunique() > 1 else 4.8, 3.8)
    return Chart(f"{figure}-known-against-new", f"{new} against {known}", said, shown, draw, size)


def frontier(table: pd.DataFrame, lower: bool) -> pd.DataFrame:
    """The rows that no other is better than in one of the two and at least as good in the other, in order."""
    of = table[["known", "new"]] * (-1 if lower else 1)
    in_order = of.sort_values(["known", "new"], ascending=False)
    best = in_order["new"] > in_order["new"].cummax().shift(fill_value=float("-inf"))
    return table.loc[in_order.index[best]].sort_values("known")


def _draw(axes: Any, table: pd.DataFrame, best: pd.DataFrame, known: str, new: str) -> None:
    names = list(dict.fromkeys(table["experiment"]))
    for i, name in enumerate(names):
        of, how = table[table["experiment"] == name], {"color": SERIES[i % len(SERIES)], "marker": MARKERS[i // len(SERIES) % 4]}
        axes.scatter(of["known"], of["new"], s=22, alpha=0.8, label=labelled(name), linewidths=0, **how)
    axes.plot(best["known"], best["new"], color=QUIET, linewidth=1, zorder=0)
    axes.set(xlabel=known, ylabel=new)
    if len(names) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
