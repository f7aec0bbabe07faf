"""The names of open_clip's models: what is wrong with one, what it builds, where its weights come from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import open_clip
from huggingface_hub import hf_hub_download

from pipeline import hub
from pipeline.backbones.base import checked_folder
from pipeline.config import backbone as blocks
from pipeline.config.backbone import HUB, LOCAL
from pipeline.disk.reading import in_short, reading
from pipeline.errors import UserError, WorkError, nearest

CONFIG_FILE = "open_clip_config.json"


def tag_options(name: str, pretrained: str | None) -> dict[str, bool]:
    """open_clip only warns where a tag was trained with QuickGELU and the architecture's default is GELU."""
    known = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    return {"force_quick_gelu": True} if known.get("quick_gelu") else {}


def checked_name(config: blocks.OpenClip) -> str:
    """The name as open_clip takes it; UserError for what is wrong with it before anything is loaded."""
    if config.name.startswith((LOCAL, HUB)):
        if config.pretrained is not None:
            raise UserError(f"backbone.name {config.name} brings its own weights: remove backbone.pretrained.")
        return _checked_folder(config.name) if config.name.startswith(LOCAL) else config.name
    name = config.name.replace("/", "-")
    if name not in open_clip.list_models():
        if Path(config.name).expanduser().is_dir():
            raise UserError(f"backbone.name {config.name} is a folder: write {LOCAL}{config.name}.")
        near, named = nearest(name, open_clip.list_models()), f"{HUB}owner/name, folders {LOCAL}/a/folder"
        raise UserError(f"backbone.name {config.name} is no architecture of open_clip; {near} On the Hub they are named {named}.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if config.pretrained is not None and config.pretrained not in tags and not os.path.isfile(config.pretrained):
        near = nearest(config.pretrained, tags)
        raise UserError(f"backbone.pretrained {config.pretrained} is neither a file nor a tag of {name}; {near}")
    return name


def _checked_folder(name: str) -> str:
    folder = checked_folder(name, (CONFIG_FILE,), "open_clip")
    with reading(folder / CONFIG_FILE, f"It is of backbone.name {name}.", UserError):
        if "model_cfg" not in dict(json.loads((folder / CONFIG_FILE).read_text())):
            raise ValueError("it has no model_cfg")
    return f"{LOCAL}{folder}"


def architecture(config: blocks.OpenClip) -> dict[str, Any]:
    """What open_clip builds this image tower from, as in the `model_cfg` of its config files, with the smallest text tower that
    it takes: nothing has to be fetched for it."""
    whole = whole_architecture(config)
    return {
        "embed_dim": whole["embed_dim"],
        "quick_gelu": bool(tag_options(config.name, config.pretrained)) or whole.get("quick_gelu", False),
        "vision_cfg": whole["vision_cfg"],
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1},
    }


def whole_architecture(config: blocks.OpenClip) -> dict[str, Any]:
    """What open_clip builds both towers from, as its config file says: the `model_cfg`."""
    if not config.name.startswith((LOCAL, HUB)):
        return dict(open_clip.get_model_config(config.name.replace("/", "-")))
    is_local, name = config.name.startswith(LOCAL), config.name.removeprefix(LOCAL).removeprefix(HUB)
    file = Path(name).expanduser() / CONFIG_FILE if is_local else Path(hf_hub_download(name, CONFIG_FILE))
    return dict(json.loads(file.read_text())["model_cfg"])


def hub_repository(name: str, pretrained: str | None) -> str | None:
    """The model on the Hub (`owner/name`) that the weights come from; None for a file, a folder, and random weights."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    tag = {} if pretrained is None else open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained)
    return os.path.dirname(tag["hf_hub"]) if tag.get("hf_hub") else None


def text_sources(config: blocks.OpenClip) -> list[str]:
    """The repositories on the Hub, or the folders, that tokenizer and architecture of a Hugging Face text tower come from; none
    of open_clip's own tokenizer."""
    text = whole_architecture(config)["text_cfg"]
    return list(dict.fromkeys(text[key] for key in ("hf_tokenizer_name", "hf_model_name") if text.get(key)))


def failure(name: str, pretrained: str | None, error: Exception) -> UserError | WorkError:
    """What open_clip raised when it was to build this model, in words that say what to do."""
    cause = in_short(error)
    if name.startswith(LOCAL):
        folder = name.removeprefix(LOCAL)
        return UserError(f"The weights in {folder} are missing, damaged or of another architecture than its config: {cause}")
    whole = f"{name} ({pretrained})" if pretrained else name
    if repository := hub_repository(name, pretrained):
        return hub.not_loaded(f"The weights of {whole}", error, hub.cached_repository(repository, "models"))
    if hub.was_asked(error):
        return hub.not_loaded(f"What {whole} needs for its text tower", error, hub.cache())
    return UserError(f"open_clip could not build {whole}: {cause}")
