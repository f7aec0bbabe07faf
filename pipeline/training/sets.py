"""What one step learns from: some specimens, or some events with a set of specimens of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import Train
from pipeline.models.pooling import Sets
from pipeline.training.augmentation import to_device

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Specimens of one step: `indices` [B] into the samples, on the CPU, and where the step is of events, each one's number [B]
    in the batch, in ascending order."""

    indices: Tensor
    numbers: Integers | None = None

    def thinned(self, probability: float, rng: np.random.Generator) -> Batch:
        """Leave each specimen out with `probability`; at least one stays, of every event if the step is of events."""
        if probability == 0:
            return self
        groups = np.zeros(len(self.indices), "int64") if self.numbers is None else self.numbers
        kept = keep_some(groups, probability, rng)
        return Batch(self.indices[torch.from_numpy(kept)], None if self.numbers is None else self.numbers[kept])

    def sets(self, device: torch.device) -> Sets | None:
        """Which specimens are of one event, on the device; None where the step is of specimens."""
        return None if self.numbers is None else _sets(self.numbers, device)


def keep_some(groups: Integers, probability: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which of the members of `groups` [B] (numbers in ascending order) stay: each is left out with `probability`, and of a
    group that would lose all one stays, drawn at random."""
    keep = rng.random(len(groups)) >= probability
    firsts, counts = np.unique(groups, return_index=True, return_counts=True)[1:]
    lost = np.add.reduceat(keep, firsts) == 0
    keep[firsts[lost] + rng.integers(counts[lost])] = True
    return keep


def draw_batches(events: Integers, train: Train, rng: np.random.Generator) -> Iterator[Batch]:
    """One pass over the specimens, or over the events with a new draw of their specimens, in an order drawn from `rng`.

    `events` [N] is each specimen's event, by number from 0.
    """
    if train.sample == "specimens":
        order = torch.from_numpy(rng.permutation(len(events)))
        yield from map(Batch, order.split(train.batch_size))
        return
    members = np.split(np.argsort(events, kind="stable"), np.cumsum(np.bincount(events))[:-1])
    for chosen in np.array_split(
        rng.permutation(len(members)), range(train.batch_size, len(members), train.batch_size)
    ):
        drawn = [rng.permutation(members[event])[: train.max_specimens] for event in chosen]
        numbers = np.repeat(np.arange(len(drawn)), [len(some) for some in drawn])
        yield Batch(torch.from_numpy(np.concatenate(drawn)), numbers)


def whole_sets(events: Integers, device: torch.device) -> Sets:
    """All specimens [N] as sets."""
    return _sets(events, device)


def _sets(numbers: Integers, device: torch.device) -> Sets:
    firsts = np.unique(numbers, return_index=True)[1]
    return Sets(*(to_device(torch.from_numpy(each), device) for each in (numbers, firsts)))
