"""Few-shot heads that need no validation, as class prototypes: SimpleShot, LP++, text-initialised logistic regression and CLAP,
from the embeddings of a few images of each class and of the classes' texts. Pure functions of arrays, seconds on a CPU.

Embeddings are divided by their length first. The softmax is over the classes that have shots; one without keeps its text, as in
zero-shot. Everything is deterministic and starts from the texts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray

Array = NDArray[np.float64]
Images = Float[np.ndarray, "shots width"]
Labels = Int[np.ndarray, " shots"]
Texts = Float[np.ndarray, "classes width"]
Objective = Callable[[Array], tuple[float, Array]]
"""Weights [K, E] → what is minimised, and its gradient [K, E]."""
BLEND = 250.0
"""What LP++ multiplies the mean cosine of shots with their own text by, to start the texts' weights from."""
VISUAL_STEPS, ROUNDS = 10, 30
"""LP++'s steps of the visual prototypes for each of the texts' weights, and how often both are repeated: 300 as published."""
STEPS = 300
"""Most steps of L-BFGS."""


# ---------------------------------------------------------------- what is fitted
@dataclass(frozen=True)
class Prototypes:
    """A linear classifier of embeddings of length 1: logits = weights · (image − centre)/|image − centre| + bias."""

    weights: Float64[np.ndarray, "classes width"]
    bias: Float64[np.ndarray, " classes"]
    centre: Float64[np.ndarray, " width"]

    def logits(self, images: Float[np.ndarray, "images width"]) -> Float64[np.ndarray, "images classes"]:
        return np.asarray(self._centred(images) @ self.weights.T + self.bias)

    @property
    def scale(self) -> float:
        """What cosines of `embedded` images with `as_embeddings` are multiplied by: the result is the logits."""
        return float(np.sqrt(2 * (np.square(self.weights).sum(axis=1) + np.square(self.bias)).max()))

    def embedded(self, images: Float[np.ndarray, "images width"]) -> Float64[np.ndarray, "images wider"]:
        """Images as they are compared with `as_embeddings` by cosine, [N, E + 2]; among themselves they rank as before."""
        n = len(images)
        return np.hstack([self._centred(images), np.ones((n, 1)), np.zeros((n, 1))]) / np.sqrt(2)

    def as_embeddings(self) -> Float64[np.ndarray, "classes wider"]:
        """Classes of length 1, [C, E + 2], whose cosines with `embedded` images are the logits divided by `scale`: a place for
        the bias, and one that fills each up to the longest (Bachrach et al. 2014, section 3.2)."""
        rows = np.hstack([self.weights, self.bias[:, None]]) * (np.sqrt(2) / self.scale if self.scale > 0 else 1)
        rest = np.sqrt((1 - np.square(rows).sum(axis=1, keepdims=True)).clip(0))
        return np.hstack([rows, rest])

    def _centred(self, images: Float[np.ndarray, "images width"]) -> Float64[np.ndarray, "images width"]:
        return unit(unit(images) - self.centre)


def unit(rows: Float[np.ndarray, "n width"]) -> Float64[np.ndarray, "n width"]:
    """Each row divided by its length, in double precision; a row of zeros stays one."""
    wide = rows.astype("float64")
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths > 0, lengths, 1))


def simple_shot(images: Images, labels: Labels, texts: Texts) -> Prototypes:
    """SimpleShot, CL2N (Wang et al. 2019, arXiv 1911.04623): the class with the nearest mean, of images from which the mean of
    all shots is taken and that are then divided by their length.

    A class without shots has its text instead, less the mean of the texts of those that have.
    """
    x, means, present = unit(images), unit(texts), np.unique(labels)
    centre = x.mean(axis=0)
    means = unit(means - means[present].mean(axis=0))
    means[present] = _class_sums(unit(x - centre), labels, present) / np.bincount(labels)[present, None]
    return Prototypes(means, -np.square(means).sum(axis=1) / 2, centre)  # the nearest: |x − m|² = |x|² − 2 (x·m − |m|²/2)


def lp_plus_plus(images: Images, labels: Labels, texts: Texts) -> Prototypes:
    """LP++ (Huang et al. 2024, arXiv 2404.02285): logits f·(w + α t) of each class, w and α learnt in turn by steps as long as a
    bound on the curvature allows (block coordinate majorise–minimise), so that the loss never rises and nothing is tuned.

    A class without shots has no w, and the mean α.
    """
    x, towards, present = unit(images), unit(texts), np.unique(labels)
    y = np.searchsorted(present, labels)
    own = towards[present]
    cosines, n = x @ own.T, len(x)
    weights, alpha = _lp_start(x, y, cosines)
    # The softmax's Hessian is at most 1/2 (Böhning 1992), so these are Lipschitz constants of the gradients.
    bounds = float(np.linalg.norm(x, 2) ** 2) / (2 * n), float(np.square(cosines).sum(axis=0).max()) / (2 * n)
    for _ in range(ROUNDS):
        for _ in range(VISUAL_STEPS):
            _, slope = _cross_entropy(x @ weights.T + alpha * cosines, y)
            weights = weights - slope.T @ x / bounds[0]
        _, slope = _cross_entropy(x @ weights.T + alpha * cosines, y)
        alpha = alpha - (slope * cosines).sum(axis=0) / max(bounds[1], np.finfo("float64").tiny)
    fitted = alpha.mean() * towards
    fitted[present] = weights + alpha[:, None] * own
    return _uncentred(fitted)


def _lp_start(x: Array, y: Labels, cosines: Array) -> tuple[Array, Array]:
    """LP++'s first visual prototypes, the sum of each class's shots, and weights of the texts, the same for all: minima of parts
    of the loss."""
    of = np.arange(cosines.shape[1])
    own = np.bincount(y, cosines[np.arange(len(y)), y]) / np.bincount(y)
    return _class_sums(x, y, of), np.full(len(of), BLEND * own.mean())


def text_logistic(
    images: Images, labels: Labels, texts: Texts, scale: float, penalty: float = 1.0, steps: int = STEPS
) -> Prototypes:
    """Logistic regression that starts at the texts and is held by them: the least of the cross-entropy's sum over shots and of
    penalty/2 · |W − scale · T|² (Li et al. 2018, arXiv 1802.01483, of weights that stay near pretrained ones).

    `scale` is what the model multiplies cosines by. With 0 steps, or an endless penalty, it is zero-shot; with texts of zeros it
    is scikit-learn's LogisticRegression with C = 1/penalty and no intercept.
    """
    x, start, present = unit(images), scale * unit(texts), np.unique(labels)
    y, anchor = np.searchsorted(present, labels), start[present]

    def objective(weights: Array) -> tuple[float, Array]:
        loss, slope = _cross_entropy(x @ weights.T, y)
        away = weights - anchor
        value = loss + penalty / (2 * len(x)) * float(np.square(away).sum())
        return value, slope.T @ x + penalty / len(x) * away

    start[present] = _minimise(objective, anchor, steps)
    return _uncentred(start)


def clap(images: Images, labels: Labels, texts: Texts, scale: float, steps: int = STEPS) -> Prototypes:
    """CLAP (Silva-Rodriguez et al. 2024, arXiv 2312.12730): prototypes of length 1, from the texts on, by cross-entropy of
    `scale` times the cosines, and a penalty λ|w − t|² of each class: the better its text alone tells its shots, the nearer it
    stays.

    λ is the mean probability that zero-shot gives to the class for its own shots: the Lagrange multipliers as the paper starts
    them, which its code keeps. L-BFGS instead of its 300 epochs of SGD: no rate to choose, and the same from run to run.
    """
    x, start, present = unit(images), unit(texts), np.unique(labels)
    y, anchor = np.searchsorted(present, labels), start[present]
    multipliers = clap_multipliers(scale * x @ anchor.T, y)

    def objective(weights: Array) -> tuple[float, Array]:
        lengths = np.linalg.norm(weights, axis=1, keepdims=True)
        towards = weights / lengths
        loss, slope = _cross_entropy(scale * x @ towards.T, y)
        gradient = scale * slope.T @ x
        gradient = (gradient - towards * (gradient * towards).sum(axis=1, keepdims=True)) / lengths
        away = weights - anchor
        value = loss + float((multipliers * np.square(away).sum(axis=1)).mean())
        return value, gradient + 2 / len(present) * multipliers[:, None] * away

    start[present] = unit(_minimise(objective, anchor, steps))
    return _uncentred(scale * start)


def clap_multipliers(
    logits: Float64[np.ndarray, "shots classes"], labels: Int[np.ndarray, " shots"]
) -> Float64[np.ndarray, " classes"]:
    """Of each class the mean probability that its own shots are of it."""
    p = _softmax(logits)[np.arange(len(labels)), labels]
    return np.asarray(np.bincount(labels, p) / np.bincount(labels))


def zero_shot(texts: Texts, scale: float) -> Prototypes:
    """The texts themselves."""
    return _uncentred(scale * unit(texts))


# ---------------------------------------------------------------- parts
def _uncentred(weights: Array) -> Prototypes:
    return Prototypes(weights, np.zeros(len(weights)), np.zeros(weights.shape[1]))


def _class_sums(x: Array, labels: Labels, present: Int[np.ndarray, " present"]) -> Array:
    """The sum of the rows of each class that is there."""
    return np.asarray((labels[:, None] == present).T.astype("float64") @ x)


def _softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _cross_entropy(logits: Array, labels: Labels) -> tuple[float, Array]:
    """The mean over rows, and its slope by the logits [N, K]."""
    p, rows = _softmax(logits), np.arange(len(labels))
    highest = logits.max(axis=1)
    total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
    loss = float((total - logits[rows, labels]).mean())
    p[rows, labels] -= 1
    return loss, p / len(labels)


def _minimise(objective: Objective, start: Array, steps: int) -> Array:
    """By L-BFGS, in double precision."""
    if not steps:
        return start
    from scipy.optimize import minimize

    def flat(weights: Array) -> tuple[float, Array]:
        value, gradient = objective(weights.reshape(start.shape))
        return value, gradient.ravel()

    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-14, "gtol": 1e-9}
    found = minimize(flat, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x.reshape(start.shape))
