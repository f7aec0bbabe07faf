"""From a batch of cached features to predictions: encoder → L2 norm → + domain embedding → head → target units."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.outputs import Output, Point

Mix = Callable[[Tensor], Tensor]
"""Mixes the rows of a [B, …] tensor with those of a permutation of the batch, by one λ."""


class DomainEmbedding(nn.Module):
    """A learned vector for each training domain and one, the last row, for any other.

    The unknown row is an ordinary row: it learns from batches whose domain is dropped. (As a `padding_idx` it would stay
    zero for ever.)
    """

    def __init__(self, n_domains: int, width: int) -> None:
        super().__init__()
        self.unknown = n_domains
        self.table = nn.Embedding(n_domains + 1, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))

    def forward(self, domains: Tensor | None, n: int) -> Tensor:
        """domains [B] (row numbers) or None (all unknown, `n` of them) → [B, E]."""
        if domains is None:
            domains = torch.full((n,), self.unknown, device=self.table.weight.device)
        out: Tensor = self.mlp(self.table(domains))
        return out


def make_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with GELU between them: [B, widths[0]] → [B, widths[-1]]."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Regressor(nn.Module):
    """Predicts targets from cached features.

    `target_mean` and `target_scale` [n_targets] bring the head's output to the targets' own units; where targets are not
    standardised they are 0 and 1.
    """

    target_mean: Tensor
    target_scale: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        domain: DomainEmbedding | None,
        normalize: bool,
        n_targets: int,
        output: Output | None = None,
    ):
        super().__init__()
        self.encoder = encoder
        self.domain = domain
        self.head = head
        self.normalize = normalize
        self.output = output or Point()
        self.register_buffer("target_mean", torch.zeros(n_targets))
        self.register_buffer("target_scale", torch.ones(n_targets))

    def forward(self, features: Tensor, domains: Tensor | None = None, mix: Mix | None = None) -> Tensor:
        """features [B, E] or [B, T, D], domains [B] or None → the head's numbers [B, n_targets · output.n].

        With mixup the features come mixed, their domains do not: `mix` mixes the domains' embeddings by the same λ.
        """
        embedding = self.encoder(features)
        if self.normalize:
            embedding = F.normalize(embedding, dim=-1)
        if self.domain is not None:
            shift = self.domain(domains, len(embedding))
            embedding = embedding + (mix(shift) if mix else shift)
        out: Tensor = self.head(embedding)
        return out

    def predict(self, features: Tensor, domains: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and variance [B, n_targets] of each specimen's targets in their own units (squared: the variance)."""
        return self.moments(self(features, domains))

    def moments(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [B, n_targets] that `forward`'s numbers tell, in the targets' own units (squared: the variance)."""
        mean, variance = self.output.moments(raw.float())
        return mean * self.target_scale + self.target_mean, variance * self.target_scale.square()

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a specimen and target, for `forward`'s numbers and targets [B, n_targets] in their own units."""
        return self.output.loss(raw.float(), self.standardize(targets))

    def standardize(self, targets: Tensor) -> Tensor:
        """targets [B, n_targets] in their own units → in the head's."""
        return (targets - self.target_mean) / self.target_scale


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: the whole state of a trial beside its optimiser's."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trained_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a `trained_state` back, in place; raises KeyError if a trained tensor is not in it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state[name])
