"""Where data come from: a Hub data set, a `save_to_disk` folder, Parquet files or CSV files with images beside them.

A source knows split names, tables without images, and the encoded bytes of one image; it knows nothing of targets,
events or folds (`dataset.py`). This module loads no torch, and pandas, pyarrow and datasets only where they are needed.
"""

from __future__ import annotations

import bisect
import csv
import hashlib
import json
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Data
from pipeline.errors import UserError

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

SPLIT_COLUMN = "split"
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in a file's or folder's name that say which split it holds, as the Hub reads them."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
CACHED_BYTES = 1 << 30
"""Row groups of images are kept up to this size together, and never fewer than two: threads straddle a border."""


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

    @abstractmethod
    def signature(self) -> str:
        """A cheap identity: equal while the files (path, size, time of change) stay as they are."""


def open_source(data: Data) -> Source:
    """The source that `data.source` names. Raises UserError where nothing that can be read is there."""
    path = Path(data.source).expanduser()
    if path.is_dir():
        return _open_folder(data, path)
    if path.is_file():
        return _open_file(data, path)
    if HUB_NAME.fullmatch(data.source) and path.suffix not in (".csv", ".parquet"):
        return HubSource(data)
    raise UserError(
        f"data.source {data.source}: there is no such file or folder (seen from {Path.cwd()}), and it is not the name "
        "of a Hub data set (owner/name). Correct data.source."
    )


def _open_file(data: Data, path: Path) -> Source:
    if path.suffix == ".parquet":
        return ParquetSource(data, path.parent, {"train": [path]})
    if path.suffix == ".csv":
        return CsvSource(data, path.parent, {"train": [path]})
    raise UserError(f"data.source {path}: this is neither a .csv nor a .parquet file. Name one, or a folder of them.")


def _open_folder(data: Data, path: Path) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return DiskSource(data, path)
    parquet, tables = _visible(path, "**/*.parquet"), _visible(path, "*.csv")
    if parquet and tables:
        raise UserError(f"data.source {path}: the folder holds both Parquet and CSV files. Name the file to read.")
    if parquet:
        return ParquetSource(data, path, group_by_split(parquet, path))
    if tables:
        return CsvSource(data, path, group_by_split(tables, path))
    raise UserError(
        f"data.source {path}: the folder holds no data set: no dataset_dict.json (save_to_disk), no .parquet file and "
        "no .csv file. Name the folder that holds one."
    )


def _visible(folder: Path, pattern: str) -> list[Path]:
    """Files in `folder` by name; hidden ones (temporary files among them) are left out."""
    found = (p for p in folder.glob(pattern) if p.is_file())
    return sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


# ---------------------------------------------------------------- splits from file names
def split_of_file(path: Path, folder: Path) -> str | None:
    """The split that a file's name, else its folder's name, says it holds; None if neither does."""
    names = [path.stem, *reversed(path.relative_to(folder).parts[:-1])]
    for name in names:
        first = re.split(r"[^A-Za-z]", name, maxsplit=1)[0].lower()
        for split, words in SPLIT_WORDS.items():
            if first in words:
                return split
    return None


def group_by_split(paths: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by split. Names that say nothing are splits of their own; if no name says anything, all are one `train`."""
    named = [(split_of_file(path, folder), path) for path in sorted(paths)]
    unnamed = all(split is None for split, _ in named)
    groups: dict[str, list[Path]] = {}
    for split, path in named:
        groups.setdefault("train" if unnamed else split or _stem(path), []).append(path)
    return groups


def _stem(path: Path) -> str:
    """A file's name without its ending and its shard number (`extra-00000-of-00002.parquet` → `extra`)."""
    return re.sub(r"([-_.]?\d+(-of-\d+)?)$", "", path.stem) or path.stem


# ---------------------------------------------------------------- cells and signatures
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
    except OSError:
        return str(path), -1, 0
    return str(path), stat.st_size, stat.st_mtime_ns


def _signature(kind: str, paths: Iterable[Path]) -> str:
    lines = [_stat(path) for path in paths]
    return f"{kind}:{hashlib.sha256(json.dumps(lines).encode()).hexdigest()}"


def _named_files(names: Iterable[str | None], base: Path | None) -> Iterable[Path]:
    """The image files that a column of paths names, where they can be told."""
    folder = base.resolve() if base else Path("/")
    return (folder / name for name in names if name)


def _frame(table: pa.Table) -> pd.DataFrame:
    """Arrow to pandas; whole numbers stay whole where some are missing."""
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True, ignore_metadata=True)
    return frame


def _is_plain(kind: pa.DataType) -> bool:
    """Whether a column of this type is safe to load: neither bytes nor nested, either of which may hold images."""
    import pyarrow.types as types

    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return not (binary or types.is_nested(kind) or types.is_binary_view(kind))


# ---------------------------------------------------------------- CSV
@dataclass(frozen=True)
class _Record:
    """One row of a CSV file: its cells and the line it starts on, counted from 1 as an editor does."""

    file: Path
    line: int
    cells: list[str]


class CsvSource(Source):
    """CSV files: one with a `split` column, one without (all of it is `train`), or one file per split.

    Cells stay text. An image is a path relative to data.images, else to the CSV's folder.
    """

    def __init__(self, data: Data, folder: Path, groups: dict[str, list[Path]]) -> None:
        super().__init__(data)
        self.base = Path(data.images).expanduser() if data.images else folder
        self.groups = groups

    def splits(self) -> list[str]:
        return list(self._records)

    def columns(self, split: str) -> list[str]:
        return self._headers[split]

    def table(self, split: str) -> pd.DataFrame:
        import pandas as pd

        cells = [[cell if cell.strip() else None for cell in record.cells] for record in self._records[split]]
        return pd.DataFrame(cells, columns=self._headers[split], dtype=object)

    def image_names(self, split: str, column: str) -> list[str | None]:
        place = self._headers[split].index(column)
        return [record.cells[place].strip() or None for record in self._records[split]]

    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        return encoded(self._records[split][row].cells[self._headers[split].index(column)].strip(), self.base)

    def where(self, split: str, row: int) -> str:
        record = self._records[split][row]
        return f"{record.file}, line {record.line}"

    def signature(self) -> str:
        files = [path.resolve() for paths in self.groups.values() for path in paths]
        return _signature("csv", [*files, *self._image_files()])

    def _image_files(self) -> Iterable[Path]:
        for split, header in self._headers.items():
            if self.data.columns.image in header:
                yield from _named_files(self.image_names(split, self.data.columns.image), self.base)

    @cached_property
    def _loaded(self) -> tuple[dict[str, list[str]], dict[str, list[_Record]]]:
        headers: dict[str, list[str]] = {}
        records: dict[str, list[_Record]] = {}
        for name, files in self.groups.items():
            for file in files:
                header, rows = read_csv(file)
                if headers.setdefault(name, header) != header:
                    raise UserError(f"{file}: its columns differ from those of {files[0]}, a part of the same split.")
                records.setdefault(name, []).extend(rows)
        only = next(iter(headers))
        if len(headers) == 1 and SPLIT_COLUMN in headers[only]:
            records = _by_split_column(headers[only], records[only])
            headers = dict.fromkeys(records, headers[only])
        return headers, records

    @property
    def _headers(self) -> dict[str, list[str]]:
        return self._loaded[0]

    @property
    def _records(self) -> dict[str, list[_Record]]:
        return self._loaded[1]


def read_csv(path: Path) -> tuple[list[str], list[_Record]]:
    """Header and rows of a CSV file (UTF-8, commas); empty lines are left out. Raises UserError naming the line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = _csv_records(path, csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the file cannot be read as UTF-8 text: {error}") from error
    if not records:
        raise UserError(f"{path}: the file is empty; its first line should name the columns.")
    header = [name.strip() for name in records[0].cells]
    _check_header(path, header)
    for record in records[1:]:
        if len(record.cells) != len(header):
            raise UserError(
                f"{path}, line {record.line}: {len(record.cells)} cells, but the header names {len(header)} columns. "
                "Quote cells that hold a comma."
            )
    return header, records[1:]


def _csv_records(path: Path, reader: Any) -> list[_Record]:
    records: list[_Record] = []
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}, line {line}: this is not CSV: {error}") from error
        if cells is None:
            return records
        if len(cells) > 1 or any(cell.strip() for cell in cells):
            records.append(_Record(path, line, cells))
        line = reader.line_num + 1


def _check_header(path: Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}, line 1: the column {twice[0]!r} stands there twice. Rename one of them.")


def _by_split_column(header: list[str], records: list[_Record]) -> dict[str, list[_Record]]:
    place = header.index(SPLIT_COLUMN)
    splits: dict[str, list[_Record]] = {}
    for record in records:
        name = record.cells[place].strip()
        if not name:
            raise UserError(f"{record.file}, line {record.line}: column {SPLIT_COLUMN} is empty. Name the row's split.")
        splits.setdefault(name, []).append(record)
    return splits


# ---------------------------------------------------------------- Parquet
@dataclass(frozen=True)
class _ParquetSplit:
    """The files of one split; `starts` [groups + 1]: the rows at which their row groups begin, then the row count."""

    paths: list[Path]
    columns: list[str]
    plain: list[str]
    groups: list[tuple[Path, int]]
    starts: list[int]


class ParquetSource(Source):
    """Parquet files, one or several per split; images inside as bytes or {bytes, path}, or as paths."""

    def __init__(self, data: Data, folder: Path, groups: dict[str, list[Path]]) -> None:
        super().__init__(data)
        self.base = Path(data.images).expanduser() if data.images else folder
        self.groups = groups
        self._cache = _RowGroups()

    def splits(self) -> list[str]:
        return list(self.groups)

    def columns(self, split: str) -> list[str]:
        return self._splits[split].columns

    def table(self, split: str) -> pd.DataFrame:
        return _frame(self._read(split, self._splits[split].plain))

    def image_names(self, split: str, column: str) -> list[str | None]:
        schema = _parquet_file(self._splits[split].paths[0]).schema_arrow
        return _names_in(schema.field(column).type, lambda leaf: self._read(split, [leaf]), column, self._n_rows(split))

    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        (path, group), place = self._locate(split, row)
        return encoded(self._cache.column(path, group, column)[place].as_py(), self.base)

    def where(self, split: str, row: int) -> str:
        (path, _), _ = self._locate(split, row)
        return f"{path}, split {split}, row {row} (counted from 0)"

    def signature(self) -> str:
        files = [path.resolve() for paths in self.groups.values() for path in paths]
        return _signature("parquet", [*files, *self._image_files()])

    def _image_files(self) -> Iterable[Path]:
        for split, files in self._splits.items():
            if self.data.columns.image in files.plain:
                yield from _named_files(self.image_names(split, self.data.columns.image), self.base)

    def _n_rows(self, split: str) -> int:
        return self._splits[split].starts[-1]

    def _locate(self, split: str, row: int) -> tuple[tuple[Path, int], int]:
        """File and row group of a row, and its place within them."""
        files = self._splits[split]
        if not 0 <= row < files.starts[-1]:
            raise IndexError(f"split {split} has {files.starts[-1]} rows, there is no row {row}")
        group = bisect.bisect_right(files.starts, row) - 1
        return files.groups[group], row - files.starts[group]

    def _read(self, split: str, columns: list[str]) -> pa.Table:
        import pyarrow as pa

        parts = [_parquet_file(path).read(columns=columns) for path in self._splits[split].paths]
        return pa.concat_tables(parts, promote_options="permissive")

    @cached_property
    def _splits(self) -> dict[str, _ParquetSplit]:
        return {split: _parquet_split(paths) for split, paths in self.groups.items()}


def _parquet_file(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: this is not a whole Parquet file: {error}. Fetch or write it again.") from error


def _parquet_split(paths: list[Path]) -> _ParquetSplit:
    columns: list[str] = []
    plain: list[str] = []
    groups: list[tuple[Path, int]] = []
    starts = [0]
    for path in paths:
        file = _parquet_file(path)
        names = file.schema_arrow.names
        if columns and set(names) != set(columns):
            odd = sorted(set(names) ^ set(columns))
            raise UserError(f"{path}: its columns differ from those of {paths[0]}, the same split: {', '.join(odd)}.")
        columns = columns or names
        plain = plain or [field.name for field in file.schema_arrow if _is_plain(field.type)]
        for group in range(file.num_row_groups):
            groups.append((path, group))
            starts.append(starts[-1] + file.metadata.row_group(group).num_rows)
    return _ParquetSplit(paths, columns, plain, groups, starts)


class _RowGroups:
    """A few columns of row groups in memory, shared by threads: who comes first reads, the others wait for it.

    Extraction walks through the rows in order, so each row group is read and decompressed once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[Path, int, str], Future[pa.ChunkedArray]] = OrderedDict()

    def column(self, path: Path, group: int, column: str) -> pa.ChunkedArray:
        """One column of one row group."""
        key = (path, group, column)
        with self._lock:
            waiting = self._held.get(key)
            mine: Future[pa.ChunkedArray] = Future()
            if waiting is None:
                self._held[key] = mine
            self._held.move_to_end(key)
        return waiting.result() if waiting is not None else self._read(key, mine)

    def _read(self, key: tuple[Path, int, str], future: Future[pa.ChunkedArray]) -> pa.ChunkedArray:
        path, group, column = key
        try:
            values = _parquet_file(path).read_row_group(group, columns=[column]).column(0)
        except BaseException as error:
            with self._lock:
                self._held.pop(key, None)
            future.set_exception(error)
            raise
        future.set_result(values)
        with self._lock:
            self._drop_oldest()
        return values

    def _drop_oldest(self) -> None:
        sizes = {key: future.result().nbytes for key, future in self._held.items() if future.done()}
        for key in list(sizes)[:-2]:
            if sum(sizes.values()) <= CACHED_BYTES:
                return
            del self._held[key], sizes[key]


def _names_in(kind: pa.DataType, read: Callable[[str], pa.Table], column: str, n: int) -> list[str | None]:
    """The image names in a column of this type: the column itself if it is text, the `path` beside bytes, else none."""
    import pyarrow.types as types

    if types.is_string(kind) or types.is_large_string(kind):
        return [name or None for name in read(column).column(0).to_pylist()]
    if types.is_struct(kind) and kind.get_field_index("path") >= 0:
        # Reads the one leaf: Parquet and memory-mapped Arrow leave the bytes beside it on the disk.
        values = read(f"{column}.path").flatten().column(0)
        return [name or None for name in values.to_pylist()]
    return [None] * n


# ---------------------------------------------------------------- datasets: save_to_disk and the Hub
class _HuggingFaceSource(Source):
    """What a `save_to_disk` folder and a Hub data set share: Arrow files, memory-mapped by `datasets`."""

    base: Path | None

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.base = Path(data.images).expanduser() if data.images else None

    @abstractmethod
    def _load(self) -> datasets.DatasetDict | datasets.Dataset:
        """The data set as `datasets` gives it."""

    @cached_property
    def _loaded(self) -> dict[str, datasets.Dataset]:
        loaded = self._load()
        return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}

    def splits(self) -> list[str]:
        return [str(name) for name in self._loaded]

    def columns(self, split: str) -> list[str]:
        return list(self._loaded[split].column_names)

    def table(self, split: str) -> pd.DataFrame:
        schema = self._loaded[split].features.arrow_schema
        return _frame(self._read(split, [field.name for field in schema if _is_plain(field.type)]))

    def image_names(self, split: str, column: str) -> list[str | None]:
        kind = self._loaded[split].features.arrow_schema.field(column).type
        return _names_in(kind, lambda leaf: self._read(split, [leaf]), column, len(self._loaded[split]))

    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        return encoded(self._images(split, column)[row][column], self.base)

    def where(self, split: str, row: int) -> str:
        return f"{self.data.source}, split {split}, row {row} (counted from 0)"

    def _read(self, split: str, columns: list[str]) -> pa.Table:
        rows = self._loaded[split]
        if any(name not in rows.column_names for name in columns):
            rows = self._undecoded(split, columns[0].rpartition(".")[0]).flatten()
        return rows.select_columns(columns).with_format("arrow")[:]

    def _undecoded(self, split: str, column: str) -> datasets.Dataset:
        """The column alone, images as {bytes, path}."""
        from datasets import Image

        rows = self._loaded[split].select_columns([column])
        return rows.cast_column(column, Image(decode=False)) if isinstance(rows.features[column], Image) else rows

    def _images(self, split: str, column: str) -> datasets.Dataset:
        if (split, column) not in self._image_columns:
            self._image_columns[split, column] = self._undecoded(split, column)
        return self._image_columns[split, column]

    @cached_property
    def _image_columns(self) -> dict[tuple[str, str], datasets.Dataset]:
        return {}


class DiskSource(_HuggingFaceSource):
    """A folder that `save_to_disk` wrote: a DatasetDict, or a Dataset, which is one split called `train`."""

    def __init__(self, data: Data, folder: Path) -> None:
        super().__init__(data)
        self.folder = folder
        self.base = self.base or folder

    def _load(self) -> datasets.DatasetDict | datasets.Dataset:
        from datasets import load_from_disk

        try:
            return load_from_disk(str(self.folder))
        except Exception as error:
            raise UserError(f"{self.folder}: `datasets` cannot load this folder: {_short(error)}") from error

    def signature(self) -> str:
        files = [path for path in sorted(self.folder.resolve().rglob("*")) if path.suffix in (".arrow", ".json")]
        return _signature("disk", [*files, *self._image_files()])

    def _image_files(self) -> Iterable[Path]:
        column = self.data.columns.image
        if not any(_image_is_text(path, column) for path in self.folder.rglob("dataset_info.json")):
            return  # known from the small JSON file, so that a signature need not import `datasets`
        for split in self.splits():
            if column in self.columns(split):
                yield from _named_files(self.image_names(split, column), self.base)


def _image_is_text(info: Path, column: str) -> bool:
    feature = (json.loads(info.read_text()).get("features") or {}).get(column) or {}
    return feature.get("dtype") in ("string", "large_string")


class HubSource(_HuggingFaceSource):
    """A data set of the Hugging Face Hub, downloaded by `datasets` or found in its cache."""

    def _load(self) -> datasets.DatasetDict | datasets.Dataset:
        from datasets import load_dataset

        try:
            loaded = load_dataset(self.data.source, revision=self.data.revision)
        except Exception as error:
            raise UserError(
                f"data.source {self.data.source}: no such folder here, and the Hub data set of this name is neither in "
                f"the cache nor to be had: {_short(error)} On a machine with network (a login node) run "
                "`carabid fetch CONFIG`."
            ) from error
        self._check_revision(_arrow_folder(dict(loaded)).name)
        return loaded

    def _check_revision(self, commit: str) -> None:
        """Offline, `datasets` takes whatever revision is in its cache, without a word."""
        wanted = _commit_of(self.data.source, self.data.revision) if self.data.revision else None
        if wanted and COMMIT.fullmatch(commit) and wanted != commit:
            raise UserError(
                f"data.revision {self.data.revision}: the cache holds {self.data.source} at {commit} instead. "
                "On a machine with network run `carabid fetch CONFIG`."
            )

    def signature(self) -> str:
        folder = self._only_cached() or _arrow_folder(self._loaded)
        files = sorted(path for path in folder.resolve().iterdir() if path.suffix in (".arrow", ".json"))
        return _signature(f"hub:{self.data.source}@{folder.name}", files)

    def _only_cached(self) -> Path | None:
        """The cached data set's folder where there is exactly one, found without importing `datasets`."""
        if "_loaded" in self.__dict__:
            return None
        found = hub_caches(self.data.source)
        wanted = _commit_of(self.data.source, self.data.revision) if self.data.revision else None
        return found[0] if len(found) == 1 and wanted in (None, found[0].name) else None


def hub_caches(source: str) -> list[Path]:
    """Folders in which `datasets` keeps a Hub data set (<config>/<version>/<commit>/), told from the environment."""
    from huggingface_hub import constants

    root = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets").expanduser()
    owner, name = source.split("/")
    # `datasets` writes the name in snake case; names that differ in underscores alone count as several, never as one.
    same = [path for path in root.glob(f"{owner}___*") if _bare(path.name.removeprefix(f"{owner}___")) == _bare(name)]
    return [info.parent for path in same for info in path.glob("*/*/*/dataset_info.json")]


def _bare(name: str) -> str:
    return name.replace("_", "").lower()


def _commit_of(source: str, revision: str) -> str | None:
    """The commit a revision stands for: itself, or what the Hub's cache noted for a tag or branch; None if unknown."""
    from huggingface_hub import constants

    if COMMIT.fullmatch(revision):
        return revision
    note = Path(constants.HF_HUB_CACHE) / f"datasets--{source.replace('/', '--')}" / "refs" / revision
    return note.read_text().strip() if note.is_file() else None


def _arrow_folder(splits: dict[str, datasets.Dataset]) -> Path:
    """Where `datasets` keeps the Arrow files of a loaded Hub data set; the folder's name is the commit."""
    return Path(next(iter(splits.values())).cache_files[0]["filename"]).parent


def _short(error: Exception) -> str:
    """An error of a library in one line that a person reads to its end."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
