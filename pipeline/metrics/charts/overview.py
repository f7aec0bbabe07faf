"""Charts of data before anything is trained on them: how targets are spread, how many images there are of what, where and when.
Loads no torch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.truth import SPLITS
from pipeline.metrics.charts.chart import Chart, sampled
from pipeline.metrics.charts.drawing import INK, QUIET, SERIES, draw_boxes, draw_heat, labelled, plain_ticks, shortened
from pipeline.metrics.summaries import in_order

if TYPE_CHECKING:
    import pandas as pd

MOST_BARS = 25
MOST_BOXES = 14
MOST_CELLS = 40
"""Rows or columns of a heat map."""
BINS = 30
COLOURS = dict(zip(SPLITS, (*SERIES[:3], QUIET), strict=True))
SAID = 8
"""Names that a sentence gives."""


# ---------------------------------------------------------------- numbers
def spread(table: pd.DataFrame, target: str, of: str) -> Chart:
    """How a target's values are spread in each split; a row for each of what there are (`of`: groups, images)."""
    values = table[target]
    said = (
        f"{target} of {len(table):,} {of} by split: from {values.min():.3g} to {values.max():.3g}, mean {values.mean():.3g}, "
        f"median {values.median():.3g}."
    )
    draw = partial(_spread, target=target, of=of)
    return Chart(f"spread-{target}", f"{target}: how it is spread", said, table[["split", target]], draw, (5.0, 2.8))


def _spread(axes: Any, table: pd.DataFrame, target: str, of: str) -> None:
    splits = in_order(table["split"])
    values = [table.loc[table["split"] == name, target].to_numpy("float64") for name in splits]
    axes.hist(values, bins=BINS, stacked=True, color=[COLOURS[name] for name in splits], label=splits)
    _count_whole(axes.yaxis)
    axes.set(xlabel=target, ylabel=of)
    _name_series(axes)


def boxes(table: pd.DataFrame, target: str, column: str, of: str) -> Chart:
    """A target in each domain, species, season: median, quartiles and range."""
    common = table[column].value_counts()
    shown = table.loc[table[column].isin(common.index[:MOST_BOXES]), [column, target]]
    more = f" The {MOST_BOXES} most common of {len(common)}." if len(common) > MOST_BOXES else ""
    medians = shown.groupby(column, observed=True)[target].median().sort_values()
    said = (
        f"{target} of {of} by {column}: median, quartiles and range; medians from {medians.iloc[0]:.3g} ({medians.index[0]}) to "
        f"{medians.iloc[-1]:.3g} ({medians.index[-1]}).{more}"
    )
    draw = partial(_boxes, target=target, column=column)
    height = 1.1 + 0.26 * min(len(common), MOST_BOXES)
    return Chart(f"{target}-by-{column}", f"{target} by {column}", said, shown, draw, (5.0, height))


def _boxes(axes: Any, table: pd.DataFrame, target: str, column: str) -> None:
    draw_boxes(axes, table[column], table[target], in_order(table[column]))
    axes.set(xlabel=target)


def together(table: pd.DataFrame, targets: list[str]) -> Chart:
    """How targets go together: Pearson's correlations."""
    found = table[targets].corr()
    pairs = [(float(found[a][b]), a, b) for i, a in enumerate(targets) for b in targets[i + 1 :]]
    said = f"Correlations of targets: {', '.join(f'{a} and {b} {value:.2f}' for value, a, b in pairs[:SAID])}."
    side = 1.8 + 0.5 * len(targets)
    return Chart("correlations", "How targets go together", said, found, _together, (side + 0.6, side))


def _together(axes: Any, table: pd.DataFrame) -> None:
    draw_heat(axes, table.to_numpy(), cmap="RdBu_r", vmin=-1.4, vmax=1.4)
    for (row, column), value in np.ndenumerate(table.to_numpy()):
        if np.isfinite(value):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="#0b1a2b")
    _name_cells(axes, table)


def related(table: pd.DataFrame, x: str, y: str, of: str) -> Chart:
    """A target against what was measured beside it."""
    import pandas as pd

    known = table[[x, y]].apply(pd.to_numeric, errors="coerce").astype("float64").dropna()
    shown, more = sampled(known)
    said = f"{y} by {x}, a point for each of {len(known):,} {of}; correlation {known[x].corr(known[y]):.2f}.{more}"
    return Chart(f"{y}-on-{x}", f"{y} by {x}", said, shown, _related, (4.4, 3.2))


def _related(axes: Any, table: pd.DataFrame) -> None:
    x, y = table.columns
    axes.scatter(table[x], table[y], s=9, alpha=0.6, color=SERIES[0], linewidths=0)
    axes.set(xlabel=x, ylabel=y)


# ---------------------------------------------------------------- how many
def counted(table: pd.DataFrame, column: str, by: str = "split") -> Chart:
    """How many images there are of each class, domain, species, site, by split or by class: the most common ones."""
    import pandas as pd

    counts = pd.crosstab(table[column], table[by]).reindex(columns=in_order(table[by]), fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    total = counts.sum(axis=1)
    more = f" The {MOST_BARS} most common are shown." if len(counts) > MOST_BARS else ""
    said = (
        f"Images by {column} ({len(counts):,} in all) and {by}: from {total.iloc[0]:,} ({total.index[0]}) to "
        f"{total.iloc[-1]:,} ({total.index[-1]}).{more}"
    )
    size = (5.0, 1.2 + 0.24 * min(len(counts), MOST_BARS))
    return Chart(f"images-by-{column}-and-{by}", f"Images by {column} and {by}", said, counts[:MOST_BARS], _counted, size)


def _counted(axes: Any, table: pd.DataFrame) -> None:
    left, places = np.zeros(len(table)), range(len(table))
    for color, name in zip(_colours(table), table, strict=True):
        axes.barh(places, table[name], left=left, height=0.75, color=color, label=labelled(shortened([str(name)])[0]))
        left += table[name].to_numpy()
    axes.set_yticks(places, shortened(list(table.index)))
    axes.invert_yaxis()
    _count_whole(axes.xaxis)
    axes.set(xlabel="images")
    _name_series(axes)


def long_tail(table: pd.DataFrame, column: str) -> Chart:
    """Images of each class from the most to the fewest, and those of them that are trained on; both axes are logarithmic."""
    import pandas as pd

    n = table[column].value_counts(sort=False)
    trained = table.loc[table["split"] == "train", column].value_counts(sort=False)
    found = pd.DataFrame({"images": n, "train": trained}).fillna(0).astype("int64")
    found = found.sort_values(["images", "train"], ascending=False, kind="stable").reset_index(drop=True)
    half = int(np.searchsorted(found["images"].cumsum(), found["images"].sum() / 2)) + 1
    once = int((found["images"] == 1).sum())
    said = (
        f"Images of each {column} ({len(found):,} in all), from the most common to the rarest: "
        f"{found['images'].iloc[0]:,} of the first, half of all images are of the first {half:,}, and {once:,} have one. "
        "Dots: images in training."
    )
    return Chart("long-tail", f"Images of each {column}", said, found, partial(_long_tail, column=column), (5.0, 3.2))


def _long_tail(axes: Any, table: pd.DataFrame, column: str) -> None:
    ranks = np.arange(1, len(table) + 1)
    axes.step(ranks, table["images"], where="mid", color=SERIES[0], label="all images")
    some = table["train"] > 0
    axes.scatter(ranks[some], table.loc[some, "train"], s=8, alpha=0.6, color=SERIES[1], linewidths=0, label="in training")
    axes.set(xscale="log", yscale="log", xlabel=f"{column}, by rank", ylabel="images")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.legend()


def per_group(sizes: pd.Series) -> Chart:
    """Images of each group."""
    table = sizes.value_counts().sort_index().rename_axis("images").rename("groups").reset_index()
    said = (
        f"Images of each of {len(sizes):,} groups: from {sizes.min()} to {sizes.max()}, median {sizes.median():g}; "
        f"{(sizes == 1).sum():,} have one."
    )
    return Chart("per-group", "Images of each group", said, table, _per_group, (5.0, 2.6))


def _per_group(axes: Any, table: pd.DataFrame) -> None:
    low, high = table["images"].min(), table["images"].max()
    bins = np.arange(low - 0.5, high + 1) if high - low < BINS else BINS
    axes.hist(table["images"], weights=table["groups"], bins=bins, color=SERIES[0], rwidth=0.9)
    _count_whole(axes.yaxis)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="images of a group", ylabel="groups")


# ---------------------------------------------------------------- where and when
def crossed(table: pd.DataFrame, rows: str, columns: str, of: str) -> Chart:
    """How many there are of each pair, such as events of each site and year: a heat map."""
    import pandas as pd

    counts = pd.crosstab(table[rows], table[columns]).reindex(index=in_order(table[rows]), columns=in_order(table[columns]))
    more = f" The first {MOST_CELLS}." if max(counts.shape) > MOST_CELLS else ""
    counts = counts.loc[counts.index[:MOST_CELLS], counts.columns[:MOST_CELLS]]
    empty = int((counts.to_numpy() == 0).sum())
    said = f"{of.capitalize()} by {rows} (rows) and {columns} (columns); {empty} of {counts.size} pairs have none.{more}"
    size = (2.0 + 0.42 * counts.shape[1], 1.2 + 0.24 * counts.shape[0])
    return Chart(f"{of}-by-{rows}-and-{columns}", f"{of.capitalize()} by {rows} and {columns}", said, counts, _crossed, size)


def _crossed(axes: Any, table: pd.DataFrame) -> None:
    counts = table.to_numpy("float64")
    draw_heat(axes, np.where(counts > 0, counts, np.nan), cmap="Blues", vmin=0, vmax=1.6 * max(counts.max(), 1))
    for (row, column), n in np.ndenumerate(counts):
        if n:
            axes.text(column, row, f"{n:.0f}", ha="center", va="center", fontsize=7, color="#0b1a2b")
    _name_cells(axes, table)
    axes.set(xlabel=table.columns.name, ylabel=table.index.name)


def over_time(table: pd.DataFrame) -> Chart:
    """When images were taken: by month, or over many years by year."""
    import pandas as pd

    days = table.dropna(subset=["date"])
    form = 7 if days["date"].str[:4].nunique() <= 4 else 4
    when = days["date"].str[:form]
    counts = pd.crosstab(when, days["split"]).reindex(columns=in_order(days["split"]))
    counts.index.name = "month" if form == 7 else "year"
    said = f"Images by {counts.index.name} and split, from {days['date'].min()} to {days['date'].max()}."
    return Chart("over-time", "When images were taken", said, counts, _over_time, (5.0, 2.8))


def _over_time(axes: Any, table: pd.DataFrame) -> None:
    bottom, places = np.zeros(len(table)), np.arange(len(table))
    for color, name in zip(_colours(table), table, strict=True):
        axes.bar(places, table[name], bottom=bottom, width=0.85, color=color, label=labelled(name))
        bottom += table[name].to_numpy()
    step = max(1, len(table) // 12)
    axes.set_xticks(places[::step], table.index[::step], rotation=45, ha="right", rotation_mode="anchor")
    _count_whole(axes.yaxis)
    axes.set(ylabel="images")
    _name_series(axes)


def mapped(table: pd.DataFrame, value: str, of: str) -> Chart:
    """Where images come from, by longitude and latitude, coloured by a number or by names."""
    known = table[["longitude", "latitude", value]].dropna()
    shown, more = sampled(known)
    west, east = known["longitude"].min(), known["longitude"].max()
    south, north = known["latitude"].min(), known["latitude"].max()
    said = (
        f"{len(known):,} {of} by longitude ({west:.4g} to {east:.4g}) and latitude ({south:.4g} to {north:.4g}), "
        f"coloured by {value}.{more}"
    )
    return Chart(f"map-{value}", f"Map of {of}: {value}", said, shown, _mapped, (5.0, 3.6))


def _mapped(axes: Any, table: pd.DataFrame) -> None:
    value = table.columns[2]
    x, y = table["longitude"], table["latitude"]
    if table[value].dtype.kind == "f":
        drawn = axes.scatter(x, y, c=table[value], cmap="BrBG", s=14, linewidths=0.3, edgecolors=QUIET)
        axes.figure.colorbar(drawn, label=value)
    else:
        for color, name in zip(SERIES, table[value].value_counts().index, strict=False):
            mine = table[value] == name
            axes.scatter(x[mine], y[mine], s=10, alpha=0.7, color=color, label=labelled(name), linewidths=0)
        axes.legend()
    axes.set(xlabel="longitude", ylabel="latitude", aspect=1 / max(np.cos(np.radians(y.mean())), 0.2))


# ---------------------------------------------------------------- images
def sizes(images: pd.DataFrame) -> Chart:
    """Width and height of images, as stored; the area of a circle is their number."""
    table = images.groupby(["width", "height"]).size().rename("images").reset_index()
    shown, more = sampled(table.sort_values("images"))
    said = (
        f"{len(images):,} images in {len(table):,} sizes, from {images['width'].min()} to {images['width'].max()} pixels wide "
        f"and from {images['height'].min()} to {images['height'].max()} high; a larger circle is more images.{more}"
    )
    return Chart("sizes", "Sizes of images", said, shown, _sizes, (4.4, 3.4))


def _sizes(axes: Any, table: pd.DataFrame) -> None:
    area = 12 + 380 * table["images"] / table["images"].sum()
    axes.scatter(table["width"], table["height"], s=area, alpha=0.5, color=SERIES[0], edgecolors=INK, linewidths=0.5)
    axes.margins(0.15)
    axes.set(xlabel="width, pixels", ylabel="height, pixels")


def _count_whole(axis: Any) -> None:
    """Whole numbers alone stand on an axis of counts."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _name_series(axes: Any) -> None:
    """Above the bars, which may be as long as each other."""
    axes.figure.legend(loc="outside upper left", ncols=4)


def _colours(table: pd.DataFrame) -> list[str]:
    """Of columns: splits have theirs, other names one after another."""
    return [COLOURS.get(str(name)) or SERIES[i] if i < len(SERIES) else QUIET for i, name in enumerate(table)]


def _name_cells(axes: Any, table: pd.DataFrame) -> None:
    rotation = 45 if max((len(str(name)) for name in table.columns), default=0) > 4 else 0
    how = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    axes.set_xticks(range(table.shape[1]), shortened(list(table.columns)), **how)
    axes.set_yticks(range(table.shape[0]), shortened(list(table.index)))
