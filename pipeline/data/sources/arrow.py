"""Arrow columns, which Parquet and `datasets` both give: which are plain, as pandas, and the names of their images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Arrow to pandas; whole numbers stay whole where some are missing."""
    return table.to_pandas(integer_object_nulls=True, ignore_metadata=True)


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column of this type is safe to load: neither bytes nor nested, either of which may hold images."""
    import pyarrow.types as types

    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return not (binary or types.is_nested(kind) or types.is_binary_view(kind))


def names_in(kind: pa.DataType, read: Callable[[str], pa.Table], column: str, n: int) -> list[str | None]:
    """The image names in a column of this type: the column itself if it is text, the `path` beside bytes, else none."""
    import pyarrow.types as types

    if types.is_string(kind) or types.is_large_string(kind):
        return [name or None for name in read(column).column(0).to_pylist()]
    if types.is_struct(kind) and kind.get_field_index("path") >= 0:
        # Reads the one leaf: Parquet and memory-mapped Arrow leave the bytes beside it on the disk.
        values = read(f"{column}.path").flatten().column(0)
        return [name or None for name in values.to_pylist()]
    return [None] * n
