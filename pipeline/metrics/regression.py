"""Regression metrics, per image and per group. A figure that is not defined is None, never NaN."""

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


def group_r2(
    targets: Array, predictions: Array, groups: NDArray[np.int64], log_weights: Array | None = None
) -> float | None:
    """R² of groups: after averaging targets and (weighted) predictions [N] per group."""
    return r2(group_means(targets, groups), group_means(predictions, groups, log_weights))
