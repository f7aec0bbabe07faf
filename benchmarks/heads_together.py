"""16 narrow heads on the same features (3,000 × 768, one hidden layer of 16), on a CPU: one after another / together.

    python -m benchmarks.heads_together

Both by Carabid, with validation, early stop and lines of metrics.jsonl of each; fresh random inputs, one thread. Wide heads are
trained one after another on a CPU, whatever is asked for: their steps take longer to compute than to call.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import torch

from benchmarks.figure import Figure, show
from benchmarks.gpu_heads import fit_all, make_samples, make_trials
from benchmarks.head_training import Size, in_turn
from pipeline.training import stacked
from pipeline.training.run import Fitted
from pipeline.training.stacked import Prepared

THREADS = 1


def measure(short: bool) -> list[Figure]:
    """The ratio. Raises AssertionError where both ways do not choose the same epochs."""
    size, heads, epochs = (Size(128, (16, 8, 3)), stacked.FEWEST, 1) if short else (Size(3_000, (768, 16, 3)), 16, 3)
    train, validation = (make_samples(n, size, torch.device("cpu")) for n in (size.n, size.n // 5))

    def made(folder: str) -> list[Prepared]:
        return make_trials(heads, size, epochs, train, validation, Path(folder))

    def one_after_another() -> list[int]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            return [trial.fit().progress.best_epoch for trial in made(folder)]

    def together() -> list[int]:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            return [each.progress.best_epoch for each in fit_all(made(folder)) if isinstance(each, Fitted)]

    assert one_after_another() == together()
    alone, stack, ratio = in_turn(one_after_another, together, 1 if short else 3)
    return [
        Figure(
            f"{heads} narrow heads together, CPU", ratio, at_least=1, about=f"one by one {alone:.1f} s / {stack:.1f} s of a core"
        )
    ]


def main() -> None:
    torch.set_num_threads(THREADS)
    show(measure(short=False))


if __name__ == "__main__":
    main()
