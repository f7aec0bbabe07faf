"""Bootstrap confidence intervals of any figure, resampling groups: images of one group are not independent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Weights = NDArray[np.float32]
AT_ONCE = 250_000
"""Weights that are made at a time: 1 MB, which stays in the processor's cache."""
Figure = Callable[[Rows], float | None]
"""A figure of some rows (with repetitions); None where it is not defined."""


@dataclass(frozen=True)
class Interval:
    """The central `level` of a figure's bootstrap distribution, and of how many of the draws it was defined."""

    low: float
    high: float
    level: float
    n: int


def bootstrap(figure: Figure, groups: Sequence[str], seed: int, n: int = 2000, level: float = 0.95) -> Interval | None:
    """Percentile interval (Efron and Tibshirani 1993, chapter 13) of a figure of rows, over `n` draws of as many groups as
    there are, with all rows of each; None if it was defined for none of them.

    Of a difference between two models on the same rows this is the paired interval: each draw asks both of the same rows.
    """
    numbers = _numbers(groups)
    rows = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    rng = np.random.default_rng(seed)
    drawn = (np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))]) for _ in range(n))
    values = [value for value in map(figure, drawn) if value is not None]
    return central(np.array(values, "float64"), level)


def draws(groups: Sequence[str], seed: int, n: int = 1000) -> Iterator[Weights]:
    """The same draws as how often each has each row, in blocks [N, d] of all `n`: for figures of weighted rows."""
    numbers = _numbers(groups)
    k, at_once = int(numbers.max()) + 1, max(1, AT_ONCE // len(numbers))
    rng = np.random.default_rng(seed)
    for first in range(0, n, at_once):
        block = range(first, min(first + at_once, n))
        counts = [np.bincount(rng.integers(k, size=k), minlength=k) for _ in block]
        yield np.stack(counts, axis=1).astype("float32")[numbers]


def central(values: NDArray[np.floating], level: float = 0.95) -> Interval | None:
    """The interval that holds the central `level` of the values that are not NaN; None if there are none."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(defined))


def _numbers(groups: Sequence[str]) -> NDArray[np.int64]:
    """The number of each row's group."""
    return np.unique(np.asarray(groups), return_inverse=True)[1]
