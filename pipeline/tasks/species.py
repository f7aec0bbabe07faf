"""Species: images of organisms and the names of what they show, which find each other; of species that were trained on and of
others.

The schema is what labs have: folders that name the taxa, or a table with a scientific name and ranks (docs/species.md).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.species import load_species
from pipeline.data.truth import RANK
from pipeline.tasks.retrieval import TAXON, Retrieval


class Species(Retrieval):
    """Retrieval among species, with figures of the ranks above them."""

    def load(self, data: Data) -> Dataset:
        """Each rank stands in a column of its own name as well, by which figures are called."""
        dataset = load_species(data)
        names = dataset.source.data.columns.ranks
        ranks = {f"{TAXON}{name}": dataset.table[f"{RANK}{i}"] for i, name in enumerate(names)}
        return replace(dataset, table=dataset.table.assign(**ranks))

    def generate(self, out: Path, seed: int = 0, scale: float = 1.0, form: Any = "csv") -> dict[str, int]:
        """Write photographs of made-up beetles of species in a long tail, and their tree (`synthetic/species.py`)."""
        from pipeline.synthetic.species import write

        return write(out, seed, scale, form)


TASK = Species()
