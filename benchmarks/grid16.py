"""A grid of 16 heads from raw images, in one run: each run decodes and embeds all images and trains its head / images are
embedded once, and all heads are trained and evaluated from that in one process, by Carabid's own stages.

    python -m benchmarks.grid16

Generated beetles, embedded by EfficientNet-Lite0 where its package is installed, else by a small network of random weights;
heads of four seeds and four rates. The sample code's way: PIL decodes and transforms images, which are embedded batch by batch in
single precision, anew in every run; then a DataLoader over tensors in memory, without worker processes (for so few images they
cost it more than they spare), plain Adam, the loss read after every batch. In seconds of a core; what it takes to start Python
counts for neither.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.figure import Figure, show
from benchmarks.head_training import core_seconds
from pipeline.backbones import load_backbone
from pipeline.backbones.lite0 import find_weights, write_lite0
from pipeline.disk.layout import PROJECT
from pipeline.experiments.reading import Trial, load_experiment
from pipeline.launch.jobs.trials import evaluate_trials, train_trials, trial_dir
from pipeline.models.learner import make_mlp
from pipeline.stages import extract
from pipeline.synthetic.beetles import Size, write

THREADS = 1
SOME = 1
"""Of the sample code's 16 runs, how many are run: each does the same."""
GRID = ("seed=0,1,2,3", "optim.lr=1e-4,3e-4,1e-3,3e-3")


def make_trials(folder: Path, short: bool) -> Sequence[Trial]:
    """The grid, and the data and the network that it is of."""
    write(folder / "data", 0, Size(8, 8, 8, 4) if short else Size(25, 8, 8, 4), "csv")
    weights, epochs = None if short else find_weights(), 1 if short else 20
    backbone: dict[str, Any] = {"kind": "timm", "name": "test_resnet", "image_size": 32}
    if weights is not None:
        write_lite0(weights, folder / "lite0")
        backbone = {"kind": "timm", "name": f"local-dir:{folder / 'lite0'}"}
    base = PROJECT / "configs" / "beetles" / "frozen.yaml"
    grid = {"base": str(base), "experiment": "grid16", "backbone": backbone, "device": "cpu", "features": {"dtype": "fp32"}}
    (folder / "grid16.yaml").write_text(json.dumps(grid))
    plain = (f"data.source={folder / 'data' / 'metadata.csv'}", f"train.epochs={epochs}", "train.precision=fp32")
    return load_experiment(folder / "grid16.yaml", (*plain, *(() if short else GRID))).trials


def sample_run(trial: Trial, data: Path) -> None:
    """One run as the sample code does it."""
    config = trial.config
    torch.manual_seed(config.seed)
    backbone, table = load_backbone(config.backbone), pd.read_csv(data / "metadata.csv")
    splits = {}
    for split in ("train", "validation", "test"):
        rows = table[table["split"] == split]
        files = [data / name for name in rows["file_path"]]
        targets = torch.tensor(rows[list(config.data.targets)].to_numpy("float32"))
        splits[split] = TensorDataset(torch.cat([embed(backbone, files[i : i + 64]) for i in range(0, len(files), 64)]), targets)
    head, test = make_mlp((backbone.embed_dim, 512, 128, 32, 3)), splits.pop("test")
    train_head(head, splits, config.optim.lr, config.train.epochs)
    with torch.inference_mode():
        head(nn.functional.normalize(test.tensors[0], dim=-1))


@torch.inference_mode()
def embed(backbone: Any, files: Sequence[Path]) -> Tensor:
    """A batch of images decoded, transformed and embedded in single precision."""
    batch = []
    for file in files:
        with Image.open(file) as image:
            batch.append(backbone.transform(image.convert("RGB")))
    embedded: Tensor = backbone.embed(torch.stack(batch))
    return embedded


def train_head(head: nn.Module, splits: dict[str, TensorDataset], lr: float, epochs: int) -> None:
    optimizer = torch.optim.Adam(head.parameters(), lr=lr)
    for _ in range(epochs):
        for split, data in splits.items():
            for embedding, targets in DataLoader(data, 64, shuffle=split == "train"):
                with torch.set_grad_enabled(split == "train"):
                    loss = nn.functional.mse_loss(head(nn.functional.normalize(embedding, dim=-1)), targets)
                if split == "train":
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                loss.item()


def carabid(trials: Sequence[Trial]) -> None:
    """Embed, train and evaluate."""
    extract.run(trials[0].config)
    train_trials(trials)
    evaluate_trials(trials)


def measure(short: bool) -> list[Figure]:
    """The ratio. Raises AssertionError where a trial has no results."""
    before = os.environ.get("CARABID_ROOT")
    with (
        tempfile.TemporaryDirectory() as name,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        os.environ["CARABID_ROOT"] = name
        try:
            trials = make_trials(Path(name), short)
            some, data = trials[:SOME], Path(name) / "data"
            theirs = sum(core_seconds(lambda trial=trial: sample_run(trial, data)) for trial in some) / len(some) * len(trials)
            mine = core_seconds(lambda: carabid(trials))
            assert all(trial_dir(trial).results.exists() for trial in trials)
        finally:
            os.environ.pop("CARABID_ROOT") if before is None else os.environ.update(CARABID_ROOT=before)
    about = f"{theirs:.0f} s of a core ({len(some)} of {len(trials)} runs measured) / {mine:.0f} s"
    return [Figure("a grid of 16 trials from raw images", theirs / mine, at_least=10, about=about)]


def main() -> None:
    torch.set_num_threads(THREADS)
    show(measure(short=False))


if __name__ == "__main__":
    main()
