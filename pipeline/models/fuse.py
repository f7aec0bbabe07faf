"""How the views of an image become one embedding: [B, C, E] → [B, F], C views of one pose (`config/fuse.py`)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import fuse as blocks
from pipeline.config.views import Views
from pipeline.errors import UserError

Seen = Float[Tensor, "images views width"]


class Concat(nn.Module):
    """Side by side [B, C·E]."""

    def __init__(self, block: blocks.Concat, width: int, views: Views) -> None:
        super().__init__()

    def forward(self, seen: Seen) -> Float[Tensor, "images fused"]:
        return seen.flatten(1)


class Mean(nn.Module):
    """Their mean [B, E]."""

    def __init__(self, block: blocks.Mean, width: int, views: Views) -> None:
        super().__init__()

    def forward(self, seen: Seen) -> Float[Tensor, "images width"]:
        return seen.mean(1)


class Film(nn.Module):
    """Of each crop, with c the mean of its tiles: the mean of tiles·(1 + γ(c)) + β(c) (Perez et al. 2018, arXiv 1709.07871);
    crops side by side [B, S·E]. γ and β begin as 0: as the plain mean."""

    def __init__(self, block: blocks.Film, width: int, views: Views) -> None:
        super().__init__()
        self.n_tiles, half = views.n_tiles, width // 2
        crops = views.n_crops // views.n_tiles
        self.modulations = nn.ModuleList(_modulation(width, half) for _ in range(crops))

    def forward(self, seen: Seen) -> Float[Tensor, "images fused"]:
        crops = seen.unflatten(1, (-1, self.n_tiles)).unbind(1)
        return torch.cat([self._modulated(tiles, by) for tiles, by in zip(crops, self.modulations, strict=True)], dim=1)

    def _modulated(self, tiles: Seen, modulation: nn.Module) -> Float[Tensor, "images width"]:
        gamma, beta = modulation(tiles.mean(1)).chunk(2, dim=1)
        return (tiles * (1 + gamma[:, None]) + beta[:, None]).mean(1)


def _modulation(width: int, half: int) -> nn.Sequential:
    last = nn.Linear(half, 2 * width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, half), nn.ReLU(), last)


class Attention(nn.Module):
    """Transformer layers over the views, then their mean [B, E]."""

    def __init__(self, block: blocks.Attention, width: int, views: Views) -> None:
        super().__init__()
        if width % block.heads:
            raise UserError(
                f"model.fuse.heads is {block.heads}, which does not divide the {width} numbers of a view: set another."
            )
        self.places = nn.Parameter(torch.zeros(views.n_crops, width))
        layer = nn.TransformerEncoderLayer(
            width, block.heads, 2 * width, block.dropout, F.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, block.layers, enable_nested_tensor=False)

    def forward(self, seen: Seen) -> Float[Tensor, "images width"]:
        mixed: Tensor = self.layers(seen + self.places)
        return mixed.mean(1)


class LocalMixing(nn.Module):
    """x + W(σ(g)·conv(x)), normed before: a convolution over the views of each dimension by itself, gated; then their mean
    [B, E]."""

    def __init__(self, block: blocks.LocalMixing, width: int, views: Views) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Mixing(width, block.kernel) for _ in range(block.layers))

    def forward(self, seen: Seen) -> Float[Tensor, "images width"]:
        for layer in self.layers:
            seen = layer(seen)
        return seen.mean(1)


class _Mixing(nn.Module):
    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel, padding="same", groups=width)
        self.gate, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, seen: Seen) -> Seen:
        normed = self.norm(seen)
        mixed = self.conv(normed.transpose(1, 2)).transpose(1, 2)
        return seen + self.out(torch.sigmoid(self.gate(normed)) * mixed)
