"""Names by which columns are known: those of Darwin Core, GBIF and iNaturalist, and usual ones. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pipeline.config.data import Data
from pipeline.data.truth import RANK

if TYPE_CHECKING:
    import pandas as pd

AUTO = "auto"
"""What data.label may be instead of a column."""
RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")
EPITHETS = ("specificepithet", "epithet")
"""Names of columns with the second word of a scientific name."""
KNOWN: dict[str, tuple[str, ...]] = {
    "label": (
        "species", "scientificname", "taxonspeciesname", "taxonname", "acceptedscientificname", "speciesname", "binomial",
        "latinname", *EPITHETS,
    ),
    **{rank: (rank, f"taxon{rank}name", f"{rank}name") for rank in RANKS},
    "common": ("vernacularname", "commonname", "common", "englishname"),
    "sex": ("sex", "gender"),
    "view": ("view", "dorsalventral", "classdv", "side", "aspect"),
    "group": ("occurrenceid", "gbifid", "observationid", "observationuuid", "individualid", "specimenid", "organismid"),
    "image": ("filename", "filepath", "image", "imagepath", "path", "file", "imagefile", "photo"),
    "latitude": ("decimallatitude", "latitude", "lat"),
    "longitude": ("decimallongitude", "longitude", "lon", "lng", "long"),
    "url": ("imageurl", "accessuri", "identifier", "fileurl", "photourl", "url"),
}  # fmt: skip
"""What a column holds → the letters of its name, best first. Darwin Core: scientificName, specificEpithet, vernacularName; GBIF:
gbifID, species; iNaturalist: scientific_name, taxon_species_name, taxon_genus_name, common_name, image_url."""
KEYS = {"data.label": "label", "data.columns.ranks": "genus", "data.columns.image": "image"}


def letters(name: str) -> str:
    """A column's name without what people write in different ways: `taxon_genus_name`, `taxonGenusName`."""
    return re.sub(r"[^a-z]", "", name.lower())


def find(what: str, exist: Iterable[str]) -> str | None:
    """The column that is known to hold this; None if there is none."""
    there = {letters(name): name for name in reversed(list(exist))}
    return next((there[name] for name in KNOWN[what] if name in there), None)


def recognised(data: Data, exist: Sequence[str]) -> tuple[Data, list[str]]:
    """The data with columns that the configuration does not name taken by their names, of species (`data.label: auto`), ranks,
    common name, sex, view and group; and a line that says which."""
    said: dict[str, str] = {}
    columns = {name: getattr(data.columns, name) for name in ("common", "sex", "view", "group")}
    for name in (name for name, column in columns.items() if column is None):
        if found := find(name, exist):
            columns[name] = said[f"data.columns.{name}"] = found
    label, ranks = data.label, data.columns.ranks
    if label == AUTO and AUTO not in exist and (found := find("label", exist)):
        label = said["data.label"] = found
    if not ranks and (ranks := tuple(found for rank in RANKS if (found := find(rank, exist)) and found != label)):
        said["data.columns.ranks"] = f"[{', '.join(ranks)}]"
    lines = ", ".join(f"{key}={value}" for key, value in said.items())
    resolved = data.model_copy(update={"label": label, "columns": data.columns.model_copy(update={**columns, "ranks": ranks})})
    return resolved, [f"columns known by their names, for the configuration names none: {lines}"] if said else []


def same_meaning(key: str, column: str, exist: Sequence[str]) -> str:
    """What to say where a column is not there and another one is known to hold the same, as a beginning of a sentence."""
    what = KEYS.get(key, key.rpartition(".")[2])
    what = next((rank for rank in RANKS if letters(column) in KNOWN[rank]), what) if key == "data.columns.ranks" else what
    if (found := find(what, exist)) if what in KNOWN else None:
        return f"{found!r} is a usual name for it; "
    if what == "image" and (found := find("url", exist)):
        return f"{found!r} seems to hold addresses (data.download.url), and data.columns.image names files; "
    return ""


def with_genus(names: Sequence[str], table: pd.DataFrame, data: Data) -> list[str]:
    """Names of species, put together of genus and epithet where data.label is a column of epithets and the last rank is the
    genus."""
    ranks = data.columns.ranks
    if letters(data.label or "") not in EPITHETS or not ranks or letters(ranks[-1]) not in KNOWN["genus"]:
        return list(names)
    genera = table[f"{RANK}{len(ranks) - 1}"]
    return [f"{genus} {name}" if genus else name for genus, name in zip(genera, names, strict=True)]
