"""The block `texts`: what stands for an image or a class in a text tower."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from pipeline.config.section import Section

PLACEHOLDER = re.compile(r"\$([A-Za-z]+)\$")
OF_CLASS = ("SCI", "COM", "TAX")
OF_IMAGE = ("SEX", "POS")
PLAIN_TEXT = "a photo of $SCI$"


def _check(template: str, known: tuple[str, ...]) -> None:
    names = PLACEHOLDER.findall(template)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{template!r}: ${unknown[0]}$ stands for nothing here; there are {', '.join(f'${name}$' for name in known)}"
        )
    if not set(names) & set(OF_CLASS):
        words = ", ".join(f"${name}$" for name in OF_CLASS)
        raise ValueError(f"{template!r} is the same text for all species: name them by one of {words}")


class Texts(Section):
    """Templates of texts. $SCI$: the scientific name, $COM$: the common name (where it is unknown, the scientific one), $TAX$:
    the ranks and the species, $SEX$: the sex, $POS$: the view; what is unknown is left out, with its comma or brackets."""

    templates: Annotated[tuple[str, ...], Field(min_length=1)] = (PLAIN_TEXT,)
    """Of training, each with $SCI$, $COM$ or $TAX$; where there are several, one is drawn for each image in each epoch."""
    evaluation: str = PLAIN_TEXT
    """Of a class, in evaluation: $SCI$, $COM$ or $TAX$."""

    @field_validator("templates")
    @classmethod
    def _templates_are_known(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            _check(template, OF_CLASS + OF_IMAGE)
        return templates

    @field_validator("evaluation")
    @classmethod
    def _evaluation_is_of_classes(cls, template: str) -> str:
        _check(template, OF_CLASS)
        return template
