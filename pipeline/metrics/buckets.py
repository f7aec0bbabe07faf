"""n-shot buckets: classes by how many images of them were trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from pipeline.config.evaluation import CUTS

BUCKETS = ("few", "medium", "many")


def bucket_of(n_train: Int64[np.ndarray, " classes"], cuts: Sequence[int] = CUTS) -> Int64[np.ndarray, " classes"]:
    """The bucket of each class, a place in BUCKETS, by its training images: few up to the first cut, many above the second; -1
    for a class that nothing was trained on, which is out of distribution and in no bucket."""
    found = np.searchsorted(np.array(cuts), n_train, side="left").astype("int64")
    return np.where(n_train > 0, found, -1)
