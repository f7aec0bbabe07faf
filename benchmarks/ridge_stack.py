"""The ridge stack of `configs/biomass/ridge_stack.yaml`, of the challenge's size: two of its five folds, and scikit-learn's own
pipelines written out, in one run.

    python -m benchmarks.ridge_stack

357 images × 27 parts × 1,024 numbers and five targets, random; the ratio of their seconds, and how far what they say of the
images left out is apart.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler

from benchmarks.figure import Figure, seconds, show
from pipeline.models.ridge_stack import RidgeStack, in_spaces, take_over
from pipeline.training.ridge_stack import fit

Floats = NDArray[np.float64]
THREADS = 1
FOLDS, OUTER, N_TARGETS, ALPHA, STACK = 5, 1, 5, 5.0, 1.0


def ours(parts: Floats, targets: Floats, inner: NDArray[np.int64], new: Floats) -> Floats:
    """What is said of new images [M, T], half of it learnt of logarithms; not clipped."""
    model = RidgeStack((parts.shape[1], parts.shape[2], N_TARGETS), 0.5, None)
    take_over(model, fit(list(parts.transpose(1, 0, 2)), in_spaces(targets), inner, ALPHA, STACK))
    scaled = (torch.from_numpy(new) - model.centre) / model.scale
    of_parts = torch.einsum("npd,pdo->npo", scaled, model.part_weights) + model.part_bias
    raw, log = (torch.einsum("npo,po->no", of_parts, model.stack_weights) + model.stack_bias).chunk(2, 1)
    return np.asarray((raw + torch.expm1(log)) / 2)


def written_out(parts: Floats, targets: Floats, inner: NDArray[np.int64], new: Floats) -> Floats:
    """The same by scikit-learn's pipelines, a part and a space at a time."""
    said = []
    for values, back in ((targets, lambda z: z), (np.log1p(targets), np.expm1)):
        left_out, of_new = [], []
        for place in range(parts.shape[1]):
            recipe = make_pipeline(RobustScaler(), Ridge(ALPHA))
            left_out.append(cross_val_predict(recipe, parts[:, place], values, cv=PredefinedSplit(inner)))
            of_new.append(recipe.fit(parts[:, place], values).predict(new[:, place]))
        columns = zip(np.stack(left_out, 2).transpose(1, 0, 2), np.stack(of_new, 2).transpose(1, 0, 2), values.T, strict=True)
        said.append(back(np.stack([Ridge(STACK).fit(z, y).predict(z_new) for z, z_new, y in columns], 1)))
    return np.asarray((said[0] + said[1]) / 2)


def measure(short: bool) -> list[Figure]:
    n, n_parts, width = (40, 3, 6) if short else (357, 12, 1024)
    rng = np.random.default_rng()
    parts = rng.normal(size=(n, n_parts, width)).astype("float32").astype("float64")
    targets = np.exp(parts[:, 0, :N_TARGETS] + rng.normal(size=(n, N_TARGETS)) / 2)
    folds = rng.permutation(np.arange(n) % FOLDS)
    said: dict[str, list[Floats]] = {}

    def of_all_folds(name: str, way: Callable[..., Floats]) -> None:
        outer = [folds != fold for fold in range(OUTER)]
        inner = [np.unique(folds[some], return_inverse=True)[1] for some in outer]
        said[name] = [way(parts[some], targets[some], of, parts[~some]) for some, of in zip(outer, inner, strict=True)]

    theirs = seconds(lambda: of_all_folds("scikit-learn", written_out))
    mine = statistics.median(seconds(lambda: of_all_folds("carabid", ours)) for _ in range(1 if short else 3))
    apart = max(float(np.abs(one - other).max()) for one, other in zip(*said.values(), strict=True))
    about = f"{n} × {n_parts} × {width}, {OUTER} of {FOLDS} folds: scikit-learn's pipelines {theirs:.1f} s, ours {mine:.2f} s"
    return [
        Figure("ridge stack", theirs / mine, at_least=7.0, about=about),
        Figure("ridge stack: answers differ by at most", apart, "", at_most=1e-6, about="of the two ways"),
    ]


if __name__ == "__main__":
    show(measure(False))
