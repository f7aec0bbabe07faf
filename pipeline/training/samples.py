"""A split of the data as training reads it: features in a bank, everything else in small tensors on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.features.bank import Bank
from pipeline.metrics.events import Prediction
from pipeline.metrics.regression import event_r2
from pipeline.models.regressor import Regressor
from pipeline.models.saved import Facts
from pipeline.training.augmentation import to_device

PREDICTION_BATCH = 512


@dataclass(frozen=True)
class Samples:
    """N specimens: `bank` holds their features, `targets` [N, n_targets] and `domains` [N] lie on the device."""

    bank: Bank
    targets: Tensor
    domains: Tensor
    events: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of specimens `indices` [B] (on the CPU): features [B, …] in fp32, targets [B, n_targets], domain rows [B]."""
        there = to_device(indices, self.targets.device)
        features = self.bank.gather(there if self.bank.residence == "device" else indices)
        return features.float(), self.targets[there], self.domains[there]


def make_samples(bank: Bank, table: pd.DataFrame, facts: Facts, device: torch.device) -> Samples:
    """The rows of `table`, whose features `bank` holds in the same order."""
    targets = torch.tensor(table[list(facts.targets)].to_numpy("float32"), device=device)
    domains = facts.domain_rows(domain_names(table), device)
    return Samples(bank, targets, domains, pd.factorize(table["event"])[0].astype("int64"))


def domain_names(table: pd.DataFrame) -> list[str | None]:
    """Each row's domain, None where it is not known."""
    return [None if pd.isna(name) else str(name) for name in table["domain"]]


def check_selection(config: Config, validation: Samples) -> None:
    """UserError where no epoch could be better than another: R² of a target that is the same for every event."""
    truth = validation.targets.cpu().numpy()
    for target, column in zip(config.data.targets, truth.T, strict=True):
        if config.select.metric == "r2" and event_r2(column, column, validation.events) is None:
            raise UserError(
                f"{config.data.source}: {target} is the same for all {len(set(validation.events))} validation events, so "
                "the best epoch cannot be chosen by R²: set select.metric=mae, or choose another validation split."
            )


def target_scale(table: pd.DataFrame, targets: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Mean and sd [n_targets] over training events, each event counted once."""
    events = table.groupby("event")[list(targets)].first()
    sd = events.std(ddof=0).to_numpy("float32")
    return torch.from_numpy(events.mean().to_numpy("float32")), torch.from_numpy(
        np.where(sd > 0, sd, 1).astype("float32")
    )


def batches(n: int, size: int, order: NDArray[np.int64] | None = None) -> Iterator[Tensor]:
    """Indices 0 … n−1 in `order` (default: ascending), in batches of `size`, the last one as it comes."""
    indices = torch.from_numpy(np.arange(n) if order is None else order)
    yield from indices.split(size)


def predict(model: Regressor, samples: Samples) -> Prediction:
    """Mean and variance [N, n_targets] of each specimen in the targets' units."""
    mean, variance = model.moments(outputs(model, samples))
    return Prediction(mean.cpu().numpy(), variance.cpu().numpy())


def outputs(model: Regressor, samples: Samples) -> Tensor:
    """The head's numbers for every specimen, on the device: evaluation mode, fp32."""
    model.eval()
    with torch.inference_mode():
        parts = []
        for indices in batches(len(samples), PREDICTION_BATCH):
            features, _, domains = samples.select(indices)
            parts.append(model(features, domains))
        return torch.cat(parts)
