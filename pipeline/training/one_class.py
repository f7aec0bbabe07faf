"""One-class scores, fitted: how far from the parents an image is, and how probable that makes it a hybrid."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.config.head import MahalanobisHead, OneClassHead
from pipeline.errors import UserError
from pipeline.models import plain
from pipeline.models.classifiers import Array, Arrays, Folds, OneClass

UNKNOWN = -1
"""The parent class of an image whose auxiliary labels tell none."""
TINY = 1e-10
"""Directions with a smaller share of the covariance's largest eigenvalue are rounding errors and tell nothing."""
FLATTEST = 1e-3
"""Slope of the probability over a standardised distance, at least: where positives lie no farther out than the rest, the
score is still the distance, and says so by its figures."""
Labels = NDArray[np.int64]


def fit_one_class(head: OneClassHead, x: Array, labels: Labels, parents: Labels, folds: Folds) -> OneClass:
    """Of features [N, E] and labels [N] (0: positive): distances from what is not positive, and P(positive) by a logistic line
    through the distances of the images that each fold leaves out, which rises with them.

    `parents` [N] are parent classes, UNKNOWN where there is none.
    """
    distances = np.empty(len(x))
    for kept, left_out in folds:
        arrays = _fit_distance(head, x[kept], labels[kept], parents[kept])
        distances[left_out] = _distances(head, arrays, x[left_out])
    return OneClass(head.kind, {**_fit_distance(head, x, labels, parents), **_fit_line(distances, labels)})


def _distances(head: OneClassHead, arrays: Arrays, x: Array) -> Array:
    return plain.log_odds(head.kind, {**arrays, "slope": np.ones(1), "intercept": np.zeros(1)}, x)


def _fit_distance(head: OneClassHead, x: Array, labels: Labels, parents: Labels) -> Arrays:
    """What the distance is from, on features standardised by the images that are not positive."""
    x, parents = x[labels != 0], parents[labels != 0]
    mean, sd = x.mean(0), x.std(0)
    sd[sd <= 1e-12 * np.abs(mean)] = 1
    z, scales = (x - mean) / sd, {"mean": mean, "scale": sd}
    if isinstance(head, MahalanobisHead):
        return scales | _fit_gaussians(z, parents)
    if head.k > len(z):
        raise UserError(
            f"model.head.k {head.k} is more than the {len(z)} images to fit on that are not positive: lower it"
        )
    return {**scales, "points": z, "k": np.array(head.k)}


def _fit_gaussians(z: Array, parents: Labels) -> Arrays:
    """A centre for each known parent class, and what makes their shared covariance round (Lee et al. 2018, section 2.1).

    All are one class where no parents are known, or where each is that of one image and leaves no covariance.
    """
    known = parents != UNKNOWN
    if len(np.unique(parents[known])) < known.sum():
        z, parents = z[known], parents[known]
    else:
        parents = np.zeros_like(parents)
    _, numbers = np.unique(parents, return_inverse=True)
    centres = np.stack([z[numbers == number].mean(0) for number in range(numbers.max() + 1)])
    whitening = _whitening(z - centres[numbers])
    return {"centres": centres @ whitening, "whitening": whitening}


def _whitening(residuals: Array) -> Array:
    """Residuals [N, E] → [E, E], the root of the inverse of their Ledoit–Wolf covariance."""
    from sklearn.covariance import ledoit_wolf  # scikit-learn takes a second to import

    values, vectors = np.linalg.eigh(ledoit_wolf(residuals, assume_centered=True)[0])
    inverse = np.divide(1, values, out=np.zeros_like(values), where=values > TINY * values.max())
    out: Array = vectors * np.sqrt(inverse)
    return out


def _fit_line(distances: Array, labels: Labels) -> Arrays:
    """Log-odds of being positive as a rising line of the distance."""
    from sklearn.linear_model import LogisticRegression

    mean, sd = distances.mean(), distances.std() or 1.0
    line = LogisticRegression().fit((distances[:, None] - mean) / sd, labels == 0)
    slope, intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
    if slope < FLATTEST:
        share = float((labels == 0).mean())
        slope, intercept = FLATTEST, float(np.log(share / (1 - share)))
    return {"slope": np.array([slope / sd]), "intercept": np.array([intercept - slope * mean / sd])}
