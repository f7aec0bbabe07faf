"""Bootstrap confidence intervals of any figure, resampling specimens: photographs of one specimen are not independent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Figure = Callable[[Rows], float | None]
"""A figure of some rows (with repetitions); None where it is not defined."""


@dataclass(frozen=True)
class Interval:
    """The central `level` of a figure's bootstrap distribution, and of how many of the draws it was defined."""

    low: float
    high: float
    level: float
    n: int


def bootstrap(
    figure: Figure, specimens: Sequence[str], seed: int, n: int = 2000, level: float = 0.95
) -> Interval | None:
    """Percentile interval (Efron and Tibshirani 1993, chapter 13) of a figure of rows, over `n` draws of as many specimens as
    there are, with all rows of each; None if it was defined for none of them.

    Of a difference between two models on the same rows this is the paired interval: each draw asks both of the same rows.
    """
    numbers = np.unique(np.asarray(specimens), return_inverse=True)[1]
    rows = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    rng = np.random.default_rng(seed)
    drawn = (np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(n))
    values = [value for value in map(figure, drawn) if value is not None]
    if not values:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(values))
