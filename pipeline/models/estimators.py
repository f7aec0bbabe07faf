"""Kinds of classifiers of scikit-learn: how each is made and fitted, which types its file may hold, and its plain arrays.

Labels are row numbers of the classes; with two the first is the positive one. `models/plain.py` scores the arrays.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

Array = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]
Labels = NDArray[np.int64]
Folds = Sequence[tuple[Labels, Labels]]
"""Row numbers that are fitted on, and those that are left out, of each fold."""


@dataclass(frozen=True)
class Rows:
    """Images as scikit-learn takes them, by their embeddings."""

    x: Float64[np.ndarray, "images width"]
    labels: Int[np.ndarray, " images"]
    """Place of each one's class."""
    parents: Int[np.ndarray, " images"]
    """Auxiliary class of each, `one_class.UNKNOWN` where none is told."""
    groups: Int[np.ndarray, " images"]
    """Number of each one's group."""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Labels) -> Rows:
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class OfSome:
    """A fitted estimator of those of `n` classes that it was fitted on; of the others it says that nothing is one."""

    fitted: Any
    present: tuple[int, ...]
    n: int

    @property
    def has_all(self) -> bool:
        return len(self.present) == self.n

    def predict_proba(self, x: Float64[np.ndarray, "images width"]) -> Float64[np.ndarray, "images classes"]:
        """Probabilities of images, from features."""
        said = np.zeros((len(x), self.n))
        said[:, list(self.present)] = self.fitted.predict_proba(x)
        return said


class Recipe(ABC):
    """One kind of classifier, with its block's options."""

    calibrated: ClassVar[bool] = False
    """Whether its probabilities are calibrated on folds."""
    trusted: ClassVar[tuple[str, ...]] = ()
    """Types that its file may hold beside those that skops trusts itself: private parts of the estimators that are made here."""

    def __init__(self, head: Any) -> None:
        self.head = head

    @abstractmethod
    def fit(self, rows: Rows, folds: Folds, random: int) -> list[Any]:
        """Fitted candidates, of which one is chosen by `select.metric`; each tells `predict_proba` [B, E] → [B, C].

        `folds` are those that it is calibrated on.
        """

    @abstractmethod
    def arrays(self, fitted: Any) -> Arrays:
        """A fitted estimator as the arrays that `models/plain.py` scores."""

    def packed(self, fitted: Any) -> Any:
        """What of a fitted estimator goes into its file."""
        return fitted

    def unpacked(self, loaded: Any) -> Any:
        """A fitted estimator from what its file held."""
        return loaded


class OfScikitLearn(Recipe):
    """One that scikit-learn fits."""

    @abstractmethod
    def make(self, width: int, folds: Folds, random: int) -> Any:
        """An estimator that is not fitted yet, for features of this width."""

    def fit(self, rows: Rows, folds: Folds, random: int) -> list[Any]:
        return [self.make(rows.x.shape[1], folds, random).fit(rows.x, rows.labels)]

    def common(self, random: int) -> dict[str, Any]:
        """Options of several of scikit-learn's."""
        return {"class_weight": "balanced" if self.head.balanced else None, "random_state": random}


class Trees(OfScikitLearn):
    """Gradient-boosted trees on binned features."""

    trusted = ("sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",)

    def make(self, width: int, folds: Folds, random: int) -> Any:
        head = self.head
        sizes = {"max_iter": head.rounds, "max_leaf_nodes": head.leaves, "min_samples_leaf": head.min_leaf}
        penalties = {"learning_rate": head.lr, "l2_regularization": head.l2}
        # Stopping early would hold images out that are not grouped.
        return HistGradientBoostingClassifier(**sizes, **penalties, **self.common(random), early_stopping=False)

    def arrays(self, fitted: Any) -> Arrays:
        """Nodes of the trees [rounds, K, nodes], padded with leaves; a leaf's children are itself."""
        trees = [[tree.nodes for tree in round_] for round_ in fitted._predictors]
        shape = (len(trees), len(trees[0]), max(len(nodes) for round_ in trees for nodes in round_))
        own = np.broadcast_to(np.arange(shape[2]), shape)
        arrays: Arrays = {"left": own.copy(), "right": own.copy(), "feature": np.zeros(shape, "int64")}
        arrays |= {"threshold": np.full(shape, np.inf), "value": np.zeros(shape)}
        columns = {"left": "left", "right": "right", "feature": "feature_idx", "threshold": "num_threshold"}
        for at in np.ndindex(*shape[:2]):
            nodes = trees[at[0]][at[1]]
            inner = np.flatnonzero(nodes["is_leaf"] == 0)
            arrays["value"][at][: len(nodes)] = nodes["value"]
            for name, column in columns.items():
                arrays[name][at][inner] = nodes[column][inner]
        scales = {"mean": np.zeros(1), "scale": np.ones(1)}
        return {**scales, **arrays, "baseline": fitted._baseline_prediction.ravel()}


class Standardised(OfScikitLearn):
    """One that reads standardised features; a linear one unless it tells other arrays."""

    def make(self, width: int, folds: Folds, random: int) -> Any:
        return make_pipeline(StandardScaler(), self.inner(width, random))

    @abstractmethod
    def inner(self, width: int, random: int) -> Any:
        """What comes after the scaling."""

    def arrays(self, fitted: Any) -> Arrays:
        scaler, inner = (step for _, step in fitted.steps)
        return {"mean": scaler.mean_, "scale": scaler.scale_, **self.inner_arrays(inner)}

    def inner_arrays(self, inner: Any) -> Arrays:
        """Those of what comes after the scaling."""
        return {"weights": inner.coef_.T, "bias": inner.intercept_}


class Logistic(Standardised):
    """Logistic regression: a candidate for each penalty."""

    def inner(self, width: int, random: int) -> Any:
        return LogisticRegression(warm_start=True, max_iter=1000, **self.common(random))

    def fit(self, rows: Rows, folds: Folds, random: int) -> list[Any]:
        """The strongest penalty first; each of the others starts where the one before has ended."""
        (scaling, scaler), (name, inner) = self.make(rows.x.shape[1], folds, random).steps
        z, fits = scaler.fit_transform(rows.x), []
        for C in self.head.Cs:
            inner.set_params(C=C).fit(z, rows.labels)
            fits.append(Pipeline([(scaling, scaler), (name, copy.deepcopy(inner))]))
        return fits


class Discriminant(Standardised):
    """Linear discriminant analysis."""

    def inner(self, width: int, random: int) -> Any:
        return LinearDiscriminantAnalysis(solver="lsqr", shrinkage=self.head.shrinkage)


class Neighbours(Standardised):
    """Votes of the nearest images."""

    def inner(self, width: int, random: int) -> Any:
        return KNeighborsClassifier(self.head.k, weights=self.head.weights, algorithm="brute")

    def inner_arrays(self, inner: Any) -> Arrays:
        options = {"k": np.array(inner.n_neighbors), "by_distance": np.array(inner.weights == "distance")}
        return {"points": inner._fit_X, "labels": inner._y, **options, "n_classes": np.array(len(inner.classes_))}


class GaussianProcess(Standardised):
    """A Gaussian process by Laplace's approximation."""

    trusted = (
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
    )

    def inner(self, width: int, random: int) -> Any:
        length = float(np.sqrt(width / 2)) if self.head.length_scale == "scale" else self.head.length_scale
        return GaussianProcessClassifier(ConstantKernel(1.0) * RBF(length), random_state=random)

    def inner_arrays(self, inner: Any) -> Arrays:
        """Of each latent function its kernel, y − π [N], and L⁻¹·W^½ [N, N] (the variance is the prior's less its square)."""
        whole = inner.base_estimator_
        parts = [whole] if hasattr(whole, "X_train_") else whole.estimators_
        return {
            "points": parts[0].X_train_,
            "amplitude": np.array([part.kernel_.k1.constant_value for part in parts]),
            "length": np.array([part.kernel_.k2.length_scale for part in parts]),
            "residual": np.stack([part.y_train_ - part.pi_ for part in parts]),
            "root": np.stack([solve_triangular(part.L_, np.diag(part.W_sr_), lower=True) for part in parts]),
        }


# ---------------------------------------------------------------- calibrated
class Calibrated(Standardised):
    """One whose decisions become probabilities by a logistic line through those out of fold (Platt)."""

    calibrated = True
    trusted = ("sklearn.calibration._CalibratedClassifier", "sklearn.calibration._SigmoidCalibration")

    def make(self, width: int, folds: Folds, random: int) -> Any:
        inner = super().make(width, folds, random)
        return CalibratedClassifierCV(inner, method="sigmoid", cv=list(folds), ensemble=False)

    def fit(self, rows: Rows, folds: Folds, random: int) -> list[Any]:
        (fitted,) = super().fit(rows, folds, random)
        return [fitted.set_params(cv=None)]  # the folds have served; the model's file need not hold them

    def arrays(self, fitted: Any) -> Arrays:
        (calibrated,) = fitted.calibrated_classifiers_
        lines = np.array([(-line.a_, -line.b_) for line in calibrated.calibrators]).T
        return {**super().arrays(calibrated.estimator), "slope": lines[0], "intercept": lines[1]}


class Descent(Calibrated):
    """A linear classifier by stochastic gradient descent."""

    def inner(self, width: int, random: int) -> Any:
        options = {name: getattr(self.head, name) for name in ("alpha", "eta0", "max_iter", "n_iter_no_change")}
        return SGDClassifier(loss="log_loss", learning_rate="adaptive", **options, **self.common(random))


class SupportVectors(Calibrated):
    """A support vector classifier."""

    def inner(self, width: int, random: int) -> Any:
        return SVC(C=self.head.C, kernel=self.head.kernel, gamma=self.head.gamma, **self.common(random))

    def inner_arrays(self, inner: Any) -> Arrays:
        """LIBSVM keeps of each support vector its coefficients against the other classes; here a column is of a pair of them."""
        bounds = np.concatenate([[0], np.cumsum(inner.n_support_)])
        dual, n = inner.dual_coef_, len(inner.n_support_)
        pairs = list(combinations(range(n), 2))
        coefficients = np.zeros((dual.shape[1], len(pairs)))
        for column, (i, j) in enumerate(pairs):
            for own, row in ((i, j - 1), (j, i)):
                rows = slice(bounds[own], bounds[own + 1])
                coefficients[rows, column] = dual[row, rows]
        arrays = {"support": inner.support_vectors_, "coefficients": coefficients, "bias": inner.intercept_}
        return arrays | ({"gamma": np.float64(inner._gamma).reshape(())} if inner.kernel == "rbf" else {})
