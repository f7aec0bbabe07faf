"""Classes of images of any kind: a lab's own table, an image and a label in each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset, load_classes

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.report import Training


def load(data: Data) -> Dataset:
    """The images and their classes that the configuration names, from any source that `sources/` reads. Raises UserError."""
    return load_classes(data)


def evaluate(images: pd.DataFrame, groups: pd.DataFrame, targets: Sequence[str], train: Training) -> dict[str, Any]:
    """Figures of images, with intervals, per class, and per species and domain where these are known."""
    from pipeline.metrics.classification_report import classification_report

    return classification_report(images, targets, train)
