"""A report of many trials: the time to write it, its size, and the time a browser takes to open it. The trials are copies of one
that was trained, each with a configuration of its own and with figures that are drawn around its.

    python -m benchmarks.report
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figure import Figure, show
from pipeline.backbones.tiny import write_tiny_open_clip
from pipeline.config.identity import config_hash
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_hashed, write_hashed, write_text
from pipeline.experiments.reading import Experiment, Trial, dump_config, load_experiment
from pipeline.reporting.page.page import write
from pipeline.stages import evaluate, extract, train
from pipeline.tasks import load_task

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


THREADS = 1


def measure(short: bool) -> list[Figure]:
    n = 5 if short else 1000
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CARABID_ROOT"] = folder
        experiment = _grid(Path(folder), n)
        first = _trained(experiment)
        for trial, rng in zip(experiment.trials[1:n], np.random.default_rng(0).spawn(n - 1), strict=True):
            _copy(first, trial, experiment.dir.trial(trial.name), rng)
        busy = time.process_time()
        page = write([experiment.dir], experiment.dir.report_html)
        busy = time.process_time() - busy
        about = f"of {n} trials; opened in {_opened(page)}"
        return [
            Figure("report: CPU to write it", busy, "s", at_most=20.0, about=about),
            Figure("report: size", page.stat().st_size / 1e6, "MB", at_most=2.0, about=about),
        ]


def _grid(root: Path, n: int) -> Experiment:
    """A hundred configurations, each with so many seeds."""
    load_task("beetles").generate(root / "data", scale=0.1)
    write_tiny_open_clip(root / "clip")
    rates, decays = (",".join(f"{value:.3g}" for value in np.geomspace(low, high, 10)) for low, high in ((1e-4, 1e-1), (1e-3, 1)))
    seeds = ",".join(map(str, range(-(-n // 100))))
    grid = (f"optim.lr={rates}", f"optim.weight_decay={decays}", f"seed={seeds}", "train.epochs=20", "optim.kind=adamw")
    data = (f"data.source={root / 'data'}", f"backbone.name=local-dir:{root / 'clip'}")
    return load_experiment("configs/beetles/frozen.yaml", (*data, *grid, "device=cpu", "train.precision=fp32"))


def _trained(experiment: Experiment) -> TrialDir:
    trial = experiment.trials[0]
    folder = experiment.dir.trial(trial.name)
    extract.ensure(trial.config)
    train.run(trial.config, folder)
    evaluate.run(trial.config, folder)
    return folder


def _copy(first: TrialDir, trial: Trial, folder: TrialDir, rng: np.random.Generator) -> None:
    shutil.copytree(first.path, folder.path)
    write_text(folder.config, dump_config(trial.config))
    results = read_hashed(first.results)
    drawn = {name: value and value + rng.normal(0, 0.1) for name, value in results["figures"].items()}
    write_hashed(folder.results, results | {"config_hash": config_hash(trial.config), "figures": drawn})


def _opened(page: Path) -> str:
    """How long a browser takes, in words."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        return "no browser here"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"]).new_page()
        opened.goto(page.as_uri(), wait_until="load")
        took = opened.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart")
    return f"{took / 1000:.2f} s"


if __name__ == "__main__":
    show(measure(False))
