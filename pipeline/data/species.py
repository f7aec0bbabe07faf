"""The data set of a task that is of species: columns known by their usual names, as many classes as there are, ranks and names
checked. Loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.dealing import deal
from pipeline.data.known_columns import AUTO, recognised
from pipeline.data.sources import open_source
from pipeline.data.table import permute, read_table, warned
from pipeline.data.taxonomy import Taxonomy, taxonomy_of
from pipeline.data.truth import LABEL, RANK
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

USUAL = ("species", "scientificName", "taxon_name", "specificEpithet")
"""Some of the names by which a column of species is known."""


def load_species(data: Data) -> Dataset:
    """The data set, checked. Raises UserError naming file, row and column, also for a species with two genera.

    What its columns mean in the end stands in `dataset.source.data`; `taxonomy.taxonomy_of` tells the ranks of its classes. A
    class that no training row is of is held out: that is no warning here.
    """
    if data.label is None:
        raise UserError(f"this task is of species: name their column as data.label, or data.label={AUTO} for a usual name")
    source = open_source(data)
    exist = source.columns(source.splits()[0])
    data, notes = recognised(data, exist)
    if data.label == AUTO and AUTO not in exist:
        usual, near = ", ".join(USUAL), nearest("species", exist, listed=True)
        raise UserError(f"data.source {data.source}: no column is known to hold species (data.label={AUTO}: {usual}, …); {near}")
    dataset = read_table(data, source.meaning(data), many_classes=True)
    taxonomy, doubts = taxonomy_of(dataset)
    dataset = permute(deal(dataset, data, dataset.table["label"].tolist()), data)
    if data.permute_targets:
        _tell(dataset.table, taxonomy)
    return warned(dataset, [*notes, *doubts])


def _tell(table: pd.DataFrame, taxonomy: Taxonomy) -> None:
    """Let each row tell the ranks and the common name of the species that it has been dealt."""
    labels = table[LABEL].tolist()
    for i in range(len(taxonomy.ranks)):
        table[f"{RANK}{i}"] = [taxonomy.taxa[label][i] for label in labels]
    if "common" in table:
        table["common"] = [taxonomy.common[label] for label in labels]
