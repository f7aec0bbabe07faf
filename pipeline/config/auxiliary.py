"""The list `data.auxiliary`: what a network learns of an image beside its targets, by heads of their own that predictions leave
out. It need not be known of new images."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.fits import Fit
from pipeline.config.kinds import Kind


class Auxiliary(Kind):
    """Something that is learnt beside numbers."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit("data.truth", ("numbers",), "is learnt beside numbers (of classes: data.columns.auxiliary)"),
        Fit("model.head.descends", (True,), "is learnt by gradient descent"),
        Fit("train.sample", ("images",), "is learnt of images"),
    )
    weight: float = Field(0.1, gt=0)
    """Of its loss, beside that of the targets."""

    @property
    def reads(self) -> str | None:
        """The column that it stands in; None: it follows from a target."""
        return None


class OfColumn(Auxiliary):
    """One that stands in a column of its own. Rows without one say nothing."""

    column: str
    """Column that holds it."""

    @property
    def reads(self) -> str | None:
        return self.column


class AuxiliaryNumber(OfColumn):
    """A number (a height, an NDVI), by squared error, in units of its standard deviation."""

    kind: Literal["number"]


class AuxiliaryName(OfColumn):
    """A name (a state, a species), by cross-entropy."""

    fits = (Fit("augment.mixes", (False,), "is a name, which cannot be mixed", hint="augment.mixup_alpha 0"),)
    kind: Literal["name"]


class AuxiliaryBins(Auxiliary):
    """In which of some equally frequent ranges a target lies, by cross-entropy."""

    kind: Literal["bins"]
    target: str
    """The target."""
    n: Annotated[int, Field(ge=2)] = 5
    """How many ranges, by quantiles of the training images."""
