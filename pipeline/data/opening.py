"""Image files: which of a folder they are, their bytes, and these opened and decoded. Loads no torch."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.config.decoding import Decoding
from pipeline.data.decoding import Decoded, How, decode_opened, too_large
from pipeline.data.jpeg import plain_pixels
from pipeline.errors import UserError

RAW = {
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
}  # fmt: skip
"""What cameras save beside or instead of JPEGs."""
LOOK_LIKE_IMAGES = RAW | {".heic", ".heif", ".hif", ".avif", ".jxl", ".jxr", ".wdp", ".hdp"}
"""Photographs whether or not Pillow can read them here: their error says what is missing."""
SHOWN = 8
"""Kinds of files that are told of by name."""
NO_PIXELS = {"MPEG"}
"""Formats that Pillow opens and never decodes, beside its stubs (HDF5, GRIB and the like)."""
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
"""What files of the ISO family say that they are, behind `ftyp`."""
JPEG = b"\xff\xd8\xff"
RAW_MAGIC = re.compile(
    rb"(?:II\*\0|MM\0\*)....CR|....ftypcrx |FUJIFILMCCD-RAW|IIR[OS]\x08|MMOR\0|IIU\0|FOVb|\0MRM|II....HEAPCCDR", re.DOTALL
)
"""How raw photographs begin: Canon's, Fuji's, Olympus', Panasonic's, Sigma's, Minolta's; those of others are TIFF files."""
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|....ftyp(?:hei|hev|avi|mif1|msf1|crx )|\0\0\0\x0cjP  ",
    re.DOTALL,
)
"""How images begin that may lie about without a suffix."""
NEW_SUBFILE_TYPE, SUB_IFDS = 254, 330
"""TIFF tags: that an image is a smaller one of another, and where others lie (TIFF 6.0; TIFF/EP)."""
DEVELOP = "save it as JPEG, PNG or TIFF with what develops raw photographs"

# Ours stands in its place, and is no warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


# ---------------------------------------------------------------- bytes to pixels
def how_of(decoding: Decoding, keeps_size: bool = False, enough: int = 0) -> How:
    """The choices of a configuration, as `decoding` takes them."""
    return How(**{name: getattr(decoding, name) for name in Decoding.model_fields}, keeps_size=keeps_size, enough=enough)


def decode(encoded: bytes, how: How) -> Decoded:
    """An encoded image, wholly decoded; safe from several threads. Raises what Pillow raises, ValueError."""
    opened = _open(encoded, how.max_pixels)
    pixels = plain_pixels(encoded, opened, how)
    return decode_opened(opened, how) if pixels is None else Decoded(pixels, opened.size, ())


def form_of(encoded: bytes, how: How) -> str:
    """Format and mode of an encoded image: `JPEG, RGB`. Raises what Pillow raises, ValueError."""
    image = _open(encoded, how.max_pixels)
    return f"{image.format}, {image.mode}"


def _open(encoded: bytes, most: int) -> Image.Image:
    """Opened by its content, whatever it is called. Pillow's own guard knows of images inside of others too (icons), and refuses
    above twice what it is set to."""
    _register_heic()
    Image.MAX_IMAGE_PIXELS = (most + 1) // 2
    try:
        image = Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError as error:
        if encoded.startswith(JPEG):  # can be decoded at a part of its size
            return JpegImageFile(io.BytesIO(encoded))
        raise ValueError(too_large(f"{int(re.findall('[0-9]+', str(error))[0]):,}", most)) from None
    except UnidentifiedImageError:  # its own words are about a BytesIO object at some address
        raise UnidentifiedImageError(_unknown(encoded)) from None
    if _is_raw(image, encoded):
        raise ValueError(f"it is a camera's raw photograph, of which Pillow reads nothing but a thumbnail: {DEVELOP}")
    return image


def _is_raw(image: Image.Image, encoded: bytes) -> bool:
    """Whether Pillow has opened what a camera put in front of the photograph, as of Nikon's, Sony's and Adobe's."""
    tags: Any = getattr(image, "tag_v2", {})
    is_thumbnail = tags.get(NEW_SUBFILE_TYPE, 0) == 1 and SUB_IFDS in tags
    return is_thumbnail or RAW_MAGIC.match(encoded) is not None


def _unknown(encoded: bytes) -> str:
    """Why Pillow does not know what a file holds."""
    brand = encoded[8:12] if encoded[4:8] == b"ftyp" else b""
    if brand in HEIC_BRANDS and "HEIF" not in Image.OPEN:
        return "it is HEIC, which Pillow reads with another package: pip install pillow-heif"
    if brand in AVIF_BRANDS and not features.check("avif"):
        return "it is AVIF, which this Pillow is built without: pip install --upgrade pillow"
    if encoded.startswith(JPEG_XL):
        return "it is JPEG XL, which Pillow does not read: save it as JPEG, PNG or TIFF"
    if RAW_MAGIC.match(encoded):
        return f"it is a camera's raw photograph, which Pillow does not read: {DEVELOP}"
    return "its content is in no image format that Pillow knows"


@cache
def _register_heic() -> None:
    """Let Pillow read HEIC where the extra package for it is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


# ---------------------------------------------------------------- a folder's images
@dataclass(frozen=True)
class Found:
    """What a folder and its folders hold."""

    names: list[str]
    """Paths within the folder of what is an image by its suffix, or without one by its first bytes, and of folders that cannot be
    listed, sorted."""
    others: Counter[str] = field(default_factory=Counter)
    """Suffix of files that are no images → how many."""

    def passed_over(self) -> str:
        """The files that are no images, in words; empty if there are none."""
        by_number = sorted(self.others, key=lambda suffix: (suffix != "", -self.others[suffix], suffix))
        kinds = [f"{self.others[suffix]} {suffix or 'without a suffix'}" for suffix in by_number[:SHOWN]]
        if more := by_number[SHOWN:]:
            kinds.append(f"{sum(self.others[suffix] for suffix in more)} of {len(more)} other kinds")
        return f"passed over, being no images by their names: {', '.join(kinds)}" if kinds else ""


def find_images(folder: Path) -> Found:
    """The images in a folder and its folders; hidden ones are left out. Links are followed, and each folder is read once: not in
    circles. Raises UserError where there is no such folder, no image in it, or a name that no table can hold."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder.")
    known, found = suffixes(), Found([])
    for path, is_lost in _walk(folder):
        suffix = _suffix(path)
        if is_lost or suffix in known or (not suffix and _begins_as_image(path)):
            found.names.append(_name(path.relative_to(folder)))
        else:
            found.others[suffix] += 1
    found.names.sort()
    if not found.names:
        raise UserError(f"{folder} holds no image: looked for {', '.join(sorted(known))} in it and its folders.")
    return found


def _suffix(path: Path) -> str:
    """In small letters; what holds no letter is none: a date, a number."""
    suffix = path.suffix.strip().lower()
    return suffix if any(map(str.isalpha, suffix)) else ""


def _begins_as_image(path: Path) -> bool:
    """Whether a file's first bytes are of an image; false for what cannot be read, and for what is no file."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return MAGIC.match(file.read(16)) is not None
    except OSError:
        return False


@cache
def suffixes() -> frozenset[str]:
    """Suffixes, in small letters, of what Pillow can decode, and of what is an image anyway."""
    Image.init()
    return frozenset({suffix for suffix, form in Image.registered_extensions().items() if _decodes(form)} | LOOK_LIKE_IMAGES)


def _decodes(form: str) -> bool:
    if form == "MPO":
        return True  # is opened as a JPEG
    opens = Image.OPEN[form][0] if form in Image.OPEN and form not in NO_PIXELS else None
    return opens is not None and not (isinstance(opens, type) and issubclass(opens, ImageFile.StubImageFile))


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """All files; and, with true, folders that cannot be listed, and links that lead nowhere and may be to folders. Links to
    folders are followed last, so that what lies in a folder has its own name."""
    todo, seen = deque([folder]), set[tuple[int, int]]()
    while todo:
        here = todo.popleft()
        try:
            about, entries = here.stat(), list(os.scandir(here))
        except OSError:
            yield here, True
            continue
        if (place := (about.st_dev, about.st_ino)) in seen:
            continue
        seen.add(place)
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path, is_link = Path(entry.path), entry.is_symlink()
            if is_link and path.is_dir():
                todo.append(path)
            elif entry.is_dir(follow_symlinks=False):
                todo.appendleft(path)
            else:
                yield path, is_link and not path.suffix and not path.exists()


def _name(path: Path) -> str:
    name = path.as_posix()
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"the name of the file {name!r} is not UTF-8, which a table needs: rename it.") from None
    return name


def read_image(path: Path) -> bytes:
    """What an image file holds. Raises OSError, for a folder that cannot be listed too, and for what is no file."""
    if path.is_dir():
        os.listdir(path)
    elif path.exists() and not path.is_file():
        raise OSError("it is no file but a pipe, a socket or a device")
    return path.read_bytes()
