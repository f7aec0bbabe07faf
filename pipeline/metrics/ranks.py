"""Probabilities of classes and of what lies above them: of a genus the sum over its species. Pure functions, in chunks: of ten
thousand images and 350,000 names no matrix is ever whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Float64, Int
from numpy.typing import NDArray

from pipeline.metrics.retrieval import CELLS, unit
from pipeline.metrics.similarity import SIMILARITIES

Codes = Int[np.ndarray, " classes"]
UNKNOWN = -1
"""The code of a class of which it is not known to what it belongs: it adds to nothing's probability."""


@dataclass(frozen=True)
class Level:
    """What is said of N images at one rank."""

    most_probable: Int[np.ndarray, " images"]
    p_true: Float64[np.ndarray, " images"]
    """The probability of what is true; NaN where that is not known."""


def probabilities(
    images: Float[np.ndarray, "images width"],
    labels: Int[np.ndarray, " images"],
    classes: Float[np.ndarray, "classes width"],
    parents: Mapping[str, Codes],
    scale: float,
    cells: int = CELLS,
    similarity: str = "cosine",
) -> tuple[Level, dict[str, Level]]:
    """What is said of each image among all classes, and of what these belong to at each rank of `parents`.

    Probabilities are the softmax over classes of `scale` times the cosines, or what `similarity` makes of these. `parents` has
    for each rank the number of what each class belongs to, UNKNOWN for none. `cells` bounds what is there at once, beside a sum
    for each image of a chunk and each genus; it changes no result but for rounding. What is below 1e-38 counts as 0.
    """
    towards, of = unit(classes), unit(images)
    sums = {rank: _membership(codes) for rank, codes in parents.items()}
    widest = max([1, *(matrix.shape[1] for matrix in sums.values())])
    n_columns = max(1, min(len(towards), cells // 128))
    n_rows = max(1, cells // max(n_columns, widest))
    parts = [
        _of_chunk(
            of[first : first + n_rows], labels[first : first + n_rows], towards, parents, sums, scale, n_columns, similarity
        )
        for first in range(0, len(of), n_rows)
    ]
    return _joined([said for said, _ in parts]), {rank: _joined([above[rank] for _, above in parts]) for rank in parents}


def _membership(codes: Codes) -> Any:
    """[classes, codes] with a 1 for what each class belongs to."""
    known = np.flatnonzero(codes != UNKNOWN)
    shape = (len(codes), int(codes.max(initial=0)) + 1)
    return scipy.sparse.csr_array((np.ones(len(known), "float32"), (known, codes[known])), shape=shape)


def _joined(parts: list[Level]) -> Level:
    return Level(np.concatenate([part.most_probable for part in parts]), np.concatenate([part.p_true for part in parts]))


def _of_chunk(
    images: Float32[np.ndarray, "images width"],
    labels: Int[np.ndarray, " images"],
    classes: Float32[np.ndarray, "classes width"],
    parents: Mapping[str, Codes],
    sums: Mapping[str, Any],
    scale: float,
    n_columns: int,
    similarity: str,
) -> tuple[Level, dict[str, Level]]:
    """The same for a few images: one pass over the classes. What has been summed is shrunk where a higher logit comes along
    (Milakov and Gimelshein 2018, arXiv 1805.02867)."""
    n, similar = len(images), SIMILARITIES[similarity]
    highest, total = np.full(n, -np.inf), np.zeros(n)
    best, within = np.zeros(n, "int64"), {rank: np.zeros((n, matrix.shape[1])) for rank, matrix in sums.items()}
    for first in range(0, len(classes), n_columns):
        logits = similar(images @ classes[first : first + n_columns].T) * np.float32(scale)
        top = logits.argmax(axis=1)
        higher = np.maximum(highest, logits[np.arange(n), top])
        best = np.where(logits[np.arange(n), top] > highest, first + top, best)
        shrink, highest = np.exp(highest - higher), higher
        raised = np.exp(logits - highest[:, None].astype("float32"))
        total = total * shrink + raised.sum(axis=1, dtype="float64")
        for rank, matrix in sums.items():
            within[rank] *= shrink[:, None]
            within[rank] += raised @ matrix[first : first + n_columns]
    own = np.exp(similar(np.einsum("ne,ne->n", images, classes[labels])) * np.float32(scale) - highest) / total
    return Level(best, own), {rank: _level(of / total[:, None], parents[rank][labels]) for rank, of in within.items()}


def _level(p: NDArray[np.float64], true: Codes) -> Level:
    p_true = np.where(true == UNKNOWN, np.nan, p[np.arange(len(p)), np.maximum(true, 0)])
    return Level(p.argmax(axis=1), p_true)


def rank_figures(
    said: Level, above: Mapping[str, Level], labels: Int[np.ndarray, " images"], parents: Mapping[str, Codes]
) -> dict[str, dict[str, float | None]]:
    """Of each rank above classes: the `level_figures` of what is said of it, and `wrong_within`, the share of images whose most
    probable class, as `said` has it, is wrong and belongs to the right one (right genus, wrong species). Images of which the rank
    is not known are left out."""
    found = {}
    for rank, codes in parents.items():
        known = codes[labels] != UNKNOWN
        within = (said.most_probable != labels) & (codes[said.most_probable] == codes[labels])
        share = float(within[known].mean()) if known.any() else None
        found[rank] = level_figures(above[rank], codes[labels]) | {"wrong_within": share}
    return found


def level_figures(level: Level, true: Codes) -> dict[str, float | None]:
    """`accuracy`, how often the most probable is right; `probability`, the mean of what is true. Images of which that is unknown
    are left out."""
    known = true != UNKNOWN
    if not known.any():
        return {"accuracy": None, "probability": None}
    right = level.most_probable[known] == true[known]
    return {"accuracy": float(right.mean()), "probability": float(level.p_true[known].mean())}
