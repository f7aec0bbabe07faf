"""What a page is made of: sections of sentences, tables, galleries and charts. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.metrics.charts.chart import Chart

UNKNOWN = "–"
MOST_ROWS = 2000
"""Of a table: a page of more opens slowly, and nobody reads on."""


@dataclass(frozen=True)
class Cell:
    """What a table shows in a place, and what sorts it there."""

    text: str
    value: float | str
    """Numbers sort by size, and before texts."""
    picture: str = ""
    """A small image above the text, as `data/thumbnails.py` writes it for pages."""
    link: str = ""
    """Where the text leads, a place on this machine."""

    @property
    def is_number(self) -> bool:
        return not isinstance(self.value, str)


@dataclass(frozen=True)
class Table:
    """Rows under a header, sorted by whoever reads them."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @classmethod
    def of_first(cls, caption: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], all_in: str) -> Table:
        """Of very many rows the first; `all_in`: what has all of them."""
        more = f"; the first {MOST_ROWS:,} of {len(rows):,}, all are in {all_in}" if len(rows) > MOST_ROWS else ""
        return cls(caption + more, header, rows[:MOST_ROWS])

    def without_empty(self) -> Table:
        """The same without columns of which nothing is known."""
        kept = [i for i in range(len(self.header)) if not self.rows or any(row[i].text not in ("", UNKNOWN) for row in self.rows)]
        return Table(self.caption, [self.header[i] for i in kept], [[row[i] for i in kept] for row in self.rows])

    def numeric(self, column: int) -> bool:
        """Whether a column is of numbers, which stand on the right."""
        cells = [row[column] for row in self.rows if row[column].text not in ("", UNKNOWN)]
        return bool(cells) and all(cell.is_number for cell in cells)


@dataclass(frozen=True)
class Gallery:
    """Small images side by side."""

    caption: str
    cells: Sequence[Cell]
    wide: bool = False
    """Whether each takes the width of the page."""


@dataclass(frozen=True)
class Section:
    """A part of a page, under a title."""

    name: str
    """Of its place in the page, as `slug` makes it."""
    title: str
    words: Sequence[str] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    galleries: Sequence[Gallery] = ()

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.words or self.tables or self.charts or self.galleries)


def text(value: object) -> Cell:
    return Cell(str(value), str(value))


def number(value: float | None, form: str = ".3f", more: str = "") -> Cell:
    """A number, or that it is not known, which sorts last."""
    return Cell(UNKNOWN, "") if value is None else Cell(f"{value:{form}}{more}", float(value))
