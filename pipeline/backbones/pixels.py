"""A plain baseline instead of a network: the image shrunk to size × size RGB values; with size 1 its mean colour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbones.base import Backbone, Box, Network
from pipeline.config.backbone import Backbone as Block
from pipeline.data.decoding import to_rgb
from pipeline.errors import UserError


class PixelsBackbone(Backbone):
    """Area-averaged pixels, [0, 1], as the embedding: E = 3·size², channel by channel, rows first."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.image_size = size
        self.embed_dim = self.width = 3 * size * size
        self.label = f"The pixels baseline ({size} × {size})"

    def transform(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """The mean of the pixels under each cell, the aspect ratio squashed."""
        pixels = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
        # Channels one after the other take less memory; the mean of all at once (size 1) would be another in the last bit.
        parts = pixels.split(1) if self.image_size > 1 else (pixels,)
        return torch.cat([F.adaptive_avg_pool2d(part.float(), self.image_size) for part in parts]) / 255

    def transform_id(self) -> str:
        return f"rgb, adaptive_avg_pool2d({self.image_size}), /255"

    def embed(self, images: Float[Tensor, "images 3 size size"]) -> Float[Tensor, "images embed_dim"]:
        return images.flatten(1)

    def write_spec(self, block: Block, folder: Path, name: str) -> dict[str, Any]:
        return block.model_dump(mode="json") | {"architecture": name}

    def shown(self, size: tuple[int, int]) -> list[Box]:
        return [Box(0, 0, 1, 1)]

    def network(self, size: int | None = None) -> Network:
        raise UserError(f"{self.label} has nothing to train: use it frozen (model.encoder.kind: frozen).")
