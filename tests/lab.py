"""A lab's own table: images of noise beside a CSV that a test writes as labs do, and the generic configurations that read it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.disk.layout import PROJECT
from pipeline.experiments.reading import load_experiment
from pipeline.tasks import load_task

HEADER = ("filename", "label")
PIXELS = ("backbone={kind: pixels}", "device=cpu")


def write_images(folder: Path, n: int) -> list[str]:
    """`n` small images, no two alike; their names."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    names = [f"images/{i}.png" for i in range(n)]
    for i, name in enumerate(names):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (8, 8, 3), np.uint8)).save(folder / name)
    return names


def write_table(
    folder: Path, rows: Iterable[Sequence[Any]], header: Sequence[str] = HEADER, separator: str = ",", name: str = "labels.csv"
) -> Path:
    """A table of these cells."""
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows([header, *rows])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def labelled(folder: Path, labels: Sequence[Any]) -> list[tuple[Any, ...]]:
    """A row for each label, with an image of its own that is there."""
    return list(zip(write_images(folder, len(labels)), labels, strict=True))


def lab_config(table: Path, *overrides: str, method: str = "classify") -> Config:
    """The configuration of `configs/generic` that reads it, on pixels."""
    plain = (f"data.source={table}", *PIXELS, *overrides)
    return load_experiment(PROJECT / "configs" / "generic" / f"{method}.yaml", plain).config


def load_lab(table: Path, *overrides: str, method: str = "classify") -> Dataset:
    """What its task loads of it."""
    config = lab_config(table, *overrides, method=method)
    return load_task(config.task).load(config.data)
