"""Archived images: many small files of a data set as one file with an index, features/archives/<data>/. On a cluster's file
systems it is opening a file that costs, not reading it. `carabid archive` writes it; extraction reads from it instead of the
files, from a copy on its node where `paths.stage` names one. An archive is of files that look as they did when it was made
(`Dataset.signature`: paths, sizes, times of change): where these differ the files themselves are read, and it is said. What is
read from it are the bytes of the files, so hashes, features and their keys are the same. Loads no torch."""

from __future__ import annotations

import mmap
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from pipeline.amounts import format_bytes
from pipeline.config.identity import digest
from pipeline.config.trial import Config
from pipeline.data.dataset import BadImage, Dataset
from pipeline.disk.layout import ArchiveDir, archive_dir, archives_root
from pipeline.disk.lease import Lease
from pipeline.disk.reading import reading
from pipeline.disk.writing import atomic_folder, read_json, read_record, write_json, write_table
from pipeline.errors import UserError
from pipeline.features.staging import copy, node_folder
from pipeline.progress import log, progress

FORMAT = 1
"""Version of what the files mean."""
AGAIN = "Remove its folder and run `carabid archive` again."
COLUMNS = ("split", "row", "column", "begin", "n_bytes", "crc32")
"""Of the index: where an image stands in the data, where it begins, its size (−1 if it cannot be read) and its checksum."""
AHEAD = 256
"""Files that are read at once."""
Places = Int64[np.ndarray, "rows 3"]
"""For each row of a split where its image begins, how many bytes it has (−1 where it was not there), and their CRC-32."""


@dataclass(frozen=True)
class Archive:
    """An open archive: the images of a data set that it holds, by split, row and column."""

    content: mmap.mmap
    places: dict[tuple[str, str], Places]

    def read(self, split: str, row: int, column: str) -> bytes | None:
        """An encoded image, safe from several threads; None where it is not in the archive, or no longer what was put there."""
        places = self.places.get((split, column))
        if places is None or row >= len(places):
            return None
        begin, n_bytes, checksum = places[row].tolist()
        encoded = self.content[begin : begin + n_bytes] if n_bytes > 0 else b""
        return encoded if encoded and zlib.crc32(encoded) == checksum else None


# ---------------------------------------------------------------- made
def make(config: Config, dataset: Dataset) -> ArchiveDir:
    """Archive a data set's images, if they are not archived yet; the archive's folder. Raises UserError where images are no
    files."""
    signature = dataset.signature()
    archive = archive_dir(config, _name(signature))
    if _is_current(archive, signature):
        log(f"{archive.path}: these images are archived already")
        return archive
    if not any(dataset.source.paths(split, dataset.image_column) for split in set(dataset.table["source_split"])):
        raise UserError(
            f"data.source {config.data.source}: its images lie in its tables, which are as few files as an archive is"
        )
    with Lease(archive.path.with_suffix(".lease"), config.resources.lease_seconds).hold(
        lambda: _is_current(archive, signature)
    ) as held:
        if held:
            _write(archive, config, dataset, signature)
    return archive


def _write(archive: ArchiveDir, config: Config, dataset: Dataset, signature: str) -> None:
    with atomic_folder(archive.path, replace=True) as folder:
        new = ArchiveDir(folder)
        places = pd.DataFrame(_append(new.content, config, dataset), columns=COLUMNS)
        if not (n_bytes := new.content.stat().st_size):
            raise UserError(f"data.source {config.data.source}: none of its images can be read, so there is nothing to archive")
        if dataset.signature() != signature:
            raise UserError("The images changed while they were archived: run this again when nothing writes them.")
        write_table(new.index, places)
        about = {"format": FORMAT, "source": config.data.source, "signature": signature, "n_bytes": n_bytes}
        write_json(new.record, about)
    lost = int((places["n_bytes"] < 0).sum())
    left_out = f"; {lost} that cannot be read are left out" if lost else ""
    log(f"{archive.path}: {len(places) - lost} images in {format_bytes(n_bytes)}{left_out}")


def _append(path: Path, config: Config, dataset: Dataset) -> Iterator[tuple[str, int, str, int, int, int]]:
    """Write all images into one file; for each what COLUMNS are of it."""
    begin, inputs = 0, [(i, column) for i in range(len(dataset)) for column in dataset.image_columns]
    splits, rows = dataset.table["source_split"].tolist(), dataset.table["row"].tolist()
    with (
        path.open("wb") as file,
        ThreadPoolExecutor(config.resources.decode_threads) as pool,
        progress("archive images", len(inputs)) as advance,
    ):
        for some in (inputs[first : first + AHEAD] for first in range(0, len(inputs), AHEAD)):
            for (i, column), encoded in zip(some, pool.map(lambda each: _bytes(dataset, *each), some), strict=True):
                file.write(encoded or b"")
                n_bytes = -1 if encoded is None else len(encoded)
                yield splits[i], rows[i], column, begin, n_bytes, zlib.crc32(encoded or b"")
                begin += len(encoded or b"")
            advance(len(some))


def _bytes(dataset: Dataset, i: int, column: str) -> bytes | None:
    with suppress(BadImage):  # whoever reads it from its file says what is wrong with it
        return dataset.image_bytes(i, column)
    return None


# ---------------------------------------------------------------- read
def archived(config: Config, dataset: Dataset) -> Dataset:
    """The data set, read from its archive or that one's copy on this node; itself where there is none of its files as they
    are."""
    if not archives_root(config).is_dir():  # a signature asks for the time of each file
        return dataset
    signature = dataset.signature()
    archive = archive_dir(config, _name(signature))
    if not _is_current(archive, signature):
        if any(_is_of(each, config) for each in archives_root(config).glob("*/archive.json")):
            changed = "has changed since it was archived, or its archive is damaged"
            log(f"data.source {config.data.source} {changed}: its files are read (`carabid archive`)")
        return dataset
    where = _staged(archive, config)
    log(f"images are read from {where.path}")
    return replace(dataset, archived=open_archive(where).read)


def open_archive(archive: ArchiveDir) -> Archive:
    """Raises Damaged for an archive that is not whole."""
    with reading(archive.record, AGAIN):
        about = read_json(archive.record)
        if about["format"] != FORMAT or archive.content.stat().st_size != about["n_bytes"]:
            raise ValueError(f"{archive.content} is not what was archived.")
    with reading(archive.index, AGAIN):
        table = pd.read_parquet(archive.index)
        places = {(str(split), str(column)): _by_row(some) for (split, column), some in table.groupby(["split", "column"])}
    with archive.content.open("rb") as file:
        return Archive(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), places)


def _by_row(table: pd.DataFrame) -> Places:
    places = np.full((int(table["row"].max()) + 1, 3), -1, dtype="int64")
    places[table["row"].to_numpy()] = table[["begin", "n_bytes", "crc32"]].to_numpy()
    return places


def _staged(archive: ArchiveDir, config: Config) -> ArchiveDir:
    """Its copy on this node where `paths.stage` asks for one and there is room, made if it is not there; else itself."""
    if config.paths.stage is None:
        return archive
    here = ArchiveDir(node_folder(config.paths.stage) / f"archive-{archive.path.name}")
    try:
        here.path.mkdir(parents=True, exist_ok=True)
        with Lease(here.path / "copy.lease", config.resources.lease_seconds).hold(lambda: _is_copy(here, archive)) as held:
            if held:
                _copy(archive, here)
    except OSError as error:
        log(f"images are read from {archive.path}, and not copied to {here.path}: {error.strerror or error}")
        return archive
    return here


def _copy(archive: ArchiveDir, here: ArchiveDir) -> None:
    if (needed := archive.content.stat().st_size) > (free := shutil.disk_usage(here.path).free):
        raise OSError(f"it needs {format_bytes(needed)}, and {format_bytes(free)} are free")
    for source, target in ((archive.content, here.content), (archive.index, here.index), (archive.record, here.record)):
        copy(source, target)
    log(f"{archive.path}: copied to {here.path}")


def _is_copy(here: ArchiveDir, archive: ArchiveDir) -> bool:
    mine = _about(here)
    return bool(mine) and mine == _about(archive) and here.content.is_file() and here.content.stat().st_size == mine["n_bytes"]


def _is_current(archive: ArchiveDir, signature: str) -> bool:
    about = _about(archive)
    is_whole = archive.content.is_file() and archive.content.stat().st_size == about.get("n_bytes")
    return about.get("signature") == signature and is_whole


def _is_of(record: Path, config: Config) -> bool:
    return read_record(record).get("source") == config.data.source


def _about(archive: ArchiveDir) -> dict[str, Any]:
    return read_record(archive.record)


def _name(signature: str) -> str:
    return digest(signature)[:16]
