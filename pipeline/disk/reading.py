"""How files are read: whatever is wrong with what one holds becomes one error that names it. Loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.disk.secrets import complain, hide
from pipeline.errors import UserError, WorkError

LARGEST = 1e150
"""What is computed with is smaller, or its squares and sums would be infinite."""


class Damaged(WorkError):
    """A file is there and does not hold what it should."""


@contextmanager
def reading(path: Path, remedy: str, kind: type[UserError | WorkError] = Damaged) -> Iterator[None]:
    """While `path` is read: whatever error its content leads to, in whatever library, becomes `kind`, with what to do about it.

    What the disk does not give is not damaged, and must not be made again for that: its errors, and our own, stay what they are.
    """
    try:
        yield
    except (UserError, WorkError, MemoryError):
        raise
    except Exception as error:  # JSON, Parquet, safetensors, torch and skops raise errors of many kinds
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise kind(f"damaged: {path}: {in_short(error)} {remedy}") from error


@contextmanager
def told() -> Iterator[None]:
    """Says on stderr which file is damaged, and goes on without it."""
    try:
        yield
    except Damaged as error:
        complain(error)


def is_number(value: Any) -> bool:
    """Whether what JSON holds is a number that can be computed with: true is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def in_short(error: BaseException) -> str:
    """An error of a library in one sentence that a person reads to its end, without the password of a proxy."""
    text = hide(" ".join(str(error).split())) or type(error).__name__
    return (text if text[-1] in ".!?…" else f"{text}.") if len(text) <= 300 else f"{text[:300]}…"
