"""The backbones of a submission: from a batch of images to features.

Copied beside `network.py` as it stands, and like it without a word of this package. It imports torch, numpy and Pillow, and what
the backbone needs: open_clip, transformers or timm.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from correction import balance, rescale  # correction.py and decoding.py, beside this file
from decoding import How, decode_opened
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
Point = Mapping[str, Any]
"""One image, as the beetles' platform hands it over; of butterflies the image alone is known."""


class Backbone(ABC):
    """A network that embeds images, in fp32; members put the tails that they have trained into it."""

    correction: Mapping[str, Any]
    """Whether images are corrected by card and bar, and the canvas of the latter."""
    how: How
    """How images are decoded."""
    blocks = ""
    """Where in the module its blocks are, if it can be cut."""

    def __init__(self, module: nn.Module, transform: Callable[[Image.Image], Tensor], device: torch.device) -> None:
        self.module, self.to_input = module.float().requires_grad_(False).eval().to(device), transform
        self.device = device

    def transform(self, datapoints: Sequence[Point]) -> Tensor:
        """Images → the network's input [B, 3, H, W]."""
        return torch.stack([self.to_input(self._corrected(point)) for point in datapoints]).to(self.device)

    def _corrected(self, point: Point) -> Image.Image:
        """An image's image, RGB, by the card and the bar that were photographed with it, where the members learned so."""
        image: Image.Image = decode_opened(point["relative_img"], self.how).image
        try:
            if self.correction["colour_card"]:
                image = balance(image, decode_opened(point["colorpicker_img"], self.how).image)
            if self.correction["scale_bar"]:
                image = rescale(image, decode_opened(point["scalebar_img"], self.how).image, self.correction["canvas"])
        except Exception:  # no card, or none that can be read (PIL's decoders raise errors of many kinds)
            pass  # the image is worth more than its colour
        return image

    def put(self, tail: Mapping[str, Tensor]) -> None:
        """Weights of a member's tail, under the library's names. Raises ValueError for a name that is none of them."""
        for name, parameter in list(self.module.named_parameters()):
            # Positions that learned at another size of image.
            if name in tail and tail[name].shape != parameter.shape:
                owner, _, last = name.rpartition(".")
                setattr(self.module.get_submodule(owner), last, nn.Parameter(tail[name].to(parameter), False))
        if unknown := self.module.load_state_dict(dict(tail), strict=False).unexpected_keys:
            raise ValueError(f"the backbone has no {unknown[0]}: another version of its library than it was exported with?")

    @contextmanager
    def rounded_at(self, cut: int) -> Iterator[None]:
        """Tokens after `cut` blocks are rounded before they go on."""
        block = list(self.module.get_submodule(self.blocks).children())[cut]
        hook = block.register_forward_pre_hook(lambda _, given: (rounded(given[0]), *given[1:]))
        try:
            yield
        finally:
            hook.remove()

    @abstractmethod
    def features(self, images: Tensor, kind: str) -> Tensor:
        """Pooled embedding [B, E], or patch tokens [B, P, D]."""


def rounded(values: Tensor) -> Tensor:
    """As a store in bf16 holds them: with 8 bits of mantissa."""
    return values.bfloat16().float()


class OpenClip(Backbone):
    blocks = "transformer.resblocks"

    def features(self, images: Tensor, kind: str) -> Tensor:
        tower: Any = self.module
        if kind == "patches":
            tokens = tower._embeds(images)
            for block in tower.transformer.resblocks:
                tokens = block(tokens)
            return tower.ln_post(tokens[:, 1:])
        pooled = tower(images)
        pooled = pooled[0] if isinstance(pooled, tuple) else pooled
        return pooled[:, 0] if pooled.ndim == 3 else pooled


class Dinov2(Backbone):
    blocks = "encoder.layer"
    pooling = "cls"
    """Or cls_mean: the class token and the mean of the patch tokens."""

    def features(self, images: Tensor, kind: str) -> Tensor:
        said: Any = self.module(images)
        config: Any = self.module.config
        patches: Tensor = said.last_hidden_state[:, 1 + getattr(config, "num_register_tokens", 0) :]
        if kind == "patches":
            return patches
        pooled: Tensor = said.pooler_output
        return pooled if self.pooling == "cls" else torch.cat([pooled, patches.mean(1)], 1)


class Timm(Backbone):
    def features(self, images: Tensor, kind: str) -> Tensor:
        return self.module(images)


class Pixels(Backbone):
    def features(self, images: Tensor, kind: str) -> Tensor:
        return images.flatten(1)


class Concat(Backbone):
    """Several backbones; what each says has length 1."""

    def __init__(self, parts: Sequence[Backbone], device: torch.device) -> None:
        super().__init__(nn.ModuleList([part.module for part in parts]), lambda image: torch.empty(0), device)
        self.parts = parts

    def transform(self, datapoints: Sequence[Point]) -> Any:
        images = [self._corrected(point) for point in datapoints]
        return [torch.stack([part.to_input(image) for image in images]).to(self.device) for part in self.parts]

    def features(self, images: Any, kind: str) -> Tensor:
        said = [part.features(each, kind) for part, each in zip(self.parts, images, strict=True)]
        return torch.cat([F.normalize(each, dim=1) for each in said], 1)


def make_backbone(spec: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> Backbone:
    """The backbone, with the weights of this folder if it has them, else with those that its name leads to (none, if every member
    brings a whole network)."""
    is_here = bool(state) or spec["fingerprint"] is None
    if spec["kind"] == "concat":
        backbone: Backbone = Concat([make_part(part, is_here, device) for part in spec["parts"]], device)
    else:
        backbone = make_part(spec, is_here, device)
    if state:
        backbone.module.load_state_dict(dict(state))
    elif spec["fingerprint"] and fingerprint(backbone.module.state_dict()) != spec["fingerprint"]:
        raise ValueError(f"the weights fetched as {spec['name']} are not those that the members were trained on")
    return backbone


def make_part(spec: Mapping[str, Any], is_here: bool, device: torch.device) -> Backbone:
    """One network; `is_here`: its weights are put in afterwards, and are not fetched."""
    if spec["kind"] == "pixels":
        return Pixels(nn.Identity(), lambda image: shrink(image, spec["size"]), device)
    makers = {"open_clip": make_open_clip, "dinov2": make_dinov2, "timm": make_timm}
    return makers[spec["kind"]](spec, is_here, device)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """sha256 over the bytes of tensors, by name."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def make_open_clip(spec: Mapping[str, Any], is_here: bool, device: torch.device) -> Backbone:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if is_here:
        open_clip.add_model_config(HERE / f"{spec['architecture']}.json")
        with unwarned():  # that it has no weights yet: they are put in next
            model: Any = open_clip.create_model(spec["architecture"], pretrained_text=False)
    else:
        options = {"require_pretrained": True, "force_quick_gelu": spec["quick_gelu"]}
        model = open_clip.create_model(spec["name"], pretrained=spec["pretrained"], **options)
    return OpenClip(model.visual, image_transform_v2(PreprocessCfg(**spec["preprocess"]), is_train=False), device)


@contextmanager
def unwarned() -> Iterator[None]:
    """Leaves out what libraries log, below errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def make_dinov2(spec: Mapping[str, Any], is_here: bool, device: torch.device) -> Backbone:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    folder = HERE / spec["architecture"]
    processor: Any = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    if is_here:
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False), trust_remote_code=False)
    else:
        model = AutoModel.from_pretrained(spec["name"], revision=spec["revision"], dtype=torch.float32, trust_remote_code=False)

    def transform(image: Image.Image) -> Tensor:
        return processor(images=image, return_tensors="pt")["pixel_values"][0]

    made = Dinov2(model, transform, device)
    made.pooling = spec["pooling"]
    return made


def make_timm(spec: Mapping[str, Any], is_here: bool, device: torch.device) -> Backbone:
    import timm
    from timm.data import create_transform

    model: Any = timm.create_model(spec["timm"] if is_here else spec["name"], pretrained=not is_here, num_classes=0)
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(spec["image_size"], spec["image_size"]))
    return Timm(model, create_transform(**spec["preprocess"], is_training=False), device)


def shrink(image: Image.Image, size: int) -> Tensor:
    """An image shrunk to size × size by area, values within 0 … 1."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return F.adaptive_avg_pool2d(pixels.float(), size) / 255
