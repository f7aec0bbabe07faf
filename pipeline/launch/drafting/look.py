"""A table, or a folder of images, looked at for the first time: its columns, and its own splits. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pipeline.config.data import MISSING, Columns, Data
from pipeline.config.split import FoldSplit
from pipeline.data.cells import Column
from pipeline.data.image_places import Ask, Place
from pipeline.data.known_columns import KNOWN, letters
from pipeline.data.missing import emptied
from pipeline.data.opening import suffixes
from pipeline.data.roles import Roles, Wishes, find_roles
from pipeline.data.sources import KINDS, open_source
from pipeline.data.sources.base import Source
from pipeline.data.sources.image_folder import SPECIES, FolderSource
from pipeline.data.sources.names import SPLIT_OF_WORD, split_of_file
from pipeline.data.table import labels
from pipeline.errors import UserError

IMAGE = "filename"
"""How the column of a folder's images is called."""
FEWEST, FOLDS = 3, 5
MOST = 8
"""Names that a message lists."""


@dataclass(frozen=True)
class Look:
    """What was seen."""

    path: Path
    columns: list[Column]
    splits: dict[str, int]
    """Its own splits → their rows, in the order of the rows."""
    notes: list[str]
    roles: Roles

    @property
    def n_rows(self) -> int:
        return sum(self.splits.values())

    @cached_property
    def own_splits(self) -> dict[str, str]:
        """What trains, validates and tests, by the names of its own splits; nothing if these do not name the first two."""
        found = {SPLIT_OF_WORD[name.lower()]: name for name in self.splits if name.lower() in SPLIT_OF_WORD}
        if not {"train", "validation"} <= found.keys():
            return {}
        if "test" in found and not self._has_truth(found["test"]):
            found["test"] = "none"
        return found

    def _has_truth(self, split: str) -> bool:
        """Whether what is to be predicted is known of a split."""
        first = 0
        for name, n in self.splits.items():
            if name == split:
                break
            first += n
        truth = {self.roles.label, *self.roles.targets}
        return any(cell for c in self.columns if c.name in truth for cell in c.cells[first : first + self.splits[split]])

    @property
    def folds(self) -> int:
        """Into how many folds its groups can be dealt."""
        return max(FEWEST, min(FOLDS, self.number("group") if "group" in self.roles.columns else self.n_rows))

    def number(self, key: str) -> int:
        """How many groups, domains, sites, … there are; 0 where no column is of them."""
        return next((len(column.counts) for column in self.columns if column.name == self.roles.columns.get(key)), 0)


def look(path: Path, wishes: Wishes, ask: Ask) -> Look:
    """What a table, or a folder of images in folders, holds. Raises UserError for what is neither, and as `find_roles` does."""
    path = find_table(path)
    data = Data(source=str(path), columns=Columns(image=IMAGE), label=SPECIES, split=FoldSplit(kind="folds"))
    source = _opened(data)
    columns, splits = _columns(source)
    if not columns or not columns[0].cells:
        raise UserError(f"{path}: the table has a header and no rows.")
    _check_header(path, columns)
    place = _place(source, columns, wishes, ask)
    known = replace(wishes, image=None) if place and place.column == wishes.image else wishes
    return Look(path, columns, splits, source.notes(), find_roles(columns, path, known, ask, place))


def _opened(data: Data) -> Source:
    try:
        return open_source(data)
    except UserError as error:
        raise UserError(str(error).removeprefix("data.source ")) from None


def find_table(path: Path) -> Path:
    """The table that is meant, or the folder itself where it holds images in folders, or a table for each split."""
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"{path}: there is no such table or folder (seen from {Path.cwd()})")
    if not path.is_dir():
        return path.resolve()
    tables = sorted(p for p in path.iterdir() if p.suffix.lower() in KINDS and p.suffix.lower() != ".txt" and p.is_file())
    tables = [table for table in tables if not table.name.startswith(".")]
    if len(tables) > 1 and not all(split_of_file(table, path) for table in tables):
        names = ", ".join(table.name for table in tables[:MOST])
        raise UserError(f"{path} holds several tables: {names}. Name the one that is meant.")
    if not tables:
        _check_folders(path)
    return (tables[0] if len(tables) == 1 else path).resolve()


def _check_folders(path: Path) -> None:
    """Raises UserError for images that lie in no folders: nothing says what they are of."""
    if any(p.suffix.lower() in suffixes() for p in path.iterdir() if p.is_file()) and not any(p.is_dir() for p in path.iterdir()):
        raise UserError(
            f"{path} holds images, and nothing that says what they are of: put those of each class into a folder of its own, or "
            "name a table."
        )


def _columns(source: Source) -> tuple[list[Column], dict[str, int]]:
    """The plain columns of all splits together, and the rows of each split."""
    cells: dict[str, list[str | None]] = {}
    sizes: Counter[str] = Counter()
    for split in source.splits():
        table = emptied(source.table(split), MISSING)
        for name in table:
            column = cells.setdefault(str(name), [])
            column += [None] * (sizes.total() - len(column)) + labels(table[name])
        sizes[split] = len(table)
    n = sizes.total()
    return [Column(name, tuple(column + [None] * (n - len(column)))) for name, column in cells.items()], dict(sizes)


def _check_header(path: Path, columns: Sequence[Column]) -> None:
    """Raises UserError where the first line holds no names: it would be lost, and nobody could name the columns."""
    for column in columns:
        if Path(column.name).suffix.lower() in suffixes() and Path(column.name).suffix:
            example = ",".join(f"column{i}" for i in range(1, len(columns) + 1))
            raise UserError(
                f"{path}, line 1: the first line names the columns, and {column.name!r} is no name but an image. Put a line with "
                f"names before it, such as: {example.replace('column1', 'filename', 1)}"
            )


def _place(source: Source, columns: Sequence[Column], wishes: Wishes, ask: Ask) -> Place | None:
    """Where images are, if it is not a column of files: in folders, or in the table itself, in columns that are not plain."""
    if isinstance(source, FolderSource):
        return Place(IMAGE)
    plain = {column.name for column in columns}
    inside = [name for name in source.columns(source.splits()[0]) if name not in plain]
    if not inside or wishes.image in plain:
        return None
    usual = [name for name in inside if letters(name) in KNOWN["image"]]
    best = [wishes.image] if wishes.image in inside else usual if len(usual) == 1 else inside
    if len(best) > 1:
        best = [ask(f"Several columns may hold the images: {', '.join(best)}. Which is it?", best, "--image-column COLUMN")]
    return Place(best[0])
