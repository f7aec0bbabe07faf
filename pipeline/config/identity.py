"""What identifies a trial and its features: the part of a configuration that they depend on, and its hash."""

import hashlib
import json
from collections.abc import Collection, Hashable, Iterator, Sequence
from functools import cache
from typing import Any, Literal, get_args

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from pipeline.config.backbone import FeatureKind
from pipeline.config.data import Data
from pipeline.config.kinds import blocks_in
from pipeline.config.per_block import PerBlock
from pipeline.config.section import LATER, Formerly, Section
from pipeline.config.trial import Config

Tower = Literal["image", "text"]
"""What reads one kind of input: images, or texts."""
NOT_SCIENCE = {"experiment", "evaluate", "tracking", "device", "resources", "launch", "paths"}
NOT_SCIENCE_IN = {"data": {"download"}, "train": {"processes"}, "extract": {"compile"}}
"""Keys of blocks that are science otherwise: how images come here, how many share the work, how it is done."""


def science(config: Config) -> dict[str, Any]:
    """The part of a trial's configuration that its result depends on, as plain JSON values."""
    return only_science(config.model_dump(mode="json"))


def told(config: Config) -> dict[str, Any]:
    """The same with the keys that hashes leave out while they are as by default: what a person tells trials apart by."""
    return _of_science(config.model_dump(mode="json"))


def told_of(name: str, value: Any) -> dict[str, Any]:
    """The part of `told` that one field of a configuration makes."""
    return _of_science({name: in_json(name, value)})


def in_json(name: str, value: Any) -> Any:
    """A field of a configuration, of this name, as it stands in its dump."""
    return value.model_dump(mode="json") if isinstance(value, Section) else value


def plain(block: Section) -> dict[str, Any]:
    """A block as plain JSON values, as hashes take it."""
    return without_later(block.model_dump(mode="json"), [type(block)])


def without_later(values: Any, blocks: Sequence[type[BaseModel]]) -> Any:
    """Plain values of one of these blocks, or of a list of them, without keys that are LATER and as by default."""
    if isinstance(values, list):
        return [without_later(each, blocks) for each in values]
    block = _block_of(values, blocks)
    if block is None:
        return values
    kept = dict(values)
    for name, defaults, inner in _steps(block):
        if name in kept:
            kept[name] = without_later(kept[name], inner)
            if any(kept[name] == without_later(default, inner) for default in defaults):
                del kept[name]
    return kept


def _block_of(values: Any, blocks: Sequence[type[BaseModel]]) -> type[BaseModel] | None:
    """The block that the values are of, told by their kind where there are several; None if it is not known here."""
    if not isinstance(values, dict) or len(blocks) < 2:
        return blocks[0] if blocks and isinstance(values, dict) else None
    kind = values.get("kind")
    return next((each for each in blocks if kind in get_args(each.model_fields["kind"].annotation)), None)


@cache
def _steps(block: type[BaseModel]) -> list[tuple[str, list[Any], Sequence[type[BaseModel]]]]:
    """The keys of a block that may be left out, or hold blocks with such keys: name, its defaults if it is LATER, blocks."""
    steps: list[tuple[str, list[Any], Sequence[type[BaseModel]]]] = []
    for name, info in block.model_fields.items():
        is_later, inner = LATER in info.metadata, blocks_in(info.annotation, of_lists=True)
        if is_later or len(inner) > 1 or any(map(_steps, inner)):
            defaults = [info.get_default(call_default_factory=True)] if is_later else []
            defaults += [mark.default for mark in info.metadata if isinstance(mark, Formerly)]
            steps.append((name, to_jsonable_python(defaults), inner))
    return steps


def only_science(values: dict[str, Any]) -> dict[str, Any]:
    """Those blocks and keys of a configuration that are science."""
    kept: dict[str, Any] = without_later(_of_science(values), [Config])
    return kept


def _of_science(values: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in NOT_SCIENCE}
    for name, left_out in NOT_SCIENCE_IN.items():
        if isinstance(block := kept.get(name), dict):
            kept[name] = {key: value for key, value in block.items() if key not in left_out}
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
    """Identity of a trial's science, `digest` of it: equal hashes mean equal models on the same data."""
    return next(config_hashes([config], ()))


def config_hashes(configs: Sequence[Config], varying: Collection[str]) -> Iterator[str]:
    """`config_hash` of each; in all fields but those of `varying` they have the same objects, which are written once."""
    names = sorted(Config.model_fields.keys() - NOT_SCIENCE)
    texts = {name: _text(name, getattr(configs[0], name)) for name in names}
    differing = [name for name in names if name in varying]
    for config in configs:
        texts |= {name: _text(name, getattr(config, name)) for name in differing}
        yield hashlib.sha256(f"{{{', '.join(filter(None, texts.values()))}}}".encode()).hexdigest()


def _text_of(name: str, value: Any) -> str:
    """A field of a configuration as `digest` writes it, without the braces around all; nothing where it is left out."""
    kept = without_later(told_of(name, value), [Config])
    return json.dumps(kept, sort_keys=True, allow_nan=False)[1:-1]


_text = PerBlock(_text_of)


def image_columns(data: Data) -> tuple[str, ...]:
    """Columns of the images that one input is made of: the image's, then its card's and its bar's where they are used."""
    used = [(True, data.columns.image), (data.colour_card, data.columns.colour_card)]
    used.append((data.scale_bar, data.columns.scale_bar))
    return tuple(column for on, column in used if on and column is not None)


def images_of(data: Data) -> list[Any]:
    """The part of a data section that its images' pixels depend on, as plain JSON values: neither targets nor folds."""
    splits = plain(data.split) if data.split.names else "all"
    corrected = [data.colour_card, data.scale_bar, data.canvas] if data.colour_card or data.scale_bar else []
    decoded = [choices] if (choices := plain(data.decoding)) else []
    long = [plain(data.long)] if data.long else []
    return [data.source, data.revision, data.images, *image_columns(data), splits, *corrected, *decoded, *long]


def features_of(config: Config) -> list[Any]:
    """The part of a configuration, beside the data, that its features depend on, as plain JSON values."""
    texts = [plain(config.texts), *token_kind(config, "text")] if "text" in towers_of(config) else []
    reduced = [] if config.extract.decode == "exact" else [config.extract.decode]
    return [plain(config.backbone), plain(config.features), *token_kind(config), *texts, *reduced]


def image_features_of(config: Config) -> Hashable:
    """The same of images alone: quick to compare, whatever is written of it."""
    return config.backbone, config.features, config.extract.decode, *token_kind(config)


def texts_from(config: Config) -> list[Any]:
    """The part of a configuration, beside the data's files, that its texts depend on, as plain JSON values; nothing where none
    are read."""
    if "text" not in towers_of(config):
        return []
    data, columns = config.data, config.data.columns
    words = [data.label, columns.ranks, columns.common, columns.sex, columns.view, data.missing]
    dealt = plain(data) if data.permute_targets else []  # which images have which class then, and so which sex and view
    return [plain(config.texts), to_jsonable_python(words), dealt]


def towers_of(config: Config) -> tuple[Tower, ...]:
    """The towers that a trial reads features of, the one of images first."""
    return ("image", "text") if config.model.head.reads_texts else ("image",)


def token_kind(config: Config, tower: Tower = "image") -> tuple[FeatureKind, int]:
    """Which features the encoder of a tower reads, and how many of the last blocks its tail holds (0: it has none)."""
    encoder = config.model.encoder if tower == "image" else config.model.text
    return encoder.reads, encoder.tail_blocks
