"""One epoch of the frozen head, Carabid's way beside the sample code's way, in one run, in seconds of one core.

    python -m benchmarks.head_training

Carabid: features resident, slices of a permutation, one kernel for Adam, one read of the loss per epoch. The sample code: a
DataLoader with four worker processes over tensors in memory, plain Adam, the loss read after every batch; and the same without
worker processes, which one core serves better. Fresh random inputs of the beetles' size (12,000 × 768, batch 64). And which share
of an epoch it takes to gather its batches.
"""

from __future__ import annotations

import resource
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.figure import Figure, show
from pipeline.config.training import Train
from pipeline.config.trial import Config
from pipeline.features.bank import TensorBank
from pipeline.models.learner import Learner, make_mlp
from pipeline.models.metadata import Names
from pipeline.training.augmentation import epoch_streams
from pipeline.training.learner import Lesson
from pipeline.training.loop import train_epoch
from pipeline.training.optimiser import make_optimizer
from pipeline.training.risk import start_log_weights
from pipeline.training.samples import Samples, Targets

THREADS = 1
DATA = {"source": "made up", "columns": {"image": "file_path", "id": "public_id"}, "targets": ["a", "b", "c"]}


@dataclass(frozen=True)
class Size:
    """Of the data, and of the head."""

    n: int = 12_000
    layers: tuple[int, ...] = (768, 512, 128, 32, 3)
    batch: int = 64
    workers: int = 4


@dataclass(frozen=True)
class Ours:
    """Carabid's training of one trial."""

    model: Learner
    lesson: Lesson
    optimizer: torch.optim.Optimizer
    config: Config

    def epoch(self) -> float:
        """The mean loss of one."""
        return train_epoch(self.model, self.lesson, self.optimizer, self.config, 0, lambda _: None)[0]

    def gather(self) -> None:
        """What an epoch gathers of the features."""
        samples = self.lesson.train
        for batch in self.lesson.batches(epoch_streams(0, 0, samples.targets.device))[1]:
            samples.bank.gather(batch.indices)


def ours(model: Learner, features: Tensor, targets: Tensor, size: Size) -> Ours:
    train = Train(batch_size=size.batch, precision="fp32")
    config = Config.model_validate({"experiment": "benchmark", "task": "beetles", "data": DATA, "train": train})
    metadata, groups = Names().metadata({"domain": [None] * size.n}), np.arange(size.n)
    samples = Samples(TensorBank(features, features.device, "device"), Targets(targets), metadata, groups, targets.shape[1])
    lesson = Lesson(model, samples, samples, config, start_log_weights(metadata.domain))
    return Ours(model, lesson, make_optimizer(model, config), config)


def sample_epoch(head: nn.Module, features: Tensor, targets: Tensor, size: Size, workers: int) -> Callable[[], float]:
    """An epoch as the sample code trains it: the mean loss of one."""
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-4)
    loader = DataLoader(TensorDataset(features, targets), size.batch, shuffle=True, num_workers=workers)

    def epoch() -> float:
        total = 0.0
        for batch, truth in loader:
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(head(nn.functional.normalize(batch, dim=-1)), truth)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        return total / size.n

    return epoch


def core_seconds(work: Callable[[], object]) -> float:
    """How long it keeps a core busy, with the processes that it starts and ends: as long as it takes where there is one core, and
    whatever else this machine does."""

    def spent() -> float:
        return sum(
            each.ru_utime + each.ru_stime for each in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        )

    before = spent()
    work()
    return spent() - before


def in_turn(theirs: Callable[[], object], mine: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """As `figure.in_turn`, in seconds of a core."""
    pairs = [(core_seconds(theirs), core_seconds(mine)) for _ in range(rounds)]
    return *(statistics.median(side) for side in zip(*pairs, strict=True)), statistics.median(a / b for a, b in pairs)


def measure(short: bool) -> list[Figure]:
    """An epoch each way, and what of it is gathering. Raises AssertionError where the ways do not learn alike."""
    size = Size(256, (16, 8, 3), 64, 0) if short else Size()
    features, targets = torch.randn(size.n, size.layers[0]), torch.randn(size.n, size.layers[-1])
    heads = [make_mlp(size.layers) for _ in range(3)]
    for head in heads[1:]:
        head.load_state_dict(heads[0].state_dict())
    mine = ours(Learner(nn.Identity(), heads[0], None, True, size.layers[-1]), features, targets, size)
    theirs, unaided = (
        sample_epoch(head, features, targets, size, n) for head, n in zip(heads[1:], (size.workers, 0), strict=True)
    )
    assert abs(mine.epoch() - theirs()) < 0.01, "an epoch from the same weights comes to another loss"
    rounds = 1 if short else 5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # four workers, as torch says, are too many for few cores
        *both, ratio = in_turn(theirs, mine.epoch, rounds)
        *alone, better = in_turn(unaided, mine.epoch, rounds)
        shares = [core_seconds(mine.gather) / core_seconds(mine.epoch) for _ in range(rounds)]
    told = "a DataLoader {} {:.2f} s / resident features {:.2f} s of a core"
    return [
        Figure("an epoch of the frozen head", ratio, at_least=2.2, about=told.format("with four workers", *both)),
        Figure("an epoch of the frozen head, no workers", better, about=told.format("without workers", *alone)),
        Figure("gathering, of an epoch", 100 * statistics.median(shares), "%", at_most=5, about="rows of a bank in memory"),
    ]


def main() -> None:
    torch.set_num_threads(THREADS)
    show(measure(short=False))


if __name__ == "__main__":
    main()
