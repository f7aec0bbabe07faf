"""Backbones: pretrained encoders of images, and of texts where a model has two towers, behind one interface (`base.Tower`),
whatever library they come from; and what of their weights is on this machine. This module loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline import hub
from pipeline.config import backbone as blocks
from pipeline.config.section import implementation
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.backbones.base import Backbone
    from pipeline.backbones.texts import Towers


def load_backbone(block: blocks.Backbone) -> Backbone:
    """The backbone a configuration names: eval mode, no gradients, fp32, on the CPU; torch's random state is left as it was.
    Raises UserError where the name or the folder does not lead to usable weights, NotFetched where the cache does not."""
    backbone = cast("Backbone", block.load())
    if isinstance(block, blocks.OfTokens) and block.poolings:
        backbone = implementation("pipeline.backbones.pooled.PooledBackbone")(backbone, block.taps, block.poolings)
    if not block.views.are_plain:
        backbone = implementation("pipeline.backbones.viewed.ViewedBackbone")(backbone, block.views)
    return backbone.freeze()


def load_towers(block: blocks.Backbone) -> Towers:
    """Both towers of the model that a configuration names, read once, each as `load_backbone` gives one. Raises UserError where
    it has no text tower, and as `load_backbone` does, for the tokenizer's files too."""
    if not block.texts:
        have = ", ".join(name for name, kind in blocks.Backbone.kinds.items() if kind.texts)
        raise UserError(f"backbone.kind {block.kind} reads no texts: set backbone.kind to one with a text tower: {have}.")
    towers = cast("Towers", implementation(block.towers_loader)(block))
    return towers._replace(image=towers.image.freeze(), text=towers.text.freeze())


def weights_files(block: blocks.Backbone) -> list[Path]:
    """The files that weights and transform are read from, as far as they are here; none for what is made without any. May load
    the library that knows them."""
    return [file for weights in block.weights_from() for file in _files(weights)]


def origins(block: blocks.Backbone, texts: bool) -> list[dict[str, str]]:
    """Where weights come from, for provenance: each path, or repository on the Hub with the commit that is in the cache; with
    `texts` also where what reads texts comes from. What is drawn from a seed comes from nowhere. May load the library that knows
    them."""
    found = []
    for weights in block.weights_from():
        found += [{"path": weights.path}] if weights.path else []
        found += [_origin(repository, weights.revision)] if (repository := _repository(weights)) and not weights.path else []
    more = [name for name in text_sources(block) if not _is_here(name)] if texts else []
    return found + [_origin(name, None) for name in more if name not in {each.get("repository") for each in found}]


def text_sources(block: blocks.Backbone) -> list[str]:
    """What, beside the weights, texts are read by: repositories on the Hub, or folders. May load the library that knows them."""
    return list(implementation(block.text_sources)(block))


def sources_state(names: Iterable[str]) -> list[Any]:
    """In which state these are here: sizes and times of local files, or the Hub's commit; None for what is not here. Loads no
    library."""
    return [_local_state(name) if _is_here(name) else hub.commit_of(name, None, "models") for name in names]


def _origin(repository: str, revision: str | None) -> dict[str, str]:
    commit = hub.commit_of(repository, revision, "models")
    return {"repository": repository} | ({"commit": commit} if commit else {})


def weights_state(block: blocks.Backbone) -> list[Any] | None:
    """In which state weights are here: sizes and times of local files, a Hub commit; None if there are some that are not here.
    Loads no library. Raises UserError for a name that can be neither a folder's nor the Hub's."""
    states = [_state(weights) for weights in block.weights_from()]
    return None if None in states else states


def _files(weights: blocks.Weights) -> list[Path]:
    if weights.path:
        return _local_files(weights.path)
    repository = _repository(weights)
    return hub.snapshot_files(repository, weights.revision) if repository else []


def _repository(weights: blocks.Weights) -> str:
    """On the Hub; empty where they come from elsewhere."""
    return (implementation(weights.tag[0])(*weights.tag[1:]) or "") if weights.tag else weights.repository


def _state(weights: blocks.Weights) -> Any:
    if weights.path:
        return _local_state(weights.path)
    return _hub_commit(weights) if weights.repository else "tag or random"


def _is_here(name: str) -> bool:
    return Path(name).expanduser().exists()


def _local_state(name: str) -> list[Any] | None:
    stats = [(path, path.stat()) for path in _local_files(name)]
    return [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats] or None


def _local_files(name: str) -> list[Path]:
    path = Path(name).expanduser()
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in found if file.is_file()]


def _hub_commit(weights: blocks.Weights) -> str | None:
    """The commit of a model in the Hub's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(weights.repository, weights.file, revision=weights.revision)
    except HFValidationError as error:
        raise UserError(
            f"backbone.name {weights.repository}: there is no such folder with a model in it, and it is no name on the Hub "
            "either (those are written owner/name). Check the path."
        ) from error
    return Path(found).parent.name if isinstance(found, str) else None
