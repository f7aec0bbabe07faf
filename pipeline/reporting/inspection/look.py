"""What is gathered of a trial's data: the table as a whole, and as many of its images as are asked for. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64

from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.data.near_duplicates import NearDuplicates, near_duplicates
from pipeline.data.sources import open_source
from pipeline.data.survey import Survey, drawn, not_there, survey
from pipeline.data.suspects import duplicate_warnings, find_duplicates
from pipeline.data.truth import UNUSED
from pipeline.errors import NotFetched
from pipeline.features.hashes import known_data
from pipeline.tasks import load_task
from pipeline.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Look:
    """What was seen."""

    config: Config
    task: Task[Any]
    dataset: Dataset
    absent: dict[int, str]
    """Position of each image of the table that is not there → why."""
    n_there: int
    """How many of the others there are to look at."""
    seen: Survey
    """What was seen of those that were looked at."""
    near: NearDuplicates
    """Near-duplicates among them, by position."""
    copies: list[str]
    """What is to be said of images that are there several times, byte for byte."""

    @property
    def table(self) -> pd.DataFrame:
        return self.dataset.table

    @property
    def n_looked(self) -> int:
        return len(self.seen.images) + len(self.seen.bad)

    @cached_property
    def leaks(self) -> Bool[np.ndarray, " pairs"]:
        """Near-duplicates that stand in different splits."""
        splits = self._of_pairs("split")
        return (splits[:, 0] != splits[:, 1]) & (splits != UNUSED).all(axis=1)

    @cached_property
    def expected(self) -> Bool[np.ndarray, " pairs"]:
        """Near-duplicates in one split and one group, which share their truth."""
        groups = self._of_pairs("group")
        return (groups[:, 0] == groups[:, 1]) & ~self.leaks

    @cached_property
    def contradict(self) -> Bool[np.ndarray, " pairs"]:
        """Near-duplicates of which different things are true."""
        of = [self._of_pairs(column) for column in self.dataset.truth.columns]
        return np.any([each[:, 0] != each[:, 1] for each in of], axis=0)

    def _of_pairs(self, column: str) -> np.ndarray:
        """What stands in a column for both images of each pair, [pairs, 2]."""
        return self.table[column].to_numpy()[self.near.pairs]


def look(config: Config, most: int) -> Look:
    """Look at a trial's data, and at no more than so many of its images, the same each time. Raises UserError for a table that
    cannot be read as the configuration says, NotFetched for data of the Hub that are not in the cache."""
    if config.data.download is None and not open_source(config.data).is_here():
        raise NotFetched(f"data {config.data.source} are not on this machine.")
    task = load_task(config.task)
    dataset: Dataset = task.load(config.data)
    absent = not_there(dataset)
    there = [i for i in range(len(dataset)) if i not in absent]
    seen = survey(dataset, drawn(there, most), config.resources.decode_threads)
    places: Int64[np.ndarray, " images"] = seen.images.index.to_numpy("int64")
    near = near_duplicates(seen.small)
    copies = duplicate_warnings(dataset, find_duplicates(dataset, _contents(config, dataset, seen)))
    return Look(config, task, dataset, absent, len(there), seen, near._replace(pairs=places[near.pairs]), copies)


def _contents(config: Config, dataset: Dataset, seen: Survey) -> list[str]:
    """What each image is, where it is known: of all from an earlier extraction's record, else of those looked at."""
    if (record := known_data(config)) and len(record.images) == len(dataset):
        return record.images
    hashes = seen.images["sha256"].to_dict()
    return [hashes.get(i, "") for i in range(len(dataset))]
