"""What a head's numbers mean: a point, or a distribution of a specimen's targets, with the loss that trains it.

A head gives `n` numbers for each target, in standardised units. `loss` scores them, `moments` tells the mean and the variance
that an event's forecast starts from (`metrics/calibration.py` finds the scale of the variance).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from scipy.special import ndtri
from torch import Tensor
from torch.nn import functional as F

from pipeline import config as cfg

MIN_SCALE = 1e-3
"""In standardised units: a scale that vanishes would make the likelihood infinite."""
START = math.log(math.expm1(1 - MIN_SCALE))
"""Softplus of this and MIN_SCALE make 1: an untrained head says about the spread of the training events."""


class Output(ABC):
    """How a head's numbers [B, n_targets · n] are read."""

    n: int = 1
    """Numbers for each target."""

    @abstractmethod
    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over specimens and targets of `raw` [B, n_targets · n] for standardised targets [B, n_targets]."""

    @abstractmethod
    def moments(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance [B, n_targets] in standardised units."""

    def parts(self, raw: Tensor) -> Tensor:
        """[B, n_targets · n] → [B, n_targets, n]."""
        out: Tensor = raw.unflatten(-1, (-1, self.n))
        return out


class Point(Output):
    """A number and no variance (1, for the calibration to scale); squared error."""

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(raw, targets)

    def moments(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        return raw, torch.ones_like(raw)


class LocationScale(Output):
    """A location and a scale of each target; `widening` is the variance of a distribution whose scale is 1."""

    n = 2
    widening: float = 1.0

    def moments(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        location, scale = self.location_and_scale(raw)
        return location, scale.square() * self.widening

    def location_and_scale(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """[B, n_targets · 2] → both [B, n_targets], the scale at least MIN_SCALE."""
        location, free = self.parts(raw).unbind(-1)
        return location, F.softplus(free + START) + MIN_SCALE


class Gaussian(LocationScale):
    """Mean and sd, trained by CRPS (Gneiting and Raftery 2007, equation 21) or by negative log-likelihood."""

    def __init__(self, score: str) -> None:
        self.score = score

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        mean, scale = self.location_and_scale(raw)
        z = (targets - mean) / scale
        if self.score == "nll":
            return (z.square() / 2 + scale.log() + math.log(2 * math.pi) / 2).mean()
        density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
        return (scale * (z * torch.erf(z / math.sqrt(2)) + 2 * density - 1 / math.sqrt(math.pi))).mean()


class StudentT(LocationScale):
    """Location and scale of a Student-t distribution with `df` degrees of freedom, by negative log-likelihood."""

    def __init__(self, df: float) -> None:
        self.df, self.widening = df, df / (df - 2)

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        location, scale = self.location_and_scale(raw)
        density: Tensor = torch.distributions.StudentT(self.df, location, scale, validate_args=False).log_prob(targets)
        return -density.mean()


class Quantiles(Output):
    """Quantiles at these levels, by the pinball loss (Koenker and Bassett 1978).

    Their moments are those of the normal distribution whose quantiles are nearest to them (least squares).
    """

    def __init__(self, levels: tuple[float, ...]) -> None:
        self.levels, self.n = levels, len(levels)

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        over = targets.unsqueeze(-1) - self.parts(raw)
        levels = torch.tensor(self.levels, device=raw.device)
        return torch.maximum(levels * over, (levels - 1) * over).mean()

    def moments(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        quantiles = self.parts(raw)
        z = torch.from_numpy(ndtri(self.levels)).to(quantiles)
        off = z - z.mean()
        scale = (quantiles * off).sum(-1) / off.square().sum()
        return quantiles.mean(-1) - scale * z.mean(), scale.clamp_min(MIN_SCALE).square()


def make_output(loss: cfg.Loss) -> Output:
    """The output that a loss trains."""
    if loss.kind == "student_t":
        return StudentT(loss.df)
    if loss.kind == "quantiles":
        return Quantiles(loss.levels)
    return Point() if loss.kind == "mse" else Gaussian(loss.kind)
