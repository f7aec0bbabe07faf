"""Forecasts of drought in domains never seen, beside what they must beat: the tables of docs/forecasts.md.

    python benchmarks/forecasts.py FOLDER [SEED …]

For each seed (default 0 1 2) beetles are generated, and every METHOD is trained with each fold of domains left out, on this
machine, through the command line as a person would do it; what is there already is not done again. Then each method's `rms`
is compared with the first one's fold by fold, and coverage is pooled over all events of domains never seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipeline.backbones.tiny import write_tiny_open_clip
from pipeline.layout import read_json
from pipeline.metrics.probabilistic import coverage
from pipeline.results import print_cells

FOLDS = range(5)
PERCEPTRON = ("model.head.kind=mlp", "model.standardize_targets=true", "optim.lr=1e-3", "train.epochs=30")


@dataclass(frozen=True)
class Method:
    """A line of the table: a YAML of configs/beetles and what is set on the command line."""

    label: str
    config: str
    overrides: tuple[str, ...] = ()


METHODS = {
    "forecaster": Method("ridge on 8 × 8 pixels, calibrated", "pixels"),
    "climatology": Method("climatology", "climatology"),
    "metadata": Method("metadata only (boosted trees)", "metadata"),
    "spread": Method("the same ridge, spread over specimens", "pixels", ("calibrate.kind=spread",)),
}


def run(folder: Path, seed: int) -> None:
    """Generate a seed's data and train all methods."""
    data, clip, root = folder / f"beetles-{seed}", folder / "clip", folder / f"root-{seed}"
    if not clip.exists():
        write_tiny_open_clip(clip)
    carabid("generate", "beetles", "--out", data, "--seed", seed, root=root)
    for name, method in METHODS.items():
        fold = "data.split.fold=" + ",".join(map(str, FOLDS))
        fixed = [f"experiment={name}", f"data.source={data}", "data.split.kind=domains", fold, *method.overrides]
        fixed = [value.replace("CLIP", f"local-dir:{clip}") for value in fixed]
        carabid("submit", f"configs/beetles/{method.config}.yaml", "--cluster", "local", "--wait", *fixed, root=root)


def carabid(*arguments: object, root: Path) -> None:
    """Run the command line; what it prints goes to a file of the root."""
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    with (root / "output.txt").open("a") as output:
        subprocess.run(command, check=True, env={**os.environ, "CARABID_ROOT": str(root)}, stdout=output, stderr=output)


def scores(folder: Path, seeds: list[int]) -> pd.DataFrame:
    """A row for each method, seed and fold: rms, and its CRPS in known and in new domains."""
    rows = []
    for seed in seeds:
        for name in METHODS:
            for trial in (folder / f"root-{seed}" / "trained" / name).glob("*/results.json"):
                summary = read_json(trial)["summary"]
                fold = next(part for part in trial.parent.name.split(",") if part.startswith("fold="))
                parts = {part: summary[part]["CRPS"] for part in ("in_domain", "out_of_domain")}
                rows.append({"method": name, "seed": seed, "fold": fold, "rms": summary["rms"], **parts})
    return pd.DataFrame(rows)
