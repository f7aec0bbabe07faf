"""Extraction end to end, from JPEGs to a feature store, beside the slower of its two halves alone: decoding (read, decode, cut,
normalise nothing) and the model (batches in memory → features); and what it holds in memory of 500 and of 2,000 images.

    python -m benchmarks.extraction [rounds]

One thread decodes and one computes, on two cores. Photographs are made anew; the model is a small network with random weights,
which takes about as long for one as decoding does: neither hides behind the other.
"""

from __future__ import annotations

import csv
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.decoding import photograph
from benchmarks.figure import Figure, seconds, show
from pipeline.config.trial import Config
from pipeline.data.images import load_batches
from pipeline.features.forward import compute_features
from pipeline.stages import extract

THREADS = 1
N, MANY, ROUNDS, BATCH = 320, 500, 4, 16
NETWORK = "lcnet_050"
TINY = "test_vit"
SMALL, LARGE = (300, 200), (1800, 1200)
"""Pixels of photographs whose decoding is not what is measured, and of those where it is."""


class Spent(NamedTuple):
    """Seconds by the clock, and of processors."""

    clock: float
    processors: float


def spent(work: Callable[[], object]) -> Spent:
    """What it takes."""
    before = time.process_time()
    return Spent(seconds(work), time.process_time() - before)


def write_images(folder: Path, n: int, size: tuple[int, int]) -> Path:
    """So many rows; a dozen images, copied: what is measured reads them once each."""
    rng, table = np.random.default_rng(), folder / "images.csv"
    made = [photograph(rng, size) for _ in range(min(n, 12))]
    folder.mkdir(parents=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_path", "public_id", "target", "split"))
        for i in range(n):
            (folder / f"{i}.jpg").write_bytes(made[i % len(made)])
            writer.writerow((f"{i}.jpg", i, i % 7, ("train", "train", "train", "validation", "test")[i % 5]))
    return table


def configuration(table: Path, network: str) -> Config:
    values: dict[str, Any] = {
        "experiment": "benchmark",
        "task": "regress",
        "data": {"source": str(table), "columns": {"image": "file_path", "id": "public_id"}, "targets": ["target"]},
        "backbone": {"kind": "timm", "name": network},
        "features": {"shard_size": 64},
        "device": "cpu",
        "resources": {"extract_batch": BATCH, "decode_threads": 1},
        "paths": {"features": str(table.parent / "features")},
    }
    return Config.model_validate(values)


def ways(config: Config) -> tuple[Spent, Spent, Spent]:
    """Of decoding alone, of the model alone, and of both with the writing of the store."""
    torch.set_num_threads(THREADS)
    work = extract.prepare(config)
    torch.set_num_threads(THREADS)
    backbone, chunks = work.load(), [range(at, min(at + BATCH, work.store.n)) for at in range(0, work.store.n, BATCH)]
    batches = []

    def decode() -> None:
        loaded = load_batches(work.dataset, chunks, backbone.pixels, 1, work.data.images)
        batches[:] = [batch.images for batch in loaded]

    def embed() -> None:
        for images in batches:
            compute_features(backbone, images, "pooled", 0, config.features.dtype)

    alone = spent(decode), spent(embed)
    shutil.rmtree(work.store.dir.path, ignore_errors=True)
    return *alone, spent(lambda: extract.extract(work, range(work.store.n_shards)))


def peak(n: int) -> float:
    """MB that a process of its own has held at most while it extracted n images."""
    command = [sys.executable, "-m", "benchmarks.extraction", "--peak", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(re.findall(r"peak ([\d.]+) MB", done.stdout)[0])


def show_peak(n: int) -> None:
    """What `peak` reads."""
    import resource

    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(THREADS)
        extract.run(configuration(write_images(Path(folder) / "images", n, SMALL), TINY))
    print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.1f} MB")


def measure(short: bool = False, rounds: int = ROUNDS) -> list[Figure]:
    """All figures, of fresh images."""
    n, size, network, rounds = (8, SMALL, TINY, 1) if short else (N, LARGE, NETWORK, rounds)
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(write_images(Path(folder) / "images", n, size), network)
        ways(config)
        found = [ways(config) for _ in range(rounds)]
    share = statistics.median(max(decode.clock, embed.clock) / whole.clock for decode, embed, whole in found)
    own = statistics.median((decode.processors + embed.processors) / whole.processors for decode, embed, whole in found)
    speeds = [n / statistics.median(each.clock for each in way) for way in zip(*found, strict=True)]
    about = "decoding alone {:.0f}, model alone {:.0f}, end to end {:.0f} images/s".format(*speeds)
    figures = [
        Figure("extraction end to end, beside the slower of decoding and model", share, at_least=0.85, about=about),
        Figure("processors' time of decoding and model, beside that of all", own, at_least=0.85),
    ]
    return figures if short else [*figures, _growth(MANY)]


def _growth(n: int) -> Figure:
    few, many = peak(n), peak(4 * n)
    about = f"{few:.0f} MB of {n}, {many:.0f} MB of {4 * n}"
    return Figure("memory of four times as many images", many / few, at_most=1.1, about=about)


def main(arguments: Sequence[str]) -> None:
    if arguments[:1] == ["--peak"]:
        show_peak(int(arguments[1]))
    else:
        show(measure(rounds=int(arguments[0]) if arguments else ROUNDS))


if __name__ == "__main__":
    main(sys.argv[1:])
