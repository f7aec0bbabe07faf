"""Many small images: read from their files / from one file with an index (`carabid archive`), in turn, in a random order.

    python -m benchmarks.archived

100,000 files of 4 to 20 KB in folders of a thousand, a fifth of them read in a random order: as `Dataset.image_bytes` does, and
by open, read and close alone; from memory, and once Linux was asked to forget their content (`posix_fadvise`). Names and places
of files it keeps in memory, as a cluster's file system that everybody uses does not: there a file costs more.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from benchmarks.figure import Figure, in_turn, seconds, show
from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.features import archives
from pipeline.tasks import load_task

THREADS = 1
IN_A_FOLDER = 1000


def measure(short: bool) -> list[Figure]:
    n, rounds = (100, 1) if short else (100_000, 3)
    with tempfile.TemporaryDirectory() as folder:
        config, paths = _files(Path(folder), n)
        plain = load_task(config.task).load(config.data)
        archive = archives.make(config, plain)
        archived = archives.archived(config, plain)
        names = [str(Path(folder) / "images" / str(name)) for name in plain.image_names()]
        order = np.random.default_rng().permutation(n)[: max(n // 5, 100)].tolist()
        differ = sum(plain.image_bytes(i) != archived.image_bytes(i) for i in order[:100])
        as_read, ours = _of(plain, order), _of(archived, order)
        sides = {"the files as a data set reads them": as_read, "open, read and close alone": lambda: _opened(names, order)}
        figures = [Figure("archived: images that differ", differ, "", at_most=0, about="of a hundred, from the files")]
        for what, theirs in sides.items():
            figures.append(_figure(what, in_turn(theirs, ours, rounds), len(order), n, 3.0 if theirs is as_read else None))
        cold = _cold(as_read, ours, [*(paths[i] for i in order), archive.content], min(rounds, 3))
        figures.append(_figure("the same, content dropped from memory before", cold, len(order), n, 3.0))
    return figures


def _figure(what: str, took: tuple[float, float, float], n: int, of: int, goal: float | None) -> Figure:
    about = f"{n:,} of {of:,} images in a random order: {1e6 * took[0] / n:.0f} µs each, archived {1e6 * took[1] / n:.0f}"
    return Figure(f"archived: {what}", took[2], at_least=goal, about=about)


def _cold(theirs: Callable[[], object], ours: Callable[[], object], files: list[Path], rounds: int) -> tuple[float, float, float]:
    """`in_turn` with the content of these files forgotten before each."""
    pairs = []
    for _ in range(rounds):
        _drop(files)
        one = seconds(theirs)
        _drop(files)
        pairs.append((one, seconds(ours)))
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(a / b for a, b in pairs)


def _of(dataset: Dataset, order: list[int]) -> Callable[[], object]:
    return lambda: sum(len(dataset.image_bytes(i)) for i in order)


def _opened(names: list[str], order: list[int]) -> int:
    total = 0
    for i in order:
        with open(names[i], "rb") as file:
            total += len(file.read())
    return total


def _drop(files: list[Path]) -> None:
    """Let the system forget what it holds of these files' content."""
    for path in files:
        place = os.open(path, os.O_RDONLY)
        os.posix_fadvise(place, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(place)


def _files(folder: Path, n: int) -> tuple[Config, list[Path]]:
    rng = np.random.default_rng()
    noise, sizes = rng.bytes(40_000), rng.integers(4_000, 20_000, n).tolist()
    names = [f"{i // IN_A_FOLDER:03d}/{i:06d}.jpg" for i in range(n)]
    paths = [folder / "images" / name for name in names]
    for parent in dict.fromkeys(path.parent for path in paths):
        parent.mkdir(parents=True)
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        path.write_bytes(noise[i % 20_000 : i % 20_000 + size])
    table = pd.DataFrame({"file": names, "id": range(n), "target": 0.5, "split": ["train", "validation"] * (n // 2)})
    table.to_csv(folder / "table.csv", index=False)
    data = {"source": str(folder / "table.csv"), "images": str(folder / "images"), "targets": ["target"]}
    data |= {"columns": {"image": "file", "id": "id"}}
    paths_of = {"features": str(folder / "features"), "stage": None}
    return Config.model_validate({"experiment": "archived", "task": "regress", "data": data, "paths": paths_of}), paths


if __name__ == "__main__":
    show(measure(False))
