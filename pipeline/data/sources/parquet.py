"""Parquet files with images inside or beside them, and the row groups that are kept in memory for their threads."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.data import Data
from pipeline.data.sources.arrow import is_plain, names_in, to_frame, unwrapped
from pipeline.data.sources.base import TableSource, encoded
from pipeline.disk.reading import reading
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

AGAIN = "Fetch or write it again."
CACHED_BYTES = 1 << 30
"""Row groups of images are kept up to this size together, and never fewer than two a column: threads straddle a border."""


@dataclass(frozen=True)
class _ParquetSplit:
    """The files of one split; `starts` [groups + 1]: the rows at which their row groups begin, then the row count."""

    paths: list[Path]
    columns: list[str]
    plain: list[str]
    groups: list[tuple[Path, int]]
    starts: list[int]


class ParquetSource(TableSource):
    """Parquet files, one or several per split; images inside as bytes or {bytes, path}, or as paths."""

    kind = "parquet"

    def __init__(self, data: Data, folder: Path, groups: dict[str, list[Path]]) -> None:
        super().__init__(data, folder, groups)
        self._cache = _RowGroups()

    def splits(self) -> list[str]:
        return list(self.groups)

    def columns(self, split: str) -> list[str]:
        return self._splits[split].columns

    def plain(self, split: str) -> list[str]:
        return self._splits[split].plain

    def table(self, split: str) -> pd.DataFrame:
        return to_frame(self._read(split, self.plain(split)))

    def rows(self, split: str) -> int:
        return self._splits[split].starts[-1]

    def image_names(self, split: str, column: str) -> list[str | None]:
        files = self._splits[split]
        kind = _parquet_file(files.paths[0]).schema_arrow.field(column).type
        return names_in(kind, lambda leaf: self._read(split, [leaf]), column, files.starts[-1])

    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        (path, group), place = self._locate(split, row)
        return encoded(self._cache.column(path, group, column)[place].as_py(), self.base)

    def where(self, split: str, row: int) -> str:
        (path, _), _ = self._locate(split, row)
        return f"{path}, split {split}, row {row} (counted from 0)"

    def _locate(self, split: str, row: int) -> tuple[tuple[Path, int], int]:
        """File and row group of a row, and its place within them."""
        files = self._splits[split]
        if not 0 <= row < files.starts[-1]:
            raise IndexError(f"split {split} has {files.starts[-1]} rows, there is no row {row}")
        group = bisect.bisect_right(files.starts, row) - 1
        return files.groups[group], row - files.starts[group]

    def _read(self, split: str, columns: list[str]) -> pa.Table:
        import pyarrow as pa

        parts = []
        for path in self._splits[split].paths:
            with reading(path, AGAIN, UserError):
                part = _parquet_file(path).read(columns=columns)
                part.validate(full=True)
                parts.append(unwrapped(part))
        with reading(path, AGAIN, UserError):  # (columns of one name are of other types in another file)
            return pa.concat_tables(parts, promote_options="permissive")

    @cached_property
    def _splits(self) -> dict[str, _ParquetSplit]:
        return {split: _parquet_split(paths) for split, paths in self.groups.items()}


def _parquet_file(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq

    with reading(path, AGAIN, UserError):
        return pq.ParquetFile(path)


def _parquet_split(paths: list[Path]) -> _ParquetSplit:
    files = [(path, file.schema_arrow, file.metadata) for path, file in ((path, _parquet_file(path)) for path in paths)]
    schema = files[0][1]
    for path, other, _ in files:
        if odd := sorted(set(other.names) ^ set(schema.names)):
            raise UserError(f"{path}: its columns differ from those of {paths[0]}, the same split: {', '.join(odd)}.")
    plain = [field.name for field in schema if is_plain(field.type)]
    groups = [(path, i) for path, _, about in files for i in range(about.num_row_groups)]
    sizes = (about.row_group(i).num_rows for _, _, about in files for i in range(about.num_row_groups))
    return _ParquetSplit(paths, schema.names, plain, groups, list(accumulate(sizes, initial=0)))


class _RowGroups:
    """A few columns of row groups in memory, shared by threads: who comes first reads, the others wait for it. Extraction walks
    through the rows in order, so each row group is read and decompressed once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[tuple[Path, int, str], Future[pa.ChunkedArray]] = OrderedDict()

    def column(self, path: Path, group: int, column: str) -> pa.ChunkedArray:
        """One column of one row group."""
        key = (path, group, column)
        mine: Future[pa.ChunkedArray] = Future()
        with self._lock:
            held = self._held.setdefault(key, mine)
            self._held.move_to_end(key)
        return self._read(key, mine) if held is mine else held.result()

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
        for key in list(sizes)[: -2 * len({column for _, _, column in self._held})]:
            if sum(sizes.values()) <= CACHED_BYTES:
                return
            del self._held[key], sizes[key]
