"""Ridge regression with seven penalties: one eigendecomposition for all, beside scikit-learn's Ridge once for each, in one run.

    python benchmarks/ridge.py [rounds]

Random inputs of the beetles' size (12,000 × 768, three targets), float64, one thread, the two in turn; prints the median of
each and of their ratio, and how far their weights are apart.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from pipeline.training.ridge import solve

Floats = NDArray[np.float64]
N, WIDTH, N_TARGETS = 12_000, 768, 3
ALPHAS = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)


def one_by_one(inputs: Floats, targets: Floats) -> list[Floats]:
    """Weights [n_targets, E] for unscaled inputs, of each penalty."""
    scaler = StandardScaler().fit(inputs)
    return [Ridge(alpha=alpha).fit(scaler.transform(inputs), targets).coef_ / scaler.scale_ for alpha in ALPHAS]


def all_at_once(inputs: Floats, targets: Floats) -> list[Floats]:
    return [weights for weights, _ in solve(inputs.astype("float32"), targets.astype("float32"), ALPHAS)]


def main() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(N, WIDTH)).astype("float32").astype("float64")
    targets = (inputs[:, :N_TARGETS] + rng.normal(size=(N, N_TARGETS))).astype("float32").astype("float64")
    times: dict[str, list[float]] = {"one by one": [], "all at once": []}
    found = {}
    for _ in range(int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        for name, way in (("one by one", one_by_one), ("all at once", all_at_once)):
            started = time.perf_counter()
            found[name] = way(inputs, targets)
            times[name].append(time.perf_counter() - started)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(*found.values(), strict=True))
    for name, seconds in times.items():
        print(f"{name}: {statistics.median(seconds):.2f} s")
    ratios = [one / other for one, other in zip(*times.values(), strict=True)]
    print(f"ratio {statistics.median(ratios):.1f}; weights differ by at most {apart:.1e}")


if __name__ == "__main__":
    main()
