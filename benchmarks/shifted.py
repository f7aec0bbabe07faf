"""Forecasts from images unlike all that a model has seen: the table of docs/forecasts.md.

    python benchmarks/shifted.py FOLDER [SEED …]

Beetles are generated and methods trained as by `benchmarks/forecasts.py`, each fold of domains left out in turn (default: seeds
0 1 2). Then the tested specimens are made darker, brighter, black, white and blurred, after their colours were corrected by the
card, so that nothing mends it, and forecast from the images; once more without what is for such images (`models/novelty.py`, the
floor of `metrics/calibration.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageFilter

from benchmarks.forecasts import FOLDS, MUST_BEAT, PIXELS, Method, carabid, results
from pipeline.backbones.tiny import write_tiny_open_clip
from pipeline.data.decoding import to_rgb
from pipeline.disk.layout import TrialDir
from pipeline.metrics.figures import Training
from pipeline.metrics.probabilistic import MIN_SIGMA, coverage, crps
from pipeline.models.saved import load_facts, load_model, read_trained
from pipeline.reporting.results import cells_to_markdown
from pipeline.stages.inputs import Inputs, load_inputs
from pipeline.stages.predict import Models, predict_images, trained_config

METHODS = {
    "forecast": MUST_BEAT["forecast"],
    "ridge": MUST_BEAT["ridge"],
    # Of the sample code's 500 epochs the best one comes before these.
    "frozen": Method("sample code's head, calibrated", "frozen", (*PIXELS, "train.epochs=150")),
    "baseline": Method("sample code's ft-did on a tiny CLIP", "baseline", ("backbone.name=CLIP", "train.epochs=30")),
}
Shift = Callable[[Image.Image], Image.Image]
SHIFTS: dict[str, Shift] = {
    "as they are": lambda image: image,
    "brightness × 0.5": lambda image: image.point([round(0.5 * value) for value in range(256)] * 3),
    "brightness × 1.5": lambda image: image.point([min(255, round(1.5 * value)) for value in range(256)] * 3),
    "black": lambda image: Image.new("RGB", image.size),
    "white": lambda image: Image.new("RGB", image.size, (255, 255, 255)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 16)),
}
LEVEL = 0.8


def train(folder: Path, seed: int) -> None:
    """Generate a seed's data and train all methods."""
    data, clip, root = folder / f"beetles-{seed}", folder / "clip", folder / f"root-{seed}"
    if not clip.exists():
        write_tiny_open_clip(clip)
    carabid("generate", "beetles", "--out", data, "--seed", seed, root=root)
    fixed = (f"data.source={data}", "data.split.kind=domains", "data.split.fold=" + ",".join(map(str, FOLDS)))
    for name, method in METHODS.items():
        chosen = [value.replace("CLIP", f"local-dir:{clip}") for value in method.overrides]
        config = f"configs/beetles/{method.config}.yaml"
        carabid("submit", config, "--cluster", "local", "--wait", f"experiment={name}", *fixed, *chosen, root=root)


def forecast_shifted(trial: TrialDir, shifts: Mapping[str, Shift]) -> pd.DataFrame:
    """A row per tested group, target, shift and way (`guarded`, `bare`): truth, mu and sigma."""
    config = trained_config(trial)
    inputs, facts, record = load_inputs(config), load_facts(trial), Training.of(read_trained(trial))
    model, bare = (load_model(config, trial, inputs.backbone) for _ in range(2))
    bare.novelty = None
    ways = {"guarded": (model, record), "bare": (bare, replace(record, calibration=without_floor(record.calibration or {})))}
    parts = []
    for shift, change in shifts.items():
        for way, (each, training) in ways.items():
            with mock.patch.object(inputs.backbone, "transform", shifted(inputs.backbone.transform, change)):
                parts.append(forecast(inputs, Models(each, inputs.backbone, torch.device("cpu")), facts, training))
            parts[-1] = parts[-1].assign(shift=shift, way=way)
    return pd.concat(parts, ignore_index=True)


def shifted(transform: Callable[[Image.Image], Any], shift: Shift) -> Callable[[Image.Image], Any]:
    return lambda image: transform(shift(to_rgb(image)))


def without_floor(calibration: Mapping[str, Any]) -> dict[str, Any]:
    return {t: {part: {**one, "floor": MIN_SIGMA} for part, one in parts.items()} for t, parts in calibration.items()}


def forecast(inputs: Inputs, models: Models, facts: Any, training: Training) -> pd.DataFrame:
    """Of each tested group and target: truth, mu, sigma."""
    table, task = inputs.table("test"), inputs.task
    said = predict_images(inputs.config, models, facts, inputs.dataset, table)
    predictions = task.predictions(table, inputs.dataset.truth.of(table), inputs.dataset.targets, said)
    return task.tables(task.forecast(predictions, training))[1][["group", "target", "truth", "mu", "sigma"]]


def lines(folder: Path, seeds: list[int]) -> list[list[str]]:
    """For each method and shift: coverage, CRPS and mean sigma, without and with what is for such images."""
    made = []
    for name, method in METHODS.items():
        every = []
        for seed in seeds:
            with mock.patch.dict(os.environ, {"CARABID_ROOT": str(folder / f"root-{seed}")}):
                every += [forecast_shifted(TrialDir(result.parent), SHIFTS) for _, result in results(folder, seed, name)]
        told = pd.concat(every)
        for shift in SHIFTS:
            ways = [told[(told["shift"] == shift) & (told["way"] == way)] for way in ("bare", "guarded")]
            made.append([method.label, shift, *(cell for row in zip(*map(figures, ways), strict=True) for cell in row)])
    return made


def figures(rows: pd.DataFrame) -> tuple[str, str, str]:
    """Coverage, mean CRPS and mean sigma."""
    truth, mu, sigma = (rows[column].to_numpy("float64") for column in ("truth", "mu", "sigma"))
    return f"{coverage(truth, mu, sigma, LEVEL):.3f}", f"{crps(truth, mu, sigma).mean():.3f}", f"{np.mean(sigma):.3f}"


def main() -> None:
    folder, seeds = Path(sys.argv[1]).resolve(), [int(seed) for seed in sys.argv[2:]] or [0, 1, 2]
    for seed in seeds:
        train(folder, seed)
    whats = (f"within {100 * LEVEL:g} %", "CRPS", "mean sigma")
    header = ("method", "images", *(f"{what}, {way}" for what in whats for way in ("bare", "guarded")))
    print(cells_to_markdown(header, lines(folder, seeds)))


if __name__ == "__main__":
    main()
