"""The block `model.head`: what turns an embedding into a prediction, trained by gradient descent or solved at once.

A kind says itself what it is of, which model it makes and what fits that. Those of this package name what implements them, which
is imported when it is needed: the configuration loads no torch. A lab's own kind overrides `make_model` and `fit`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.fits import OWN, PLAIN, Fit
from pipeline.config.kinds import Kind
from pipeline.config.section import BelowOne, Fraction, Positive, implementation

FEWEST_FOLDS = 3
"""Of what is fitted to predictions for images left out."""
SOLVED = "is not trained by gradient descent"


def _solved(key: str, of: tuple[Any, ...], why: str) -> Fit:
    return Fit(key, of, why, "descends", (False,))


class Head(Kind):
    """What turns an embedding into a prediction."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit("data.truth", OWN, "does not fit {data.truth_in_words}", "of", ("numbers", "classes")),
        _solved("model.encoder.learns", (False,), SOLVED),
        _solved("model.pool", ("mean",), SOLVED),
        _solved("model.domain_embedding", (False,), SOLVED),
        _solved("model.species_embedding", (False,), SOLVED),
        _solved("loss.kind", ("mse", "cross_entropy"), "has no use for loss.kind {loss.kind}"),
        _solved("loss", PLAIN, "has no use for options of loss"),
        _solved("risk.kind", ("mean",), "has no use for risk.kind {risk.kind}"),
        _solved("train.sample", ("images",), "has no use for train.sample {train.sample}"),
        _solved("augment", PLAIN, "has no use for augment"),
        _solved("select.epoch", ("best",), "has no epochs"),
        Fit("model.text.kind", ("frozen",), "reads no texts", "reads_texts", (False,)),
        Fit(
            "backbone.views.are_plain",
            (True,),
            "reads one view of an image",
            "reads_views",
            (False,),
            hint="backbone.views to {}",
        ),
        Fit("train.batches.kind", ("shuffled",), "does not compare the images of a batch", "embeds_pairs", (False,)),
        Fit("train.processes", (1,), "is trained in one process", "embeds_pairs", (False,)),
    )
    of: ClassVar[Literal["numbers", "classes", "both"]] = "numbers"
    """The truth that it predicts."""
    embeds_pairs: ClassVar[bool] = False
    """Whether it embeds images and texts, which losses of pairs compare, instead of predicting."""
    descends: ClassVar[bool] = False
    """Whether it learns by gradient descent, in epochs: with a loss, a risk, augmentation, and an encoder that may learn too."""
    chooses: ClassVar[bool] = True
    """Whether it chooses something by `select.metric`, which then must be defined on validation."""
    growth: ClassVar[int] = 1
    """With which power of the number of images the time grows that it takes to solve."""
    takes_folds: ClassVar[bool] = False
    """Whether it can be chosen and scored by `select.folds`: `Fitted.left_out` holds what it says of images left out."""
    adapter: ClassVar[str] = ""
    """The function that trains its model on images without their truth (`evaluate.adapt`): (model, samples, config, how)."""
    learns_log: ClassVar[bool] = False
    """Whether it learns log(1 + target), so that no target may be below 0."""
    keeps_sums: ClassVar[bool] = False
    """Whether targets that add up (data.sums) do so in what it says."""
    reads_views: ClassVar[bool] = False
    """Whether it knows what to do with several views of an image."""
    can_be_stacked: ClassVar[bool] = False
    """Whether the parameters of several, of one shape, can stand in one tensor, so that they are trained together. A kind that
    derives from this one says so itself."""
    reads_texts: ClassVar[bool] = False
    """Whether it reads the texts of classes beside images (`config/towers.py`)."""
    embeds: ClassVar[bool] = False
    """Whether what it says of an image is an embedding, beside those of the classes."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """What its model needs in a submission beside torch and numpy, in the version that is here."""
    model: ClassVar[str] = "pipeline.models.learner.Learner"
    """The class (`models/base.Model`) whose `make` builds its model."""
    fitter: ClassVar[str]
    """The function that fits its model: (model, train, validation, run) → Fitted."""

    def make_model(self, config: Any, facts: Any, encoder: Any) -> Any:
        """A new `Model` for `facts`, its weights drawn from torch's random state; `encoder` makes the embedding."""
        return implementation(self.model).make(config, facts, encoder)

    def fit(self, model: Any, train: Any, validation: Any, run: Any) -> Any:
        """Fit `model` in place, to `Samples` of the two splits, and say how it went (`training/run.Fitted`)."""
        return implementation(self.fitter)(model, train, validation, run)

    def adapt(self, model: Any, samples: Any, config: Any, how: Any) -> None:
        """Train a model that was loaded on images that it is evaluated on."""
        implementation(self.adapter)(model, samples, config, how)

    @property
    def adapts(self) -> bool:
        """Whether it can."""
        return bool(self.adapter)

    def misfit(self, counts: Mapping[str, int]) -> str:
        """Why it cannot be fitted to so many images of each class (the positive one of two first; of numbers: nothing is told),
        after the head's name; empty if it can. A class of none is one that it goes on without."""
        return ""

    @property
    def n_folds(self) -> int:
        """In how many folds it deals out what it is trained on; 0: in none."""
        return 0

    @property
    def learns_scale(self) -> bool:
        """Whether what makes logits of its similarities is learnt too."""
        return False

    def widths(self) -> tuple[int, ...]:
        """Of its hidden layers: its key `hidden`, if it has one."""
        return getattr(self, "hidden", ())

    def n_parameters(self, width: int, n_targets: int) -> int:
        """How many numbers it learns by gradient descent, on an embedding so wide, about."""
        return 0

    def rate_scale(self) -> float:
        """Its learning rate, as a multiple of `optim.lr`: its key `lr_scale`, if it has one."""
        return float(getattr(self, "lr_scale", 1.0))


class MlpHead(Head):
    """A perceptron with GELU between its layers, trained by gradient descent."""

    of = "both"
    descends = can_be_stacked = True
    reads_views = True
    fitter, adapter = "pipeline.training.learner.fit", "pipeline.training.adapt.adapt"
    kind: Literal["mlp"] = "mlp"
    hidden: tuple[Positive, ...] = (512, 128, 32)
    """Widths of the hidden layers."""
    lr_scale: float = Field(1.0, gt=0)
    """Learning rate of head and domain embedding, as a multiple of `optim.lr`."""

    def n_parameters(self, width: int, n_targets: int) -> int:
        return sum(a * b for a, b in itertools.pairwise((width, *self.hidden, n_targets)))


class PerTargetHead(Head):
    """A perceptron of its own for each output: a hidden layer with ReLU and dropout."""

    descends = True
    reads_views = True
    fitter, adapter = "pipeline.training.learner.fit", "pipeline.training.adapt.adapt"
    kind: Literal["per_target"]
    hidden: Positive | None = None
    """Width of the hidden layer; null: a quarter of the embedding's, 8 at least."""
    dropout: BelowOne = 0.3
    """Behind it."""
    lr_scale: float = Field(1.0, gt=0)
    """Learning rate of head and domain embedding, as a multiple of `optim.lr`."""

    def widths(self) -> tuple[int, ...]:
        return (self.hidden or 8,)

    def hidden_width(self, width: int) -> int:
        """Of each output's hidden layer, on an embedding so wide."""
        return self.hidden or max(8, width // 4)

    def n_parameters(self, width: int, n_targets: int) -> int:
        return n_targets * self.hidden_width(width) * (width + 1)


class RidgeHead(Head):
    """Ridge regression on standardised embeddings, solved in closed form; the penalty is chosen on validation."""

    fitter = "pipeline.training.ridge.fit_ridge"
    reads_views = True
    kind: Literal["ridge"]
    alphas: tuple[Annotated[float, Field(ge=0)], ...] = Field((1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4), min_length=1)
    """Penalties to choose from by `select.metric`."""


class RidgeStackHead(Head):
    """Ridge regression on each part of the embedding (each view, tap and pooling) by itself, and another one on what these say of
    images that they were not fitted to; half of it learnt of the targets, half of log(1 + target). Nothing is chosen."""

    chooses = False
    learns_log = True
    keeps_sums = True
    reads_views = True
    fits = (
        Fit("model.normalize", (False,), "scales each part by its median and quartiles", "kind"),
        Fit("model.standardize_targets", (False,), "learns targets as they are, and their logarithms", "kind"),
        Fit("model.fuse.kind", ("concat",), "reads each view by itself", "kind"),
    )
    model, fitter = "pipeline.models.ridge_stack.RidgeStack", "pipeline.training.ridge_stack.fit_ridge_stack"
    kind: Literal["ridge_stack"]
    alpha: float = Field(5.0, gt=0)
    """Penalty of each part's."""
    stack_alpha: float = Field(1.0, gt=0)
    """Penalty of the one on what they say."""
    folds: Annotated[int, Field(ge=FEWEST_FOLDS)] = 5
    """Folds of the training images, which do not part what data.split keeps together."""
    log_share: Fraction = 0.5
    """How much of a prediction is of those learnt of log(1 + target). No target may be below 0, and no prediction is."""

    @property
    def n_folds(self) -> int:
        return self.folds


class ClimatologyHead(Head):
    """No image: mean and spread of the training groups of a site and day of the year; else of the domain; else of all."""

    chooses = False
    model, fitter = "pipeline.models.baselines.Climatology", "pipeline.training.baselines.fit_climatology"
    kind: Literal["climatology"]
    window: Annotated[int, Field(ge=0, le=183)] = 30
    """Days before and after that day of the year, in any year, that count as that day."""
    min_groups: Annotated[int, Field(ge=2)] = 5
    """With fewer training groups than these the domain is asked, then all."""


class BoostingHead(Head):
    """No image: gradient-boosted trees (LightGBM) on domain, species, site and day of the year."""

    chooses = False
    libraries = ("lightgbm",)
    model, fitter = "pipeline.models.baselines.Boosting", "pipeline.training.baselines.fit_boosting"
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
