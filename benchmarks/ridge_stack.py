"""The ridge stack of `configs/biomass/ridge_stack.yaml`, of the challenge's size: all of its five folds, and scikit-learn's own
pipelines written out, in one run.

    python benchmarks/ridge_stack.py [images] [parts] [width]

357 images × 27 parts × 1,024 numbers and five targets by default, random; prints seconds of both, their ratio, and how far what
they say of the images left out is apart.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler

from pipeline.models.ridge_stack import RidgeStack, in_spaces, take_over
from pipeline.training.ridge_stack import fit

Floats = NDArray[np.float64]
FOLDS, N_TARGETS, ALPHA, STACK = 5, 5, 5.0, 1.0


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


def main(n: int = 357, n_parts: int = 27, width: int = 1024) -> None:
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(n, n_parts, width)).astype("float32").astype("float64")
    targets = np.exp(parts[:, 0, :N_TARGETS] + rng.normal(size=(n, N_TARGETS)) / 2)
    folds = rng.permutation(np.arange(n) % FOLDS)
    seconds, said = {}, {}
    for name, way in (("carabid", ours), ("scikit-learn", written_out)):
        started = time.perf_counter()
        outer = [folds != fold for fold in range(FOLDS)]
        inner = [np.unique(folds[some], return_inverse=True)[1] for some in outer]
        said[name] = [way(parts[some], targets[some], of, parts[~some]) for some, of in zip(outer, inner, strict=True)]
        seconds[name] = time.perf_counter() - started
    apart = max(float(np.abs(one - other).max()) for one, other in zip(*said.values(), strict=True))
    print(", ".join(f"{name} {each:.1f} s" for name, each in seconds.items()))
    print(f"ratio {seconds['scikit-learn'] / seconds['carabid']:.1f}; what they say differs by at most {apart:.1e}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
