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

from PIL import Image, ImageFile, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile

from pipeline.config.decoding import Decoding
from pipeline.data.decoding import Decoded, How, decode_opened, too_large
from pipeline.errors import UserError

LOOK_LIKE_IMAGES = {".heic", ".heif", ".hif", ".avif"}
"""Photographs whether or not Pillow can read them here: their error says what is missing."""
NO_PIXELS = {"MPEG"}
"""Formats that Pillow opens and never decodes, beside its stubs (HDF5, GRIB and the like)."""
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
AVIF_BRANDS = (b"avif", b"avis")
"""What files of the ISO family say that they are, behind `ftyp`."""
JPEG = b"\xff\xd8\xff"

# Ours stands in its place, and is no warning.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


# ---------------------------------------------------------------- bytes to pixels
def how_of(decoding: Decoding, keeps_size: bool = False) -> How:
    """The choices of a configuration, as `decoding` takes them."""
    return How(**{name: getattr(decoding, name) for name in Decoding.model_fields}, keeps_size=keeps_size)


def decode(encoded: bytes, how: How) -> Decoded:
    """An encoded image, wholly decoded; safe from several threads. Raises what Pillow raises, ValueError."""
    return decode_opened(_open(encoded, how.max_pixels), how)


def _open(encoded: bytes, most: int) -> Image.Image:
    """Opened by its content, whatever it is called. Pillow's own guard knows of images inside of others too (icons), and refuses
    above twice what it is set to."""
    _register_heic()
    Image.MAX_IMAGE_PIXELS = (most + 1) // 2
    try:
        return Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError as error:
        if encoded.startswith(JPEG):  # can be decoded at a part of its size
            return JpegImageFile(io.BytesIO(encoded))
        raise ValueError(too_large(f"{int(re.findall('[0-9]+', str(error))[0]):,}", most)) from None
    except UnidentifiedImageError:  # its own words are about a BytesIO object at some address
        raise UnidentifiedImageError(_unknown(encoded)) from None


def _unknown(encoded: bytes) -> str:
    """Why Pillow does not know what a file holds."""
    brand = encoded[8:12] if encoded[4:8] == b"ftyp" else b""
    if brand in HEIC_BRANDS and "HEIF" not in Image.OPEN:
        return "it is HEIC, which Pillow reads with another package: pip install pillow-heif"
    if brand in AVIF_BRANDS and not features.check("avif"):
        return "it is AVIF, which this Pillow is built without: pip install --upgrade pillow"
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
    """Paths within the folder of what is an image by its suffix, and of folders that cannot be listed, sorted."""
    others: Counter[str] = field(default_factory=Counter)
    """Suffix of files that are no images → how many."""

    def passed_over(self) -> str:
        """The files that are no images, in words; empty if there are none."""
        kinds = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in self.others.most_common(8))
        return f"passed over, being no images by their names: {kinds}{', …' * (len(self.others) > 8)}" if kinds else ""


def find_images(folder: Path) -> Found:
    """The images in a folder and its folders; hidden ones are left out. Links are followed, and each folder is read once: not in
    circles. Raises UserError where there is no such folder, no image in it, or a name that no table can hold."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder.")
    known, found = suffixes(), Found([])
    for path, is_lost in _walk(folder):
        if is_lost or path.suffix.lower() in known:
            found.names.append(_name(path.relative_to(folder)))
        else:
            found.others[path.suffix.lower()] += 1
    found.names.sort()
    if not found.names:
        raise UserError(f"{folder} holds no image: looked for {', '.join(sorted(known))} in it and its folders.")
    return found


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
