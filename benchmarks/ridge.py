"""Ridge regression with seven penalties: each fitted by scikit-learn / all from one decomposition; and trials of one process that
have the same inputs: each with a decomposition of its own / with a shared one.

    python -m benchmarks.ridge

Of the beetles' size (12,000 × 768), fresh random inputs in every round, one thread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from benchmarks.figure import Figure, in_turn, show
from pipeline.training.ridge import solve

THREADS = 1
Embeddings = NDArray[np.float32]
Weights = NDArray[np.float64]
N_TARGETS = 3
ALPHAS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
TRIALS = 4


def draw(n: int, width: int) -> tuple[Embeddings, Embeddings]:
    """Inputs and targets, as a store of features has them."""
    rng = np.random.default_rng()
    inputs = rng.normal(size=(n, width)).astype("float32")
    return inputs, (inputs[:, :N_TARGETS] + rng.normal(size=(n, N_TARGETS))).astype("float32")


def one_by_one(inputs: Embeddings, targets: Embeddings) -> list[Weights]:
    """Weights [n_targets, E] for unscaled inputs, of each penalty; in float64, as Carabid's are."""
    x, y = inputs.astype("float64"), targets.astype("float64")
    scaler = StandardScaler().fit(x)
    return [Ridge(alpha=alpha).fit(scaler.transform(x), y).coef_ / scaler.scale_ for alpha in ALPHAS]


def all_at_once(inputs: Embeddings, targets: Embeddings) -> list[Weights]:
    return [weights for weights, _ in solve(inputs, targets, ALPHAS)]


def measure(short: bool) -> list[Figure]:
    """The two ratios. Raises AssertionError where weights differ."""
    n, width, rounds = (300, 20, 1) if short else (12_000, 768, 3)
    first = draw(n, width)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(one_by_one(*first), all_at_once(*first), strict=True))
    assert apart < 1e-5, f"weights differ by {apart:.1e}"
    rng = np.random.default_rng(1)

    def ours(trials: int) -> None:
        """So many trials on the same inputs, which none before has had."""
        inputs = first[0] + np.float32(rng.normal())
        for _ in range(trials):
            all_at_once(inputs, first[1])

    each, at_once, ratio = in_turn(lambda: one_by_one(first[0] + np.float32(rng.normal()), first[1]), lambda: ours(1), rounds)
    apart_, shared, gain = in_turn(lambda: [ours(1) for _ in range(TRIALS)], lambda: ours(TRIALS), rounds)
    about = f"{each:.2f} s / {at_once:.2f} s; equal to {apart:.0e}"
    return [
        Figure("ridge regression, seven penalties", ratio, at_least=3, about=about),
        Figure(f"{TRIALS} trials of ridge on the same inputs", gain, at_least=1.5, about=f"{apart_:.2f} s / {shared:.2f} s"),
    ]


def main() -> None:
    show(measure(short=False))


if __name__ == "__main__":
    main()
