"""What a head's numbers say of the targets (`config/outputs.py`): parameters of its outputs [B, O, n], location first, → those of
the targets [B, T, n]."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import outputs as blocks
from pipeline.config.data import Data
from pipeline.metrics.sums import Sums

OfOutputs = Float[Tensor, "images outputs numbers"]
OfTargets = Float[Tensor, "images targets numbers"]


class Each(nn.Module):
    """As they come, or nothing below 0."""

    def __init__(self, block: blocks.Each, targets: tuple[str, ...], data: Data) -> None:
        super().__init__()
        self.positive = block.positive

    def forward(self, parameters: OfOutputs) -> OfTargets:
        return _positive(parameters) if self.positive else parameters


class Parts(nn.Module):
    """Locations of parts add up to that of their sum, and so do variances, as those of independent numbers."""

    matrix: Float[Tensor, "targets parts"]

    def __init__(self, block: blocks.Parts, targets: tuple[str, ...], data: Data) -> None:
        super().__init__()
        matrix = torch.from_numpy(Sums.of(targets, data.parts_of).matrix).float()
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, parameters: OfOutputs) -> OfTargets:
        location, *scale = _positive(parameters).unbind(-1)
        return torch.stack([self._added(location), *(self._added(each.square()).sqrt() for each in scale)], -1)

    def _added(self, parts: Float[Tensor, "images parts"]) -> Float[Tensor, "images targets"]:
        """Not as a product of matrices: autocast would add in bf16, to a quarter of a gram in sixty."""
        return (parts[:, None, :] * self.matrix).sum(-1)


class Ratios(nn.Module):
    """A whole's parts are shares of it: a softmax over their numbers."""

    def __init__(self, block: blocks.Ratios, targets: tuple[str, ...], data: Data) -> None:
        super().__init__()
        place = {target: i for i, target in enumerate(targets)}
        inside = {part for parts in data.parts_of.values() for part in parts}
        self.roots = [place[target] for target in targets if target not in inside]
        self.wholes = list(_downwards({place[whole]: [place[part] for part in parts] for whole, parts in data.parts_of.items()}))

    def forward(self, parameters: OfOutputs) -> OfTargets:
        raw = parameters[..., 0]
        said = {root: F.softplus(raw[:, root]) for root in self.roots}
        for whole, parts in self.wholes:
            shares = raw[:, parts].softmax(1)
            said |= {part: said[whole] * shares[:, i] for i, part in enumerate(parts)}
        return torch.stack([said[i] for i in range(raw.shape[1])], 1).unsqueeze(-1)


def _positive(parameters: OfOutputs) -> OfOutputs:
    """With locations not below 0."""
    return torch.cat([F.softplus(parameters[..., :1]), parameters[..., 1:]], -1)


def _downwards(parts_of: dict[int, list[int]]) -> list[tuple[int, list[int]]]:
    """Wholes with their parts, each behind the whole that it is itself a part of."""
    above = {part: whole for whole, parts in parts_of.items() for part in parts}

    def depth(whole: int) -> int:
        return 1 + depth(above[whole]) if whole in above else 0

    return sorted(parts_of.items(), key=lambda each: depth(each[0]))
