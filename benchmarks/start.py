"""What it takes to load the libraries of a job and to end, in CPU: as Python does it by itself / with `sweep_seldom`, in turn.

python benchmarks/start.py [TIMES] [MODULE …]
"""

import os
import statistics
import subprocess
import sys

from pipeline.disk.layout import PROJECT

MODULES = ("torch", "open_clip")
SELDOM = "from pipeline.sweeps import sweep_seldom; sweep_seldom(); "
WAYS = {"plain": "", "carabid": SELDOM}


def seconds(code: str) -> float:
    """CPU of a Python that runs this and ends."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    times, modules = int(sys.argv[1]) if sys.argv[1:] else 5, sys.argv[2:] or MODULES
    for module in modules:
        took: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(times):
            for way, before in WAYS.items():
                took[way].append(seconds(f"{before}import {module}"))
        plain, ours = (statistics.median(took[way]) for way in WAYS)
        print(f"{module}: plain {plain:.2f} s, carabid {ours:.2f} s: ratio {plain / ours:.2f}")


if __name__ == "__main__":
    main()
