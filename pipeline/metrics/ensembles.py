"""What several models say together that differ in the seed alone (Lakshminarayanan et al. 2017). Pure functions on tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import WorkError
from pipeline.metrics.groups import SAID, SAID_OF_IMAGES


def combine(tables: Sequence[pd.DataFrame], targets: Sequence[str]) -> pd.DataFrame:
    """Members' group tables (`metrics.groups.group_table`) → that of their ensemble, groups in the first one's order.

    The mean is the mean of the members' means; the variance is the mean of their variances plus the variance of their
    means (law of total variance), so that it grows where they disagree. Raises WorkError if they are not of the same groups.
    """
    same = ["group", "domain", "n", *(target for target in targets if target in tables[0])]
    aligned = [_in_order(table, tables[0]) for table in tables]
    _check_same(aligned, same, "groups")
    columns = {f"{target}_{end}": _stack(aligned, f"{target}_{end}").mean(axis=0) for target in targets for end in SAID}
    for target in targets:
        columns[f"{target}_variance"] += _stack(aligned, f"{target}_mean").var(axis=0)
    return aligned[0][same].assign(**columns)


def combine_images(tables: Sequence[pd.DataFrame], targets: Sequence[str]) -> pd.DataFrame:
    """Members' predictions for images → their means: id, group, domain, each target, and SAID_OF_IMAGES of each.

    Raises WorkError if they are not of the same images in the same order.
    """
    same = ["id", "group", "domain", *targets]
    _check_same(tables, same, "images")
    ends = [f"{target}_{end}" for target in targets for end in SAID_OF_IMAGES]
    return tables[0][same].assign(**{end: _stack(tables, end).mean(axis=0) for end in ends})


def _in_order(table: pd.DataFrame, first: pd.DataFrame) -> pd.DataFrame:
    """The groups in the order of another table; as they are if they are others."""
    if len(table) != len(first) or set(table["group"]) != set(first["group"]):
        return table
    return table.set_index("group").loc[first["group"]].reset_index()


def _check_same(tables: Sequence[pd.DataFrame], columns: list[str], what: str) -> None:
    first = tables[0][columns].reset_index(drop=True)
    if not all(first.equals(table[columns].reset_index(drop=True)) for table in tables[1:]):
        raise WorkError(f"the members of an ensemble must tell of the same {what}, and these do not")


def _stack(tables: Sequence[pd.DataFrame], column: str) -> NDArray[np.float64]:
    """A column of every table [n_tables, n_rows]."""
    return np.stack([table[column].to_numpy("float64") for table in tables])
