"""Generated butterflies: the hybrid challenge's schema, wings whose patterns tell subspecies and their hybrids.

What carries the signal. A subspecies has a wing pattern (where the forewing's band lies, how broad and how yellow it is,
the patch at its base, the hindwing's bar and rays, white spots), and each specimen shows it with variation of its own. A
hybrid's pattern lies between those of its two parents, in each of its traits at a place of its own. So no single trait
tells hybrids: what is between two subspecies may be what a third one looks like.

As in the challenge, `ssp_indicator` says which of its three scores a row counts to: `major` and `minor` hybrids are of
species A, `mimic` ones of species B, whose subspecies resemble those of A. All rows are of the split `train`: folds deal
them out, by CAMID, because some specimens have two photographs.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.synthetic.writing import Pixels, check_request, encode, paint, write_once

COLUMNS = (
    "CAMID", "file_url", "hybrid_stat", "split", "zenodo_link", "md5", "subspecies", "parent_subspecies_1",
    "parent_subspecies_2", "filename", "ssp_indicator",
)  # fmt: skip
ADDRESS = "https://example.org/butterflies"
"""Stands for the archive: the images are here already."""
PATTERNS = {
    8: (0.58, 0.15, 0.05, 0.05, 0.85, 0.05, 0.10),
    9: (0.70, 0.09, 0.70, 0.75, 0.10, 0.80, 0.15),
    2: (0.50, 0.11, 0.35, 0.45, 0.55, 0.10, 0.70),
    7: (0.66, 0.17, 0.55, 0.10, 0.15, 0.45, 0.85),
    11: (0.60, 0.13, 0.15, 0.10, 0.70, 0.10, 0.30),
    13: (0.70, 0.11, 0.60, 0.65, 0.20, 0.65, 0.35),
}
"""Subspecies → its mean pattern, as in `Pattern`. 11 and 13 are of species B and resemble 8 and 9 of species A."""
PARTS = (
    ((8,), 4, "major"), ((9,), 3, "major"), ((2,), 3, "minor"), ((7,), 2, "minor"), ((11,), 2, "mimic"), ((13,), 2, "mimic"),
    ((8, 9), 2, "major"), ((2, 7), 1, "minor"), ((11, 13), 1, "mimic"),
)  # fmt: skip
"""Subspecies (two: the parents of hybrids), how many specimens of twenty, and ssp_indicator; a fifth are hybrids."""
BLOCK = sum(count for _, count, _ in PARTS)
SPREAD = np.array([0.025, 0.015, 0.09, 0.10, 0.10, 0.10, 0.10])
"""Standard deviation of the traits between specimens of one subspecies."""
SECOND = 0.15
"""Share of the specimens that have a second photograph."""
HEIGHT, WIDTH = 96, 128
RECIPE = 1
"""Counts up when the same seed and size would give other data."""

Form = Literal["csv"]
Row = dict[str, str]
Grid = NDArray[np.floating[Any]]
"""Numbers [HEIGHT, WIDTH]."""


@dataclass(frozen=True)
class Specimen:
    """One butterfly: its parents (one: it is none's hybrid), the score it counts to, and its random stream."""

    camid: str
    parents: tuple[int, ...]
    indicator: str
    seed: tuple[int, int]


@dataclass(frozen=True)
class Pattern:
    """A wing pattern: the forewing's band from base (0) to tip (1), its half width, and from red (0) to yellow (1); then
    the strength, 0 … 1, of the base's red patch, the hindwing's yellow bar and red rays, and of the white spots."""

    band: float
    width: float
    hue: float
    base: float
    bar: float
    rays: float
    spots: float


# ---------------------------------------------------------------- specimens
def make_specimens(seed: int, scale: float) -> list[Specimen]:
    """2,000 specimens times `scale`, in blocks of twenty with every part in its share. Raises UserError."""
    if not 0 < scale < math.inf:
        raise UserError(f"scale {scale}: the size of generated data is a number above 0; 1 is about 2,300 images.")
    blocks = max(1, round(2000 / BLOCK * scale))
    kinds = [(parents, indicator) for parents, count, indicator in PARTS for _ in range(count * blocks)]
    order = np.random.default_rng([seed, 0]).permutation(len(kinds))
    shuffled = enumerate(kinds[k] for k in order)
    return [Specimen(f"CAM{10_000 + i:06d}", parents, score, (seed, 1 + i)) for i, (parents, score) in shuffled]


def make_pattern(rng: np.random.Generator, parents: tuple[int, ...]) -> Pattern:
    """A specimen's pattern: its subspecies' own, or in each trait somewhere between its parents', with variation."""
    means = np.array([PATTERNS[parent] for parent in parents])
    share = np.clip(rng.normal(0.5, 0.12, means.shape[1]), 0, 1)
    mean = means[0] if len(parents) == 1 else share * means[0] + (1 - share) * means[1]
    low = np.array([0.35, 0.04, 0, 0, 0, 0, 0])
    return Pattern(*map(float, np.clip(mean + rng.normal(0, 1, len(SPREAD)) * SPREAD, low, 1)))


# ---------------------------------------------------------------- drawing
def draw_specimen(rng: np.random.Generator, pattern: Pattern) -> Pixels:
    """A photograph [HEIGHT, WIDTH, 3], values within 0 … 1: a butterfly spread on a pale ground, in a light of its own."""
    across, along = _body_grid(rng)
    image = np.repeat((0.86 + 0.02 * rng.standard_normal(across.shape, np.float32))[..., None], 3, axis=2)
    image = _draw_hindwing(image, across, along, pattern)
    image = _draw_forewing(image, across, along, pattern)
    image = paint(image, _cover(np.hypot(across / 0.025, (along - 0.02) / 0.20), 0.025), _colour(0.10, 0.08, 0.07))
    light = math.exp(rng.normal(0, 0.05)) * (1 + rng.normal(0, 0.02, 3))
    return np.asarray(np.clip(image * light, 0, 1), np.float32)


def _body_grid(rng: np.random.Generator) -> tuple[Pixels, Pixels]:
    """Coordinates [HEIGHT, WIDTH] away from the body's axis (both sides alike) and along it, in widths of the frame."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    x = (x - (WIDTH - 1) / 2) / WIDTH - np.float32(rng.normal(0, 0.01))
    y = (y - (HEIGHT - 1) / 2) / WIDTH - np.float32(rng.normal(0, 0.01))
    angle, size = rng.normal(0, 0.04), math.exp(rng.normal(0, 0.03))
    cos, sin = math.cos(angle) / size, math.sin(angle) / size
    return np.asarray(np.abs(cos * x + sin * y), np.float32), np.asarray(cos * y - sin * x, np.float32)


def _draw_forewing(image: Pixels, across: Pixels, along: Pixels, pattern: Pattern) -> Pixels:
    tilt = -0.45
    reach = math.cos(tilt) * across + math.sin(tilt) * (along + 0.04)  # from the base outwards
    side = math.cos(tilt) * (along + 0.04) - math.sin(tilt) * across
    place = np.asarray(reach / 0.46, np.float32)
    wing = _cover(np.hypot((place - 0.5) / 0.5, side / 0.11), 0.11)
    red, band = _colour(0.75, 0.16, 0.08), _colour(0.75 + 0.2 * pattern.hue, 0.16 + 0.66 * pattern.hue, 0.10)
    wings = paint(image, wing, _colour(0.12, 0.09, 0.08))
    wings = paint(wings, pattern.base * wing * _bump(place, 0.15, 0.13), red)
    wings = paint(wings, wing * _bump(place, pattern.band, pattern.width), band)
    spots = _bump(place, 0.88, 0.04) * (np.cos(side * 90) > 0)
    return paint(wings, pattern.spots * wing * spots, _colour(0.95, 0.95, 0.9))


def _draw_hindwing(image: Pixels, across: Pixels, along: Pixels, pattern: Pattern) -> Pixels:
    wing = _cover(np.hypot((across - 0.14) / 0.15, (along - 0.13) / 0.13), 0.13)
    angle, reach = np.arctan2(along - 0.02, across), np.hypot(across, along - 0.02)
    rays = np.clip(3 * np.cos(angle * 14) - 1.5, 0, 1) * _bump(reach, 0.17, 0.09)
    bar = _bump(along - np.float32(0.3) * across, 0.06, 0.022)
    wings = paint(image, wing, _colour(0.12, 0.09, 0.08))
    wings = paint(wings, pattern.bar * wing * bar, _colour(0.92, 0.82, 0.25))
    return paint(wings, pattern.rays * wing * rays, _colour(0.75, 0.16, 0.08))


def _colour(red: float, green: float, blue: float) -> Pixels:
    return np.array([red, green, blue], np.float32)


def _cover(radius: Grid, least: float) -> Pixels:
    """Coverage [HEIGHT, WIDTH] of a shape whose edge is at radius 1, about a pixel soft; `least`: its smaller half."""
    return np.asarray(np.clip((1 - radius) * least * WIDTH + 0.5, 0, 1), np.float32)


def _bump(place: Grid, centre: float, half: float) -> Pixels:
    """1 within `half` of the centre, falling off softly."""
    return np.asarray(np.clip((1 - np.abs(place - centre) / half) * 3 + 0.5, 0, 1), np.float32)


# ---------------------------------------------------------------- rows
def specimen_rows(specimen: Specimen) -> Iterator[tuple[Row, bytes]]:
    """The photographs of a specimen, one or two: their rows in the challenge's columns, and their JPEGs."""
    rng = np.random.default_rng(specimen.seed)
    pattern = make_pattern(rng, specimen.parents)
    for ending in ("", "_2")[: 1 + int(rng.random() < SECOND)]:
        image = encode(draw_specimen(rng, pattern))
        yield (_row(specimen, f"{specimen.camid}{ending}.jpg", hashlib.md5(image, usedforsecurity=False).hexdigest()), image)


def _row(specimen: Specimen, name: str, md5: str) -> Row:
    is_hybrid = len(specimen.parents) == 2
    first, second = (f"{parent}.0" for parent in specimen.parents * (2 // len(specimen.parents)))
    status, own, parents = ("hybrid", "", (first, second)) if is_hybrid else ("non-hybrid", first, ("", ""))
    cells = (specimen.camid, f"{ADDRESS}/{name}", status, "train", ADDRESS, md5, own, *parents, name, specimen.indicator)
    return dict(zip(COLUMNS, cells, strict=True))


def write(out: Path, seed: int = 0, scale: float = 1.0, form: str = "csv") -> dict[str, int]:
    """Write the data set to the folder `out`, wholly or not at all: butterflies.csv and images/; images per split. The same data
    already there is left as it is; anything else there raises UserError, and so do a negative seed, a scale that is none and
    another form."""
    check_request(seed, form, ("csv",))
    specimens = make_specimens(seed, scale)

    def draw(folder: Path) -> dict[str, int]:
        (folder / "images").mkdir()
        n = 0
        with (folder / "butterflies.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, COLUMNS)
            table.writeheader()
            for row, image in (pair for specimen in specimens for pair in specimen_rows(specimen)):
                (folder / "images" / row["filename"]).write_bytes(image)
                table.writerow(row)
                n += 1
        return {"train": n}

    recipe = {"task": "butterflies", "recipe": RECIPE, "seed": seed, "specimens": len(specimens), "form": form}
    return write_once(out, recipe, draw)
