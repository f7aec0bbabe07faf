"""Figures of classifiers, from true classes and probabilities; a figure that is not defined is None, never NaN.

`truth` [N, C] has a 1.0 in each row's class, `p` [N, C] the probabilities; of two classes the first is the positive one. Inside,
a figure is computed for many weightings of the rows at once, `weights` [N, D] → [D], NaN where it is not defined: how often
each draw of a bootstrap has each row (`intervals.draws`). A thousand draws cost one sort. Pure functions.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Flags = NDArray[np.bool_]
Figure = Callable[[Array, Array, Array], Array]
Detection = Callable[[Flags, Array, Array], Array]
BINS = 15
"""Of the calibration error, equally wide (Guo et al. 2017, section 4)."""
SMALLEST = float(np.finfo("float64").eps)
"""Probabilities are not below this in a logarithm, as in scikit-learn."""


# ---------------------------------------------------------------- for all rows
def figures(truth: Array, p: Array) -> dict[str, float | None]:
    """All of FIGURES for truth and probabilities [N, C]."""
    return {name: figure(name, truth, p) for name in FIGURES}


def figure(name: str, truth: Array, p: Array) -> float | None:
    """One of FIGURES; None if there are no rows, or a probability is not finite."""
    if not len(truth) or not np.isfinite(p).all():
        return None
    return _number(FIGURES[name](truth, p.astype("float64"), np.ones((len(truth), 1))))


def drawn(name: str, truth: Array, p: Array, weights: Array) -> Array:
    """One of FIGURES [D] for each weighting of the rows [N, D]; NaN where it is not defined."""
    if not len(truth) or not np.isfinite(p).all():
        return np.full(weights.shape[1], np.nan)
    return FIGURES[name](truth, p.astype("float64"), weights)


def roc_auc(is_positive: Flags, scores: Array) -> float | None:
    """Area under the ROC curve of scores [N]: how often a positive scores above a negative, where equal half (Hanley and
    McNeil 1982). None without a positive or without a negative."""
    return _number(_roc_auc(is_positive, scores, np.ones((len(scores), 1))))


def average_precision(is_positive: Flags, scores: Array) -> float | None:
    """Area under the precision-recall curve of scores [N] as scikit-learn steps it; None without a positive."""
    if not is_positive.any():
        return None
    return _number(_average_precision(is_positive, scores, np.ones((len(scores), 1))))


def _number(values: Array) -> float | None:
    return float(values[0]) if np.isfinite(values[0]) else None


# ---------------------------------------------------------------- for each weighting of the rows
def _roc_auc(is_positive: Flags, scores: Array, weights: Array) -> Array:
    """For scores [N] and weights [N, D]: [D]."""
    order = np.argsort(scores, kind="stable")
    order = order[~is_positive[order]]
    if not len(order):
        return np.full(weights.shape[1], np.nan)
    below, upto = (np.searchsorted(scores[order], scores[is_positive], side) for side in ("left", "right"))
    # Summed from bound to bound: of many classes each has few positives, and a running sum over all rows is slow.
    bounds = np.unique([0, *below, *upto, len(order)])
    sums = np.zeros((len(bounds), weights.shape[1]), weights.dtype)
    np.cumsum(np.add.reduceat(weights[order], bounds[:-1], axis=0), axis=0, out=sums[1:])
    of_positives = weights[is_positive]
    wins = [np.einsum("nd,nd->d", of_positives, sums[np.searchsorted(bounds, ends)]) for ends in (below, upto)]
    return _share((wins[0] + wins[1]) / 2, of_positives.sum(axis=0) * sums[-1])


def _average_precision(is_positive: Flags, scores: Array, weights: Array) -> Array:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores, for scores [N] and weights [N, D]: [D]."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=np.nan))  # of the rows with one score
    called = np.cumsum(weights[order], axis=0)[last]
    found = np.cumsum(weights[order] * is_positive[order, None], axis=0)[last]
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    steps = np.diff(found, axis=0, prepend=np.zeros_like(found[:1]))
    return _share((steps * precision).sum(axis=0), found[-1])


def _one_against_rest(of: Detection) -> Figure:
    """A figure of two classes' first; of more classes its mean over those for which it is defined."""

    def mean(truth: Array, p: Array, weights: Array) -> Array:
        n = 1 if truth.shape[1] == 2 else truth.shape[1]
        return _mean_of_defined(np.stack([of(truth[:, i] > 0.5, p[:, i], weights) for i in range(n)]))

    return mean


def _accuracy(truth: Array, p: Array, weights: Array) -> Array:
    return _weighted_mean(is_right(truth, p), weights)


def _balanced_accuracy(truth: Array, p: Array, weights: Array) -> Array:
    """The mean over the classes that are there of how many of them are recognised."""
    right = truth * is_right(truth, p)[:, None]
    return _mean_of_defined(_share(_sums(right, weights), _sums(truth, weights)))


def _log_loss(truth: Array, p: Array, weights: Array) -> Array:
    return _weighted_mean(-np.log(np.clip((truth * p).sum(axis=1), SMALLEST, 1)), weights)


def _brier(truth: Array, p: Array, weights: Array) -> Array:
    """Squared error of the positive class's probability; of more than two classes summed over them (Brier 1950)."""
    errors = np.square(p - truth)
    return _weighted_mean(errors[:, 0] if truth.shape[1] == 2 else errors.sum(axis=1), weights)


def _calibration_error(truth: Array, p: Array, weights: Array) -> Array:
    """Expected calibration error: how far accuracy and confidence are apart, over bins of the confidence."""
    confidence, right = p.max(axis=1), is_right(truth, p)
    bins = np.clip(np.ceil(confidence * BINS).astype("int64") - 1, 0, BINS - 1)
    gaps = _sums(np.eye(BINS)[bins] * (right - confidence)[:, None], weights)
    return _share(np.abs(gaps).sum(axis=0), weights.sum(axis=0))


def is_right(truth: Array, p: Array) -> Array:
    """1.0 for each row [N] whose most probable class (of equal ones the first) is the true one, else 0.0."""
    return np.asarray(truth.argmax(axis=1) == p.argmax(axis=1), "float64")


def _sums(rows: Array, weights: Array) -> Array:
    """Weighted sums [K, D] of rows [N, K]."""
    sums: Array = np.matmul(rows.T.astype(weights.dtype), weights)
    return sums


def _weighted_mean(values: Array, weights: Array) -> Array:
    return _share(_sums(values[:, None], weights)[0], weights.sum(axis=0))


def _share(part: Array, whole: Array) -> Array:
    """part / whole; NaN where whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean_of_defined(values: Array) -> Array:
    """Mean over the classes of values [C, D] that are not NaN; NaN if all are."""
    defined = ~np.isnan(values)
    return _share(np.where(defined, values, 0).sum(axis=0), defined.sum(axis=0))


FIGURES: dict[str, Figure] = {
    "roc_auc": _one_against_rest(_roc_auc),
    "average_precision": _one_against_rest(_average_precision),
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "log_loss": _log_loss,
    "brier": _brier,
    "calibration_error": _calibration_error,
}
LOWER = {"log_loss", "brier", "calibration_error"}
"""Figures of which less is better."""
