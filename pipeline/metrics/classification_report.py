"""The figures of classes in results.json: of all images, of each class, species and domain.

Intervals are over groups: the images of one are not independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from pipeline.metrics.classification import FIGURES, Array, Flags, roc_auc
from pipeline.metrics.figures import Figure
from pipeline.metrics.intervals import central, draws

if TYPE_CHECKING:
    import pandas as pd

Block = dict[str, Any]
WITH_INTERVALS = ("roc_auc", "balanced_accuracy", "accuracy")
DRAWS = 1000
MANY = 50
"""More classes than these are told apart in no table of confusions, and of each image only the most probable are kept."""


@dataclass(frozen=True)
class Said:
    """What was said of some images: true labels and probabilities."""

    labels: Int[np.ndarray, " images"]
    p: Float[np.ndarray, "images classes"]

    @cached_property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.p).all())

    @cached_property
    def most_probable(self) -> Int[np.ndarray, " images"]:
        return np.asarray(self.p.argmax(axis=1))

    def value(self, figure: Figure) -> float | None:
        return figure.value(self.labels, self.p)


def classification_report(
    images: pd.DataFrame, said: Said, classes: Sequence[str], shares: Sequence[float], figures: Mapping[str, Figure] = FIGURES
) -> Block:
    """Figures of classes, from a table with a row per image (`group`, and `domain`, `species` where known), what was said of
    each, and the classes' shares of the training groups.

    `summary` has those of all images, with 95 % bootstrap intervals; `by_group` those after averaging the images of each
    group; `majority` those of always saying how frequent each class is in training. `classes` has each class against the rest.
    `by_species` and `by_domain` are there where these are known.
    """
    computed = {name: figure for name, figure in figures.items() if figure.is_computed}
    summary: Block = _values(said, computed) | {"n": len(images)}
    summary["intervals"] = _intervals(said, images["group"].tolist())
    summary |= {"positive": classes[0] if len(classes) == 2 else None, "classes": list(classes)}
    summary["by_group"] = _by_group(images, said, computed)
    always = np.array(shares) / sum(shares)
    summary["majority"] = _values(Said(said.labels, np.tile(always, (len(images), 1))), computed)
    summary["majority"]["class"] = classes[int(always.argmax())]
    if len(classes) <= MANY:
        summary["confusion"] = _confusion(said)
    summary["warnings"] = [*_warnings(said, classes), *_says_less_than_nothing(summary)]
    report = {"summary": summary, "classes": {name: _of_class(said, i) for i, name in enumerate(classes)}}
    parts = {f"by_{column}": _by(images, column, said) for column in ("species", "domain")}
    return report | {name: part for name, part in parts.items() if part}


def _values(said: Said, figures: Mapping[str, Figure]) -> Block:
    return {name: said.value(figure) for name, figure in figures.items()}


def _intervals(said: Said, groups: Sequence[str]) -> dict[str, list[float] | None]:
    """[low, high] of each figure WITH_INTERVALS, None where it is not defined. (A thousand draws of MANY areas take long.)"""
    names = WITH_INTERVALS if said.p.shape[1] <= MANY else WITH_INTERVALS[1:]
    values: dict[str, list[Array]] = {name: [] for name in names}
    for weights in draws(groups, seed=0, n=DRAWS) if groups else ():
        for name in names:
            values[name].append(FIGURES[name].drawn(said.labels, said.p, weights=weights))
    return {name: central(np.concatenate(parts)) if parts else None for name, parts in values.items()}


def _by_group(images: pd.DataFrame, said: Said, figures: Mapping[str, Figure]) -> Block:
    import pandas as pd  # not on a login node

    together = pd.DataFrame(said.p).groupby(images["group"].to_numpy(), sort=True)
    labels = pd.Series(said.labels).groupby(images["group"].to_numpy(), sort=True).first()
    means = Said(labels.to_numpy("int64"), together.mean(skipna=False).to_numpy("float64"))
    return _values(means, figures) | {"n": len(labels)}


def _confusion(said: Said) -> list[list[int]] | None:
    """How many images of each true class (row) were said to be of each class (column)."""
    n = said.p.shape[1]
    counts = np.bincount(said.labels * n + said.most_probable, minlength=n * n)
    return counts.reshape(n, n).tolist() if said.is_finite else None


def _of_class(said: Said, i: int) -> Block:
    """How well one class is told from the rest."""
    true, called = said.labels == i, said.most_probable == i
    figures = {"recall": _share(called[true]), "precision": _share(true[called]), "roc_auc": roc_auc(true, said.p[:, i])}
    return {"n": int(true.sum())} | (figures if said.is_finite else dict.fromkeys(figures))


def _share(flags: Flags) -> float | None:
    return float(flags.mean()) if len(flags) else None


def _by(table: pd.DataFrame, column: str, said: Said) -> dict[str, Block]:
    """Figures of the images of each species or domain; empty where none is known."""
    values = table[column].to_numpy(object) if column in table else np.array([])
    rows = {str(name): values == name for name in sorted({value for value in values if value is not None and value == value})}
    return {name: _of_part(Said(said.labels[some], said.p[some])) for name, some in rows.items()}


def _of_part(said: Said) -> Block:
    """Figures of some images: with two classes those of detection, else how often their class was recognised."""
    if said.p.shape[1] != 2:
        return {"n": len(said.labels)} | _values(said, {name: FIGURES[name] for name in WITH_INTERVALS[1:]})
    positive, negative = _of_class(said, 0), _of_class(said, 1)
    return {
        "n": len(said.labels),
        "n_positive": positive["n"],
        "recall": positive["recall"],
        "specificity": negative["recall"],
        "roc_auc": positive["roc_auc"],
    }


def _warnings(said: Said, classes: Sequence[str]) -> list[str]:
    """Why figures are null."""
    if bad := int((~np.isfinite(said.p)).any(axis=1).sum()):
        return [f"predictions of {bad} of {len(said.p)} images are not finite: no figure is given"]
    absent = [name for name, n in zip(classes, np.bincount(said.labels, minlength=len(classes)), strict=True) if not n]
    names = ", ".join(absent[:5]) + (f" and {len(absent) - 5} more" if len(absent) > 5 else "")
    return [f"no images of {names}: nothing is known of how they are recognised"] if absent else []


def _says_less_than_nothing(summary: Block) -> list[str]:
    """Probabilities may be in the right order, and as numbers worse than those of who has seen no image."""
    own, always = summary.get("log_loss"), summary["majority"].get("log_loss")
    if own is None or always is None or own <= always:
        return []
    return [
        f"log loss {own:.3f} is worse than always saying how frequent each class is ({always:.3f}): its probabilities are not to "
        "be relied on as numbers, whatever their order tells"
    ]
