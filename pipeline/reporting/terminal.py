"""Tables for a terminal: names cut to what tells them apart, columns that fit its width. Loads no torch."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from shutil import get_terminal_size

HASH = re.compile(r"(?:^|-)([0-9a-f]{8})$")
BLOCKS = re.compile(r"(?:\w+\.)+(?=\w+=)")
"""What stands before a key in a trial's name: `model.encoder.` of `model.encoder.r=4`."""
LEAST = (12, 20)
"""Columns of a terminal that are left to names of experiments and of trials, if they are so long."""


def columns() -> int:
    """How wide a table may be: as the terminal, or as most are."""
    return get_terminal_size((100, 24)).columns


def short_names(names: Sequence[tuple[str, str]]) -> list[str]:
    """Of each (experiment, trial) what tells it from the others of its experiment, or, where there are none, from all others,
    with the hash that its folder ends in. One that stands alone keeps its name."""
    if len(names) < 2:
        return [name for _, name in names]
    split = [(experiment, *_split(name)) for experiment, name in names]
    sizes = Counter(experiment for experiment, *_ in split)
    within = Counter((experiment, part) for experiment, _, parts, _ in split for part in set(parts))
    everywhere = Counter(part for _, _, parts, _ in split for part in set(parts))

    def tells(experiment: str, part: str) -> bool:
        return within[experiment, part] < sizes[experiment] if sizes[experiment] > 1 else everywhere[part] == 1

    return [_join(before, [part for part in parts if tells(experiment, part)], end) for experiment, before, parts, end in split]


def _split(name: str) -> tuple[str, list[str], str]:
    """What stands before a name (`ensemble of 3: `), its parts, and the hash at its end."""
    before, _, rest = name.rpartition(": ")
    found = HASH.search(rest)
    return before, (rest[: found.start()] if found else rest).split(","), found[1] if found else ""


def _join(before: str, parts: Sequence[str], end: str) -> str:
    rest = "-".join(filter(None, (",".join(parts), end)))
    return ": ".join(filter(None, (before, rest))) or "–"


def cut(name: str, width: int) -> str:
    """A name that fits: where it is longer, its keys without the blocks that they are in, and if need be without its middle. It
    ends in its hash, which no other of its experiment has."""
    if len(name) > width:
        name = BLOCKS.sub("", name)
    end = name[-9:]
    return name if len(name) <= width else f"{name[: max(width - len(end) - 1, 0)]}…{end}"


def fit(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """How wide each column of a table is. Where two columns of names would have no room beside the others, these are broken at
    their spaces, and then the last ones are left out; names go on below, wherever that is."""
    numbers = [[row[i] for row in (header, *rows)] for i in range(2, len(header))]
    names = [max(len(row[i]) for row in (header, *rows)) for i in range(2)]
    wanted = sum(map(min, names, LEAST))
    others = [max(_longest(title, " "), *(_longest(cell, " (") for cell in cells)) for title, *cells in numbers]
    if _room(width, others) < wanted:
        others = [
            max(_longest(title, " "), *(_longest(cell.replace(" ±", "_±"), " ") for cell in cells)) for title, *cells in numbers
        ]
    while len(others) > 3 and _room(width, others) < wanted:
        others.pop()
    room = max(_room(width, others), min(sum(names), LEAST[1]))
    first = min(names[0], max(room - names[1], LEAST[0] * room // sum(LEAST)))
    return [first, min(names[1], room - first), *others]


def _longest(text: str, space: str) -> int:
    """The longest part of a text that is broken at these spaces alone."""
    return max(map(len, text.split(space)))


def _room(width: int, others: Sequence[int]) -> int:
    """What a table leaves to two columns of names; around each column there are three characters."""
    return width - sum(others) - 3 * (len(others) + 2) - 1


def squeeze(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """How wide each column of a table is whose columns are of any kind: as wide as it is, the widest ones less, down to what no
    number needs; where that is not enough the last ones are left out."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    while (excess := sum(widths) + 3 * len(widths) + 1 - width) > 0 and len(widths) > 1:
        widest = max(widths)
        if widest > LEAST[0]:
            widths[widths.index(widest)] = max(LEAST[0], widest - excess)
        else:
            widths.pop()
    return widths


def print_cells(header: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int] = ()) -> None:
    """A table with columns of these widths, or else as wide as the terminal, 160 columns in a file; what is too long for its
    column goes on below."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    shown = header[: len(widths) or None]
    table = Table(*(Column(title, overflow="fold", width=width) for title, width in zip_longest(shown, widths)))
    for row in rows:
        table.add_row(*map(escape, row[: len(shown)]))
    fitting = sum(widths) + 3 * len(widths) + 1 if widths else None if sys.stdout.isatty() else 160
    Console(width=fitting).print(table)
