"""Regression metrics, per image and per group. A figure that is not defined is None, never NaN.

Those that end in `_drawn` compute one for D weightings of the rows [N, D] at once, [D], as `figures.Figure.weighted` says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def mae(targets: Array, predictions: Array) -> float | None:
    """Mean absolute error over images [N]."""
    return float(np.abs(targets - predictions).mean()) if len(targets) else None


def rmse(targets: Array, predictions: Array) -> float | None:
    """Root mean squared error over images [N]."""
    return float(np.sqrt(np.square(targets - predictions).mean())) if len(targets) else None


def r2(targets: Array, predictions: Array) -> float | None:
    """Coefficient of determination 1 − SS_res / SS_tot over [N]; None if the targets do not vary or are fewer than two.

    Equals sklearn.metrics.r2_score wherever it is defined.
    """
    targets, predictions = targets.astype("float64"), predictions.astype("float64")
    # Means of equal targets over groups of unequal size differ in their last bits: that is no variation.
    varied = len(targets) > 1 and np.ptp(targets) > 1e-12 * np.abs(targets).max()
    total = float(np.square(targets - targets.mean()).sum()) if varied else 0.0
    return 1 - float(np.square(targets - predictions).sum()) / total if total > 0 else None


def group_means(values: Array, groups: NDArray[np.int64], log_weights: Array | None = None) -> NDArray[np.float64]:
    """Mean of each group's images: [N, …] and group numbers [N] → [n_groups, …], in the order of the numbers.

    With `log_weights`, of the values' shape: weighted by their softmax over the group's images.
    """
    numbers, inverse = np.unique(groups, return_inverse=True)
    weights = np.ones(values.shape) if log_weights is None else _weights(log_weights, inverse, len(numbers))
    sums, total = np.zeros((2, len(numbers), *values.shape[1:]))
    np.add.at(sums, inverse, weights * values)
    np.add.at(total, inverse, weights)
    means: NDArray[np.float64] = sums / total
    return means


def _weights(log_weights: Array, groups: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Weights [N, …] up to a factor of each group; its largest is 1, so that none overflows."""
    highest = np.full((n, *log_weights.shape[1:]), -np.inf)
    np.maximum.at(highest, groups, log_weights)
    weights: NDArray[np.float64] = np.exp(log_weights - highest[groups])
    return weights


def group_r2(targets: Array, predictions: Array, groups: NDArray[np.int64], log_weights: Array | None = None) -> float | None:
    """R² of groups: after averaging targets and (weighted) predictions [N] per group."""
    return r2(group_means(targets, groups), group_means(predictions, groups, log_weights))


def mae_drawn(targets: Array, predictions: Array, weights: Array) -> NDArray[np.float64]:
    """`mae` of rows [N] for each weighting [N, D]: [D]."""
    return _weighted_mean(np.abs(targets - predictions), weights)


def rmse_drawn(targets: Array, predictions: Array, weights: Array) -> NDArray[np.float64]:
    """`rmse` of rows [N] for each weighting [N, D]: [D]."""
    return np.sqrt(_weighted_mean(np.square(targets - predictions), weights))


def r2_drawn(targets: Array, predictions: Array, weights: Array) -> NDArray[np.float64]:
    """`r2` of rows [N] for each weighting [N, D]: [D], NaN where the targets do not vary."""
    centred = targets.astype("float64") - targets.mean()  # what is far from 0 would cancel
    total = _weighted_mean(np.square(centred), weights) - np.square(_weighted_mean(centred, weights))
    left = _weighted_mean(np.square(targets - predictions), weights)
    return 1 - np.divide(left, total, out=np.full_like(left, np.nan), where=total > 1e-12 * np.square(centred).max())


def _weighted_mean(values: Array, weights: Array) -> NDArray[np.float64]:
    """Means [D] of values [N] for each weighting [N, D]."""
    means: NDArray[np.float64] = values.astype("float64") @ weights.astype("float64") / weights.sum(axis=0)
    return means
