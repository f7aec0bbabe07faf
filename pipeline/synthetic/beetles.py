"""Generated beetles: the challenge's schema, a drought signal in the specimens, and a domain shift that hurts.

What carries the signal. Each event has three correlated SPEI values. Its specimens show them, with noise of their own: wet years
make larger bodies (SPEI_2y), stouter elytra with bolder striae (SPEI_1y) and wider pale bands (SPEI_30d). Light and tint vary
from event to event, so that the mean colour alone says little.

What makes the shift. In the known domains ground, light and build follow the domain's climate (wet domains look paler), a
shortcut that a model will take. In the two unseen domains the look lies outside the known range and the climate contradicts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline.errors import UserError
from pipeline.synthetic.writing import Pixels, check_request, encode, paint, write_once

TARGETS = ("SPEI_30d", "SPEI_1y", "SPEI_2y")
IMAGE_COLUMNS = ("file_path", "colorpicker_full_path", "scalebar_full_path")
LIMIT = 2.09
"""SPEI values lie in −LIMIT … LIMIT."""
MEAN = np.array([0.137, 0.451, 0.546])
"""Mean of the three targets in the real data."""
WITHIN = np.array([0.88, 0.80, 0.80])
"""Standard deviation of the targets between the events of one domain."""
BETWEEN = np.array([0.40, 0.75, 0.85])
"""How far the domains' means spread, for a climate score of ±1."""
CORRELATED = np.linalg.cholesky(np.array([[1.0, 0.45, 0.30], [0.45, 1.0, 0.70], [0.30, 0.70, 1.0]]))
"""Maps independent normal numbers [3] to the targets' correlations."""
EVENT_NOISE, SPECIMEN_NOISE = 0.25, 0.50
"""Standard deviations of a trait, in SPEI units, between events and between specimens of one event."""
KNOWN_DOMAINS = (1, 3, 4, 7, 32, 46, 99, 202)
UNSEEN_DOMAINS = (11, 60)
MAX_SPECIMENS = 60
HEIGHT, WIDTH = 96, 80

RECIPE = 1
"""Counts up when the same seed and size would give other data."""

Form = Literal["parquet", "csv", "disk"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How many events each split has; `scaled` makes a small set for a test."""

    train: int = 180
    validation: int = 60
    test_known: int = 90
    test_unseen: int = 60

    def scaled(self, scale: float) -> Size:
        """Every count times `scale`, but never less than what gives each domain an event. Raises UserError."""
        if not 0 < scale < math.inf:
            raise UserError(f"scale {scale}: the size of generated data is a number above 0; 1 is about 2,500 images.")
        least = (len(KNOWN_DOMAINS),) * 3 + (2 * len(UNSEEN_DOMAINS),)
        return Size(*(max(n, round(count * scale)) for n, count in zip(least, astuple(self), strict=True)))


@dataclass(frozen=True)
class Domain:
    """An eco-domain. `climate` moves the targets' means and `look` the ground and light (scores, about within ±1); `build` is how
    its beetles differ from what their SPEI values make of them, in units of SPEI."""

    id: int
    climate: float
    look: float
    build: float
    hue: float
    sites: tuple[str, ...]
    species: tuple[int, ...]


@dataclass(frozen=True)
class Event:
    """One sampling event; `spei` [3] are its targets."""

    id: int
    split: str
    domain: Domain
    spei: NDArray[np.float64]
    n_specimens: int
    day: date
    site: str
    seed: tuple[int, int]


SPECIES = (
    "Calathus advena", "Carabus goryi", "Cyclotrachelus sigillatus", "Harpalus pensylvanicus", "Poecilus lucublandus",
    "Pterostichus melanarius", "Synuchus impunctatus", "Tetracha carolina",
)  # fmt: skip


# ---------------------------------------------------------------- the world: domains and events
def make_domains(seed: int) -> tuple[list[Domain], list[Domain]]:
    """Known and unseen domains. Known looks follow the climate; unseen looks lie beyond them and contradict it."""
    rng = np.random.default_rng([seed, 0])
    climates = rng.permutation(np.linspace(-1, 1, len(KNOWN_DOMAINS)))
    looks = climates + rng.normal(0, 0.15, len(KNOWN_DOMAINS))
    known = [_domain(rng, i, c, a, 0.3 * a) for i, c, a in zip(KNOWN_DOMAINS, climates, looks, strict=True)]
    unseen = [_domain(rng, i, -0.3 * a, a, 0.75 * a) for i, a in zip(UNSEEN_DOMAINS, (-1.6, 1.6), strict=True)]
    return known, unseen


def _domain(rng: np.random.Generator, number: int, climate: float, look: float, build: float) -> Domain:
    letters = rng.integers(65, 91, size=(2, 4))
    sites = tuple("".join(map(chr, row)) for row in letters)
    species = tuple(int(s) for s in rng.choice(len(SPECIES), 3, replace=False))
    return Domain(number, float(climate), float(look), float(build), float(rng.normal(0, 1)), sites, species)


def make_events(seed: int, size: Size) -> list[Event]:
    """Events of all splits, ids unique; every known domain is in every split, the unseen ones only in `test`."""
    known, unseen = make_domains(seed)
    rng = np.random.default_rng([seed, 1])
    plan = [
        ("train", size.train, known),
        ("validation", size.validation, known),
        ("test", size.test_known, known),
        ("test", size.test_unseen, unseen),
    ]
    cells = [(split, domains[i % len(domains)]) for split, count, domains in plan for i in range(count)]
    return [_event(rng, i, split, domain, seed) for i, (split, domain) in enumerate(cells)]


def _event(rng: np.random.Generator, index: int, split: str, domain: Domain, seed: int) -> Event:
    anomaly = CORRELATED @ rng.standard_normal(3) * WITHIN
    spei = np.clip(MEAN + BETWEEN * domain.climate + anomaly, -LIMIT, LIMIT)
    n_specimens = int(np.clip(round(rng.lognormal(math.log(5), 1.0)), 1, MAX_SPECIMENS))
    day = date(2014, 5, 1) + timedelta(days=int(rng.integers(0, 10)) * 365 + int(rng.integers(0, 150)))
    return Event(1000 + index, split, domain, spei, n_specimens, day, str(rng.choice(domain.sites)), (seed, 2 + index))


# ---------------------------------------------------------------- drawing
@dataclass(frozen=True)
class Light:
    """How an event was photographed: brightness, tint [3] and the tone of the ground."""

    gain: float
    tint: NDArray[np.float64]
    ground: float


@dataclass(frozen=True)
class Look:
    """One specimen's appearance: lengths as fractions of the frame's width, tones within 0 … 1, angle in radians."""

    length: float
    width: float
    tone: float
    hue: float
    gold: float
    striae: float
    band: float
    angle: float
    shift: tuple[float, float]


def make_light(rng: np.random.Generator, domain: Domain) -> Light:
    """The light of one event: mostly its own, partly its domain's."""
    gain = math.exp(rng.normal(0.04 * domain.look, 0.12))
    tint = 1 + rng.normal(0, 0.05, 3) + 0.02 * domain.hue * np.array([1.0, 0.0, -1.0])
    return Light(gain, tint, float(np.clip(0.68 + 0.05 * domain.look + rng.normal(0, 0.03), 0.2, 0.95)))


def make_look(rng: np.random.Generator, domain: Domain, trait: NDArray[np.float64], species: int) -> Look:
    """A specimen's appearance from its traits [3] (what it shows of the three SPEI values, noise included)."""
    month, year, years = trait + domain.build
    kind = (species - 3.5) / 3.5
    length = 0.52 * math.exp(0.12 * years + 0.04 * kind)
    aspect = 0.60 * math.exp(0.12 * year + 0.03 * rng.normal())
    return Look(
        length=float(np.clip(length, 0.25, 0.85)),
        width=float(np.clip(length * aspect, 0.15, 0.60)),
        tone=float(np.clip(0.26 + 0.05 * domain.look + 0.03 * kind + 0.06 * rng.normal(), 0.08, 0.6)),
        hue=float(0.5 * kind + 0.3 * domain.hue + 0.3 * rng.normal()),
        gold=float(np.clip(0.65 + 0.15 * rng.normal(), 0.35, 1.0)),
        striae=float(np.clip(0.45 + 0.22 * year, 0.0, 1.0)),
        band=float(np.clip(0.40 + 0.24 * month, 0.0, 0.8)),
        angle=float(rng.normal(0, 0.5)),
        shift=(float(rng.normal(0, 0.06)), float(rng.normal(0, 0.06))),
    )


def draw_specimen(rng: np.random.Generator, look: Look, light: Light) -> Pixels:
    """The photograph [HEIGHT, WIDTH, 3], values within 0 … 1: a beetle seen from above on a mottled ground."""
    across, along = _body_grid(look)
    ground = light.ground + 0.05 * across + 0.03 * rng.standard_normal(across.shape, np.float32)
    image = np.repeat(ground[..., None], 3, axis=2)
    # A carabid's colour around black-brown: bronze for a positive hue, blue-green for a negative one.
    body = np.array([1.0 + 0.25 * look.hue, 0.95, 0.9 - 0.25 * look.hue], np.float32).clip(0.3, 1.8)
    dark = np.float32(look.tone) * body
    image = paint(image, _legs(look), 0.6 * dark)
    middle, half = 0.12 * look.length, (look.width / 2, look.length / 2 * 0.72)
    head = _ellipse(across, along, -0.62 * look.length, (half[0] * 0.42, look.length * 0.10))
    pronotum = _ellipse(across, along, -0.40 * look.length, (half[0] * 0.74, look.length * 0.17))
    image = paint(paint(image, head, 0.8 * dark), pronotum, dark)
    colour = _elytra(across / half[0], (along - middle) / half[1], look, dark)
    image = paint(image, _ellipse(across, along, middle, half), colour)
    return np.asarray(np.clip(image * np.asarray(light.gain * light.tint, np.float32), 0, 1), np.float32)


def _body_grid(look: Look) -> tuple[Pixels, Pixels]:
    """Coordinates [HEIGHT, WIDTH] across and along the body, in widths of the frame, 0 at its middle."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    x = (x - (WIDTH - 1) / 2) / WIDTH - look.shift[0]
    y = (y - (HEIGHT - 1) / 2) / WIDTH - look.shift[1]
    cos, sin = math.cos(look.angle), math.sin(look.angle)
    return cos * x + sin * y, cos * y - sin * x


def _ellipse(across: Pixels, along: Pixels, centre: float, half: tuple[float, float]) -> Pixels:
    """Coverage [HEIGHT, WIDTH] of an ellipse with an edge about a pixel soft."""
    radius = np.sqrt((across / half[0]) ** 2 + ((along - centre) / half[1]) ** 2)
    return np.clip((1 - radius) * min(half) * WIDTH + 0.5, 0, 1)


def _elytra(u: Pixels, v: Pixels, look: Look, dark: Pixels) -> Pixels:
    """Colour [HEIGHT, WIDTH, 3] of the elytra: striae along, a pale band across, a sheen; u, v within −1 … 1."""
    lines = 1 + 0.9 * look.striae * np.cos(2 * math.pi * 3 * u)
    sheen = 1 + 0.5 * np.exp(-((u + 0.35) ** 2) / 0.05)
    band = np.clip((look.band - np.abs(v + 0.1)) * 6 + 0.5, 0, 1) * np.clip((np.abs(u) - 0.25) * 5, 0, 1)
    shaded = (lines * sheen)[..., None]
    return paint(dark * shaded, band, np.float32(look.gold) * np.array([1.1, 0.9, 0.5], np.float32))


def _legs(look: Look) -> Pixels:
    """Coverage [HEIGHT, WIDTH] of six legs and two antennae, drawn at twice the size and reduced."""
    mask = Image.new("L", (2 * WIDTH, 2 * HEIGHT))
    pen = ImageDraw.Draw(mask)
    for side in (-1, 1):
        for start, knee, foot in ((-0.35, -0.55, -0.75), (-0.18, -0.15, -0.05), (0.0, 0.25, 0.50)):
            points = [(0.3 * side, start), (side * 0.95, knee), (side * 1.35, foot)]
            pen.line([_place(look, a, b) for a, b in points], fill=255, width=3)
        pen.line([_place(look, a, b) for a, b in ((0.1 * side, -0.7), (0.6 * side, -1.05))], fill=255, width=2)
    return np.asarray(mask.reduce(2), np.float32) / np.float32(255)


def _place(look: Look, across: float, along: float) -> tuple[float, float]:
    """Pixel (x, y) at twice the size of a point given in body widths across and body lengths along."""
    a, b = across * look.width / 2, along * look.length
    cos, sin = math.cos(look.angle), math.sin(look.angle)
    x, y = cos * a - sin * b + look.shift[0], sin * a + cos * b + look.shift[1]
    return (2 * WIDTH * (x + 0.5), 2 * (WIDTH * y + HEIGHT / 2))


def draw_colour_card(light: Light) -> Pixels:
    """The event's colour card [24, 48, 3]: six patches of known colour under the event's light."""
    patches = np.array([[1, 1, 1], [0.5, 0.5, 0.5], [0.1, 0.1, 0.1], [0.7, 0.2, 0.2], [0.2, 0.6, 0.3], [0.2, 0.3, 0.7]])
    card = np.repeat(np.repeat(patches.reshape(2, 3, 3), 12, axis=0), 16, axis=1) * 0.85
    return np.asarray(np.clip(card * light.gain * light.tint, 0, 1), np.float32)


def draw_scale_bar(light: Light) -> Pixels:
    """The event's scale bar [16, 80, 3]: black and white centimetres under the event's light."""
    bar = np.where((np.arange(80) // 10) % 2 == 0, 0.05, 0.85)[None, :, None].repeat(16, axis=0)
    return np.asarray(np.clip(bar * light.gain * light.tint, 0, 1), np.float32)


# ---------------------------------------------------------------- rows
def event_rows(event: Event) -> Iterator[Row]:
    """The rows of an event's specimens in the challenge's columns, images as {bytes, path}."""
    rng = np.random.default_rng(event.seed)
    light = make_light(rng, event.domain)
    shown = event.spei + rng.normal(0, EVENT_NOISE, 3)
    card, bar = encode(draw_colour_card(light)), encode(draw_scale_bar(light))
    for number in range(event.n_specimens):
        species = int(rng.choice(event.domain.species))
        look = make_look(rng, event.domain, shown + rng.normal(0, SPECIMEN_NOISE, 3), species)
        yield _row(event, number, SPECIES[species], (encode(draw_specimen(rng, look, light)), card, bar))


def _row(event: Event, number: int, species: str, images: tuple[bytes, bytes, bytes]) -> Row:
    specimen = f"NEON.BET.D{event.domain.id:02d}.{event.id:06d}{number:02d}"
    paths = (f"images/{specimen}.jpg", f"colorpicker/{event.id}.jpg", f"scalebar/{event.id}.jpg")
    hidden = event.split == "test"  # the challenge's test data tell neither site nor date
    return {
        **{column: {"bytes": data, "path": path} for column, data, path in zip(IMAGE_COLUMNS, images, paths, strict=True)},
        **dict(zip(TARGETS, map(float, event.spei), strict=True)),
        "public_id": specimen,
        "eventID": event.id,
        "domainID": event.domain.id,
        "scientificName": species,
        "siteID": None if hidden else event.site,
        "collectDate": None if hidden else event.day.isoformat() + (" 04:00:00" if event.day.year > 2019 else ""),
        **dict(zip(("relative_img_loc", "colorpicker_path", "scalebar_path"), paths, strict=True)),
    }


def make_rows(seed: int, size: Size) -> dict[str, list[Row]]:
    """All rows by split."""
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for event in make_events(seed, size):
        splits[event.split].extend(event_rows(event))
    return splits


# ---------------------------------------------------------------- writing
def write(out: Path, seed: int = 0, size: Size | None = None, form: Form = "parquet") -> dict[str, int]:
    """Write the data set to the folder `out`, wholly or not at all; returns the number of images per split. `parquet`: as on the
    Hub, data/<split>-00000-of-00001.parquet; `csv`: metadata.csv and folders of images; `disk`: as `save_to_disk` writes. The
    same data already there is left as it is; anything else there raises UserError, and so do a negative seed and another form."""
    check_request(seed, form, get_args(Form))
    chosen = size or Size()

    def draw(folder: Path) -> dict[str, int]:
        splits = make_rows(seed, chosen)
        {"parquet": _write_parquet, "csv": _write_csv, "disk": _write_disk}[form](folder, splits)
        return {split: len(rows) for split, rows in splits.items()}

    recipe = {"task": "beetles", "recipe": RECIPE, "seed": seed, "size": asdict(chosen), "form": form}
    return write_once(out, recipe, draw)


def _features() -> Any:
    from datasets import Features, Image, Value

    kinds = {**dict.fromkeys(TARGETS, "float64"), "public_id": "string", "eventID": "int64", "domainID": "int64"}
    texts = ("scientificName", "siteID", "collectDate", "relative_img_loc", "colorpicker_path", "scalebar_path")
    kinds |= dict.fromkeys(texts, "string")
    return Features({**{c: Image() for c in IMAGE_COLUMNS}, **{name: Value(kind) for name, kind in kinds.items()}})


def _write_parquet(folder: Path, splits: dict[str, list[Row]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "data").mkdir()
    for split, rows in splits.items():
        # This schema carries the features that make `datasets` decode the images.
        table = pa.Table.from_pylist(rows, schema=_features().arrow_schema)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet", row_group_size=100)


def _write_csv(folder: Path, splits: dict[str, list[Row]]) -> None:
    import csv

    for name in ("images", "colorpicker", "scalebar"):
        (folder / name).mkdir()
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow([*next(iter(splits.values()))[0], "split"])
        for split, rows in splits.items():
            for row in rows:
                for image in (row[column] for column in IMAGE_COLUMNS):
                    (folder / image["path"]).write_bytes(image["bytes"])
                table.writerow([cell["path"] if isinstance(cell, dict) else cell for cell in row.values()] + [split])


def _write_disk(folder: Path, splits: dict[str, list[Row]]) -> None:
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    tables = {split: Dataset.from_list(rows, features=_features()) for split, rows in splits.items()}
    DatasetDict(tables).save_to_disk(str(folder))
