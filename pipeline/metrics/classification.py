"""Figures of classifiers, from labels and probabilities; a figure that is not defined is None, never NaN.

`labels` [N] are the places of the true classes, `p` [N, C] the probabilities; of two classes the first is the positive one.
Inside, a figure is computed for many weightings of the rows at once, `weights` [N, D] → [D], NaN where it is not defined: how
often each draw of a bootstrap has each row (`intervals.draws`). A thousand draws cost one sort. Pure functions.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from numpy.typing import NDArray

from pipeline.metrics.figures import Figure

Array = NDArray[np.floating]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]
Weighted = Callable[[Labels, Array, Array], Array]
Detection = Callable[[Flags, Array, Array], Array]
BINS = 15
"""Of the calibration error, equally wide (Guo et al. 2017, section 4)."""
SMALLEST = float(np.finfo("float64").eps)
"""Probabilities are not below this in a logarithm, as in scikit-learn."""


# ---------------------------------------------------------------- for all rows
def roc_auc(is_positive: Bool[np.ndarray, " n"], scores: Num[np.ndarray, " n"]) -> float | None:
    """Area under the ROC curve: how often a positive scores above a negative, where equal half (Hanley and McNeil 1982).

    None without a positive or without a negative.
    """
    return _number(_roc_auc(is_positive, scores, np.ones((len(scores), 1))))


def average_precision(is_positive: Bool[np.ndarray, " n"], scores: Num[np.ndarray, " n"]) -> float | None:
    """Area under the precision-recall curve as scikit-learn steps it; None without a positive."""
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


def _one_against_rest(of: Detection) -> Weighted:
    """A figure of two classes' first; of more classes its mean over those for which it is defined."""

    def mean(labels: Labels, p: Array, weights: Array) -> Array:
        n = 1 if p.shape[1] == 2 else p.shape[1]
        return _mean_of_defined(np.stack([of(labels == i, p[:, i], weights) for i in range(n)]))

    return mean


def _accuracy(labels: Labels, p: Array, weights: Array) -> Array:
    return _weighted_mean(is_right(labels, p), weights)


def _balanced_accuracy(labels: Labels, p: Array, weights: Array) -> Array:
    """The mean over the classes that are there of how many of them are recognised."""
    truth = one_hot(labels, p.shape[1])
    right = truth * is_right(labels, p)[:, None]
    return _mean_of_defined(_share(_sums(right, weights), _sums(truth, weights)))


def _log_loss(labels: Labels, p: Array, weights: Array) -> Array:
    return _weighted_mean(-np.log(np.clip(p[np.arange(len(p)), labels], SMALLEST, 1)), weights)


def _brier(labels: Labels, p: Array, weights: Array) -> Array:
    """Squared error of the positive class's probability; of more than two classes summed over them (Brier 1950)."""
    errors = np.square(p - one_hot(labels, p.shape[1]))
    return _weighted_mean(errors[:, 0] if p.shape[1] == 2 else errors.sum(axis=1), weights)


def _calibration_error(labels: Labels, p: Array, weights: Array) -> Array:
    """Expected calibration error: how far accuracy and confidence are apart, over bins of the confidence."""
    confidence, right = p.max(axis=1), is_right(labels, p)
    bins = np.clip(np.ceil(confidence * BINS).astype("int64") - 1, 0, BINS - 1)
    gaps = _sums(np.eye(BINS)[bins] * (right - confidence)[:, None], weights)
    return _share(np.abs(gaps).sum(axis=0), weights.sum(axis=0))


def is_right(labels: Int[np.ndarray, " n"], p: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, " n"]:
    """1.0 for each row whose most probable class (of equal ones the first) is the true one, else 0.0."""
    return np.asarray(labels == p.argmax(axis=1), "float64")


def one_hot(labels: Int[np.ndarray, " rows"], n: int) -> Float[np.ndarray, "rows classes"]:
    """Labels of `n` classes → 1.0 in each row's class, else 0.0."""
    rows: Array = np.zeros((len(labels), n))
    rows[np.arange(len(labels)), labels] = 1
    return rows


def _sums(rows: Array, weights: Array) -> Array:
    """Weighted sums [K, D] of rows [N, K]."""
    return np.asarray(np.matmul(rows.T.astype(weights.dtype), weights))


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
    "roc_auc": Figure("ROC AUC", selectable=True, weighted=_one_against_rest(_roc_auc)),
    "average_precision": Figure("average precision", selectable=True, weighted=_one_against_rest(_average_precision)),
    "balanced_accuracy": Figure("balanced accuracy", selectable=True, weighted=_balanced_accuracy),
    "accuracy": Figure("accuracy", selectable=True, weighted=_accuracy),
    "log_loss": Figure("log loss", lower_is_better=True, selectable=True, weighted=_log_loss),
    "brier": Figure("Brier score", lower_is_better=True, selectable=True, weighted=_brier),
    "calibration_error": Figure("calibration error", lower_is_better=True, weighted=_calibration_error),
}
