"""CSV files with images beside them, each row known by the line it starts on."""

from __future__ import annotations

import csv
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from pipeline.config.data import Data
from pipeline.data.missing import nothing
from pipeline.data.sources.base import TableSource, encoded
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SPLIT_COLUMN = "split"
SUFFIXES = (".csv", ".tsv")
"""Of the files of a folder; a file that is named may be a .txt as well."""
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What may part columns instead of commas."""
SAID = re.compile(r'"?sep=([^"\w\s]|\t)"?\s*')
"""Excel's own first line."""
LOOKED_AT = 50
"""Records by which it is known what parts their columns."""
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

    def rows(self, split: str) -> int:
        return len(self._records[split])

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
        return [read_csv(file, self.data.columns.image) for files in self.groups.values() for file in files]

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
            records = _by_split_column(headers[only], records[only], self.data)
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


def read_csv(path: Path, column: str | None = None) -> _Table:
    """A CSV file (UTF-8; parted by commas, or what else parts its first records, of which one may be known to be a `column`);
    empty lines, and columns at the end that have no name and no cells, are left out. Raises UserError naming the line."""
    csv.field_size_limit(LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            said = SAID.fullmatch(file.readline())
            begin = file.tell() if said else 0
            separator = said[1] if said else _separator(file, column)
            file.seek(begin)
            records = _csv_records(path, csv.reader(file, strict=True, delimiter=separator), 1 + bool(said))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {_undecodable(path)}: this is not UTF-8: save the file as CSV UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read: {error}") from error
    if not records:
        raise UserError(f"{path}: the file is empty; its first line should name the columns.")
    header = [name.strip() for name in records[0].cells]
    while len(header) > 1 and not header[-1]:
        header.pop()
    _check_header(records[0], header)
    notes = [f"{path}: columns are parted by {SEPARATORS.get(separator, separator)}"] if separator != "," else []
    return _Table(path, header, [_fitted(record, header, separator) for record in records[1:]], notes)


def _separator(file: TextIO, column: str | None) -> str:
    """What parts the columns of a file: of commas and the others that by which the header has this column, then by which most of
    what follows has as many cells as the header, then by which these are most."""

    def fitness(sign: str) -> tuple[bool, bool, int]:
        file.seek(0)
        header, *rows = _first_records(file, sign) or [[]]
        names = [cell.strip() for cell in header]
        n = len(names) - next((i for i, name in enumerate(reversed(names)) if name), 0)
        fits = sum(_is_as_long(cells, n) for cells in rows)
        return column in names[:n] and n > 1, n > 1 and 2 * fits >= len(rows), n

    return max((",", *SEPARATORS), key=fitness)


def _first_records(file: TextIO, sign: str) -> list[list[str]]:
    """The first records that are not blank, as far as they can be read."""
    records: list[list[str]] = []
    with suppress(csv.Error):
        for cells in csv.reader(file, strict=True, delimiter=sign):
            records += [cells] if any(cell.strip() for cell in cells) else []
            if len(records) > LOOKED_AT:
                break
    return records


def _is_as_long(cells: list[str], n: int) -> bool:
    """Whether a record has a cell for each of n columns, and beyond these none that is not empty."""
    return len(cells) == n or (len(cells) > n and not any(cell.strip() for cell in cells[n:]))


def _fitted(record: _Record, header: list[str], separator: str) -> _Record:
    """The record with a cell for each column. Raises UserError if it has fewer, or more that are not empty."""
    n, cells = len(header), record.cells
    if len(cells) == n:
        return record
    if not _is_as_long(cells, n):
        what = f"{len(cells)} cells, but the header names {n} columns"
        raise UserError(f"{record.file}, line {record.line}: {what}. Quote cells that hold {separator!r}.")
    return _Record(record.file, record.line, cells[:n])


def _undecodable(path: Path) -> int:
    """The first line that is not UTF-8. (The error of a file that is read in pieces counts from its piece.)"""
    lines = path.read_bytes().splitlines()
    return next((n for n, line in enumerate(lines, 1) if line.decode(errors="replace").encode() != line), 1)


def _csv_records(path: Path, reader: Any, first: int) -> list[_Record]:
    """All records from the one with the header; the line `first` is where the reader begins."""
    records: list[_Record] = []
    line = first
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells) or (records and len(cells) > 1):
                records.append(_Record(path, line, cells))
            line = reader.line_num + first
    except csv.Error as error:
        raise UserError(f"{path}, line {line}: this is not CSV: {error}") from error
    return records


def _check_header(record: _Record, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{record.file}, line {record.line}: the column {twice[0]!r} stands there twice. Rename one of them.")


def _by_split_column(header: list[str], records: list[_Record], data: Data) -> dict[str, list[_Record]]:
    """The rows of each split. Raises UserError for those that name none, be it by what stands for nothing."""
    place, read = header.index(SPLIT_COLUMN), data.split.names.values()
    is_nothing = nothing(data.missing if read else ())
    splits: dict[str, list[_Record]] = {}
    for record in records:
        splits.setdefault(record.cells[place].strip(), []).append(record)
    for name, (first, *others) in splits.items():
        if not name or (is_nothing(name) and name not in read):
            holds = f"holds {name!r}, which stands for nothing (data.missing: it may say otherwise)" if name else "is empty"
            more = f", in {len(others)} more rows too" if len(others) > 1 else f", in line {others[0].line} too" if others else ""
            raise UserError(f"{first.file}, line {first.line}: column {SPLIT_COLUMN} {holds}{more}. Name the row's split.")
    return splits
