"""What it takes to load the libraries of a job and to end, in CPU: as Python does it by itself / with `sweep_seldom`, in turn.

python -m benchmarks.start
"""

import os
import statistics
import subprocess
import sys

from benchmarks.figure import Figure, show
from pipeline.disk.layout import PROJECT

THREADS = 1
SELDOM = "from pipeline.sweeps import sweep_seldom; sweep_seldom(); "


def cpu_seconds(code: str) -> float:
    """CPU of a Python that runs this and ends."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def loaded(module: str, rounds: int) -> Figure:
    """How many times as much CPU it takes without."""
    pairs = [(cpu_seconds(f"import {module}"), cpu_seconds(f"{SELDOM}import {module}")) for _ in range(rounds)]
    plain, ours = (statistics.median(side) for side in zip(*pairs, strict=True))
    about = f"CPU of Python by itself {plain:.2f} s, with fewer sweeps {ours:.2f} s"
    return Figure(f"loading {module}", statistics.median(a / b for a, b in pairs), at_least=1.0, about=about)


def measure(short: bool) -> list[Figure]:
    return [loaded("yaml", 1)] if short else [loaded("torch", 3), loaded("open_clip", 2)]


if __name__ == "__main__":
    show(measure(False))
