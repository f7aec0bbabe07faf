"""What the features of texts depend on, hashed and kept like that of images (hashes.py). This module loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pipeline.backbones import sources_state, text_sources
from pipeline.config.identity import digest, texts_from
from pipeline.config.trial import Config
from pipeline.data.dataset import known_signature
from pipeline.data.texts import ClassTexts
from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import write_json
from pipeline.errors import WorkError
from pipeline.features.hashes import TowerRecord, made_of, read_as, record_file, weights_signature
from pipeline.features.key import Ingredients

if TYPE_CHECKING:
    from pipeline.backbones.texts import Towers


OF_TABLES = ("texts", "taxonomy", "known_columns", "missing", "species", "table", "classes")
CODE = tuple(f"data/{name}.py" for name in (*OF_TABLES, "dealing", "splits", "species_splits"))
"""What makes texts of tables, and deals the classes to other images (data.permute_targets): other code must not pass for the one
on record."""


@dataclass(frozen=True)
class TextWeights(TowerRecord):
    """The record of a text tower, and the numbers that make logits of cosines."""

    logit_scale: float
    """The logarithm of the factor."""
    logit_bias: float | None
    """None where the model has none."""
    sources: list[str]
    """What, beside the weights, texts are read by, a tokenizer mostly: a folder, or a repository on the Hub."""
    sources_state: str
    """As `_state_of` has it."""

    @property
    def logits(self) -> str:
        """Both numbers, to the bit."""
        return f"{self.logit_scale!r}, {self.logit_bias!r}"


@dataclass(frozen=True)
class TextsRecord:
    """The texts of a data set: how many, and the sha256 of them all."""

    content: str
    n: int


def text_weights(config: Config, load: Callable[[], Towers]) -> TextWeights:
    """The record of the text tower of the model that `load` loads, from disk if it holds."""
    if (known := known_text_weights(config)) is not None:
        return known
    towers, now = load(), weights_signature(config.backbone)
    if now is None:
        raise WorkError(
            f"The weights of {config.backbone.display_name}, or the code that reads them, changed meanwhile. Run this again."
        )
    text, sources = towers.text, text_sources(config.backbone)
    record = TextWeights(
        signature=now,
        weights=text.weights_hash(),
        architecture=hashlib.sha256(repr(text).encode()).hexdigest(),
        transform=text.transform_id(),
        n_blocks=text.n_blocks,
        embed_dim=text.embed_dim,
        width=text.width + 1,  # with each token's mark
        n_patches=text.n_tokens - 1,
        n_parameters=sum(parameter.numel() for parameter in text.parameters()),
        n_inputs=3 * text.context_length,  # (`TextTower.given`)
        logit_scale=towers.logit_scale,
        logit_bias=towers.logit_bias,
        sources=sources,
        sources_state=_state_of(sources),
    )
    write_json(record_file(config, "text-weights", now), asdict(record))
    return record


def known_text_weights(config: Config) -> TextWeights | None:
    """The record of the text tower, if there is one of the weights as they are now, and of what else reads its texts."""
    now = weights_signature(config.backbone)
    known = read_as(record_file(config, "text-weights", now), TextWeights) if now else None
    return known if known and known.sources_state == _state_of(known.sources) else None


def keep_texts(config: Config, looks: str, texts: ClassTexts) -> None:
    """Record the texts of the data that have this signature."""
    write_json(record_file(config, "texts", _signature(config, looks)), asdict(TextsRecord(texts.content, len(texts.texts))))


def text_ingredients(config: Config, content: str, weights: TextWeights) -> Ingredients:
    """What the features of these texts depend on. Raises UserError if the tower has too few blocks."""
    return made_of(config, "text", content, weights)


def known_text_key(config: Config, looks: str | None = None) -> str | None:
    """The key of the texts' features if records tell it; `looks` is the data's `known_signature`, for a caller that has it."""
    weights, texts = known_text_weights(config), known_texts(config, looks)
    return None if weights is None or texts is None else text_ingredients(config, texts.content, weights).key()


def known_texts(config: Config, looks: str | None = None) -> TextsRecord | None:
    """The record of the data's texts, if there is one of the data as they are now; `looks` as for `known_text_key`."""
    looks = looks or known_signature(config.data)
    return read_as(record_file(config, "texts", _signature(config, looks)), TextsRecord) if looks else None


def _signature(config: Config, looks: str) -> str:
    code = [hashlib.sha256((PROJECT / "pipeline" / name).read_bytes()).hexdigest() for name in CODE]
    return digest([looks, texts_from(config), code])


def _state_of(sources: list[str]) -> str:
    """A cheap identity of what texts are read by."""
    return digest(sources_state(sources))
