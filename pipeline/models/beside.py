"""What is learnt of an image beside its targets (`config/auxiliary.py`): a linear layer for each on the embedding that the head
reads. Nothing of it is predicted, and what it learns reaches the encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.auxiliary import Auxiliary, AuxiliaryBins

Embedded = Float[Tensor, "images width"]
Known = Float[Tensor, "images columns"]
"""A column for each that stands in one: a number (NaN: not known), or the place of a name (-1: not known)."""


class Beside(nn.Module):
    """Layers, and the losses of what they say."""

    def __init__(self, blocks: Sequence[Auxiliary], n_names: Sequence[int], width: int, targets: Sequence[str]) -> None:
        """`n_names` of each block: how many names there are; 0 of what is no name."""
        super().__init__()
        self.blocks, self.n_names, self.targets = tuple(blocks), tuple(n_names), tuple(targets)
        sizes = [block.n if isinstance(block, AuxiliaryBins) else max(n, 1) for block, n in zip(blocks, n_names, strict=True)]
        self.layers = nn.ModuleList(nn.Linear(width, size) for size in sizes)
        columns = sum(block.reads is not None for block in blocks)
        for name, value in (("mean", torch.zeros(columns)), ("scale", torch.ones(columns))):
            self.register_buffer(name, value, persistent=False)
        self.edges: dict[int, Tensor] = {}

    @torch.no_grad()
    def set_scales(self, truth: Float[Tensor, "images targets"], known: Known) -> None:
        """From the training images: mean and sd of numbers, and where the ranges of targets part."""
        there = known.isfinite()
        mean = known.nan_to_num().sum(0) / there.sum(0).clamp_min(1)
        sd = ((known - mean).nan_to_num().square().sum(0) / there.sum(0).clamp_min(1)).sqrt()
        self.get_buffer("mean").copy_(mean)
        self.get_buffer("scale").copy_(torch.where(sd > 0, sd, torch.ones_like(sd)))
        for place, block in enumerate(self.blocks):
            if isinstance(block, AuxiliaryBins):
                shares = torch.linspace(0, 1, block.n + 1)[1:-1].to(truth)
                self.edges[place] = torch.quantile(truth[:, self.targets.index(block.target)], shares)

    def losses(self, embedding: Embedded, truth: Float[Tensor, "images targets"], known: Known) -> Float[Tensor, " images"]:
        """The weighted sum of each image's losses; of what is not known nothing."""
        total, column = embedding.new_zeros(len(embedding), dtype=torch.float32), 0
        for place, (block, layer) in enumerate(zip(self.blocks, self.layers, strict=True)):
            said = layer(embedding).float()
            if isinstance(block, AuxiliaryBins):
                of = truth[:, self.targets.index(block.target)].contiguous()
                each = F.cross_entropy(said, torch.bucketize(of, self.edges[place]), reduction="none")
            else:
                each = self._of_column(said[:, :], known[:, column], column, self.n_names[place])
                column += 1
            total = total + block.weight * each
        return total

    def _of_column(self, said: Float[Tensor, "images names"], known: Float[Tensor, " images"], i: int, n: int) -> Tensor:
        if n:
            return F.cross_entropy(said, known.long(), ignore_index=-1, reduction="none")
        wanted = (known - self.get_buffer("mean")[i]) / self.get_buffer("scale")[i]
        return torch.where(wanted.isfinite(), (said[:, 0] - wanted.nan_to_num()).square(), 0.0)
