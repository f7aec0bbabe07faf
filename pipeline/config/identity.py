"""What identifies a trial and its features: the part of a configuration that they depend on, and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline.config.backbone import FeatureKind
from pipeline.config.data import Data, SourceSplit
from pipeline.config.trial import Config

NOT_SCIENCE = {"experiment", "evaluate", "device", "resources", "paths"}


def science(config: Config) -> dict[str, Any]:
    """The part of a trial's configuration that its result depends on, as plain JSON values."""
    return only_science(config.model_dump(mode="json"))


def only_science(values: dict[str, Any]) -> dict[str, Any]:
    """Those blocks of a configuration that are science; how images come here is not."""
    kept = {key: value for key, value in values.items() if key not in NOT_SCIENCE}
    if isinstance(data := kept.get("data"), dict):
        kept["data"] = {key: value for key, value in data.items() if key != "download"}
    return kept


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested blocks as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changes(tree: dict[str, Any], since: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested blocks, as dotted keys, that were others in `since` or not there."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        before = since.get(key)
        if before != value and isinstance(value, dict):
            found |= changes(value, before if isinstance(before, dict) else {}, f"{prefix}{key}.")
        elif before != value:
            found[prefix + key] = value
    return found


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def config_hash(config: Config) -> str:
    """Identity of a trial's science: equal hashes mean equal models on the same data."""
    return digest(science(config))


def image_columns(data: Data) -> tuple[str, ...]:
    """Columns of the images that one input is made of: the image's, then its card's and its bar's where they are used."""
    used = [(True, data.columns.image), (data.colour_card, data.columns.colour_card)]
    used.append((data.scale_bar, data.columns.scale_bar))
    return tuple(column for on, column in used if on and column is not None)


def images_of(data: Data) -> list[Any]:
    """The part of a data section that its images depend on, as plain JSON values: neither targets nor folds."""
    splits = data.split.model_dump(mode="json") if isinstance(data.split, SourceSplit) else "all"
    corrected = [data.colour_card, data.scale_bar, data.canvas] if data.colour_card or data.scale_bar else []
    return [data.source, data.revision, data.images, *image_columns(data), splits, *corrected]


def features_of(config: Config) -> list[Any]:
    """The part of a configuration, beside the data, that its features depend on, as plain JSON values."""
    return [config.backbone.model_dump(mode="json"), config.features.model_dump(mode="json"), *token_kind(config)]


def token_kind(config: Config) -> tuple[FeatureKind, int]:
    """Which features the encoder reads, and how many of the last blocks its tail holds (0: it has none)."""
    return config.model.encoder.reads, config.model.encoder.tail_blocks
