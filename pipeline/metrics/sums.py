"""Targets that add up (`data.sums`): a whole and its parts, and what is said of all of them brought to where sums hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

MOST_APART = 0.05
"""By what share of a whole what it is the sum of may differ from it, on average: rounding, and a few rows that are wrong."""


def apart(whole: Float[np.ndarray, " images"], parts: Float[np.ndarray, " images"]) -> str:
    """By how much a sum differs from what it is the sum of, in words; empty if that may be."""
    gap, size = float(np.abs(whole - parts).mean()), float(np.abs(whole).mean())
    return f"wrong by {gap:.3g} on average, of {size:.3g}" if gap > MOST_APART * size else ""


@dataclass(frozen=True)
class Sums:
    """Some targets, each a sum of those that are no sums themselves."""

    targets: tuple[str, ...]
    parts: tuple[str, ...]
    """Those that are no sums, in the order of the targets."""
    matrix: Float64[np.ndarray, "targets parts"]
    """Targets = matrix · parts: 1 where a part is in a target."""

    @classmethod
    def of(cls, targets: Sequence[str], sums: Mapping[str, Sequence[str]]) -> Sums:
        """Of `sums`, whole → the targets that it is the sum of, which form trees."""

        def leaves(target: str) -> Iterator[str]:
            for part in sums.get(target, ()):
                yield from leaves(part)
            if target not in sums:
                yield target

        parts = tuple(target for target in targets if target not in sums)
        within = [set(leaves(target)) for target in targets]
        matrix = np.array([[float(part in inside) for part in parts] for inside in within])
        return cls(tuple(targets), parts, matrix)

    @property
    def places(self) -> list[int]:
        """Of the parts among the targets."""
        return [self.targets.index(part) for part in self.parts]

    def reconciled(self, said: Float[np.ndarray, "images targets"]) -> Float64[np.ndarray, "images targets"]:
        """The nearest to what is said (least squares) in which all sums hold and nothing is below 0.

        Nonnegative least squares on the parts (Lawson and Hanson 1974, chapter 23). A projection onto the sums and then clipping
        would break the sums again.
        """
        from scipy.optimize import nnls  # not for plans

        parts = np.array([nnls(self.matrix, row)[0] for row in said.astype("float64")]).reshape(len(said), len(self.parts))
        return np.asarray(parts @ self.matrix.T)

    def apart(self, values: Float[np.ndarray, "images targets"]) -> Float64[np.ndarray, " images"]:
        """By how much each image's targets differ from what they are the sums of, at most."""
        parts = values[:, self.places].astype("float64")
        return np.asarray(np.abs(values - parts @ self.matrix.T).max(axis=1))
