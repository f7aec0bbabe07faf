"""Models of open_clip, loaded: the image tower alone, or both towers with what makes logits of their cosines."""

from __future__ import annotations

from typing import Any, cast

import open_clip
from open_clip.transformer import TextTransformer
from torch import nn
from torchvision.transforms import Compose
from transformers import dynamic_module_utils

from pipeline.backbones.base import refuse_code, seeded
from pipeline.backbones.open_clip_hf import HfTextTower, is_cuttable
from pipeline.backbones.open_clip_image import OpenClipBackbone
from pipeline.backbones.open_clip_names import checked_name, failure, tag_options
from pipeline.backbones.open_clip_text import OpenClipTextTower, TransformerTextTower
from pipeline.backbones.open_clip_tokens import Tokens, load_tokens
from pipeline.backbones.texts import Towers
from pipeline.config import backbone as blocks
from pipeline.config.backbone import HUB, LOCAL
from pipeline.errors import UserError

# open_clip leaves it to transformers, for a text tower of its, to ask on the terminal whether code that came with a model may
# run. With no time to answer it refuses at once.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


def load_open_clip(config: blocks.OpenClip) -> OpenClipBackbone:
    """The image tower of `hf-hub:owner/name`, `local-dir:/a/folder`, or an architecture with or without a pretrained tag."""
    model, preprocess = load_model(config)
    # The text tower and its memory go when `model` does.
    return _image_tower(model, preprocess, config)


def load_open_clip_towers(config: blocks.OpenClip) -> Towers:
    """Both towers of such a model, which is read once; the image tower is as `load_open_clip` gives it."""
    model, preprocess = load_model(config)
    tokens, image = load_tokens(config), _image_tower(model, preprocess, config)
    scale, bias = model.logit_scale.item(), None if model.logit_bias is None else model.logit_bias.item()
    text = text_tower(model, tokens, f"The text tower of open_clip's {config.name}", image.embed_dim)
    if (highest := int(text.example().max())) >= (known := cast(Any, text.text).vocab_size):
        raise UserError(
            f"{text.label} knows {known} tokens, and its tokenizer gave number {highest}: its vocabulary is another model's. "
            "Check hf_tokenizer_name and vocab_size in its config, or name another model."
        )
    return Towers(image, text, scale, bias)


def load_model(config: blocks.OpenClip) -> tuple[Any, Compose]:
    """open_clip's model and inference transform."""
    name = checked_name(config)
    with seeded(config.seed):
        return _create(name, config.pretrained)


def text_tower(model: Any, tokens: Tokens, label: str, embed_dim: int) -> OpenClipTextTower:
    """The text tower of a model. A CLIP has no module for it but its parts as its own: it loses all others and is the tower."""
    if isinstance(model, open_clip.CLIP):
        del model.visual, model.logit_scale, model.logit_bias
        return TransformerTextTower(model.eval(), tokens, label, "", embed_dim)
    text = cast(nn.Module, model.text).eval()
    if isinstance(text, TextTransformer):
        return TransformerTextTower(text, tokens, label, "text.", embed_dim)
    kind = HfTextTower if is_cuttable(text) else OpenClipTextTower
    return kind(text, tokens, label, "text.", embed_dim)


def _image_tower(model: Any, preprocess: Compose, config: blocks.OpenClip) -> OpenClipBackbone:
    return OpenClipBackbone(cast(nn.Module, model.visual).eval(), preprocess, f"open_clip's {config.name}")


def _create(name: str, pretrained: str | None) -> tuple[nn.Module, Compose]:
    """open_clip's model and inference transform; weights that were asked for and are not there are an error."""
    try:
        if name.startswith((LOCAL, HUB)) or pretrained is not None:
            model, preprocess = open_clip.create_model_from_pretrained(name, pretrained, **tag_options(name, pretrained))
        else:  # pretrained_text: an architecture's weights are random, a text tower's of Hugging Face too
            model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained_text=False)
    except Exception as error:  # open_clip raises whatever its libraries do
        refuse_code(name, error)
        raise failure(name, pretrained, error) from error
    return model, preprocess
