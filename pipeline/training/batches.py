"""Which images make up the batches of an epoch, where it is not any: of one view, of few classes with several images each, of
classes drawn alike, of classes that are easily confused. Pure functions of labels and of a generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int64

Rows = Int64[np.ndarray, " images"]
Labels = Int64[np.ndarray, " images"]


def whole(rows: Rows, size: int) -> Iterator[Rows]:
    """Batches of `size` in this order; what is left over is dropped."""
    yield from (rows[start : start + size] for start in range(0, len(rows) - size + 1, size))


def of_one_view(views: Labels, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Batches of one view each (-1, a view that is not known, is one as well), in a shuffled order; partial ones are dropped."""
    batches = [b for view in np.unique(views) for b in whole(rng.permutation(np.flatnonzero(views == view)), size)]
    yield from (batches[i] for i in rng.permutation(len(batches)))


def of_classes(labels: Labels, n_classes: int, n_images: int, rng: np.random.Generator) -> Iterator[Rows]:
    """Batches of `n_classes` classes with `n_images` images of each.

    Classes are cut into sets of `n_images`; one that does not fill a set lends images twice. A class stands in a batch once.
    When fewer than `n_classes` classes have sets left these are dropped, others in each epoch: of classes of one size at most
    those that fill no batch, of a long tail most images of the long classes. So many classes at least there must be, or there
    is no batch.
    """
    left = {label: _sets(np.flatnonzero(labels == label), n_images, rng) for label in np.unique(labels).tolist()}
    while len(left) >= n_classes:
        # Classes with the most sets left come first, so that those of long classes do not stay over; ties as they are drawn.
        order = [list(left)[i] for i in rng.permutation(len(left))]
        chosen = sorted(order, key=lambda label: -len(left[label]))[:n_classes]
        yield np.concatenate([left[label].pop() for label in chosen])
        left = {label: sets for label, sets in left.items() if sets}


def balanced(labels: Labels, size: int, power: float, rng: np.random.Generator) -> Iterator[Rows]:
    """As many batches as the images fill, of images drawn with replacement: a class of n images in proportion to n^`power`
    (1: as they come, 0: all classes alike, 1/2 between: Mahajan et al. 2018, arXiv 1805.00932)."""
    codes, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    weights = (counts ** (power - 1.0))[codes]
    yield from whole(rng.choice(len(labels), len(labels), p=weights / weights.sum()), size)


def of_buckets(buckets: Labels, size: int, rng: np.random.Generator) -> Iterator[Rows]:
    """As many batches as the images fill, each with equal shares of every bucket (few, medium and many images of a class), whose
    images are drawn in an order that begins again when it is through."""
    present = np.unique(buckets)
    streams = [_endless(np.flatnonzero(buckets == bucket), rng) for bucket in present.tolist()]
    for _ in range(len(buckets) // size):
        order = rng.permutation(len(streams))  # which of them takes what does not divide
        shares = [size // len(streams) + (place < size % len(streams)) for place in range(len(streams))]
        yield np.array([next(streams[i]) for i, n in zip(order, shares, strict=True) for _ in range(n)], dtype=np.int64)


def of_neighbours(
    labels: Labels, likeness: Float[np.ndarray, "classes classes"], size: int, per_class: int, rng: np.random.Generator
) -> Iterator[Rows]:
    """As many batches as the images fill, each of a class that is drawn and of those likest to it (by a tree or by embeddings),
    `per_class` images of each: what tells them apart is the hard part (Robinson et al. 2021, arXiv 2010.04592)."""
    streams = {label: _endless(np.flatnonzero(labels == label), rng) for label in np.unique(labels).tolist()}
    present = np.array(list(streams))
    for _ in range(len(labels) // size):
        anchor = present[rng.integers(len(present))]
        near = present[np.argsort(-likeness[anchor, present], kind="stable")]
        near = np.concatenate([[anchor], near[near != anchor]])
        wanted = np.resize(near[: -(-size // per_class)], -(-size // per_class))
        yield np.array([next(streams[label]) for label in wanted.tolist() for _ in range(per_class)], dtype=np.int64)[:size]


def _sets(rows: Rows, size: int, rng: np.random.Generator) -> list[Int64[np.ndarray, " set"]]:
    """Rows in sets of `size`, the last one filled up with some that stand in others."""
    rows = rng.permutation(rows)
    missing = -len(rows) % size
    more: Sequence[int] = rng.choice(rows, missing, replace=missing > len(rows)).tolist() if missing else []
    filled = np.concatenate([rows, np.array(more, dtype=np.int64)])
    return np.split(filled, len(filled) // size)


def _endless(rows: Rows, rng: np.random.Generator) -> Iterator[int]:
    while True:
        yield from rng.permutation(rows).tolist()
