"""A backbone whose tokens are pooled in several ways after several of its blocks (`backbone.taps`, `backbone.poolings`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from pipeline.backbones.base import Backbone, Box, Tapped
from pipeline.config.backbone import Backbone as Block
from pipeline.config.backbone import Pooling
from pipeline.errors import UserError

POWER = 3.0
"""Of the power mean."""
LEAST = 1e-12
"""The slope of a root is infinite at 0."""


def gem(patches: Float[Tensor, "images patches width"]) -> Float[Tensor, "images width"]:
    """Signed power mean: with m = mean of sign(x)·|x|^p, sign(m)·|m|^(1/p) (generalised mean, Radenović et al. 2018, arXiv
    1711.02512, equation 3, for numbers of both signs)."""
    mean = (patches.sign() * patches.abs().pow(POWER)).mean(1)
    return mean.sign() * mean.abs().clamp_min(LEAST).pow(1 / POWER)


POOLINGS: dict[Pooling, Callable[[Tapped], Float[Tensor, "images width"]]] = {
    "cls": lambda tokens: tokens.prefix[:, 0],
    "mean": lambda tokens: tokens.patches.mean(1),
    "max": lambda tokens: tokens.patches.amax(1),
    "min": lambda tokens: tokens.patches.amin(1),
    "gem": lambda tokens: gem(tokens.patches),
}


class PooledBackbone(Backbone):
    """Another backbone, whose embedding is all poolings of all taps side by side [B, n_taps · n_poolings · D]. Of convolutions,
    whose stages are of several widths, D is the widest, and what a narrower one lacks is 0."""

    def __init__(self, of: Backbone, taps: Sequence[int], poolings: Sequence[Pooling]) -> None:
        super().__init__()
        self.of, self.poolings = of, tuple(poolings)
        self.taps = [of.tap_of(place) for place in taps or (-1,)]
        if len(set(self.taps)) < len(self.taps):
            raise UserError(
                f"backbone.taps {', '.join(map(str, taps))}: one of {of.label}'s {of.n_taps} blocks stands there twice."
            )
        self.image_size, self.grid, self.width, self.label = of.image_size, of.grid, of.width, of.label
        self.halves = of.halves
        self.part_width = self._measure()
        self.embed_dim = self.part_width * len(self.taps) * len(self.poolings)

    def transform(self, image: Image.Image) -> Tensor:
        return self.of.transform(image)

    def transform_id(self) -> str:
        return self.of.transform_id()

    def embed(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images embed_dim"]:
        return torch.cat(self._parts(images), dim=1)

    def patches(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images patches width"]:
        return self.of.patches(images)

    def grid_at(self, size: int) -> tuple[int, int]:
        return self.of.grid_at(size)

    def shown(self, size: tuple[int, int]) -> list[Box]:
        return self.of.shown(size)

    def fix_size(self, size: int) -> None:
        self.of.fix_size(size)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.of.set_grad_checkpointing(enable)

    def native(self) -> dict[str, Tensor]:
        return self.of.native()

    def extra_repr(self) -> str:
        return f"taps={self.taps}, poolings={self.poolings}"

    def write_spec(self, block: Block, folder: Path, name: str) -> dict[str, Any]:
        raise UserError(f"{self.label} is pooled by backbone.poolings, which a submission has no code for: export another trial.")

    def _parts(self, images: Tensor) -> list[Tensor]:
        parts = [POOLINGS[name](tokens) for tokens in self.of.tapped(images, self.taps) for name in self.poolings]
        return [pad(part, (0, self.part_width - part.shape[1])) for part in parts]

    def _measure(self) -> int:
        """Width of a part."""
        with torch.inference_mode():
            found = self.of.tapped(self.of.example(), self.taps)
        if "cls" in self.poolings and not found[0].prefix.shape[1]:
            raise UserError(f"{self.label} has no class token: leave cls out of backbone.poolings.")
        return max(tokens.patches.shape[2] for tokens in found)
