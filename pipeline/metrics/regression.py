"""Regression metrics, per image and per group. A figure that is not defined is None, never NaN.

Those that end in `_drawn` compute one for D weightings of the rows [N, D] at once, [D], as `figures.Figure.weighted` says.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

Array = NDArray[np.floating]


def mae(targets: Float[np.ndarray, " n"], predictions: Float[np.ndarray, " n"]) -> float | None:
    """Mean absolute error over images."""
    return float(np.abs(targets - predictions).mean()) if len(targets) else None


def rmse(targets: Float[np.ndarray, " n"], predictions: Float[np.ndarray, " n"]) -> float | None:
    """Root mean squared error over images."""
    return float(np.sqrt(np.square(targets - predictions).mean())) if len(targets) else None


def r2(targets: Float[np.ndarray, " n"], predictions: Float[np.ndarray, " n"]) -> float | None:
    """Coefficient of determination 1 − SS_res / SS_tot; None if the targets do not vary or are fewer than two.

    Equals sklearn.metrics.r2_score wherever it is defined.
    """
    targets, predictions = targets.astype("float64"), predictions.astype("float64")
    # Means of equal targets over groups of unequal size differ in their last bits: that is no variation.
    varied = len(targets) > 1 and np.ptp(targets) > 1e-12 * np.abs(targets).max()
    total = float(np.square(targets - targets.mean()).sum()) if varied else 0.0
    return 1 - float(np.square(targets - predictions).sum()) / total if total > 0 else None


def weighted_r2(
    targets: Float[np.ndarray, "n targets"], predictions: Float[np.ndarray, "n targets"], weights: Sequence[float]
) -> float | None:
    """One coefficient of determination of all pairs of an image and a target, each target weighted (`weights` [targets]):
    1 − Σw(y − p)² / Σw(y − Σwy/Σw)², not the mean of the targets' own. None if there is nothing to explain.

    Equals sklearn.metrics.r2_score(y.ravel(), p.ravel(), sample_weight=w.ravel()) (the score of CSIRO's Image2Biomass challenge).
    """
    y, w = targets.astype("float64"), np.broadcast_to(np.asarray(weights, "float64"), targets.shape)
    if not len(y) or np.ptp(y) <= 1e-12 * np.abs(y).max():
        return None
    total = float((w * np.square(y - (w * y).sum() / w.sum())).sum())
    return 1 - float((w * np.square(y - predictions.astype("float64"))).sum()) / total if total > 0 else None


def weighted_r2_drawn(
    targets: Float[np.ndarray, "n targets"],
    predictions: Float[np.ndarray, "n targets"],
    draws: Float[np.ndarray, "n draws"],
    weights: Sequence[float],
) -> Float[np.ndarray, " draws"]:
    """`weighted_r2` for each weighting of the rows, NaN where there is nothing to explain."""
    w = np.asarray(weights, "float64")
    centred = targets.astype("float64") - (targets @ w).mean() / w.sum()  # what is far from 0 would cancel
    mean, square = (_weighted_mean(values @ w / w.sum(), draws) for values in (centred, np.square(centred)))
    left = _weighted_mean(np.square(targets.astype("float64") - predictions) @ w / w.sum(), draws)
    total = square - np.square(mean)
    return 1 - np.divide(left, total, out=np.full_like(left, np.nan), where=total > 1e-12 * np.square(centred).max())


def group_means(
    values: Float[np.ndarray, "n ..."], groups: Int[np.ndarray, " n"], log_weights: Float[np.ndarray, "n ..."] | None = None
) -> Float[np.ndarray, "n_groups ..."]:
    """Mean of each group's images, in the order of the numbers; with `log_weights` weighted by their softmax over them."""
    numbers, inverse = np.unique(groups, return_inverse=True)
    weights = np.ones(values.shape)
    if log_weights is not None:
        highest = np.full((len(numbers), *values.shape[1:]), -np.inf)
        np.maximum.at(highest, inverse, log_weights)
        weights = np.exp(log_weights - highest[inverse])  # up to a factor of each group; the largest is 1: none overflows
    sums, total = np.zeros((2, len(numbers), *values.shape[1:]))
    np.add.at(sums, inverse, weights * values)
    np.add.at(total, inverse, weights)
    return np.asarray(sums / total)


def mae_drawn(
    targets: Float[np.ndarray, " n"], predictions: Float[np.ndarray, " n"], weights: Float[np.ndarray, "n draws"]
) -> Float[np.ndarray, " draws"]:
    """`mae` for each weighting of the rows."""
    return _weighted_mean(np.abs(targets - predictions), weights)


def rmse_drawn(
    targets: Float[np.ndarray, " n"], predictions: Float[np.ndarray, " n"], weights: Float[np.ndarray, "n draws"]
) -> Float[np.ndarray, " draws"]:
    """`rmse` for each weighting of the rows."""
    return np.sqrt(_weighted_mean(np.square(targets - predictions), weights))


def r2_drawn(
    targets: Float[np.ndarray, " n"], predictions: Float[np.ndarray, " n"], weights: Float[np.ndarray, "n draws"]
) -> Float[np.ndarray, " draws"]:
    """`r2` for each weighting of the rows, NaN where the targets do not vary."""
    centred = targets.astype("float64") - targets.mean()  # what is far from 0 would cancel
    total = _weighted_mean(np.square(centred), weights) - np.square(_weighted_mean(centred, weights))
    left = _weighted_mean(np.square(targets - predictions), weights)
    return 1 - np.divide(left, total, out=np.full_like(left, np.nan), where=total > 1e-12 * np.square(centred).max())


def _weighted_mean(values: Array, weights: Array) -> NDArray[np.float64]:
    return values.astype("float64") @ weights.astype("float64") / weights.sum(axis=0)
