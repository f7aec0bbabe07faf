"""One epoch of the frozen head, Carabid's way beside the sample code's way, in one run.

    python benchmarks/head_training.py [rounds]

Carabid: features resident, slices of a permutation, fused Adam, one read of the loss per epoch. The sample code: a
DataLoader with worker processes over tensors in memory, plain Adam, the loss read after every batch. Fresh random inputs of the
beetles' size (12,000 × 768, batch 64), one thread, the two in turn; prints the median of each and of their ratio.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pipeline.config.training import Train
from pipeline.config.trial import Config
from pipeline.features.bank import TensorBank
from pipeline.models.learner import Learner, make_mlp
from pipeline.models.metadata import Names
from pipeline.training.learner import Lesson
from pipeline.training.loop import train_epoch
from pipeline.training.optimiser import make_optimizer
from pipeline.training.risk import start_log_weights
from pipeline.training.samples import Samples, Targets

N, WIDTH, BATCH, WORKERS = 12_000, 768, 64, 4
LAYERS = (WIDTH, 512, 128, 32, 3)
DATA = {"source": "made up", "columns": {"image": "file_path", "id": "public_id"}, "targets": ["a", "b", "c"]}


def carabid_epoch(features: Tensor, targets: Tensor) -> Callable[[], object]:
    train = Train(batch_size=BATCH, precision="fp32")
    config = Config.model_validate({"experiment": "benchmark", "task": "beetles", "data": DATA, "train": train})
    model = Learner(nn.Identity(), make_mlp(LAYERS), None, True, 3)
    optimizer = make_optimizer(model, config)
    metadata = Names().metadata({"domain": [None] * N})
    samples = Samples(TensorBank(features, features.device, "device"), Targets(targets), metadata, np.arange(N), targets.shape[1])
    lesson = Lesson(model, samples, samples, config, start_log_weights(metadata.domain))
    return lambda: train_epoch(model, lesson, optimizer, config, 0, lambda _: None)


def sample_epoch(features: Tensor, targets: Tensor) -> Callable[[], object]:
    model = make_mlp(LAYERS)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    loader = DataLoader(TensorDataset(features, targets), BATCH, shuffle=True, num_workers=WORKERS)

    def epoch() -> float:
        total = 0.0
        for batch, truth in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(nn.functional.normalize(batch, dim=-1)), truth)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        return total / N

    return epoch


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    features, targets = torch.randn(N, WIDTH), torch.randn(N, 3)
    ours, theirs = carabid_epoch(features, targets), sample_epoch(features, targets)
    ours(), theirs()  # warm-up
    pairs = [(seconds(ours), seconds(theirs)) for _ in range(rounds)]
    print(
        f"carabid {statistics.median(a for a, _ in pairs):.2f} s, sample {statistics.median(b for _, b in pairs):.2f} s an epoch"
    )
    print(f"ratio sample/carabid: {statistics.median(b / a for a, b in pairs):.2f} (median of {rounds}, in turn)")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
