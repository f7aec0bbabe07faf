"""Which column of a table names the images, and in which folder these lie. Loads no torch, and opens no image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.cells import Column, short
from pipeline.data.known_columns import KNOWN, letters
from pipeline.data.sources.base import image_path
from pipeline.data.sources.near import hint
from pipeline.errors import UserError

Ask = Callable[[str, Sequence[str], str], str]
"""Of a question, what may be answered, and the option that says it: the answer. Raises UserError where nobody can be asked."""
LOOKED_AT, FIRST_LOOK = 50, 10
"""Cells by which it is known where images lie."""
MOST_FOLDERS = 500
"""Folders beside a table in which images are looked for."""
DEPTH = 2
MOST_OF = 0.9
"""Share of a column's images that one folder must hold, where others hold some too."""
SHOWN = 5
"""How deep they lie."""


@dataclass(frozen=True)
class Place:
    """A column of images, and where these are."""

    column: str
    folder: Path | None = None
    """What its cells are relative to; None: the table's own folder, or they lie in the table."""
    there: int = 0
    """Of the cells that were looked at, how many name a file."""
    looked_at: int = 0

    @property
    def is_usual(self) -> bool:
        return letters(self.column) in KNOWN["image"]


def find_place(columns: Sequence[Column], table: Path, images: Path | None, ask: Ask) -> Place:
    """Raises UserError, saying what was looked for where, if no column names images that are there."""
    could = [column for column in columns if column.what in ("image files", "names")]
    places = [place for column in could if (place := _of_column(column, table, images, ask))]
    there = [place for place in places if place.there]
    if there:
        return _chosen(there, ask)
    if lacking := [place for place in places if place.looked_at]:
        return min(lacking, key=lambda place: not place.is_usual)
    raise UserError(_why_none(columns, table, images))


def _chosen(places: list[Place], ask: Ask) -> Place:
    """The one by which most images are there; of several like it the one with a usual name."""
    most = max(place.there / place.looked_at for place in places)
    best = [place for place in places if place.there / place.looked_at == most]
    usual = [place for place in best if place.is_usual]
    best = usual if len(usual) == 1 else best
    if len(best) == 1:
        return best[0]
    names = [place.column for place in best]
    answer = ask(f"Several columns name images that are there: {', '.join(names)}. Which is it?", names, "--image-column COLUMN")
    return next(place for place in best if place.column == answer)


def _of_column(column: Column, table: Path, images: Path | None, ask: Ask) -> Place | None:
    """Where the images of a column are; `there` is 0 where it seems to name images, and none is anywhere; None if it does not."""
    cells = _some(list(column.counts))
    if n := _found(cells, table.parent if images is None else images):
        return Place(column.name, images, n, len(cells))
    if not _look_like_images(cells):
        return None
    numbers = {} if images else _numbers(cells, table.parent)
    if numbers and max(numbers.values()) < MOST_OF * len(cells):
        _refuse_parted(column, cells, table)
    best = [folder for folder, n in numbers.items() if n == max(numbers.values())]
    if len(best) > 1:
        names = [str(folder.relative_to(table.parent)) for folder in best]
        words = f"The images of the column {column.name} are in several folders: {', '.join(names)}. Which are meant?"
        best = [table.parent / ask(words, names, "--images FOLDER")]
    folder = best[0] if best else images
    return Place(column.name, folder, numbers.get(folder, 0) if folder else 0, len(cells))


def _refuse_parted(column: Column, cells: Sequence[str], table: Path) -> None:
    """Raises UserError where images lie in several folders that the table does not name."""
    found = {folder: n for folder in _folders_of(table.parent) if (n := _found(cells, folder))}
    if len(found) > 1:
        told = ", ".join(f"{folder.relative_to(table.parent)} ({n})" for folder, n in list(found.items())[:SHOWN])
        raise UserError(
            f"{table}: images of the column {column.name} lie in several folders: {told} of {len(cells)} that were looked for. "
            "Write the folder before each name (plate 1/0001.jpg), and name what these lie in by --images; or put them into one."
        )


def _numbers(cells: Sequence[str], folder: Path) -> dict[Path, int]:
    """The folders in a folder that hold some of the images, each with how many."""
    few = _some(list(cells), FIRST_LOOK)  # in each of hundreds of folders
    return {inside: _found(cells, inside) for inside in _folders_of(folder) if _found(few, inside)}


def _some(cells: list[str], n: int = LOOKED_AT) -> list[str]:
    """A few of the cells, from all over them."""
    return cells[:: max(1, len(cells) // n)][:n]


def _found(cells: Sequence[str], folder: Path) -> int:
    """How many of them name an image in a folder."""
    n = 0
    for cell in cells:
        with suppress(ValueError, OSError):
            n += _is_image(cell) and os.path.isfile(image_path(cell, folder))
    return n


def _is_image(cell: str) -> bool:
    """Whether it is called as images are, or has no ending at all."""
    from pipeline.data.opening import suffixes  # Pillow: not for the start of every command

    suffix = PurePosixPath(cell).suffix.lower()
    return suffix in suffixes() or not suffix


def _look_like_images(cells: Sequence[str]) -> bool:
    from pipeline.data.opening import suffixes

    named = [cell for cell in cells if PurePosixPath(cell.replace("\\", "/")).suffix.lower() in suffixes()]
    return bool(cells) and 2 * len(named) > len(cells)


def _folders_of(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The folders in a folder, those next to it first; hidden ones left out."""
    level = [folder]
    n = 0
    for _ in range(depth):
        inside: list[Path] = []
        for each in level:
            with suppress(OSError), os.scandir(each) as entries:
                inside += sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))
        yield from inside[: MOST_FOLDERS - n]
        n += len(inside)
        level = inside[:MOST_FOLDERS]


# ---------------------------------------------------------------- none
def _why_none(columns: Sequence[Column], table: Path, images: Path | None) -> str:
    """No column names images; what is near that is said."""
    there = f"there are: {', '.join(column.name for column in columns)}"
    if addresses := [column.name for column in columns if column.what == "addresses"]:
        return (
            f"{table}: the column {addresses[0]} holds addresses, and none names the files that their images are kept in. Add a "
            "column with a file name for each (0001.jpg, …), and run this again: `carabid fetch` downloads them."
        )
    if near := _without_ending(columns, table.parent if images is None else images):
        return f"{table}: {near}"
    where = images or f"{table.parent} and the folders in it"
    return (
        f"{table}: no column names images that lie in {where} ({there}). Name their folder by --images, or the column by "
        "--image-column."
    )


def _without_ending(columns: Sequence[Column], folder: Path) -> str:
    """What to say of a column whose cells name images but for the ends of their names; empty if there is none."""
    for column in columns:
        cells = _some(list(column.counts))
        for place in (folder, *_folders_of(folder)):
            words = next((words for cell in cells[:3] if (words := hint(cell, place / cell)) and "did you mean" in words), "")
            if words:
                what = f"the column {column.name} holds {short(cells[0])!r}, which is no file in {place}"
                return f"{what}{words} Write whole names."
    return ""
