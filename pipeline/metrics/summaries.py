"""Small tables of data before anything is trained on them: targets, classes, how they divide. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.data.truth import SPLITS

if TYPE_CHECKING:
    import pandas as pd

QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}
SIZES = {"1": (1, 1), "2 to 5": (2, 5), "6 to 20": (6, 20), "21 to 100": (21, 100), "more than 100": (101, None)}
"""Numbers of images of a class that are counted together."""

SEASONS = ("Dec–Feb", "Mar–May", "Jun–Aug", "Sep–Nov")
"""The meteorological ones."""


@dataclass(frozen=True)
class Summary:
    """A table with a title; its cells are names and numbers as they are, and whoever shows it writes them."""

    title: str
    table: pd.DataFrame


def of_each(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A row for each group of each split, whose images share their truth, and what the rows are of; images where these are the
    same."""
    groups = table.drop_duplicates(["split", "group"])
    return (groups, "groups") if len(groups) < len(table) else (table, "images")


def number_summary(table: pd.DataFrame, targets: Sequence[str], of: str) -> Summary:
    """A row for each target: how many there are, which are distinct, zero, and how they are spread."""
    import pandas as pd

    rows = []
    for target in targets:
        values = table[target]
        quantiles = {name: float(values.quantile(share)) for name, share in QUANTILES.items()}
        moments = {"mean": float(values.mean()), "sd": float(values.std())}
        others = {"zero": int((values == 0).sum()), "distinct": values.nunique()}
        rows.append({"target": target, of: len(values), **moments, **quantiles, **others})
    return Summary(f"Targets of {of}", pd.DataFrame(rows))


def mean_summary(table: pd.DataFrame, targets: Sequence[str], column: str, of: str) -> Summary:
    """A row for each domain, split, season: how many there are, and the mean of each target."""
    groups = table.groupby(column, observed=True)
    means = groups[list(targets)].mean()
    means = means.loc[in_order(table[column])]
    means.insert(0, "n", groups.size())  # (no target may be called so)
    return Summary(f"Mean of targets by {column} (n: {of})", means.rename_axis(column).reset_index())


def class_summary(table: pd.DataFrame, column: str, by: str = "split") -> Summary:
    """A row for each name in a column, the most common first: its images, their share, their groups where these are others, and
    images in each split (or of whatever else `by` names)."""
    import pandas as pd

    known = table.dropna(subset=[column])
    counts = known.groupby(column).agg(images=("id", "size"), groups=("group", "nunique"))
    parts = pd.crosstab(known[column], known[by]).reindex(columns=in_order(known[by]))
    found = counts.assign(share=counts["images"] / max(len(known), 1))
    if (counts["images"] == counts["groups"]).all():
        found = found.drop(columns="groups")
    found = pd.concat([found, parts], axis=1) if parts.shape[1] > 1 else found  # (a class may be called as one of ours)
    found = found.loc[counts["images"].sort_values(ascending=False, kind="stable").index]
    return Summary(f"Images by {column}", found.rename_axis(column).reset_index())


def tail_summary(table: pd.DataFrame, column: str) -> Summary:
    """How many classes have so many images."""
    import pandas as pd

    n = table[column].value_counts()
    rows = []
    for name, (low, high) in SIZES.items():
        some = n[(n >= low) & (n <= (high or n.max()))]
        rows.append({f"images of a {column}": name, "how many of these": len(some), "their images": int(some.sum())})
    return Summary(f"Number of images of each {column}", pd.DataFrame(rows))


def seasons(dates: pd.Series) -> pd.Series:
    """The season of each day, one of SEASONS in their order; none where there is no day."""
    import pandas as pd

    months = pd.to_datetime(dates, errors="coerce").dt.month
    found = months.map(lambda month: SEASONS[int(month) % 12 // 3], na_action="ignore")
    return pd.Series(pd.Categorical(found, SEASONS, ordered=True), dates.index)


def in_order(names: pd.Series) -> list[str]:
    """The names that there are: splits and categories in their order, others by the alphabet, and by the numbers in them."""
    there = set(names.dropna())
    if hasattr(names, "cat"):
        return [name for name in names.cat.categories if name in there]
    return [name for name in SPLITS if name in there] + sorted(there - set(SPLITS), key=_natural)


def _natural(name: object) -> list[tuple[bool, int, str]]:
    parts = re.split(r"(\d+)", str(name))
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
