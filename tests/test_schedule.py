"""Schedules beside constant and cosine (tests/test_optimiser.py): as torch has them, and the products of waves and decay."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from pipeline.config.schedule import DecayingWaves, Exponential, OneCycle, Plain, Plateau, Schedule, Waves
from pipeline.config.trial import Config
from tests.small import named

EPOCHS = 40


def curve(schedule: Schedule, peak: float = 1e-3, losses: list[float] | None = None) -> list[float]:
    return [schedule.rate(peak, peak, epoch, EPOCHS, (losses or [])[:epoch]) for epoch in range(EPOCHS)]


def torch_curve(make: Any, losses: list[float] | None = None) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler, rates = make(optimizer), []
    for epoch in range(EPOCHS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([] if losses is None else [losses[epoch]]))
    return rates


@pytest.mark.parametrize(
    ("schedule", "make"),
    [
        (Exponential(kind="exponential"), lambda o: lr_scheduler.ExponentialLR(o, 0.98)),
        (OneCycle(kind="one_cycle"), lambda o: lr_scheduler.OneCycleLR(o, 1e-3, EPOCHS)),
        (
            OneCycle(kind="one_cycle", rise=0.5, begin=4, end=10),
            lambda o: lr_scheduler.OneCycleLR(o, 1e-3, EPOCHS, pct_start=0.5, div_factor=4, final_div_factor=10),
        ),
        (Waves(kind="cosine_waves", period=5), lambda o: lr_scheduler.CosineAnnealingLR(o, 5, 1e-7)),
        (Waves(kind="cosine_restarts"), lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, eta_min=1e-7)),
    ],
)
def test_a_schedule_is_that_of_torch(schedule: Schedule, make: Any) -> None:
    assert curve(schedule) == pytest.approx(torch_curve(make), rel=1e-6)


@given(st.lists(st.floats(0.1, 2), min_size=EPOCHS, max_size=EPOCHS))
def test_a_plateau_is_torchs_whatever_the_losses_and_needs_no_state(losses: list[float]) -> None:
    schedule = Plateau(kind="plateau")
    expected = torch_curve(
        lambda o: lr_scheduler.ReduceLROnPlateau(o, factor=0.618, patience=1, cooldown=1, min_lr=1e-7, eps=0), losses
    )
    assert curve(schedule, losses=losses) == pytest.approx(expected, rel=1e-9)


def test_a_product_falls_from_each_crest_to_a_tenth_and_crests_decay() -> None:
    waves = curve(DecayingWaves(kind="cosine_waves_exponential"))
    assert waves[0] == 1e-3 and waves[5] == pytest.approx(1e-4 * 0.98**5) and waves[10] == pytest.approx(1e-3 * 0.98**10)
    restarts = curve(DecayingWaves(kind="cosine_restarts_exponential"))
    assert restarts[10] == pytest.approx(1e-3 * 0.98**10) and restarts[9] < restarts[5] < restarts[1]
    assert restarts[5] == pytest.approx(1e-3 * 0.98**5 * 0.55)


def test_by_the_step_the_warmup_begins_at_nothing_and_the_cosine_ends_at_its_floor_with_the_last_step() -> None:
    schedule = Plain(kind="cosine", warmup=2, floor=0.1, per="step")
    at = [step / 10 for step in range(101)]
    rates = [schedule.rate(1.0, 1.0, each, 10) for each in at]
    assert rates[0] == 0 and rates[10] == 0.5 and rates[20] == 1 and rates[-1] == pytest.approx(0.1)
    assert (
        rates[60] == pytest.approx(0.55) and rates[:21] == sorted(rates[:21]) and rates[20:] == sorted(rates[20:], reverse=True)
    )


@given(st.sampled_from(list(Schedule.kinds)), st.floats(1e-9, 1), st.integers(0, 5))
def test_no_schedule_leaves_the_span_of_nothing_and_the_full_rate(kind: str, peak: float, warmup: int) -> None:
    schedule = Schedule.kinds[kind].model_validate({"kind": kind, "warmup": warmup})
    assert all(0 <= rate <= peak * (1 + 1e-12) and math.isfinite(rate) for rate in curve(schedule, peak, [1.0] * EPOCHS))


def test_every_kind_is_a_configurations() -> None:
    for kind in Schedule.kinds:
        assert Config.model_validate(named({"experiment": "x", "schedule": {"kind": kind}})).schedule.kind == kind


# ---------------------------------------------------------------- lengths in images
def lengths(batch: int, head: str, **schedule: Any) -> Config:
    model = {"encoder": {"kind": "projection"}, "head": {"kind": head}}
    loss = {"kind": "infonce" if head == "contrastive" else "cross_entropy"}
    values = {"experiment": "x", "task": "species", "data": {"label": "kind"}, "model": model, "loss": loss}
    train = {"samples": 1_000_000, "batch_size": batch}
    return Config.model_validate(named({**values, "train": train, "schedule": {"kind": "cosine", "per": "step", **schedule}}))


def test_a_training_told_in_images_is_one_in_epochs_of_whole_batches_of_pairs() -> None:
    """1 M images, 200 k of them in the warm-up, of 10,500: 10 batches of 1024 an epoch."""
    config = lengths(1024, "contrastive", warmup_samples=200_000, floor=1e-4).for_images(10_500)
    assert config.train.epochs == math.ceil(1_000_000 / 10_240) == 98
    assert config.schedule.warmup == pytest.approx(200_000 / 10_240)
    rates = [config.schedule.rate(1.0, 1.0, at, config.train.epochs) for at in (0.0, 100_000 / 10_240, 200_000 / 10_240, 98.0)]
    assert rates == pytest.approx([0, 0.5, 1, 1e-4])


def test_other_heads_see_partial_batches_and_what_is_told_in_epochs_stays() -> None:
    config = lengths(1024, "lift", warmup=3)
    assert config.for_images(10_500).train.epochs == math.ceil(1_000_000 / 10_500)
    assert config.for_images(10_500).schedule == config.schedule
    plain = config.model_copy(update={"train": config.train.model_copy(update={"samples": None})})
    assert plain.for_images(7) == plain


def test_one_cycle_rises_and_falls_within_epochs_too() -> None:
    schedule = OneCycle(kind="one_cycle", per="step")
    rates = [schedule.rate(1.0, 1.0, step / 10, 20) for step in range(200)]
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == rates[60] == 1.0 and rates[-1] < 1e-3
    assert all(a < b for a, b in pairwise(rates[:61]))
    assert all(a > b for a, b in pairwise(rates[60:]))
