"""The figures of retrieval that trials are compared by, made again from the row that each class has in groups.parquet: so that
classes can be drawn, a figure of each draw.

Of C classes: truth [C] is how many images each has, below 0 of a class that was not trained on (OOD); said [C, K] is the bucket
of its training count, then its means in the order of COLUMNS, 0 where one is not defined.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from pipeline.metrics.buckets import BUCKETS
from pipeline.metrics.figures import Figure
from pipeline.metrics.retrieval_report import DIRECTIONS, FIGURES, OF_CLASS, OF_FULL

Array = NDArray[np.float64]
Truth = Int[np.ndarray, " classes"]
Said = Float[np.ndarray, "classes columns"]
Weights = Float[np.ndarray, "classes draws"]
Weighted = Callable[[Truth, Said, Weights], Array]
COLUMNS = (*OF_CLASS, *OF_FULL)
MAPS = tuple(f"{way}_map" for way in DIRECTIONS)


@cache
def compared_figures() -> Mapping[str, Figure]:
    """By the names that results.json has: of partitions in both galleries, of buckets, and the composites."""
    found: dict[str, Weighted] = {}
    for part in ("id", "ood"):
        for prefix, columns in ((f"{part}.", OF_CLASS), (f"{part}.full.", OF_FULL)):
            found |= _of_block(prefix, part, columns)
    own = [_mean(name, part) for part in ("id", "ood") for name in MAPS]
    found |= {"composite": _joined(own, _harmonic), "comp_map": _joined(own, _nan_mean)}
    found |= {f"{bucket}.{name}": _mean(name, bucket) for bucket in BUCKETS for name in (*MAPS, "acc")}
    return {name: _figure(name, weighted) for name, weighted in found.items()}


def _figure(name: str, weighted: Weighted) -> Figure:
    return replace(FIGURES[name.rpartition(".")[2]], compute=None, weighted=weighted)


def _of_block(prefix: str, part: str, columns: Sequence[str]) -> Mapping[str, Weighted]:
    names = dict(zip(OF_CLASS, columns, strict=True))
    found = {name: _mean(column, part) for name, column in names.items()}
    found |= {f"{name}_macro": _mean(names[name], part, macro=True) for name in ("i2t_map", "i2i_map", "acc")}
    found["harmonic_map"] = _joined([_mean(names[name], part) for name in MAPS], _harmonic)
    return {f"{prefix}{name}": weighted for name, weighted in found.items()}


def _mean(column: str, part: str, macro: bool = False) -> Weighted:
    """The mean over the queries of the classes of a part; `macro`: over the classes."""

    def weighted(truth: Truth, said: Said, weights: Weights) -> Array:
        queries = _queries(column, np.abs(truth)) * _within(part, truth, said)
        queries = (queries > 0) if macro else queries
        above = (queries * said[:, 1 + COLUMNS.index(column)]) @ weights
        below = queries.astype("float64") @ weights
        return np.divide(above, below, out=np.full(len(below), np.nan), where=below > 0)

    return weighted


def _queries(column: str, n: Truth) -> Truth:
    """How many queries each class has: a text of t2i, images of i2t, and images of i2i where there is another one."""
    if "t2i" in column:
        return np.ones_like(n)
    return np.where(n > 1, n, 0) if "i2i" in column else n


def _within(part: str, truth: Truth, said: Said) -> NDArray[np.bool_]:
    if part == "ood":
        return truth < 0
    return (truth > 0) & ((said[:, 0] == BUCKETS.index(part)) if part in BUCKETS else True)


def _joined(parts: Sequence[Weighted], join: Callable[[Array], Array]) -> Weighted:
    """One of several figures, of those that are defined."""
    return lambda truth, said, weights: join(np.stack([part(truth, said, weights) for part in parts]))


def _nan_mean(values: Array) -> Array:
    known = ~np.isnan(values)
    return np.divide(np.where(known, values, 0).sum(0), known.sum(0), out=np.full(values.shape[1], np.nan), where=known.any(0))


def _harmonic(values: Array) -> Array:
    """Of [figures, draws]; 0 where one of them is 0."""
    inverse = np.divide(1.0, values, out=np.full(values.shape, np.inf), where=values != 0)
    return 1 / _nan_mean(np.where(np.isnan(values), np.nan, inverse))
