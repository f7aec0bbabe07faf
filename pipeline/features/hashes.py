"""What data and weights contain, hashed once and kept in features/records/ for as long as they look unchanged; and what has
changed, in words, where they do not. A record's file is named by a cheap signature (sizes and times of files, a Hub commit,
versions of libraries); while the signature is the same the record holds and no image is read. So a plan on a login node knows the
key of its features without torch, and without reading images. This module loads no torch."""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.backbones import weights_state
from pipeline.config.backbone import Backbone
from pipeline.config.identity import Tower, digest, plain, token_kind
from pipeline.config.measures import Measures
from pipeline.config.trial import Config
from pipeline.data.dataset import BadImage, Dataset, content_of, known_signature
from pipeline.disk.layout import PROJECT, record_path, store_dir
from pipeline.disk.lease import Lease
from pipeline.disk.provenance import installed_version
from pipeline.disk.writing import read_json, read_record, write_json
from pipeline.errors import UserError, WorkError
from pipeline.features.key import Ingredients

if TYPE_CHECKING:
    from pipeline.backbones.base import Backbone as LoadedBackbone

UNREADABLE = ""
"""Stands for the sha256 of an image that is not there."""
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "transformers", "timm", "pillow")
"""What a backbone's weights, shape and transform may change with."""

Record = TypeVar("Record")


@dataclass(frozen=True)
class DataRecord:
    """The images of a data set: `images[i]` is the `content_of` image i (its sha256), `content` the sha256 of them all. Where
    images are corrected by a colour card or a scale bar, those are part of an image's content."""

    signature: str
    content: str
    n: int
    images: list[str]


@dataclass(frozen=True)
class TowerRecord(Measures):
    """What a tower contributes to a feature key, and its measures."""

    signature: str
    weights: str
    architecture: str
    transform: str


@dataclass(frozen=True)
class WeightsRecord(TowerRecord):
    """The same of a backbone."""


# ---------------------------------------------------------------- data
def data_record(config: Config, dataset: Dataset) -> DataRecord:
    """The record of these images, from disk if it holds, else made by reading every image (by one job; others wait)."""
    now = dataset.signature()
    path = record_file(config, "data", now)
    lease = Lease(path.with_suffix(".lease"), config.resources.lease_seconds)
    with lease.hold(lambda: read_as(path, DataRecord) is not None) as held:
        if held:
            write_json(path, asdict(_hash_images(now, dataset, config.resources.decode_threads)))
    record = read_as(path, DataRecord)
    if record is None:
        raise WorkError(f"{path} was just written and cannot be read: check the disk and run this again.")
    return record


def forget_data(config: Config, record: DataRecord) -> None:
    """Remove a record that turned out wrong, so that the next run reads the images again."""
    record_file(config, "data", record.signature).unlink(missing_ok=True)


def _hash_images(now: str, dataset: Dataset, threads: int) -> DataRecord:
    from pipeline.progress import progress  # a bar is slow to import, and most who read records draw none

    def sha256(i: int) -> str:
        try:
            return content_of(dataset.encoded(i))
        except BadImage:
            return UNREADABLE  # whether that is allowed is for extraction to say

    images = []
    with ThreadPoolExecutor(threads) as pool, progress("hash images", len(dataset)) as advance:
        for image in pool.map(sha256, range(len(dataset))):
            images.append(image)
            advance(1)
    return DataRecord(now, hashlib.sha256("\n".join(images).encode()).hexdigest(), len(images), images)


# ---------------------------------------------------------------- weights
def weights_record(config: Config, load: Callable[[], LoadedBackbone], again: bool = False) -> WeightsRecord:
    """The record of the backbone that `load` loads, from disk if it holds and `again` is not set."""
    before = weights_signature(config.backbone)
    if before is not None and not again and (record := read_as(record_file(config, "weights", before), WeightsRecord)):
        return record
    from PIL import Image  # who only reads records needs none

    backbone = load()
    after = weights_signature(config.backbone)
    if after is None or before not in (None, after):
        raise WorkError(
            f"The weights of {config.backbone.display_name}, or the code that reads them, changed meanwhile. Run this again."
        )
    record = WeightsRecord(
        signature=after,
        weights=backbone.weights_hash(),
        architecture=hashlib.sha256(repr(backbone).encode()).hexdigest(),
        transform=backbone.transform_id(),
        n_blocks=backbone.n_blocks,
        embed_dim=backbone.embed_dim,
        width=backbone.width,
        n_patches=backbone.n_patches,
        n_parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        n_inputs=backbone.transform(Image.new("RGB", (64, 64))).numel(),
        n_views=config.backbone.views.n,
    )
    write_json(record_file(config, "weights", after), asdict(record))
    return record


def weights_signature(backbone: Backbone) -> str | None:
    """A cheap identity of weights, transform and the code that makes them; None where they are not on this machine."""
    if (state := weights_state(backbone)) is None:
        return None
    libraries = {name: installed_version(name) for name in LIBRARIES}
    return digest([plain(backbone), state, libraries, _code(backbone)])


def _code(backbone: Backbone) -> str:
    """Hash of the code of the backbones, and of the files with these blocks: another transform must not pass for the one on
    record."""
    modules = {sys.modules.get(type(each).__module__) for each in (backbone, *backbone.networks)}
    own = sorted(file for module in modules if (file := getattr(module, "__file__", None)))
    files = [*sorted((PROJECT / "pipeline" / "backbones").glob("*.py")), *map(Path, own)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# ---------------------------------------------------------------- keys
def ingredients(config: Config, data: DataRecord, weights: WeightsRecord) -> Ingredients:
    """What the features of this configuration's images depend on. Raises UserError if the backbone has too few blocks."""
    return replace(made_of(config, "image", data.content, weights), correction=_correction(config))


def made_of(config: Config, tower: Tower, content: str, weights: TowerRecord) -> Ingredients:
    """What the features that a tower makes of inputs with this content depend on. Raises UserError if it has too few blocks."""
    kind, blocks = token_kind(config, tower)
    if blocks > weights.n_blocks:
        key, what = ("encoder", "backbone") if tower == "image" else ("text", "text tower")
        raise UserError(f"model.{key}.blocks is {blocks}, but the {what} has {weights.n_blocks} blocks. Set it to at most that.")
    return Ingredients(
        data=content,
        backbone=config.backbone.kind,
        architecture=weights.architecture,
        weights=weights.weights,
        transform=weights.transform,
        kind=kind,
        cut=weights.n_blocks - blocks if blocks else 0,
        dtype=config.features.dtype,
        shard_size=config.features.shard_size,
        tower=tower,
    )


def _correction(config: Config) -> str:
    """How images are decoded if not as by default, and what they are corrected by, in words that change with what it does to
    them; empty if neither."""
    data, is_fast = config.data, config.extract.decode == "fast"
    choices = plain(data.decoding)
    if not (choices or data.colour_card or data.scale_bar or is_fast):
        return ""
    from pipeline.data.correction import COLOURS, SCALE  # numpy and Pillow
    from pipeline.data.decoding import REDUCING, VERSION

    decoded, scale = f"{VERSION}: {json.dumps(choices, sort_keys=True)}", f"{SCALE}, canvas {data.canvas:g}"
    return "; ".join([decoded] * bool(choices) + [COLOURS] * data.colour_card + [scale] * data.scale_bar + [REDUCING] * is_fast)


def known_feature_key(config: Config, looks: str | None = None) -> str | None:
    """The key of this configuration's features if records tell it: without torch, without reading an image. `looks` is the data's
    `known_signature`, for a caller that has it."""
    if (weights := known_weights(config)) and (data := known_data(config, looks)):
        return ingredients(config, data, weights).key()
    return None


def known_weights(config: Config) -> WeightsRecord | None:
    """The record of the backbone, if there is one of the weights as they are now."""
    now = weights_signature(config.backbone)
    return read_as(record_file(config, "weights", now), WeightsRecord) if now else None


def known_data(config: Config, looks: str | None = None) -> DataRecord | None:
    """The record of the images, if there is one of the data as they are now; `looks` as for `known_feature_key`."""
    return _known_data(config, looks or known_signature(config.data))


def _known_data(config: Config, signature: str | None) -> DataRecord | None:
    return read_as(record_file(config, "data", signature), DataRecord) if signature else None


# ---------------------------------------------------------------- what has changed
@dataclass(frozen=True)
class Basis:
    """What results rest on beside their configuration: the data's signature and the features' key; None: not known."""

    signature: str | None
    key: str | None


def basis_change(config: Config, then: Basis, now: Basis) -> str:
    """What has changed between two bases, in words; empty if nothing has, or if it cannot be told from here."""
    other_files, other_features = now.signature not in (None, then.signature), now.key not in (None, then.key)
    if not other_files and not other_features:
        return ""
    stored = _stored_ingredients(config, then.key)
    images = _images_change(config, then, now, stored)
    if found := [*([images] if images else []), *_backbone_change(stored, known_weights(config))]:
        rebuilt = now.key is not None and store_dir(config, now.key).manifest.exists()
        return f"features {'rebuilt' if rebuilt else 'to be rebuilt'}: {', '.join(found)}"
    if not other_files:
        return "its features are others now than it was trained on"
    more = "which images, extraction will tell" if images is None else "the images are the same"
    return f"the data's files have changed since it was evaluated; {more}"


def _stored_ingredients(config: Config, key: str | None) -> dict[str, Any]:
    """What the manifest of a store says that it was made of; nothing if it is gone."""
    found = read_record(store_dir(config, key).manifest).get("ingredients") if key else None
    return found if isinstance(found, dict) else {}


def _images_change(config: Config, then: Basis, now: Basis, stored: dict[str, Any]) -> str | None:
    """How the images differ, in words; empty if they do not, None if that is not known: they have not been read since."""
    old, new = _known_data(config, then.signature), _known_data(config, now.signature)
    if old and new and old != new:
        return _in_words(old.images, new.images)
    if new and "data" in stored:
        return "images changed" if new.content != stored["data"] else ""
    return None


def _in_words(old: list[str], new: list[str]) -> str:
    """`3 images changed, 1 image added`: by content, wherever the images stand."""
    gone, come = (Counter(old) - Counter(new)).total(), (Counter(new) - Counter(old)).total()
    changed = min(gone, come)
    counts = {"changed": changed, "added": come - changed, "removed": gone - changed}
    words = [f"{n} image{'s' * (n > 1)} {what}" for what, n in counts.items() if n]
    return ", ".join(words) or ("" if old == new else "images put in another order")


def _backbone_change(stored: dict[str, Any], weights: WeightsRecord | None) -> list[str]:
    """What is other about the backbone than when a store was made."""
    words = {
        "weights": "the backbone's weights changed",
        "architecture": "the backbone's architecture changed",
        "transform": "the transform of images changed",
    }
    return [text for name, text in words.items() if weights and stored.get(name) not in (None, getattr(weights, name))]


# ---------------------------------------------------------------- files
def record_file(config: Config, kind: str, now: str) -> Path:
    """Where the record of a kind is kept of what has this signature."""
    return record_path(config, kind, hashlib.sha256(now.encode()).hexdigest()[:16])


def read_as(path: Path, kind: type[Record]) -> Record | None:
    """The record in a file; None if there is none, or one of another version."""
    with suppress(OSError, TypeError, ValueError):
        return kind(**read_json(path))
    return None
