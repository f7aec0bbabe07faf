"""The block `schedule`: the learning rate over a training. A kind says its own formula, a function of how far training is and of
the validation losses so far, so that there is no state to resume."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.kinds import Kind
from pipeline.config.section import LATER, BelowOne, Fraction, Positive

Lowest = Annotated[float, Field(ge=0)]


class Schedule(Kind):
    """Learning rate over the epochs: linear warm-up, then what the kind says."""

    warmup: Annotated[int, Field(ge=0)] = 0
    """Epochs of linear warm-up."""
    warmup_samples: Annotated[Positive | None, LATER] = None
    """Images that are seen in the warm-up, whatever `warmup` says; null: those of `warmup` epochs."""
    per: Annotated[Literal["epoch", "step"], LATER] = "epoch"
    """How often the rate is set: with `step` it falls within epochs too, and the warm-up begins at 0."""

    @abstractmethod
    def after_warmup(self, peak: float, lr: float, at: float, epochs: int, losses: Sequence[float]) -> float:
        """The rate `at` epochs (from 0; a fraction within one) of those `epochs`, of parameters whose full rate is `peak`; `lr`
        is `optim.lr`, `losses` are those on validation of the epochs that are done."""

    def rate(self, peak: float, lr: float, at: float, epochs: int, losses: Sequence[float] = ()) -> float:
        """The same, warm-up and all."""
        if at >= self.warmup:
            return self.after_warmup(peak, lr, at, epochs, losses)
        return peak * at / self.warmup if self.per == "step" else peak * (at + 1) / (self.warmup + 1)


class Plain(Schedule):
    """The full rate after the warm-up: to the end, or held and then along one cosine, which ends in the last epoch or step."""

    kind: Literal["constant", "cosine"] = "constant"
    hold: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Epochs at the full rate before the cosine; auto: min(10, epochs // 10)."""
    floor: Fraction = 0.01
    """The cosine ends at floor·`optim.lr`, the same value for every parameter group."""

    def after_warmup(self, peak: float, lr: float, at: float, epochs: int, losses: Sequence[float]) -> float:
        if self.kind == "constant":
            return peak
        start = self.warmup + (min(10, epochs // 10) if self.hold == "auto" else self.hold)
        end = epochs if self.per == "step" else epochs - 1
        done = min(max(at - start, 0) / max(end - start, 1), 1.0)
        floor = min(self.floor * lr, peak)
        return floor + (peak - floor) * _cosine(done)


class Exponential(Schedule):
    """The rate times `gamma` for each epoch."""

    kind: Literal["exponential"]
    gamma: BelowOne = 0.98
    """What is left of the rate after an epoch."""
    lowest: Lowest = 1e-8
    """It falls no further."""

    def after_warmup(self, peak: float, lr: float, at: float, epochs: int, losses: Sequence[float]) -> float:
        return max(peak * self.gamma ** (at - self.warmup), min(self.lowest, peak))


class Waves(Schedule):
    """Cosines of `period` epochs: down and up again, or down and at once at the full rate (SGDR, arXiv 1608.03983)."""

    kind: Literal["cosine_waves", "cosine_restarts"]
    period: Positive = 7
    """Epochs from the full rate to the lowest."""
    lowest: Lowest = 1e-7
    """The rate at the foot of a wave."""

    def after_warmup(self, peak: float, lr: float, at: float, epochs: int, losses: Sequence[float]) -> float:
        low = min(self.lowest, peak)
        return low + (peak - low) * _wave(self.kind, (at - self.warmup) / self.period)


class DecayingWaves(Schedule):
    """Such waves times an exponential decay, each from its crest down to 1/`ratio` of it."""

    kind: Literal["cosine_waves_exponential", "cosine_restarts_exponential"]
    period: Positive = 10
    """Epochs from one crest to the next."""
    ratio: float = Field(10, ge=1)
    """Of crest and foot of a wave."""
    gamma: BelowOne = 0.98
    """What is left of the rate after an epoch."""

    def after_warmup(self, peak: float, lr: float, at: float, epochs: int, losses: Sequence[float]) -> float:
        since, kind = at - self.warmup, self.kind.removesuffix("_exponential")
        height = _wave(kind, since / self.period * (2 if kind == "cosine_waves" else 1))
        return peak * self.gamma**since * (1 / self.ratio + (1 - 1 / self.ratio) * height)


class Plateau(Schedule):
    """The rate times `factor` when the loss on validation has stopped falling, as torch's ReduceLROnPlateau has it."""

    kind: Literal["plateau"]
    factor: BelowOne = 0.618
    """What is left of the rate each time."""
    patience: Annotated[int, Field(ge=0)] = 1
    """Epochs without a lower loss that are waited for."""
    cooldown: Annotated[int, Field(ge=0)] = 1
    """Epochs after a change that are not counted."""
    lowest: Lowest = 1e-7
    """It falls no further."""
    threshold: float = Field(1e-4, ge=0)
    """By which share a loss must be lower to count."""

    def after_warmup(self, peak: float, lr: float, at: float, epochs: int, losses: Sequence[float]) -> float:
        rate, best, bad, cooling = peak, math.inf, 0, 0
        for loss in losses:
            better = loss < best * (1 - self.threshold)
            best, bad = (loss, 0) if better else (best, bad + 1)
            if cooling:
                cooling, bad = cooling - 1, 0
            if bad > self.patience:
                rate, bad, cooling = max(rate * self.factor, min(self.lowest, peak)), 0, self.cooldown
        return rate


class OneCycle(Schedule):
    """Up to the full rate and down again, along cosines (Smith and Topin 2018, arXiv 1708.07120), as torch's OneCycleLR."""

    kind: Literal["one_cycle"]
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the training in which it rises."""
    begin: float = Field(25.0, ge=1)
    """It begins at this part of the full rate."""
    end: float = Field(1e4, ge=1)
    """It ends at this part of what it began with."""

    def after_warmup(self, peak: float, lr: float, at: float, epochs: int, losses: Sequence[float]) -> float:
        first, last = peak / self.begin, peak / self.begin / self.end
        since, whole, ends = (
            at - self.warmup,
            epochs - self.warmup,
            float(self.per == "epoch"),
        )  # the last epoch has the last rate
        top, end = max(self.rise * whole - ends, 0.0), whole - ends
        if since < top:
            return peak + (first - peak) * _cosine(since / top)
        return last + (peak - last) * _cosine(min((since - top) / max(end - top, 1e-9), 1.0))


def _cosine(done: float) -> float:
    """From 1 to 0 as `done` goes from 0 to 1."""
    return (1 + math.cos(math.pi * done)) / 2


def _wave(kind: str, periods: float) -> float:
    return _cosine(periods if kind == "cosine_waves" else periods % 1)
