"""From images to their group: a weighted mean of what is said of each, whose weights do not depend on their order.

Each image has a log weight; a softmax over a group's images makes weights of them. So any number of images can be
pooled, images can be predicted in batches that know nothing of groups, and what is said of one image keeps its meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Kind = Literal["mean", "precision", "attention"]
Embedded = Float[Tensor, "images width"]
PerTarget = Float[Tensor, "images targets"]
HIDDEN = 64
"""Width of the attention's hidden layer."""


class Pooling(nn.Module):
    """The log weight of an image: the same for all (mean), or by how sure the model is of it (precision)."""

    def __init__(self, kind: Kind = "mean") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, embedding: Embedded, variance: PerTarget) -> PerTarget:
        """Log weights of images, from embedding and variance."""
        return -variance.log() if self.kind == "precision" else torch.zeros_like(variance)


class AttentionPooling(Pooling):
    """The log weight learns from the embedding: gated attention (Ilse, Tomczak and Welling 2018, arXiv 1802.04712, eq. 9)."""

    def __init__(self, width: int) -> None:
        super().__init__("attention")
        self.value, self.gate = nn.Linear(width, HIDDEN), nn.Linear(width, HIDDEN)
        self.score = nn.Linear(HIDDEN, 1, bias=False)  # a softmax does not see a bias
        nn.init.zeros_(self.score.weight)  # starts as the plain mean

    def forward(self, embedding: Embedded, variance: PerTarget) -> PerTarget:
        hidden = torch.tanh(self.value(embedding)) * torch.sigmoid(self.gate(embedding))
        return self.score(hidden).float().expand_as(variance)


def make_pooling(kind: Kind, width: int) -> Pooling:
    """The pooling of images whose embeddings are `width` wide."""
    return AttentionPooling(width) if kind == "attention" else Pooling(kind)


@dataclass(frozen=True)
class Sets:
    """Which of some images are of one group."""

    numbers: Int[Tensor, " images"]
    """Each one's group, from 0."""
    firsts: Int[Tensor, " groups"]
    """The position of one image of each group, for what its images share."""

    def to(self, device: torch.device) -> Sets:
        return Sets(self.numbers.to(device), self.firsts.to(device))


def pool(
    parameters: Float[Tensor, "images targets numbers"], log_weights: PerTarget, sets: Sets
) -> Float[Tensor, "groups targets numbers"]:
    """Weighted means over each group's images."""
    n, numbers = len(sets.firsts), sets.numbers
    highest = log_weights.new_full((n, log_weights.shape[1]), -torch.inf)
    highest = highest.scatter_reduce(0, numbers[:, None].expand_as(log_weights), log_weights.detach(), "amax")
    weights = (log_weights - highest[numbers]).exp()
    shares = weights / torch.zeros_like(highest).index_add(0, numbers, weights)[numbers]
    out = parameters.new_zeros(n, *parameters.shape[1:])
    return out.index_add(0, numbers, shares.unsqueeze(-1) * parameters)
