"""The models of a submission, from a batch of images to what each member says of them.

This file stands alone, without a word of this package: `carabid export` copies it beside `model.py` (what the platform calls),
`towers.py` (backbones), `decoding.py` and `correction.py` (what is done to images first), `plain.py` (classifiers as arrays),
`seal.py` (whether files are as they were exported), `submission.json` (what the members are made of) and `weights.pt` (plain
tensors). It imports torch, numpy, and LightGBM for trees.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import plain  # plain.py and towers.py, beside this file
import torch
from decoding import How
from seal import opened
from torch import Tensor, nn
from torch.nn import functional as F
from towers import HERE, Backbone, Point, make_backbone, rounded

Stored = Mapping[str, Any]
"""How a member's features were stored: `rounded`, what of images, cut, pooled, patches in bf16 (None: in fp32); and the `cut`."""
Said = tuple[Any, Any, Any, Any]
"""Of images, arrays [B, n_targets]: mean, variance, log weight, and how far it is to be relied on, within 0 … 1."""


def load() -> tuple[dict[str, Any], Backbone, list[Member]]:
    """The folder's submission.json, its backbone and its members, on the GPU if there is one.

    Raises ValueError for a file that is not as it was exported.
    """
    torch.backends.cudnn.allow_tf32 = False  # its convolutions would round to ten bits
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    spec = opened(HERE)
    weights = torch.load(HERE / "weights.pt", map_location="cpu", weights_only=True)
    backbone = make_backbone(spec["backbone"], weights["backbone"], device)
    backbone.correction, backbone.how = spec["correction"], How(**spec["decoding"])
    states = zip(spec["members"], weights["members"], strict=True)
    return spec, backbone, [make_member(member, state, device) for member, state in states]


# ---------------------------------------------------------------- names
def label(cell: Any) -> str | None:
    """A cell as a name: 7, 7.0 and "7" are "7"; None for what is empty or NaN."""
    if cell is None or cell != cell or not str(cell).strip():
        return None
    text = str(cell).strip()
    whole, _, rest = text.partition(".")
    return whole if rest and not rest.strip("0") and whole.lstrip("-").isdigit() else text


def rows(names: Sequence[str | None], known: Sequence[str]) -> Tensor:
    """Row numbers of names; the one after the last for any other."""
    numbers = {name: row for row, name in enumerate(known)}
    return torch.tensor([numbers.get(name, len(known)) if name is not None else len(known) for name in names])


# ---------------------------------------------------------------- members
class Batch:
    """Some images of a group: their images are embedded once, however many members read them."""

    def __init__(self, datapoints: Sequence[Point], backbone: Backbone) -> None:
        self.datapoints, self.backbone = datapoints, backbone
        self.found: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.datapoints)

    @cached_property
    def images(self) -> Any:
        return self.backbone.transform(self.datapoints)

    def features(self, kind: str, tail: Mapping[str, Tensor], stored: Stored) -> Tensor:
        """What a member with this tail reads (without one, the backbone's own features), rounded where what it has learnt from
        was: the images, the tokens that its tail begins with, or what the frozen backbone says."""
        if tail:
            self.backbone.put(tail)
            images = rounded(self.images) if stored["rounded"] == "images" else self.images
            with self.backbone.rounded_at(stored["cut"]) if stored["rounded"] == "cut" else nullcontext():
                said = self.backbone.features(images, kind)
        else:
            said = self.found[kind] = self.found[kind] if kind in self.found else self.backbone.features(self.images, kind)
        return rounded(said) if stored["rounded"] in ("pooled", "patches") else said

    def rows(self, names: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """Rows [B] of domains, species and genera among a member's names."""
        domains = [label(point["domainID"]) for point in self.datapoints]
        species = [label(point["scientificName"]) for point in self.datapoints]
        genera = [name.split()[0] if name else None for name in species]
        found = {"domains": domains, "species": species, "genera": genera}
        return {kind: rows(of_kind, names[kind]) for kind, of_kind in found.items()}


class Member(ABC):
    """One trained model."""

    def __init__(self, spec: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> None:
        self.spec = spec

    @abstractmethod
    def say(self, batch: Batch) -> Said:
        """What it says of images."""


class ImageMember(Member):
    """One that looks at images, through a tail of its own if its state has one; `own` is the rest of its state."""

    def __init__(self, spec: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__(spec, state, device)
        self.tail = {name.removeprefix("tail."): state[name] for name in state if name.startswith("tail.")}
        self.own = {name: tensor for name, tensor in state.items() if not name.startswith("tail.")}

    @abstractmethod
    def log_odds(self, batch: Batch) -> Any:
        """log p / (1 − p) [B] of the first of two classes, not rounded to what a probability can hold."""


class NetworkMember(ImageMember):
    """A network on the backbone's features."""

    def __init__(self, spec: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__(spec, state, device)
        self.device = device
        self.network = Network(spec)
        self.network.load_state_dict(self.own)
        self.network.to(device).eval()

    def say(self, batch: Batch) -> Said:
        mean, variance, log_weights, trust = (each.float().cpu().numpy() for each in self.network(*self._inputs(batch)))
        return mean, variance, log_weights, trust

    def log_odds(self, batch: Batch) -> Any:
        features, names = self._inputs(batch)
        raw = self.network.raw(self.network.embed(self.network.encode(features), names))[..., 0].double()
        return (raw[:, 0] - raw[:, 1]).cpu().numpy()

    def _inputs(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        names = {kind: found.to(self.device) for kind, found in batch.rows(self.spec["names"]).items()}
        return batch.features(self.spec["features"], self.tail, self.spec["stored"]), names


class ClimatologyMember(Member):
    """Mean and spread of the training groups of the domain, else of all (site and date are hidden)."""

    def __init__(self, spec: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__(spec, state, device)
        self.domain, self.targets = state["domain"].numpy(), state["targets"].double().numpy()

    def say(self, batch: Batch) -> Said:
        found = [self._moments(int(row)) for row in batch.rows(self.spec["names"])["domains"]]
        mean, variance = (np.stack(each) for each in zip(*found, strict=True))
        return mean, variance, np.zeros_like(mean), np.ones_like(mean)

    def _moments(self, row: int) -> tuple[Any, Any]:
        alike = (self.domain == row) & (row < len(self.spec["names"]["domains"]))
        chosen = self.targets[alike] if alike.sum() >= self.spec["min_groups"] else self.targets
        return chosen.mean(0), chosen.var(0, ddof=1).clip(1e-6)


class TreesMember(Member):
    """Gradient-boosted trees on domain and species (site and date are hidden)."""

    def __init__(self, spec: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> None:
        from lightgbm import Booster

        super().__init__(spec, state, device)
        texts = [bytes(state[f"target_{i}"].numpy()).decode() for i in range(len(state))]
        self.boosters = [Booster(model_str=text) for text in texts]

    def say(self, batch: Batch) -> Said:
        names = batch.rows(self.spec["names"])
        columns = np.full((len(batch), 4), np.nan)
        for column, kind in enumerate(("domains", "species")):
            found = names[kind].numpy().astype("float64")
            columns[:, column] = np.where(found == len(self.spec["names"][kind]), np.nan, found)
        mean = np.stack([booster.predict(columns, num_threads=1) for booster in self.boosters], 1)
        return mean, np.ones_like(mean), np.zeros_like(mean), np.ones_like(mean)


class PlainMember(ImageMember):
    """A classifier of scikit-learn as arrays, on the backbone's features."""

    def __init__(self, spec: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> None:
        super().__init__(spec, state, device)
        self.arrays = {name: tensor.numpy() for name, tensor in self.own.items()}

    def say(self, batch: Batch) -> Said:
        mean = plain.probabilities(self.spec["classifier"], self.arrays, self._embed(batch))
        return mean, np.ones_like(mean), np.zeros_like(mean), np.ones_like(mean)

    def log_odds(self, batch: Batch) -> Any:
        return plain.log_odds(self.spec["classifier"], self.arrays, self._embed(batch))

    def _embed(self, batch: Batch) -> Any:
        features = batch.features("pooled", self.tail, self.spec["stored"]).float()
        embedding = F.normalize(features, dim=-1) if self.spec["normalize"] else features
        return embedding.cpu().numpy().astype("float64")


def make_member(spec: Mapping[str, Any], state: Mapping[str, Tensor], device: torch.device) -> Member:
    """The member that a specification describes."""
    makers: dict[str, type[Any]] = {
        "climatology": ClimatologyMember,
        "plain": PlainMember,
        "boosting": TreesMember,
        "network": NetworkMember,
    }
    return makers[spec["kind"]](spec, state, device)


# ---------------------------------------------------------------- the network on the features
class Network(nn.Module):
    """Features → convolutions, if there are any → L2 norm → + domain, + species → head → targets."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        self.spec, names, width = spec, spec["names"], spec["width"]
        n_targets = len(spec["targets"])
        self.head = make_mlp([width, *spec["hidden"], n_targets * spec["output"]["n"]])
        if spec["convolutions"]:
            self.encoder = make_convolutions(**spec["convolutions"])
        if spec["domain"]:
            self.domain = Named({"table": len(names["domains"])}, width)
        if spec["species"]:
            self.species = Named({"species": len(names["species"]), "genus": len(names["genera"])}, width)
        if spec["pool"] == "attention":
            self.pooling = Attention(width, spec["attention"])
        if spec["novelty"]:
            self.novelty = Novelty(n_targets, **spec["novelty"])
        self.register_buffer("target_mean", torch.zeros(n_targets))
        self.register_buffer("target_scale", torch.ones(n_targets))
        self.register_buffer("feature_mean", torch.zeros(spec["n_features"]))
        self.register_buffer("feature_scale", torch.ones(spec["n_features"]))

    def forward(self, features: Tensor, names: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, variance, log weight and trust [B, n_targets], in the targets' own units."""
        encoded = self.encode(features)
        embedding = self.embed(encoded, names)
        mean, variance = moments(self.spec["output"], self.raw(embedding))
        weights = torch.zeros_like(variance)
        if self.spec["pool"] == "precision":
            weights = -variance.log()
        elif self.spec["pool"] == "attention":
            weights = self.pooling(embedding).expand_as(variance)
        scale = self.get_buffer("target_scale")
        mean, variance = mean * scale + self.get_buffer("target_mean"), variance * scale.square()
        if not self.spec["novelty"]:
            return mean, variance, weights, torch.ones_like(mean)
        mean, trust = self.novelty(mean, encoded)
        return mean, variance, weights, trust

    def raw(self, embedding: Tensor) -> Tensor:
        """The head's numbers [B, n_targets, n]."""
        return self.head(embedding).unflatten(-1, (-1, self.spec["output"]["n"]))

    def encode(self, features: Tensor) -> Tensor:
        """What becomes of features, or of patch tokens [B, E]."""
        if not self.spec["convolutions"]:
            return features
        maps = features.transpose(1, 2).unflatten(2, self.spec["convolutions"]["grid"])
        return self.encoder(maps).flatten(1)

    def embed(self, encoded: Tensor, names: Mapping[str, Tensor]) -> Tensor:
        """What the head reads [B, E]."""
        embedding = F.normalize(encoded, dim=-1) if self.spec["normalize"] else encoded
        embedding = (embedding - self.get_buffer("feature_mean")) / self.get_buffer("feature_scale")
        if self.spec["domain"]:
            embedding = embedding + self.domain(names["domains"])
        if self.spec["species"]:
            embedding = embedding + self.species(names["species"], names["genera"])
        return embedding


class Novelty(nn.Module):
    """How unlike training images an image is, by the distance of its embedding (as the package's `models/novelty.py`)."""

    def __init__(self, n_targets: int, width: int, power: float) -> None:
        super().__init__()
        self.power = power
        for name, shape in (("centre", [width]), ("scale", [width]), ("reach", []), ("low", [n_targets]), ("high", [n_targets])):
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, mean: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Bounded means and their trust [B, n_targets]."""
        centre, scale, reach, low, high = map(self.get_buffer, ("centre", "scale", "reach", "low", "high"))
        distance = ((encoded - centre) / scale).square().mean(-1).sqrt().clamp_min(torch.finfo(encoded.dtype).tiny)
        trust = (reach / distance).clamp(max=1).pow(self.power)[:, None].expand_as(mean)
        return torch.minimum(torch.maximum(mean, low), high), trust


class Named(nn.Module):
    """Embeddings of names, the last row for any other, added and brought to the image embedding's space."""

    def __init__(self, sizes: Mapping[str, int], width: int) -> None:
        super().__init__()
        self.tables = list(sizes)
        for table, size in sizes.items():
            setattr(self, table, nn.Embedding(size + 1, width))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width))

    def forward(self, *found: Tensor) -> Tensor:
        parts = [getattr(self, table)(numbers) for table, numbers in zip(self.tables, found, strict=True)]
        return self.mlp(sum(parts[1:], parts[0]))


class Attention(nn.Module):
    """Gated attention's score of an image [B, 1]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.score(torch.tanh(self.value(embedding)) * torch.sigmoid(self.gate(embedding)))


def make_mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of these widths with GELU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def make_convolutions(width: int, grid: Sequence[int], kernel: int, channels: int) -> nn.Module:
    """Two convolutions over the grid of patch tokens; the second leaves a single cell."""
    rest = (grid[0] - kernel + 1, grid[1] - kernel + 1)
    convs = nn.Sequential(nn.Conv2d(width, width, kernel), nn.ReLU(), nn.Conv2d(width, channels, rest), nn.ReLU())
    holder = nn.Sequential()
    holder.add_module("convs", convs)
    return holder


def moments(output: Mapping[str, Any], raw: Tensor) -> tuple[Tensor, Tensor]:
    """A head's numbers [B, n_targets, n] → mean and variance [B, n_targets]."""
    if output["kind"] == "point":
        return raw[..., 0], torch.ones_like(raw[..., 0])
    if output["kind"] == "location_scale":
        scale = F.softplus(raw[..., 1] + output["start"]) + output["min_scale"]
        return raw[..., 0], scale.square() * output["widening"]
    if output["kind"] == "categorical":
        parts = raw[..., 0].split([output["n_classes"], raw.shape[1] - output["n_classes"]], -1)
        p = torch.cat([part.softmax(-1) for part in parts], -1)
        return p, p * (1 - p)
    z = torch.tensor(output["z"], device=raw.device, dtype=raw.dtype)  # normal quantiles of the levels
    off = z - z.mean()
    scale = (raw * off).sum(-1) / off.square().sum()
    return raw.mean(-1) - scale * z.mean(), scale.clamp_min(output["min_scale"]).square()
