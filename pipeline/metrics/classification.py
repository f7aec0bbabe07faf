"""Figures of classes from probabilities: pure functions on arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def selection(metric: str, truth: Array, p: Array) -> float | None:
    """What classifiers are chosen by, of one-hot classes [N, C] and probabilities [N, C]; None where it is not defined.

    roc_auc and average_precision of the first of two classes, else the mean of one against the rest; balanced_accuracy;
    log_loss, of which lower is better.
    """
    from sklearn import metrics  # scikit-learn takes a second to import

    truth, p = truth[:, : p.shape[1]], p.astype("float64")
    labels = truth.argmax(1)
    if metric == "log_loss":
        return float(metrics.log_loss(labels, p, labels=np.arange(p.shape[1])))
    if len(np.unique(labels)) < p.shape[1]:
        return None
    if metric == "balanced_accuracy":
        return float(metrics.balanced_accuracy_score(labels, p.argmax(1)))
    score = metrics.roc_auc_score if metric == "roc_auc" else metrics.average_precision_score
    columns = [0] if p.shape[1] == 2 else range(p.shape[1])
    return float(np.mean([score(truth[:, column], p[:, column]) for column in columns]))
