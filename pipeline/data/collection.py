"""Image files that are to be searched: those of a folder, or those that a table names, and of which species they are where that
is known. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.data import Data
from pipeline.data.known_columns import AUTO, EPITHETS, KNOWN, find, letters
from pipeline.data.opening import find_images
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source
from pipeline.data.sources.image_folder import species_of
from pipeline.errors import UserError


@dataclass(frozen=True)
class Collection:
    """Files by their paths within a folder, which may be absolute ones, each once."""

    folder: Path
    species: dict[str, str | None]
    """Of each file; None where it is not known."""
    passed_over: str = ""
    """The files that are no images, in words."""


def find_collection(images: Path, trained_on: Data | None) -> Collection:
    """What lies in a folder, or what a table names: its columns as those of the data that a model was trained on, else known by
    usual names. Raises UserError for a folder without images, a table without a column of files, and for what is neither."""
    if images.is_dir():
        found = find_images(images)
        return Collection(images, {name: species_of(name) for name in found.names}, found.passed_over())
    if not images.is_file():
        raise UserError(f"{images}: there is no such folder, and no such table")
    return _of_table(images, trained_on)


def _of_table(table: Path, trained_on: Data | None) -> Collection:
    source = open_source(Data.model_validate(_as_data(table, trained_on)))
    files: dict[str, str | None] = {}
    for split in source.splits():
        exist = source.columns(split)
        column = _column(exist, trained_on.columns.image if trained_on else None, "image")
        if column is None:
            usual = ", ".join(KNOWN["image"][:4])
            raise UserError(
                f"{table}: no column is known to hold the images' files: name it {usual}, … (it has {', '.join(exist)})"
            )
        for file, species in zip(_files(source, split, column), _species(source, split, exist, trained_on), strict=True):
            if file:
                files.setdefault(file, species)
    folder = source.folder()
    return Collection(table.parent if folder is None else folder, files)


def _as_data(table: Path, trained_on: Data | None) -> dict[str, Any]:
    """The table as a data set's; with the folder of images if it is the one that the model was trained on."""
    column = trained_on.columns.image if trained_on else KNOWN["image"][0]
    is_own = trained_on is not None and Path(trained_on.source).expanduser().resolve() == table.resolve()
    images = trained_on.images if trained_on and is_own else None
    return {"source": str(table), "columns": {"image": column}, "label": AUTO, "images": images}


def _column(exist: list[str], trained_on: str | None, what: str) -> str | None:
    """The column of the model's data if the table has it, else one of a usual name."""
    return trained_on if trained_on in exist else find(what, exist)


def _files(source: Source, split: str, column: str) -> list[str | None]:
    """Raises UserError where images lie in the table itself."""
    if (paths := source.paths(split, column)) is None:
        raise UserError(f"{source.where(split, 0)}: the images lie in the table itself: index files, which a search can show")
    return paths


def _species(source: Source, split: str, exist: list[str], trained_on: Data | None) -> Iterable[str | None]:
    """Of each row, None where the table does not tell."""
    label = _column(exist, trained_on.label if trained_on else None, "label")
    if label is None or letters(label) in EPITHETS:
        return [None] * source.rows(split)
    return [str(cell) if isinstance(cell, str) and cell.strip() else None for cell in source.table(split)[label].tolist()]
