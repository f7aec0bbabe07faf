"""What the best epoch, penalty or classifier is chosen by, on validation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pipeline.config.trial import Config
from pipeline.metrics.classification import LOWER, figure
from pipeline.metrics.regression import group_r2, mae

Array = NDArray[np.floating]
LOWER_IS_BETTER = ("MAE", *LOWER)


def chosen_by(config: Config) -> str:
    """The name of the figure that `select.metric` asks for: where it says nothing, R², or of classes the area under the ROC."""
    return config.select.metric or ("r2" if config.data.label is None else "roc_auc")


def selection_metric(
    metric: str,
    targets: Array,
    predictions: Array,
    groups: NDArray[np.int64],
    log_weights: Array | None = None,
) -> float | None:
    """Of numbers the mean over targets [N, n_targets] of the group R², or of the image MAE; of classes a figure of images.

    None if it is not defined for one of them, or if a prediction or its weight is not finite.
    """
    weights = np.zeros_like(predictions) if log_weights is None else log_weights
    if not (np.isfinite(predictions).all() and np.isfinite(weights).all()):
        return None
    if metric not in ("r2", "MAE"):
        return figure(metric, targets, predictions)
    columns: Iterator[tuple[Array, Array, Array]] = zip(targets.T, predictions.T, weights.T, strict=True)
    values = [group_r2(t, p, groups, w) if metric == "r2" else mae(t, p) for t, p, w in columns]
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if len(defined) == len(values) else None
