"""What every source offers (`Source`), the image in a cell, and signatures of files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipeline.config.data import Data
from pipeline.config.identity import image_columns
from pipeline.data.sources.near import hint

if TYPE_CHECKING:
    import pandas as pd


UNUSUAL = re.compile(r"^[/.]|//|/\.|/$")
"""What `Path` may write otherwise."""


class Source(ABC):
    """A data set as it lies on disk: named splits of rows counted from 0, each row with plain cells and images."""

    def __init__(self, data: Data) -> None:
        self.data = data

    @abstractmethod
    def splits(self) -> list[str]:
        """Names of the splits there are."""

    @abstractmethod
    def columns(self, split: str) -> list[str]:
        """Names of all columns of a split, images included."""

    @abstractmethod
    def table(self, split: str) -> pd.DataFrame:
        """The plain columns of a split, one row per image, without reading any image; a path to an image is plain."""

    def rows(self, split: str) -> int:
        """How many rows a split has."""
        return len(self.table(split))

    @abstractmethod
    def image_names(self, split: str, column: str) -> list[str | None]:
        """The path or file name that the data give each image of a split; None where there is none."""

    @abstractmethod
    def paths(self, split: str, column: str) -> list[str | None] | None:
        """The path of each image's file, as it stands in the table; None where images lie in the tables themselves."""

    @abstractmethod
    def folder(self) -> Path | None:
        """The folder that relative paths of images are relative to; None if there is none."""

    def file(self, split: str, row: int, column: str) -> Path | None:
        """The file of one image; None where it has none of its own, or nobody can tell which."""
        with suppress(ValueError):
            if (names := self.paths(split, column)) is not None and (name := names[row]):
                return image_path(name, self.folder()).resolve()
        return None

    @abstractmethod
    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        """One encoded image; safe from several threads. Raises OSError or ValueError where there is none."""

    @abstractmethod
    def where(self, split: str, row: int) -> str:
        """The place of a row in words for people: the file and the line or row."""

    def meaning(self, data: Data) -> Self:
        """The same rows and images, of which these data say what the columns mean."""
        twin = copy(self)
        twin.data = data
        return twin

    def is_here(self) -> bool:
        """Whether rows and images are on this machine, so that its files tell splits and signature, without a network."""
        return True

    def notes(self) -> list[str]:
        """What was taken for granted when the tables were read, in words."""
        return []

    @property
    @abstractmethod
    def kind(self) -> str:
        """What sort of source it is: signatures begin with it."""

    @abstractmethod
    def table_files(self) -> list[Path]:
        """The files that rows are read from."""

    def files(self) -> Iterable[str]:
        """Every file that rows and images are read from, whether it is there or not."""
        return [*map(str, self.table_files()), *self.image_files()]

    def image_files(self) -> Iterator[str]:
        """The image files that paths name, where they can be told."""
        for split in self.splits():
            for column in image_columns(self.data):
                if column in self.columns(split) and (names := self.paths(split, column)) is not None:
                    folder = str(base.resolve() if (base := self.folder()) else Path("/"))
                    yield from (_joined(folder, name) for name in names if name)

    def signature(self) -> str:
        """A cheap identity: equal while the files (path, size, time of change) stay as they are."""
        return signature_of(self.kind, self.files())


class TableSource(Source):
    """Files of tables, one or several per split, with images inside, or beside them in `base`: data.images, else their folder."""

    def __init__(self, data: Data, folder: Path, groups: dict[str, list[Path]]) -> None:
        super().__init__(data)
        self.base = Path(data.images).expanduser() if data.images else folder
        self.groups = groups

    @abstractmethod
    def plain(self, split: str) -> list[str]:
        """Names of the columns that hold text and numbers, paths of images among them."""

    def paths(self, split: str, column: str) -> list[str | None] | None:
        return self.image_names(split, column) if column in self.plain(split) else None

    def folder(self) -> Path | None:
        return self.base

    def table_files(self) -> list[Path]:
        return [path.resolve() for paths in self.groups.values() for path in paths]


def encoded(cell: Any, base: Path | None) -> bytes:
    """The image in a cell: bytes, {bytes, path}, or a path relative to `base`. Raises OSError, ValueError."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (bytes, bytearray, memoryview)) and len(cell):
        return bytes(cell)
    if isinstance(cell, str) and cell:
        return _read(cell, image_path(cell, base))
    raise ValueError("the cell is empty" if not cell else f"the cell holds {type(cell).__name__}, not an image")


def _read(cell: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}{hint(cell, path)}") from None


def absent(cells: Sequence[str | None], base: Path | None, folders: set[str]) -> list[tuple[int, str]]:
    """The rows whose image is not there, each with the reason. Each folder, all of which are added to `folders`, is listed once,
    and no image opened."""
    named = cache(_named)
    return [(row, why) for row, cell in enumerate(cells) if (why := _absence(cell, base, named, folders))]


def _absence(cell: str | None, base: Path | None, named: Callable[[str], frozenset[str]], folders: set[str]) -> str:
    if not cell:
        return "the cell is empty"
    try:
        folder, name = os.path.split(image_path(cell, base))
    except ValueError as error:
        return str(error)
    folders.add(folder)
    return "" if name in named(folder) else f"there is no file {os.path.join(folder, name)}"


def _named(folder: str) -> frozenset[str]:
    """The files in a folder; none where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


def image_path(cell: str, base: Path | None) -> Path:
    """The file that a cell names. Raises ValueError for a relative path without a folder that it is relative to, or a path that
    no file can have."""
    if "\0" in cell:
        raise ValueError("the path holds a NUL character")
    path = Path(cell)
    if path.is_absolute():
        return path
    if base is None:
        raise ValueError(f"{cell} is a relative path: set data.images to the folder it is relative to")
    return base / path


def _joined(folder: str, name: str) -> str:
    """`Path(folder) / name` as text, without making a path of what is one already: there may be a million."""
    return str(Path(folder) / name) if UNUSUAL.search(name) else f"{folder}/{name}"


def _stat(path: str) -> tuple[str, int, int]:
    """Path, size and time of change; a missing file is (path, -1, 0), because it is part of what the data are."""
    try:
        stat = os.stat(path)
        return path, stat.st_size, stat.st_mtime_ns
    except (OSError, ValueError):  # (a NUL, or a name that is no text)
        return path, -1, 0


def signature_of(kind: str, paths: Iterable[str]) -> str:
    """The kind of source with a hash of its files' paths, sizes and times of change, in the order given."""
    return f"{kind}:{hashlib.sha256(json.dumps([_stat(path) for path in paths]).encode()).hexdigest()}"
