"""The four augmentations of cached features, in their order: specimen dropout, mixup, domain dropout, noise.

What they decide is drawn on the CPU from one generator per epoch, so that a resumed run draws what an undisturbed one
would, and so that the GPU is never waited for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Augment
from pipeline.models.regressor import Mix


@dataclass(frozen=True)
class Streams:
    """One epoch's randomness: `choices` for decisions, `noise` for tensors drawn on the device."""

    choices: np.random.Generator
    noise: torch.Generator


def epoch_streams(seed: int, epoch: int, device: torch.device) -> Streams:
    """The streams of one epoch, a function of (seed, epoch) alone. Also seeds torch's global one, which dropout layers use."""
    choices, noise, layers = np.random.SeedSequence([seed, epoch]).spawn(3)
    torch.manual_seed(int(layers.generate_state(1, np.uint64)[0]) >> 1)
    generator = torch.Generator(device).manual_seed(int(noise.generate_state(1, np.uint64)[0]) >> 1)
    return Streams(np.random.default_rng(choices), generator)


def to_device(indices: Tensor, device: torch.device) -> Tensor:
    """CPU integers on the device without waiting for it: from pageable memory a copy would wait for all work queued there."""
    return indices.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else indices


def strength(augment: Augment, epoch: int, epochs: int) -> float:
    """Share of full strength in `epoch` (from 0): min(epoch / (warmup·epochs), 1)."""
    ramp = augment.warmup * epochs
    return min(epoch / ramp, 1.0) if ramp > 0 else 1.0


def drop_specimens(indices: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Leave each of `indices` [B] out with `probability`; at least one stays."""
    if probability == 0:
        return indices
    keep = rng.random(len(indices)) >= probability
    if not keep.any():
        keep[rng.integers(len(indices))] = True
    return indices[torch.from_numpy(keep)]


def make_mix(n: int, alpha: float, rng: np.random.Generator, device: torch.device | str = "cpu") -> Mix | None:
    """Mixing of a batch of `n` with a permutation of itself, λ ~ Beta(α, α); None where α is 0 (nothing to mix)."""
    if alpha == 0:
        return None
    share = float(rng.beta(alpha, alpha))
    order = to_device(torch.from_numpy(rng.permutation(n)), torch.device(device))

    def mix(rows: Tensor) -> Tensor:
        return share * rows + (1 - share) * rows[order]

    return mix


def drop_domain(domains: Tensor, probability: float, unknown: int, rng: np.random.Generator) -> Tensor:
    """With `probability` the whole batch's domain rows [B] become the unknown row."""
    if probability > 0 and rng.random() < probability:
        return torch.full_like(domains, unknown)
    return domains


def add_noise(features: Tensor, sd: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of standard deviation `sd` on every feature."""
    if sd == 0:
        return features
    return features + sd * torch.randn(
        features.shape, generator=generator, device=features.device, dtype=features.dtype
    )
