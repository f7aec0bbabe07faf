"""Classifiers as arrays, scored by numpy alone: what a submission holds, where neither scikit-learn nor skops may be loaded.

This file stands alone and is copied as it is. The recipes of `models/estimators.py` make the arrays; of every kind `mean` and
`scale` [E] standardise the features (0 and 1 where it does not). With two classes the first is the positive one, and a
decision [B, 1] is the log-odds of the second, as scikit-learn has it; with C > 2 a decision is [B, C].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
ONE_AGAINST_THE_REST = ("svc", "sgd")
"""Kinds with a probability of each class for itself, which are then made to sum to 1."""
FEWEST = 1e-6
"""Votes of k-NN are counts: a share is taken to lie no nearer to 0 or 1 than this where its logarithm is asked for."""
LAMBDAS = np.array([0.41, 0.4, 0.37, 0.44, 0.39])
COEFS = np.array([-1854.8214151, 3516.89893646, 221.29346712, 128.12323805, -2010.49422654])
"""The logistic function as a sum of error functions (Williams and Barber 1998, appendix A), with scikit-learn's numbers."""
OUTSIDE = 0.01
"""What `spread` leaves of 0 … 1 on either side for log odds beyond those that it knows."""
ERF = np.vectorize(math.erf, otypes=["float64"])
NODES, WEIGHTS = np.polynomial.hermite.hermgauss(64)


def probabilities(kind: str, arrays: Arrays, x: Array) -> Array:
    """Of features [B, E] the probabilities of the classes [B, C], as scikit-learn's predict_proba gives them; 0 for those that
    are not `present`, where `arrays` tell."""
    said = _of_present(kind, arrays, x)
    if "present" not in arrays:
        return said
    whole = np.zeros((len(said), int(arrays["n_in_all"])))
    whole[:, arrays["present"]] = said
    return whole


def _of_present(kind: str, arrays: Arrays, x: Array) -> Array:
    z = _standardise(arrays, x)
    if kind in WITHOUT_DECISION:
        return WITHOUT_DECISION[kind][0](arrays, z)
    decision = DECISIONS.get(kind, _linear)(arrays, z)
    if decision.shape[1] == 1 or kind in ONE_AGAINST_THE_REST:
        return _together(np.exp(_log_sigmoid(decision)))
    raised = np.exp(decision - decision.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def log_odds(kind: str, arrays: Arrays, x: Array) -> Array:
    """Of features [B, E] log p / (1 − p) [B] of the first of two classes, which does not saturate where p does.

    A Gaussian process' is of the logistic function's mean by quadrature, where scikit-learn's p is a sum of error functions
    that is rounding noise near 0 and 1; the two probabilities differ by less than 0.001. k-NN's is of p not nearer than
    FEWEST to 0 and 1, and has p's ties. Raises ValueError for more than two classes.
    """
    z = _standardise(arrays, x)
    of_second = WITHOUT_DECISION[kind][1] if kind in WITHOUT_DECISION else DECISIONS.get(kind, _linear)
    odds = of_second(arrays, z)
    if odds.shape[1] != 1:
        raise ValueError("log-odds are of two classes, and here are more")
    return -odds[:, 0]


def spread(log_odds: float, knots: Sequence[float]) -> float:
    """Where log odds stand among ascending quantiles of others: evenly between them, ever closer to 0 and 1 beyond."""
    low, high = knots[0], knots[-1]
    scale = max(high - low, 1.0)
    if log_odds < low:
        return OUTSIDE * math.exp((log_odds - low) / scale)
    if log_odds > high:
        return 1 - OUTSIDE * math.exp((high - log_odds) / scale)
    at = np.linspace(OUTSIDE, 1 - OUTSIDE, len(knots)) if len(knots) > 1 else [0.5]
    right = int(np.searchsorted(knots, log_odds))  # interpolated, a value just below a knot may come out an ulp above the knot's
    return min(float(np.interp(log_odds, knots, at)), float(at[right]))


def _standardise(arrays: Arrays, x: Array) -> Array:
    return (np.asarray(x, "float64") - arrays["mean"]) / arrays["scale"]


def _together(p: Array) -> Array:
    """Probabilities of each class for itself [B, C] made to sum to 1; of the second class alone [B, 1]: of both [B, 2]."""
    if p.shape[1] == 1:
        return np.concatenate([1 - p, p], 1)
    total = p.sum(1, keepdims=True)
    return np.divide(p, total, out=np.full_like(p, 1 / p.shape[1]), where=total != 0)


def _log_sigmoid(z: Array) -> Array:
    """Without overflow, at either end."""
    return -np.logaddexp(0, -z)


# ---------------------------------------------------------------- decisions
def _linear(arrays: Arrays, z: Array) -> Array:
    """Of standardised features [B, E] the log-odds [B, 1] of the second class, or softmax's terms of each [B, C]."""
    return z @ arrays["weights"] + arrays["bias"]


def _line(arrays: Arrays, score: Array) -> Array:
    """Platt's: a score's log-odds, of each column."""
    return score * arrays["slope"] + arrays["intercept"]


def _support(arrays: Arrays, z: Array) -> Array:
    """Decisions of support vectors: of each pair of classes a vote, as scikit-learn counts them."""
    inner = z @ arrays["support"].T
    if "gamma" in arrays:
        inner = np.exp(-arrays["gamma"] * _squared_distances(z, arrays["support"]))
    pairs = inner @ arrays["coefficients"] + arrays["bias"]
    return pairs if pairs.shape[1] == 1 else _one_against_one(pairs)


def _one_against_one(pairs: Array) -> Array:
    """Decisions of all pairs of classes (positive: the first one's) [B, C (C − 1) / 2] → of each class [B, C]."""
    n = round((1 + math.sqrt(1 + 8 * pairs.shape[1])) / 2)
    votes, sums = np.zeros((2, len(pairs), n))
    for column, (i, j) in enumerate(combinations(range(n), 2)):
        votes[:, i] += pairs[:, column] >= 0
        votes[:, j] += pairs[:, column] < 0
        sums[:, i] += pairs[:, column]
        sums[:, j] -= pairs[:, column]
    return votes + sums / (3 * (np.abs(sums) + 1))


def _trees(arrays: Arrays, z: Array) -> Array:
    """Sums over the rounds' trees [rounds, K, nodes] of the leaves that the rows fall into; a leaf's children are itself."""
    feature, threshold, left, right, value = (
        arrays[name].reshape(-1, arrays[name].shape[-1]) for name in ("feature", "threshold", "left", "right", "value")
    )
    trees, rows = np.arange(len(feature)), np.arange(len(z))[:, None]
    node = np.zeros((len(z), len(feature)), "int64")
    while True:
        below = z[rows, feature[trees, node]] <= threshold[trees, node]
        following = np.where(below, left[trees, node], right[trees, node])
        if (following == node).all():
            break
        node = following
    leaves = value[trees, node].reshape(len(z), *arrays["value"].shape[:2])
    return leaves.sum(1) + arrays["baseline"]


# ---------------------------------------------------------------- distances
def _squared_distances(z: Array, points: Array) -> Array:
    """[B, E] and [N, E] → [B, N], by differences: a kernel may be narrower than products would round."""
    return np.stack([np.square(points - row).sum(1) for row in z])


def _nearest(arrays: Arrays, z: Array) -> tuple[Array, NDArray[np.int64]]:
    """Distances to the k nearest points, and which they are, each [B, k]; found by products, which are fast, then exact."""
    points, k = arrays["points"], int(arrays["k"])
    squares = np.square(z).sum(1)[:, None] + np.square(points).sum(1) - 2 * z @ points.T
    which = np.argsort(squares, axis=1, kind="stable")[:, :k]
    distances = np.stack([np.sqrt(np.square(points[rows] - row).sum(1)) for row, rows in zip(z, which, strict=True)])
    return distances, which


def _votes(arrays: Arrays, z: Array) -> Array:
    """Shares of the classes [B, C] among the k nearest points."""
    distances, which = _nearest(arrays, z)
    weights = np.ones_like(distances)
    if arrays["by_distance"]:
        same = distances == 0
        weights = np.where(same.any(1, keepdims=True), same, 1 / np.where(same, 1, distances))
    of_class = arrays["labels"][which][:, :, None] == np.arange(int(arrays["n_classes"]))
    votes = (weights[:, :, None] * of_class).sum(1)
    return votes / votes.sum(1, keepdims=True)


def _from_centres(arrays: Arrays, z: Array) -> Array:
    """Distance [B] to the nearest centre (of whitened features), in the covariance's units."""
    whitened = z @ arrays["whitening"]
    squares = [np.square(whitened - centre).sum(1) for centre in arrays["centres"]]
    return np.sqrt(np.min(squares, axis=0))


# ---------------------------------------------------------------- Gaussian process
def _latent(arrays: Arrays, z: Array) -> tuple[Array, Array]:
    """Mean and variance [B, K] of the latent functions (Rasmussen and Williams 2006, algorithm 3.2)."""
    squares = _squared_distances(z, arrays["points"])
    means, variances = [], []
    for amplitude, length, residual, root in zip(
        arrays["amplitude"], arrays["length"], arrays["residual"], arrays["root"], strict=True
    ):
        kernel = amplitude * np.exp(-squares / (2 * length**2))
        means.append(kernel @ residual)
        variances.append(amplitude - np.square(kernel @ root.T).sum(1))
    return np.stack(means, 1), np.stack(variances, 1).clip(np.finfo("float64").tiny)


def _expected_sigmoid(mean: Array, variance: Array) -> Array:
    """∫ σ(f) N(f | mean, variance) df, as scikit-learn approximates it."""
    total = np.full_like(mean, COEFS.sum())
    for scale, coefficient in zip(LAMBDAS, COEFS, strict=True):
        total += coefficient * ERF(scale * mean / np.sqrt(1 + 2 * scale**2 * variance))
    return total / 2


def _expected_logit(mean: Array, variance: Array) -> Array:
    """log p / (1 − p) of the same integral p, by Gauss–Hermite quadrature of logarithms."""
    f = mean[..., None] + np.sqrt(2 * variance[..., None]) * NODES
    return _log_mean(_log_sigmoid(f)) - _log_mean(_log_sigmoid(-f))


def _log_mean(logs: Array) -> Array:
    """Logarithm of the weighted mean over nodes of what these are logarithms of."""
    highest = logs.max(-1, keepdims=True)
    return np.log((np.exp(logs - highest) * WEIGHTS).sum(-1)) + highest[..., 0]


# ---------------------------------------------------------------- kinds
def _vote_odds(arrays: Arrays, z: Array) -> Array:
    """Log-odds of the second of two classes [B, 1], of votes; of more classes as many columns."""
    p = _votes(arrays, z).clip(FEWEST, 1 - FEWEST)
    odds: Array = np.log(p[:, ::-1]) - np.log(p)
    return odds[:, :1] if p.shape[1] == 2 else odds


Scored = Callable[[Arrays, Array], Array]
"""Of standardised features [B, E]."""
DECISIONS: Mapping[str, Scored] = {
    "svc": lambda arrays, z: _line(arrays, _support(arrays, z)),
    "sgd": lambda arrays, z: _line(arrays, _linear(arrays, z)),
    "hist_gradient_boosting": _trees,
    "mahalanobis": lambda arrays, z: -_line(arrays, _from_centres(arrays, z)[:, None]),
    "knn_distance": lambda arrays, z: -_line(arrays, _nearest(arrays, z)[0].mean(1)[:, None]),
}
"""By kind: log-odds of the second class [B, 1], or of each [B, C]. Any other kind is linear."""
WITHOUT_DECISION: Mapping[str, tuple[Scored, Scored]] = {
    "knn": (_votes, _vote_odds),
    "gaussian_process": (
        lambda arrays, z: _together(_expected_sigmoid(*_latent(arrays, z))),
        lambda arrays, z: _expected_logit(*_latent(arrays, z)),
    ),
}
"""By kind: probabilities of the classes [B, C], and log-odds as above."""
