"""Columns of a data set's files that the configuration gives no meaning. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.data.dataset import Dataset
from pipeline.data.known_columns import find
from pipeline.data.missing import emptied
from pipeline.data.table import labels

if TYPE_CHECKING:
    import pandas as pd


def cells_of(dataset: Dataset, column: str) -> pd.Series | None:
    """The cells of any plain column of a data set as they stand in its files, in the order of its rows, None for what stands for
    nothing; None where not every split has the column."""
    import pandas as pd

    source, places = dataset.source, dataset.table.groupby("source_split", sort=False)["row"]
    tables = {split: source.table(split) for split in map(str, dataset.table["source_split"].unique())}
    if any(column not in table for table in tables.values()):
        return None
    cells = [
        emptied(tables[str(split)][[column]], source.data.missing)[column].iloc[rows].set_axis(rows.index)
        for split, rows in places
    ]
    return pd.concat(cells).reindex(dataset.table.index)


def names_of(dataset: Dataset, column: str) -> pd.Series | None:
    """The same as names: str, or None where it is unknown."""
    import pandas as pd

    cells = cells_of(dataset, column)
    return None if cells is None else pd.Series(labels(cells), cells.index, dtype=object)


def coordinates(dataset: Dataset) -> pd.DataFrame | None:
    """Where images were taken, in degrees as numbers (`latitude`, `longitude`; NaN where unknown), from columns of usual names;
    None where there are none, or they hold no coordinates."""
    import pandas as pd

    exist = dataset.source.columns(str(dataset.table["source_split"].iat[0]))
    found = [cells_of(dataset, column) for name in ("latitude", "longitude") if (column := find(name, exist))]
    known = [pd.to_numeric(cells, errors="coerce").astype("float64") for cells in found if cells is not None]
    if len(known) < 2:
        return None
    places = pd.DataFrame(dict(zip(("latitude", "longitude"), known, strict=True)))
    are_right = (places["latitude"].abs() <= 90) & (places["longitude"].abs() <= 360)
    return places.where(are_right) if are_right.any() else None
