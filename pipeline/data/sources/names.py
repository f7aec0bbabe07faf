"""Splits told from the names of files and folders, as the Hub tells them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words in a file's or folder's name that say which split it holds, as the Hub reads them."""


def split_of_file(path: Path, folder: Path) -> str | None:
    """The split that a file's name, else its folder's name, says it holds; None if neither does."""
    names = [path.stem, *reversed(path.relative_to(folder).parts[:-1])]
    for name in names:
        first = re.split(r"[^A-Za-z]", name, maxsplit=1)[0].lower()
        for split, words in SPLIT_WORDS.items():
            if first in words:
                return split
    return None


def group_by_split(paths: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by split. Names that say nothing are splits of their own; if no name says anything, all are one `train`."""
    named = [(split_of_file(path, folder), path) for path in sorted(paths)]
    unnamed = all(split is None for split, _ in named)
    groups: dict[str, list[Path]] = {}
    for split, path in named:
        groups.setdefault("train" if unnamed else split or _stem(path), []).append(path)
    return groups


def _stem(path: Path) -> str:
    """A file's name without its ending and its shard number (`extra-00000-of-00002.parquet` → `extra`)."""
    return re.sub(r"([-_.]?\d+(-of-\d+)?)$", "", path.stem) or path.stem
