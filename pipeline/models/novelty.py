"""How unlike the images that a model has learnt from an image is, and what is said of one that is far from all of them.

A head goes on along its lines beyond all that it has seen: of a black image it may say −121 ± 0.001. So a model remembers what
its embedding of training images looks like (mean and sd of each dimension) and how far from that held-out images lie. An image's
distance is Mahalanobis' with a diagonal covariance: the root mean square of its deviations in sds (Lee et al. 2018, "A simple
unified framework for detecting out-of-distribution samples and adversarial attacks"; the full covariance dilutes what moves all
dimensions together, as light does). Within the reach of held-out images trust is 1, and nothing changes; beyond it falls with the
fourth power of the distance. What trust does to a group's forecast stands in `metrics/calibration.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.base import Predicted

Encoded = Float[Tensor, "images width"]
WITHIN = 0.99
"""Share of held-out images that lie within reach: one broken image among them must not make broken images usual."""
POWER = 4
"""Of the distance with which trust falls. (With 2, at 1.6 times the reach 39 % is left, with 4 15 %: docs/forecasts.md.)"""
MARGIN = 0.5
"""How far beyond those of training images what is said may lie, as a share of their range."""


class Novelty(nn.Module):
    """Buffers: `centre` and `scale` [width] of the embedding, its `reach`, and between what means [targets] lie."""

    centre: Float[Tensor, " width"]
    scale: Float[Tensor, " width"]
    reach: Float[Tensor, ""]
    low: Float[Tensor, " targets"]
    high: Float[Tensor, " targets"]

    def __init__(self, width: int, n_targets: int) -> None:
        super().__init__()
        for name, shape in (("centre", [width]), ("scale", [width]), ("reach", []), ("low", [n_targets]), ("high", [n_targets])):
            self.register_buffer(name, torch.zeros(shape))

    @classmethod
    def of(cls, scale: tuple[Tensor, Tensor], held_out: Encoded, targets: Float[Tensor, "training targets"]) -> Self:
        """From the mean and sd [width] of training images' embeddings, the embeddings of held-out ones, and training targets."""
        made = cls(len(scale[0]), targets.shape[1])
        made.centre, made.scale = scale
        made.reach = torch.quantile(made.distance(held_out), WITHIN)
        low, high = targets.amin(0), targets.amax(0)
        made.low, made.high = low - MARGIN * (high - low), high + MARGIN * (high - low)
        return made

    def spec(self) -> dict[str, float]:
        """What a submission's `network.py` makes it again from."""
        return {"width": len(self.centre), "power": POWER}

    def distance(self, encoded: Encoded) -> Float[Tensor, " images"]:
        """Root mean square of the deviations from training images, in their sds."""
        return ((encoded - self.centre) / self.scale).square().mean(-1).sqrt()

    def forward(self, said: Predicted, encoded: Encoded) -> Predicted:
        """What is said of images with the trust in it, by how far from training images they are; no mean lies far beyond the
        training targets'."""
        ratio = self.reach / self.distance(encoded).clamp_min(torch.finfo(encoded.dtype).tiny)
        trust = ratio.clamp(max=1).pow(POWER)[:, None].expand_as(said.mean)
        return replace(said, mean=torch.minimum(torch.maximum(said.mean, self.low), self.high), trust=trust)
