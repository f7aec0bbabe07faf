"""What is true of each image, as the columns of a data set's table hold it: numeric targets, or the label of one of many classes.
A label is one whole number, whatever number of classes there is; a column per class would be as wide as there are species. Loads
no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64, Num

if TYPE_CHECKING:
    import pandas as pd

LABEL = "class"
"""The column with each image's label, the place of its class among all."""
AUXILIARY = "auxiliary "
"""What the columns of auxiliary labels begin with; a number follows. -1: the image has none."""

RANK = "rank "
"""What the columns of the ranks above the species begin with; a number follows, 0 for the most general one."""
BESIDE = "beside "
"""What the columns begin with of what is learnt beside numbers (data.auxiliary); a number follows. NaN, of a name -1: unknown."""
SPLIT_BY = "split by "
"""What the columns begin with by which folds are dealt (data.split.by); a number follows."""
UNUSED = "unused"
"""The split of images that neither train, validate nor test (data.shots)."""
SPLITS = ("train", "validation", "test", UNUSED)
"""All that there are, in the order in which they are shown."""


@dataclass(frozen=True)
class Truth(ABC):
    """How the truth stands in a table."""

    names: tuple[str, ...]
    """What is predicted: targets, or classes as `<label's column>=<class>`, the positive one of two first."""
    auxiliary: tuple[str, ...] = ()
    """Names that are learnt beside a label, as `<column>=<name>`; each image has some of them or none."""

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The table's columns with what is predicted; all images of a group share it."""

    @property
    def learnt(self) -> tuple[str, ...]:
        """The table's columns with all that is learnt."""
        return self.columns

    @property
    def widths(self) -> tuple[int, int] | None:
        """Of labels: how many classes, and how many auxiliary names there are; None: numbers are learnt as they are."""
        return None

    def counts(self, table: pd.DataFrame) -> dict[str, int]:
        """Of labels: how many of these rows are of each class, by its name."""
        return {}

    def perfect(self, table: pd.DataFrame) -> tuple[Num[np.ndarray, "images ..."], Num[np.ndarray, "images targets"]]:
        """What is true of these rows, and what a model would say that is always right."""
        return self.of(table), self.of(table)

    def of(self, table: pd.DataFrame) -> Num[np.ndarray, "images ..."]:
        """What is true of these rows: numbers in float64, a column per target, or labels in int64."""
        return table[list(self.columns)].to_numpy()


@dataclass(frozen=True)
class Numbers(Truth):
    """Numeric targets, a column each."""

    beside: tuple[int, ...] = ()
    """Of each column of what is learnt beside them: how many names there are; 0: it holds numbers."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.names

    @property
    def learnt(self) -> tuple[str, ...]:
        return (*self.names, *(f"{BESIDE}{i}" for i in range(len(self.beside))))


@dataclass(frozen=True)
class Labels(Truth):
    """A label, and columns of auxiliary ones."""

    n_auxiliary_columns: int = 0

    @property
    def columns(self) -> tuple[str, ...]:
        return (LABEL,)

    @property
    def learnt(self) -> tuple[str, ...]:
        return (LABEL, *(f"{AUXILIARY}{i}" for i in range(self.n_auxiliary_columns)))

    @property
    def widths(self) -> tuple[int, int]:
        return len(self.names), len(self.auxiliary)

    def counts(self, table: pd.DataFrame) -> dict[str, int]:
        numbers = np.bincount(self.of(table), minlength=len(self.names))
        return {class_name(name): int(n) for name, n in zip(self.names, numbers, strict=True)}

    def perfect(self, table: pd.DataFrame) -> tuple[Num[np.ndarray, "images ..."], Num[np.ndarray, "images targets"]]:
        labels = self.of(table)
        return labels, np.eye(len(self.names), dtype="float32")[labels]

    def of(self, table: pd.DataFrame) -> Int64[np.ndarray, " images"]:
        return table[LABEL].to_numpy("int64")


def class_name(target: str) -> str:
    """The class that a prediction is of: `hybrid_stat=hybrid` → `hybrid`."""
    return target.partition("=")[2]


def label_name(target: str) -> str:
    """The column of the label that a prediction is of: `hybrid_stat=hybrid` → `hybrid_stat`."""
    return target.partition("=")[0]
