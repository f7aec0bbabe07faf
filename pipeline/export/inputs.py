"""What a submission must get through: every kind of image that PIL opens, names and domains that nobody knows, and files
that open but do not decode.

Always the same ones. Of beetles a directory has input.csv in the platform's columns, and the images that it names; of
butterflies, files.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.synthetic.beetles import KNOWN_DOMAINS, SPECIES, draw_specimen, make_domains, make_light, make_look

COLUMNS = ("relative_img_loc", "colorpicker_path", "scalebar_path", "scientificName", "domainID", "eventID")
TINY, LARGE = (8, 8), (3000, 2400)
UNSEEN_DOMAIN = 999
UNSEEN_NAME = "Nebria incognita"
NO_NAME = ""
"""Is read as a NaN."""
SEVERAL = 6
FIRST_EVENT = 9001

Row = tuple[str, str, str, str, int, int]


def make_inputs(folder: Path, most: int) -> list[Row]:
    """Write images and input.csv; the rows. The largest group has `most` images."""
    (folder / "images").mkdir(parents=True)
    ordinary, odd = [f"images/beetle-{number}.jpg" for number in range(SEVERAL)], [f"images/{name}" for name in ODD]
    _write_images(folder, ordinary, odd)
    broken = _write_broken(folder, ordinary[0], odd[0])
    rows = [row for group, rows in enumerate(_groups(ordinary, odd, broken, most), FIRST_EVENT) for row in _rows(rows, group)]
    write_table(folder, rows)
    return rows


def make_files(folder: Path) -> tuple[list[str], list[str]]:
    """Write images, images of every odd kind, broken ones and what is no image, as a folder of the butterflies' platform.

    Returns the names of the images that decode, and of those that open and do not.
    """
    folder.mkdir(parents=True)
    ordinary = [f"{1000 + number}_CAM{number:06}_d.JPG" for number in range(SEVERAL)]
    _write_images(folder, ordinary, list(ODD))
    broken = _write_broken(folder, ordinary[0], next(iter(ODD)))
    (folder / "notes.txt").write_text("no image\n")
    (folder / "more").mkdir()
    return [*ordinary, *ODD], broken


def _write_images(folder: Path, ordinary: Sequence[str], odd: Sequence[str]) -> None:
    images = [_image(number) for number in range(SEVERAL)]
    for name, image in zip(ordinary, images, strict=True):
        image.save(folder / name, "JPEG", quality=92)
    for name, write in zip(odd, ODD.values(), strict=True):
        write(images[0], folder / name)


def _write_broken(folder: Path, *whole: str) -> list[str]:
    """Write, beside each of these images, one that ends in its middle; their names. PIL opens them, and fails to decode them."""
    names = [name.replace(".", "-cut-short.") for name in whole]
    for name, source in zip(names, whole, strict=True):
        content = (folder / source).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    return names


def write_table(folder: Path, rows: Sequence[Row]) -> None:
    """Write input.csv."""
    with (folder / "input.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """The same rows in another order, always the same."""
    return random.Random(0).sample(rows, len(rows))


def modes(folder: Path) -> list[str]:
    """The modes in which PIL opens the images of a folder of inputs."""
    found = set()
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            found.add(image.mode)
    return sorted(found)


def _groups(ordinary: list[str], odd: list[str], broken: list[str], most: int) -> Iterator[list[tuple[str, str, int]]]:
    """Each group's images as (image, name, domain)."""
    known, name = KNOWN_DOMAINS, SPECIES[0]
    yield [(ordinary[0], name, known[0])]
    yield from ([(image, name, known[0])] for image in odd)
    yield [(image, each, known[1]) for image, each in zip(ordinary, (name, SPECIES[1], name) * 2, strict=True)]
    yield [(ordinary[1], NO_NAME, known[2])]
    yield [(ordinary[2], UNSEEN_NAME, UNSEEN_DOMAIN)]
    mixed = [*ordinary, *odd]
    yield [(image, (name, UNSEEN_NAME, NO_NAME)[i % 3], UNSEEN_DOMAIN) for i, image in enumerate(mixed)]
    yield [(image, name, known[0]) for image in (ordinary[0], *broken)]
    yield [(image, name, known[0]) for image in broken]
    # In blocks, not in turns: what looks at the first hundred alone tells another story in another order.
    yield [(ordinary[i * SEVERAL // most], name, known[3]) for i in range(most)]


def _rows(images: list[tuple[str, str, int]], group: int) -> Iterator[Row]:
    """Rows of input.csv. The colour card and scale bar are as odd as the image: they are its own image again."""
    for image, name, domain in images:
        yield image, image, image, name, domain, group


def _image(number: int) -> Image.Image:
    rng = np.random.default_rng(number)
    domain = make_domains(0)[0][number]
    pixels = draw_specimen(rng, make_look(rng, domain, rng.normal(0, 1, 3), number), make_light(rng, domain))
    return Image.fromarray((pixels * 255 + 0.5).astype(np.uint8))


def _saved(change: Callable[[Image.Image], Image.Image], **options: Any) -> Callable[[Image.Image, Path], None]:
    return lambda image, path: change(image).save(path, **options)


def _with_alpha(image: Image.Image) -> Image.Image:
    made = image.convert("RGBA")
    made.putalpha(image.convert("L"))
    return made


def _sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L"), np.uint16) * np.uint16(257))


ODD: dict[str, Callable[[Image.Image, Path], None]] = {
    "alpha.png": _saved(_with_alpha),
    "grey.png": _saved(lambda image: image.convert("L")),
    "grey-alpha.png": _saved(lambda image: _with_alpha(image).convert("LA")),
    "palette.png": _saved(lambda image: image.quantize(64)),
    "palette-transparent.png": _saved(lambda image: image.quantize(64), transparency=0),
    "sixteen-bits.png": _saved(_sixteen_bits),
    "one-bit.png": _saved(lambda image: image.convert("1")),
    "cmyk.jpg": _saved(lambda image: image.convert("CMYK")),
    "tiny.png": _saved(lambda image: image.resize(TINY)),
    "large.jpg": _saved(lambda image: image.resize(LARGE)),
}
"""How each image that is not an ordinary image is written."""
