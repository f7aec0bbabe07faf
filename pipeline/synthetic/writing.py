"""What generated data of all tasks have in common: pictures as arrays, and how they come onto the disk, once and whole."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32
from numpy.typing import NDArray
from PIL import Image

from pipeline.disk.writing import atomic_folder, read_json, write_json
from pipeline.errors import UserError

MARKER = "generated.json"
TABLES = (".parquet", ".arrow", ".csv", ".json")

Pixels = NDArray[np.float32]
Draw = Callable[[Path], dict[str, int]]
"""Writes a data set into an empty folder; returns the number of images per split."""


def paint(
    image: Float[np.ndarray, "height width 3"], cover: Float[np.ndarray, "height width"], colour: Float[np.ndarray, "... 3"]
) -> Float32[np.ndarray, "height width 3"]:
    """An image with a colour, of all of it or of each pixel, laid over it where `cover`, 0 … 1, says."""
    return np.asarray(image + cover[..., None] * (colour - image), np.float32)


def encode(pixels: Float[np.ndarray, "height width 3"]) -> bytes:
    """A JPEG of an image with values within 0 … 1."""
    stream = io.BytesIO()
    Image.fromarray((pixels * 255 + 0.5).astype(np.uint8)).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def write_once(out: Path, recipe: dict[str, Any], draw: Draw) -> dict[str, int]:
    """Let `draw` fill the folder `out`, wholly or not at all; returns the number of images per split. `recipe` (JSON values) says
    what is drawn. The same data already there is left as it is; anything else there raises UserError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _check_same(out, recipe)
    # The tables only are synced: thousands of pictures would take minutes, and they can be drawn again.
    with atomic_folder(out.absolute(), to_sync=lambda path: path.suffix in TABLES) as folder:
        images = draw(folder)
        write_json(folder / MARKER, {**recipe, "images": images})
    return images


def check_request(seed: int, form: str, forms: Iterable[str]) -> None:
    """UserError for a negative seed, and for a form that is none of `forms`."""
    if form not in forms:
        raise UserError(f"form {form!r}: generated data are written as one of: {', '.join(forms)}.")
    if seed < 0:
        raise UserError(f"seed {seed}: a seed is a whole number, 0 or above.")


def _check_same(out: Path, recipe: dict[str, Any]) -> dict[str, int]:
    marker = out / MARKER
    found = read_json(marker) if marker.is_file() else None
    if found is None:
        raise UserError(f"{out} exists and holds something else than generated data. Name an empty or a new folder.")
    images: dict[str, int] = found.pop("images")
    if found != recipe:
        raise UserError(f"{out} holds data generated otherwise ({found}). Remove the folder, or name a new one.")
    return images
