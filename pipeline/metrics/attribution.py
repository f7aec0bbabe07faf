"""Where in an image a prediction comes from: a number for each cell of a grid over the image, and whether such numbers hold.

A cell's number says by how much a predicted figure falls without the cell, as tried or as estimated: above 0 the cell raises the
figure, below 0 it lowers it. Pure functions on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

Cells = Float64[np.ndarray, "rows columns"]
Masks = Bool[np.ndarray, "masks rows columns"]
"""Each tells which cells are taken away."""
SHARE = 0.1
"""Of the cells, taken away to check."""
DRAWS = 10
"""Random shares that this is compared with."""


def grid_of(width: int, height: int, cells: int) -> tuple[int, int]:
    """Rows and columns of about square cells, so many along the longer side; a cell is a pixel at least."""
    longer = max(width, height)
    rows, columns = (min(max(round(cells * side / longer), 1), side) for side in (height, width))
    return rows, columns


def edges(n: int, side: int) -> Int[np.ndarray, " edges"]:
    """Where n parts of a side begin and end, in whole pixels [n + 1]."""
    return np.round(np.arange(n + 1) * side / n).astype(int)


def each_alone(rows: int, columns: int) -> Masks:
    """Every cell by itself, row by row."""
    n = rows * columns
    return np.eye(n, dtype=bool).reshape(n, rows, columns)


def spread(
    cells: Float[np.ndarray, "from_rows from_columns"], box: tuple[float, float, float, float], grid: tuple[int, int]
) -> Cells:
    """Cells of a part of an image (left, top, right, bottom, in fractions of its sides), shared out by area to the cells of a
    grid over the whole. What lies beyond the image is lost."""
    left, top, right, bottom = box
    down, across = _shares(cells.shape[0], top, bottom, grid[0]), _shares(cells.shape[1], left, right, grid[1])
    return np.asarray(down.T @ cells.astype("float64") @ across)


def _shares(n: int, begin: float, end: float, n_into: int) -> Float64[np.ndarray, "parts into"]:
    """Of n parts of a line from `begin` to `end`, the share of each that lies in each of `n_into` parts of the line 0 … 1."""
    parts, into = begin + np.arange(n + 1) * (end - begin) / n, np.arange(n_into + 1) / n_into
    low, high = np.maximum(parts[:-1, None], into[:-1]), np.minimum(parts[1:, None], into[1:])
    return np.asarray((high - low).clip(0) * n / (end - begin))


# ---------------------------------------------------------------- the check
def n_taken(n_cells: int) -> int:
    """How many cells are taken away to check; one at least."""
    return max(1, round(SHARE * n_cells))


def random_masks(rows: int, columns: int, seed: int = 0) -> Masks:
    """DRAWS random shares of the cells, the same each time."""
    rng, n = np.random.default_rng(seed), rows * columns
    masks = np.zeros((DRAWS, n), bool)
    for mask in masks:
        mask[rng.choice(n, n_taken(n), replace=False)] = True
    return masks.reshape(DRAWS, rows, columns)


def direction(cells: Cells) -> int:
    """1 where the cells that matter most raise the figure, −1 where they lower it."""
    ordered, n = np.sort(cells, axis=None), n_taken(cells.size)
    return 1 if ordered[-n:].sum() >= -ordered[:n].sum() else -1


def most(cells: Cells) -> Bool[np.ndarray, "rows columns"]:
    """The share of the cells that matter most, in their direction."""
    ordered = np.argsort(-direction(cells) * cells, axis=None, kind="stable")
    mask = np.zeros(cells.size, bool)
    mask[ordered[: n_taken(cells.size)]] = True
    return mask.reshape(cells.shape)


@dataclass(frozen=True)
class Deletion:
    """A figure of an image, of the image without the cells that are said to matter most, and without random ones (as in Samek et
    al. 2017, arXiv 1509.06321, at one share)."""

    figure: float
    without_most: float
    without_random: Float64[np.ndarray, " draws"]
    direction: int

    @property
    def change(self) -> float:
        """How far the figure moves without the cells that matter most, in the direction in which they are said to."""
        return self.direction * (self.figure - self.without_most)

    @property
    def by_chance(self) -> float:
        """The same without random cells, the mean over the draws."""
        return float(np.mean(self.direction * (self.figure - self.without_random)))

    @property
    def beaten(self) -> int:
        """Random draws without which the figure moves less."""
        return int((self.direction * (self.figure - self.without_random) < self.change).sum())

    @property
    def holds(self) -> bool:
        """Whether what is said to matter most matters more than what is drawn."""
        return self.change > self.by_chance
