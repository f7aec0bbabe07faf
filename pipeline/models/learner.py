"""From a batch of cached features to predictions: encoder → L2 norm → + domain and species → head → target units."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from pipeline.config.encoder import Encoder, Frozen
from pipeline.config.head import Head, PerTargetHead
from pipeline.config.trial import Config
from pipeline.config.views import Views
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError
from pipeline.metrics.sums import Sums
from pipeline.models.base import Facts, Features, Model, Predicted
from pipeline.models.beside import Beside
from pipeline.models.losses import Loss, SquaredError
from pipeline.models.metadata import Metadata
from pipeline.models.novelty import Novelty
from pipeline.models.pooling import HIDDEN, Pooling, Sets, make_pooling, pool

Rows = Int[Tensor, " images"]
Encoded = Float[Tensor, "images width"]
Mix = Callable[[Tensor], Tensor]
"""Mixes the rows of a tensor with those of a permutation of the batch, by one λ."""
PLAIN = Views()
SCALES = ("target_mean", "target_scale", "feature_mean", "feature_scale")
"""Buffers of a Learner that follow from the training data."""


@dataclass(frozen=True)
class Answer:
    """What a model makes of images, in standardised units."""

    parameters: Float[Tensor, "images targets numbers"]
    """Of each target's distribution (see `models/losses.py`)."""
    log_weights: Float[Tensor, "images targets"]
    """How much an image counts among those of its group, up to a constant (`models/pooling.py`)."""
    hidden: Float[Tensor, "images hidden"]
    """What the head's last layer reads."""
    encoded: Float[Tensor, "images width"]
    """What the encoder makes of images."""
    embedding: Float[Tensor, "images width"]
    """What the head reads."""


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

    def forward(self, domains: Rows | None, n: int) -> Float[Tensor, "images width"]:
        """Of row numbers; None: all unknown, `n` of them."""
        if domains is None:
            domains = torch.full((n,), self.unknown, device=self.table.weight.device)
        return self.mlp(self.table(domains))


class SpeciesEmbedding(nn.Module):
    """A learned vector for each training species and one for its genus; the last row of both is for any other.

    A species never seen still has what its genus tells.
    """

    def __init__(self, n_species: int, n_genera: int, width: int) -> None:
        super().__init__()
        self.species, self.genus = nn.Embedding(n_species + 1, width), nn.Embedding(n_genera + 1, width)
        self.mlp = make_shift(width)

    def forward(self, species: Rows | None, genera: Rows | None, n: int) -> Float[Tensor, "images width"]:
        """Of row numbers; None: all unknown, `n` of them."""
        parts = [
            table(torch.full((n,), table.num_embeddings - 1, device=table.weight.device) if rows is None else rows)
            for table, rows in ((self.species, species), (self.genus, genera))
        ]
        return self.mlp(parts[0] + parts[1])


def make_shift(width: int) -> nn.Sequential:
    """What brings an embedding of names to the image embedding's space."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))


def make_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with GELU between them: [B, widths[0]] → [B, widths[-1]]."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


class Apart(nn.Module):
    """The last layers of heads of their own, [B, O·H] → [B, O·n]: of each output one, that reads its own H numbers alone."""

    def __init__(self, n_outputs: int, width: int, n: int) -> None:
        super().__init__()
        layers = [nn.Linear(width, n) for _ in range(n_outputs)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))

    def forward(self, hidden: Float[Tensor, "images hidden"]) -> Float[Tensor, "images numbers"]:
        each = hidden.unflatten(-1, (len(self.weight), -1))
        return (torch.einsum("boh,onh->bon", each, self.weight) + self.bias).flatten(1)


def make_head(block: Head, width: int, n_outputs: int, n: int) -> nn.Sequential:
    """The layers of a head [B, width] → [B, n_outputs · n]; the last one is by itself."""
    if not isinstance(block, PerTargetHead):
        return make_mlp([width, *block.widths(), n_outputs * n])
    hidden = block.hidden_width(width)  # (the first layers side by side are one)
    return nn.Sequential(nn.Linear(width, n_outputs * hidden), nn.ReLU(), nn.Dropout(block.dropout), Apart(n_outputs, hidden, n))


class Learner(Model):
    """Predicts targets from cached features: all that learns by gradient descent.

    `target_mean` and `target_scale` bring the head's output to the targets' own units, `feature_mean` and `feature_scale`
    (perhaps of one number) the frozen embedding to the head's; what is not standardised has 0 and 1.
    """

    kind_of_encoder: Encoder = Frozen()
    """The block that the encoder was built by."""
    novelty: Novelty | None
    """How far what it has learnt from reaches; None before that is known, of classes, and of models of before it was kept."""
    target_mean: Float[Tensor, " targets"]
    target_scale: Float[Tensor, " targets"]
    feature_mean: Float[Tensor, " width"]
    feature_scale: Float[Tensor, " width"]

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Sequential,
        domain: DomainEmbedding | None,
        normalize: bool,
        n_targets: int,
        loss: Loss | None = None,
        species: SpeciesEmbedding | None = None,
        pooling: Pooling | None = None,
        n_features: int = 1,
        fuse: nn.Module | None = None,
        views: Views = PLAIN,
    ):
        super().__init__()
        self.encoder, self.views = encoder, views
        if fuse is not None:
            self.fuse = fuse
        self.novelty = None
        self.domain = domain
        self.species = species
        self.pooling = pooling or Pooling()
        self.head = head
        self.normalize = normalize
        self.loss = loss or SquaredError()
        self.outputs: nn.Module | None = None
        self.beside: Beside | None = None
        self.log = False
        self.standardizes = n_features > 1  # (else its scale is 0 and 1)
        for of, n in (("target", n_targets), ("feature", n_features)):
            self.register_buffer(f"{of}_mean", torch.zeros(n))
            self.register_buffer(f"{of}_scale", torch.ones(n))

    @classmethod
    def make(cls, config: Config, facts: Facts, encoder: nn.Module) -> Self:
        """Head, embeddings of names and pooling of the right widths around an encoder."""
        model, names, n_targets = config.model, facts.names, len(facts.learnt)
        views, seen = config.backbone.views, model.encoder.embedding_width(facts.embed_dim)
        width, fuse = model.fuse.width(seen, views), None if views.are_plain else model.fuse.build(seen, views)
        domain = DomainEmbedding(len(names.domains), width) if model.domain_embedding else None
        loss = config.loss.make(len(facts.targets))
        n_outputs = model.outputs.n(config.data, n_targets)
        head = make_head(model.head, width, n_outputs, loss.n)
        species = SpeciesEmbedding(len(names.species), len(names.genera), width) if model.species_embedding else None
        pooling, n_features = make_pooling(model.pool, width), width if model.standardize_features else 1
        learner = cls(encoder, head, domain, model.normalize, n_targets, loss, species, pooling, n_features, fuse, views)
        learner.kind_of_encoder, learner.standardizes = model.encoder, model.standardize_features
        if auxiliary := config.data.auxiliary:
            columns = iter(facts.beside)
            n_names = [next(columns) if each.reads else 0 for each in auxiliary]
            learner.beside = Beside(auxiliary, n_names, width, facts.targets)
        if model.outputs.asks_for_numbers:
            learner.outputs, learner.log = model.outputs.build(facts.targets, config.data), model.outputs.learns_log
        learner.sums = Sums.of(facts.targets, config.data.parts_of) if model.outputs.keeps_sums else None
        return learner

    def forward(self, features: Features, metadata: Metadata | None = None, mix: Mix | None = None) -> Answer:
        """What the model says of images, from features and what is known of them (None: nothing).

        With mixup the features come mixed, domains and species do not: `mix` mixes their embeddings by the same λ.
        """
        return self.answer(self.encode(features), metadata, mix)

    def answer(self, encoded: Encoded, metadata: Metadata | None = None, mix: Mix | None = None) -> Answer:
        """The same from what features are encoded to."""
        embedding = self.embed(encoded, metadata, mix)
        *before, last = self.head
        hidden = embedding
        for layer in before:
            hidden = layer(hidden)
        parameters = self.loss.parameters(last(hidden).float())
        if self.outputs is not None:
            parameters = self.outputs(parameters)
        log_weights = self.pooling(embedding, self.loss.moments(parameters)[1])
        return Answer(parameters, log_weights, hidden, encoded, embedding)

    def encode(self, features: Features) -> Encoded:
        """What the encoder makes of images: of several views [B, V, …] what these are fused to, those of the first pose."""
        if self.views.are_plain:
            return self._encoded(features)
        seen = features[:, : self.views.n_crops]
        return self.fuse(self._encoded(seen.flatten(0, 1)).unflatten(0, seen.shape[:2]))

    def _encoded(self, features: Features) -> Encoded:
        """Without a gradient, and by fixed statistics, where the encoder is held."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.held):
            return self.encoder(features)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.held:
            self.encoder.eval()
        return self

    def embed(self, encoded: Encoded, metadata: Metadata | None, mix: Mix | None) -> Encoded:
        """What the head reads."""
        embedding = F.normalize(encoded, dim=-1) if self.normalize else encoded
        embedding = (embedding - self.feature_mean) / self.feature_scale if self.standardizes else embedding.float()
        shifts, n = [], len(embedding)
        if self.domain is not None:
            shifts.append(self.domain(metadata and metadata.domain, n))
        if self.species is not None:
            shifts.append(self.species(metadata and metadata.species, metadata and metadata.genus, n))
        for shift in shifts:
            embedding = embedding + (mix(shift) if mix else shift)
        return embedding

    def predict(self, features: Features, metadata: Metadata | None = None) -> Predicted:
        return self.over_poses(self._say, features, metadata)

    def _say(self, features: Features, metadata: Metadata | None) -> Predicted:
        answer = self(features, metadata)
        said = self.in_units(answer)
        return said if self.novelty is None else self.novelty(said, answer.encoded)

    def in_units(self, answer: Answer) -> Predicted:
        """An answer's mean and variance in the targets' own units (squared: the variance)."""
        mean, variance = self.loss.moments(answer.parameters)
        mean, variance = mean * self.target_scale + self.target_mean, variance * self.target_scale.square()
        if self.log:  # the variance of a function is about that of its argument times its slope squared
            mean, variance = torch.expm1(mean), variance * (2 * mean).exp()
        return Predicted(mean, variance, answer.log_weights)

    def losses(
        self, answer: Answer, targets: Float[Tensor, "images learnt"], sets: Sets | None = None
    ) -> tuple[Float[Tensor, " sets"], Float[Tensor, "sets targets"] | None]:
        """Mean loss over targets, in their own units, of each image; with `sets` of each group, whose forecast is pooled from its
        images'. And the same of each target, where the loss is made of these."""
        n = answer.parameters.shape[1]
        scored = self._scored(answer, targets[:, :n], sets)
        losses = self.loss.losses(*scored)
        with torch.no_grad():
            each = self.loss.each(*scored)
        if self.beside is not None:
            losses = losses + self.beside.losses(answer.embedding, targets[:, :n], targets[:, n:])
        return losses, each

    def _scored(self, answer: Answer, targets: Tensor, sets: Sets | None) -> tuple[Tensor, Tensor]:
        """What is said, and what is true of it, in standardised units."""
        parameters, targets = answer.parameters, self.standardize(targets)
        if sets is not None:
            parameters, targets = pool(parameters, answer.log_weights, sets), targets[sets.firsts]
        return parameters, targets

    def standardize(self, targets: Float[Tensor, "images targets"]) -> Float[Tensor, "images targets"]:
        """Targets in their own units → in the head's."""
        targets = torch.log1p(targets) if self.log else targets
        return (targets - self.target_mean) / self.target_scale

    # ------------------------------------------------------------ on disk, and export
    def own_state(self) -> dict[str, Tensor]:
        """Trained tensors but those that an encoder saves itself, and the scales."""
        apart = self.kind_of_encoder.has_own_files
        state = {n: t for n, t in trained_state(self).items() if not (apart and n.startswith("encoder."))}
        known = {} if self.novelty is None else dict(self.novelty.named_buffers(prefix="novelty"))
        return state | {name: self.get_buffer(name) for name in SCALES} | known

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if "novelty.centre" in state:
            self.novelty = Novelty(len(state["novelty.centre"]), len(state["novelty.low"]))
        super().restore(state)

    def save_more(self, trial: TrialDir) -> None:
        self.kind_of_encoder.save(self.encoder, trial.adapter)

    def plain_state(self) -> Mapping[str, Tensor]:
        """Without the heads that were only learnt from."""
        return {name: tensor for name, tensor in super().plain_state().items() if not name.startswith("beside.")}

    def spec(self) -> dict[str, Any]:
        """The widths of its layers and what stands between them; without its encoder, but for convolutions."""
        if self.outputs is not None or isinstance(self.head[-1], Apart):
            raise UserError(
                "a submission has no code for heads apart (model.head.kind) nor for model.outputs: export another trial"
            )
        linear = [layer for layer in self.head if isinstance(layer, nn.Linear)]
        convolutions = getattr(self.encoder, "spec", None)
        if self.kind_of_encoder.reads == "patches" and not convolutions:
            raise UserError(f"a submission has no code for model.encoder.kind {self.kind_of_encoder.kind}: export another trial")
        reads = {"features": "patches" if convolutions else "pooled", "convolutions": convolutions}
        widths = {"width": linear[0].in_features, "hidden": [layer.out_features for layer in linear[:-1]]}
        scales = {"normalize": self.normalize, "n_features": len(self.feature_mean)}
        names = {"domain": self.domain is not None, "species": self.species is not None}
        pooling = {"pool": self.pooling.kind, "attention": HIDDEN}
        known = {"novelty": None if self.novelty is None else self.novelty.spec()}
        return {"kind": "network"} | reads | widths | scales | names | pooling | known | {"output": self.loss.spec()}


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: the whole state of a trial beside its optimiser's.

    Trained parameters, and the running statistics of batch norm, which no gradient changes.
    """
    norms = ((name, module) for name, module in model.named_modules() if isinstance(module, _NormBase))
    statistics = {f"{name}.{part}": buffer for name, norm in norms for part, buffer in norm.named_buffers(recurse=False)}
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad} | statistics


def load_trained_state(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Put a `trained_state` back, in place; raises KeyError if a trained tensor is not in it."""
    with torch.no_grad():
        for name, tensor in trained_state(model).items():
            tensor.copy_(state[name])
