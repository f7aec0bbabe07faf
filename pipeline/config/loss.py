"""The blocks `loss` and `risk`: what a prediction costs, and how the losses of a batch become the one that is minimised."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.section import Section


class PlainLoss(Section):
    """A loss without options."""

    kind: Literal["mse", "crps", "nll"] = "mse"
    """Squared error of a point; or mean and sigma of a normal distribution by CRPS or by negative log-likelihood."""


class StudentTLoss(Section):
    """Negative log-likelihood of a Student-t distribution: an outlier among images counts for less."""

    kind: Literal["student_t"]
    df: float = Field(5.0, gt=2)
    """Degrees of freedom."""


class QuantileLoss(Section):
    """Pinball loss of several quantiles."""

    kind: Literal["quantiles"]
    levels: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=2)] = (
        0.05,
        0.25,
        0.5,
        0.75,
        0.95,
    )
    """Levels of the quantiles, in ascending order."""

    @field_validator("levels")
    @classmethod
    def _ascend(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if list(levels) != sorted(set(levels)):
            raise ValueError("levels must ascend, and none stand twice")
        return levels


class CrossEntropy(Section):
    """Of classes: cross-entropy, with what helps where they are of unlike size."""

    kind: Literal["cross_entropy"]
    balanced: bool = False
    """Weight classes by 1 / their share of the training images."""
    focal: float = Field(0.0, ge=0)
    """Focusing exponent γ: what is told apart already counts less (focal loss, arXiv 1708.02002); 0: all alike."""
    auxiliary: float = Field(0.0, ge=0)
    """Weight of the cross-entropy of data.columns.auxiliary, learnt by the same network; 0: not learnt."""


Loss = Annotated[PlainLoss | StudentTLoss | QuantileLoss | CrossEntropy, Field(discriminator="kind")]


class PlainRisk(Section):
    """The mean loss, whatever domains the samples are of."""

    kind: Literal["mean"] = "mean"


class Coral(Section):
    """Deep CORAL (Sun and Saenko 2016, arXiv 1607.01719): means and covariances of the last hidden layer are drawn together."""

    kind: Literal["coral"]
    weight: float = Field(1.0, gt=0)
    """Of the penalty, beside the mean loss."""


class GroupDro(Section):
    """Group DRO (Sagawa et al. 2020, arXiv 1911.08731): the domains with the highest loss weigh most."""

    kind: Literal["group_dro"]
    step: float = Field(0.01, gt=0)
    """Step size of the domains' weights."""


Risk = Annotated[PlainRisk | Coral | GroupDro, Field(discriminator="kind")]
