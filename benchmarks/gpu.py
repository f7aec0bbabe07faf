"""Frozen vision transformers on a GPU, as extraction runs them: 8-bit pixels on the device → features, in bf16, compiled
(`extract.compile`); images a second, and how near features are to those in fp32.

    python -m benchmarks.gpu

Weights are random, so nothing is downloaded; what is computed does not depend on them. Without a GPU it says so, and measures
nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower
from torch import Tensor

from benchmarks.decoding import SAMPLE, photograph
from benchmarks.figure import Figure, seconds, show
from pipeline.backbones.base import Backbone, seeded
from pipeline.backbones.open_clip_image import OpenClipBackbone
from pipeline.data.decoding import How
from pipeline.data.opening import decode
from pipeline.features.forward import compile_for, compute_features

BATCH, BATCHES, ROUNDS = 256, 20, 5
NETWORKS = {"ViT-L/14": (24, 1024, 64, 768, 2600), "ViT-B/14": (12, 768, 64, 512, 9000)}
"""Blocks, width, width of an attention head, of the embedding; and the goal in images/s on an H100 or H200."""


def make_backbone(name: str) -> Backbone:
    """A frozen image tower of open_clip's, of 224 × 224 pixels in patches of 14."""
    layers, width, head_width, embed_dim, _ = NETWORKS[name]
    with seeded(0):
        visual = _build_vision_tower(embed_dim, CLIPVisionCfg(layers, width, head_width, patch_size=14, image_size=224))
    return OpenClipBackbone(visual.eval(), SAMPLE, name).freeze()


def make_pixels(backbone: Backbone, n: int) -> Tensor:
    """[n, 3, 224, 224] of made-up photographs in 8 bits, shifted and mirrored, so that no two are the same."""
    rng = np.random.default_rng()
    some = [backbone.pixels(decode(photograph(rng, (600, 450)), How()).picture) for _ in range(min(n, 16))]
    shifted = [some[i % len(some)].roll(int(rng.integers(224)), int(rng.integers(1, 3))) for i in range(n)]
    return torch.stack(shifted)


def images_per_second(run: Callable[[], Tensor], n: int, rounds: int) -> float:
    """Of `run`, which gives features of n images on the GPU."""

    def work() -> None:
        run()
        torch.cuda.synchronize()

    work()
    return n / statistics.median(seconds(work) for _ in range(rounds))


def cosine(one: Tensor, other: Tensor) -> float:
    """The least of any image's."""
    return float(torch.nn.functional.cosine_similarity(one.float(), other.float()).min())


def measure(short: bool = False) -> list[Figure]:
    """Figures of both networks; none without a GPU."""
    return [figure for name in NETWORKS for figure in _of(name)] if torch.cuda.is_available() and not short else []


def _of(name: str) -> list[Figure]:
    device, goal = torch.device("cuda"), NETWORKS[name][-1]
    backbone = make_backbone(name).to(device)
    pixels = make_pixels(backbone, BATCH).to(device)

    def run() -> Tensor:
        return [compute_features(backbone, pixels, "pooled", 0, "bf16") for _ in range(BATCHES)][-1]

    exact = compute_features(backbone, pixels, "pooled", 0, "fp32")
    eager = images_per_second(run, BATCH * BATCHES, ROUNDS)
    compile_for(backbone, "pooled", device)
    about = f"{torch.cuda.get_device_name()}, {BATCH} images at once; not compiled {eager:.0f}"
    return [
        Figure(f"{name}, bf16 and compiled", images_per_second(run, BATCH * BATCHES, ROUNDS), "images/s", goal, about=about),
        Figure(f"{name}, greatest 1 - cosine to fp32", 1 - cosine(run(), exact), "", at_most=0.0005),
    ]


def main() -> None:
    if not torch.cuda.is_available():
        print("no GPU that torch can use: nothing is measured")
    show(measure())


if __name__ == "__main__":
    main()
