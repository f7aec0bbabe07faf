"""Charts of retrieval: how well classes are found, known ones and new, by their training images. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.metrics.charts.chart import Chart, sampled
from pipeline.metrics.charts.drawing import QUIET, SERIES, plain_ticks, shortened

if TYPE_CHECKING:
    import pandas as pd

DIRECTIONS = {"i2t_map": "image→text", "i2i_map": "image→image", "t2i_map": "text→image"}
BLOCKS = {"id": "known species", "ood": "new species", "few": "few images", "medium": "medium many", "many": "many images"}


def retrieval_charts(classes: pd.DataFrame, results: Mapping[str, Any]) -> Iterator[Chart]:
    """`classes` is groups.parquet: a row for each class; `results` are those of results.json."""
    if {"n_train", "i2t_map"} <= set(classes):
        yield by_shots(classes)
    yield by_block(results["figures"])
    if len(ranks := results.get("ranks") or {}) > 1:
        yield by_rank(ranks)


def by_shots(classes: pd.DataFrame) -> Chart:
    """Average precision of each class, by its training images."""
    table, more = sampled(classes[["class", "n_train", "i2t_map"]].dropna())
    said = f"How well images of {len(classes):,} classes find their text (mAP), by the training images of the class.{more}"
    return Chart("by-shots", "Each class by its training images", said, table, _by_shots)


def _by_shots(axes: Any, table: pd.DataFrame) -> None:
    known = table["n_train"] > 0
    for color, name, of in ((SERIES[0], "known", table[known]), (SERIES[1], "new", table[~known])):
        axes.scatter(of["n_train"], of["i2t_map"], s=12, alpha=0.7, color=color, label=name, linewidths=0)
    axes.set_xscale("symlog", linthresh=1)
    plain_ticks(axes.xaxis)
    axes.set(xlabel="training images of the class", ylabel="mAP, image→text", ylim=(-0.02, 1.02))
    axes.legend()


def by_block(figures: Mapping[str, float | None]) -> Chart:
    """The figures of known and new species, and of those with few, medium many and many training images, in each direction."""
    import pandas as pd

    rows = [
        {"of": title, "direction": direction, "mAP": value}
        for block, title in BLOCKS.items()
        for name, direction in DIRECTIONS.items()
        if (value := figures.get(f"{block}.{name}")) is not None
    ]
    table = pd.DataFrame(rows, columns=["of", "direction", "mAP"])
    said = "; ".join(
        f"{of}: " + ", ".join(f"{row.direction} {row.mAP:.3f}" for row in each.itertuples())
        for of, each in table.groupby("of", sort=False)
    )
    return Chart("by-block", "Known and new species, few images and many", f"Mean average precision. {said}.", table, _by_block)


def _by_block(axes: Any, table: pd.DataFrame) -> None:
    names = list(dict.fromkeys(table["of"]))
    for place, (color, direction) in enumerate(zip(SERIES, DIRECTIONS.values(), strict=False)):
        of = table[table["direction"] == direction].set_index("of")["mAP"].reindex(names)
        axes.bar([i + 0.27 * (place - 1) for i in range(len(names))], of, width=0.25, color=color, label=direction)
    axes.axhline(0, color=QUIET, linewidth=1)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="mAP")
    axes.legend()


def by_rank(ranks: Mapping[str, Mapping[str, float]]) -> Chart:
    """How many images are given the right species, genus, family, and what probability these are given on average."""
    import pandas as pd

    rows = [{"rank": name, "accuracy": of.get("accuracy"), "probability": of.get("probability")} for name, of in ranks.items()]
    table = pd.DataFrame(rows)
    said = "; ".join(
        f"{row.rank}: {row.accuracy:.3f} right, {row.probability:.3f} of the probability" for row in table.itertuples()
    )
    return Chart("by-rank", "Right at which rank", f"Images by rank. {said}.", table, _by_rank, (4.8, 3.2))


def _by_rank(axes: Any, table: pd.DataFrame) -> None:
    for place, (color, name) in enumerate(zip(SERIES, ("accuracy", "probability"), strict=False)):
        axes.bar([i + 0.38 * (place - 0.5) for i in range(len(table))], table[name], width=0.36, color=color, label=name)
    axes.set_xticks(range(len(table)), shortened([*map(str, table["rank"])]))
    axes.set(ylabel="share", ylim=(0, 1))
    axes.legend()


def frontier(rows: Sequence[Mapping[str, float | None]]) -> Chart:
    """Between the released model (α 0) and the tuned one (α 1): what is found of species that were trained on, against what is of
    others (Wortsman et al. 2022, arXiv 2109.01903, figure 1). `rows` as interpolation.json has them."""
    import pandas as pd

    table = pd.DataFrame([{"alpha": row["alpha"], "new": row["ood.i2t_map"], "known": row["id.i2t_map"]} for row in rows])
    table = table.astype("float64").dropna().sort_values("alpha")
    said = "; ".join(f"α {row.alpha:g}: {row.known:.3f} and {row.new:.3f}" for row in table.itertuples())
    what = f"Image→text mAP of species that were trained on and of others, by the share α of what was learnt. {said}."
    return Chart("frontier", "Between the released model and the tuned one", what, table, _frontier, (4.8, 3.8))


def _frontier(axes: Any, table: pd.DataFrame) -> None:
    axes.plot(table["new"], table["known"], color=SERIES[0], marker="o", markersize=4)
    for row in (table.head(1), table.tail(1)):
        for each in row.itertuples():
            axes.annotate(f"α {each.alpha:g}", (each.new, each.known), (6, 4), textcoords="offset points")
    axes.set(xlabel="image→text mAP, species not trained on", ylabel="species trained on")
