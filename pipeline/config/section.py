"""What all blocks of a configuration share: strict, immutable, and the kinds of numbers that they hold."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _ascend(values: tuple[float, ...]) -> tuple[float, ...]:
    if list(values) != sorted(set(values)):
        raise ValueError("they must ascend, and none stand twice")
    return values


Ascending = AfterValidator(_ascend)
LATER = "later"
"""Marks a key that is added later, `Annotated[int, LATER] = 1`, with a default that keeps the old behaviour: while it has that
default it is left out of all hashes, so what was trained before stays valid."""


@dataclass(frozen=True)
class Formerly:
    """Marks a LATER key by a default that it had before: it is left out of hashes as the present one is, so what was trained as
    by default stays so. Where the two lead to other results, something else must tell (of data.missing the hash of the table)."""

    default: Any


class Section(BaseModel):
    """A strict, immutable block of the configuration: an unknown key or a wrong type is an error."""

    fits: ClassVar[tuple[Any, ...]] = ()
    """What it needs of other blocks (`fits.Fit`)."""
    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False)


def implementation(name: str) -> Any:
    """What a block names as its implementation, `pipeline.models.learner.Learner`: imported now, for it may load torch."""
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)
