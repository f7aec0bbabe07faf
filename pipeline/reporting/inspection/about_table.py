"""Sections of a data set's table: splits, groups, where and when; and what its task says of what is to be predicted. Loads no
torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.data.other_columns import coordinates
from pipeline.data.truth import SPLITS
from pipeline.metrics.charts.chart import Chart
from pipeline.metrics.charts.overview import counted, crossed, mapped, over_time, per_group
from pipeline.metrics.summaries import Summary, class_summary, of_each
from pipeline.reporting.inspection.look import Look
from pipeline.reporting.page.section import Cell, Section, Table, number, text

if TYPE_CHECKING:
    import pandas as pd

COUNTED = ("domain", "site", "species", "sex", "view")
"""Columns of names, of which it is told how many images each has."""
KNOWN = ("domain", "site", "species")
LARGE = 1000
"""From here on numbers are shown whole."""


def splits(look: Look) -> Section:
    """Images, groups and what else is known, by split; images of a group."""
    table = look.table
    words = [_said(table)]
    sizes = table.groupby(["split", "group"]).size()
    charts = [per_group(sizes)] if len(sizes) < len(table) else []
    return Section("splits", "Splits and groups", words, [as_table(Summary("By split", _by_split(table)))], charts)


def _said(table: pd.DataFrame) -> str:
    groups, of = of_each(table)
    if of == "images":
        return f"{len(table):,} images, each a group of its own."
    sizes = table.groupby(["split", "group"]).size()
    return (
        f"{len(table):,} images in {len(groups):,} groups of {sizes.min()} to {sizes.max()} images (median {sizes.median():g}), "
        "which share their truth and are never parted."
    )


def _by_split(table: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    known = [name for name in KNOWN if table[name].notna().any()]
    rows = []
    for split in (name for name in SPLITS if (table["split"] == name).any()):
        of = table[table["split"] == split]
        days = of["date"].dropna()
        row = {"split": split, "images": len(of), "share": len(of) / len(table), "groups": of["group"].nunique()}
        row |= {_plural(name): of[name].nunique() for name in known}
        rows.append(row | ({"from": min(days), "to": max(days)} if len(days) else {}))
    return pd.DataFrame(rows)


def _plural(name: str) -> str:
    return name if name == "species" else f"{name}s"


def predicted(look: Look) -> Section:
    """What the task says of targets or classes."""
    tables, charts = list[Table](), list[Chart]()
    for each in look.task.overview(look.dataset):
        if isinstance(each, Summary):
            tables.append(as_table(each))
        else:
            charts.append(each)
    return Section("predicted", "What is to be predicted", (), tables, charts)


def known(look: Look) -> Section:
    """Where images come from, when they were taken, and what else is known of them."""
    table = look.table
    names = [name for name in COUNTED if name in table and table[name].notna().any()]
    tables = [as_table(class_summary(table, name)) for name in names]
    charts = [counted(table, name) for name in names if table[name].nunique() > 1]
    return Section(
        "known", "Where, when and of what", [_unknown(table, names)] if names else [], tables, [*charts, *_places(look)]
    )


def _unknown(table: pd.DataFrame, names: Sequence[str]) -> str:
    """How many images lack what others have."""
    lacks = {name: int(table[name].isna().sum()) for name in [*names, "date"] if table[name].notna().any()}
    told = [f"the {name} of {n:,}" for name, n in lacks.items() if n]
    return f"Of {len(table):,} images not known: {', '.join(told)}." if told else f"Known of all {len(table):,} images."


def _places(look: Look) -> Iterator[Chart]:
    table = look.table
    if table["date"].notna().any():
        yield over_time(table)
        dated, of = of_each(table.dropna(subset=["date", "site"]))
        if dated["site"].nunique() > 1:
            yield crossed(dated.assign(year=dated["date"].str[:4]), "site", "year", of)
    if (places := coordinates(look.dataset)) is not None:
        yield mapped(table[["split"]].join(places), "split", "images")


# ---------------------------------------------------------------- cells
def as_table(summary: Summary) -> Table:
    """A summary's names and numbers as people read them; shares as per cent."""
    header = [str(name) for name in summary.table]
    rows = [
        [_cell(value, name) for value, name in zip(row, header, strict=True)] for row in summary.table.itertuples(index=False)
    ]
    return Table(summary.title, header, rows)


def _cell(value: str | float | None, name: str) -> Cell:
    if isinstance(value, str):
        return text(value)
    if value is None or value != value:  # NaN
        return number(None)
    if name == "share":
        return number(value, ".1%")
    return number(value, ",.0f" if float(value).is_integer() or abs(value) >= LARGE else ".3g")
