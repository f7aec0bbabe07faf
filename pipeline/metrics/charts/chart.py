"""A chart: a picture of a table, with the table, and in a sentence what it shows for whoever does not see it. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.metrics.charts.drawing import to_svg_file

if TYPE_CHECKING:
    import pandas as pd

Draw = Callable[[Any, Any], None]
"""(matplotlib's axes, the table): draw the one on the other."""
MOST_POINTS = 2000
"""Of a scatter: more are told apart by nobody, and make a page heavy."""


def slug(name: str) -> str:
    """What may stand in a file's name and in an id: a target or an experiment may be called anything."""
    return re.sub(r"[^\w.=-]+", "-", name)


@dataclass(frozen=True, eq=False)
class Chart:
    """A picture and what it is made of; equal to itself alone."""

    name: str
    """Of its file and its ids, as `slug` makes it."""
    title: str
    said: str
    """What is seen, in a sentence."""
    table: pd.DataFrame
    draw: Draw
    size: tuple[float, float] = (5.0, 3.6)
    """Width and height in inches."""

    def _repr_svg_(self) -> str:
        """As notebooks show it."""
        return to_svg_file(self)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", slug(self.name))


def sampled(table: pd.DataFrame, most: int = MOST_POINTS) -> tuple[pd.DataFrame, str]:
    """At most so many rows, the same each time, and what is to be said of that; empty where all are there."""
    if len(table) <= most:
        return table, ""
    return table.sample(most, random_state=0).sort_index(), f" {most:,} of {len(table):,} points, drawn at random."
