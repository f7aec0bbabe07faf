"""Classifiers of one class, which scikit-learn has not: how far from the parents an image is, and how probable that makes it
a hybrid."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression

from pipeline.errors import UserError
from pipeline.models import plain
from pipeline.models.estimators import Array, Arrays, Folds, Labels, Recipe, Rows

Features = Float64[np.ndarray, "images width"]
UNKNOWN = -1
"""The parent class of an image whose auxiliary labels tell none."""
TINY = 1e-10
"""Directions with a smaller share of the covariance's largest eigenvalue are rounding errors and tell nothing."""
FLATTEST = 1e-3
"""Slope of the probability over a standardised distance, at least: where positives lie no farther out than the rest, the
score is still the distance, and says so by its figures."""


@dataclass(frozen=True)
class OneClass:
    """A fitted one: plain arrays (`models/plain.py`), behind the method of scikit-learn's."""

    kind: str
    arrays: Arrays

    def predict_proba(self, x: Features) -> Float64[np.ndarray, "images 2"]:
        """Probabilities of images, from features."""
        return plain.probabilities(self.kind, self.arrays, x)


class OneClassRecipe(Recipe):
    """Learns what is not positive, and calls positive what is far from it: P(positive) is by a logistic line through the
    distances of the images that each fold leaves out, which rises with them."""

    calibrated = True

    def fit(self, rows: Rows, folds: Folds, random: int) -> list[Any]:
        distances = np.empty(len(rows))
        for kept, left_out in folds:
            line = {"slope": np.ones(1), "intercept": np.zeros(1)}
            distances[left_out] = plain.log_odds(self.head.kind, {**self._fit_distance(rows[kept]), **line}, rows.x[left_out])
        return [OneClass(self.head.kind, {**self._fit_distance(rows), **_fit_line(distances, rows.labels)})]

    def _fit_distance(self, rows: Rows) -> Arrays:
        """What the distance is from, on features standardised by the images that are not positive."""
        negative = rows[rows.labels != 0]
        mean, sd = negative.x.mean(0), negative.x.std(0)
        sd[sd <= 1e-12 * np.abs(mean)] = 1
        return {"mean": mean, "scale": sd, **self.fit_from((negative.x - mean) / sd, negative.parents)}

    @abstractmethod
    def fit_from(self, z: Features, parents: Int[np.ndarray, " images"]) -> Arrays:
        """The same from standardised features and parent classes, UNKNOWN where there is none."""

    def arrays(self, fitted: Any) -> Arrays:
        return dict(fitted.arrays)

    def packed(self, fitted: Any) -> Any:
        return fitted.arrays

    def unpacked(self, loaded: Any) -> Any:
        return OneClass(self.head.kind, loaded)


class NearestDistance(OneClassRecipe):
    """The mean distance to the nearest images."""

    def fit_from(self, z: Features, parents: Int[np.ndarray, " images"]) -> Arrays:
        if (k := self.head.k) > len(z):
            raise UserError(f"model.head.k {k} is more than the {len(z)} images to fit on that are not positive: lower it")
        return {"points": z, "k": np.array(k)}


class Mahalanobis(OneClassRecipe):
    """The distance to the nearest parent class' Gaussian."""

    def fit_from(self, z: Features, parents: Int[np.ndarray, " images"]) -> Arrays:
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


def _whitening(residuals: Features) -> Float64[np.ndarray, "width width"]:
    """The root of the inverse of the residuals' Ledoit–Wolf covariance."""
    values, vectors = np.linalg.eigh(ledoit_wolf(residuals, assume_centered=True)[0])
    inverse = np.divide(1, values, out=np.zeros_like(values), where=values > TINY * values.max())
    return vectors * np.sqrt(inverse)


def _fit_line(distances: Array, labels: Labels) -> Arrays:
    """Log-odds of being positive as a rising line of the distance."""
    mean, sd = distances.mean(), distances.std() or 1.0
    line = LogisticRegression().fit((distances[:, None] - mean) / sd, labels == 0)
    slope, intercept = float(line.coef_[0, 0]), float(line.intercept_[0])
    if slope < FLATTEST:
        share = float((labels == 0).mean())
        slope, intercept = FLATTEST, float(np.log(share / (1 - share)))
    return {"slope": np.array([slope / sd]), "intercept": np.array([intercept - slope * mean / sd])}
