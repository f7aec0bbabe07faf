"""What one step learns from: some images, or some groups with a set of images of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from pipeline.config.training import Train
from pipeline.device import to_device
from pipeline.models.pooling import Sets


@dataclass(frozen=True)
class Batch:
    """Images of one step: `indices` into the samples, on the CPU, and where the step is of groups, each one's number in the
    batch, in ascending order."""

    indices: Int64[Tensor, " images"]
    numbers: Int64[np.ndarray, " images"] | None = None

    def thinned(self, probability: float, rng: np.random.Generator) -> Batch:
        """Leave each image out with `probability`; at least one stays, of every group if the step is of groups."""
        if probability == 0:
            return self
        groups = np.zeros(len(self.indices), "int64") if self.numbers is None else self.numbers
        kept = keep_some(groups, probability, rng)
        return Batch(self.indices[torch.from_numpy(kept)], None if self.numbers is None else self.numbers[kept])

    def sets(self, device: torch.device) -> Sets | None:
        """Which images are of one group, on the device; None where the step is of images."""
        return None if self.numbers is None else make_sets(self.numbers, device)


def keep_some(groups: Int64[np.ndarray, " images"], probability: float, rng: np.random.Generator) -> Bool[np.ndarray, " images"]:
    """Which of the members of `groups` (numbers in ascending order) stay: each is left out with `probability`, and of a group
    that would lose all one stays, drawn at random."""
    keep = rng.random(len(groups)) >= probability
    firsts, counts = np.unique(groups, return_index=True, return_counts=True)[1:]
    lost = np.add.reduceat(keep, firsts) == 0
    keep[firsts[lost] + rng.integers(counts[lost])] = True
    return keep


def draw_batches(groups: Int64[np.ndarray, " images"], train: Train, rng: np.random.Generator) -> Iterator[Batch]:
    """One pass over the images, or over the groups (of each image its number from 0) with a new draw of their images, in an order
    drawn from `rng`."""
    if train.sample == "images":
        order = torch.from_numpy(rng.permutation(len(groups)))
        yield from map(Batch, order.split(train.batch_size))
        return
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    for chosen in np.array_split(rng.permutation(len(members)), range(train.batch_size, len(members), train.batch_size)):
        drawn = [rng.permutation(members[group])[: train.max_images] for group in chosen]
        numbers = np.repeat(np.arange(len(drawn)), [len(some) for some in drawn])
        yield Batch(torch.from_numpy(np.concatenate(drawn)), numbers)


def make_sets(numbers: Int64[np.ndarray, " images"], device: torch.device) -> Sets:
    """Which images are of one group, from the number of each one's."""
    firsts = np.unique(numbers, return_index=True)[1]
    return Sets(*(to_device(torch.from_numpy(each), device) for each in (numbers, firsts)))
