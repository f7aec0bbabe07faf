"""Backbones by the names that people type. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from pipeline.config.backbone import Backbone, Dinov2, OpenClip, Pixels, Timm
from pipeline.errors import UserError
from pipeline.progress import log

NAMED: dict[str, Callable[[str], Backbone]] = {
    "hf-hub": lambda name: OpenClip(name=f"hf-hub:{name}"),
    "local-dir": lambda name: OpenClip(name=f"local-dir:{name}"),
    "dinov2": lambda name: Dinov2(kind="dinov2", name=name),
    "timm": lambda name: Timm(kind="timm", name=name, pretrained=not name.startswith(("hf-hub:", "local-dir:"))),
    "pixels": lambda size: Pixels.model_validate({"kind": "pixels", "size": size}),
}
"""What stands before the colon → the backbone that what stands behind it names."""


def parse_backbone(text: str) -> Backbone:
    """`hf-hub:…` and the like by their prefix, `pixels`, a folder by what lies in it, DINOv2 by its name, else open_clip's
    `architecture:tag`. Raises UserError; whether there is such a model, loading tells."""
    prefix, colon, rest = text.partition(":")
    if not prefix or (colon and not rest):
        raise UserError(f"--backbone {text!r} names no model: write hf-hub:owner/name, ARCHITECTURE:TAG, pixels:8, …")
    if colon and prefix in NAMED:
        try:
            return NAMED[prefix](rest)
        except ValidationError as error:
            raise UserError(f"--backbone {text}: {error.errors()[0]['msg']}: write such as pixels:8.") from error
    folder = Path(text).expanduser()
    if folder.is_dir():
        is_open_clip = (folder / "open_clip_config.json").is_file()
        return OpenClip(name=f"local-dir:{text}") if is_open_clip else Dinov2(kind="dinov2", name=text)
    if text == "pixels":
        return Pixels(kind="pixels")
    if "dinov2" in text.lower():
        return Dinov2(kind="dinov2", name=text)
    if not colon:
        log(f"--backbone {text}: without a tag its weights are random: write {text}:TAG for pretrained ones.")
    return OpenClip(name=prefix, pretrained=rest or None)
