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
from pipeline.results import cells_to_markdown

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
            for trial in _results(folder, seed, name):
                summary = read_json(trial)["summary"]
                fold = next(part for part in trial.parent.name.split(",") if part.startswith("fold="))
                parts = {part: summary[part]["CRPS"] for part in ("in_domain", "out_of_domain")}
                rows.append({"method": name, "seed": seed, "fold": fold, "rms": summary["rms"], **parts})
    return pd.DataFrame(rows)


def compare(scores: pd.DataFrame) -> list[list[str]]:
    """A line for each method: its scores, and how much worse it is than the first, paired by seed and fold."""
    first = next(iter(METHODS))
    rms = scores.pivot(index=["seed", "fold"], columns="method", values="rms")
    lines = []
    for name, method in METHODS.items():
        of = scores[scores["method"] == name]
        apart = (rms[name] - rms[first]).to_numpy()
        paired = ["", ""] if name == first else [_mean(apart, "+.3f"), f"{(apart > 0).sum()} of {len(apart)}"]
        lines.append(
            [method.label, *(_mean(of[key].to_numpy()) for key in ("rms", "in_domain", "out_of_domain")), *paired]
        )
    return lines


def _mean(values: np.ndarray, form: str = ".3f") -> str:
    return f"{values.mean():{form}} ± {values.std(ddof=1):.3f}"


HEADER = ("method", "rms", "CRPS, known domains", "CRPS, new domains", "rms above the first", "in how many folds")


def pooled_coverage(folder: Path, seeds: list[int]) -> list[list[str]]:
    """A line for each method: how many events of new domains there are, and how many of their targets lie in each interval."""
    lines = []
    for name, method in METHODS.items():
        tables = [_new_events(trial.parent) for seed in seeds for trial in _results(folder, seed, name)]
        events = pd.concat(tables)
        truth, mu, sigma = (events[column].to_numpy("float64") for column in ("truth", "mu", "sigma"))
        n = len(events) // events["target"].nunique()
        lines.append(
            [method.label, str(n), *(f"{coverage(truth, mu, sigma, level):.3f}" for level in (0.5, 0.8, 0.95))]
        )
    return lines


def _results(folder: Path, seed: int, name: str) -> list[Path]:
    return sorted((folder / f"root-{seed}" / "trained" / name).glob("*/results.json"))


def _new_events(trial: Path) -> pd.DataFrame:
    """Forecasts for the events of domains that the trial was not trained on."""
    events = pd.read_parquet(trial / "events.parquet")
    known = read_json(trial / "trained.json")["train_domains"]
    return events[~events["domain"].isin(known)]


def main() -> None:
    folder, seeds = Path(sys.argv[1]).resolve(), [int(seed) for seed in sys.argv[2:]] or [0, 1, 2]
    for seed in seeds:
        run(folder, seed)
    print(cells_to_markdown(HEADER, compare(scores(folder, seeds))))
    print(cells_to_markdown(("method", "new events", "in 50 %", "in 80 %", "in 95 %"), pooled_coverage(folder, seeds)))


if __name__ == "__main__":
    main()
