"""What every source offers (`Source`), the image in a cell, and signatures of files."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.data import Data
from pipeline.config.identity import image_columns

if TYPE_CHECKING:
    import pandas as pd


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

    @abstractmethod
    def image_names(self, split: str, column: str) -> list[str | None]:
        """The path or file name that the data give each image of a split; None where there is none."""

    @abstractmethod
    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        """One encoded image; safe from several threads. Raises OSError or ValueError where there is none."""

    @abstractmethod
    def where(self, split: str, row: int) -> str:
        """The place of a row in words for people: the file and the line or row."""

    def is_here(self) -> bool:
        """Whether rows and images are on this machine, so that its files tell splits and signature, without a network."""
        return True

    @property
    @abstractmethod
    def kind(self) -> str:
        """What sort of source it is: signatures begin with it."""

    @abstractmethod
    def files(self) -> Iterable[Path]:
        """Every file that rows and images are read from, whether it is there or not."""

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

    def files(self) -> Iterable[Path]:
        return [*(path.resolve() for paths in self.groups.values() for path in paths), *self.image_files()]

    def image_files(self) -> Iterable[Path]:
        """The image files that paths name."""
        for split in self.splits():
            for column in image_columns(self.data):
                if column in self.plain(split):
                    yield from named_files(self.image_names(split, column), self.base)


def encoded(cell: Any, base: Path | None) -> bytes:
    """The image in a cell: bytes, {bytes, path}, or a path relative to `base`. Raises OSError, ValueError."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, (bytes, bytearray, memoryview)) and len(cell):
        return bytes(cell)
    if isinstance(cell, str) and cell:
        return image_path(cell, base).read_bytes()
    raise ValueError("the cell is empty" if not cell else f"the cell holds {type(cell).__name__}, not an image")


def image_path(cell: str, base: Path | None) -> Path:
    """The file that a cell names. Raises ValueError for a relative path without a folder that it is relative to."""
    path = Path(cell)
    if path.is_absolute():
        return path
    if base is None:
        raise ValueError(f"{cell} is a relative path: set data.images to the folder it is relative to")
    return base / path


def _stat(path: Path) -> tuple[str, int, int]:
    """Path, size and time of change; a missing file is (path, -1, 0), because it is part of what the data are."""
    try:
        stat = path.stat()
        return str(path), stat.st_size, stat.st_mtime_ns
    except OSError:
        return str(path), -1, 0


def signature_of(kind: str, paths: Iterable[Path]) -> str:
    """The kind of source with a hash of its files' paths, sizes and times of change, in the order given."""
    return f"{kind}:{hashlib.sha256(json.dumps([_stat(path) for path in paths]).encode()).hexdigest()}"


def named_files(names: Iterable[str | None], base: Path | None) -> Iterable[Path]:
    """The image files that a column of paths names, where they can be told."""
    folder = base.resolve() if base else Path("/")
    return (folder / name for name in names if name)
