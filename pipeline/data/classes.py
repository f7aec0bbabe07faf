"""Classes: what the names in a label's column, and in the columns of auxiliary labels, are as whole numbers. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.data import Data
from pipeline.data.truth import AUXILIARY, LABEL, Labels
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd


def number_classes(table: pd.DataFrame, data: Data, many: bool = False) -> tuple[pd.DataFrame, Labels]:
    """The table with its `label` and its auxiliary names as numbers too, and what these stand for. Of two classes the positive
    one comes first, else they are in the order of their names. Raises UserError for fewer than two classes, or a positive class
    that there is not; unless there may be `many`, also for so many that they look like numbers."""
    assert data.label is not None
    classes, columns = _classes(table["label"], data, many), [f"{AUXILIARY}{i}" for i in range(len(data.columns.auxiliary))]
    names = sorted({name for column in columns for name in table[column].dropna()})
    numbers = {LABEL: _numbers(table["label"], classes)} | {column: _numbers(table[column], names) for column in columns}
    others = tuple(f"{data.columns.auxiliary[0]}={name}" for name in names)
    return table.assign(**numbers), Labels(tuple(f"{data.label}={name}" for name in classes), others, len(columns))


def _numbers(column: pd.Series, names: list[str]) -> pd.Series:
    """The place of each cell among the names; -1 for an empty one."""
    place = {name: i for i, name in enumerate(names)}
    return column.map(place).fillna(-1).astype("int64")


def _classes(column: pd.Series, data: Data, many: bool) -> list[str]:
    classes = sorted(set(column))
    if len(classes) < 2:
        raise UserError(f"{data.source}: column {data.label} (data.label) holds {classes[0]!r} alone: name another one.")
    if not many and len(classes) > max(20, len(column) / 2):
        raise UserError(
            f"{data.source}: column {data.label} (data.label) has {len(classes)} classes in {len(column)} rows: if these are "
            f"numbers, predict them as such (task=regress data.label=null data.targets=[{data.label}])."
        )
    if data.positive is None:
        return classes
    if data.positive not in classes:
        what = f"column {data.label} (data.label) has no class {data.positive!r} (data.positive)"
        raise UserError(f"{data.source}: {what}; {nearest(data.positive, classes)}")
    if len(classes) > 2:
        several = f"column {data.label} has {len(classes)}: {', '.join(classes)}"
        raise UserError(f"{data.source}: data.positive tells two classes apart, and {several}. Set it to null.")
    return sorted(classes, key=lambda name: name != data.positive)


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
