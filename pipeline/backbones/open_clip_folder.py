"""A tuned model of open_clip as a folder that plain open_clip loads: `open_clip.create_model_and_transforms("local-dir:…")`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.backbones.open_clip import load_model
from pipeline.backbones.open_clip_names import CONFIG_FILE, tag_options, whole_architecture
from pipeline.backbones.open_clip_tokens import load_tokens
from pipeline.config import backbone as blocks
from pipeline.disk.writing import atomic_folder, write_json, write_text
from pipeline.errors import UserError

WEIGHTS_FILE = "open_clip_model.safetensors"
CARD_FILE = "README.md"
TEXT_FOLDER = "text"
"""Where the configuration of a text tower of Hugging Face lies in the folder."""


def write_open_clip_folder(
    config: blocks.OpenClip,
    native: Mapping[str, Tensor],
    folder: Path,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    card: str | None = None,
) -> bool:
    """Write the model that `config` names with the tensors of `native` in place of its own: what `to_native()` of tuned tails and
    networks gave, of either tower or of both (adapters must have been merged before). `logit_scale` (its logarithm) and
    `logit_bias` as they were learnt; None: as they were. `folder` appears, or is replaced, as a whole.

    It holds open_clip_config.json, open_clip_model.safetensors, the tokenizer's files where open_clip does not bring them, and a
    `card` as README.md. Returns whether it may be moved: a text tower of Hugging Face that was described by a folder stays
    described by this one, under its absolute path: open_clip knows no other way, so change `hf_model_name` in the config where
    the folder moves.

    Raises UserError for a tensor that the model does not have or has in another shape, and as `load_towers` does.
    """
    model, _ = load_model(config)
    described = whole_architecture(config) | ({"quick_gelu": True} if tag_options(config.name, config.pretrained) else {})
    learnt = {} if logit_scale is None else {"logit_scale": torch.tensor(logit_scale)}
    if logit_bias is not None:
        learnt["logit_bias"] = torch.tensor(logit_bias)
        described["init_logit_bias"] = logit_bias  # with it open_clip makes a model that has one
    state = _replaced(cast(Mapping[str, Tensor], model.state_dict()), {**native, **learnt})
    with atomic_folder(folder, replace=True) as new:
        load_tokens(config).save(new)
        _localise(described, model, new, folder.resolve())
        save_file(state, new / WEIGHTS_FILE)
        write_json(new / CONFIG_FILE, {"model_cfg": described, "preprocess_cfg": dict(model.visual.preprocess_cfg)})
        if card is not None:
            write_text(new / CARD_FILE, card)
    return str(folder.resolve()) not in json.dumps(described)


def _replaced(own: Mapping[str, Tensor], native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's tensors with those of `native` in their place, each in the shape and type that it has there."""
    state = {**own}
    if "logit_bias" in native:
        state.setdefault("logit_bias", own["logit_scale"])
    for name, tensor in native.items():
        if name not in state or tensor.numel() != state[name].numel():
            shape = tuple(state[name].shape) if name in state else "none of that name"
            raise UserError(
                f"The tuned tensor {name} {tuple(tensor.shape)} does not fit the model, which has {shape}: was it trained on "
                "another model, or are its adapters not merged?"
            )
        state[name] = tensor.detach().to(state[name].dtype).reshape(state[name].shape)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _localise(described: dict[str, Any], model: Any, new: Path, final: Path) -> None:
    """Let the description of a text tower that names folders of this machine name this one, and bring what lies in them."""
    text = described["text_cfg"] = dict(described["text_cfg"])
    if Path(text.get("hf_model_name") or "").is_absolute():
        (new / TEXT_FOLDER).mkdir()
        model.text.config.to_json_file(new / TEXT_FOLDER / "config.json")
        text["hf_model_name"] = str(final / TEXT_FOLDER)
    if Path(text.get("hf_tokenizer_name") or "").is_absolute():
        text["hf_tokenizer_name"] = str(final)
