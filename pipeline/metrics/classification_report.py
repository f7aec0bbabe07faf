"""The figures in results.json of a task whose targets are classes: of all images, of each class, species and domain.

A class is a target `<label column>=<class>`, 1 or 0; of two classes the first is the positive one. Intervals are over groups:
their images are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.data.classes import class_name
from pipeline.metrics.classification import Array, Flags, drawn, figure, figures, is_right, roc_auc
from pipeline.metrics.intervals import Rows, central, draws
from pipeline.metrics.report import Training

Figures = dict[str, Any]
WITH_INTERVALS = ("roc_auc", "balanced_accuracy", "accuracy")
DRAWS = 1000
LARGEST_CONFUSION = 50
"""Classes of which the table of confusions is still written."""


@dataclass(frozen=True)
class _Said:
    """What was said of some images: true classes and probabilities [N, C]."""

    truth: Array
    p: Array

    def only(self, rows: Rows) -> _Said:
        return _Said(self.truth[rows], self.p[rows])


def classification_report(groups: pd.DataFrame, targets: Sequence[str], train: Training) -> Figures:
    """Figures of classes, from a table with a row per image: `group` (its group), `domain`, `species`, each target (1 or
    0) and as `<target>_prediction` its probability.

    `summary` has those of all images, with 95 % bootstrap intervals; `by_group` those after averaging the images of
    each group; `majority` those of always saying how frequent each class is among the training groups. `classes` has each
    class against the rest. `by_species` and `by_domain` are there where these are known.
    """
    classes, said = [class_name(target) for target in targets], _said(groups, targets)
    summary: Figures = figures(said.truth, said.p) | {"n": len(groups)}
    summary["intervals"] = _intervals(said, groups["group"].tolist())
    summary |= {"positive": classes[0] if len(classes) == 2 else None, "classes": classes}
    summary["by_group"] = _by_group(groups, targets)
    summary["majority"] = _majority(said.truth, [train.means[target] for target in targets], classes)
    if len(classes) <= LARGEST_CONFUSION:
        summary["confusion"] = _confusion(said)
    summary["warnings"] = _warnings(said, classes)
    report = {"summary": summary, "classes": {name: _of_class(said, i) for i, name in enumerate(classes)}}
    parts = {f"by_{column}": _by(groups, column, said) for column in ("species", "domain")}
    return report | {name: part for name, part in parts.items() if part}


def _said(table: pd.DataFrame, targets: Sequence[str]) -> _Said:
    truth, p = (table[[f"{t}{end}" for t in targets]].to_numpy("float64") for end in ("", "_prediction"))
    return _Said(truth, p)


def _intervals(said: _Said, groups: Sequence[str]) -> dict[str, list[float] | None]:
    """[low, high] of each figure WITH_INTERVALS, None where it is not defined."""
    values: dict[str, list[Array]] = {name: [] for name in WITH_INTERVALS}
    for weights in draws(groups, seed=0, n=DRAWS) if groups else ():
        for name in WITH_INTERVALS:
            values[name].append(drawn(name, said.truth, said.p, weights))
    found = {name: central(np.concatenate(parts)) if parts else None for name, parts in values.items()}
    return {name: [interval.low, interval.high] if interval else None for name, interval in found.items()}


def _by_group(table: pd.DataFrame, targets: Sequence[str]) -> Figures:
    columns = [f"{target}{end}" for target in targets for end in ("", "_prediction")]
    means = table.groupby("group", sort=True)[columns].mean(skipna=False)
    said = _said(means, targets)
    return figures(said.truth, said.p) | {"n": len(means)}


def _majority(truth: Array, shares: Sequence[float], classes: Sequence[str]) -> Figures:
    """What the training's shares of the classes, said of every image, are worth."""
    p = np.array(shares) / sum(shares)
    return figures(truth, np.tile(p, (len(truth), 1))) | {"class": classes[int(p.argmax())]}


def _confusion(said: _Said) -> list[list[int]] | None:
    """How many images of each true class (row) were said to be of each class (column)."""
    if not np.isfinite(said.p).all():
        return None
    n = said.p.shape[1]
    counts = np.bincount(said.truth.argmax(axis=1) * n + said.p.argmax(axis=1), minlength=n * n)
    table: list[list[int]] = counts.reshape(n, n).tolist()
    return table


def _of_class(said: _Said, i: int) -> Figures:
    """How well one class is told from the rest."""
    true, finite = said.truth[:, i] > 0.5, bool(np.isfinite(said.p).all())
    right, called = is_right(said.truth, said.p) > 0, said.p.argmax(axis=1) == i
    return {
        "n": int(true.sum()),
        "recall": _share(right[true]) if finite else None,
        "precision": _share(right[called]) if finite else None,
        "roc_auc": roc_auc(true, said.p[:, i]) if finite else None,
    }


def _share(flags: Flags) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _by(table: pd.DataFrame, column: str, said: _Said) -> dict[str, Figures]:
    """Figures of the images of each species or domain; empty where none is known."""
    values = table[column].to_numpy(object) if column in table else np.array([])
    names = sorted({value for value in values if not pd.isna(value)})
    return {str(name): _of_part(said.only(np.flatnonzero(values == name))) for name in names}


def _of_part(said: _Said) -> Figures:
    """Figures of some images: with two classes those of detection, else how often their class was recognised."""
    if said.truth.shape[1] != 2:
        return {"n": len(said.truth)} | {name: figure(name, said.truth, said.p) for name in WITH_INTERVALS[1:]}
    positive, negative = _of_class(said, 0), _of_class(said, 1)
    return {
        "n": len(said.truth),
        "n_positive": positive["n"],
        "recall": positive["recall"],
        "specificity": negative["recall"],
        "roc_auc": positive["roc_auc"],
    }


def _warnings(said: _Said, classes: Sequence[str]) -> list[str]:
    """Why figures are null."""
    if bad := int((~np.isfinite(said.p)).any(axis=1).sum()):
        return [f"predictions of {bad} of {len(said.p)} images are not finite: no figure is given"]
    absent = [name for name, n in zip(classes, said.truth.sum(axis=0), strict=True) if not n]
    names = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    return [f"no images of {names}: nothing is known of how they are recognised"] if absent else []
