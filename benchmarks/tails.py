"""A training step of a fine-tuned tail of one block and of two, the last block computed for the class token alone, beside the
sample code's way, which computes it for all tokens.

    python -m benchmarks.tails [ViT-L|ViT-B]

Blocks of a ViT-L/14 at 224 pixels: 257 tokens of width 1024. Fresh random tokens, forward and backward, one thread, in turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor

from benchmarks.figure import Figure, in_turn, show
from pipeline.backbones.base import Tail
from pipeline.backbones.open_clip_image import OpenClipTail

THREADS = 1
GOALS = {1: 2.5, 2: 1.4}
"""Blocks of the tail → how many times as long the plain way takes at least."""


class Size(NamedTuple):
    width: int
    heads: int
    patches: int
    """Along a side."""
    images: int
    rounds: int


SIZES = {"ViT-L": Size(1024, 16, 16, 4, 3), "ViT-B": Size(768, 12, 16, 4, 3)}
SHORT = Size(32, 2, 3, 2, 1)


class PlainTail(OpenClipTail):
    """The way of open_clip: the last block gives all tokens, of which the first one is taken."""

    def token_after_blocks(self, tokens: Tensor, at: Tensor, *more: object) -> Tensor:
        return self.through_blocks(tokens, *more)[:, 0]


def tails(size: Size, blocks: int) -> tuple[Tail, Tail]:
    """The plain way and Carabid's, with the same weights."""
    sides = {"image_size": size.patches, "patch_size": 1, "width": size.width, "heads": size.heads}
    vit = VisionTransformer(**sides, layers=blocks, mlp_ratio=4.0, output_dim=size.width)
    return PlainTail(vit, 0), OpenClipTail(vit, 0)


def gradients(tail: Tail, tokens: Tensor, goal: Tensor) -> list[Tensor]:
    """One step forward and backward."""
    tail.zero_grad(set_to_none=True)
    (tail(tokens) - goal).square().mean().backward()
    return [cast(Tensor, parameter.grad) for parameter in tail.parameters()]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest one of two lists of gradients, relative to the largest gradient."""
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) / max(float(a.abs().max()) for a in theirs)


def compare(name: str, size: Size, blocks: int) -> Iterator[Figure]:
    plain, ours = tails(size, blocks)
    tokens, goal = torch.randn(size.images, 1 + size.patches**2, size.width), torch.randn(size.images, size.width)

    def step(tail: Tail) -> Callable[[], object]:
        return lambda: gradients(tail, tokens, goal)

    seconds, own, ratio = in_turn(step(plain), step(ours), size.rounds)
    about = (
        f"all tokens {1000 * seconds:.0f} ms, class token {1000 * own:.0f} ms; {size.images} images × {tokens.shape[1]} tokens"
    )
    what = f"step of a {name} tail of {blocks} block{'s' * (blocks > 1)}"
    yield Figure(what, ratio, at_least=GOALS[blocks], about=about)
    apart = difference(gradients(ours, tokens, goal), gradients(plain, tokens, goal))
    yield Figure(f"{what}: gradients apart", apart, "of the largest", at_most=1e-5)


def measure(short: bool = False, names: tuple[str, ...] = ("ViT-L",)) -> list[Figure]:
    """Of tails of one block and of two."""
    sizes = {"tiny": SHORT} if short else {name: SIZES[name] for name in names}
    return [figure for name, size in sizes.items() for blocks in GOALS for figure in compare(name, size, blocks)]


def main() -> None:
    torch.set_num_threads(THREADS)
    show(measure(names=tuple(sys.argv[1:]) or ("ViT-L",)))


if __name__ == "__main__":
    main()
