"""Opened images → the 8-bit RGB pixels that a backbone's transform is given, and what a person should know of how they came
about: one way for extraction, predictions, embeddings and submissions.

This file imports numpy and Pillow only, and nothing of the package: a submission that may not import the package holds a copy.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

VERSION = "decoding 1"
"""Count up what changes pixels for choices that are not the defaults, and features are made anew."""

REDUCING = "reduced 1"
"""Count up what changes pixels under extract.decode=fast, and those features are made anew."""

Range = Literal["full", "image"] | tuple[float, float]
Picture = Image.Image | NDArray[np.uint8]
"""An RGB image: Pillow's, or pixels [h, w, 3]."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → what turns the image upright (EXIF 2.32, 4.6.4)."""
WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of grey integers of more than 8 bits, which `convert("RGB")` would clip to white."""
SHARE = 1 / 16
"""An image that uses less of its range than this is nearly one grey: twelve bits in a file of sixteen."""
FEW, ENOUGH = 1000, 100
"""One pixel of so many may be dead and one hot, if an image has enough, without being what its range is told by."""
BAND = 1 << 22
"""Pixels that are scaled at once, as 8-byte numbers."""
PARTS = (2, 4, 8)
"""What a JPEG can be decoded at, as parts of its size."""
REDUCIBLE = ("JPEG", "MPO")
"""Pillow's formats of JPEGs."""

NARROW = "less than 1/16 of the range that range=full shows is used, nearly one grey: range=image or [low, high] shows more"
LONELY = "all but a few pixels (dead, hot, no data) use less than 1/16 of its own range, nearly one grey: [low, high] shows more"
NEGATIVE = "negative values, which range=full shows as black: range=image or [low, high] shows them"
DEEP = "16 bits a channel in colour, of which Pillow keeps the upper 8, use less than 1/16 of their range: stretch the file"
HIDDEN = "fully transparent pixels hold colours; data.background stands there instead"
TURNED = "EXIF says that the image lies on its side or is mirrored, and data.exif=ignore leaves it so"
REDUCED = "larger than data.max_pixels: a JPEG, decoded at a half, a quarter or an eighth of its size"
"""What is told of images."""


@dataclass(frozen=True)
class How:
    """The choices; see the keys of `data` of these names."""

    range: Range = "full"
    background: str = "white"
    exif: Literal["apply", "ignore"] = "ignore"
    max_pixels: int = 178_956_970
    keeps_size: bool = False
    """No image is decoded at a part of its size: something is measured in its pixels."""
    enough: int = 0
    """Pixels of the shorter side: a JPEG is decoded at the least part of its size that leaves so many; 0: at its whole size."""


@dataclass(frozen=True)
class Decoded:
    """An image, wholly read."""

    picture: Picture
    size: tuple[int, int]
    """Width and height as stored: before it is turned, or decoded at a part of its size."""
    notes: tuple[str, ...]
    """What is to be told of it, of the sentences above."""

    @cached_property
    def image(self) -> Image.Image:
        """RGB."""
        return as_image(self.picture)


def decode_opened(image: Image.Image, how: How) -> Decoded:
    """An image that Pillow has opened, with all its pixels read, so that a truncated file fails here. Raises what Pillow raises,
    and ValueError for one that is too large, or whose range nobody can tell."""
    size, notes = image.size, list[str]()
    if _is_reduced(image, how):
        notes.append(REDUCED)
    elif image.format in REDUCIBLE and (part := part_of(image.size, how)) > 1:
        image.draft(None, (image.width // part, image.height // part))
    is_deep = _is_deep(image)
    image.load()
    if image.mode == "F" and how.range == "full":
        raise ValueError(
            "its pixels are floating-point numbers, whose range nobody can tell: set data.range to image or to [low, high], "
            "or save it with 8 bits a channel"
        )
    image = _upright(image, how.exif, notes)
    image = _seen(_narrowed(image, how.range, notes), how.background, notes)
    if is_deep and max(map(_reach, np.reshape(image.histogram(), (-1, 256)))) < 256 * SHARE:
        notes.append(DEEP)
    return Decoded(image, size, tuple(notes))


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB, as by default: 16-bit grey is scaled (Pillow alone would clip it), and transparency is
    white. What is decoded is so already, and stays as it is."""
    return _seen(_narrowed(image, How.range, []), How.background, [])


def as_image(picture: Picture) -> Image.Image:
    """Pillow's."""
    return picture if isinstance(picture, Image.Image) else Image.fromarray(picture)


# ---------------------------------------------------------------- too large
def part_of(size: tuple[int, int], how: How) -> int:
    """At what part of its size (1, 2, 4 or 8: of each side) a JPEG of so many pixels is decoded where that is enough: one without
    a rest, by which it would be of another shape, and a crop of it another by a pixel."""
    parts = PARTS if how.enough and not how.keeps_size else ()
    return max((part for part in parts if not any(n % part for n in size) and min(size) // part >= how.enough), default=1)


def _is_reduced(image: Image.Image, how: How) -> bool:
    """Whether the image will be decoded at a part of its size, being larger than allowed. Raises ValueError if it cannot be."""
    width, height = image.size
    if width * height <= how.max_pixels:
        return False
    for part in PARTS if image.format in REDUCIBLE and not how.keeps_size else ():
        fits = -(-width // part) * -(-height // part) <= how.max_pixels
        if fits and image.draft(None, (width // part, height // part)) is not None:
            return True
    raise ValueError(too_large(f"{width} × {height}", how.max_pixels))


def too_large(what: str, most: int) -> str:
    """What to say of an image of `what` pixels."""
    return (
        f"it has {what} pixels, and data.max_pixels allows {most:,}: set that higher (embed: --max-pixels), with 24 bytes of "
        "memory a pixel for each thread that decodes (resources.decode_threads), or save the image smaller"
    )


# ---------------------------------------------------------------- upright
def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What turns it upright as its EXIF says; None where nothing is to be done."""
    with suppress(Exception):  # damaged EXIF data fail in many ways, and are as good as none
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    return None


def _upright(image: Image.Image, exif: str, notes: list[str]) -> Image.Image:
    if (turn := turn_of(image)) is None:
        return image
    if exif == "ignore":
        notes.append(TURNED)
        return image
    turned = image.transpose(turn)
    # Without the rest, which would have it turned once more.
    turned.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return turned


# ---------------------------------------------------------------- 8 bits
def _narrowed(image: Image.Image, scope: Range, notes: list[str]) -> Image.Image:
    """An image of wide grey with 8 bits, and with alpha where a value stands for transparency; any other as it is."""
    if image.mode not in WIDE_MODES and (image.mode != "F" or scope == "full"):
        return image
    values = _values(image)
    span = _span(values)
    low, high = _shown(values.dtype, span, scope)
    if scope in ("full", "image") and _seen_of(values, low, high) < SHARE * (high - low):
        notes.append(NARROW if scope == "full" else LONELY)
    if scope == "full" and span[0] < 0:
        notes.append(NEGATIVE)
    made = Image.fromarray(_scaled(values, low, high, 0.0 if scope == "full" else 0.5))
    if isinstance(clear := image.info.get("transparency"), int):
        made.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return made


def _values(image: Image.Image) -> NDArray[Any]:
    """Pixels [h, w] as stored; Pillow reads unsigned 32-bit TIFF files as signed."""
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    is_unsigned = image.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
    return values.view(np.uint32) if is_unsigned else values


def _span(values: NDArray[Any]) -> tuple[float, float]:
    """The least and the greatest value; (0, 0) where there is none."""
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def _seen_of(values: NDArray[Any], low: float, high: float) -> float:
    """How much of low … high the values use, but for a few at each end; of some of the rows, where there are many."""
    values = values[:: max(1, values.size // BAND)]
    values = values[np.isfinite(values)] if values.dtype.kind == "f" else values.ravel()
    if not values.size:
        return 0.0
    first, last = (few := _few(values.size)), values.size - 1 - few
    ordered = np.partition(values, (first, last))
    return min(float(ordered[last]), high) - max(float(ordered[first]), low)


def _few(n: int) -> int:
    """How many of n pixels, at each end of their range, do not count."""
    return -(-n // FEW) if n >= ENOUGH else 0


def _reach(counts: NDArray[Any]) -> int:
    """From how often each value of 8 bits is there: from which to which they are, but for a few at each end."""
    below = counts.cumsum()
    first, last = (few := _few(int(below[-1]))), int(below[-1]) - 1 - few
    return int(np.searchsorted(below, last, "right") - np.searchsorted(below, first, "right"))


def _shown(kind: np.dtype[Any], span: tuple[float, float], scope: Range) -> tuple[float, float]:
    """What becomes black and what white. Integers of 32 bits that fit into 16 are taken for such: several formats open so."""
    if scope == "image":
        return span
    if scope != "full":
        return scope[0], scope[1]
    return 0.0, 65535.0 if span[1] <= 65535 else float(np.iinfo(kind).max)


def _scaled(values: NDArray[Any], low: float, high: float, half: float) -> NDArray[np.uint8]:
    """Values [h, w] so that low is 0 and high is 255; `half` is added before they are cut to whole numbers."""
    scale = 255 / (high - low) if high > low else 0.0
    result = np.empty(values.shape, np.uint8)
    rows = max(1, BAND // max(1, values.shape[1]))
    for top in range(0, len(values), rows):
        band = np.nan_to_num(values[top : top + rows].astype(np.float64), nan=low, posinf=high, neginf=low)
        result[top : top + rows] = np.clip(np.floor((band - low) * scale + half), 0, 255)
    return result


def _is_deep(image: Image.Image) -> bool:
    """Whether the file holds colours of 16 bits a channel, of which Pillow drops the lower 8."""
    tiles = getattr(image, "tile", ())
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in tiles)


# ---------------------------------------------------------------- opaque
def _seen(image: Image.Image, background: str, notes: list[str]) -> Image.Image:
    """An image as RGB, on the background where it is transparent."""
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    image = image.convert("RGBA")
    alpha, ground = image.getchannel("A"), ImageColor.getrgb(background)
    if _hides(image, alpha, ground):
        notes.append(HIDDEN)
    seen = Image.new("RGB", image.size, ground)
    seen.paste(image, mask=alpha)
    return seen


def _hides(image: Image.Image, alpha: Image.Image, ground: tuple[int, ...]) -> bool:
    """Whether fully transparent pixels of an RGBA image are other than all black, all white or all as the background."""
    counts = image.histogram(alpha.point([255] + [0] * 255))
    found = [[value for value in range(256) if counts[256 * channel + value]] for channel in range(3)]
    colour = tuple(values[0] for values in found if len(values) == 1)
    return any(found) and colour not in ((0, 0, 0), (255, 255, 255), ground)
