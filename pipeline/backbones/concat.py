"""Several backbones as one: what they say of an image, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.base import Backbone, Box, Network
from pipeline.config.backbone import Backbone as Block
from pipeline.errors import UserError


class ConcatBackbone(Backbone):
    """The parts' embeddings, each L2-normalised, one after the other [B, E₁ + E₂ + …]. Normalised, because a part of large
    numbers (DINOv2's are about fifty times as long as pixels') would drown the others."""

    def __init__(self, parts: Sequence[Backbone]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shapes = [part.transform(Image.new("RGB", (64, 64))).shape for part in parts]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.embed_dim = self.width = sum(part.embed_dim for part in parts)
        self.image_size = max(part.image_size for part in parts)
        self.label = " + ".join(part.label for part in parts)

    def transform(self, image: Image.Image) -> Float[Tensor, " numbers"]:
        """A PIL image → all parts' inputs in one vector [Σ 3·H·W]. Flat, because each part reads another size and has its own
        normalisation, and everything between a transform and `embed` (threads, batches, the copy to the device) handles one
        tensor for each image."""
        return torch.cat([part.transform(image).flatten() for part in self._backbones()])

    def transform_id(self) -> str:
        return "concat: " + "; ".join(part.transform_id() for part in self._backbones())

    def embed(self, images: Float[Tensor, "images numbers"]) -> Float[Tensor, "images embed_dim"]:
        """Vectors of `transform` → embeddings in which each part's share has length 1."""
        parts = zip(self._backbones(), images.split(self.sizes, dim=1), self.shapes, strict=True)
        return torch.cat([F.normalize(part.embed(each.unflatten(1, shape)), dim=1) for part, each, shape in parts], dim=1)

    def seen(self, given: Float[Tensor, ...]) -> list[Float[Tensor, "channels h w"]]:
        parts = zip(self._backbones(), given.split(self.sizes), self.shapes, strict=True)
        return [each for part, numbers, shape in parts for each in part.seen(numbers.unflatten(0, shape))]

    def shown(self, size: tuple[int, int]) -> list[Box]:
        return [box for part in self._backbones() for box in part.shown(size)]

    def native(self) -> dict[str, Tensor]:
        parts = enumerate(self._backbones())
        return {f"{i}.{name}": tensor for i, part in parts for name, tensor in part.native().items()}

    def write_spec(self, block: Block, folder: Path, name: str) -> dict[str, Any]:
        pairs = enumerate(zip(self._backbones(), block.networks, strict=True))
        parts = [part.write_spec(one, folder, f"{name}-{i}") for i, (part, one) in pairs]
        return {"kind": "concat", "name": "concat", "parts": parts}

    def network(self, size: int | None = None) -> Network:
        raise UserError(f"{self.label}: several networks are not trained at once; use them frozen, or one of them.")

    def _backbones(self) -> list[Backbone]:
        return [part for part in self.parts if isinstance(part, Backbone)]
