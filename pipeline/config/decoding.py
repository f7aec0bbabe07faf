"""How encoded images become the 8-bit RGB pixels that a backbone's transform is given: keys of the block `data`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from pipeline.config.section import LATER, Positive, Section


def _ascends(value: Literal["full", "image"] | tuple[float, float]) -> Literal["full", "image"] | tuple[float, float]:
    if not isinstance(value, str) and value[0] >= value[1]:
        raise ValueError("[low, high]: low must be less than high")
    return value


def _is_colour(name: str) -> str:
    if name != "white":
        from PIL import ImageColor  # who keeps to the default needs none

        if len(ImageColor.getrgb(name)) != 3:
            raise ValueError(f"{name}: a colour that is itself transparent is no background")
    return name


Range = Annotated[Literal["full", "image"] | tuple[float, float], AfterValidator(_ascends)]
Colour = Annotated[str, AfterValidator(_is_colour)]


class Decoding(Section):
    """What is done to images of more than 8 bits, with transparency, that lie on their side, or are very large."""

    range: Annotated[Range, LATER] = "full"
    """Which values of grey images of more than 8 bits become black and white: `full`, all that their kind of file can hold (16
    bits: 0 … 65535); `image`, each image's own least and greatest; or [low, high] for all images. Of floating-point numbers
    nobody knows what `full` is: they need one of the others. Images of 8 bits stay as they are."""
    background: Annotated[Colour, LATER] = "white"
    """Colour that stands where an image is transparent: a name, or '#rrggbb'. What lies under full transparency is not seen."""
    exif: Annotated[Literal["apply", "ignore"], LATER] = "ignore"
    """Turn images upright as their EXIF orientation says (`apply`: photographs as people see them), or leave pixels as they are
    stored (`ignore`: as the challenges hand them over). Pillow turns TIFF files in either case."""
    max_pixels: Annotated[Positive, LATER] = 178_956_970
    """Larger images are refused, but for JPEGs: these are decoded at a half, a quarter or an eighth of their size, the first that
    fits (not under data.scale_bar, which measures in pixels). What a network of 224 pixels sees of one of 12 megapixels differs
    by at most 0.8 % of the range at a half or a quarter, 1.6 % at an eighth. Decoding takes at most resources.decode_threads ×
    max_pixels × 24 bytes of memory, if so many images are so large at once (5 bytes a pixel are usual, 13 with transparency, up
    to 19 for the pixels baseline)."""
