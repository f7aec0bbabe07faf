"""A split of the data as training reads it: features in a bank, everything else in small tensors on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.trial import Config
from pipeline.errors import UserError
from pipeline.features.bank import Bank
from pipeline.metrics.groups import Prediction
from pipeline.metrics.regression import group_r2
from pipeline.metrics.selection import selection_metric
from pipeline.models.base import Facts, Model, Predicted
from pipeline.models.learner import Answer, Learner
from pipeline.models.metadata import COLUMNS, Metadata
from pipeline.training.augmentation import to_device

PREDICTION_BATCH = 512
Said = TypeVar("Said")


@dataclass(frozen=True)
class Samples:
    """N images: `bank` holds their features, `targets` [N, n_targets or more] and `metadata` [N] lie on the device; `groups`
    [N] are numbers from 0."""

    bank: Bank
    targets: Tensor
    metadata: Metadata
    groups: NDArray[np.int64]
    n_targets: int
    """How many of the columns of `targets` are predicted; auxiliary labels behind them are only learnt."""

    @property
    def truth(self) -> NDArray[np.float32]:
        """What is to be predicted [N, n_targets], on the CPU."""
        out: NDArray[np.float32] = self.targets[:, : self.n_targets].cpu().numpy()
        return out

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: Tensor) -> tuple[Tensor, Tensor, Metadata]:
        """Of images `indices` [B] (on the CPU): features [B, …] in fp32, targets [B, n_targets], metadata [B]."""
        there = to_device(indices, self.targets.device)
        features = self.bank.gather(there if self.bank.residence == "device" else indices)
        return features.float(), self.targets[there], self.metadata[there]


def make_samples(bank: Bank, table: pd.DataFrame, facts: Facts, device: torch.device) -> Samples:
    """The rows of `table`, whose features `bank` holds in the same order."""
    targets = torch.tensor(table[list(facts.learnt)].to_numpy("float32"), device=device)
    metadata = facts.names.metadata(columns(table), device)
    groups = pd.factorize(table["group"])[0].astype("int64")
    return Samples(bank, targets, metadata, groups, len(facts.targets))


def columns(table: pd.DataFrame) -> dict[str, list[str | None]]:
    """What a table tells of its images beside their images, by column."""
    return {name: table[name].tolist() for name in COLUMNS if name in table}


def check_selection(config: Config, validation: Samples) -> None:
    """UserError where no epoch could be better than another: a figure that is not defined for these targets."""
    metric, truth = config.select.metric, validation.truth
    if config.select.epoch == "last" or config.select.folds is not None or not config.model.head.chooses:
        return
    if config.data.label is not None and selection_metric(metric, truth, truth, validation.groups) is None:
        raise UserError(
            f"{config.data.source}: the validation images are all of one class, so nothing can be chosen by {metric}: choose "
            "another split (data.split), or select.metric=log_loss."
        )
    if metric != "r2":
        return
    for target, column in zip(config.data.targets, truth.T, strict=True):
        if group_r2(column, column, validation.groups) is None:
            raise UserError(
                f"{config.data.source}: {target} is the same for all {len(set(validation.groups))} validation groups, so "
                "the best epoch cannot be chosen by R²: set select.metric=mae, or choose another validation split."
            )


def target_scale(table: pd.DataFrame, targets: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Mean and sd [n_targets] over training groups, each group counted once."""
    groups = table.groupby("group")[list(targets)].first()
    sd = groups.std(ddof=0).to_numpy("float32")
    return torch.from_numpy(groups.mean().to_numpy("float32")), torch.from_numpy(
        np.where(sd > 0, sd, 1).astype("float32")
    )


def embeddings(model: Model, samples: Samples) -> NDArray[np.float32]:
    """The frozen embeddings of every image, as the head sees them before they are standardised [N, E]."""
    features = samples.bank.gather(torch.arange(len(samples))).float()
    out: NDArray[np.float32] = (F.normalize(features, dim=-1) if model.normalize else features).cpu().numpy()
    return out


def feature_scale(embedded: NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean and sd [E] of embeddings [N, E]; 1 for what does not vary."""
    mean, sd = embedded.mean(0, dtype="float64"), embedded.std(0, dtype="float64")
    sd[sd <= 1e-6 * np.abs(mean)] = 1
    return torch.from_numpy(mean.astype("float32")), torch.from_numpy(sd.astype("float32"))


def predict(model: Model, samples: Samples) -> Prediction:
    """What the model says of each image in the targets' units: evaluation mode, fp32."""
    model.eval()
    return joined(_by_batches(model.predict, samples))


def answers(model: Learner, samples: Samples) -> Answer:
    """What the model makes of every image, on the device: evaluation mode, fp32."""
    model.eval()
    parts = _by_batches(model.forward, samples)
    fields = ((part.parameters, part.log_weights, part.hidden) for part in parts)
    return Answer(*map(torch.cat, zip(*fields, strict=True)))


def _by_batches(say: Callable[[Tensor, Metadata], Said], samples: Samples) -> list[Said]:
    """What is said of all images, in their order, PREDICTION_BATCH at a time."""
    with torch.inference_mode():
        selected = map(samples.select, torch.arange(len(samples)).split(PREDICTION_BATCH))
        return [say(features, metadata) for features, _, metadata in selected]


def joined(parts: Sequence[Predicted]) -> Prediction:
    """Batches of predictions as arrays [N, n_targets]."""
    fields = ((part.mean, part.variance, part.log_weights) for part in parts)
    return Prediction(*(torch.cat(each).cpu().numpy() for each in zip(*fields, strict=True)))
