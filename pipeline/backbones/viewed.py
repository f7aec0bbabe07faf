"""A backbone that sees several views of each image (`backbone.views`): what it gives has an axis of views, [B, V, …]."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pipeline.backbones.base import Backbone, Box, Network, Tail
from pipeline.config.backbone import Backbone as Block
from pipeline.config.views import Crop, Pose, Views
from pipeline.data.decoding import to_rgb
from pipeline.data.image_augmentation import augment_images
from pipeline.errors import UserError

BOXES: dict[Crop, tuple[float, float, float, float]] = {
    "whole": (0, 0, 1, 1), "left": (0, 0, 0.5, 1), "right": (0.5, 0, 1, 1), "top": (0, 0, 1, 0.5), "bottom": (0, 0.5, 1, 1),
}  # fmt: skip
"""Left, top, right and bottom of each crop, in fractions of the sides."""
TURNS: dict[Pose, Image.Transpose] = {
    "hflip": Image.Transpose.FLIP_LEFT_RIGHT, "vflip": Image.Transpose.FLIP_TOP_BOTTOM, "rot90": Image.Transpose.ROTATE_90,
    "rot180": Image.Transpose.ROTATE_180, "rot270": Image.Transpose.ROTATE_270,
}  # fmt: skip
VERSION = 1
"""Counts up when the same views would be made otherwise."""


class ViewedBackbone(Backbone):
    """Another backbone, shown every view. Its transform gives [V, 3, S, S], or of several sizes all numbers in one vector: the
    batches between a transform and `embed` have one tensor for each image."""

    def __init__(self, seen_by: Backbone, views: Views) -> None:
        super().__init__()
        self.seen_by, self.views = seen_by, views
        self.sizes = views.sizes or (seen_by.image_size,)
        grids = [seen_by.grid_at(size) for size in self.sizes]
        self.image_size, self.grid = self.sizes[0], grids[0]
        self.width, self.embed_dim, self.n_blocks = seen_by.width, seen_by.embed_dim, seen_by.n_blocks
        self.label = seen_by.label
        self._black, self._white = _levels(seen_by)

    @property
    def n_patches(self) -> int:
        """Of views of several sizes so many that all views have them together."""
        each = [rows * columns for rows, columns in map(self.seen_by.grid_at, self.sizes)]
        return -(-sum(each) // len(each))

    # ------------------------------------------------------------ from an image to its views
    def transform(self, image: Image.Image) -> Float[Tensor, ...]:
        views = list(self._views(self._masked(to_rgb(image))))
        return torch.stack(views) if len(self.sizes) == 1 else torch.cat([view.flatten() for view in views])

    def transform_id(self) -> str:
        said = json.dumps(self.views.model_dump(mode="json"), sort_keys=True)
        return f"views {VERSION}: {said}; {self.seen_by.transform_id()}"

    def _views(self, image: Image.Image) -> Iterator[Float[Tensor, "3 side side"]]:
        crops = {name: image.crop(_pixels(BOXES[name], image.size)) for name in self.views.crops}
        for turn in (None, *(TURNS[name] for name in self.views.poses)):
            turned = {name: crop if turn is None else crop.transpose(turn) for name, crop in crops.items()}
            yield from (self._tensor(tile, size) for size in self.sizes for crop in turned.values() for tile in self._tiles(crop))
        rng = np.random.default_rng(zlib.crc32(image.tobytes()))  # of the image alone: who extracts which shard does not matter
        for _ in range(self.views.draws):
            for size in self.sizes:
                plain = torch.stack([self._tensor(tile, size) for crop in crops.values() for tile in self._tiles(crop)])
                yield from augment_images(plain, self.views.augment, 1.0, rng)

    def _tiles(self, crop: Image.Image) -> Iterator[Image.Image]:
        rows, columns = self.views.tiles
        for row in range(rows):
            for column in range(columns):
                box = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
                yield crop.crop(_pixels(box, crop.size)) if rows * columns > 1 else crop

    def _tensor(self, tile: Image.Image, size: int) -> Float[Tensor, "3 side side"]:
        """Squeezed into a square, in the units of the network's input."""
        squared = tile if tile.size == (size, size) else tile.resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(squared)).permute(2, 0, 1).float() / 255
        return self._black + pixels * (self._white - self._black)

    def _masked(self, image: Image.Image) -> Image.Image:
        if self.views.masks:
            image = image.copy()
            mean: Any = image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
            for box in self.views.masks:
                image.paste(mean, _pixels(box, image.size))
        return image

    def seen(self, given: Float[Tensor, ...]) -> list[Float[Tensor, "channels h w"]]:
        if len(self.sizes) == 1:
            return list(given)
        sides = self._size_of_each()
        views = zip(given.split([3 * side**2 for side in sides]), sides, strict=True)
        return [view.reshape(3, side, side) for view, side in views]

    def shown(self, size: tuple[int, int]) -> list[Box]:
        """Of the views of the plain pose, which come first."""
        return [box for _ in self.sizes for crop in self.views.crops for box in self._boxes(Box(*BOXES[crop]))]

    def _boxes(self, crop: Box) -> Iterator[Box]:
        """Of a crop's tiles."""
        rows, columns = self.views.tiles
        width, height = (crop.right - crop.left) / columns, (crop.bottom - crop.top) / rows
        for top in (crop.top + row * height for row in range(rows)):
            for left in (crop.left + column * width for column in range(columns)):
                yield Box(left, top, left + width, top + height)

    # ------------------------------------------------------------ what the backbone makes of them
    def embed(self, images: Float[Tensor, "images ..."]) -> Float[Tensor, "images views embed_dim"]:
        return self._each(images, self.seen_by.embed)

    def patches(self, images: Float[Tensor, "images ..."]) -> Float[Tensor, "images views patches width"]:
        return self._each(self._of_one_size(images), self.seen_by.patches)

    def trunk(self, images: Float[Tensor, "images ..."], cut: int) -> Float[Tensor, "images views tokens width"]:
        return self._each(self._of_one_size(images), lambda views: self.seen_by.trunk(views, cut))

    def given(self, images: Tensor) -> Tensor:
        return self._of_one_size(images)

    def _each(self, images: Float[Tensor, "images ..."], say: Callable[[Tensor], Tensor]) -> Tensor:
        """What is said of each view, views of one size at a time."""
        if len(self.sizes) == 1:
            return say(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        parts, begin = [], 0
        for size, some in groupby(self._size_of_each()):
            n = len(list(some))
            views = images[:, begin : begin + n * 3 * size**2].reshape(-1, 3, size, size)
            parts.append(say(views).unflatten(0, (len(images), n)))
            begin += n * 3 * size**2
        return torch.cat(parts, dim=1)

    def _size_of_each(self) -> list[int]:
        """Of every view, in order."""
        per_size = len(self.views.crops) * self.views.n_tiles
        return [size for _ in self.views.pose_names for size in self.sizes for _ in range(per_size)]

    def _of_one_size(self, images: Tensor) -> Tensor:
        if len(self.sizes) > 1:
            raise UserError(
                f"backbone.views.sizes {', '.join(map(str, self.sizes))}: tokens and images of these are not of one shape: "
                "name one size, or use the pooled embedding (model.encoder.kind: frozen)"
            )
        return images

    # ------------------------------------------------------------ the same network
    def make_tail(self, cut: int) -> Tail:
        return self.seen_by.make_tail(cut)

    def network(self, size: int | None = None) -> Network:
        return self.seen_by.network(self.image_size)

    def weights_hash(self) -> str:
        return self.seen_by.weights_hash()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.seen_by.set_grad_checkpointing(enable)

    def native(self) -> dict[str, Tensor]:
        return self.seen_by.native()

    def write_spec(self, block: Block, folder: Path, name: str) -> dict[str, Any]:
        raise UserError(f"{self.label} sees several views of an image, which a submission has no code for: export another trial.")


def _pixels(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in fractions of the sides in whole pixels, at least one of each side."""
    (left, top, right, bottom), (width, height) = box, size
    x, y = min(round(left * width), width - 1), min(round(top * height), height - 1)
    return x, y, max(round(right * width), x + 1), max(round(bottom * height), y + 1)


def _levels(backbone: Backbone) -> tuple[Float[Tensor, "3 1 1"], Float[Tensor, "3 1 1"]]:
    """What its transform makes of black and of white: between them it is linear, whatever its library calls mean and sd."""
    side = backbone.image_size
    black, white = (backbone.transform(Image.new("RGB", (side, side), colour)) for colour in ("black", "white"))
    if black.ndim != 3 or black.shape[0] != 3:
        raise UserError(f"{backbone.label} does not read images of three colours: it cannot be shown views (backbone.views).")
    return black.amin((1, 2), keepdim=True), white.amax((1, 2), keepdim=True)
