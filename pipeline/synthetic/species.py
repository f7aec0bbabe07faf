"""Generated species: ground beetles of three families in a long tail, seen from above and from below, and the tree of their
descent.

What carries the signal. Traits (how long and broad a beetle is, its colour, the furrows and spots of its wing cases, its legs)
drift along the tree as Brownian motion does: from the root to families, genera and species, each step with a variance as long as
the branch. So species that split late look alike, and what a tree says of two species agrees with their images. Each specimen
varies a little around its species; males are narrower, with longer jaws; from below pattern does not show, but colour and legs
do.

Numbers of specimens fall as one over the rank (a long tail): the most common species has hundreds, a third of the species one or
two. Most specimens are photographed from both sides, which no split may part: `specimenID` groups them. Columns are Darwin
Core's: family, genus, scientificName (with author and year), vernacularName, sex; and `view`. All rows are of the split `train`.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.synthetic.writing import Pixels, check_request, encode, paint, write_once

COLUMNS = ("filename", "specimenID", "family", "genus", "scientificName", "vernacularName", "sex", "view")
FAMILIES = {
    "Carabidae": ("Carabus", "Pterostichus", "Amara", "Harpalus", "Bembidion"),
    "Staphylinidae": ("Staphylinus", "Philonthus", "Quedius", "Ocypus"),
    "Tenebrionidae": ("Tenebrio", "Blaps", "Eleodes"),
}
EPITHETS = ("nigra", "aurata", "viridis", "campestris", "sylvatica", "alpina", "lunata", "striata")
AUTHORS = ("Linnaeus, 1758", "(Fabricius, 1775)", "Panzer, 1796", "Müller, 1764")
ADJECTIVES = ("black", "golden", "green", "field", "wood", "alpine", "moon-spotted", "striped")
PER_GENUS = (2, 6)
"""How many species a genus has: from the first to the second."""
AGES = (100.0, 60.0, 30.0)
"""Million years since the root, since genera of a family parted, and since species of a genus did."""
MOST, EXPONENT = 220, 1.05
"""Specimens of the most common species at scale 1, and how fast their number falls with the rank."""
BOTH_VIEWS = 0.8
"""Share of the specimens that are photographed from below as well."""
TRAITS = 8
WITHIN = 0.16
"""Standard deviation of traits within a species, where that over the whole tree is about 1."""
SIDE = 96
RECIPE = 1
"""Counts up when the same seed and size would give other data."""

Form = Literal["csv", "folder"]
Row = dict[str, str]
Traits = Float64[np.ndarray, " traits"]
Grid = NDArray[np.floating[Any]]
"""Numbers [SIDE, SIDE]."""


@dataclass(frozen=True)
class Species:
    """One species: its names and its mean traits, each about N(0, 1) over the whole tree."""

    family: str
    genus: str
    epithet: str
    author: str
    common: str
    traits: Traits

    @property
    def name(self) -> str:
        return f"{self.genus} {self.epithet}"


@dataclass(frozen=True)
class Specimen:
    """One beetle, and its random stream."""

    id: str
    species: Species
    sex: str
    seed: tuple[int, int]


# ---------------------------------------------------------------- species
def make_species(seed: int) -> list[Species]:
    """The species of all families, their traits drifted along the tree."""
    rng, found = np.random.default_rng([seed, 1]), list[Species]()
    steps = [math.sqrt((a - b) / AGES[0]) for a, b in zip(AGES, (*AGES[1:], 0.0), strict=True)]
    for family, genera in FAMILIES.items():
        of_family = steps[0] * rng.standard_normal(TRAITS)
        for genus in genera:
            of_genus = of_family + steps[1] * rng.standard_normal(TRAITS)
            for place in sorted(rng.permutation(len(EPITHETS))[: rng.integers(*PER_GENUS, endpoint=True)].tolist()):
                own = of_genus + steps[2] * rng.standard_normal(TRAITS)
                author = AUTHORS[int(rng.integers(len(AUTHORS)))]
                common = f"{ADJECTIVES[place]} {genus.lower()} beetle"
                found.append(Species(family, genus, EPITHETS[place], author, common, own))
    return found


def newick(species: list[Species]) -> str:
    """The tree, with the lengths of branches in million years; names have underscores for blanks, as in most trees."""
    families: dict[str, dict[str, list[str]]] = {}
    for each in species:
        families.setdefault(each.family, {}).setdefault(each.genus, []).append(each.name.replace(" ", "_"))
    root, genera_at, species_at = AGES
    texts = []
    for family, genera in families.items():
        inner = [
            f"({','.join(f'{name}:{species_at:g}' for name in names)}){genus}:{genera_at - species_at:g}"
            for genus, names in genera.items()
        ]
        texts.append(f"({','.join(inner)}){family}:{root - genera_at:g}")
    return f"({','.join(texts)})Coleoptera;\n"


def make_specimens(seed: int, scale: float) -> list[Specimen]:
    """The specimens of all species in a long tail. Raises UserError for a scale that is none."""
    if not 0 < scale < math.inf:
        raise UserError(f"scale {scale}: the size of generated data is a number above 0; 1 is about 2,000 images.")
    species, rng = make_species(seed), np.random.default_rng([seed, 2])
    order = rng.permutation(len(species))
    counts = [max(1, round(MOST * scale / (1 + rank) ** EXPONENT)) for rank in range(len(species))]
    kinds = [species[i] for i, n in zip(order, counts, strict=True) for _ in range(n)]
    mixed = [kinds[i] for i in rng.permutation(len(kinds))]
    sexes = rng.choice(["female", "male", ""], len(mixed), p=[0.45, 0.45, 0.1])
    return [Specimen(f"SP{10_000 + i:06d}", each, str(sexes[i]), (seed, 10 + i)) for i, each in enumerate(mixed)]


# ---------------------------------------------------------------- drawing
def draw_specimen(rng: np.random.Generator, traits: Traits, sex: str, view: str) -> Pixels:
    """A photograph [SIDE, SIDE, 3], values within 0 … 1: a beetle on a pale ground, in a light of its own."""
    x, y = _grid(rng)
    squash = np.tanh(traits)  # -1 … 1
    half, length = 0.13 + 0.05 * squash[0] - 0.012 * (sex == "male"), 0.24 + 0.06 * squash[1]
    body, legs = _colour(squash), _colour(np.roll(squash, 3)) * 0.8
    image: Grid = np.repeat((0.88 + 0.02 * rng.standard_normal(x.shape))[..., None], 3, axis=2)
    image = _draw_legs(image, x, y, legs, 0.012 + 0.006 * (squash[2] + 1))
    jaws = np.abs(x) < 0.02 + 0.015 * (sex == "male")
    image = paint(image, _cover(y, -0.42 - 0.03 * (sex == "male"), -0.33) * jaws, 0.5 * body)
    image = paint(image, _oval(x, y + 0.30, 0.08 + 0.02 * squash[3], 0.07), 0.7 * body)
    image = paint(image, _oval(x, y + 0.20, half * (0.85 + 0.1 * squash[4]), 0.09), 0.85 * body)
    case = _oval(x, y - 0.08, half, length)
    image = paint(image, case, body if view == "dorsal" else 0.55 * body + 0.1)
    image = (_draw_pattern if view == "dorsal" else _draw_segments)(image, x, y, case, squash, half)
    light = math.exp(rng.normal(0, 0.05)) * (1 + rng.normal(0, 0.02, 3))
    return np.asarray(np.clip(image * light, 0, 1), np.float32)


def _grid(rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Coordinates [SIDE, SIDE] across and along the body, -0.5 … 0.5, a little turned, moved and scaled."""
    y, x = (np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2) / SIDE
    x, y = x - rng.normal(0, 0.015), y - rng.normal(0, 0.015)
    angle, size = rng.normal(0, 0.06), math.exp(rng.normal(0, 0.03))
    cos, sin = math.cos(angle) / size, math.sin(angle) / size
    return np.asarray(cos * x + sin * y, np.float32), np.asarray(cos * y - sin * x, np.float32)


def _colour(squash: Traits) -> Float64[np.ndarray, 3]:
    return np.array([0.38 + 0.28 * squash[5], 0.30 + 0.22 * squash[6], 0.24 + 0.18 * squash[7]])


def _oval(x: Grid, y: Grid, across: float, along: float) -> Pixels:
    """Coverage of an ellipse around the origin, about a pixel soft."""
    radius = np.hypot(x / across, y / along)
    return np.asarray(np.clip((1 - radius) * min(across, along) * SIDE + 0.5, 0, 1), np.float32)


def _cover(y: Grid, low: float, high: float) -> Pixels:
    return np.asarray(np.clip(np.minimum(y - low, high - y) * SIDE + 0.5, 0, 1), np.float32)


def _draw_legs(image: Grid, x: Grid, y: Grid, colour: Float64[np.ndarray, 3], half: float) -> Pixels:
    for start, slope in ((-0.17, -0.6), (-0.05, 0.25), (0.05, 0.8)):
        line = np.abs(y - start - slope * (np.abs(x) - 0.1)) * math.cos(math.atan(slope))
        cover = np.clip((half - line) * SIDE + 0.5, 0, 1) * (np.abs(x) < 0.36)
        image = paint(image, np.asarray(cover, np.float32), colour)
    return image


def _draw_pattern(image: Grid, x: Grid, y: Grid, case: Grid, squash: Traits, half: float) -> Grid:
    """Furrows along the wing cases, and two spots on each."""
    furrows = 0.5 + 0.5 * np.cos(np.abs(x) / half * math.pi * (5 + 2 * squash[2]))
    image = paint(image, np.asarray(case * furrows * (0.35 + 0.3 * squash[3]), np.float32), np.zeros(3))
    bright = np.array([0.9, 0.75 + 0.2 * squash[6], 0.35 + 0.3 * squash[7]])
    size = 0.02 + 0.02 * (1 + squash[4])
    for place in (-0.02 + 0.05 * squash[5], 0.14 + 0.05 * squash[0]):
        image = paint(image, case * _oval(np.abs(x) - 0.5 * half, y - place, size, size), bright)
    return image


def _draw_segments(image: Grid, x: Grid, y: Grid, case: Grid, squash: Traits, half: float) -> Grid:
    """The abdomen's segments."""
    rings = np.clip(3 * np.cos((y - 0.08 * (x / half) ** 2) * math.pi * (26 + 4 * squash[1])) - 2, 0, 1)
    return paint(image, np.asarray(case * rings * 0.6, np.float32), np.full(3, 0.08))


# ---------------------------------------------------------------- writing
def specimen_rows(specimen: Specimen) -> Iterator[tuple[Row, bytes]]:
    """The photographs of a specimen, one or two, with their rows."""
    rng, species = np.random.default_rng(specimen.seed), specimen.species
    traits = species.traits + WITHIN * rng.standard_normal(TRAITS)
    both = rng.random() < BOTH_VIEWS
    for view in ("dorsal", "ventral")[: 1 + int(both)]:
        name = f"{specimen.id}_{view}.jpg"
        cells = (
            specimen.id,
            species.family,
            species.genus,
            f"{species.name} {species.author}",
            species.common,
            specimen.sex,
            view,
        )
        yield dict(zip(COLUMNS, (name, *cells), strict=True)), encode(draw_specimen(rng, traits, specimen.sex, view))


def write(out: Path, seed: int = 0, scale: float = 1.0, form: str = "csv") -> dict[str, int]:
    """Write the data set to the folder `out`, wholly or not at all; images per split. `csv`: metadata.csv, images/ and tree.nwk;
    `folder`: family/genus/Genus_species/ with the images, and tree.nwk. The same data already there is left as it is; anything
    else there raises UserError, and so do a negative seed, a scale that is none and another form."""
    check_request(seed, form, ("csv", "folder"))
    specimens = make_specimens(seed, scale)

    def draw(folder: Path) -> dict[str, int]:
        (folder / "tree.nwk").write_text(newick(make_species(seed)), encoding="utf-8")
        rows = (pair for specimen in specimens for pair in specimen_rows(specimen))
        return {"train": {"csv": _write_csv, "folder": _write_folders}[form](folder, rows)}

    recipe = {"task": "species", "recipe": RECIPE, "seed": seed, "specimens": len(specimens), "form": form}
    return write_once(out, recipe, draw)


def _write_csv(folder: Path, rows: Iterator[tuple[Row, bytes]]) -> int:
    (folder / "images").mkdir()
    n = 0
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row, image in rows:
            (folder / "images" / row["filename"]).write_bytes(image)
            table.writerow(row | {"filename": f"images/{row['filename']}"})
            n += 1
    return n


def _write_folders(folder: Path, rows: Iterator[tuple[Row, bytes]]) -> int:
    n = 0
    for row, image in rows:
        name = "_".join(row["scientificName"].split()[:2])
        path = folder / row["family"] / row["genus"] / name / row["filename"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        n += 1
    return n
