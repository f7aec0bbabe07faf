"""Bootstrap confidence intervals of any figure, resampling groups: images of one group are not independent.

Of a difference between two models on the same rows they are paired: each draw asks both of the same rows.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float

AT_ONCE = 250_000
"""Weights that are made at a time: 1 MB, which stays in the processor's cache."""


def draws(groups: Sequence[str], seed: int, n: int = 1000) -> Iterator[Float[np.ndarray, "rows draws"]]:
    """How often each row is in each of `n` draws of as many groups as there are, with all rows of each; in blocks of draws."""
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    k, at_once = int(numbers.max()) + 1, max(1, AT_ONCE // len(numbers))
    rng = np.random.default_rng(seed)
    for first in range(0, n, at_once):
        block = range(first, min(first + at_once, n))
        counts = [np.bincount(rng.integers(k, size=k), minlength=k) for _ in block]
        yield np.stack(counts, axis=1).astype("float32")[numbers]


def central(values: Float[np.ndarray, " draws"]) -> list[float] | None:
    """[low, high] of the central 95 % of the values but for NaN (Efron and Tibshirani 1993, chapter 13); None without one."""
    defined = values[~np.isnan(values)]
    ends = [(1 - 0.95) / 2, (1 + 0.95) / 2]
    return [float(bound) for bound in np.quantile(defined, ends)] if len(defined) else None
