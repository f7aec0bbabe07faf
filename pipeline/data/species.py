"""The data set of a task that is of species: columns known by their usual names, as many classes as there are, ranks and names
checked. Loads no torch."""

from __future__ import annotations

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.dealing import deal
from pipeline.data.known_columns import AUTO, recognised
from pipeline.data.sources import open_source
from pipeline.data.table import permute, read_table, warned
from pipeline.data.taxonomy import taxonomy_of
from pipeline.data.truth import RANK
from pipeline.errors import UserError, nearest

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
    _, doubts = taxonomy_of(dataset)
    of_species = [name for name in map(str, dataset.table) if name == "common" or name.startswith(RANK)]
    dataset = permute(deal(dataset, data, dataset.table["label"].tolist()), data, of_species)
    return warned(dataset, [*notes, *doubts])
