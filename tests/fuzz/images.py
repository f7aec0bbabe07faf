"""Images as cameras, scanners and disks leave them."""

from __future__ import annotations

import io
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.backbones.pixels import PixelsBackbone
from pipeline.data.dataset import Dataset
from pipeline.data.decoding import How
from pipeline.tasks import load_task
from tests.fuzz.tables import experiment
from tests.fuzz.values import spoil_bytes
from tests.fuzz.verdict import Case

FORMATS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("JPEG", "RGB", {"progressive": True}), ("PNG", "RGB", {}),
    ("PNG", "RGBA", {}), ("PNG", "P", {}), ("PNG", "1", {}), ("PNG", "I;16", {}), ("PNG", "LA", {}), ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "I;16", {}), ("TIFF", "F", {}), ("TIFF", "I", {}), ("BMP", "RGB", {}),
    ("GIF", "P", {}), ("WEBP", "RGB", {}), ("WEBP", "RGBA", {}), ("PPM", "RGB", {}), ("TGA", "RGBA", {}), ("ICO", "RGBA", {}),
    ("JPEG2000", "RGB", {}), ("SGI", "L", {}), ("PCX", "P", {}), ("DDS", "RGBA", {}), ("IM", "L", {}), ("TIFF", "CMYK", {}),
    ("JPEG", "RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"}), ("AVIF", "RGBA", {}),
    ("PNG", "P", {"transparency": 3}), ("PNG", "I;16", {"transparency": 300}), ("TIFF", "I;16B", {}), ("MPO", "RGB", {}),
)  # fmt: skip
CHOICES: tuple[dict[str, Any], ...] = (
    {}, {"range": "image", "exif": "apply"}, {"range": (10, 90)}, {"background": "#203040", "exif": "apply"}, {"max_pixels": 700},
)  # fmt: skip


@cache
def encoded(number: int) -> bytes:
    """A small image in one of the formats."""
    kind, mode, options = FORMATS[number]
    noise = bytes(random.Random(number).randrange(256) for _ in range(40 * 30 * 3))
    image = Image.frombytes("RGB", (40, 30), noise).convert("L" if mode in ("I;16", "I;16B", "I", "F", "LA") else mode)
    file = io.BytesIO()
    image.convert("I;16" if mode == "I;16B" else mode).convert(mode).save(file, kind, **options)
    return file.getvalue()


def image_case(number: int, draw: random.Random, place: Path) -> Case:
    """One image, spoilt up to three times, as extraction reads it by one of some choices."""
    dataset, content = of_one_image(place), encoded(draw.randrange(len(FORMATS)))
    dataset = replace(dataset, how=How(**draw.choice(CHOICES)))
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        content = spoil_bytes(content, draw)
    (place / "images" / "0.png").write_bytes(content)
    return Case(f"images {number}", lambda: read(dataset), ("labels.csv, line 2",))


@cache
def of_one_image(place: Path) -> Dataset:
    """A data set whose first image is the one to be spoilt."""
    (place / "images").mkdir()
    rows = [f"images/{i}.png,s{i},p{i},{'ab'[i % 2]},S,2011-07-01,D1,x" for i in range(12)]
    table = place / "labels.csv"
    table.write_text("\n".join(["filename,id,plant,label,site,date,domain,species", *rows]) + "\n")
    return load_task("classify").load(experiment("classify", "folds").data.model_copy(update={"source": str(table)}))


def read(dataset: Dataset) -> None:
    pixels = PixelsBackbone(4).transform(dataset.image(0))
    assert pixels.isfinite().all() and pixels.min() >= 0 and pixels.max() <= 1
