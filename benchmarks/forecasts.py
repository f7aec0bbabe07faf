"""Forecasts of drought in domains never seen, beside what they must beat: the tables of docs/forecasts.md.

    python benchmarks/forecasts.py FOLDER [SEED …]

For each seed (default 0 1 2) beetles are generated, and every method is trained with each fold of domains left out, on this
machine, through the command line as a person would do it; what is there already is not done again. Then each method's `rms`
is compared with those of the calibrated ones fold by fold, and coverage is pooled over all groups of domains never seen.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.backbones.tiny import write_tiny_open_clip
from pipeline.disk.writing import read_json
from pipeline.metrics.probabilistic import LEVELS, coverage
from pipeline.reporting.results import cells_to_markdown

FOLDS = range(5)
PIXELS = ("backbone.kind=pixels", "backbone.size=8")
SPREAD = "calibrate.kind=spread"
PERCEPTRON = (*PIXELS, "model.head.hidden=[64]")
"""With a hidden layer, which CORAL and attention act on."""


@dataclass(frozen=True)
class Method:
    """A line of a table: a YAML of configs/beetles and what is set on the command line."""

    label: str
    config: str
    overrides: tuple[str, ...] = ()


MUST_BEAT = {
    "forecast": Method("linear mean and sigma by CRPS, calibrated", "forecast", PIXELS),
    "ridge": Method("ridge, calibrated", "pixels", ("data.colour_card=true",)),
    "point": Method("the first as points, spread over images", "forecast", (*PIXELS, "loss.kind=mse", SPREAD)),
    "ridge-spread": Method("ridge, spread over images", "pixels", ("data.colour_card=true", SPREAD)),
    "sample": Method("sample code's head, spread over images", "frozen", (*PIXELS, SPREAD)),
    # 150 of the sample code's 500 epochs: the best of all 500 comes before, and they would take hours on a CPU.
    "sample-ft-did": Method(
        "sample code's ft-did on a tiny CLIP, spread", "baseline", ("backbone.name=CLIP", "train.epochs=150", SPREAD)
    ),
    "climatology": Method("climatology, calibrated", "climatology"),
    "metadata": Method("metadata only (boosted trees), calibrated", "metadata"),
}
VARIANTS = {
    "forecast": MUST_BEAT["forecast"],
    "no-card": Method("without the colour card", "forecast", (*PIXELS, "data.colour_card=false")),
    "best-epoch": Method("best epoch chosen", "forecast", (*PIXELS, "select.epoch=best")),
    "emos": Method("`calibrate.kind=emos`", "forecast", (*PIXELS, "calibrate.kind=emos")),
    "domain": Method("with the domain", "forecast", (*PIXELS, "model.domain_embedding=true", "augment.domain_dropout=0.35")),
    "species": Method("with the species", "forecast", (*PIXELS, "model.species_embedding=true", "augment.species_dropout=0.3")),
    "groups": Method("trained on groups", "forecast", (*PIXELS, "train.sample=groups", "train.batch_size=16")),
    "precision": Method("`model.pool=precision`", "forecast", (*PIXELS, "model.pool=precision")),
    "seeds": Method("ensemble of three seeds", "forecast", (*PIXELS, "seed=0,1,2")),
    "hidden": Method("a hidden layer of 64", "forecast", PERCEPTRON),
    "hidden-best": Method("… and the best epoch chosen", "forecast", (*PERCEPTRON, "select.epoch=best")),
    "coral": Method("… and `risk.kind=coral`", "forecast", (*PERCEPTRON, "risk.kind=coral")),
    "group-dro": Method("… and `risk.kind=group_dro`", "forecast", (*PERCEPTRON, "risk.kind=group_dro")),
    "attention": Method(
        "… and attention, trained on groups",
        "forecast",
        (*PERCEPTRON, "train.sample=groups", "train.batch_size=16", "model.pool=attention"),
    ),
}
Methods = dict[str, Method]


def run(folder: Path, seed: int) -> None:
    """Generate a seed's data and train all methods."""
    data, clip, root = folder / f"beetles-{seed}", folder / "clip", folder / f"root-{seed}"
    if not clip.exists():
        write_tiny_open_clip(clip)
    carabid("generate", "beetles", "--out", data, "--seed", seed, root=root)
    folds = "data.split.fold=" + ",".join(map(str, FOLDS))
    for name, method in (MUST_BEAT | VARIANTS).items():
        chosen = [value.replace("CLIP", f"local-dir:{clip}") for value in method.overrides]
        fixed = (f"experiment={name}", f"data.source={data}", "data.split.kind=domains", folds)
        carabid("submit", f"configs/beetles/{method.config}.yaml", "--cluster", "local", "--wait", *fixed, *chosen, root=root)


def carabid(*arguments: object, root: Path) -> None:
    """Run the command line; what it prints goes to a file of the root."""
    root.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]
    with (root / "output.txt").open("a") as output:
        subprocess.run(command, check=True, env={**os.environ, "CARABID_ROOT": str(root)}, stdout=output, stderr=output)


def scores(folder: Path, seeds: list[int], methods: Methods) -> pd.DataFrame:
    """A row for each method, seed and fold: rms, and its CRPS in known and in new domains."""
    rows = []
    for seed in seeds:
        for name in methods:
            for fold, result in results(folder, seed, name):
                summary = read_json(result)["summary"]
                parts = {part: summary[part]["CRPS"] for part in ("in_domain", "out_of_domain")}
                rows.append({"method": name, "seed": seed, "fold": fold, "rms": summary["rms"], **parts})
    return pd.DataFrame(rows)


def results(folder: Path, seed: int, name: str) -> list[tuple[int, Path]]:
    """Fold and results.json of each trial of a method; of its ensembles where it has several seeds."""
    experiment = folder / f"root-{seed}" / "trained" / name
    found = sorted((experiment / "ensembles").glob("*/results.json")) or sorted(experiment.glob("*/results.json"))
    folds = [int(match[1]) if (match := re.search(r"fold=(\d+)", path.parent.name)) else 0 for path in found]
    assert sorted(folds) == list(FOLDS), f"{experiment}: not every fold has results; see {folder}/root-{seed}/output.txt"
    return list(zip(folds, found, strict=True))


def compare(scores: pd.DataFrame, methods: Methods, against: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """A header, and a line for each method: its scores, and how far its rms is above those of others, paired by seed and fold,
    with the number of folds in which it is."""
    rms = scores.pivot(index=["seed", "fold"], columns="method", values="rms")
    lines = []
    for name, method in methods.items():
        of = scores[scores["method"] == name]
        apart = [(rms[name] - rms[other]).to_numpy() for other in against]
        paired = [f"{_mean(each, '+.3f')}, {(each > 0).sum()} of {len(each)}" if each.any() else "" for each in apart]
        parts = (_mean(of[key].to_numpy()) for key in ("rms", "in_domain", "out_of_domain"))
        lines.append([method.label, *parts, *paired])
    above = [f"rms above that of: {methods[other].label}" for other in against]
    return ["method", "rms", "CRPS, known domains", "CRPS, new domains", *above], lines


def _mean(values: NDArray[np.float64], form: str = ".3f") -> str:
    return f"{values.mean():{form}} ± {values.std(ddof=1):.3f}"


def pooled_coverage(folder: Path, seeds: list[int], methods: Methods) -> list[list[str]]:
    """A line for each method: how many groups of new domains there are, and how many of their targets lie in each interval."""
    lines = []
    for name, method in methods.items():
        groups = pd.concat([_new_groups(path.parent) for seed in seeds for _, path in results(folder, seed, name)])
        truth, mu, sigma = (groups[column].to_numpy("float64") for column in ("truth", "mu", "sigma"))
        n = len(groups) // groups["target"].nunique()
        lines.append([method.label, str(n), *(f"{coverage(truth, mu, sigma, level):.3f}" for level in LEVELS)])
    return lines


def _new_groups(folder: Path) -> pd.DataFrame:
    """Forecasts, of a trial or an ensemble, for the groups of domains that were not trained on."""
    groups = pd.read_parquet(folder / "groups.parquet")
    members = read_json(folder / "results.json").get("members")
    trained = folder.parent.parent / members[0] if members else folder
    return groups[~groups["domain"].isin(read_json(trained / "trained.json")["train_domains"])]


def main() -> None:
    folder, seeds = Path(sys.argv[1]).resolve(), [int(seed) for seed in sys.argv[2:]] or [0, 1, 2]
    for seed in seeds:
        run(folder, seed)
    for methods, against in ((MUST_BEAT, ("forecast", "ridge")), (VARIANTS, ("forecast",))):
        print(cells_to_markdown(*compare(scores(folder, seeds, methods), methods, against)))
        header = ("method", "new groups", *(f"within {100 * level:g} %" for level in LEVELS))
        print(cells_to_markdown(header, pooled_coverage(folder, seeds, methods)))


if __name__ == "__main__":
    main()
