"""A split of the data as training reads it: features in a bank, everything else in small tensors on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.truth import Truth
from pipeline.device import to_device
from pipeline.features.bank import Bank
from pipeline.metrics.groups import Prediction
from pipeline.models.base import Facts, Model, Predicted
from pipeline.models.learner import Answer, Learner
from pipeline.models.metadata import COLUMNS, Metadata
from pipeline.models.pairs.targets import ClassFacts

Learnt = Float32[Tensor, "batch learnt"]
Scale = Float32[Tensor, " numbers"]
PREDICTION_BATCH = 512
Said = TypeVar("Said")


@dataclass(frozen=True)
class Targets:
    """What is learnt of images, on the device: numbers, or labels, which become shares of classes where they are asked for."""

    codes: Float32[Tensor, "images targets"] | Int64[Tensor, "images labels"]
    """Of labels the class, then auxiliary ones, -1 for none."""
    widths: tuple[int, int] | None = None
    """Of labels: how many classes, and how many auxiliary names."""

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    def dense(self) -> Float32[Tensor, "images learnt"]:
        """Of all images."""
        return self[slice(None)]

    def __getitem__(self, rows: Shaped[Tensor, " rows"] | slice) -> Learnt:
        """Of some images: targets; or 1 in the column of the class, and behind the classes equal shares for the auxiliary names
        that an image has."""
        codes = self.codes[rows]
        if self.widths is None:
            return codes
        n_classes, n_names = self.widths
        classes = F.one_hot(codes[:, 0], n_classes).float()
        if not n_names:
            return classes
        counts = F.one_hot(codes[:, 1:] + 1, n_names + 1)[:, :, 1:].sum(1)
        return torch.cat([classes, counts / counts.sum(1, keepdim=True).clamp_min(1)], 1)


@dataclass(frozen=True)
class TextSamples:
    """The texts of a split's images and of all classes: `bank` holds the features of every distinct text."""

    bank: Bank
    of_image: Int64[Tensor, "images templates"]
    """On the CPU: which texts stand for each image."""
    of_class: Int64[Tensor, " classes"]
    """On the CPU: which text stands for each class in evaluation."""
    known: Callable[[], ClassFacts]
    """What makes `facts`: of many classes a tree takes seconds, and evaluation has no use for it."""
    views: Int64[np.ndarray, " images"]
    """The number of each image's view; -1 where it is not known."""
    order: Int64[np.ndarray, " images"]
    """The images in an order drawn by their names (`id`), the same whatever the order of the table's rows."""
    scale: float
    """What the pretrained model multiplies cosines by."""

    @cached_property
    def facts(self) -> ClassFacts:
        """What is known of the classes before training."""
        return self.known()


@dataclass(frozen=True)
class Samples:
    """Images: `bank` holds their features, `targets` and `metadata` lie on the device, `groups` are numbers from 0."""

    bank: Bank
    targets: Targets
    metadata: Metadata
    groups: Int64[np.ndarray, " images"]
    n_targets: int
    """How many of the columns of `targets` are predicted; auxiliary labels behind them are only learnt."""
    counts: tuple[int, ...] = ()
    """Of labels: how many images of each class are trained on; empty where nobody has told."""
    texts: TextSamples | None = None
    """For a head that reads them."""

    @property
    def truth(self) -> Float32[np.ndarray, "images targets"] | Int64[np.ndarray, " images"]:
        """What is to be predicted, on the CPU: numbers, or labels."""
        codes: NDArray[Any] = self.targets.codes.cpu().numpy()
        return codes[:, : self.n_targets] if self.targets.widths is None else codes[:, 0]

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: Int64[Tensor, " batch"]) -> tuple[Float32[Tensor, "batch ..."], Learnt, Metadata]:
        """Of images `indices` (on the CPU): features, targets with what is learnt beside them, metadata."""
        there = to_device(indices, self.targets.device)
        features = self.bank.gather(there if self.bank.residence == "device" else indices)
        return features.float(), self.targets[there], self.metadata[there]


def make_targets(table: pd.DataFrame, truth: Truth, device: torch.device | str = "cpu") -> Targets:
    """What is learnt of the rows of `table`, in which `truth` stands."""
    codes = table[list(truth.learnt)].to_numpy("float32" if truth.widths is None else "int64")
    return Targets(torch.tensor(codes, device=device), truth.widths)


def make_samples(
    bank: Bank, table: pd.DataFrame, facts: Facts, truth: Truth, device: torch.device, counts: tuple[int, ...] = ()
) -> Samples:
    """The rows of `table`, in which `truth` stands, and whose features `bank` holds in the same order."""
    targets, metadata = make_targets(table, truth, device), facts.names.metadata(columns(table), device)
    return Samples(bank, targets, metadata, pd.factorize(table["group"])[0].astype("int64"), len(facts.targets), counts)


def columns(table: pd.DataFrame) -> dict[str, list[str | None]]:
    """What a table tells of its images beside their images, by column."""
    return {name: table[name].tolist() for name in COLUMNS if name in table}


def target_scale(table: pd.DataFrame, targets: tuple[str, ...], log: bool = False) -> tuple[Scale, Scale]:
    """Mean and sd over training groups, each group counted once; with `log` of log(1 + target)."""
    groups = table.groupby("group")[list(targets)].first()
    if log:
        groups = groups.apply(np.log1p)
    sd = groups.std(ddof=0).to_numpy("float32")
    return torch.from_numpy(groups.mean().to_numpy("float32")), torch.from_numpy(np.where(sd > 0, sd, 1).astype("float32"))


def embeddings(model: Model, samples: Samples) -> Float32[np.ndarray, "images width"]:
    """The frozen embeddings of every image, as the head sees them before they are standardised."""
    features = model.encode(samples.bank.gather(torch.arange(len(samples))).float())
    return (F.normalize(features, dim=-1) if model.normalize else features).cpu().numpy()


def feature_scale(embedded: Float32[np.ndarray, "images width"]) -> tuple[Scale, Scale]:
    """Mean and sd of embeddings; 1 for what does not vary."""
    mean, sd = embedded.mean(0, dtype="float64"), embedded.std(0, dtype="float64")
    sd[sd <= 1e-6 * np.abs(mean)] = 1
    return torch.from_numpy(mean.astype("float32")), torch.from_numpy(sd.astype("float32"))


def predict(model: Model, samples: Samples, advance: Callable[[int], None] = lambda n: None) -> Prediction:
    """What the model says of each image in the targets' units: evaluation mode, fp32. `advance` is told of images just done."""
    model.eval()
    return joined(_by_batches(model.predict, samples, model.views.n, advance))


def answers(model: Learner, samples: Samples) -> Answer:
    """What the model makes of every image, on the device: evaluation mode, fp32."""
    model.eval()
    parts = _by_batches(model.forward, samples, model.views.n)
    fields = ((part.parameters, part.log_weights, part.hidden, part.encoded, part.embedding) for part in parts)
    return Answer(*map(torch.cat, zip(*fields, strict=True)))


def encoded(model: Learner, samples: Samples) -> Float32[Tensor, "images width"]:
    """What a learner's encoder makes of every image, on the CPU: evaluation mode, fp32."""
    model.eval()
    return torch.cat(_by_batches(lambda features, _: model.encode(features).cpu(), samples, model.views.n))


def _by_batches(
    say: Callable[[Tensor, Metadata], Said], samples: Samples, n_views: int, advance: Callable[[int], None] = lambda n: None
) -> list[Said]:
    """What is said of all images, in their order, PREDICTION_BATCH views at a time."""
    said = []
    with torch.inference_mode():
        for some in torch.arange(len(samples)).split(max(PREDICTION_BATCH // n_views, 1)):
            features, _, metadata = samples.select(some)
            said.append(say(features, metadata))
            advance(len(some))
    return said


def joined(parts: Sequence[Predicted]) -> Prediction:
    """Batches of predictions as arrays."""
    first = parts[0]
    names = ["mean", "variance", "log_weights", *(["trust"] if first.trust is not None else [])]
    classes = None if first.classes is None else first.classes.cpu().numpy()
    arrays = {name: torch.cat([getattr(part, name) for part in parts]).cpu().numpy() for name in names}
    return Prediction(**arrays, classes=classes, scale=first.scale, similarity=first.similarity)
