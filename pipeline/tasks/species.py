"""Species: images of organisms and the names of what they show, which find each other; of species that were trained on and of
others.

The schema is what labs have: folders that name the taxa, or a table with a scientific name and ranks (docs/species.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.species import load_species
from pipeline.tasks.base import Array
from pipeline.tasks.retrieval import Embedded, Retrieval

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.groups import Prediction


class Species(Retrieval):
    """Retrieval among species, with figures of the ranks above them."""

    def load(self, data: Data) -> Dataset:
        return load_species(data)

    def predictions(self, table: pd.DataFrame, truth: Array | None, names: Sequence[str], said: Prediction) -> Embedded:
        """The ranks' columns are those that the data name."""
        return super().predictions(table, truth, names, said)

    def generate(self, out: Path, seed: int = 0, scale: float = 1.0, form: Any = "csv") -> dict[str, int]:
        """Write photographs of made-up beetles of species in a long tail, and their tree (`synthetic/species.py`)."""
        from pipeline.synthetic.species import write

        return write(out, seed, scale, form)


TASK = Species()
