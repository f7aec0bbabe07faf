"""What a table holds that is allowed and hardly meant: numbers that stand for nothing, the same image twice. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.missing import written
from pipeline.data.truth import UNUSED
from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Array = NDArray[Any]

SENTINELS = (
    *(-99.0, -999.0, -9999.0, -99999.0, -999999.0, 999.0, 9999.0, 99999.0, 999999.0, -99.9, -999.9, -9999.9, -999.25, -32768.0),
    *(32767.0, 65535.0, -2147483648.0, 2147483647.0, 1e20, -1e20, 1e30, -1e30, 9.969209968386869e36, -3.4e38, 3.4e38),
)
"""What databases, loggers, rasters and NetCDF write for a number that was not measured."""
NAMED = 5
"""Values of a target that are warned of."""
FEWEST = 5
"""Values that are not alike, of which a range is known."""
OTHER_SIGN, BOTH_SIGNS, SAME_SIGN = 10.0, 100.0, 10_000.0
"""How many ranges of all others a value that repeats lies away from them at least to be suspect: where it is of a sign that none
of them has; where they are of both; else, for counts of animals have long tails and are rounded."""
LATER_SPLITS = {"train": 0, "validation": 1, "test": 2}
"""Of copies in several splits, those in the last of them are what others are copies of."""


def sentinels(table: pd.DataFrame, targets: Sequence[str]) -> Iterator[str]:
    """A warning for each value of a target that repeats far from all others, as what stands for a missing one does: over groups,
    if it does not do so elsewhere."""
    import numpy as np

    for target in targets:
        values, counts = np.unique(table[target], return_counts=True)
        suspect = _suspects(values, counts)
        rest = values[~suspect]
        for value, n in islice(zip(values[suspect].tolist(), counts[suspect].tolist(), strict=True), NAMED):
            if _is_sentinel([value])[0] or table.loc[table[target] == value, "group"].nunique() > 1:
                among = f"{n} of {len(table)} rows, far from all others ({rest.min():g} to {rest.max():g})"
                yield f"{target} is {written(value)} in {among}: if that stands for a missing value, remove such rows"


def _is_sentinel(values: Any) -> NDArray[np.bool_]:
    """Whether values stand for a missing one elsewhere, as single precision has them."""
    import numpy as np

    return np.isin(np.asarray(values, "float32"), np.array(SENTINELS, "float32"))


def _suspects(values: Array, counts: Array) -> NDArray[np.bool_]:
    """Of distinct values that ascend, each so often: those that repeat far from all that do not, none of which hides another."""
    import numpy as np

    known = (counts > 1) & _is_sentinel(values)
    suspect = np.zeros(len(values), bool)
    suspect[~known] = _outlying(values[~known], counts[~known])
    rest = values[~known & ~suspect]
    return suspect | known & _is_far(values, rest.min(), rest.max(), 1.0) if len(rest) else suspect


def _outlying(values: Array, counts: Array) -> NDArray[np.bool_]:
    """Whichever they are: by how far from the median, the first that lies many ranges away of all that are nearer, half of the
    rows at least, with all that follow, if each of these repeats."""
    import numpy as np

    found, n = np.zeros(len(values), bool), int(counts.sum())
    if len(values) <= FEWEST:
        return found
    order = np.argsort(np.abs(values - values[np.searchsorted(np.cumsum(counts), n / 2)]), kind="stable")
    ordered, repeats = values[order], counts[order] > 1
    low, high = np.minimum.accumulate(ordered)[:-1], np.maximum.accumulate(ordered)[:-1]
    are_most = (np.cumsum(counts[order])[:-1] * 2 >= n) & (np.arange(1, len(values)) >= FEWEST)
    begins = are_most & np.logical_and.accumulate(repeats[::-1])[::-1][1:]
    for at in np.flatnonzero(begins & _is_far(ordered[1:], low, high, _ranges(ordered[1:], low, high))):
        if _is_far(ordered[at + 1 :], low[at], high[at], _ranges(ordered[at + 1 :], low[at], high[at])).all():
            found[order[at + 1 :]] = True
            break
    return found


def _ranges(values: Array, low: Any, high: Any) -> Array:
    """As how many ranges of others, from low to high, each value is to lie further away."""
    import numpy as np

    is_other = (values < 0) & (low >= 0) | (values > 0) & (high <= 0)
    return np.where(is_other, OTHER_SIGN, np.where((low < 0) & (high > 0), BOTH_SIGNS, SAME_SIGN))


def _is_far(values: Array, low: Any, high: Any, ranges: Any) -> NDArray[np.bool_]:
    """Whether values lie further from others, which are from low to high, than so many of their ranges."""
    reach = (high - low) * ranges
    return (values < low - reach) | (values > high + reach)


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
