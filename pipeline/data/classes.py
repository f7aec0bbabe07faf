"""Classes as targets: a column for each class, 1 where an image is of it and else 0, and the same for auxiliary labels.

So what learns, pools, mixes and predicts numbers does the same with classes. Loads no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.config.data import Data
from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

RAW = "auxiliary "
"""What the names of auxiliary labels are kept under, by number, until they have columns of their own."""
Columns = dict[str, "NDArray[np.float64]"]


def auxiliary_column(i: int) -> str:
    """Where the names in data.columns.auxiliary number `i` are kept."""
    return f"{RAW}{i}"


def class_name(target: str) -> str:
    """The class that a target's column is of: `hybrid_stat=hybrid` → `hybrid`."""
    return target.partition("=")[2]


def class_columns(table: pd.DataFrame, data: Data) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...]]:
    """The table with a column for each class of its `label` and each auxiliary name, and the names of both kinds of columns.

    Of two classes the positive one comes first, else they are in the order of their names. Raises UserError for fewer than two
    classes, or a positive class that there is not.
    """
    import pandas as pd

    assert data.label is not None
    classes = {
        f"{data.label}={name}": (table["label"] == name).to_numpy("float64") for name in _classes(table["label"], data)
    }
    names = data.columns.auxiliary
    others = _shares([table[auxiliary_column(i)] for i in range(len(names))], names[0]) if names else {}
    kept = table[[name for name in table if not str(name).startswith(RAW)]]
    wide = pd.concat([kept, pd.DataFrame(classes | others, index=table.index)], axis=1)
    return wide, tuple(classes), tuple(others)


def _classes(column: pd.Series, data: Data) -> list[str]:
    classes = sorted(set(column))
    if len(classes) < 2:
        raise UserError(
            f"{data.source}: column {data.label} (data.label) holds {classes[0]!r} alone: name another one."
        )
    if len(classes) > max(20, len(column) / 2):
        raise UserError(
            f"{data.source}: column {data.label} (data.label) has {len(classes)} classes in {len(column)} rows: if these are "
            f"numbers, predict them as such (task=regress data.label=null data.targets=[{data.label}])."
        )
    if data.positive is None:
        return classes
    if data.positive not in classes:
        near = difflib.get_close_matches(data.positive, classes, 1)
        raise UserError(
            f"{data.source}: column {data.label} (data.label) has no class {data.positive!r} (data.positive). "
            f"{f'The nearest is {near[0]!r}. ' if near else ''}There are: {', '.join(classes)}."
        )
    if len(classes) > 2:
        raise UserError(
            f"{data.source}: data.positive tells two classes apart, and column {data.label} has {len(classes)}: "
            f"{', '.join(classes)}. Set it to null."
        )
    return sorted(classes, key=lambda name: name != data.positive)


def _shares(raw: Sequence[pd.Series], prefix: str) -> Columns:
    """Each name's share of each row: what stands for it in one column or several, by how many names the row has."""
    import numpy as np

    names = sorted({name for column in raw for name in column.dropna()})
    counts = {name: np.sum([(column == name).to_numpy("float64") for column in raw], axis=0) for name in names}
    total = np.maximum(np.sum([column.notna().to_numpy("float64") for column in raw], axis=0), 1)
    return {f"{prefix}={name}": count / total for name, count in counts.items()}


def unseen_classes(table: pd.DataFrame, data: Data) -> list[str]:
    """A warning for classes that nothing is trained on. Raises UserError if that leaves one."""
    seen = set(table.loc[table["split"] == "train", "label"])
    unseen = sorted(set(table["label"]) - seen)
    if len(seen) < 2:
        raise UserError(
            f"{data.source}: all training images are of the class {', '.join(seen)}: choose another split (data.split)."
        )
    some = f"{', '.join(unseen[:5])}{f' and {len(unseen) - 5} more' if len(unseen) > 5 else ''}"
    return [f"no training image is of {some}: what is so will be taken for something else"] if unseen else []
