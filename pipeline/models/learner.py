"""From a batch of cached features to predictions: encoder → L2 norm → + domain and species → head → target units."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from pipeline.config.encoder import Encoder, Frozen
from pipeline.models.metadata import Metadata
from pipeline.models.outputs import Output, Point
from pipeline.models.pooling import Pooling, Sets, pool

Mix = Callable[[Tensor], Tensor]
"""Mixes the rows of a [B, …] tensor with those of a permutation of the batch, by one λ."""


@dataclass(frozen=True)
class Answer:
    """What a model makes of B images, in standardised units."""

    parameters: Tensor
    """[B, n_targets, output.n]: of each target's distribution (see `models/outputs.py`)."""
    log_weights: Tensor
    """[B, n_targets]: how much an image counts among those of its group, up to a constant (`models/pooling.py`)."""
    hidden: Tensor
    """[B, H]: what the head's last layer reads."""


@dataclass(frozen=True)
class Predicted:
    """What a model says of B images, in the targets' own units, each [B, n_targets]."""

    mean: Tensor
    variance: Tensor
    log_weights: Tensor

    def cpu(self) -> Predicted:
        return Predicted(self.mean.cpu(), self.variance.cpu(), self.log_weights.cpu())


class DomainEmbedding(nn.Module):
    """A learned vector for each training domain and one, the last row, for any other.

    The unknown row is an ordinary row: it learns from batches whose domain is dropped. (As a `padding_idx` it would stay
    zero for ever.)
    """

    def __init__(self, n_domains: int, width: int) -> None:
        super().__init__()
        self.unknown = n_domains
        self.table = nn.Embedding(n_domains + 1, width)
        self.mlp = make_shift(width)

    def forward(self, domains: Tensor | None, n: int) -> Tensor:
        """domains [B] (row numbers) or None (all unknown, `n` of them) → [B, E]."""
        if domains is None:
            domains = torch.full((n,), self.unknown, device=self.table.weight.device)
        out: Tensor = self.mlp(self.table(domains))
        return out


class SpeciesEmbedding(nn.Module):
    """A learned vector for each training species and one for its genus; the last row of both is for any other.

    A species never seen still has what its genus tells.
    """

    def __init__(self, n_species: int, n_genera: int, width: int) -> None:
        super().__init__()
        self.species, self.genus = nn.Embedding(n_species + 1, width), nn.Embedding(n_genera + 1, width)
        self.mlp = make_shift(width)

    def forward(self, species: Tensor | None, genera: Tensor | None, n: int) -> Tensor:
        """Row numbers [B] of both, or None (all unknown, `n` of them) → [B, E]."""
        tables = ((self.species, species), (self.genus, genera))
        parts = [
            table(torch.full((n,), table.num_embeddings - 1, device=table.weight.device) if rows is None else rows)
            for table, rows in tables
        ]
        out: Tensor = self.mlp(parts[0] + parts[1])
        return out


def make_shift(width: int) -> nn.Sequential:
    """What brings an embedding of names to the image embedding's space: [B, E] → [B, E]."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))


def make_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with GELU between them: [B, widths[0]] → [B, widths[-1]]."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Learner(nn.Module):
    """Predicts targets from cached features: all that learns by gradient descent.

    `target_mean` and `target_scale` [n_targets] bring the head's output to the targets' own units, `feature_mean` and
    `feature_scale` [E] (or of one number) the frozen embedding to the head's; what is not standardised has 0 and 1.
    """

    kind_of_encoder: Encoder = Frozen()
    """The block that the encoder was built by."""
    target_mean: Tensor
    target_scale: Tensor
    feature_mean: Tensor
    feature_scale: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Sequential,
        domain: DomainEmbedding | None,
        normalize: bool,
        n_targets: int,
        output: Output | None = None,
        species: SpeciesEmbedding | None = None,
        pooling: Pooling | None = None,
        n_features: int = 1,
    ):
        super().__init__()
        self.encoder = encoder
        self.domain = domain
        self.species = species
        self.pooling = pooling or Pooling()
        self.head = head
        self.normalize = normalize
        self.output = output or Point()
        self.register_buffer("target_mean", torch.zeros(n_targets))
        self.register_buffer("target_scale", torch.ones(n_targets))
        self.register_buffer("feature_mean", torch.zeros(n_features))
        self.register_buffer("feature_scale", torch.ones(n_features))

    def forward(self, features: Tensor, metadata: Metadata | None = None, mix: Mix | None = None) -> Answer:
        """features [B, E] or [B, T, D] and what is known of the images (None: nothing) → what the model says of them.

        With mixup the features come mixed, domains and species do not: `mix` mixes their embeddings by the same λ.
        """
        embedding = self.embed(features, metadata, mix)
        hidden: Tensor = self.head[:-1](embedding)
        parameters = self.output.parameters(self.head[-1](hidden).float())
        return Answer(parameters, self.pooling(embedding, self.output.moments(parameters)[1]), hidden)

    def embed(self, features: Tensor, metadata: Metadata | None, mix: Mix | None) -> Tensor:
        """What the head reads [B, E]."""
        embedding: Tensor = self.encoder(features)
        if self.normalize:
            embedding = F.normalize(embedding, dim=-1)
        embedding = (embedding - self.feature_mean) / self.feature_scale
        shifts, n = [], len(embedding)
        if self.domain is not None:
            shifts.append(self.domain(metadata and metadata.domain, n))
        if self.species is not None:
            shifts.append(self.species(metadata and metadata.species, metadata and metadata.genus, n))
        for shift in shifts:
            embedding = embedding + (mix(shift) if mix else shift)
        return embedding

    def predict(self, features: Tensor, metadata: Metadata | None = None) -> Predicted:
        """What the model says of each image in the targets' own units."""
        return self.in_units(self(features, metadata))

    def in_units(self, answer: Answer) -> Predicted:
        """An answer's mean and variance in the targets' own units (squared: the variance)."""
        mean, variance = self.output.moments(answer.parameters)
        return Predicted(
            mean * self.target_scale + self.target_mean, variance * self.target_scale.square(), answer.log_weights
        )

    def losses(self, answer: Answer, targets: Tensor, sets: Sets | None = None) -> Tensor:
        """Mean loss over targets of each image [B], for targets [B, n_targets] in their own units.

        With `sets`: of each group [n_groups], whose forecast is pooled from its images'.
        """
        parameters, targets = answer.parameters, self.standardize(targets)
        if sets is not None:
            parameters, targets = pool(parameters, answer.log_weights, sets), targets[sets.firsts]
        return self.output.losses(parameters, targets)

    def standardize(self, targets: Tensor) -> Tensor:
        """targets [B, n_targets] in their own units → in the head's."""
        return (targets - self.target_mean) / self.target_scale


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: the whole state of a trial beside its optimiser's.

    Trained parameters, and the running statistics of batch norm, which no gradient changes.
    """
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad} | _running_statistics(model)


def _running_statistics(model: nn.Module) -> dict[str, Tensor]:
    norms = ((name, module) for name, module in model.named_modules() if isinstance(module, _NormBase))
    return {f"{name}.{part}": buffer for name, norm in norms for part, buffer in norm.named_buffers(recurse=False)}


def load_trained_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a `trained_state` back, in place; raises KeyError if a trained tensor is not in it."""
    with torch.no_grad():
        for name, tensor in trained_state(model).items():
            tensor.copy_(state[name])
