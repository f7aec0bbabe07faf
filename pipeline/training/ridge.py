"""Ridge regression in closed form, as a head: the penalty is chosen on validation events."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config import Config, RidgeHead
from pipeline.metrics.regression import selection_metric
from pipeline.models.regressor import Regressor, load_trained_state, trained_state
from pipeline.training.checkpoint import Progress
from pipeline.training.samples import Samples, predict


def fit_ridge(model: Regressor, train: Samples, validation: Samples, config: Config) -> Progress:
    """Solve for every penalty, leave `model` with the best one; a Progress whose `epoch` counts the penalties tried."""
    head = config.model.head
    assert isinstance(head, RidgeHead)
    inputs, targets = embeddings(model, train), model.standardize(train.targets).cpu().numpy()
    progress, truth = Progress(), validation.targets.cpu().numpy()
    for number, alpha in enumerate(head.alphas):
        set_linear(model, *solve(inputs, targets, alpha))
        metric = selection_metric(config.select.metric, truth, predict(model, validation).mean, validation.events)
        progress.keep_best(number, metric, lower=config.select.metric == "mae", state=trained_state(model))
    progress.epoch = len(head.alphas)
    load_trained_state(model, progress.best_state)
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
