"""Cells that stand for nothing (data.missing), in letters of any case and however their numbers are written. Loads no torch."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
"""What is written as a number; 007 is a code."""
EXACT = 2.0**53
"""Whole numbers below it are told apart."""
LARGEST = 3.4e38
"""What single precision can hold."""


def emptied(cells: pd.DataFrame, missing: Sequence[str]) -> pd.DataFrame:
    """The cells, None for those that hold nothing but what stands for nothing."""
    is_nothing = nothing(missing)
    for column in cells:
        gone = {cell for cell in set(cells[column].dropna()) if is_nothing(cell)}
        if gone:
            cells[column] = cells[column].astype(object).mask(cells[column].isin(gone), None)
    return cells


def nothing(missing: Sequence[str]) -> Callable[[object], bool]:
    """Whether a cell is one of these."""
    words = {each.strip().casefold() for each in missing}
    numbers = {number for each in missing if (number := _number(each.strip()))}

    def is_nothing(cell: object) -> bool:
        text = str(cell).strip()
        return text.casefold() in words or (bool(numbers) and _number(text) in numbers)

    return is_nothing


def written(value: float) -> str:
    """A number in as few digits as data.missing knows it by."""
    short = f"{value:g}"
    return short if _number(short) == _number(repr(value)) else repr(value)


def _number(text: str) -> str | None:
    """A number in one form, -9999 as -9999.0 and -9.999e3 are: one that is not whole as single precision has it, for a column may
    be stored in that. None for what is no number."""
    if not NUMBER.fullmatch(text):
        return None
    value = float(text)
    if value.is_integer() and abs(value) < EXACT:
        return str(int(value))
    return repr(struct.unpack("f", struct.pack("f", value))[0] if abs(value) <= LARGEST else value)
