"""Kinds of `model.head` that are classifiers of scikit-learn on the frozen embedding, solved at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.config.head import Head
from pipeline.config.section import Ascending, Fraction, Positive, implementation

MOST_OF_A_PROCESS = 4000
"""Images that a Gaussian process is fitted to: time grows with their cube, memory with their square (128 MB a matrix)."""


class ClassifierHead(Head):
    """A classifier of scikit-learn on the frozen embedding, solved at once; all but trees on standardised features."""

    of = "classes"
    takes_folds = True
    model, fitter = "pipeline.models.classifiers.Classifier", "pipeline.training.classifiers.fit_classifier"
    estimator: ClassVar[str]
    """The class (`models/estimators.Recipe`) that makes and fits its estimators, and tells their arrays."""

    def misfit(self, counts: Mapping[str, int]) -> str:
        there = [name for name, n in counts.items() if n]
        return "" if len(there) > 1 else f"tells classes apart, and all images to fit on are of {there[0] if there else 'none'}"

    def recipe(self) -> Any:
        """What makes and fits its estimators."""
        return implementation(self.estimator)(self)


class SvcHead(ClassifierHead):
    """Support vector classifier; its probabilities by a logistic line through out-of-fold decisions (Platt)."""

    growth = 2
    estimator = "pipeline.models.estimators.SupportVectors"
    kind: Literal["svc"]
    C: float = Field(1.0, gt=0)
    """Inverse of the penalty."""
    kernel: Literal["rbf", "linear"] = "rbf"
    gamma: Literal["scale"] | Annotated[float, Field(gt=0)] = "scale"
    """Of the RBF kernel exp(−γ·distance²); scale: 1 / (features · their variance)."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""

    @model_validator(mode="after")
    def _gamma_has_its_kernel(self) -> SvcHead:
        if self.kernel == "linear" and self.gamma != "scale":
            raise ValueError("gamma is of the rbf kernel, and kernel is linear")
        return self


class SgdHead(ClassifierHead):
    """Linear classifier learnt by stochastic gradient descent on log loss; its probabilities as those of `svc`."""

    estimator = "pipeline.models.estimators.Descent"
    kind: Literal["sgd"]
    alpha: float = Field(1e-3, gt=0)
    """L2 penalty."""
    eta0: float = Field(1e-3, gt=0)
    """First learning rate: adaptive, a fifth of it each time that the loss stops falling."""
    max_iter: Positive = 1000
    """At most so many passes over the training images."""
    n_iter_no_change: Positive = 100
    """Passes without a lower loss after which the rate falls."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""


class KnnHead(ClassifierHead):
    """Vote of the nearest training images."""

    estimator = "pipeline.models.estimators.Neighbours"
    kind: Literal["knn"]
    k: Positive = 5
    """How many vote."""
    weights: Literal["uniform", "distance"] = "uniform"
    """Each vote alike, or by 1 / distance."""

    def misfit(self, counts: Mapping[str, int]) -> str:
        n = sum(counts.values())
        return super().misfit(counts) or (f"has k {self.k}, more than the {n} images to fit on" if self.k > n else "")


class GaussianProcessHead(ClassifierHead):
    """Gaussian process classifier by Laplace's approximation; its kernel, amplitude² · RBF, is fitted to the training images.

    It takes the cube of their number: for more than a few thousand it is refused.
    """

    growth = 3
    estimator = "pipeline.models.estimators.GaussianProcess"
    kind: Literal["gaussian_process"]
    length_scale: Literal["scale"] | Annotated[float, Field(gt=0)] = "scale"
    """Length scale of the RBF kernel that the fit starts from; scale: √(number of features / 2), as `svc` has it."""

    def misfit(self, counts: Mapping[str, int]) -> str:
        n = sum(counts.values())
        many = f"takes the cube of the number of images, and {n} are more than {MOST_OF_A_PROCESS}"
        return super().misfit(counts) or (many if n > MOST_OF_A_PROCESS else "")


class LogisticHead(ClassifierHead):
    """Logistic regression (several classes: multinomial) with an L2 penalty, chosen by `select.metric`."""

    estimator = "pipeline.models.estimators.Logistic"
    kind: Literal["logistic"]
    Cs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1), Ascending] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1)
    """Inverses of the penalty to choose from, in ascending order: each fit starts from the one before."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""


class LdaHead(ClassifierHead):
    """Linear discriminant analysis: normal classes of one covariance, by least squares."""

    estimator = "pipeline.models.estimators.Discriminant"
    kind: Literal["lda"]
    shrinkage: Literal["auto"] | Fraction | None = "auto"
    """Of the covariance towards its diagonal: auto (Ledoit–Wolf), a share, or null: none."""


class HistGradientBoostingHead(ClassifierHead):
    """scikit-learn's gradient-boosted trees on binned features (`boosting` is LightGBM's, on metadata)."""

    estimator = "pipeline.models.estimators.Trees"
    kind: Literal["hist_gradient_boosting"]
    lr: float = Field(0.1, gt=0)
    """Shrinkage of each tree."""
    rounds: Positive = 100
    """Number of trees (of each class, if these are more than two)."""
    leaves: Annotated[int, Field(ge=2)] = 31
    """Leaves of a tree, at most."""
    min_leaf: Positive = 20
    """Training images in a leaf, at least."""
    l2: float = Field(0.0, ge=0)
    """Penalty on the leaves' values."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""


class OneClassHead(ClassifierHead):
    """One that learns what is not positive, and calls positive what is far from it."""

    def misfit(self, counts: Mapping[str, int]) -> str:
        several = f"tells one class from all else, and here are {len(counts)} ({', '.join(counts)})"
        return several if len(counts) != 2 else super().misfit(counts)


class MahalanobisHead(OneClassHead):
    """One class: the distance to the nearest parent class' Gaussian, all of one Ledoit–Wolf covariance (arXiv 1807.03888).

    Parent classes are the auxiliary labels of images that are not positive; without these, they are one class.
    """

    estimator = "pipeline.models.one_class.Mahalanobis"
    kind: Literal["mahalanobis"]


class KnnDistanceHead(OneClassHead):
    """One class: the mean distance to the nearest training images that are not positive."""

    estimator = "pipeline.models.one_class.NearestDistance"
    kind: Literal["knn_distance"]
    k: Positive = 5
    """How many are the nearest."""

    def misfit(self, counts: Mapping[str, int]) -> str:
        n = sum(list(counts.values())[1:])
        few = f"has k {self.k}, more than the {n} images to fit on that are not positive"
        return super().misfit(counts) or (few if self.k > n else "")
