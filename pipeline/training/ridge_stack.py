"""Fitting stacked ridge regressions with scikit-learn's Ridge: one on each part of the embedding, scaled by median and quartiles,
and one on what these say of images left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from sklearn.linear_model import Ridge

from pipeline.config.head import RidgeStackHead
from pipeline.config.split import FoldSplit
from pipeline.data.splits import deal_units, together
from pipeline.models.novelty import MARGIN
from pipeline.models.ridge_stack import SPACES, RidgeStack, in_spaces, take_over
from pipeline.training.checkpoint import Progress
from pipeline.training.run import Fitted, Run
from pipeline.training.samples import Samples, predict

if TYPE_CHECKING:
    import pandas as pd

Part = Float64[np.ndarray, "images width"]
Outputs = Float64[np.ndarray, "images outputs"]


class OfPart(NamedTuple):
    """What was fitted to a part: (x − centre) / scale · weights + bias."""

    centre: Float64[np.ndarray, " width"]
    scale: Float64[np.ndarray, " width"]
    weights: Float64[np.ndarray, "width outputs"]
    bias: Float64[np.ndarray, " outputs"]

    def __call__(self, part: Part) -> Outputs:
        return np.asarray((part - self.centre) / self.scale @ self.weights + self.bias)


def fit_ridge_stack(model: RidgeStack, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Solve for all parts, then for the stack. There are as many groups as folds at least (`training/demands.py`)."""
    head = run.config.model.head
    assert isinstance(head, RidgeStackHead) and run.table is not None
    truth = run.table[list(run.config.data.targets)].to_numpy("float64")
    folds = _folds(run.table, head.folds, run)
    take_over(model, fit(_parts(model, train), in_spaces(truth), folds, head.alpha, head.stack_alpha))
    metric = run.choice.score(validation, predict(model, validation))
    return Fitted(Progress(epoch=1, best_epoch=0, best_metric=metric))


def fit(
    parts: Sequence[Part], outputs: Outputs, folds: Int64[np.ndarray, " images"], alpha: float, stack_alpha: float
) -> dict[str, Any]:
    """All arrays of a `RidgeStack`: each part fitted to all images, the stack to what parts say of a fold when fitted to the
    others (Wolpert 1992, "Stacked generalization")."""
    of_parts, left_out = [], np.zeros((len(outputs), len(parts), outputs.shape[1]))
    for place, part in enumerate(parts):
        for fold in np.unique(folds):
            inside = folds != fold
            left_out[~inside, place] = fit_part(part[inside], outputs[inside], alpha)(part[~inside])
        of_parts.append(fit_part(part, outputs, alpha))
    targets = outputs[:, : outputs.shape[1] // len(SPACES)]
    margin = MARGIN * np.ptp(targets, axis=0)
    stacks = [Ridge(stack_alpha).fit(left_out[:, :, place], values) for place, values in enumerate(outputs.T)]
    return {
        "centre": [each.centre for each in of_parts],
        "scale": [each.scale for each in of_parts],
        "part_weights": [each.weights for each in of_parts],
        "part_bias": [each.bias for each in of_parts],
        "stack_weights": np.stack([stack.coef_ for stack in stacks], axis=1),
        "stack_bias": [stack.intercept_ for stack in stacks],
        "low": targets.min(axis=0) - margin,
        "high": targets.max(axis=0) + margin,
    }


def fit_part(part: Part, outputs: Outputs, alpha: float) -> OfPart:
    """Median and interquartile range of each feature, and ridge regression on what they make of it. (As scikit-learn's
    RobustScaler, which takes one feature after another, and with that most of the time.)"""
    low, centre, high = np.quantile(part, (0.25, 0.5, 0.75), axis=0)
    scale = high - low
    scale[scale < 10 * np.finfo(scale.dtype).eps] = 1  # a feature that does not vary
    ridge = Ridge(alpha).fit((part - centre) / scale, outputs)
    return OfPart(centre, scale, ridge.coef_.T, ridge.intercept_)


def _parts(model: RidgeStack, train: Samples) -> list[Part]:
    """Each part of all training images, of the plain pose."""
    features = train.bank.gather(torch.arange(len(train))).float()
    plain = features if model.views.are_plain else features[:, : model.views.n_crops]
    return list(model.parts_of(plain).cpu().numpy().transpose(1, 0, 2))


def _folds(table: pd.DataFrame, n: int, run: Run) -> Int64[np.ndarray, " images"]:
    """The fold of each training image; what the split of the data keeps together is in one."""
    units = together(table, run.config.data.split)
    dealt = deal_units(Counter(units), FoldSplit(kind="folds", n=n, seed=run.config.seed))
    return np.array([dealt[unit] for unit in units], dtype=np.int64)
