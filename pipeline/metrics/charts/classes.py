"""Charts of classes that were predicted: which are taken for which, how sure that is, and what is found at what price. Loads no
torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.metrics.charts.chart import Chart
from pipeline.metrics.charts.drawing import INK, QUIET, SERIES, draw_heat, shortened

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES = 25
"""Of a confusion matrix that can be read."""
MOST_CURVES = 6
BINS = 10


def class_charts(images: pd.DataFrame) -> Iterator[Chart]:
    """Of predictions.parquet: a row for each image and class, truth 0 or 1 and the class's probability. Of many classes the most
    probable ones of an image and its own have rows: nothing is said of the others."""
    wide = images.assign(name=images["target"].str.partition("=")[2])
    key = [name for name in ("id", "group", "nth") if name in wide]  # (an id may be an individual's)
    pivoted = (wide.pivot_table(index=key, columns="name", values=value, sort=True) for value in ("truth", "prediction"))
    truth, said = (each.fillna(0.0) for each in pivoted)
    if truth.shape[1] == 1:  # of two classes the positive one alone has rows
        (name,) = truth.columns
        truth, said = (each.assign(**{f"not {name}": 1 - each[name]}) for each in (truth, said))
    if truth.shape[1] <= MOST_CLASSES:
        yield confusion(truth, said)
    yield reliability(truth, said)
    yield precision_recall(truth, said)


def confusion(truth: pd.DataFrame, said: pd.DataFrame) -> Chart:
    """Images by their class, in rows, and by the most probable one, in columns."""
    import pandas as pd

    names = list(truth.columns)
    true, most = (pd.Categorical(np.array(names)[each.to_numpy().argmax(1)], names) for each in (truth, said))
    table = pd.crosstab(true, most, dropna=False, rownames=["class"], colnames=["taken for"])
    right = float(np.mean(np.asarray(true) == np.asarray(most)))
    side = 1.6 + 0.3 * len(names)
    what = f"{len(truth):,} images by class (rows) and by the most probable class (columns); {100 * right:.1f} % are right."
    return Chart("confusion", "Which class is taken for which", what, table, _confusion, (side + 0.8, side))


def _confusion(axes: Any, table: pd.DataFrame) -> None:
    counts = table.to_numpy("float64")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    draw_heat(axes, shares, cmap="Blues", vmin=0, vmax=1.4)
    for (row, column), n in np.ndenumerate(counts):
        if n:
            axes.text(column, row, f"{n:.0f}", ha="center", va="center", fontsize=7, color="#0b1a2b")
    axes.set_xticks(range(table.shape[1]), shortened([*map(str, table.columns)]), rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(table.shape[0]), shortened([*map(str, table.index)]))
    axes.set(xlabel="taken for", ylabel="class")


def reliability(truth: pd.DataFrame, said: pd.DataFrame) -> Chart:
    """Of images by how sure the model is of its class: how many are right (Guo et al. 2017, arXiv 1706.04599, figure 1)."""
    import pandas as pd

    sure, right = said.to_numpy().max(1), truth.to_numpy().argmax(1) == said.to_numpy().argmax(1)
    bins = np.minimum((sure * BINS).astype(int), BINS - 1)
    table = (
        pd.DataFrame({"bin": bins, "sure": sure, "right": right})
        .groupby("bin")
        .agg(sure=("sure", "mean"), right=("right", "mean"), n=("right", "size"))
    )
    gap = float((table["n"] * (table["right"] - table["sure"]).abs()).sum() / table["n"].sum())
    what = f"How many images are right, by how sure the model is; on the line as many as it says. Gap {gap:.3f} on average."
    return Chart(
        "reliability", "Whether it is right as often as it is sure", what, table.reset_index(drop=True), _reliability, (4.2, 3.6)
    )


def _reliability(axes: Any, table: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    axes.plot(table["sure"], table["right"], color=SERIES[0], marker="o", markersize=4)
    for _, row in table.iterrows():
        axes.annotate(f"{row['n']:.0f}", (row["sure"], row["right"]), (4, -9), textcoords="offset points", fontsize=7, color=INK)
    axes.set(xlabel="probability of the most probable class", ylabel="share that is right", xlim=(0, 1.02), ylim=(0, 1.02))


def precision_recall(truth: pd.DataFrame, said: pd.DataFrame) -> Chart:
    """Of the most common classes: how many of those that are named are right, by how many of all are named."""
    import pandas as pd
    from sklearn.metrics import average_precision_score, precision_recall_curve

    curves, told = [], []
    for name in truth.sum().sort_values(ascending=False).index[:MOST_CURVES]:
        if not 0 < truth[name].sum() < len(truth):
            continue
        precision, recall, _ = precision_recall_curve(truth[name], said[name])
        curves.append(
            pd.DataFrame({"class": str(name), "recall": recall, "precision": precision}).iloc[:: max(len(recall) // 200, 1)]
        )
        told.append(f"{name} {average_precision_score(truth[name], said[name]):.3f}")
    table = pd.concat(curves) if curves else pd.DataFrame({"class": [], "recall": [], "precision": []})
    what = f"Precision by recall of the {len(told)} most common classes. Average precision: {', '.join(told) or 'not defined'}."
    return Chart("precision-recall", "What is found, and at what price", what, table, _precision_recall, (4.8, 3.6))


def _precision_recall(axes: Any, table: pd.DataFrame) -> None:
    for color, (name, curve) in zip(SERIES, table.groupby("class", sort=False), strict=False):
        axes.plot(curve["recall"], curve["precision"], color=color, label=str(name))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    if len(table):
        axes.legend(loc="lower left")
