"""Beetles: drought at a sampling event from photographs of its specimens.

The targets are SPEI over the last 30 days, 1 year and 2 years: standard deviations from the usual, negative is dry.

The schema is that of the HDR Scientific Mood challenge (Hub data set `imageomics/sentinel-beetles`). Loading is the
same for every task whose images share targets by event, so it is `data/dataset.py`'s; this module adds what is the beetles'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset, load_numbers

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.report import Training


def load(data: Data) -> Dataset:
    """The beetles that the configuration names, from any source that `sources/` reads. Raises UserError."""
    return load_numbers(data)


def evaluate(specimens: pd.DataFrame, events: pd.DataFrame, targets: Sequence[str], train: Training) -> dict[str, Any]:
    """The beetles' part of results.json: MAE per specimen, R² and CRPS per event, in-domain and out-of-domain apart."""
    from pipeline.metrics.report import make_report

    return make_report(specimens, events, targets, train)


def generate(
    out: Path, seed: int = 0, scale: float = 1.0, form: Literal["parquet", "csv", "disk"] = "parquet"
) -> dict[str, int]:
    """Write generated beetles in the challenge's schema to the folder `out`; returns the number of images per split.

    `scale` multiplies the number of events. Raises UserError if `out` holds anything else than generated beetles, and for
    a form, a seed or a scale that there is not.
    """
    # Imported here: drawing needs numpy and Pillow, which nothing else of this module does.
    from pipeline.synthetic.beetles import Size, write

    return write(out, seed, Size().scaled(scale), form)
