"""A forecaster of drought from photographs of beetles, as the challenge's platform calls it: `Model().load()`, `.predict(…)`.

An exported submission's model.py, beside `network.py`. An event's forecast is pooled from what each member says of its
specimens, and calibrated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from decoding import How, decode_opened
from network import Batch, ImageMember, Said, label, load  # as decoding.py it lies beside this file
from towers import Point

BATCH = 32
MIN_SIGMA = 1e-3
"""The platform rounds to four decimals: a smaller sigma could become 0."""

Forecast = dict[str, dict[str, float]]


class Model:
    """What the platform asks for."""

    def load(self) -> None:
        """Read the folder's files and build the members."""
        self.spec, self.backbone, self.members = load()

    def predict(self, datapoints: Sequence[Point]) -> Forecast:
        """The forecast of one event: mean and sigma of each target, from its specimens. Those whose photograph does not decode
        are left out; of an event of such alone it is the mean and the sd of the training events."""
        said = [parts for parts in self._say(datapoints) if parts]
        if not said:
            return {target: dict(self.spec["unseen"][target]) for target in self.spec["targets"]}
        pooled = [dict(zip(m.spec["targets"], pool(parts), strict=True)) for m, parts in zip(self.members, said, strict=True)]
        domain = domain_of(datapoints)
        return {target: self._forecast([each[target] for each in pooled], target, domain) for target in self.spec["targets"]}

    def _say(self, datapoints: Sequence[Point]) -> list[list[Said]]:
        """What each member says of specimens, by batches; nothing, if no photograph decodes and somebody looks at them."""
        said: list[list[Said]] = [[] for _ in self.members]
        looks = any(isinstance(member, ImageMember) for member in self.members)
        with torch.inference_mode():
            for start in range(0, len(datapoints), BATCH):
                points = datapoints[start : start + BATCH]
                batch = Batch(decoded(points, self.backbone.how) if looks else points, self.backbone)
                for parts, member in zip(said, self.members, strict=True):
                    parts += [member.say(batch)] if len(batch) else []
        return said

    def _forecast(self, said: Sequence[Pooled], target: str, domain: str | None) -> dict[str, float]:
        """From what the members say of a target: calibrated together if they were, else each by itself, and averaged."""
        sides = ["in_domain" if domain in m.spec["names"]["domains"] else "out_of_domain" for m in self.members]
        if together := self.spec["calibration"]:
            return mixture([calibrated(together[target][sides[0]], combined(said))])
        each = zip(self.members, sides, said, strict=True)
        return mixture([calibrated(m.spec["calibration"][target][side], one) for m, side, one in each])


# ---------------------------------------------------------------- from specimens to a forecast
def decoded(datapoints: Sequence[Point], how: How) -> list[Point]:
    """Specimens with their photograph decoded, without those whose file is damaged."""
    found: list[Point] = []
    for point in datapoints:
        try:
            found.append({**point, "relative_img": decode_opened(point["relative_img"], how).image})
        except Exception:  # PIL's decoders raise errors of many kinds, and nobody would catch them
            continue
    return found


@dataclass(frozen=True)
class Pooled:
    """What a member says of a target of an event: mean, variance of one of its `n` specimens, sd over them (NaN of one), and how
    far it is to be relied on, within 0 … 1."""

    mean: float
    variance: float
    spread: float
    trust: float
    n: int


def pool(said: Sequence[Said]) -> list[Pooled]:
    """What a member says of each target of an event, from what it says of the batches of its specimens."""
    mean, variance, log_weights, trust = (np.concatenate(each).astype("float64") for each in zip(*said, strict=True))
    weights = np.exp(log_weights - log_weights.max(0))
    weights /= weights.sum(0)
    means, sds, trusts = ((weights * each).sum(0) for each in (mean, np.sqrt(variance), trust))
    spreads = mean.std(0, ddof=1) if len(mean) > 1 else np.full(mean.shape[1], math.nan)
    found = zip(means, sds, spreads, trusts, strict=True)
    return [Pooled(float(m), float(sd) ** 2, float(s), float(t), len(mean)) for m, sd, s, t in found]


def combined(said: Sequence[Pooled]) -> Pooled:
    """What members that differ in the seed say together: their variance grows where they disagree."""
    columns = ("mean", "variance", "spread", "trust")
    means, variances, spreads, trusts = (np.array([getattr(one, name) for one in said]) for name in columns)
    variance = float(variances.mean() + means.var())
    return Pooled(float(means.mean()), variance, float(spreads.mean()), float(trusts.mean()), said[0].n)


def calibrated(how: Mapping[str, float], said: Pooled) -> tuple[float, float]:
    """Mean and sigma of an event."""
    if "alone" in how:  # the spread over specimens
        return said.mean, max(said.spread if said.n > 1 else how["alone"], MIN_SIGMA)
    mu = how["bias"] + how["slope"] * said.mean
    sigma = math.sqrt(said.variance * (how["shared"] ** 2 + how["own"] ** 2 / said.n))
    sigma = max(sigma, how.get("floor", MIN_SIGMA))
    if said.trust == 1:
        return mu, sigma
    apart, rest = how["usual"] - mu, 1 - said.trust  # a mixture with what is known without an image
    mixed = math.sqrt(said.trust * sigma**2 + rest * (how["usual_sd"] ** 2 + said.trust * apart**2))
    return mu + rest * apart, max(mixed, MIN_SIGMA)


def mixture(forecasts: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Mean and sigma of an equal mixture of normal distributions."""
    mu, sigma = np.array(forecasts, "float64").T
    spread = math.sqrt(float((sigma**2).mean() + mu.var()))
    return {"mu": float(mu.mean()), "sigma": max(spread, MIN_SIGMA)}


def domain_of(datapoints: Sequence[Point]) -> str | None:
    """The event's domain, whatever the order of its specimens; None if none of them tells it."""
    return min((name for point in datapoints if (name := label(point["domainID"])) is not None), default=None)
