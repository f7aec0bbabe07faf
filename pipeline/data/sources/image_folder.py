"""A folder of images whose folders name the species: `family/genus/species/`, `genus/species/`, `Genus_species/`, in folders of
splits or not."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config.data import Data
from pipeline.data.known_columns import RANKS
from pipeline.data.sources.base import TableSource, encoded
from pipeline.data.sources.names import SPLIT_OF_WORD
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SPECIES = "species"
"""The column with the species, as data.label may name it."""
BINOMIAL = re.compile(r"[A-Z][a-zë-]+ [a-zë-]+")
NUMBERED = re.compile(r"\d+_[A-Z][a-z]+(_[A-Za-z-]+){6}")
"""How iNaturalist's data sets name folders: a number, six ranks and the epithet."""


class _Image(NamedTuple):
    """One image: its path in the folder, its species, and its ranks above by name."""

    path: str
    species: str
    taxa: dict[str, str]


class FolderSource(TableSource):
    """Images in folders. The column of images is called as data.columns.image says; the others are `species` and the ranks that
    folders tell: family and genus of family/genus/species, genus of genus/species and of Genus_species."""

    kind = "images"

    def __init__(self, data: Data, folder: Path, names: list[str]) -> None:
        super().__init__(data, folder, {})
        self.base, self._names = folder, names

    def splits(self) -> list[str]:
        return list(self._images)

    def columns(self, split: str) -> list[str]:
        told = {rank for images in self._images.values() for image in images for rank in image.taxa}
        return [self.data.columns.image, SPECIES, *(rank for rank in RANKS if rank in told)]

    plain = columns

    def table(self, split: str) -> pd.DataFrame:
        import pandas as pd

        image, species, *ranks = self.columns(split)
        cells = [(each.path, each.species, *(each.taxa.get(rank) for rank in ranks)) for each in self._images[split]]
        return pd.DataFrame(cells, columns=[image, species, *ranks], dtype=object)

    def image_names(self, split: str, column: str) -> list[str | None]:
        return [image.path for image in self._images[split]]

    def image_bytes(self, split: str, row: int, column: str) -> bytes:
        return encoded(self._images[split][row].path, self.base)

    def where(self, split: str, row: int) -> str:
        return str(self.base / self._images[split][row].path)

    def table_files(self) -> list[Path]:
        """The folders, which change when an image or a folder comes or goes."""
        inside = {parent for name in self._names for parent in Path(name).parents}
        return [self.base.resolve() / folder for folder in sorted(inside)]

    def notes(self) -> list[str]:
        return [f"{', '.join(self.columns('')[1:])}: taken from the names of folders"]

    @cached_property
    def _images(self) -> dict[str, list[_Image]]:
        """Of each split. Raises UserError for images that lie at different depths, or in no folder."""
        parts = {name: name.split("/")[:-1] for name in self._names}
        has_splits = all(folders and folders[0].lower() in SPLIT_OF_WORD for folders in parts.values())
        found: dict[str, list[_Image]] = {}
        for name, folders in parts.items():
            split = SPLIT_OF_WORD[folders[0].lower()] if has_splits else "train"
            found.setdefault(split, []).append(_Image(name, *_taxa(folders[has_splits:])))
        self._check_depths({name: len(folders) - has_splits for name, folders in parts.items()})
        return found

    def _check_depths(self, depths: dict[str, int]) -> None:
        first, *_ = depths
        odd = next((name for name, depth in depths.items() if depth != depths[first] or not 1 <= depth <= len(RANKS) + 1), None)
        if odd is None:
            return
        how = "every image lies in as many folders: family/genus/species/, genus/species/ or Genus_species/"
        other = f", and {first} in {depths[first]}" if odd != first else ""
        raise UserError(f"data.source {self.base}: {odd} lies in {depths[odd]} folders{other}. In a folder of species {how}.")


def species_of(name: str) -> str | None:
    """The species that the folders of an image name, by its path in the whole folder; None where they name none."""
    species, _ = _taxa(name.split("/")[:-1])
    return species if BINOMIAL.match(species) else None


def _taxa(folders: list[str]) -> tuple[str, dict[str, str]]:
    """The species that folders name, and the ranks above it."""
    if len(folders) == 1 and NUMBERED.fullmatch(folders[0]):
        folders = folders[0].split("_")[1:]
    *above, species = (folder.replace("_", " ").strip() for folder in folders or ("",))
    ranks = dict(zip(reversed(RANKS), reversed(above), strict=False))
    genus = ranks.get("genus")
    if genus and species.partition(" ")[0].casefold() != genus.casefold():
        species = f"{genus} {species}"
    if not genus and BINOMIAL.match(species):
        ranks["genus"] = species.partition(" ")[0]
    return species, ranks
