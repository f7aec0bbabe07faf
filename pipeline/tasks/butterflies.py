"""Butterflies: whether a specimen is a hybrid of two subspecies, from the photograph of its wings.

The schema is that of the HDR Anomaly challenge of 2024: a CSV with a row per photograph (CAMID names the specimen) and a
flat folder of images. Loading is the same for every task that reads a table with columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config.data import Data
from pipeline.data.classes import class_name
from pipeline.data.dataset import Dataset, load_classes
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.report import Training


def load(data: Data) -> Dataset:
    """The butterflies that the configuration names. Raises UserError, also where nothing says which of two classes the hybrids
    are: their scores would be another thing."""
    dataset = load_classes(data)
    if data.positive is None and len(dataset.targets) == 2:
        names = ", ".join(map(class_name, dataset.targets))
        raise UserError(f"{data.source}: which class are the hybrids? Set data.positive to one of {names}.")
    return dataset


def evaluate(specimens: pd.DataFrame, events: pd.DataFrame, targets: Sequence[str], train: Training) -> dict[str, Any]:
    """The butterflies' part of results.json: figures of photographs with intervals over specimens, of each subspecies, and where
    it is known which of the challenge's kinds a photograph counts to (major, minor, mimic), those of its scorer."""
    from pipeline.metrics.classification_report import classification_report
    from pipeline.metrics.hybrids import hybrid_report

    scores = hybrid_report(specimens, targets)
    return classification_report(specimens, targets, train) | ({"challenge": scores} if scores else {})


def generate(out: Path, seed: int = 0, scale: float = 1.0, form: Literal["csv"] = "csv") -> dict[str, int]:
    """Write generated butterflies in the challenge's schema to the folder `out`; returns the number of images per split.

    `scale` multiplies the number of specimens. Raises UserError if `out` holds anything else than these butterflies, and
    for a form, a seed or a scale that there is not.
    """
    # Imported here: drawing needs numpy and Pillow, which nothing else of this module does.
    from pipeline.synthetic.butterflies import write

    return write(out, seed, scale, form)
