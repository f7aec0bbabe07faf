"""The block `model.head`: what turns an embedding into a prediction, trained by gradient descent or solved at once."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from pipeline.config.section import Fraction, Positive, Section


class MlpHead(Section):
    """A perceptron with GELU between its layers, trained by gradient descent."""

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Positive, ...] = (512, 128, 32)
    """Widths of the hidden layers."""
    lr_scale: float = Field(1.0, gt=0)
    """Learning rate of head and domain embedding, as a multiple of `optim.lr`."""


class RidgeHead(Section):
    """Ridge regression on standardised embeddings, solved in closed form; the penalty is chosen on validation."""

    kind: Literal["ridge"]
    alphas: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)] = (
        1e-2,
        1e-1,
        1.0,
        1e1,
        1e2,
        1e3,
        1e4,
    )
    """Penalties to choose from by `select.metric`."""


class ClimatologyHead(Section):
    """No image: mean and spread of the training groups of a site and day of the year; else of the domain; else of all."""

    kind: Literal["climatology"]
    window: Annotated[int, Field(ge=0, le=183)] = 30
    """Days before and after that day of the year, in any year, that count as that day."""
    min_groups: Annotated[int, Field(ge=2)] = 5
    """With fewer training groups than these the domain is asked, then all."""


class BoostingHead(Section):
    """No image: gradient-boosted trees (LightGBM) on domain, species, site and day of the year."""

    kind: Literal["boosting"]
    rounds: Positive = 500
    """At most so many trees for each target."""
    patience: Positive = 30
    """Stop after so many trees without a better squared error on validation."""
    lr: float = Field(0.05, gt=0)
    """Shrinkage of each tree."""
    leaves: Annotated[int, Field(ge=2)] = 15
    """Leaves of a tree."""
    min_leaf: Positive = 20
    """Images in a leaf, at least."""


# Classifiers of scikit-learn on the frozen embedding, solved at once; all but trees on standardised features.
class SvcHead(Section):
    """Support vector classifier; its probabilities by a logistic line through out-of-fold decisions (Platt)."""

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


class SgdHead(Section):
    """Linear classifier learnt by stochastic gradient descent on log loss; its probabilities as those of `svc`."""

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


class KnnHead(Section):
    """Vote of the nearest training images."""

    kind: Literal["knn"]
    k: Positive = 5
    """How many vote."""
    weights: Literal["uniform", "distance"] = "uniform"
    """Each vote alike, or by 1 / distance."""


class GaussianProcessHead(Section):
    """Gaussian process classifier by Laplace's approximation; its kernel, amplitude² · RBF, is fitted to the training images.

    It takes the cube of their number: for more than a few thousand it is refused (`training/classifiers.py`).
    """

    kind: Literal["gaussian_process"]
    length_scale: Literal["scale"] | Annotated[float, Field(gt=0)] = "scale"
    """Length scale of the RBF kernel that the fit starts from; scale: √(number of features / 2), as `svc` has it."""


class LogisticHead(Section):
    """Logistic regression (several classes: multinomial) with an L2 penalty, chosen by `select.metric`."""

    kind: Literal["logistic"]
    Cs: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1)
    """Inverses of the penalty to choose from, in ascending order: each fit starts from the one before."""
    balanced: bool = True
    """Weight classes by 1 / their share of the training images."""

    @field_validator("Cs")
    @classmethod
    def _ascend(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if list(values) != sorted(set(values)):
            raise ValueError("Cs must ascend, and none stand twice")
        return values


class LdaHead(Section):
    """Linear discriminant analysis: normal classes of one covariance, by least squares."""

    kind: Literal["lda"]
    shrinkage: Literal["auto"] | Fraction | None = "auto"
    """Of the covariance towards its diagonal: auto (Ledoit–Wolf), a share, or null: none."""


class HistGradientBoostingHead(Section):
    """scikit-learn's gradient-boosted trees on binned features (`boosting` is LightGBM's, on metadata)."""

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


class MahalanobisHead(Section):
    """One class: the distance to the nearest parent class' Gaussian, all of one Ledoit–Wolf covariance (arXiv 1807.03888).

    Parent classes are the auxiliary labels of images that are not positive; without these, they are one class.
    """

    kind: Literal["mahalanobis"]


class KnnDistanceHead(Section):
    """One class: the mean distance to the nearest training images that are not positive."""

    kind: Literal["knn_distance"]
    k: Positive = 5
    """How many are the nearest."""


OneClassHead = MahalanobisHead | KnnDistanceHead
"""Learn what is not positive, and call positive what is far from it: they need two classes."""
ClassifierHead = (
    SvcHead | SgdHead | KnnHead | GaussianProcessHead | LogisticHead | LdaHead | HistGradientBoostingHead | OneClassHead
)
CLASSIFIER_KINDS = tuple(get_args(head.model_fields["kind"].annotation)[0] for head in get_args(ClassifierHead))
Head = Annotated[MlpHead | RidgeHead | ClimatologyHead | BoostingHead | ClassifierHead, Field(discriminator="kind")]
