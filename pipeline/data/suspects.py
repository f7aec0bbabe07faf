"""What a table holds that is allowed and hardly meant: numbers that stand for nothing, the same image twice. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.truth import UNUSED
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SENTINELS = (-9999.0, -999.0, 9999.0, -99999.0, 99999.0)
"""What databases and loggers write for a number that was not measured."""
LATER_SPLITS = {"train": 0, "validation": 1, "test": 2}
"""Of copies in several splits, those in the last of them are what others are copies of."""


def sentinels(table: pd.DataFrame, targets: Sequence[str]) -> Iterator[str]:
    """A warning for each target in which a value repeats that stands for a missing one elsewhere, far from all others."""
    for target in targets:
        values = table[target]
        for value in SENTINELS:
            rest, n = values[values != value], int((values == value).sum())
            if n > 1 and len(rest) and not _is_near(value, float(rest.min()), float(rest.max())):
                among = f"{n} of {len(table)} rows, far from all others ({rest.min():g} to {rest.max():g})"
                yield f"{target} is {value:g} in {among}: if that stands for a missing value, remove such rows"


def _is_near(value: float, low: float, high: float) -> bool:
    """Whether a value lies among others from low to high, or no further from these than they from one another."""
    return low - (high - low) <= value <= high + (high - low)


@dataclass(frozen=True)
class Duplicates:
    """Images that are there more than once, byte for byte."""

    contradicting: list[list[int]]
    """The positions of each image whose copies have different truths."""
    spread: list[list[int]]
    """The positions of each other image whose copies stand in several splits."""

    def dropped(self, splits: Sequence[str]) -> list[int]:
        """Positions that are left out by data.on_duplicate=drop: every contradiction, and copies of what is in a later split."""
        ranks = [[(LATER_SPLITS[splits[i]], i) for i in copies] for copies in self.spread]
        earlier = [i for copies in ranks for rank, i in copies if rank < max(copies)[0]]
        return sorted([i for copies in self.contradicting for i in copies] + earlier)


def find_duplicates(dataset: Dataset, hashes: Sequence[str]) -> Duplicates:
    """Copies among a data set's images, by `content_of` each ("" for one that cannot be read)."""
    import pandas as pd

    table = dataset.table
    content = pd.Series(list(hashes), index=table.index).mask(table["split"] == UNUSED, "")
    copied = content[content.duplicated(keep=False) & (content != "")]
    found = Duplicates([], [])
    for _, copies in copied.groupby(copied, sort=False):
        rows = table.loc[copies.index]
        if len(rows[list(dataset.truth.columns)].drop_duplicates()) > 1:
            found.contradicting.append(list(copies.index))
        elif rows["split"].nunique() > 1:
            found.spread.append(list(copies.index))
    return found


def duplicate_warnings(dataset: Dataset, found: Duplicates) -> list[str]:
    """What is to be said of copies: how many, of which splits, and where the first one stands."""
    splits, lines = dataset.table["split"].tolist(), []
    if copies := found.contradicting:
        lines.append(f"{_count(copies)} with different truths ({_places(dataset, copies[0])}): one of them cannot be right")
    if copies := found.spread:
        pairs = Counter(" and ".join(sorted({splits[i] for i in each}, key=LATER_SPLITS.__getitem__)) for each in copies)
        among = ", ".join(f"{n} in {pair}" for pair, n in pairs.items())
        lines.append(
            f"{_count(copies)} in several splits, {among} ({_places(dataset, copies[0])}): figures are too good by these"
        )
    return lines


def left_out(dataset: Dataset, data: Data, hashes: Sequence[str]) -> tuple[list[int], list[str]]:
    """Positions of copies that are left out, and what is to be said of copies, by data.on_duplicate. Raises UserError where that
    is error and there are some."""
    found = find_duplicates(dataset, hashes)
    lines = duplicate_warnings(dataset, found)
    if lines and data.on_duplicate == "error":
        raise UserError(f"{data.source}: {'; '.join(lines)}. Correct the table, or set data.on_duplicate to drop or warn.")
    if not lines or data.on_duplicate == "warn":
        return [], lines
    gone = found.dropped(dataset.table["split"].tolist())
    return gone, [*lines, f"{len(gone)} images are left out for it (data.on_duplicate=drop)"]


def _count(copies: list[list[int]]) -> str:
    n = sum(map(len, copies))
    return f"{n} images are copies of {f'{len(copies)} images' if len(copies) > 1 else 'one'}, byte for byte,"


def _places(dataset: Dataset, copies: list[int]) -> str:
    return f"{dataset.where(copies[0])}; {dataset.where(copies[-1])}"
