"""Numbers from images of any kind: a lab's own table, an image and one or more numeric targets in each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset, load_numbers

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.report import Training


def load(data: Data) -> Dataset:
    """The images and their targets that the configuration names, from any source that `sources/` reads. Raises UserError."""
    return load_numbers(data)


def evaluate(images: pd.DataFrame, groups: pd.DataFrame, targets: Sequence[str], train: Training) -> dict[str, Any]:
    """MAE per image, R² and CRPS per group, those of domains trained on and of others apart."""
    from pipeline.metrics.report import make_report

    return make_report(images, groups, targets, train)
