"""A long table, with a row for each image and target, read as one row for each image with a column per target (`data.long`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from jaxtyping import Int64

from pipeline.config.data import Data, Long
from pipeline.data.sources.base import Source
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd


Rows = Int64[np.ndarray, " rows"]
Images = Int64[np.ndarray, " images"]


@dataclass(frozen=True)
class _Wide:
    """One split: a row for each image."""

    table: pd.DataFrame
    firsts: Int64[np.ndarray, " images"]
    """The first of each image's rows in the long table."""


class LongSource(Source):
    """The rows of another source, those of one image taken together. A row is called as the first of an image's rows is."""

    def __init__(self, data: Data, rows: Source, long: Long) -> None:
        super().__init__(data)
        self._inner, self._long = rows, long
        self._splits: dict[str, _Wide] = {}

    @property
    def kind(self) -> str:
        return f"long {self._inner.kind}"

    def splits(self) -> list[str]:
        return self._inner.splits()

    def columns(self, split: str) -> list[str]:
        own = (self._long.name, self._long.value)
        return [*(name for name in self._inner.columns(split) if name not in own), *self._targets(split)]

    def table(self, split: str) -> pd.DataFrame:
        return self._wide(split).table.copy()

    def rows(self, split: str) -> int:
        """Of images, also in a split without targets."""
        cells = self._inner.table(split).reset_index(drop=True)
        self._check_columns(split, cells, ("id", "name"))
        return int(self._images(split, cells).nunique())

    def image_names(self, split: str, column: str) -> list[str | None]:
        names = self._inner.image_names(split, column)
        return [names[row] for row in self._firsts(split)]

    def paths(self, split: str, column: str) -> list[str | None] | None:
        paths = self._inner.paths(split, column)
        return None if paths is None else [paths[row] for row in self._firsts(split)]

    def folder(self) -> Path | None:
        return self._inner.folder()

    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        return self._inner.image_bytes(split, self._firsts(split)[row], column)

    def where(self, split: str, row: int) -> str:
        return self._inner.where(split, self._firsts(split)[row])

    def meaning(self, data: Data) -> Self:
        twin = super().meaning(data)
        twin._inner, twin._splits = self._inner.meaning(data), {}
        return twin

    def is_here(self) -> bool:
        return self._inner.is_here()

    def notes(self) -> list[str]:
        return self._inner.notes()

    def table_files(self) -> list[Path]:
        return self._inner.table_files()

    # ------------------------------------------------------------ rows taken together
    def _wide(self, split: str) -> _Wide:
        """Each split when it is asked for: one that is left out (`data.split.test: none`) may lack the targets."""
        if split not in self._splits:
            self._splits[split] = self._widen(split)
        return self._splits[split]

    def _firsts(self, split: str) -> list[int]:
        return self._wide(split).firsts.tolist()

    def _targets(self, split: str) -> list[str]:
        kept = {*self._inner.columns(split)}
        return [name for name in self._wide(split).table.columns if name not in kept]

    def _widen(self, split: str) -> _Wide:
        import pandas as pd

        long = self._long
        cells = self._inner.table(split).reset_index(drop=True)
        self._check_columns(split, cells, ("id", "name", "value"))
        images = self._images(split, cells)
        codes, names = pd.factorize(images)
        _, firsts = np.unique(codes, return_index=True)
        self._check_alike(split, cells.drop(columns=[long.id, long.name, long.value]), codes, firsts)
        targets = self._each_once(split, cells, codes, firsts)
        wide = cells.drop(columns=[long.name, long.value]).iloc[firsts].reset_index(drop=True)
        wide[long.id] = pd.Series(names, dtype=object)
        for target, rows in targets:
            wide[target] = cells[long.value].iloc[rows].reset_index(drop=True)
        return _Wide(wide, firsts)

    def _check_columns(self, split: str, cells: pd.DataFrame, keys: tuple[str, ...]) -> None:
        for key in keys:
            column = getattr(self._long, key)
            if column not in cells:
                near = nearest(column, list(map(str, cells.columns)), listed=True)
                raise UserError(
                    f"data.source {self.data.source}, split {split}: there is no column {column!r} (data.long.{key}); {near}. "
                    f"Set data.long.{key} to one of them, or data.long to null if each image has one row."
                )

    def _images(self, split: str, cells: pd.DataFrame) -> pd.Series:
        """What tells the image of each row: what stands before the separator. Raises UserError where target and name disagree."""
        long, ids, targets = self._long, cells[self._long.id], cells[self._long.name]
        parts = ids.astype(str).str.rpartition(long.separator)
        wrong = ids.isna() | targets.isna() | (parts[1] == "") | (parts[0] == "") | (parts[2] != targets.astype(str))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise UserError(
                f"{self._inner.where(split, row)}: column {long.id} (data.long.id) holds {ids[row]!r}, and column {long.name} "
                f"{targets[row]!r}: the first should be the image's name, {long.separator!r} (data.long.separator) and the "
                "second. Correct the row."
            )
        return parts[0]

    def _check_alike(self, split: str, others: pd.DataFrame, codes: Rows, firsts: Images) -> None:
        """All rows of an image say the same of it. Raises UserError naming two that do not."""
        for column in others:
            cells = others[column].astype(object).where(others[column].notna(), None)
            differ = np.fromiter((a != b for a, b in zip(cells, cells.iloc[firsts[codes]], strict=True)), bool, len(cells))
            if differ.any():
                row = int(np.flatnonzero(differ)[0])
                first = int(firsts[codes[row]])
                raise UserError(
                    f"{self._inner.where(split, row)}: column {column} holds {cells[row]!r}, but {cells[first]!r} at "
                    f"{self._inner.where(split, first)}, of the same image. Rows of one image differ in target and value alone."
                )

    def _each_once(self, split: str, cells: pd.DataFrame, codes: Rows, firsts: Images) -> Iterator[tuple[str, Images]]:
        """Each target with the row that has its value, of every image. Raises UserError for an image that has it twice, or not at
        all."""
        for target, found in cells.groupby(self._long.name, sort=True).indices.items():
            rows = np.full(len(firsts), -1)
            rows[codes[found][::-1]] = found[::-1]
            counts = np.bincount(codes[found], minlength=len(firsts))
            if (counts == 1).all():
                yield str(target), rows
                continue
            image = int(np.flatnonzero(counts != 1)[0])
            if counts[image]:
                row = int(found[codes[found] == image][1])
                raise UserError(f"{self._inner.where(split, row)}: its image has a row of {target} already. Remove one.")
            place = self._inner.where(split, int(firsts[image]))
            raise UserError(f"{place}: this image has no row of {target}, which others have. Add it, or remove the image.")
