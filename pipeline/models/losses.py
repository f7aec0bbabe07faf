"""What a head's numbers mean, and what they cost: a point, or a distribution of an image's targets.

A head gives `n` numbers for each target, in standardised units. `parameters` reads them as those of a distribution (a location
and a scale, quantiles), whose weighted means over images are a group's. `losses` scores them, `moments` tells mean and
variance (`metrics/calibration.py` finds the scale of the variance).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from scipy.special import ndtri
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.loss import CrossEntropy
from pipeline.models.pairs.losses import adjusted

Parameters = Float[Tensor, "images targets numbers"]
PerTarget = Float[Tensor, "images targets"]
MIN_SCALE = 1e-3
"""In standardised units: a scale that vanishes would make the likelihood infinite."""
NEARLY = 1e-6
"""The least that a probability is taken to differ from 1 in a power below 1, whose slope at 0 is infinite."""
START = math.log(math.expm1(1 - MIN_SCALE))
"""Softplus of this and MIN_SCALE make 1: an untrained head says about the spread of the training groups."""


class Loss(ABC):
    """How a head's numbers are read and scored."""

    n: int = 1
    """Numbers for each target."""
    bounded: bool = False
    """Whether what a head says can lie nowhere far from all that it has learnt from, as a probability cannot."""

    @abstractmethod
    def losses(self, parameters: Parameters, targets: PerTarget) -> Float[Tensor, " images"]:
        """Mean loss over standardised targets."""

    def each(self, parameters: Parameters, targets: PerTarget) -> PerTarget | None:
        """The loss of each target, where it is a mean or a sum over these."""
        return None

    @abstractmethod
    def moments(self, parameters: Parameters) -> tuple[PerTarget, PerTarget]:
        """Mean and variance in standardised units; both they and the sd are linear in the parameters."""

    def parameters(self, raw: Float[Tensor, "images outputs"]) -> Parameters:
        """Of a head's numbers, `n` for each target."""
        return raw.unflatten(-1, (-1, self.n))

    def balance(self, targets: PerTarget) -> None:  # noqa: B027  (most have nothing)
        """Set what is of the training images' targets, if anything is."""

    def spec(self) -> dict[str, Any]:
        """How a submission's `network.py` reads a head's numbers."""
        return {"n": self.n, "min_scale": MIN_SCALE, "start": START}


class SquaredError(Loss):
    """A number and no variance (1, for the calibration to scale); squared error."""

    def losses(self, parameters: Parameters, targets: PerTarget) -> Float[Tensor, " images"]:
        return self.each(parameters, targets).mean(-1)

    def each(self, parameters: Parameters, targets: PerTarget) -> PerTarget:
        return (parameters[..., 0] - targets).square()

    def moments(self, parameters: Parameters) -> tuple[PerTarget, PerTarget]:
        return parameters[..., 0], torch.ones_like(parameters[..., 0])

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"kind": "point"}


class SmoothL1(Loss):
    """A number and no variance; its weighted Huber loss (Girshick 2015, arXiv 1504.08083, equation 3)."""

    def __init__(self, beta: float, weights: tuple[float, ...]) -> None:
        self.beta, self.weights = beta, torch.tensor(weights)

    def losses(self, parameters: Parameters, targets: PerTarget) -> Float[Tensor, " images"]:
        each = self.each(parameters, targets)
        return (each * self.weights.to(each)).sum(-1)

    def each(self, parameters: Parameters, targets: PerTarget) -> PerTarget:
        return F.smooth_l1_loss(parameters[..., 0], targets, reduction="none", beta=self.beta)

    def moments(self, parameters: Parameters) -> tuple[PerTarget, PerTarget]:
        return parameters[..., 0], torch.ones_like(parameters[..., 0])

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"kind": "point"}


class LocationScale(Loss):
    """A location and a scale of each target; `widening` is the variance of a distribution whose scale is 1."""

    n = 2
    widening: float = 1.0

    def parameters(self, raw: Float[Tensor, "images outputs"]) -> Parameters:
        """Location and scale, which is at least MIN_SCALE."""
        location, free = super().parameters(raw).unbind(-1)
        return torch.stack((location, F.softplus(free + START) + MIN_SCALE), -1)

    def moments(self, parameters: Parameters) -> tuple[PerTarget, PerTarget]:
        location, scale = parameters.unbind(-1)
        return location, scale.square() * self.widening

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"kind": "location_scale", "widening": self.widening}


class Gaussian(LocationScale):
    """Mean and sd, trained by CRPS (Gneiting and Raftery 2007, equation 21) or by negative log-likelihood."""

    def __init__(self, score: str) -> None:
        self.score = score

    def losses(self, parameters: Parameters, targets: PerTarget) -> Float[Tensor, " images"]:
        return self.each(parameters, targets).mean(-1)

    def each(self, parameters: Parameters, targets: PerTarget) -> PerTarget:
        mean, scale = parameters.unbind(-1)
        z = (targets - mean) / scale
        if self.score == "nll":
            return z.square() / 2 + scale.log() + math.log(2 * math.pi) / 2
        density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
        return scale * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))


class StudentT(LocationScale):
    """Location and scale of a Student-t distribution with `df` degrees of freedom, by negative log-likelihood."""

    def __init__(self, df: float) -> None:
        self.df, self.widening = df, df / (df - 2)

    def losses(self, parameters: Parameters, targets: PerTarget) -> Float[Tensor, " images"]:
        location, scale = parameters.unbind(-1)
        density: Tensor = torch.distributions.StudentT(self.df, location, scale, validate_args=False).log_prob(targets)
        return -density.mean(-1)


class Quantiles(Loss):
    """Quantiles at these levels, by the pinball loss (Koenker and Bassett 1978).

    Their moments are those of the normal distribution whose quantiles are nearest to them (least squares).
    """

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.levels, self.n, self.z = levels, len(levels), torch.from_numpy(ndtri(levels))

    def losses(self, parameters: Parameters, targets: PerTarget) -> Float[Tensor, " images"]:
        over = targets.unsqueeze(-1) - parameters
        levels = torch.tensor(self.levels, device=parameters.device)
        return torch.maximum(levels * over, (levels - 1) * over).mean((-1, -2))

    def moments(self, parameters: Parameters) -> tuple[PerTarget, PerTarget]:
        z = self.z.to(parameters)
        off = z - z.mean()
        scale = (parameters * off).sum(-1) / off.square().sum()
        return parameters.mean(-1) - scale * z.mean(), scale.clamp_min(MIN_SCALE).square()

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"kind": "quantiles", "z": self.z.tolist()}


class Categorical(Loss):
    """Probabilities of classes, and behind them those of auxiliary labels: each group's numbers by a softmax.

    Trained by cross-entropy: classes weighted by `class_weights` [n_classes], and by (1 − p)^focal (Lin et al. 2017, equation
    4), their logits adjusted by `log_prior` [n_classes] (Menon et al. 2021, arXiv 2007.07314, equation 10), which prediction
    leaves out; the auxiliary labels, of which an image may have none (all 0), by `auxiliary`.
    """

    bounded = True

    def __init__(self, loss: CrossEntropy, n_classes: int) -> None:
        self.focal, self.auxiliary, self.n_classes = loss.focal, loss.auxiliary, n_classes
        self.balanced, self.class_weights = loss.balanced, torch.ones(n_classes)
        self.tau, self.log_prior = loss.logit_adjustment, torch.zeros(n_classes)

    def balance(self, targets: PerTarget) -> None:
        self.set_counts(targets[:, : self.n_classes].sum(0).cpu())

    def set_counts(self, counts: Float[Tensor, " classes"]) -> None:
        """From how many training images each class has: weights that give classes equal sums, if that is asked for, and the prior
        that logits are adjusted by; a class of none counts there as one of a single image."""
        shares = counts / counts.sum()
        if self.balanced:
            self.class_weights = torch.where(shares > 0, 1 / (self.n_classes * shares), 1.0)
        self.log_prior = (counts.double().clamp_min(1) / counts.sum()).log().float()

    def parameters(self, raw: Float[Tensor, "images outputs"]) -> Parameters:
        groups = (raw[:, : self.n_classes], raw[:, self.n_classes :])
        return torch.cat([F.softmax(group, -1) for group in groups], -1).unsqueeze(-1)

    def losses(self, parameters: Parameters, targets: PerTarget) -> Float[Tensor, " images"]:
        p = parameters[..., 0].clamp_min(torch.finfo(torch.float32).tiny)
        p, log_p, log_other = p[:, : self.n_classes], p[:, : self.n_classes].log(), p[:, self.n_classes :].log()
        if self.tau:
            log_p = adjusted(log_p, self.log_prior.to(p.device), self.tau).log_softmax(-1)
            p = log_p.exp()
        weights = self.class_weights.to(p.device) * (1 - p).clamp_min(NEARLY) ** self.focal
        main, other = -targets[:, : self.n_classes] * log_p, -targets[:, self.n_classes :] * log_other
        return (weights * main).sum(-1) + self.auxiliary * other.sum(-1)

    def moments(self, parameters: Parameters) -> tuple[PerTarget, PerTarget]:
        p = parameters[..., 0]
        return p, p * (1 - p)

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"kind": "categorical", "n_classes": self.n_classes}
