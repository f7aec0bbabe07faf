"""Arrow columns, which Parquet and `datasets` both give: which are plain, as pandas, and the names of their images."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TEXT = ("string", "large_string", "string_view")
"""Types of text, as Arrow and `datasets` call them."""


def to_frame(table: pa.Table) -> pd.DataFrame:
    """Arrow to pandas; whole numbers stay whole where some are missing, and the numbers of a `datasets.ClassLabel` become what
    they stand for (a negative one: nothing)."""
    frame = table.to_pandas(integer_object_nulls=True, ignore_metadata=True)
    for column, names in _class_labels(table.schema).items():
        frame[column] = [names[i] if i is not None and 0 <= i < len(names) else None for i in frame[column]]
    return frame


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of each column that `datasets` wrote as a ClassLabel, which its own description of the columns tells."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        known = {column: about for column, about in features.items() if about.get("_type") == "ClassLabel"}
        return {column: [str(name) for name in about["names"]] for column, about in known.items() if column in schema.names}
    except (LookupError, ValueError, TypeError, AttributeError):  # other programs write what they like there
        return {}


def unwrapped(table: pa.Table) -> pa.Table:
    """With columns that are kept as a dictionary, pandas' Categorical, or as views, as what they hold."""
    for place, field in enumerate(table.schema):
        if (kind := _held(field.type)) != field.type:
            table = table.set_column(place, field.with_type(kind), table.column(place).cast(kind))
    return table


def _held(kind: pa.DataType) -> pa.DataType:
    """The type of what a column of this type holds."""
    import pyarrow as pa
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _held(kind.value_type)
    return pa.large_string() if types.is_string_view(kind) else pa.large_binary() if types.is_binary_view(kind) else kind


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column of this type is safe to load: neither bytes nor nested, either of which may hold images."""
    import pyarrow.types as types

    kind = _held(kind)
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    return not (binary or types.is_nested(kind))


def names_in(kind: pa.DataType, read: Callable[[str], pa.Table], column: str, n: int) -> list[str | None]:
    """The image names in a column of this type: the column itself if it is text, the `path` beside bytes, else none."""
    import pyarrow.types as types

    if str(_held(kind)) in TEXT:
        return [name or None for name in read(column).column(0).to_pylist()]
    if types.is_struct(kind) and kind.get_field_index("path") >= 0:
        # Reads the one leaf: Parquet and memory-mapped Arrow leave the bytes beside it on the disk.
        values = read(f"{column}.path").flatten().column(0)
        return [name or None for name in values.to_pylist()]
    return [None] * n
