"""Beetles: drought at a sampling event from photographs of its specimens.

The targets are SPEI over the last 30 days, 1 year and 2 years: standard deviations from the usual, negative is dry. The schema is
that of the HDR Scientific Mood challenge (Hub data set `imageomics/sentinel-beetles`), whose score, `rms`, all numbers have.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.data.dataset import Dataset
from pipeline.tasks.numbers import Numbers

if TYPE_CHECKING:
    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.summaries import Summary

DRYNESS = {
    "": -math.inf,
    "extremely dry, below −2": -2.0,
    "severely dry, to −1.5": -1.5,
    "moderately dry, to −1": -1.0,
    "near normal, to 1": 1.0,
    "moderately wet, to 1.5": 1.5,
    "very wet, to 2": 2.0,
    "extremely wet, above 2": math.inf,
}
"""Classes of the standardised precipitation index (McKee et al. 1993), which SPEI is read by: to where each of them reaches."""


class Beetles(Numbers):
    """Numbers, and the challenge's data."""

    def overview(self, dataset: Dataset) -> Iterable[Summary | Chart]:
        """How many events were as dry or wet, as SPEI is usually read."""
        yield _dryness(dataset)
        yield from super().overview(dataset)

    def generate(
        self, out: Path, seed: int = 0, scale: float = 1.0, form: Literal["parquet", "csv", "disk"] = "parquet"
    ) -> dict[str, int]:
        """Write generated beetles to the folder `out`; `scale` multiplies the number of events.

        Raises UserError if `out` holds anything else than generated beetles, and for a form, a seed or a scale that there is not.
        """
        from pipeline.synthetic.beetles import Size, write  # drawing needs Pillow, which nothing else here does

        return write(out, seed, Size().scaled(scale), form)


def _dryness(dataset: Dataset) -> Summary:
    import pandas as pd

    from pipeline.metrics.summaries import Summary, of_each

    events, _ = of_each(dataset.table)
    classes = {name: pd.cut(events[name], list(DRYNESS.values()), labels=list(DRYNESS)[1:]) for name in dataset.targets}
    counts = {name: of.value_counts(sort=False).astype("int64") for name, of in classes.items()}
    return Summary("Events by how dry they were", pd.DataFrame(counts).rename_axis("SPEI").reset_index())


TASK = Beetles()
