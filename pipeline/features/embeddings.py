"""Embeddings of image files in Parquet: parts that are written while they are made, and the whole file made of them. A part has
two columns more than the whole file: size and time of change that a file had when it was read. So a part is used for as long as
its files have not changed, and an image that was read several times is the one that was read last. Loads no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from pipeline.disk.reading import Damaged, reading
from pipeline.disk.writing import atomic_path

ROWS = 8192
"""Rows of a row group in the whole file."""
OPEN_PARTS = 4
"""Parts in memory while the whole file is written."""
COLUMNS = ("file", "width", "height", "embedding", "error")
IN_PARTS = (*COLUMNS, "size", "mtime")
OWN = b"carabid"
"""Key of our metadata in a Parquet file."""


@dataclass(frozen=True)
class File:
    """An image file: its path within the folder, its bytes and its time of change (ns). Equal: it has not changed."""

    name: str
    size: int
    mtime: int


@dataclass(frozen=True)
class Place:
    """Where the row of an image is: in which part, and there in which row; and whether the image is bad."""

    part: Path
    row: int
    is_bad: bool


@dataclass
class Rows:
    """What is embedded and not yet written."""

    folder: Path
    """Of the parts."""
    about: dict[str, str]
    embed_dim: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    def add(self, file: File, shape: tuple[int, int] | None, embedding: Float[np.ndarray, " width"], error: str | None) -> None:
        """A file's width and height and its embedding, or why it is bad."""
        width, height = shape if shape and not error else (None, None)
        values = file.name, width, height, None if error else embedding, error, file.size, file.mtime
        self.rows.append(dict(zip(IN_PARTS, values, strict=True)))

    def write(self) -> None:
        """Write them as one more part, and forget them."""
        if self.rows:
            floats = pa.list_(pa.float32(), self.embed_dim)
            kinds = pa.string(), pa.int32(), pa.int32(), floats, pa.string(), pa.int64(), pa.int64()
            schema = pa.schema(list(zip(IN_PARTS, kinds, strict=True)), {OWN: json.dumps(self.about)})
            table = pa.Table.from_pylist(self.rows, schema)
            last = max((int(path.stem.removeprefix("part-")) for path in part_paths(self.folder)), default=0)
            with atomic_path(self.folder / f"part-{last + 1:06d}.parquet") as temporary:
                pq.write_table(table, temporary, write_page_checksum=True)
        self.rows, self.since = [], time.monotonic()


def about_of(path: Path) -> dict[str, Any] | None:
    """What a Parquet file says that it is of; None if it is none of ours."""
    with suppress(OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return dict(json.loads(pq.read_schema(path).metadata[OWN]))
    return None


def is_sound(path: Path) -> bool:
    """Whether all of a Parquet file can be read, and each page is what was written (as far as it was written with checksums)."""
    with suppress(Damaged):
        read(path)
        return True
    return False


def read(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Some columns of one of our Parquet files, or all. Raises OSError or Damaged."""
    with reading(path, "`carabid embed … --overwrite` makes it again."):
        return pq.read_table(path, columns=columns and list(columns), page_checksum_verification=True)


def part_paths(folder: Path) -> list[Path]:
    """The parts in a folder, in the order in which they were written."""
    return sorted(folder.glob("part-*.parquet"))


def find_rows(folder: Path) -> dict[File, Place]:
    """Each file as it was when it was read → its row; the last one of a file that was read several times."""
    found: dict[File, Place] = {}
    for part in part_paths(folder):
        table = read(part, ["file", "size", "mtime", "error"])
        cells = zip(*(column.to_pylist() for column in table.columns), strict=True)
        found |= {File(*cell): Place(part, row, error is not None) for row, (*cell, error) in enumerate(cells)}
    return found


def write_whole(out: Path, folder: Path, files: Sequence[File], about: dict[str, str]) -> None:
    """Write the whole file from the parts, in the order of the files. Some parts are in memory at a time: files are embedded in
    their order, so that most rows that follow one another are in one part."""
    found = find_rows(folder)
    places = [found[file] for file in files]
    load = lru_cache(OPEN_PARTS)(partial(read, columns=COLUMNS))
    schema = load(places[0].part).schema.with_metadata({OWN: json.dumps(about)})
    with atomic_path(out) as temporary, pq.ParquetWriter(temporary, schema, write_page_checksum=True) as writer:
        for k in range(0, len(places), ROWS):
            writer.write_table(_gather(places[k : k + ROWS], load).cast(schema))


def count_bad(out: Path) -> int:
    """How many images of a whole file could not be read. Raises OSError or Damaged."""
    errors = read(out, ["error"]).column("error")
    return len(errors) - errors.null_count


def _gather(places: Sequence[Place], load: Callable[[Path], pa.Table]) -> pa.Table:
    """The rows at these places, in their order."""
    by_part: dict[Path, list[int]] = {}
    for i, place in enumerate(places):
        by_part.setdefault(place.part, []).append(i)
    taken = pa.concat_tables([load(part).take([places[i].row for i in of]) for part, of in by_part.items()])
    order = np.argsort([i for of in by_part.values() for i in of])
    return taken.take(pa.array(order))
