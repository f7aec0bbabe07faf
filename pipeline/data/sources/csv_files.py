"""CSV files with images beside them, each row known by the line it starts on."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.sources.base import TableSource, encoded
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SPLIT_COLUMN = "split"
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs"}


@dataclass(frozen=True)
class _Record:
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
            raise ValueError(f"{error.filename} is not there; `carabid fetch` downloads it") from error

    def is_here(self) -> bool:
        """Whether what is to be downloaded has been; where bad images are skipped, any of it."""
        enough = any if self.data.on_bad_image == "skip" else all
        return self.data.download is None or enough(path.is_file() for path in self.image_files())

    def where(self, split: str, row: int) -> str:
        record = self._records[split][row]
        return f"{record.file}, line {record.line}"

    @cached_property
    def _loaded(self) -> tuple[dict[str, list[str]], dict[str, list[_Record]]]:
        headers: dict[str, list[str]] = {}
        records: dict[str, list[_Record]] = {}
        for name, file in ((name, file) for name, files in self.groups.items() for file in files):
            header, rows = read_csv(file)
            if headers.setdefault(name, header) != header:
                raise UserError(f"{file}: its columns differ from those of {self.groups[name][0]}, a part of the same split.")
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
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {_undecodable(path)}: this is not UTF-8: save the file as CSV UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read: {error}") from error
    if not records:
        raise UserError(f"{path}: the file is empty; its first line should name the columns.")
    header = [name.strip() for name in records[0].cells]
    _check_header(path, header)
    for record in records[1:]:
        if len(record.cells) != len(header):
            what = f"{len(record.cells)} cells, but the header names {len(header)} columns"
            raise UserError(f"{path}, line {record.line}: {what}. Quote cells that hold a comma.")
    return header, records[1:]


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
    other = next((name for sign, name in OTHER_SEPARATORS.items() if len(header) == 1 and sign in header[0]), None)
    if other:
        raise UserError(f"{path}, line 1: columns are separated by {other}: save it with commas between columns.")
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
