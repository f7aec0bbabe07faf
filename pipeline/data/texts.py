"""Texts of images and classes, from templates (`config/texts.py`). Loads no torch."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from pipeline.config.texts import PLACEHOLDER, Texts
from pipeline.data.dataset import Dataset
from pipeline.data.taxonomy import Taxonomy, taxonomy_of
from pipeline.data.truth import LABEL, class_name

if TYPE_CHECKING:
    import pandas as pd


UNKNOWN = "\0"
"""Stands in a text for a word that is not known, until it is taken out."""
LEAVING = (
    (re.compile(rf"{UNKNOWN}(\s*{UNKNOWN})+"), UNKNOWN),
    (re.compile(rf"(^|[(\[])(\s*{UNKNOWN}\s*[,;:]?)+\s*"), r"\1"),
    (re.compile(rf"[,;:]?\s*{UNKNOWN}\s*(?=[,;:.!?)\]]|$)"), ""),
    (re.compile(r"\s*(\(\s*\)|\[\s*\])\s*(?=[,;:.!?)\]]|$)"), ""),
    (re.compile(r"\(\s*\)|\[\s*\]"), ""),
    (re.compile(UNKNOWN), ""),
)
"""What goes with it, and what stands instead: others behind it; at a beginning the comma behind; else, at an end, that before;
brackets that are empty then."""
NAMED = 3
"""Classes that a warning names."""


@dataclass(frozen=True)
class DistinctTexts:
    """Every text once, and which of them stand for an image."""

    texts: tuple[str, ...]
    """In the order of the alphabet."""
    of_image: Int64[np.ndarray, "images templates"]
    """Places among `texts`."""


@dataclass(frozen=True)
class ClassTexts(DistinctTexts):
    """The same with those that stand for a class: all that a text tower reads of a data set."""

    of_class: Int64[np.ndarray, " classes"]
    """Places among `texts`."""

    @cached_property
    def hashes(self) -> list[str]:
        """sha256 of each text."""
        return [hashlib.sha256(text.encode()).hexdigest() for text in self.texts]

    @property
    def content(self) -> str:
        """sha256 of them all."""
        return hashlib.sha256("\n".join(self.hashes).encode()).hexdigest()


def texts_of(dataset: Dataset, block: Texts) -> ClassTexts:
    """The texts of a data set's images and classes. Raises UserError where a species is of two genera."""
    taxonomy, _ = taxonomy_of(dataset)
    images, classes = image_texts(dataset.table, taxonomy, block.templates), class_texts(taxonomy, block.evaluation)
    texts = sorted({*images.texts, *classes})
    place = {text: i for i, text in enumerate(texts)}
    moved = np.array([place[text] for text in images.texts], "int64")
    return ClassTexts(tuple(texts), moved[images.of_image], np.array([place[text] for text in classes], "int64"))


def same_texts(texts: ClassTexts, names: Sequence[str]) -> Iterator[str]:
    """A warning if classes, whose `names` are targets', have one text, so that nothing said of them tells them apart."""
    of: dict[int, list[str]] = {}
    for name, place in zip(names, texts.of_class.tolist(), strict=True):
        of.setdefault(place, []).append(class_name(name))
    shared = {place: classes for place, classes in of.items() if len(classes) > 1}
    if shared:
        n, (place, classes) = sum(map(len, shared.values())), next(iter(shared.items()))
        more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
        yield (
            f"{n} classes share their text (texts.evaluation) with another one, from which no text tells them apart: "
            f"{', '.join(classes[:NAMED])}{more} are {texts.texts[place]!r}"
        )


def fill(template: str, words: Mapping[str, str | None]) -> str:
    """A template with what is known of the words in it; what is unknown is left out, with the blank, comma or brackets that it
    would leave."""
    text = PLACEHOLDER.sub(lambda found: words.get(found[1]) or UNKNOWN, template)
    if UNKNOWN in text:
        for pattern, instead in LEAVING:
            text = pattern.sub(instead, text)
    return " ".join(text.split())


def class_words(taxonomy: Taxonomy, label: int) -> dict[str, str | None]:
    """What a class is called: SCI, COM (where it has no common name, SCI), and TAX: its ranks, then what the scientific name says
    beside the last of them (`Carabidae Carabus nemoralis`)."""
    name, taxa = taxonomy.scientific[label], [taxon for taxon in taxonomy.taxa[label] if taxon]
    own = name.removeprefix(f"{taxa[-1]} ") if taxa else name
    return {"SCI": name, "COM": taxonomy.common[label] or name, "TAX": " ".join([*taxa, own])}


def class_texts(taxonomy: Taxonomy, template: str) -> tuple[str, ...]:
    """The text of each class, [classes], for evaluation."""
    return tuple(fill(template, class_words(taxonomy, label)) for label in range(len(taxonomy.species)))


def image_texts(table: pd.DataFrame, taxonomy: Taxonomy, templates: Sequence[str]) -> DistinctTexts:
    """The texts of a table's images, one for each template; sex and view are those of the row."""
    own = [table[name].tolist() if name in table else [None] * len(table) for name in ("sex", "view")]
    cells = list(zip(table[LABEL].tolist(), *own, strict=True))
    kinds = {cell: i for i, cell in enumerate(dict.fromkeys(cells))}
    words = [class_words(taxonomy, label) | {"SEX": sex, "POS": view} for label, sex, view in kinds]
    filled = [[fill(template, each) for template in templates] for each in words]
    texts = sorted({text for each in filled for text in each})
    place = {text: i for i, text in enumerate(texts)}
    numbers = np.array([[place[text] for text in each] for each in filled], "int64").reshape(len(filled), len(templates))
    return DistinctTexts(tuple(texts), numbers[[kinds[cell] for cell in cells]])
