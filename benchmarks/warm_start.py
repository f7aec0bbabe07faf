"""From `carabid train` on cached features to the first step: what a trial of a grid takes before it learns anything.

    python -m benchmarks.warm_start

A feature store of the beetles' size (12,000 × 768) is made, and a head on it is trained, by the real commands; training ends at
its first step. How much of that is `import torch`, a Python that does nothing else tells, in turn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.figure import Figure, seconds, show
from pipeline.disk.layout import PROJECT

THREADS = 2
N, WIDTH = 12_000, 768
HEAVY = ("open_clip", "transformers", "timm", "peft", "torchvision")
"""What a trial on cached features has no use for."""
STEP = """
import json, sys, time
from pipeline.training import loop
from pipeline.cli import main

def first_step(*_, **__):
    heavy = [name for name in {heavy} if name in sys.modules]
    print(json.dumps({{"at": time.time(), "heavy": heavy}}), flush=True)
    raise SystemExit(0)

loop.train_epoch = first_step
sys.argv = ["carabid", *sys.argv[1:]]
main()
"""
CONFIG = """
base: {base}
experiment: warm
data: {{source: table.csv, images: images, targets: [a, b], split: {{kind: folds, n: 5}}}}
backbone: {{kind: pixels, size: 16}}
model: {{head: {{kind: mlp}}}}
features: {{dtype: fp32}}
device: cpu
"""


def write_data(folder: Path, n: int) -> None:
    """A table of so many images of noise, and its configuration."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    lines = ["filename,a,b"]
    for number, pixels in enumerate(rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png", compress_level=1)
        lines.append(f"{number}.png,{pixels.mean():.4f},{pixels.std():.4f}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    (folder / "warm.yaml").write_text(CONFIG.format(base=PROJECT / "configs" / "generic" / "regress.yaml"))


def run(folder: Path, code: list[str]) -> str:
    """What a Python with this root says."""
    environ = {**os.environ, "CARABID_ROOT": str(folder), "OMP_NUM_THREADS": str(THREADS)}
    return subprocess.run([sys.executable, *code], cwd=PROJECT, env=environ, check=True, capture_output=True, text=True).stdout


def first_step(folder: Path) -> tuple[float, list[str]]:
    """Seconds from the command to the first step, and which heavy libraries are there by then."""
    started = time.time()
    said = run(folder, ["-c", STEP.format(heavy=HEAVY), "train", str(folder / "warm.yaml")])
    found = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    return found["at"] - started, found["heavy"]


def measure(short: bool = False) -> list[Figure]:
    """Seconds to the first step, those of torch alone, and how many libraries are loaded for nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder, 60 if short else N)
        run(folder, ["-m", "pipeline.cli", "extract", str(folder / "warm.yaml")])
        pairs = []
        for _ in range(1 if short else 5):
            took, heavy = first_step(folder)
            pairs.append((took, seconds(lambda: run(folder, ["-c", "import torch"]))))
    steps, torch = (statistics.median(each) for each in zip(*pairs, strict=True))
    return [
        Figure("from `carabid train` to the first step", steps, "s", at_most=3.5, about=f"import torch alone: {torch:.2f} s"),
        Figure("libraries of backbones loaded for it", len(heavy), "", at_most=0, about=", ".join(heavy)),
    ]


if __name__ == "__main__":
    show(measure())
