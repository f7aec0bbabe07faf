"""Post-hoc calibration of group forecasts: how far off a mean of n images really is, told from held-out groups.

A model's forecast of a group is a mean and a variance of one image, both in the targets' units. What images of a group
share (its light, its species, the model's own error) does not average out over them, what is each one's own does. So

    sigma² = variance · (shared² + own² / n), sigma ≥ floor

with numbers that are fitted to the CRPS of held-out groups: sigma shrinks with n only as far as they show it should, and nowhere
below what they bear out: a head's own sd may collapse where it is wrong. With `emos` the mean is corrected by a line as well
(Gneiting et al. 2005, "Calibrated probabilistic forecasting using ensemble model output statistics and minimum CRPS estimation").

Of images unlike all that a model has seen, what it says means little (`models/novelty.py`). The forecast is then the mixture of
what it says, by its trust in that, and of what is known without an image: the training groups' mean, and how far held-out groups
lie from it. Mean and sigma of the mixture (law of total variance) are bounded by construction: sigma widens towards that of the
climate, the mean returns to it. Where trust is 1 nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.probabilistic import MIN_SIGMA, crps

Array = NDArray[np.float64]
Line = Literal["scale", "emos"]
Kind = Literal["scale", "emos", "spread"]
MIN_EVENTS = 20
"""Fewer tell too little: then all held-out groups are asked."""
EQUAL = 1e-7
"""CRPS nearer than the search for its minimum tells apart."""
FLOORS = np.linspace(0, 0.5, 51)
"""Quantiles of held-out groups' sigmas that are tried as its floor."""


@dataclass(frozen=True)
class Forecast:
    """What a model says of N groups: mean [N], variance of one image [N], number of images [N], the sd [N] of what it says of
    them (NaN of one), and how far it is to be relied on [N], within 0 … 1."""

    mean: Array
    variance: Array
    n: Array
    spread: Array
    trust: Array | float = 1.0

    def __getitem__(self, rows: NDArray[np.bool_]) -> Forecast:
        trust = np.broadcast_to(self.trust, self.mean.shape)
        return Forecast(self.mean[rows], self.variance[rows], self.n[rows], self.spread[rows], trust[rows])


@dataclass(frozen=True)
class Calibration:
    """Turns a forecast of groups into N(mu, sigma²)."""

    shared: float
    own: float
    bias: float = 0.0
    slope: float = 1.0
    groups: int = 0
    """How many held-out groups it was fitted to."""
    of_all: bool = False
    """Whether these were not groups of its own kind of domain alone, because there were too few."""
    floor: float = MIN_SIGMA
    """Of sigma, where the model is trusted wholly."""
    usual: float = 0.0
    """What is forecast of a group whose images tell nothing, and how surely: `usual_sd`."""
    usual_sd: float = 1.0

    def __call__(self, forecast: Forecast) -> tuple[Array, Array]:
        """mu [N] and sigma [N], at least MIN_SIGMA."""
        mu, trust = self.bias + self.slope * forecast.mean, forecast.trust
        sigma = np.maximum(self.free_sigma(forecast), self.floor)
        apart = self.usual - mu
        mixed = np.sqrt(trust * sigma**2 + (1 - trust) * (self.usual_sd**2 + trust * apart**2))
        return mu + (1 - trust) * apart, np.where(trust < 1, np.maximum(mixed, MIN_SIGMA), sigma)

    def free_sigma(self, forecast: Forecast) -> Array:
        """sigma [N] without floor and mixture."""
        return np.sqrt(forecast.variance * (self.shared**2 + self.own**2 / forecast.n))


@dataclass(frozen=True)
class Spread:
    """The challenge's sample code's sigma, to compare with: the sd of what is said of a group's images.

    That of a single image is not defined; it gets what is usual (`alone`), which the sample code does not grant it.
    """

    alone: float
    groups: int = 0
    of_all: bool = False

    def __call__(self, forecast: Forecast) -> tuple[Array, Array]:
        """mu [N] and sigma [N], at least MIN_SIGMA."""
        sigma = np.where(np.isfinite(forecast.spread), forecast.spread, self.alone)
        return forecast.mean, np.maximum(sigma, MIN_SIGMA)


AnyCalibration = Calibration | Spread


def fit_spread(truth: Array, forecast: Forecast) -> Spread:
    """Mean spread of held-out groups of several images; where there is none, how far off their forecasts are (rms)."""
    several = forecast.spread[np.isfinite(forecast.spread)]
    usual = several.mean() if len(several) else np.sqrt(np.mean(np.square(truth - forecast.mean)))
    return Spread(float(usual), len(truth))


def load_calibration(values: Mapping[str, Any]) -> AnyCalibration:
    """What `asdict` made of one."""
    return Spread(**values) if "alone" in values else Calibration(**values)


def fit_calibration(truth: Array, forecast: Forecast, kind: Line = "scale", usual: float = 0.0) -> Calibration:
    """The calibration with the lowest mean CRPS on held-out groups: truth [N]. Raises ValueError for none.

    Where a sigma that does not shrink with the number of images is as good, as for groups of equally many, it does not; of floors
    that are equally good the highest is taken. `usual` is the mean of the training groups.
    """
    if not len(truth):
        raise ValueError("a calibration is fitted to held-out groups, and there are none")
    bias, slope = _line(truth, forecast.mean) if kind == "emos" else (0.0, 1.0)
    error = max(float(np.sqrt(np.mean(np.square(truth - bias - slope * forecast.mean) / forecast.variance))), MIN_SIGMA)
    few = float(np.sqrt(forecast.n.mean()))
    line = (bias, slope) if kind == "emos" else ()
    starts = [(np.log(a * error), np.log(b * error * few), *line) for a, b in ((0.9, 0.3), (0.3, 0.9))]
    usual_sd = max(float(np.sqrt(np.mean(np.square(truth - usual)))), MIN_SIGMA)
    search = partial(_search, truth, forecast, Calibration(1, 0, groups=len(truth), usual=usual, usual_sd=usual_sd))
    shrinking = min(map(search, starts), key=lambda one: _score(truth, forecast, one))
    constant = search((np.log(error), *line), shrinks=False)
    gained = _score(truth, forecast, constant) - _score(truth, forecast, shrinking)
    return _with_floor(truth, forecast, shrinking if gained > EQUAL else constant)


def _score(truth: Array, forecast: Forecast, calibration: Calibration) -> float:
    """Mean CRPS of groups."""
    return float(crps(truth, *calibration(forecast)).mean())


def _with_floor(truth: Array, forecast: Forecast, fitted: Calibration) -> Calibration:
    """The calibration with a floor: one of the lower half of the sigmas that it gives held-out groups."""
    floors = np.quantile(np.maximum(fitted.free_sigma(forecast), MIN_SIGMA), FLOORS)
    scores = [_score(truth, forecast, replace(fitted, floor=float(floor))) for floor in floors]
    return replace(fitted, floor=max(float(f) for f, score in zip(floors, scores, strict=True) if score <= min(scores) + EQUAL))


def _search(truth: Array, forecast: Forecast, base: Calibration, start: Sequence[float], shrinks: bool = True) -> Calibration:
    """`base` with the lowest mean CRPS near `start` (log shared, log own, line); not `shrinks`: with own 0."""
    from scipy.optimize import minimize

    def calibration(values: Array) -> Calibration:
        shared, *rest = values
        own, *line = [np.exp(rest[0]), *rest[1:]] if shrinks else [0.0, *rest]
        bias, slope = line or (0.0, 1.0)
        return replace(base, shared=float(np.exp(shared)), own=float(own), bias=float(bias), slope=float(slope))

    def score(values: Array) -> float:
        return _score(truth, forecast, calibration(values))

    options = {"maxiter": 2000, "xatol": 1e-5, "fatol": 1e-9}
    return calibration(minimize(score, start, method="Nelder-Mead", options=options).x)


def fit_parts(
    truth: Array, forecast: Forecast, is_known: NDArray[np.bool_], is_new: NDArray[np.bool_], kind: Kind, usual: float = 0.0
) -> dict[str, AnyCalibration]:
    """A calibration for groups of domains that were trained on, and one for those of any other; `usual` is the training groups'
    mean.

    A part with fewer than MIN_EVENTS groups is calibrated on all of them; of fewer than those in all, no line is told.
    """
    parts = {"in_domain": is_known, "out_of_domain": is_new}
    if kind == "spread":
        return dict.fromkeys(parts, fit_spread(truth, forecast))
    kind = kind if len(truth) >= MIN_EVENTS else "scale"
    whole = replace(fit_calibration(truth, forecast, kind, usual), of_all=True)
    return {
        name: fit_calibration(truth[rows], forecast[rows], kind, usual) if rows.sum() >= MIN_EVENTS else whole
        for name, rows in parts.items()
    }


def _line(truth: Array, mean: Array) -> tuple[float, float]:
    """Intercept and slope of least squares; a slope of 0 where the forecasts do not vary."""
    if len(mean) < 2 or np.ptp(mean) < 1e-9:
        return float(truth.mean()), 0.0
    slope, bias = np.polyfit(mean, truth, 1)
    return float(bias), float(slope)
