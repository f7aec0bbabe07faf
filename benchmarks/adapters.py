"""A training step with adapters: DoRA by PEFT's own layer and by Carabid's, which says the same; and adapters beside training
all weights.

    python -m benchmarks.adapters [few|many]

Two blocks of a ViT-B whose patch tokens are pooled, adapters on six projections of each, 16 images × 50 tokens (many: 8 × 257):
forward, backward and AdamW's step. Fresh random tokens, one thread, in turn.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
from open_clip.transformer import VisionTransformer
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from benchmarks.figure import Figure, in_turn, show
from pipeline.backbones.base import Tail
from pipeline.backbones.open_clip_image import OpenClipTail
from pipeline.config.encoder import Lora
from pipeline.models.adapter import add_adapter

THREADS = 1
BLOCKS = 2


class Size(NamedTuple):
    width: int
    heads: int
    patches: int
    """Along a side."""
    images: int
    ranks: tuple[int, ...]
    rounds: int


SIZES = {"few": Size(768, 12, 7, 16, (256, 16), 3), "many": Size(768, 12, 16, 8, (256,), 3)}
SHORT = Size(32, 2, 3, 2, (8, 2), 1)
GOALS = {256: 1.3}
"""Rank → how many times as long PEFT's own DoRA takes at least."""


def make_tail(size: Size) -> Tail:
    """The same one each time. Its patch tokens are pooled, so that all of both blocks is computed."""
    torch.manual_seed(0)
    sides = {"image_size": size.patches, "patch_size": 1, "width": size.width, "heads": size.heads, "pool_type": "avg"}
    return OpenClipTail(VisionTransformer(**sides, layers=BLOCKS, mlp_ratio=4.0, output_dim=size.width), 0)


def carabid(size: Size, rank: int, dora: bool) -> PeftModel:
    tail = make_tail(size)
    torch.manual_seed(1)
    return add_adapter(tail, Lora(kind="lora", blocks=BLOCKS, r=rank, alpha=float(rank), dora=dora))


def pefts(size: Size, rank: int, dora: bool) -> PeftModel:
    """The same adapters as PEFT makes them."""
    tail, like = make_tail(size), Lora(kind="lora", r=rank, alpha=float(rank))
    torch.manual_seed(1)
    names = {"target_modules": tail.module_names(like.targets), "modules_to_save": ["ln_post"]}
    return cast(
        PeftModel, get_peft_model(tail, LoraConfig(r=rank, lora_alpha=rank, use_rslora=like.rslora, use_dora=dora, **names))
    )


def steps(model: nn.Module, tokens: Tensor, goal: Tensor) -> Callable[[], float]:
    """A step of training each time it is called, which gives the loss."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, 1e-4, fused=True)

    def step() -> float:
        optimiser.zero_grad()
        loss = (model(tokens) - goal).square().mean()
        loss.backward()
        optimiser.step()
        return float(loss.detach())

    return step


def compare(size: Size) -> Iterator[Figure]:
    """PEFT's own and Carabid's; then Carabid's and training all weights."""
    tokens, goal = torch.randn(size.images, 1 + size.patches**2, size.width), torch.randn(size.images, size.width)
    among = f"{size.images} images × {tokens.shape[1]} tokens"

    def training(model: nn.Module) -> Callable[[], float]:
        return steps(model, tokens, goal)

    for kind, dora in (("DoRA", True), ("LoRA", False)):
        for rank in size.ranks:
            theirs, ours = training(pefts(size, rank, dora)), training(carabid(size, rank, dora))
            slow, fast, ratio = in_turn(theirs, ours, size.rounds)
            about = f"PEFT's own {1000 * slow:.0f} ms, Carabid's {1000 * fast:.0f} ms; {among}"
            yield Figure(f"step with {kind}, rank {rank}", ratio, at_least=GOALS.get(rank) if dora else None, about=about)
            apart = abs(theirs() / ours() - 1)  # after as many steps
            yield Figure(f"step with {kind}, rank {rank}: losses apart", apart, "of the loss", at_most=1e-5)
            whole, fast, ratio = in_turn(training(make_tail(size)), ours, size.rounds)
            about = f"all weights {1000 * whole:.0f} ms, {kind} {1000 * fast:.0f} ms; {among}"
            yield Figure(f"{kind}, rank {rank}, beside training all weights", ratio, about=about)


def measure(short: bool = False, name: str = "few") -> list[Figure]:
    """At a high rank and a low one."""
    return list(compare(SHORT if short else SIZES[name]))


def main() -> None:
    torch.set_num_threads(THREADS)
    show(measure(name=sys.argv[1] if len(sys.argv) > 1 else "few"))


if __name__ == "__main__":
    main()
