"""Ridge regression in closed form, as a head: the penalty is chosen on validation events."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config import Config, RidgeHead
from pipeline.metrics.regression import selection_metric
from pipeline.models.regressor import Regressor
from pipeline.training.checkpoint import Progress
from pipeline.training.samples import Samples, predict


def fit_ridge(model: Regressor, train: Samples, validation: Samples, config: Config) -> Progress:
    """Solve for every penalty, leave `model` with the best one; a Progress whose `epoch` counts the penalties tried."""
    head = config.model.head
    assert isinstance(head, RidgeHead)
    inputs, targets = embeddings(model, train), model.standardize(train.targets).cpu().numpy()
    progress, sign = Progress(), -1 if config.select.metric == "mae" else 1
    solutions = [solve(inputs, targets, alpha) for alpha in head.alphas]
    for number, solution in enumerate(solutions):
        set_linear(model, *solution)
        truth, predictions = validation.targets.cpu().numpy(), predict(model, validation)
        metric = selection_metric(config.select.metric, truth, predictions, validation.events)
        best = progress.best_metric
        if progress.best_epoch < 0 or (metric is not None and (best is None or sign * metric > sign * best)):
            progress.best_epoch, progress.best_metric = number, metric
    progress.epoch = len(solutions)
    set_linear(model, *solutions[progress.best_epoch])
    return progress


def solve(
    inputs: NDArray[np.float32], targets: NDArray[np.float32], alpha: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights [n_targets, E] and bias [n_targets] for unscaled inputs [N, E]; the penalty acts on standardised ones."""
    from sklearn.linear_model import Ridge  # scikit-learn takes a second to import
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(inputs.astype("float64"))
    ridge = Ridge(alpha=alpha).fit(scaler.transform(inputs.astype("float64")), targets)
    weights = np.atleast_2d(ridge.coef_) / scaler.scale_
    return weights, np.atleast_1d(ridge.intercept_) - weights @ scaler.mean_


def embeddings(model: Regressor, samples: Samples) -> NDArray[np.float32]:
    """What the head sees [N, E]."""
    features = samples.bank.gather(torch.arange(len(samples))).float()
    out: NDArray[np.float32] = (
        (nn.functional.normalize(features, dim=-1) if model.normalize else features).cpu().numpy()
    )
    return out


def set_linear(model: Regressor, weights: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
    """Put a solution into the model's only linear layer."""
    (linear,) = [module for module in model.head.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weights))
        linear.bias.copy_(torch.from_numpy(bias))
