"""Ridge regression in closed form, as a head: the penalty is chosen on validation groups."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import nn

from pipeline.config.head import RidgeHead
from pipeline.models.learner import Learner, load_trained_state, trained_state
from pipeline.training.checkpoint import Progress
from pipeline.training.run import Fitted, Run, set_novelty, set_scales
from pipeline.training.samples import Samples, embeddings, predict

Weights = Float64[np.ndarray, "targets width"]
Bias = Float64[np.ndarray, " targets"]
TINY = 1e-12
"""Directions with a smaller share of the largest eigenvalue are rounding errors: without a penalty they are left out. So is a
feature whose sd is a smaller share of its mean."""
KEPT = 4
"""Decompositions that are kept, as many as folds in turn may have: 5 MB each at a width of 768."""
Decomposition = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Mean and scale of inputs [E], eigenvalues [E] and eigenvectors [E, E] of the products of what is standardised by these."""
_known: dict[tuple[str, tuple[int, ...], bytes], Decomposition] = {}


def fit_ridge(model: Learner, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Solve for every penalty, leave `model` with the best one; the Progress' `epoch` counts the penalties tried."""
    head, choice = run.config.model.head, run.choice
    assert isinstance(head, RidgeHead)
    set_scales(model, train, run)
    inputs, targets = embeddings(model, train), model.standardize(train.targets.dense()[:, : train.n_targets]).cpu().numpy()
    (linear,) = [module for module in model.head.modules() if isinstance(module, nn.Linear)]
    progress = Progress()
    for number, (weights, bias) in enumerate(solve(inputs, targets, head.alphas)):
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weights))
            linear.bias.copy_(torch.from_numpy(bias))
        metric = choice.score(validation, predict(model, validation))
        progress.keep_best(number, metric, lower=choice.lower_is_better, state=trained_state(model))
    progress.epoch = len(head.alphas)
    load_trained_state(model, progress.best_state)
    set_novelty(model, train, validation)
    return Fitted(progress)


def solve(
    inputs: Float32[np.ndarray, "images width"], targets: Float32[np.ndarray, "images targets"], alphas: Sequence[float]
) -> Iterator[tuple[Weights, Bias]]:
    """Weights and bias for unscaled inputs, for each penalty in turn.

    A penalty acts on standardised inputs. All of them share one eigendecomposition of the inputs' covariance, after which each
    costs no more than a product of matrices (Hastie, Tibshirani and Friedman 2009, equation 3.47); so do trials of one process
    that have the same inputs. In float64.
    """
    y = targets.astype("float64")
    centre = y.mean(0)
    x, (mean, scale, values, vectors) = _decomposed(inputs)
    projected = vectors.T @ (x.T @ (y - centre) / scale[:, None])
    for alpha in alphas:
        shrunk = values + alpha
        inverse = np.divide(1, shrunk, out=np.zeros_like(shrunk), where=shrunk > TINY * shrunk.max())
        weights = (vectors @ (inverse[:, None] * projected)).T / scale
        yield weights, centre - weights @ mean


def _decomposed(inputs: Float32[np.ndarray, "images width"]) -> tuple[Float64[np.ndarray, "images width"], Decomposition]:
    """Inputs without their mean, and the decomposition of what has these bytes, computed once; those of the last few are kept.

    Products are scaled and not inputs: they are as large as the width, whatever the number of images.
    """
    key = inputs.dtype.str, inputs.shape, hashlib.sha256(np.ascontiguousarray(inputs).data).digest()
    x = inputs.astype("float64")
    if key in _known:
        x -= _known[key][0]
        return x, _known[key]
    mean = x.mean(0)
    x -= mean
    products = x.T @ x
    scale = np.sqrt(products.diagonal() / len(x))
    scale[scale <= TINY * np.abs(mean)] = 1  # a feature that does not vary, but for rounding, tells nothing
    values, vectors = np.linalg.eigh(products / np.outer(scale, scale))
    _known[key] = mean, scale, values.clip(0), vectors
    if len(_known) > KEPT:
        del _known[next(iter(_known))]
    return x, _known[key]
