"""What a model compares embeddings by, beside the cosine: functions of it, by the names that a configuration has for them
(`models/pairs/similarity.py` has the same for training)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float

Cosines = Float[np.ndarray, "*any"]
LEAST_SQUARED_SINE = 1e-12
LEAST_DISTANCE_TO_ONE = 1e-6


def geodesic(cosines: Cosines) -> Cosines:
    """s = 1 − 2θ/π of the angle θ = atan2(√max(1 − c², 1e-12), c)."""
    sines = np.sqrt(np.maximum(1 - np.square(cosines), LEAST_SQUARED_SINE))
    return 1 - np.arctan2(sines, cosines) * (2 / math.pi)


def geodesic_by_acos(cosines: Cosines) -> Cosines:
    """`geodesic` with θ = acos(c), c within ±(1 − 1e-6)."""
    most = 1 - LEAST_DISTANCE_TO_ONE
    return 1 - np.arccos(cosines.clip(-most, most)) * (2 / math.pi)


SIMILARITIES: Mapping[str, Callable[[Cosines], Cosines]] = {
    "cosine": lambda cosines: cosines, "geodesic": geodesic, "geodesic_acos": geodesic_by_acos,
}  # fmt: skip
