"""What a grid taught: a figure along each of its axes, over pairs of them, and over all at once. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.identity import flatten
from pipeline.disk.layout import ExperimentDir
from pipeline.experiments.reading import saved_science
from pipeline.metrics.charts.chart import Chart, sampled, slug
from pipeline.metrics.charts.drawing import QUIET, SERIES, draw_heat, plain_ticks, shortened
from pipeline.reporting.page.section import Section
from pipeline.reporting.results import REPLICATES, Row, by_look

if TYPE_CHECKING:
    import pandas as pd

MOST_AXES = 6
"""Of a grid that are shown: those with the most values."""
MOST_VALUES = 40
FEW = 8
"""Numbers that an axis names one by one."""
WIDE = 20
"""By which factor numbers must be apart to be shown by their logarithms."""


def grid(experiment: ExperimentDir, rows: Sequence[Row]) -> Section:
    """The charts of one experiment; nothing where its trials differ in seeds and folds alone."""
    done = [row for row in rows if row.state == "done" and not row.members]
    (look, *_) = by_look(done) or [None]
    if look is None:
        return Section("", "")
    table, axes = _table(experiment, done, look.sort)
    title = dict(look.columns)[look.sort]
    charts = [_along(table, axis, title) for axis in axes]
    charts += [_over(table, pair, title, done[0].rank(look.sort, 1) > 0) for pair in _pairs(table, axes)[:3]]
    if len(axes) > 2:
        charts.append(_parallel(table, axes, title))
    name = slug(experiment.path.name)
    words = [f"{title} of each of {len(table)} trials, by what they differ in beside seed and fold."] if charts else []
    return Section(f"grid-{name}", f"What the grid taught: {experiment.path.name}", words, charts=charts)


def _table(experiment: ExperimentDir, rows: Sequence[Row], figure: str) -> tuple[pd.DataFrame, list[str]]:
    """A row for each trial: what varies, and the figure (`value`); and the axes, those with the most values first."""
    import pandas as pd

    science = [saved_science(experiment.trial(row.trial).config) for row in rows]
    flat = pd.DataFrame([_shown(flatten(each)) if each else {} for each in science], dtype=object)
    values = pd.Series([row.figures.get(figure) for row in rows], dtype="float64")
    flat = flat.assign(value=values).dropna(subset=["value"])
    n = {str(name): flat[name].nunique() for name in flat if name not in ("value", *REPLICATES)}
    axes = sorted((name for name in n if 1 < n[name] <= MOST_VALUES), key=lambda name: -n[name])
    return flat[[*axes[:MOST_AXES], "value"]].reset_index(drop=True), axes[:MOST_AXES]


def _pairs(table: pd.DataFrame, axes: Sequence[str]) -> list[tuple[str, str]]:
    """Two axes that vary together: not those of two kinds (the penalty of one, the neighbours of another) that no trial has both
    of."""
    return [pair for pair in combinations(axes, 2) if (table[list(pair)].dropna().nunique() > 1).all()]


def _shown(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers as they are, all else as text."""
    return {key: value if _is_number(value) else "–" if value is None else str(value) for key, value in flat.items()}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _called(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _name(*axes: str) -> str:
    return "grid-" + "-by-".join(axes)


# ---------------------------------------------------------------- one axis
def _along(table: pd.DataFrame, axis: str, title: str) -> Chart:
    means = table.groupby(axis)["value"].mean()
    told = ", ".join(f"{_called(value)}: {mean:.3f}" for value, mean in list(means.items())[:8])
    said = f"{title} by {axis}: a point for each trial, the line through their means ({told})."
    return Chart(
        _name(axis), f"{title} by {axis}", said, sampled(table[[axis, "value"]])[0], partial(_draw_along, title=title), (4.4, 3.2)
    )


def _draw_along(axes: Any, table: pd.DataFrame, title: str) -> None:
    name = table.columns[0]
    places, ticks = _places(table[name])
    axes.scatter(places, table["value"], s=14, color=SERIES[0], alpha=0.6, linewidths=0)
    means = table["value"].groupby(places).mean()
    axes.plot(means.index, means, color=SERIES[1], marker="_", markersize=12, linestyle="" if ticks else "-")
    _set_ticks(axes, ticks)
    if not ticks and (places > 0).all() and places.max() > WIDE * places.min():
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    if not ticks and len(means) <= FEW:
        axes.set_xticks(means.index, [f"{value:g}" for value in means.index])
        axes.minorticks_off()
    axes.set(xlabel=name, ylabel=title)


def _places(values: pd.Series) -> tuple[pd.Series, list[str]]:
    """Where values stand on an axis; texts one after another, with what stands there."""
    if values.map(_is_number).all():
        return values.astype("float64"), []
    names = sorted(map(str, values.unique()))
    return values.map(lambda value: float(names.index(str(value)))), names


def _set_ticks(axes: Any, names: Sequence[str]) -> None:
    if names:
        axes.set_xticks(range(len(names)), shortened(names, 22))
        axes.set_xlim(-0.5, len(names) - 0.5)
        if max(map(len, names)) * len(names) > 40:
            axes.tick_params("x", rotation=35)


# ---------------------------------------------------------------- two, and all
def _over(table: pd.DataFrame, pair: tuple[str, str], title: str, lower: bool) -> Chart:
    """A heat map of means; `lower`: less is better."""
    means = table.pivot_table(index=pair[0], columns=pair[1], values="value", aggfunc="mean")
    place = np.nanargmin(means) if lower else np.nanargmax(means)
    row, column = map(int, np.unravel_index(place, means.shape))
    best = f"{_called(means.index[row])} and {_called(means.columns[column])}"
    said = f"Mean {title} by {pair[0]} (rows) and {pair[1]} (columns); the best at {best}."
    size = (2.2 + 0.55 * means.shape[1], 1.3 + 0.36 * means.shape[0])
    return Chart(_name(*pair), f"{title} by {pair[0]} and {pair[1]}", said, means, partial(_draw_over, lower=lower), size)


def _draw_over(axes: Any, means: pd.DataFrame, lower: bool) -> None:
    draw_heat(axes, means.to_numpy("float64"), cmap="Blues_r" if lower else "Blues", alpha=0.8)
    for (row, column), value in np.ndenumerate(means.to_numpy("float64")):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=7, color=_on(value, means, lower))
    axes.set_xticks(range(means.shape[1]), [_called(each) for each in means.columns], rotation=35)
    axes.set_yticks(range(means.shape[0]), [_called(each) for each in means.index])
    axes.set(xlabel=means.columns.name, ylabel=means.index.name)


def _on(value: float, means: pd.DataFrame, lower: bool) -> str:
    """The colour of a number on its cell: white on the dark ones, which are the best."""
    values = means.to_numpy("float64")
    share = (value - np.nanmin(values)) / max(np.nanmax(values) - np.nanmin(values), 1e-12)
    return "white" if (1 - share if lower else share) > 0.55 else "#0b1a2b"


def _parallel(table: pd.DataFrame, axes: Sequence[str], title: str) -> Chart:
    shown, more = sampled(table, 300)
    said = f"Each trial as a line through its values of {', '.join(axes)}, to its {title}; the best tenth stands out.{more}"
    return Chart(
        "grid-parallel", "All axes at once", said, shown, partial(_draw_parallel, title=title), (1.6 + 1.3 * len(axes), 3.4)
    )


def _draw_parallel(axes: Any, table: pd.DataFrame, title: str) -> None:
    import pandas as pd

    places = pd.DataFrame({name: _places(table[name])[0] for name in table})
    spans = places.max() - places.min()
    heights = (places - places.min()) / spans.where(spans > 0, 1)
    best = table["value"] >= table["value"].quantile(0.9)
    for is_best in (False, True):
        for _, line in heights[best == is_best].iterrows():
            axes.plot(range(len(line)), line, color=SERIES[1] if is_best else QUIET, alpha=0.9 if is_best else 0.25, linewidth=1)
    axes.set_xticks(range(len(heights.columns)), [title if name == "value" else name for name in heights], rotation=20)
    axes.set_yticks([0, 1], ["lowest", "highest"])
