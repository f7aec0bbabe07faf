"""How embeddings rank a gallery by cosine: average precision, precision and recall of each query, and what chance gets. Pure
functions, in chunks: all cosines of queries and gallery never exist at once.

Of equal cosines the wrong ones come first: a model that says the same of everything gains nothing, and no result depends on the
order of files. Cosines are computed in double precision and compared in single, so that equal embeddings are equal in any chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int
from numpy.typing import NDArray

Labels = Int[np.ndarray, " queries"]
ItemLabels = Int[np.ndarray, " items"]
Cosines = NDArray[np.float32]
"""Of one query with what is relevant to it: of each another number."""
KS = (1, 5, 10)
"""Of precision@k and recall@k."""
DEEP = 50
"""Of AP@k: INQUIRE's (Vendrow et al. 2024, arXiv 2411.02537)."""
CELLS = 2**22
"""Cosines at a time: 50 MB while they are made."""
LEAST_ROWS = 128
"""Queries at a time that a gallery is cut for, so that it is not read from memory for a few."""


@dataclass(frozen=True)
class Ranked:
    """How each of Q queries ranked its gallery; NaN where nothing in it is relevant."""

    n_relevant: Int[np.ndarray, " queries"]
    ap: Float64[np.ndarray, " queries"]
    """Average precision over the whole ranking: the mean over what is relevant of the precision down to it."""
    ap_deep: Float64[np.ndarray, " queries"]
    """AP@50, divided by min(50, number that is relevant): as INQUIRE has it, what is missed counts."""
    precision: Float64[np.ndarray, "queries ks"]
    """Share of the first k that is relevant, for each of KS; of a gallery with fewer than k still of k."""
    recall: Float64[np.ndarray, "queries ks"]
    """Share of what is relevant that is among the first k."""


def unit(rows: Float[np.ndarray, "n width"], order: Int[np.ndarray, " n"] | None = None) -> Float32[np.ndarray, "n width"]:
    """Each row divided by its length, in another order where there is one; a row of zeros stays one, and has the cosine 0 with
    all. Nothing is held beside the rows and the result."""
    found = np.empty(rows.shape, "float32")
    for first in range(0, len(rows), LEAST_ROWS):
        some = slice(first, first + LEAST_ROWS)
        wide = rows[some if order is None else order[some]].astype("float64")
        lengths = np.linalg.norm(wide, axis=1, keepdims=True)
        found[some] = wide / np.where(lengths > 0, lengths, 1)
    return found


def cosines(
    queries: Float[np.ndarray, "queries width"], items: Float[np.ndarray, "items width"]
) -> Float32[np.ndarray, "queries items"]:
    """Of each query with each item, as a ranking compares them."""
    return np.asarray((unit(queries).astype("float64") @ unit(items).T.astype("float64")).astype("float32"))


def rank(
    queries: Float[np.ndarray, "queries width"],
    labels: Labels,
    gallery: Float[np.ndarray, "items width"],
    item_labels: ItemLabels,
    own: Int[np.ndarray, " queries"] | None = None,
    cells: int = CELLS,
) -> Ranked:
    """How each query ranks the gallery, of which what has its label is relevant.

    `own` is the place of each query in the gallery where it is in it: it is left out. `cells` bounds the cosines that are there
    at once (one query's relevant ones always are); it changes no result.
    """
    order, by_label = np.argsort(labels, kind="stable"), np.argsort(item_labels, kind="stable")
    items, item_labels = unit(gallery, by_label), item_labels[by_label]
    places = None if own is None else np.argsort(by_label)[own]
    n_rows, n_columns = _chunk(len(items), _most_relevant(labels, item_labels), cells)
    found = []
    for first in range(0, len(order), n_rows):
        rows = order[first : first + n_rows]
        some = unit(queries[rows]).astype("float64")
        relevant = _relevant(some, labels[rows], items, item_labels, None if places is None else places[rows])
        ahead = _count_ahead(some, labels[rows], items, item_labels, relevant, n_columns)
        found += [_measures(places) for places in ahead]
    return _ranked(np.array(found).reshape(len(order), -1)[np.argsort(order)])


def _chunk(n_items: int, n_relevant: int, cells: int) -> tuple[int, int]:
    """Queries and items at a time."""
    n_columns = max(1, min(n_items, cells // LEAST_ROWS))
    return max(1, cells // max(n_columns, n_relevant)), n_columns


def _most_relevant(labels: Labels, item_labels: ItemLabels) -> int:
    """How many items are relevant to a query at most."""
    if not len(labels) or not len(item_labels):
        return 0
    found = np.searchsorted(item_labels, labels, "right") - np.searchsorted(item_labels, labels, "left")
    return int(found.max())


def _relevant(
    queries: Float64[np.ndarray, "queries width"],
    labels: Labels,
    items: Float32[np.ndarray, "items width"],
    item_labels: ItemLabels,
    own: Int[np.ndarray, " queries"] | None,
) -> list[Cosines]:
    """The cosines of each query with what is relevant to it, falling. Both are in the order of their labels."""
    found: list[Cosines] = []
    for first, end in _runs(labels):
        low, high = np.searchsorted(item_labels, labels[first], "left"), np.searchsorted(item_labels, labels[first], "right")
        cosines = (queries[first:end] @ items[low:high].T.astype("float64")).astype("float32")
        if own is not None:
            cosines[np.arange(end - first), own[first:end] - low] = -np.inf
        cosines = -np.sort(-cosines, axis=1)
        found += list(cosines if own is None else cosines[:, :-1])
    return found


def _runs(labels: Labels) -> Iterator[tuple[int, int]]:
    """First and end of each run of equal labels."""
    starts = np.flatnonzero(np.r_[True, labels[1:] != labels[:-1]])
    yield from zip(starts.tolist(), [*starts[1:].tolist(), len(labels)], strict=True)


def _count_ahead(
    queries: Float64[np.ndarray, "queries width"],
    labels: Labels,
    items: Float32[np.ndarray, "items width"],
    item_labels: ItemLabels,
    relevant: Sequence[Cosines],
    n_columns: int,
) -> list[NDArray[np.int64]]:
    """The place, from 1, of what is relevant to each query: after all that is wrong and has no smaller cosine."""
    places = [np.arange(1, len(cosines) + 1) for cosines in relevant]
    for first in range(0, len(items), n_columns):
        some, of = items[first : first + n_columns], item_labels[first : first + n_columns]
        cosines = (queries @ some.T.astype("float64")).astype("float32")
        low, high = np.searchsorted(of, labels, "left"), np.searchsorted(of, labels, "right")
        for i, row in enumerate(cosines):
            if len(relevant[i]):
                row[low[i] : high[i]] = -np.inf
                places[i] += _n_above(row, relevant[i])
    return places


def _n_above(wrong: Float32[np.ndarray, " items"], relevant: Float32[np.ndarray, " relevant"]) -> Int[np.ndarray, " relevant"]:
    """How many of the wrong ones have at least each of the falling cosines of the relevant ones."""
    able = wrong[wrong >= relevant[-1]]
    n_below = np.searchsorted(relevant[::-1], able, "right")
    return np.asarray(np.bincount(n_below, minlength=len(relevant) + 1)[:0:-1].cumsum())


def _measures(places: Int[np.ndarray, " relevant"]) -> list[float]:
    """The fields of Ranked for one query, from the rising places of what is relevant to it."""
    n = len(places)
    if not n:
        return [0, *[np.nan] * (2 + 2 * len(KS))]
    precision = np.arange(1, n + 1) / places
    among = [int(np.searchsorted(places, k, "right")) for k in KS]
    deep = precision[places <= DEEP].sum() / min(DEEP, n)
    shares = [[found / k for found, k in zip(among, KS, strict=True)], [found / n for found in among]]
    return [n, float(precision.mean()), float(deep), *shares[0], *shares[1]]


def _ranked(measures: Float64[np.ndarray, "queries fields"]) -> Ranked:
    precision, recall = measures[:, 3 : 3 + len(KS)], measures[:, 3 + len(KS) :]
    return Ranked(measures[:, 0].astype("int64"), measures[:, 1], measures[:, 2], precision, recall)


# ---------------------------------------------------------------- chance
def by_chance(n_relevant: Int[np.ndarray, " queries"], n_items: int) -> Ranked:
    """What embeddings that know nothing get on average: each order of a gallery of `n_items` is as probable as any other.

    At place r is something relevant in a share R/G of the orders, and then (r − 1)(R − 1)/(G − 1) of those before it are.
    """
    n, n_items = n_relevant.astype("float64")[:, None], max(1, n_items)  # (of no gallery nothing is relevant)
    places = np.arange(1, n_items + 1)
    inverse = (1 / places)[None]
    others = np.divide(n - 1, n_items - 1) if n_items > 1 else np.zeros_like(n)
    known = np.where(n > 0, 1.0, np.nan)

    def down_to(k: int) -> NDArray[np.float64]:
        """The sum over the first k places of the precision there, where there is something relevant [Q, 1]."""
        h = inverse[:, :k].sum()
        return np.asarray(n / n_items * (h + (min(k, n_items) - h) * others))

    ap, deep = down_to(n_items) / np.maximum(n, 1), down_to(DEEP) / np.clip(n, 1, DEEP)
    reached = np.minimum(KS, n_items)[None]
    precision, recall = n * reached / n_items / np.array(KS), np.broadcast_to(reached / n_items, (len(n), len(KS)))
    return Ranked(n_relevant, (ap * known)[:, 0], (deep * known)[:, 0], precision * known, recall * known)


# ---------------------------------------------------------------- some of the queries, and means
def some_of(ranked: Ranked, rows: Bool[np.ndarray, " queries"]) -> Ranked:
    """The same for some of the queries."""
    return Ranked(**{field.name: getattr(ranked, field.name)[rows] for field in fields(Ranked)})


def mean(values: Float64[np.ndarray, " queries"]) -> float | None:
    """The mean over the queries that are defined (micro); None without one."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def class_means(values: Float64[np.ndarray, " queries"], labels: Labels, n: int) -> Float64[np.ndarray, " classes"]:
    """The mean of each of `n` classes over its queries that are defined; NaN without one."""
    known = ~np.isnan(values)
    sums = np.bincount(labels[known], values[known], minlength=n)
    counts = np.bincount(labels[known], minlength=n)
    return np.divide(sums, counts, out=np.full(n, np.nan), where=counts > 0)


def harmonic_mean(values: Mapping[str, float | None]) -> float | None:
    """Of those that are defined; 0 if one of them is 0, None without one."""
    defined = [value for value in values.values() if value is not None]
    if not defined:
        return None
    return len(defined) / sum(1 / value for value in defined) if min(defined) > 0 else 0.0


def neighbours(
    images: Float[np.ndarray, "n width"], labels: Int[np.ndarray, " n"], queries: int, nearest: int
) -> list[tuple[int, list[tuple[int, float]]]]:
    """Of at most so many images, the first of their classes, which are drawn at random and the same each time: the nearest other
    images, with their cosines, the first the nearest."""
    classes, firsts = np.unique(labels, return_index=True)
    drawn = np.sort(firsts[np.random.default_rng(0).permutation(len(classes))[:queries]])
    near = cosines(images[drawn], images)
    near[np.arange(len(drawn)), drawn] = -np.inf
    order = np.argsort(-near, axis=1, kind="stable")[:, : min(nearest, len(images) - 1)]
    return [
        (int(query), [(int(i), round(float(row[i]), 6)) for i in some])
        for query, row, some in zip(drawn, near, order, strict=True)
    ]
