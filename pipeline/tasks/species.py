"""Species: images of organisms and the names of what they show, which find each other; of species that were trained on and of
others.

The schema is what labs have: folders that name the taxa, or a table with a scientific name and ranks (docs/species.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.species import load_species
from pipeline.data.truth import RANK
from pipeline.tasks.retrieval import TAXON, Retrieval

if TYPE_CHECKING:
    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.summaries import Summary


class Species(Retrieval):
    """Retrieval among species, with figures of the ranks above them."""

    called = "species"

    def load(self, data: Data) -> Dataset:
        """Each rank stands in a column of its own name as well, by which figures are called."""
        dataset = load_species(data)
        names = dataset.source.data.columns.ranks
        ranks = {f"{TAXON}{name}": dataset.table[f"{RANK}{i}"] for i, name in enumerate(names)}
        return replace(dataset, table=dataset.table.assign(**ranks))

    def overview(self, dataset: Dataset) -> Iterable[Summary | Chart]:
        """The long tail of species, and of each rank above them how many taxa there are."""
        yield from super().overview(dataset)
        if dataset.source.data.columns.ranks:
            yield _ranks(dataset)

    def generate(self, out: Path, seed: int = 0, scale: float = 1.0, form: Any = "csv") -> dict[str, int]:
        """Write photographs of made-up beetles of species in a long tail, and their tree (`synthetic/species.py`)."""
        from pipeline.synthetic.species import write

        return write(out, seed, scale, form)


def _ranks(dataset: Dataset) -> Summary:
    """Of each rank, from the most general: its taxa, the largest of them, and images of which it is not known."""
    import pandas as pd

    from pipeline.metrics.summaries import Summary

    rows = []
    for name in dataset.source.data.columns.ranks:
        counts = dataset.table[f"{TAXON}{name}"].value_counts()
        largest = f"{counts.index[0]} ({counts.iloc[0]:,})" if len(counts) else "–"
        rows.append({"rank": name, "taxa": len(counts), "largest (images)": largest, "unknown": len(dataset) - int(counts.sum())})
    return Summary("Ranks above the species", pd.DataFrame(rows))


TASK = Species()
