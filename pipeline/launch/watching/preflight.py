"""The tables of trials looked at on a login node, before anything is queued: each is read once, and known again for as long as
its files and the folders of its images look unchanged. Loads no torch, and decodes no image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.config.identity import digest, image_columns, plain
from pipeline.config.own import content_hash
from pipeline.config.per_block import sharing
from pipeline.config.split import Folded
from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source, absent, image_path, signature_of
from pipeline.data.sources.near import hint
from pipeline.data.suspects import left_out
from pipeline.disk.layout import PROJECT, record_path
from pipeline.disk.writing import read_record, write_json
from pipeline.errors import NotFetched, UserError
from pipeline.features.hashes import known_data
from pipeline.tasks import load_task
from pipeline.training.demands import check_table, split_tables

CODE = ("data", "tasks", "metrics", "config", "training/demands.py", "launch/watching/preflight.py")
"""The code that decides what a table is refused for."""


READ = ("task", "data", "model", "loss", "select", "evaluate", "train")
"""The fields of a configuration that say what is asked of its table."""


@dataclass(frozen=True)
class Look:
    """What was seen of a table that can be trained on."""

    folders: dict[str, int]
    """The folders of its images, and when each was changed (ns)."""
    warnings: list[str]
    fits: list[str]
    """What was asked of it and is so: `_asks` of configurations."""

    def still_holds(self) -> bool:
        return all(_changed(folder) == time for folder, time in self.folders.items())


def preflight(configs: Sequence[Config]) -> list[str]:
    """What is to be said of the tables of these trials, read once each. Raises UserError, naming file, row and column, for one
    that cannot be trained, chosen by or evaluated on as its trials ask, or whose images are not there; NotFetched for images that
    are still to be downloaded."""
    of_table: dict[str, dict[str, Config]] = {}
    for config in {sharing(config, READ): config for config in configs}.values():
        of_table.setdefault(digest([config.task, config.data.model_dump(mode="json")]), {}).setdefault(_asks(config), config)
    return list(dict.fromkeys(warning for asking in of_table.values() for warning in _look(asking, len(of_table) > 1)))


def copies(config: Config) -> list[str]:
    """What is to be said of images that are there several times, where their content is on record."""
    record = known_data(config)
    return left_out(load_task(config.task).load(config.data), config.data, record.images)[1] if record else []


def _look(asking: dict[str, Config], names_fold: bool) -> list[str]:
    """The warnings of one table, of which different things may be asked. Raises UserError, which `names_fold` if there are
    several."""
    config = next(iter(asking.values()))
    source = open_source(config.data)
    if not source.is_here():
        return [_not_here(config)]
    path = _record(config, source)
    known = known if (known := _read(path)) and known.still_holds() else None
    if known and asking.keys() <= set(known.fits):
        return known.warnings
    try:
        look = _first_look(asking, config)
    except UserError as error:
        split = config.data.split
        if names_fold and isinstance(split, Folded):
            raise UserError(f"{error} (data.split.fold={split.fold})") from error
        raise
    with suppress(OSError):  # who may not write there looks again
        write_json(path, asdict(replace(look, fits=[*look.fits, *(known.fits if known else ())])))
    return look.warnings


def _first_look(asking: dict[str, Config], config: Config) -> Look:
    task = load_task(config.task)
    dataset = task.load(config.data)
    folders, gone = set[str](), set[tuple[str, int]]()
    missing = [word for column in image_columns(config.data) for word in _missing_images(dataset, config, column, folders, gone)]
    places = zip(dataset.table["source_split"], dataset.table["row"].tolist(), strict=True)
    tables = split_tables(dataset.table[[place not in gone for place in places]] if gone else dataset.table, config)
    for each in asking.values():
        try:
            check_table(each, task, dataset.truth, tables)
        except UserError as error:
            raise UserError(f"{'. '.join([str(error).rstrip('.'), *missing])}.") from error
    return Look(
        {folder: _changed(folder) for folder in sorted(folders)}, [*dataset.notes, *dataset.warnings, *missing], list(asking)
    )


def _missing_images(
    dataset: Dataset, config: Config, column: str, folders: set[str], lost: set[tuple[str, int]]
) -> Iterator[str]:
    """A warning for images whose files are not there, where it is allowed to go on without; `folders` are added to, and their
    splits and rows to `lost`. Raises UserError where it is not, or where none is there."""
    source, data = dataset.source, config.data
    gone: list[tuple[str, int, str, str]] = []
    for split in dict.fromkeys(dataset.table["source_split"]):
        cells = source.paths(split, column)
        if cells is not None:
            base = source.folder()
            gone += [(split, row, why, cells[row] or "") for row, why in absent(cells, base, folders)]
    if not gone:
        return
    split, row, why, cell = gone[0]
    place = f"{source.where(split, row)}: column {column}: {why}{_hint(cell, source)}"
    if len(gone) == len(dataset) or data.on_bad_image == "error":
        others = f" Neither are {len(gone) - 1} more of {len(dataset)} there." if len(gone) > 1 else ""
        raise UserError(f"{place}.{others} Correct the paths or data.images, or go on without them by data.on_bad_image=skip.")
    lost.update((split, row) for split, row, _, _ in gone)
    yield f"{len(gone)} of {len(dataset)} images are not there and left out (data.on_bad_image=skip): {place}"


def _hint(cell: str, source: Source) -> str:
    with suppress(ValueError):
        return hint(cell, image_path(cell, source.folder())) if cell else ""
    return ""


def _not_here(config: Config) -> str:
    """A word on data of the Hub that are not in the cache. Raises NotFetched for images that are still to be downloaded."""
    if config.data.download:
        raise NotFetched(f"data {config.data.source}: its images are not all here.")
    return f"data {config.data.source} are not on this machine, and were not looked at: `carabid fetch` brings them"


# ---------------------------------------------------------------- records
def _asks(config: Config) -> str:
    """What a configuration asks of its table, beside what it says of the data."""
    train = config.train
    of_batches = [plain(train.batches), train.batch_size, train.processes, config.loss.reads_ranks]
    return digest([plain(config.model), plain(config.select), plain(config.evaluate), *of_batches])


def _record(config: Config, source: Source) -> Path:
    files = signature_of(source.kind, map(str, source.table_files()))
    data = config.data.model_dump(mode="json")  # with what hashes leave out: a former default is read otherwise
    name = digest([config.task, content_hash(config.task), data, files, _code()])
    return record_path(config, "table", name[:16])


def _code() -> str:
    """Hash of the code that looks: what another version let pass may be refused by this one."""
    files = [file for name in CODE for file in _python(PROJECT / "pipeline" / name)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _python(path: Path) -> list[Path]:
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _read(path: Path) -> Look | None:
    with suppress(TypeError, AttributeError):
        values: dict[str, Any] = read_record(path)
        return Look(**values)
    return None


def _changed(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return -1
