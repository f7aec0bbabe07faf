"""Augmentation of images for training end to end: turned, scaled, shifted, mirrored, brighter, flatter, partly erased.

A whole batch at a time, on the device: one resampling for all geometry. Why not torchvision.transforms.v2: its transforms
draw once for a batch, so all of its images would be changed alike (or one call each, on the CPU), and they draw from torch's
global generator. Here every image has its own draw, all draws come from the epoch's stream on the CPU, and a resumed run
makes the images that an undisturbed one makes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.augment import ImageAugment
from pipeline.device import to_device

Images = Float[Tensor, "images 3 height width"]
PerImage = Float64[np.ndarray, " images"]
AREAS, RATIO = (0.02, 0.2), 0.3
"""An erased rectangle's share of the image, and the smallest ratio of its sides (Zhong et al. 2017, arXiv 1708.04896, have
0.4 at most)."""


def augment_images(
    images: Float[Tensor, "images ..."], augment: ImageAugment, share: float, rng: np.random.Generator
) -> Float[Tensor, "images ..."]:
    """Images in the units of the network's input, changed by `augment` at `share` of full strength.

    Without any augmentation the very same tensor (features too), and nothing is drawn.
    """
    if not augment.is_on() or share == 0:
        return images
    moves = (augment.flip, augment.rotation, augment.scale, augment.shift, augment.flip_vertical, augment.quarter_turns)
    if any(moves):
        matrices = inverse_matrices(_draw_maps(augment, share, len(images), rng), *images.shape[2:])
        grid = F.affine_grid(to_device(matrices, images.device), list(images.shape), align_corners=False)
        # Beyond its border an image goes on as it ends, or a frame around it would be a feature of its own.
        images = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if augment.brightness or augment.contrast or augment.saturation or augment.hue:
        images = _recoloured(images, augment, share, rng)
    return _erased(images, share * augment.erase, rng) if augment.erase else images


def augment_views(
    images: Float[Tensor, "images ..."], augment: ImageAugment, share: float, rng: np.random.Generator
) -> Float[Tensor, "images ..."]:
    """The same of images, or of several views of each [B, V, 3, H, W], every view by itself."""
    if images.ndim < 5 or not augment.is_on():
        return augment_images(images, augment, share, rng)
    return augment_images(images.flatten(0, 1), augment, share, rng).unflatten(0, images.shape[:2])


# ---------------------------------------------------------------- geometry
@dataclass(frozen=True)
class Maps:
    """How each image is moved: angle in radians, anticlockwise as it is seen; factor of size; shift to the right and down in
    fractions of the side; and −1 where it is mirrored, else 1."""

    angle: PerImage
    size: PerImage
    right: PerImage
    down: PerImage
    mirror: PerImage


def _draw_maps(augment: ImageAugment, share: float, n: int, rng: np.random.Generator) -> Maps:
    angle, size, right, down = rng.uniform(-1, 1, (4, n)) * share
    mirror = np.where(rng.random(n) < share / 2 * augment.flip, -1.0, 1.0)
    turned, scaled = np.radians(augment.rotation) * angle, (1 + augment.scale) ** size
    if augment.quarter_turns:
        turned = turned + np.pi / 2 * rng.integers(1, 4, n) * (rng.random(n) < share * augment.quarter_turns)
    if augment.flip_vertical:  # which is mirroring, and half a turn
        upside_down = rng.random(n) < share / 2
        mirror, turned = np.where(upside_down, -mirror, mirror), turned + np.pi * upside_down
    return Maps(turned, scaled, augment.shift * right, augment.shift * down, mirror)


def inverse_matrices(maps: Maps, height: int, width: int) -> Float[Tensor, "images 2 3"]:
    """From a place in the new image to where its colour is in the old one, both in −1 … 1, x first.

    Turning is of pixels, so in images that are not square the axes are brought to one unit and back.
    """
    cos, sin = np.cos(maps.angle) / maps.size, np.sin(maps.angle) / maps.size
    ratio = height / width
    x, y = -2 * maps.right, -2 * maps.down  # a side is 2 long
    rows = [
        [maps.mirror * cos, -maps.mirror * sin * ratio, maps.mirror * (cos * x - sin * ratio * y)],
        [sin / ratio, cos, sin / ratio * x + cos * y],
    ]
    return torch.from_numpy(np.stack([np.stack(row, -1) for row in rows], 1).astype("float32"))


# ---------------------------------------------------------------- colours
def _relit(images: Images, augment: ImageAugment, share: float, rng: np.random.Generator) -> Images:
    draws = to_device(torch.from_numpy(rng.uniform(-share, share, (2, len(images))).astype("float32")), images.device)
    added, stretched = draws[:, :, None, None, None]
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images - mean) * (1 + augment.contrast * stretched) + augment.brightness * added


def _recoloured(images: Images, augment: ImageAugment, share: float, rng: np.random.Generator) -> Images:
    """Brightness and contrast, then saturation and hue, of those images that have any of it changed."""
    changed = _relit(images, augment, share, rng) if augment.brightness or augment.contrast else images
    if augment.saturation or augment.hue:
        stretched, turned = rng.uniform(-share, share, (2, len(images)))
        matrices = colour_matrices(1 + augment.saturation * stretched, 2 * np.pi * augment.hue * turned)
        changed = torch.einsum("ncd,ndhw->nchw", to_device(matrices, images.device), changed)
    if augment.colour_probability == 1:
        return changed
    chosen = torch.from_numpy(rng.random(len(images)) < augment.colour_probability)
    return torch.where(to_device(chosen, images.device)[:, None, None, None], changed, images)


def colour_matrices(saturation: PerImage, hue: PerImage) -> Float[Tensor, "images 3 3"]:
    """What stretches colours around grey by a factor and turns them around it by an angle in radians (Rodrigues' formula)."""
    axis = np.full(3, 1 / np.sqrt(3))
    grey, cross = np.outer(axis, axis), np.cross(np.eye(3), axis)
    cos, sin = np.cos(hue)[:, None, None], np.sin(hue)[:, None, None]
    around = saturation[:, None, None] * (cos * (np.eye(3) - grey) + sin * cross)
    return torch.from_numpy((grey + around).astype("float32"))


def _erased(images: Images, probability: float, rng: np.random.Generator) -> Images:
    n, (height, width) = len(images), images.shape[2:]
    chosen = rng.random(n) < probability
    area = rng.uniform(*AREAS, n) * height * width
    ratio = RATIO ** rng.uniform(-1, 1, n)
    tall, wide = np.minimum(np.sqrt(area * ratio), height), np.minimum(np.sqrt(area / ratio), width)
    top, left = rng.random(n) * (height - tall), rng.random(n) * (width - wide)
    rows = _between(top, top + tall, height) & chosen[:, None]
    hidden = rows[:, :, None] & _between(left, left + wide, width)[:, None, :]
    return images.masked_fill(to_device(torch.from_numpy(hidden), images.device)[:, None], 0.0)


def _between(first: PerImage, end: PerImage, n: int) -> Bool[np.ndarray, "images pixels"]:
    """Which of n pixels have their centre within."""
    centres = np.arange(n) + 0.5
    return (centres >= first[:, None]) & (centres < end[:, None])
