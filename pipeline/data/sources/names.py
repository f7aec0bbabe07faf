"""Splits told from the names of files and folders, as the Hub tells them."""

import re
from collections.abc import Iterable
from pathlib import Path

SPLIT_OF_WORD = dict.fromkeys(("train", "training"), "train")
SPLIT_OF_WORD |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
SPLIT_OF_WORD |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
"""Words in a file's or folder's name that say which split it holds, as the Hub reads them."""


def split_of_file(path: Path, folder: Path) -> str | None:
    """The split that a file's name, else its folder's name, says it holds; None if neither does."""
    names = [path.stem, *reversed(path.relative_to(folder).parts[:-1])]
    for name in names:
        first = re.split(r"[^A-Za-z]", name, maxsplit=1)[0].lower()
        if first in SPLIT_OF_WORD:
            return SPLIT_OF_WORD[first]
    return None


def group_by_split(paths: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by split. Names that say nothing are splits of their own; if no name says anything, all are one `train`."""
    named = [(split_of_file(path, folder), path) for path in sorted(paths)]
    unnamed = all(split is None for split, _ in named)
    groups: dict[str, list[Path]] = {}
    for split, path in named:
        # `extra-00000-of-00002.parquet` → `extra`
        own = re.sub(r"([-_.]?\d+(-of-\d+)?)$", "", path.stem) or path.stem
        groups.setdefault("train" if unnamed else split or own, []).append(path)
    return groups
