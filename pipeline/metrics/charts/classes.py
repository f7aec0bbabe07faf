"""Charts of classes that were predicted: which are taken for which, how sure that is, and what is found at what price. Loads no
torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.metrics.charts.chart import Chart
from pipeline.metrics.charts.drawing import INK, QUIET, SERIES, draw_heat, labelled, shortened

if TYPE_CHECKING:
    import pandas as pd

MOST_CLASSES = 25
"""Of a confusion matrix that can be read."""
MOST_CURVES = 6
BINS = 10
DARK = 0.6
"""Share of a class from which on its cell is so dark that numbers on it are white."""


def class_charts(images: pd.DataFrame) -> Iterator[Chart]:
    """Of predictions.parquet: a row for each image and class, truth 0 or 1 and the class's probability. Of many classes the most
    probable ones of an image and its own alone have rows: what is found at what price cannot be told of these."""
    wide = images.dropna(subset=["prediction"]).assign(name=images["target"].str.partition("=")[2])
    if wide.empty:
        return
    key = [name for name in ("id", "group", "nth") if name in wide]  # (an id may be an individual's)
    n, most = wide["name"].nunique(), int(wide.groupby(key).size().max())
    if n == 1:  # of two classes the positive one alone has rows
        wide, n, most = _both(wide), 2, 2
    if n <= MOST_CLASSES:
        yield confusion(*_matrices(wide, key))
    yield reliability(wide, key)
    if n == most:
        yield precision_recall(*_matrices(wide, key))


def _both(wide: pd.DataFrame) -> pd.DataFrame:
    """Rows of the negative class as well."""
    import pandas as pd

    other = wide.assign(name="not " + wide["name"], truth=1 - wide["truth"], prediction=1 - wide["prediction"])
    return pd.concat([wide, other], ignore_index=True)


def _matrices(wide: pd.DataFrame, key: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Truth and probabilities, images by classes."""
    truth, said = (wide.pivot_table(index=key, columns="name", values=of, sort=True) for of in ("truth", "prediction"))
    return truth.fillna(0.0), said.fillna(0.0)


def confusion(truth: pd.DataFrame, said: pd.DataFrame) -> Chart:
    """Images by their class, in rows, and by the most probable one, in columns."""
    import pandas as pd

    names = list(truth.columns)
    true, most = (pd.Categorical(np.array(names)[each.to_numpy().argmax(1)], names) for each in (truth, said))
    table = pd.crosstab(true, most, dropna=False, rownames=["class"], colnames=["taken for"])
    right = float(np.mean(np.asarray(true) == np.asarray(most)))
    side = max(1.6 + 0.3 * len(names), 2.8)
    what = f"{len(truth):,} images by class (rows) and by the most probable class (columns); {100 * right:.1f} % are right."
    return Chart("confusion", "Which class is taken for which", what, table, _confusion, (side + 0.8, side))


def _confusion(axes: Any, table: pd.DataFrame) -> None:
    counts = table.to_numpy("float64")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    draw_heat(axes, shares, cmap="Blues", vmin=0, vmax=1.4)
    for (row, column), n in np.ndenumerate(counts):
        if n:
            ink = "white" if shares[row, column] > DARK else "#0b1a2b"
            axes.text(column, row, f"{n:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(table.shape[1]), shortened([*map(str, table.columns)]), rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(table.shape[0]), shortened([*map(str, table.index)]))
    axes.set(xlabel="taken for", ylabel="class")


def reliability(wide: pd.DataFrame, key: list[str]) -> Chart:
    """Of images by how sure the model is of its class: how many are right (Guo et al. 2017, arXiv 1706.04599, figure 1)."""
    import pandas as pd

    most = wide.loc[wide.groupby(key)["prediction"].idxmax()]
    sure, right = most["prediction"].to_numpy().clip(0, 1), most["truth"].to_numpy() == 1
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
    of = f"{len(told)} classes with most images of {truth.shape[1]}" if len(told) < truth.shape[1] else f"{len(told)} classes"
    what = f"Precision by recall of the {of}. Average precision: {', '.join(told) or 'not defined'}."
    return Chart("precision-recall", "What is found, and at what price", what, table, _precision_recall, (6.2, 3.6))


def _precision_recall(axes: Any, table: pd.DataFrame) -> None:
    for color, (name, curve) in zip(SERIES, table.groupby("class", sort=False), strict=False):
        axes.plot(curve["recall"], curve["precision"], color=color, label=labelled(name))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    if len(table):
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
