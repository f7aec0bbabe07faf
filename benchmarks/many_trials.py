"""A grid of 45 classifiers on photographs of wings: a Python for each stage of each trial / one process for all of them.

    python -m benchmarks.many_trials

Both ways run Carabid's own stages, and leave the same models: the first is how trials of a Slurm array began before they shared
job tasks (and how the sample code runs each of its own), the second is a job task of `carabid submit --pack auto`. Of the first
some trials are run, evenly taken, and their mean counts for all. Real photographs where ../shared/data/wing-patterns is there,
else made-up butterflies.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figure import Figure, seconds, show
from pipeline.disk.layout import PROJECT
from pipeline.experiments.reading import Trial, load_experiment
from pipeline.launch.jobs.trials import trial_dir
from pipeline.stages import extract
from pipeline.tasks import load_task

THREADS = 1
WINGS = PROJECT.parent / "shared" / "data" / "wing-patterns"
GRID = """
base: {base}
experiment: many
backbone: {{kind: pixels, size: 16}}
device: cpu
grid:
  data.split.fold: [0, 1, 2, 3, 4]
variants:
  logistic regression: {{model.head.kind: logistic}}
  svc: {{model.head.kind: svc, model.head.C: [1, 10, 100]}}
  nearest neighbours: {{model.head.kind: knn, model.head.weights: distance, model.head.k: [3, 7, 15, 31]}}
  discriminant analysis: {{model.head.kind: lda}}
"""
SOME = 5
"""Of the trials that have a process of their own for each stage, how many are run."""


def carabid(root: Path, *arguments: object) -> None:
    """A command in a process of its own."""
    environ = {**os.environ, "CARABID_ROOT": str(root)}
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    subprocess.run(command, cwd=PROJECT, env=environ, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def data(folder: Path, scale: float) -> list[str]:
    """Overrides that name the data."""
    if WINGS.is_dir() and scale == 1:
        return [f"data.source={WINGS / 'metadata.csv'}", f"data.images={WINGS / 'images'}"]
    load_task("butterflies").generate(folder / "data", scale=scale)
    (table,) = (folder / "data").glob("*.csv")
    return [f"data.source={table}", f"data.images={folder / 'data' / 'images'}"]


def each_alone(root: Path, trials: Sequence[Trial], features: Path) -> None:
    """Train and evaluate these trials, a process for each stage of each."""
    for trial in trials:
        for stage in ("train", "evaluate"):
            carabid(root, stage, trial_dir(trial).config, f"paths.features={features}")


def all_in_one(root: Path, config: Path, overrides: Sequence[str]) -> None:
    """Train and evaluate all trials, as job tasks that train and evaluate them do."""
    for stage in ("train", "evaluate"):
        carabid(root, stage, config, *overrides)


def measure(short: bool = False) -> list[Figure]:
    """The ratio of the two, and of a chain on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        return _measure(Path(folder), short)


def _measure(folder: Path, short: bool) -> list[Figure]:
    config = folder / "grid.yaml"
    config.write_text(GRID.format(base=PROJECT / "configs" / "butterflies" / "classifiers.yaml"))
    overrides = data(folder, 0.1 if short else 1) + (["data.split.fold=0", "variants=discriminant analysis"] if short else [])
    os.environ["CARABID_ROOT"] = str(folder)
    trials = load_experiment(config, overrides).trials
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        extract.run(trials[0].config)
    together = seconds(lambda: all_in_one(folder, config, overrides))
    chain = together if short else seconds(lambda: carabid(folder / "local", "submit", config, *overrides, "--cluster", "local"))
    some = trials[:: max(1, len(trials) // SOME)]
    alone = seconds(lambda: each_alone(folder / "alone", some, folder / "features")) / len(some) * len(trials)
    about = f"{len(trials)} trials: {alone:.0f} s ({len(some)} of {len(trials)} measured), {{:.0f}} s"
    return [
        Figure(
            "a grid of classifiers: a process a trial and stage / one",
            alone / together,
            at_least=10,
            about=about.format(together),
        ),
        Figure("the same / all of `submit --cluster local`", alone / chain, at_least=10, about=about.format(chain)),
    ]


if __name__ == "__main__":
    show(measure())
