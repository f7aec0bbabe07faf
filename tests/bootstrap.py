"""A bootstrap that copies rows, plain and slow: what `metrics/intervals.py` does with weights is held against it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """The central 95 % of a figure's bootstrap distribution, and of how many of the draws it was defined."""

    low: float
    high: float
    n: int


def bootstrap(figure: Callable[[Rows], float | None], groups: Sequence[str], seed: int, n: int = 2000) -> Interval | None:
    """Percentile interval of a figure of rows, over `n` draws of as many groups as there are, with all rows of each."""
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    rows = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    rng = np.random.default_rng(seed)
    drawn = (np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(n))
    values = [value for value in map(figure, drawn) if value is not None]
    return Interval(*(float(end) for end in np.quantile(values, [0.025, 0.975])), len(values)) if values else None
