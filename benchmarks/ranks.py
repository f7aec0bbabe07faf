"""Retrieval and probabilities per rank at the size that users ask for: 10,000 images among 350,000 names, in bounded memory.

    python benchmarks/ranks.py [images] [names]

Random embeddings of width 512, 40,000 genera, 2,000 families; prints seconds, and the most memory that each takes beside the
embeddings (a copy of the names, divided by their lengths, is part of it).
"""

from __future__ import annotations

import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.metrics.ranks import probabilities
from pipeline.metrics.retrieval import rank

IMAGES, NAMES, WIDTH, GENERA, FAMILIES, NOISE = 10_000, 350_000, 512, 40_000, 2_000, 4.0


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it makes, seconds, and the most MB that it holds."""
    tracemalloc.start()
    started = time.perf_counter()
    found = work()
    seconds, peak = time.perf_counter() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found, seconds, peak / 2**20


def main() -> None:
    n, n_names = (int(given or usual) for given, usual in zip([*sys.argv[1:3], "", ""], (IMAGES, NAMES), strict=False))
    rng = np.random.default_rng(0)
    names = rng.standard_normal((n_names, WIDTH), dtype="float32")
    labels = rng.integers(n_names, size=n)
    images = names[labels] + np.float32(NOISE) * rng.standard_normal((n, WIDTH), dtype="float32")
    parents = {"genus": rng.integers(GENERA, size=n_names), "family": rng.integers(FAMILIES, size=n_names)}
    whole = n * n_names * 4 / 2**20
    (said, _), seconds, most = measured(lambda: probabilities(images, labels, names, parents, 100.0))
    right = (said.most_probable == labels).mean()
    print(f"ranks: {seconds:.1f} s, {most:.0f} MB (all cosines: {whole:.0f} MB), {100 * right:.1f} % right")
    ranked, seconds, most = measured(lambda: rank(images, labels, names, np.arange(n_names)))
    print(f"retrieval: {seconds:.1f} s, {most:.0f} MB, {100 * ranked.precision[:, 0].mean():.1f} % right")


if __name__ == "__main__":
    main()
