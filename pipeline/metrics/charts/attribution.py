"""A chart of where in an image predicted figures come from: the image, and beside it, for each figure, what each method says.
Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.metrics.attribution import SHARE, Cells, Deletion
from pipeline.metrics.charts.chart import Chart
from pipeline.metrics.charts.drawing import INK, SERIES

if TYPE_CHECKING:
    import pandas as pd

RAISES, LOWERS = "#c2342b", "#2467ad"
"""Of cells that raise a figure, and that lower it."""
PANEL, NARROWEST = 2.9, 2.5
"""Inches of the longer side of an image; of the room that what is said of one takes in width."""
ABOVE, BETWEEN, TITLE, LEGEND = 0.58, 0.16, 0.3, 0.36
"""Inches over each row of images for what is said of them; between images; for what stands above and below all."""
STRONGEST = 0.85
"""Opacity where the number is largest."""
PALE = 0.45
"""How far the image below is brought to white."""

Attributions = Mapping[tuple[str, str], tuple[Cells, Deletion]]
"""(target, method) → numbers of cells, and whether they hold."""


@dataclass(frozen=True)
class Layout:
    """Where images stand, in inches, the origin at the left and below."""

    width: float
    """Of an image."""
    height: float
    rows: int
    columns: int

    @property
    def room(self) -> float:
        """Width that an image and what is said of it take."""
        return max(self.width, NARROWEST) + BETWEEN

    @property
    def size(self) -> tuple[float, float]:
        return BETWEEN + self.columns * self.room, TITLE + LEGEND + self.rows * (self.height + ABOVE)

    def box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """Left, right, lower and upper edge of an image."""
        left, lower = BETWEEN + column * self.room, LEGEND + (self.rows - 1 - row) * (self.height + ABOVE)
        return left, left + self.width, lower, lower + self.height


def attribution_chart(name: str, title: str, image: UInt8[np.ndarray, "h w 3"], found: Attributions) -> Chart:
    """`image` as it is drawn; its cells lie over the whole of it."""
    targets, methods = (list(dict.fromkeys(key[place] for key in found)) for place in (0, 1))
    height, width = (PANEL * side / max(image.shape[:2]) for side in image.shape[:2])
    layout = Layout(width, height, len(targets), 1 + len(methods))
    said = " ".join(f"{target}, {method}: {in_words(check)}" for (target, method), (_, check) in found.items())
    places = {key: (targets.index(key[0]), 1 + methods.index(key[1])) for key in found}
    draw = partial(_draw, title=title, image=image, found=found, places=places, layout=layout)
    return Chart(name, title, said, as_table(found), draw, layout.size)


def as_table(found: Attributions) -> pd.DataFrame:
    """A row for each cell."""
    import pandas as pd

    each = [
        pd.DataFrame({"target": target, "method": method, "row": row, "column": column, "falls by": cells.ravel()})
        for (target, method), (cells, _) in found.items()
        for row, column in [np.indices(cells.shape).reshape(2, -1)]
    ]
    return pd.concat(each, ignore_index=True)


def in_words(check: Deletion) -> str:
    """What the check has found."""
    holds = "" if check.holds else " It does NOT hold."
    return f"{check.figure:.4g}; {_without_most(check)}; {_without_random(check)}.{holds}"


def _without_most(check: Deletion) -> str:
    how = "raise" if check.direction > 0 else "lower"
    return f"without the {100 * SHARE:.0f} % that {how} it most: {check.without_most:.4g}"


def _without_random(check: Deletion) -> str:
    return f"without {100 * SHARE:.0f} % at random: {float(np.mean(check.without_random)):.4g}"


# ---------------------------------------------------------------- drawing
def _draw(axes: Any, table: pd.DataFrame, title: str, image: Any, found: Attributions, places: Any, layout: Layout) -> None:
    """All in one system of inches."""
    width, height = layout.size
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    axes.text(BETWEEN, height - 0.06, title, va="top", fontsize=9, fontweight="bold")
    for row, target, figure in sorted({(places[key][0], key[0], check.figure) for key, (_, check) in found.items()}):
        _panel(axes, image, layout.box(row, 0), f"{target}\npredicted {figure:.4g}")
    for key, (row, column) in places.items():
        cells, check = found[key]
        _panel(axes, overlaid(image, cells), layout.box(row, column), _heading(key[1], cells, check), not check.holds)
    for left, colour, text in ((BETWEEN, RAISES, "raises the figure"), (BETWEEN + 1.3, LOWERS, "lowers it")):
        axes.text(left, LEGEND / 2, "■", color=colour, fontsize=9, va="center")
        axes.text(left + 0.15, LEGEND / 2, text, fontsize=7.5, va="center")
    axes.set_aspect("equal")


def _panel(axes: Any, image: Any, box: tuple[float, float, float, float], text: str, fails: bool = False) -> None:
    axes.imshow(image, extent=box, interpolation="bilinear")
    axes.text(box[0], box[3] + 0.05, text, va="bottom", fontsize=7.5, color=SERIES[1] if fails else INK, linespacing=1.25)


def _heading(method: str, cells: Cells, check: Deletion) -> str:
    largest = f"colours up to ±{float(np.abs(cells).max()):.2g}"
    return f"{method}: {largest if check.holds else 'does NOT hold'}\n{_without_most(check)}\n{_without_random(check)}"


def overlaid(image: UInt8[np.ndarray, "h w 3"], cells: Cells) -> Float[np.ndarray, "h w 3"]:
    """The image, pale and grey, under the colours of its cells, which run into one another; 0 … 1."""
    from PIL import Image

    grey = np.asarray(Image.fromarray(image).convert("L"), "float64")[..., None] / 255
    ground = grey + (1 - grey) * PALE
    largest = float(np.abs(cells).max()) or 1.0
    over = Image.fromarray((cells / largest).astype("float32")).resize(image.shape[1::-1], Image.Resampling.BICUBIC)
    values = np.asarray(over, "float64")[..., None].clip(-1, 1)
    colours = np.where(values > 0, _rgb(RAISES), _rgb(LOWERS))
    opacity = STRONGEST * np.abs(values)
    return np.asarray(ground * (1 - opacity) + colours * opacity)


def _rgb(colour: str) -> Float[np.ndarray, " 3"]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
