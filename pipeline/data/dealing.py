"""The rows of a table dealt to train, validation and test as the configuration asks (`config/split.py`): folds, or species held
out as a whole; and of the training images a few. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from pipeline.config.data import Data
from pipeline.config.split import Folded, SpeciesSplit
from pipeline.data.dataset import Dataset
from pipeline.data.species_splits import assign_species, few_shots, lasting
from pipeline.data.splits import assign, rare_strata
from pipeline.data.truth import SPLIT_BY
from pipeline.errors import UserError


def deal(dataset: Dataset, data: Data, strata: list[str] | None) -> Dataset:
    """With its groups dealt out as the kind of split has it, and training images left out, where the configuration asks for that;
    `strata` are the classes of its rows."""
    dataset.table["split"], warnings = data.split.deal(dataset, data, strata)
    if data.shots is not None:
        dataset.table["split"] = few_shots(lasting(dataset), data)
    return replace(dataset, warnings=(*dataset.warnings, *warnings))


def to_folds(split: Folded, dataset: Dataset, data: Data, strata: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The split of each row, and warnings. Raises UserError for a row of which it is not known on which side it belongs."""
    _check_columns(dataset, split)
    warnings = [*_check(dataset, data, split)]
    if split.stratum is not None:
        strata = _ranges(dataset.table[split.stratum[0]].to_numpy(), split.stratum[1])
    dealt = assign(dataset.table, split, strata)
    if strata and split.is_stratified and not split.columns and split.stratum is None:
        warnings += rare_strata(dataset.table["group"].tolist(), split, strata)
    return dealt, warnings


def _ranges(values: Float64[np.ndarray, " images"], n: int) -> list[str]:
    """Each value's range, of `n` that are equally frequent."""
    edges = np.quantile(values, np.linspace(0, 1, n + 1)[1:-1])
    return [str(place) for place in np.searchsorted(edges, values, side="right")]


def by_species(split: SpeciesSplit, dataset: Dataset, data: Data, strata: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """The split of each row, and warnings. Raises UserError for too few species."""
    return assign_species(lasting(dataset), split)


def _check_columns(dataset: Dataset, split: Folded) -> None:
    """Raises UserError at the first row in which one of the columns is empty that folds are dealt by."""
    for i, column in enumerate(split.columns):
        if len(empty := dataset.table.index[dataset.table[f"{SPLIT_BY}{i}"].isna()]):
            raise UserError(
                f"{dataset.where(int(empty[0]))}: column {column} (data.split.by) is empty, in {len(empty)} rows in all: "
                "it cannot be told in which fold they belong. Fill it in, or leave the column out of data.split.by."
            )


def _check(dataset: Dataset, data: Data, split: Folded) -> tuple[str, ...]:
    """Warnings; raises UserError at the first row without the domain, site or date by which it is dealt to folds."""
    name = split.leaves_out
    if name is None:
        return ()
    table, column = dataset.table, getattr(data.columns, name)
    if len(empty := table.index[table[name].isna()]):
        raise UserError(
            f"{dataset.where(int(empty[0]))}: column {column} (data.columns.{name}) is empty or holds no {name}, in "
            f"{len(empty)} rows in all: data.split.kind={split.kind} cannot tell on which side they belong. Fill it in, "
            "or choose another split."
        )
    alone = table.loc[table["site"].isna() | table["date"].isna(), "group"].nunique() if name == "domain" else 0
    if not alone or not split.share_held_out:
        return ()
    what = f"{alone} groups have no site or no date (data.columns.site, date)"
    return (f"{what}: they are held out one by one, and another group of their site and day may be trained on",)
