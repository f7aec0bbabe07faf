"""Generated pasture: photographs of quadrats in the schema of CSIRO's Image2Biomass challenge, and the dry matter in them.

What carries the signal. Green grass, clover and dead matter cover the ground as more of each saturates (1 − exp(−grams / a)), so
grams follow from the colours of an image, not in a straight line; tall swards are darker in their depth. The left and the right
half share what there is unequally, and an image's grams are the sum of its halves'.

What misleads. Images of one sampling (a state and a day) share their level of biomass, and their light and soil too: a model that
learns samplings by their look is better where folds part the images of one. Some samplings have a date stamped into the image,
some show a card. As in the challenge, `train.csv` has a row for each image and target, `test.csv` has no targets; `solution.csv`
has them, which there nobody sees.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64
from PIL import Image, ImageDraw, ImageFont

from pipeline.errors import UserError
from pipeline.synthetic.writing import check_request, encode, write_once

COLUMNS = (
    "sample_id", "image_path", "Sampling_Date", "State", "Species", "Pre_GSHH_NDVI", "Height_Ave_cm", "target_name", "target",
)  # fmt: skip
TARGETS = ("Dry_Clover_g", "Dry_Dead_g", "Dry_Green_g", "Dry_Total_g", "GDM_g")
"""In the order of the challenge's rows."""
STATES = ("NSW", "Tas", "Vic", "WA")
SPECIES = (
    "Clover", "Fescue", "Fescue_CrumbWeed", "Lucerne", "Mixed", "Phalaris", "Phalaris_BarleyGrass_SilverGrass_SpearGrass_Clover",
    "Phalaris_Clover", "Phalaris_Clover_Ryegrass_Barleygrass_Bromegrass", "Phalaris_Ryegrass_Clover", "Ryegrass",
    "Ryegrass_Clover", "SubcloverDalkeith", "SubcloverLosa", "WhiteClover",
)  # fmt: skip
IMAGES, TESTED = 357, 40
"""Images with targets, and others, at scale 1."""
OF_SAMPLING = 13
"""Images of one sampling, about."""
HEIGHT, WIDTH, ZOOM = 500, 1000, 2
"""Of the drawing, and by how much the photograph is larger."""
PARTS = ("green", "clover", "dead")
MEANS, SATURATION = np.array([22.0, 7.0, 10.0]), np.array([20.0, 12.0, 16.0])
"""Grams of each part in an image, and at how many in a half of one its cover is 1 − 1/e."""
COLOURS = np.array([[0.24, 0.42, 0.14], [0.42, 0.62, 0.30], [0.76, 0.66, 0.42]], np.float32)
SOIL = np.array([0.40, 0.30, 0.22], np.float32)
RECIPE = 1
"""Counts up when the same seed and size would give other data."""

Row = dict[str, str]
Grams = Float64[np.ndarray, "halves parts"]
Pixels = Float32[np.ndarray, "height width 3"]


@dataclass(frozen=True)
class Sampling:
    """A state and a day: the level of what grows, its light and soil, and what stands in its images."""

    state: str
    date: str
    species: str
    level: Float64[np.ndarray, " parts"]
    light: Float64[np.ndarray, " colours"]
    stamped: bool
    card: bool


@dataclass(frozen=True)
class Quadrat:
    """One photograph: its sampling, and its random stream."""

    name: str
    sampling: Sampling
    seed: tuple[int, ...]


# ---------------------------------------------------------------- what grows
def make_samplings(rng: np.random.Generator, n: int) -> list[Sampling]:
    """`n` samplings, in 2015, each on a day of its own, in one state after another."""
    days = sorted(rng.choice(300, n, replace=n > 300).tolist())
    return [_make_sampling(rng, day, STATES[i % len(STATES)]) for i, day in enumerate(days)]


def _make_sampling(rng: np.random.Generator, day: int, state: str) -> Sampling:
    month, of_month = divmod(day, 28)
    species = SPECIES[int(rng.integers(len(SPECIES)))]
    clover = 0.2 if "lover" not in species else 1.6
    level = MEANS * np.exp(rng.normal(0, 0.55, 3)) * (1.0, clover, 1.0)
    light = np.exp(rng.normal(0, 0.10) + rng.normal(0, 0.05, 3)) * np.exp(-0.10 * (level.sum() / MEANS.sum() - 1))
    return Sampling(state, f"2015/{month + 1}/{of_month + 1}", species, level, light, rng.random() < 0.5, rng.random() < 0.3)


def make_quadrats(seed: int, n: int, part: int) -> list[Quadrat]:
    """`n` photographs of as many samplings as they fill; `part` tells those with targets (0) from others (1)."""
    rng = np.random.default_rng([seed, part])
    samplings = make_samplings(rng, max(6 if part == 0 else 2, round(n / OF_SAMPLING)))
    names = rng.choice(10**9, n, replace=False) + 10**9 * (1 + part)
    of = [samplings[i % len(samplings)] for i in range(n)]
    return [Quadrat(f"ID{name}", of[i], (seed, part, 1 + i)) for i, name in enumerate(names.tolist())]


def grow(rng: np.random.Generator, sampling: Sampling) -> Grams:
    """Grams of each part in the left and in the right half."""
    whole = sampling.level * np.exp(rng.normal(0, 0.45, 3))
    whole[1] *= rng.random() < 0.7  # many quadrats have no clover
    left = rng.beta(4, 4, 3)
    return np.stack([whole * left, whole * (1 - left)])


# ---------------------------------------------------------------- drawing
def draw(rng: np.random.Generator, quadrat: Quadrat, grams: Grams, height: float) -> Pixels:
    """The photograph [HEIGHT · ZOOM, WIDTH · ZOOM, 3], values within 0 … 1."""
    halves = [_draw_half(rng, half, height) for half in grams]
    image = np.concatenate(halves, axis=1) * quadrat.sampling.light.astype(np.float32)
    large = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).resize(
        (WIDTH * ZOOM, HEIGHT * ZOOM), Image.Resampling.BILINEAR
    )
    _mark(large, quadrat.sampling)
    return np.asarray(large, np.float32) / 255


def _draw_half(rng: np.random.Generator, grams: Float64[np.ndarray, " parts"], height: float) -> Pixels:
    """Ground, and on it each part where a field of its own is highest, so that it covers its share."""
    shape = (HEIGHT, WIDTH // 2)
    shade = (1 + 0.10 * rng.standard_normal(shape)).astype(np.float32)[..., None]
    image = np.broadcast_to(SOIL, (*shape, 3)) * shade
    for part in rng.permutation(len(PARTS)).tolist():
        cover = 1 - math.exp(-float(grams[part] / SATURATION[part]))
        field = _field(rng, shape, cells=(18, 40, 12)[part])
        there = field > np.quantile(field, 1 - cover) if cover > 0.002 else np.zeros(shape, bool)
        depth = 1 - 0.3 * min(height / 30, 1) * (1 - field[..., None]) * (part != 2)
        image = np.where(there[..., None], COLOURS[part] * depth * shade, image)
    return np.asarray(image, np.float32)


def _field(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Float32[np.ndarray, "height width"]:
    """A smooth field, 0 … 1, with about so many bumps across, and a little grain."""
    coarse = Image.fromarray(rng.random((cells, cells), np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC)
    return np.clip(np.asarray(coarse, np.float32) + 0.15 * rng.standard_normal(shape, np.float32), 0, 1)


def _mark(image: Image.Image, sampling: Sampling) -> None:
    """The date in the lower right corner, a card in the lower left one."""
    pen = ImageDraw.Draw(image)
    if sampling.stamped:
        pen.text((image.width - 330, image.height - 90), sampling.date, (255, 140, 20), ImageFont.load_default(64))
    if sampling.card:
        pen.rectangle((20, image.height - 160, 260, image.height - 20), (235, 235, 230))


# ---------------------------------------------------------------- rows
def rows_of(quadrat: Quadrat, folder: str) -> tuple[list[Row], bytes]:
    """A photograph's rows in the challenge's columns, one for each target, and its JPEG."""
    rng = np.random.default_rng(quadrat.seed)
    grams = grow(rng, quadrat.sampling)
    green, clover, dead = (round(float(each), 4) for each in grams.sum(axis=0))
    height = max(1.0, 2 + 0.35 * (green + clover + dead) * math.exp(rng.normal(0, 0.25)))
    cover = 1 - math.exp(-(green + clover) / 45)
    values = (clover, dead, green, green + clover + dead, green + clover)
    of = quadrat.sampling
    known = {
        "image_path": f"{folder}/{quadrat.name}.jpg", "Sampling_Date": of.date, "State": of.state, "Species": of.species,
        "Pre_GSHH_NDVI": f"{min(0.2 + 0.6 * cover + rng.normal(0, 0.04), 0.95):.2f}", "Height_Ave_cm": f"{height:.4f}",
    }  # fmt: skip
    rows = [
        {"sample_id": f"{quadrat.name}__{target}", **known, "target_name": target, "target": f"{value:.4f}"}
        for target, value in zip(TARGETS, values, strict=True)
    ]
    return rows, encode(draw(rng, quadrat, grams, height))


def write(out: Path, seed: int = 0, scale: float = 1.0, form: str = "csv") -> dict[str, int]:
    """Write the data set to the folder `out`, wholly or not at all: train.csv and train/, test.csv and test/, what a submission
    looks like (sample_submission.csv) and what would be right (solution.csv); images per split. The same data already there is
    left as it is; anything else there raises UserError, and so do a negative seed, a scale that is none and another form."""
    check_request(seed, form, ("csv",))
    if not 0 < scale < math.inf:
        raise UserError(f"scale {scale}: the size of generated data is a number above 0; 1 is {IMAGES} images.")
    counts = {"train": max(12, round(IMAGES * scale)), "test": max(4, round(TESTED * scale))}

    def fill(folder: Path) -> dict[str, int]:
        tables = {
            name: _write_images(folder, name, make_quadrats(seed, n, part)) for part, (name, n) in enumerate(counts.items())
        }
        _write_table(folder / "train.csv", COLUMNS, tables["train"])
        _write_table(folder / "test.csv", ("sample_id", "image_path", "target_name"), tables["test"])
        _write_table(folder / "solution.csv", ("sample_id", "target"), tables["test"])
        _write_table(
            folder / "sample_submission.csv", ("sample_id", "target"), [row | {"target": "0.0"} for row in tables["test"]]
        )
        return counts

    recipe: dict[str, Any] = {"task": "biomass", "recipe": RECIPE, "seed": seed, "quadrats": counts, "form": form}
    return write_once(out, recipe, fill)


def _write_images(folder: Path, name: str, quadrats: Iterable[Quadrat]) -> list[Row]:
    (folder / name).mkdir()
    written: list[Row] = []
    for quadrat in quadrats:
        rows, image = rows_of(quadrat, name)
        (folder / name / f"{quadrat.name}.jpg").write_bytes(image)
        written += rows
    return written


def _write_table(path: Path, columns: Iterable[str], rows: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [*columns], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
