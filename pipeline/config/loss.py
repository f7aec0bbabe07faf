"""The blocks `loss` and `risk`: what a prediction costs, and how the losses of a batch become the one that is minimised."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.fits import GIVEN, OWN, Fit
from pipeline.config.kinds import Kind
from pipeline.config.section import LATER, Ascending, implementation

PREDICTED = ("numbers", "classes")
Level = Annotated[float, Field(gt=0, lt=1)]


class Loss(Kind):
    """What a prediction costs. A kind names the `models/losses.Loss` that computes it; a lab's own overrides `make`."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit("data.truth", OWN, "does not fit {data.truth_in_words}", "of", PREDICTED),
        Fit(
            "model.head.embeds_pairs",
            (False,),
            "scores predictions, and {model.head.kind} embeds images and texts",
            "of",
            PREDICTED,
        ),
        Fit("model.head.embeds_pairs", (True,), "compares images with texts, and {model.head.kind} predicts", "of", ("pairs",)),
    )
    of: ClassVar[Literal["numbers", "classes", "pairs"]] = "numbers"
    """What it is of: predictions of a truth, or pairs of an image and a text (`config/pairs.py`)."""
    learns_variance: ClassVar[bool] = True
    """Whether a head learns by it how sure it is of an image."""

    adds_up: ClassVar[bool] = False
    """Whether what a head learns by it is a location, or a location and a scale, so that it can be added up (model.outputs)."""
    can_be_stacked: ClassVar[bool] = False
    """Whether it is made of operations that can be of several trials at once (torch.func.vmap)."""
    locates: ClassVar[bool] = True
    """Whether the first of a head's numbers for a target is a location."""

    @property
    def learns_auxiliary(self) -> bool:
        """Whether labels beside the class are learnt: its key `auxiliary`, if it has one."""
        return bool(getattr(self, "auxiliary", 0))

    @property
    def reads_ranks(self) -> bool:
        """Whether it reads the ranks of classes, which the data then must have."""
        return False

    @abstractmethod
    def make(self, n_targets: int) -> Any:
        """What reads and scores a head's numbers, for so many targets (or classes)."""


class SquaredError(Loss):
    """Squared error of a point."""

    learns_variance = False
    adds_up = True
    can_be_stacked = True
    kind: Literal["mse"] = "mse"

    def make(self, n_targets: int) -> Any:
        return implementation("pipeline.models.losses.SquaredError")()


class SmoothL1(Loss):
    """Squared error of a point up to `beta`, and its absolute error beyond (Huber): an outlier counts for less."""

    learns_variance = False
    adds_up = True
    can_be_stacked = True
    kind: Literal["smooth_l1"]
    beta: float = Field(1.0, gt=0)
    """Where one becomes the other, in the units that are learnt in."""
    weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Of each target, in the order of data.targets: the loss is their weighted sum; []: the mean over targets."""

    def make(self, n_targets: int) -> Any:
        return implementation("pipeline.models.losses.SmoothL1")(self.beta, self.weights or (1 / n_targets,) * n_targets)


class GaussianLoss(Loss):
    """Mean and sigma of a normal distribution, by CRPS or by negative log-likelihood."""

    adds_up = True
    can_be_stacked = True
    kind: Literal["crps", "nll"]

    def make(self, n_targets: int) -> Any:
        return implementation("pipeline.models.losses.Gaussian")(self.kind)


class StudentTLoss(Loss):
    """Negative log-likelihood of a Student-t distribution: an outlier among images counts for less."""

    can_be_stacked = True
    kind: Literal["student_t"]
    df: float = Field(5.0, gt=2)
    """Degrees of freedom."""

    def make(self, n_targets: int) -> Any:
        return implementation("pipeline.models.losses.StudentT")(self.df)


class QuantileLoss(Loss):
    """Pinball loss of several quantiles."""

    locates = False
    can_be_stacked = True
    kind: Literal["quantiles"]
    levels: Annotated[tuple[Level, ...], Field(min_length=2), Ascending] = (0.05, 0.25, 0.5, 0.75, 0.95)
    """Levels of the quantiles, in ascending order."""

    def make(self, n_targets: int) -> Any:
        return implementation("pipeline.models.losses.Quantiles")(self.levels)


class CrossEntropy(Loss):
    """Of classes: cross-entropy, with what helps where they are of unlike size."""

    fits = (Fit("data.columns.auxiliary", GIVEN, "is the weight of labels beside the class", "auxiliary"),)
    of = "classes"
    learns_variance = False
    can_be_stacked = True
    kind: Literal["cross_entropy"]
    balanced: bool = False
    """Weight classes by 1 / their share of the training images."""
    focal: float = Field(0.0, ge=0)
    """Focusing exponent γ: what is told apart already counts less (focal loss, arXiv 1708.02002); 0: all alike."""
    auxiliary: float = Field(0.0, ge=0)
    """Weight of the cross-entropy of data.columns.auxiliary, learnt by the same network; 0: not learnt."""
    logit_adjustment: Annotated[float, Field(ge=0), LATER] = 0.0
    """τ: learn with τ·log(share of the training images) added to the logit of each class (arXiv 2007.07314); 0: not."""

    def make(self, n_targets: int) -> Any:
        return implementation("pipeline.models.losses.Categorical")(self, n_targets)


class Risk(Kind):
    """How the losses of a batch become the one that is minimised: methods of domain generalisation."""

    fits = (
        Fit("data.columns.domain", GIVEN, "tells domains apart", "tells_domains"),
        Fit("augment.mixup_alpha", (0.0,), "tells domains apart, and augment.mixup_alpha mixes them", "tells_domains"),
        Fit(
            "model.has_hidden_layer",
            (True,),
            "acts on the last hidden layer, and there is none",
            "reads_hidden",
            hint="model.head.hidden to one width or more",
        ),
    )
    tells_domains: ClassVar[bool] = True
    """Whether it asks which domain an image is of."""
    reads_hidden: ClassVar[bool] = False
    """Whether it acts on the last hidden layer."""

    @abstractmethod
    def combine(self, losses: Any, hidden: Any, domains: Any, log_weights: Any) -> Any:
        """The loss of a batch from `losses` [N] of its images or groups and `hidden` [B, H] of its images.

        `domains` are the rows of the former [N] and of the latter [B]; `log_weights` [n_domains] are group DRO's, brought up to
        date in place.
        """


class PlainRisk(Risk):
    """The mean loss, whatever domains the samples are of."""

    tells_domains = False
    kind: Literal["mean"] = "mean"

    def combine(self, losses: Any, hidden: Any, domains: Any, log_weights: Any) -> Any:
        return losses.mean()


class Coral(Risk):
    """Deep CORAL (Sun and Saenko 2016, arXiv 1607.01719): means and covariances of the last hidden layer are drawn together."""

    reads_hidden = True
    kind: Literal["coral"]
    weight: float = Field(1.0, gt=0)
    """Of the penalty, beside the mean loss."""

    def combine(self, losses: Any, hidden: Any, domains: Any, log_weights: Any) -> Any:
        coral = implementation("pipeline.training.risk.coral")
        return losses.mean() + self.weight * coral(hidden.float(), domains[1], len(log_weights))


class GroupDro(Risk):
    """Group DRO (Sagawa et al. 2020, arXiv 1911.08731): the domains with the highest loss weigh most."""

    kind: Literal["group_dro"]
    step: float = Field(0.01, gt=0)
    """Step size of the domains' weights."""

    def combine(self, losses: Any, hidden: Any, domains: Any, log_weights: Any) -> Any:
        return implementation("pipeline.training.risk.group_dro")(losses, domains[0], log_weights, self.step)
