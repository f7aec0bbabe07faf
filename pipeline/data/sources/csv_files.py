"""CSV files with images beside them, each row known by the line it starts on."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.data.sources.base import TableSource, encoded
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SPLIT_COLUMN = "split"
SUFFIXES = (".csv", ".tsv")
"""Of the files of a folder; a file that is named may be a .txt as well."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What may part columns instead of commas."""
LONGEST_CELL = 2**31 - 1
"""Characters; csv's own limit is shorter than the outline of a country."""


class _Record(NamedTuple):
    """One row of a CSV file: its cells and the line it starts on, counted from 1 as an editor does."""

    file: Path
    line: int
    cells: list[str]


class CsvSource(TableSource):
    """CSV files: one with a `split` column, one without (all of it is `train`), or one file per split. Cells stay text. An image
    is a path relative to data.images, else to the CSV's folder."""

    kind = "csv"

    def splits(self) -> list[str]:
        return list(self._records)

    def columns(self, split: str) -> list[str]:
        return self._headers[split]

    plain = columns

    def table(self, split: str) -> pd.DataFrame:
        import pandas as pd

        cells = [[cell if cell.strip() else None for cell in record.cells] for record in self._records[split]]
        return pd.DataFrame(cells, columns=self._headers[split], dtype=object)

    def image_names(self, split: str, column: str) -> list[str | None]:
        return self.texts(split, column)

    def texts(self, split: str, column: str) -> list[str | None]:
        """The cells of a column without blanks around them; None for an empty one."""
        place = self._headers[split].index(column)
        return [record.cells[place].strip() or None for record in self._records[split]]

    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        try:
            return encoded(self._records[split][row].cells[self._headers[split].index(column)].strip(), self.base)
        except FileNotFoundError as error:
            if self.data.download is None:
                raise
            raise ValueError(f"{error}; `carabid fetch` downloads it") from error

    def is_here(self) -> bool:
        """Whether what is to be downloaded has been; where bad images are skipped, any of it."""
        enough = any if self.data.on_bad_image == "skip" else all
        return self.data.download is None or enough(map(os.path.isfile, self.image_files()))

    def where(self, split: str, row: int) -> str:
        record = self._records[split][row]
        return f"{record.file}, line {record.line}"

    def notes(self) -> list[str]:
        return [note for table in self._tables for note in table.notes]

    @cached_property
    def _tables(self) -> list[_Table]:
        return [read_csv(file) for files in self.groups.values() for file in files]

    @cached_property
    def _loaded(self) -> tuple[dict[str, list[str]], dict[str, list[_Record]]]:
        headers: dict[str, list[str]] = {}
        records: dict[str, list[_Record]] = {}
        for name, table in zip((name for name, files in self.groups.items() for _ in files), self._tables, strict=True):
            if headers.setdefault(name, table.header) != table.header:
                raise UserError(
                    f"{table.path}: its columns differ from those of {self.groups[name][0]}, a part of the same split."
                )
            records.setdefault(name, []).extend(table.records)
        only = next(iter(headers))
        if len(headers) == 1 and SPLIT_COLUMN in headers[only]:
            if not records[only]:
                raise UserError(f"{self._tables[0].path}: the table has a header and no rows.")
            records = _by_split_column(headers[only], records[only])
            headers = dict.fromkeys(records, headers[only])
        return headers, records

    @property
    def _headers(self) -> dict[str, list[str]]:
        return self._loaded[0]

    @property
    def _records(self) -> dict[str, list[_Record]]:
        return self._loaded[1]


@dataclass(frozen=True)
class _Table:
    """What a CSV file holds."""

    path: Path
    header: list[str]
    records: list[_Record]
    notes: list[str]
    """What was taken for granted to read it."""


def read_csv(path: Path) -> _Table:
    """A CSV file (UTF-8; commas, or what its first line parts columns by); empty lines, and columns at the end that have no name
    and no cells, are left out. Raises UserError naming the line."""
    csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            separator = _separator(file.readline())
            file.seek(0)
            records = _csv_records(path, csv.reader(file, strict=True, delimiter=separator))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {_undecodable(path)}: this is not UTF-8: save the file as CSV UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read: {error}") from error
    if not records:
        raise UserError(f"{path}: the file is empty; its first line should name the columns.")
    header = [name.strip() for name in records[0].cells]
    while len(header) > 1 and not header[-1]:
        header.pop()
    _check_header(path, header)
    notes = [f"{path}: columns are parted by {SEPARATORS[separator]}"] if separator in SEPARATORS else []
    return _Table(path, header, [_fitted(record, header, separator) for record in records[1:]], notes)


def _separator(line: str) -> str:
    """What parts the columns of a file with this first line: commas, unless that leaves one column and something else does
    not."""
    return next((sign for sign in (",", *SEPARATORS) if len(next(csv.reader([line], delimiter=sign), ())) > 1), ",")


def _fitted(record: _Record, header: list[str], separator: str) -> _Record:
    """The record with a cell for each column. Raises UserError if it has fewer, or more that are not empty."""
    n, cells = len(header), record.cells
    if len(cells) == n:
        return record
    if len(cells) < n or any(cell.strip() for cell in cells[n:]):
        what = f"{len(cells)} cells, but the header names {n} columns"
        raise UserError(f"{record.file}, line {record.line}: {what}. Quote cells that hold {separator!r}.")
    return _Record(record.file, record.line, cells[:n])


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8. (The error of a file that is read in pieces counts from its piece.)"""
    lines = path.read_bytes().splitlines()
    return next((n for n, line in enumerate(lines, 1) if line.decode(errors="replace").encode() != line), 1)


def _csv_records(path: Path, reader: Any) -> list[_Record]:
    records: list[_Record] = []
    line = 1
    try:
        for cells in reader:
            if len(cells) > 1 or any(cell.strip() for cell in cells):
                records.append(_Record(path, line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: this is not CSV: {error}") from error
    return records


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
