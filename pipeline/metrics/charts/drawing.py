"""Charts as SVG, in the ink of the page around them, and as PNG. Loads matplotlib, and no window system."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

INK = "#010203"
"""Stands for the colour of text while matplotlib draws: a page in the dark has another one."""
SERIES = ("#3b83c0", "#d9703a", "#2f9e77", "#b65fa5", "#a8862b", "#7b8794", "#c2455a", "#5b6fd6")
"""Of series, told apart by the colour-blind and on light and dark alike (after Okabe and Ito 2008)."""
KEPT = 512
"""Charts whose SVG is kept: a page and a folder of figures show the same."""
QUIET = "#8a94a0"
"""Of what is beside the point: lines of reference, the others."""
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "text.parse_math": False,  # a name may hold $
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}


class Drawn(Protocol):
    """What can be drawn: see `chart.Chart`."""

    def __hash__(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def table(self) -> Any: ...
    @property
    def draw(self) -> Callable[[Any, Any], None]: ...
    @property
    def size(self) -> tuple[float, float]: ...


_IDS = re.compile(r'\s+id="([^"]*)"')
_REFERENCES = re.compile(r"(url\(#|xlink:href=\"#)([^)\"]+)")
_AROUND = re.compile(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|<!--.*?-->", re.S)


@lru_cache(KEPT)
def to_svg(chart: Drawn, within: str = "") -> str:
    """An `<svg>` element that may stand among others in a page: its ids begin with `within` and the chart's name, its text is the
    page's. Raises whatever drawing does."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    with _drawn(chart) as figure:
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})  # (`savefig` draws all of it twice)
    text = _AROUND.sub("", buffer.getvalue()).replace(INK, "currentColor").strip()
    used = {place for _, place in _REFERENCES.findall(text)}
    text = _IDS.sub(lambda found: f' id="{within}{chart.name}-{found[1]}"' if found[1] in used else "", text)
    return _REFERENCES.sub(lambda found: f"{found[1]}{within}{chart.name}-{found[2]}", text)


def to_svg_file(chart: Drawn) -> str:
    """The same as a file of its own, in dark ink."""
    return to_svg(chart).replace("currentColor", "#1d2329")


def to_png(chart: Drawn) -> bytes:
    """On white, for a talk: 200 dots an inch."""
    with _drawn(chart) as figure:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def draw_heat(axes: Any, values: Any, **how: Any) -> None:
    """Cells [rows, columns] as rectangles, the first row on top, each around a whole number; an image would be pixels."""
    rows, columns = ([each - 0.5 for each in range(n + 1)] for n in values.shape)
    axes.pcolormesh(columns, rows, values, **how)
    axes.invert_yaxis()


def shortened(names: Sequence[str], most: int = 26) -> list[str]:
    """Names for an axis: of a long one its beginning and its end."""
    return [name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}" for name in names]


def labelled(name: object) -> str:
    """A name for a legend, which leaves out those that begin with an underscore."""
    return f"\u200b{name}" if str(name).startswith("_") else str(name)


def plain_ticks(axis: Any) -> None:
    """Numbers as they are: of logarithms matplotlib writes formulas, and texts are taken as they stand (`text.parse_math`)."""
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def draw_boxes(axes: Any, names: Any, values: Any, order: Sequence[str]) -> None:
    """Median, quartiles and range (to 1.5 times the quartiles' distance) of the values of each name in `order`, from the top."""
    shown = order[::-1]
    of = [values[names == name].to_numpy("float64") for name in shown]
    lines = {part: {"color": INK, "linewidth": 1} for part in ("boxprops", "whiskerprops", "capprops")}
    median = {"color": SERIES[1], "linewidth": 2}
    axes.boxplot(of, orientation="horizontal", tick_labels=shortened(shown), widths=0.6, sym="", medianprops=median, **lines)


@contextmanager
def _drawn(chart: Drawn) -> Iterator[Any]:
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": chart.name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of measuring alone: a page has fonts of its own
        figure = Figure(figsize=chart.size, layout="constrained")
        chart.draw(figure.subplots(), chart.table)
        yield figure
