"""The file that was meant where a table names an image that is not there: other letters, another ending, another way to write a
path."""

from __future__ import annotations

import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
SIGNS = re.compile(r"[\\/]")


def hint(cell: str, path: Path) -> str:
    """What may be meant by a cell whose image is not at `path`, as the end of a sentence; empty if nothing is near."""
    if ADDRESS.match(cell):
        return ": it is an address, and with data.download `carabid fetch` brings what stands at addresses into data.images"
    if found := near(path) or ("\\" in cell and _without_backslashes(cell, path)):
        composed = unicodedata.normalize("NFC", str(found)) == unicodedata.normalize("NFC", str(path))
        return f"; did you mean {found}{' (its letters are composed otherwise: NFC, NFD)' if composed else ''}?"
    return "; folders are parted by /, not by \\" if "\\" in cell else ""


def near(path: Path) -> Path | None:
    """A file that is there and whose path is this one but for case, composition of letters (NFC, NFD) or the file's ending."""
    found = Path(path.anchor or ".")
    for part in path.relative_to(path.anchor).parts[:-1]:
        found /= part if os.path.isdir(found / part) else _listed(found).get(_folded(part), part)
    names = _listed(found)
    name = names.get(_folded(path.name)) or _listed(found, stems=True).get(_folded(path.name))
    name = name or _listed(found, stems=True).get(_folded(path.stem))
    return found / name if name and os.path.isfile(found / name) else None


def _without_backslashes(cell: str, path: Path) -> Path | None:
    """The file of a path as Windows writes it: the longest end of it that is here, relative to the folder of images."""
    folder = Path(str(path).removesuffix(cell))
    parts = SIGNS.split(cell)
    ends = (folder.joinpath(*parts[i:]) for i in range(len(parts)))
    return next((found for end in ends if (found := end if os.path.isfile(end) else near(end))), None)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _listed(folder: Path, stems: bool = False) -> dict[str, str]:
    """What is in a folder, by folded name, or by that without its ending; nothing where it cannot be read."""
    try:
        return _listing(str(folder), os.stat(folder).st_mtime_ns, stems)
    except (OSError, ValueError):
        return {}


@lru_cache(16)
def _listing(folder: str, changed: int, stems: bool) -> dict[str, str]:
    return {_folded(os.path.splitext(name)[0] if stems else name): name for name in sorted(os.listdir(folder), reverse=True)}
