"""The export of a tuned trial as a model of open_clip: a folder that `open_clip.create_model_and_transforms("local-dir:…")` loads
without this package, and that may be put on the Hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pipeline.backbones import load_towers
from pipeline.backbones.open_clip_folder import write_open_clip_folder
from pipeline.backbones.texts import Towers
from pipeline.config.backbone import OpenClip
from pipeline.config.trial import Config
from pipeline.errors import NotFetched, UserError, WorkError
from pipeline.export.hub_card import hub_card
from pipeline.models.base import Facts
from pipeline.models.interpolation import plain
from pipeline.models.saved import load_facts
from pipeline.models.towers import TwoTowers
from pipeline.models.tuned import TunedImages, TunedTexts, embed_each
from pipeline.progress import log
from pipeline.stages.tuned import Trained, trained

APART = 1e-5
"""Most that a coordinate of an embedding of length 1 may differ from the trial's own: what rounding leaves."""
WORDS = ("a photo of a beetle", "Carabus nemoralis")
"""Texts that both are asked to embed."""


def export(folder: Path, out: Path) -> Path:
    """Write a trial's model, adapters merged and projections multiplied into the towers' own, with a card for the Hub; returns
    the folder. What open_clip makes of it is compared with the trial.

    Raises UserError for a folder that exists, for a trial that has not two towers of open_clip, or has learnt what open_clip has
    no place for; WorkError where open_clip embeds otherwise.
    """
    out = out.expanduser().absolute()
    if out.exists():
        raise UserError(f"{out} exists: name another --out, or remove it")
    of = trained(folder)
    block = of.config.backbone
    if not isinstance(block, OpenClip):
        raise UserError(f"{of.trial.path}: its backbone ({block.display_name}) is no model of open_clip")
    towers = _towers(of)
    model = of.model(towers.image, towers.text)
    if not model.classes_are_texts:
        raise UserError(
            f"{of.trial.path}: model.head.kind {of.config.model.head.kind} tells species by weights of their own, for which "
            "open_clip has no place: by their texts it would not have the figures of results.json. Export a contrastive trial"
        )
    scale, bias = _logits(model, load_facts(of.trial))
    if not write_open_clip_folder(block, _native(of.config, model, towers), out, scale, bias, hub_card(of.trial, of.config)):
        log(f"{out}: open_clip finds its text tower by this path: change hf_model_name in its config where the folder moves")
    try:
        _check(out, of.config, model, towers)
    except BaseException:
        shutil.rmtree(out)
        raise
    return out


def _towers(of: Trained) -> Towers:
    try:
        return load_towers(of.config.backbone)
    except NotFetched as error:
        error.config = of.trial.config
        raise


def _native(config: Config, model: TwoTowers, towers: Towers) -> dict[str, Tensor]:
    """What both encoders have learnt, as tensors of open_clip's model."""
    merged = plain(model)
    image = config.model.encoder.to_native(merged.encoder, towers.image)
    return image | config.model.text.to_native(merged.text_encoder, towers.text)


def _logits(model: TwoTowers, facts: Facts) -> tuple[float, float | None]:
    """The scale (its logarithm) and the bias, of the first loss where there are two; None for a model without a bias."""
    has_bias = facts.text is not None and facts.text.logit_bias is not None
    return model.log_scale, float(model.logit_bias[0]) if has_bias else None


def _check(out: Path, config: Config, model: TwoTowers, towers: Towers) -> None:
    """WorkError unless open_clip embeds some texts and an image as the trial does."""
    written, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out}")
    tokenizer, device = open_clip.get_tokenizer(f"local-dir:{out}"), torch.device("cpu")
    side = towers.image.image_size  # (Larger ones Carabid shrinks by another library, to within 1 of 255.)
    picture = Image.effect_noise((2 * side - 1, 3 * side // 2), 80).convert("RGB")
    image, text = TunedImages(towers.image, model, config), TunedTexts(towers.text, model, config)
    with torch.inference_mode():
        of_image = written.eval().encode_image(transform(picture).unsqueeze(0))
        of_texts = written.encode_text(tokenizer(list(WORDS)))
    pairs = (
        (of_image, embed_each(image, [image.transform(picture)], device)),
        (of_texts, embed_each(text, [text.transform(words) for words in WORDS], device)),
    )
    apart = max(float((functional.normalize(found, dim=-1) - own).abs().max()) for found, own in pairs)
    if not apart <= APART:
        raise WorkError(f"open_clip embeds otherwise than the trial (by {apart:.1g}): nothing was written. Please report this.")
