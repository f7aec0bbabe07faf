"""Regression metrics, per specimen and per event. A figure that is not defined is None, never NaN."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def mae(targets: Array, predictions: Array) -> float | None:
    """Mean absolute error over specimens [N]."""
    return float(np.abs(targets - predictions).mean()) if len(targets) else None


def rmse(targets: Array, predictions: Array) -> float | None:
    """Root mean squared error over specimens [N]."""
    return float(np.sqrt(np.square(targets - predictions).mean())) if len(targets) else None


def r2(targets: Array, predictions: Array) -> float | None:
    """Coefficient of determination 1 − SS_res / SS_tot over [N]; None if the targets do not vary or are fewer than two.

    Equals sklearn.metrics.r2_score wherever it is defined.
    """
    targets, predictions = targets.astype("float64"), predictions.astype("float64")
    # Means of equal targets over events of unequal size differ in their last bits: that is no variation.
    varied = len(targets) > 1 and np.ptp(targets) > 1e-12 * np.abs(targets).max()
    total = float(np.square(targets - targets.mean()).sum()) if varied else 0.0
    return 1 - float(np.square(targets - predictions).sum()) / total if total > 0 else None


def event_means(values: Array, events: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean of each event's specimens: [N, …] and event numbers [N] → [n_events, …], in the order of the numbers."""
    numbers, inverse = np.unique(events, return_inverse=True)
    sums = np.zeros((len(numbers), *values.shape[1:]), dtype="float64")
    np.add.at(sums, inverse, values)
    counts = np.bincount(inverse, minlength=len(numbers)).reshape(-1, *[1] * (values.ndim - 1))
    return sums / counts


def event_r2(targets: Array, predictions: Array, events: NDArray[np.int64]) -> float | None:
    """R² after averaging targets and predictions [N] per event."""
    return r2(event_means(targets, events), event_means(predictions, events))


def selection_metric(metric: str, targets: Array, predictions: Array, events: NDArray[np.int64]) -> float | None:
    """What the best epoch is chosen by: mean over targets [N, n_targets] of the event R², or of the specimen MAE.

    None if it is not defined for one of them, or if a prediction is not finite.
    """
    if not np.isfinite(predictions).all():
        return None
    columns: Iterator[tuple[Array, Array]] = zip(targets.T, predictions.T, strict=True)
    values = [event_r2(t, p, events) if metric == "r2" else mae(t, p) for t, p in columns]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if len(defined) == len(values) else None
