"""How good Gaussian forecasts are: CRPS, PIT, coverage, sharpness, and the challenge's `rms`. Pure functions on arrays."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

MIN_SIGMA = 1e-3
"""The challenge rounds to four decimals: a smaller sigma could become 0, whose density is infinite."""
LEVELS = (0.5, 0.8, 0.95)
"""Central intervals whose coverage is reported."""


def crps(truth: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> Float[np.ndarray, "*groups"]:
    """Continuous ranked probability score of N(mu, sigma²) for each `truth`, in its units; lower is better.

    Gneiting and Raftery 2007, "Strictly proper scoring rules", equation 21. `sigma` must be above 0.
    """
    from scipy.special import ndtr  # not for plans

    sigma = np.asarray(sigma, "float64")
    z = (np.asarray(truth, "float64") - mu) / sigma
    density = np.exp(-np.square(z) / 2) / np.sqrt(2 * np.pi)
    return np.asarray(sigma * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / np.sqrt(np.pi)))


def pit(truth: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> Float[np.ndarray, "*groups"]:
    """Probability integral transform: the forecast's probability of a value below the true one; uniform if calibrated."""
    from scipy.special import ndtr  # not for plans

    return np.asarray(ndtr((np.asarray(truth, "float64") - mu) / np.asarray(sigma, "float64")))


def pit_histogram(values: Float[np.ndarray, " groups"]) -> list[int]:
    """How many of the PIT values lie in each of ten equal bins from 0 to 1: flat if calibrated, ∪ if too sure."""
    return [int(count) for count in np.histogram(values, bins=10, range=(0, 1))[0]]


def coverage(truth: ArrayLike, mu: ArrayLike, sigma: ArrayLike, level: float) -> float | None:
    """Share of `truth` [N] within the central interval that should hold `level` of it; None of none."""
    from scipy.special import ndtri  # not for plans

    inside = np.abs(np.asarray(truth, "float64") - mu) <= ndtri((1 + level) / 2) * np.asarray(sigma, "float64")
    return float(inside.mean()) if inside.size else None


def rms(scores: Sequence[float | None]) -> float | None:
    """The challenge's headline: root mean square of the mean CRPS of each target, in-domain and out-of-domain.

    None if one of them is not defined, or there are none.
    """
    defined = [score for score in scores if score is not None]
    if not defined or len(defined) < len(scores):
        return None
    return float(np.sqrt(np.mean(np.square(defined))))
