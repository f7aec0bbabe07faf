"""What the cells of a column are: names, numbers, dates, addresses. Loads no torch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

from pipeline.data.missing import NUMBER
from pipeline.data.sources.near import ADDRESS

What = Literal["nothing", "addresses", "image files", "checksums", "days", "other dates", "numbers", "decimal commas", "names"]
WHATS: dict[What, Callable[[str], object]] = {
    "addresses": ADDRESS.match,
    "image files": re.compile(r"(?i).+\.(jpe?g|jpe|png|tiff?|bmp|gif|webp|hei[cf]|jp2|avif|dng|cr2|nef|arw)").fullmatch,
    "checksums": re.compile(r"[0-9a-fA-F]{32}|[0-9a-fA-F]{40}|[0-9a-fA-F]{64}").fullmatch,
    "days": re.compile(r"\d{4}-\d{1,2}-\d{1,2}([T ].*)?|\d{4}/\d{1,2}/\d{1,2}( .*)?").fullmatch,
    "other dates": re.compile(
        r"\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d\d)([ T,].*)?|\d{4}:\d\d:\d\d .*|\d{4}\.\d\d?\.\d\d?"
        r"|\d{1,2}[. -]*[A-Za-z]{3,9}\.?[ -]*\d{4}.*|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}.*"
    ).fullmatch,
    "numbers": NUMBER.fullmatch,
    "decimal commas": re.compile(r"[+-]?\d+(,\d+)?").fullmatch,
}
"""What all cells of a column may be → whether one is."""
WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
ID = re.compile(r"(?i:^|[\W_])id$|(?:^|[\W_]|(?<=[a-z]))I[Dd]$")
"""How names of columns end that hold names of things: plot_id, plotID, and not hybrid."""
FEW = 20
"""Whole numbers of so many values may be classes."""
SHOWN = 4
"""Values that are told."""
LONGEST = 40
"""Characters of a value that are told."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    cells: tuple[str | None, ...]
    """One a row; None for what stands for nothing."""

    @cached_property
    def counts(self) -> Counter[str]:
        """How many rows each value has, the most frequent first."""
        found = Counter(cell for cell in self.cells if cell is not None)
        return Counter(dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))))

    @property
    def filled(self) -> int:
        """Rows in which it says something."""
        return self.counts.total()

    @cached_property
    def what(self) -> What:
        """What its cells are, all of them."""
        if not self.counts:
            return "nothing"
        return next((what for what, is_one in WHATS.items() if all(map(is_one, self.counts))), "names")

    @cached_property
    def is_whole(self) -> bool:
        """Whether all are whole numbers."""
        return self.what == "numbers" and all(map(WHOLE.fullmatch, self.counts))

    @property
    def has_few(self) -> bool:
        """Whether it has a few values that come again, as classes do."""
        return 2 <= len(self.counts) <= self.filled / 2

    @property
    def is_id(self) -> bool:
        """Whether it is called as what names things."""
        return ID.search(self.name) is not None

    @property
    def is_name_of_rows(self) -> bool:
        """Whether it numbers or names each row: nothing that could be predicted."""
        if len(self.counts) < self.filled or not self.filled:
            return False
        if self.what != "numbers":
            return True
        values = sorted(map(float, self.counts)) if self.is_whole else []
        return len(values) > 2 and (all(b - a == 1 for a, b in pairwise(values)) or self.is_id)

    @property
    def in_brief(self) -> str:
        """What it holds, in a word or two."""
        is_one_of_few = self.what == "names" or (self.is_whole and len(self.counts) <= FEW)
        return f"{len(self.counts)} {'whole numbers' if self.is_whole else 'names'}" if is_one_of_few else "numbers"

    @property
    def in_short(self) -> str:
        """Its values, in words."""
        if self.what == "numbers" and not (self.is_whole and len(self.counts) <= FEW):
            values = list(map(float, self.counts))
            return f"numbers, {min(values):g} … {max(values):g}"
        shown = ", ".join(f"{short(value)} ({n})" for value, n in list(self.counts.items())[:SHOWN])
        more = ", …" if len(self.counts) > SHOWN else ""
        return f"{self.in_brief if self.what == 'numbers' else f'{len(self.counts)} names'}: {shown}{more}"


def short(value: str) -> str:
    """On one line, and not too long for one."""
    text = " ".join(value.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
