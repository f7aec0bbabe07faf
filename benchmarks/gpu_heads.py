"""64 heads trained together beside one, on a GPU: an epoch of each on the same features (12,000 × 768, batch 64).

    python -m benchmarks.gpu_heads

One head's step is bound by launching its operations, and 64 take about as many. Fresh random inputs; each way a fit of some
epochs with its validation, checkpoint and lines of metrics.jsonl, as in an experiment.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.figure import Figure, in_turn, show
from benchmarks.head_training import DATA, Size
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.features.bank import TensorBank
from pipeline.models.base import Facts
from pipeline.models.learner import Learner
from pipeline.models.metadata import Names
from pipeline.signals import StopFlag
from pipeline.training import stacked
from pipeline.training.run import Fitted, Run, Stop
from pipeline.training.samples import Samples, Targets
from pipeline.training.stacked import Outcome, Prepared, fit_together

THREADS = 1
HEADS = 64


def make_samples(n: int, size: Size, device: torch.device) -> Samples:
    features, targets = torch.randn(n, size.layers[0], device=device), torch.randn(n, size.layers[-1], device=device)
    metadata = Names().metadata({"domain": [None] * n}, device)
    return Samples(TensorBank(features, device, "device"), Targets(targets), metadata, np.arange(n), size.layers[-1])


def make_trials(n: int, size: Size, epochs: int, train: Samples, validation: Samples, folder: Path) -> list[Prepared]:
    """Trials of their own seeds and rates, in folders of their own."""
    facts = Facts(tuple(DATA["targets"]), Names(), size.layers[0], "", None, "")
    made = []
    for seed in range(n):
        sections = {
            "model": {"head": {"kind": "mlp", "hidden": size.layers[1:-1]}},
            "train": {"epochs": epochs, "batch_size": size.batch, "precision": "fp32"},
            "optim": {"lr": 1e-4 * (1 + seed % 8)},
        }
        config = Config.model_validate({"experiment": "benchmark", "task": "beetles", "data": DATA, "seed": seed, **sections})
        torch.manual_seed(seed)
        run = Run(TrialDir(folder / f"{n}-{seed}"), "benchmark", "machine", config, Stop(StopFlag(), lambda: True))
        made.append(Prepared(Learner.make(config, facts, nn.Identity()).to(train.targets.device), train, validation, run))
    return made


def fit_all(trials: list[Prepared]) -> list[Outcome]:
    """Fit them together; how each went, or what it raised."""
    found: dict[int, Outcome] = {}
    fit_together(trials, lambda place, outcome, _: found.update({place: outcome}))
    return [found[place] for place in range(len(trials))]


def measure(short: bool) -> list[Figure]:
    """How long 64 take beside one. Nothing where there is no GPU, but in short, where the CPU shows that it runs. Raises
    AssertionError where a trial fails."""
    if not (short or torch.cuda.is_available()):
        return []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size, heads, epochs = (Size(128, (16, 8, 3)), stacked.FEWEST, 1) if short else (Size(), HEADS, 5)
    train, validation = (make_samples(n, size, device) for n in (size.n, size.n // 5))

    def fit(n: int) -> None:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            found = fit_all(make_trials(n, size, epochs, train, validation, Path(folder)))
        assert all(isinstance(each, Fitted) for each in found), found
        if device.type == "cuda":
            torch.cuda.synchronize()

    many, one, ratio = in_turn(lambda: fit(heads), lambda: fit(1), 1 if short else 5)
    return [Figure(f"{heads} heads together / one", ratio, at_most=2, about=f"{many:.2f} s / {one:.2f} s, {epochs} epochs")]


def main() -> None:
    torch.set_num_threads(THREADS)
    show(measure(short=False))


if __name__ == "__main__":
    main()
