"""What turns cached features into an embedding: nothing, a trained tail, a tail with adapters, or patch convolutions;
or what turns images into one: the whole backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.backbones.base import Network, Tail
from pipeline.errors import UserError

HIDDEN, LEAST = 64, 1e-6
"""Width of the attention's hidden layer; of a number whose power is taken."""


class Projection(nn.Module):
    """x + x·W, W of zeros before training."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, width))

    def forward(self, pooled: Float[Tensor, "inputs width"]) -> Float[Tensor, "inputs width"]:
        return pooled + pooled @ self.weight

    def matrix(self) -> Float[Tensor, "width width"]:
        """What the embedding is multiplied by from the right, in double precision."""
        weight = self.weight.detach().double().cpu()
        return torch.eye(len(weight), dtype=torch.float64) + weight


class PatchConvs(nn.Module):
    """Two convolutions with ReLU over the grid of patch tokens; the second leaves a single cell."""

    def __init__(self, width: int, grid: tuple[int, int], kernel: int, channels: int) -> None:
        super().__init__()
        rest = (grid[0] - kernel + 1, grid[1] - kernel + 1)
        if min(rest) < 1:
            raise UserError(
                f"model.encoder.kernel {kernel} is larger than the backbone's {grid[0]}×{grid[1]} grid of patch tokens"
            )
        self.grid = grid
        self.spec = {"width": width, "grid": list(grid), "kernel": kernel, "channels": channels}
        self.convs = nn.Sequential(nn.Conv2d(width, width, kernel), nn.ReLU(), nn.Conv2d(width, channels, rest), nn.ReLU())

    def forward(self, patches: Float[Tensor, "images patches width"]) -> Float[Tensor, "images channels"]:
        maps = patches.transpose(1, 2).unflatten(2, self.grid)
        return self.convs(maps).flatten(1)


class TokenPooling(nn.Module):
    """Patch tokens [B, P, D] pooled side by side, and a linear layer → [B, channels]."""

    def __init__(self, width: int, poolings: Sequence[str], channels: int) -> None:
        super().__init__()
        self.poolings = tuple(poolings)
        self.power = nn.Parameter(torch.tensor(3.0)) if "gem" in self.poolings else None
        self.score = nn.Sequential(nn.Linear(width, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)) if "attention" in poolings else None
        self.out = nn.Linear(width * len(self.poolings), channels)

    def forward(self, patches: Float[Tensor, "images patches width"]) -> Float[Tensor, "images channels"]:
        return self.out(torch.cat([getattr(self, f"_{name}")(patches) for name in self.poolings], 1))

    def _mean(self, patches: Tensor) -> Tensor:
        return patches.mean(1)

    def _max(self, patches: Tensor) -> Tensor:
        return patches.amax(1)

    def _gem(self, patches: Tensor) -> Tensor:
        """Signed power mean; numbers near 0 are taken as LEAST, where the slope of a power would be none."""
        assert self.power is not None
        power = self.power.clamp_min(1.0)
        mean = (patches.sign() * patches.abs().clamp_min(LEAST).pow(power)).mean(1)
        return mean.sign() * mean.abs().clamp_min(LEAST).pow(1 / power)

    def _attention(self, patches: Tensor) -> Tensor:
        assert self.score is not None
        return (self.score(patches).softmax(1) * patches).sum(1)


def recompute(model: nn.Module) -> None:
    """Have every tail and whole network in a model compute its activations again for the backward pass instead of keeping them.
    Raises UserError for a network whose library has no means for it."""
    for part in model.modules():
        if isinstance(part, Tail | Network):
            part.set_grad_checkpointing()
