"""Butterflies: whether a specimen is a hybrid of two subspecies, from the photograph of its wings.

The schema is that of the HDR Anomaly challenge of 2024: a CSV with a row per photograph (CAMID names the specimen) and a
flat folder of images.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.other_columns import names_of
from pipeline.data.truth import LABEL, class_name
from pipeline.errors import UserError
from pipeline.metrics.figures import Training
from pipeline.metrics.hybrids import FIGURES, hybrid_report
from pipeline.tasks.classes import Classes, Probabilities

if TYPE_CHECKING:
    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.summaries import Summary

SUBSPECIES = "subspecies (of hybrids a parent's)"
PARENTS = ("parent_subspecies_1", "parent_subspecies_2")
"""The challenge's columns with the subspecies that a hybrid is of."""


class Butterflies(Classes):
    """Classes, the challenge's scores where it is known which of its kinds a photograph counts to, and its data."""

    figures = {**Classes.figures, **FIGURES}  # noqa: RUF012  (a table that nothing changes)

    def load(self, data: Data) -> Dataset:
        """Raises UserError also where nothing says which of two classes the hybrids are: their scores would be another thing."""
        dataset = super().load(data)
        if data.positive is None and len(dataset.targets) == 2:
            names = ", ".join(map(class_name, dataset.targets))
            raise UserError(f"{data.source}: which class are the hybrids? Set data.positive to one of {names}.")
        return dataset

    def overview(self, dataset: Dataset) -> Iterable[Summary | Chart]:
        """Class balance of each subspecies as well, hybrids counted to both of their parents, and which parents these are."""
        import pandas as pd

        from pipeline.metrics.charts.overview import counted, crossed
        from pipeline.metrics.summaries import class_summary

        yield from super().overview(dataset)
        table = dataset.table.drop(columns=LABEL).rename(columns={"species": SUBSPECIES, "label": "class"})
        parents = {name: cells for name in PARENTS if (cells := names_of(dataset, name)) is not None}
        tables = [table, *(table.assign(**{SUBSPECIES: cells}) for cells in parents.values())]
        each = pd.concat(tables).dropna(subset=[SUBSPECIES])
        if len(each):
            yield class_summary(each, SUBSPECIES, "class")
            yield counted(each, SUBSPECIES, "class")
        known = table.assign(**parents).dropna(subset=list(parents))
        if len(parents) == len(PARENTS) and len(known):
            yield crossed(known, *PARENTS, of="hybrids")

    def report(self, predictions: Probabilities, training: Training) -> dict[str, Any]:
        assert predictions.labels is not None
        scores = hybrid_report(predictions.images, predictions.labels == 0, predictions.p[:, 0])
        return super().report(predictions, training) | ({"challenge": scores} if scores else {})

    def generate(
        self, out: Path, seed: int = 0, scale: float = 1.0, form: Literal["parquet", "csv", "disk"] = "csv"
    ) -> dict[str, int]:
        """Write generated butterflies to the folder `out`; `scale` multiplies the number of specimens.

        Raises UserError if `out` holds anything else than these, and for a form, a seed or a scale that there is not.
        """
        from pipeline.synthetic.butterflies import write  # drawing needs numpy and Pillow, which nothing else here does

        return write(out, seed, scale, form)


TASK = Butterflies()
