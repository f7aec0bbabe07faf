"""What heads say and how it is scored: each loss against a library, each output's moments against what they are moments of."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scoringrules
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri

from pipeline.config import Config
from pipeline.metrics.events import pool_events
from pipeline.models.outputs import Gaussian, Output, Point, Quantiles, StudentT, make_output

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
OUTPUTS = [Point(), Gaussian("crps"), Gaussian("nll"), StudentT(5.0), Quantiles(LEVELS)]
NAMES = ["mse", "crps", "nll", "student_t", "quantiles"]


def draw(output: Output, n: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of a head for three targets, and targets."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3 * output.n, generator=generator), torch.randn(n, 3, generator=generator)


# ---------------------------------------------------------------- losses
def test_crps_and_likelihoods_are_those_of_libraries() -> None:
    for output in (Gaussian("crps"), Gaussian("nll"), StudentT(5.0)):
        raw, targets = draw(output)
        mean, variance = (each.double().numpy() for each in output.moments(raw))
        truth, sigma = targets.double().numpy(), np.sqrt(variance)
        if isinstance(output, StudentT):
            expected = -stats.t.logpdf(truth, 5, mean, sigma * math.sqrt(3 / 5)).mean()
        elif output.score == "nll":
            expected = -stats.norm.logpdf(truth, mean, sigma).mean()
        else:
            expected = scoringrules.crps_normal(truth, mean, sigma).mean()
        assert float(output.loss(raw, targets)) == pytest.approx(expected, rel=1e-5)


def test_the_pinball_loss_is_least_at_the_quantiles() -> None:
    sample = torch.from_numpy(np.random.default_rng(0).normal(size=(20_000, 1))).float()
    output, raw = Quantiles(LEVELS), torch.zeros(1, 5, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = output.loss(raw.expand(len(sample), -1), sample)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert raw.detach()[0].numpy() == pytest.approx(ndtri(LEVELS), abs=0.05)


@pytest.mark.parametrize("output", OUTPUTS, ids=NAMES)
def test_a_loss_falls_when_the_truth_is_learned_and_the_variance_finds_the_noise(output: Output) -> None:
    rng = np.random.default_rng(1)
    targets = torch.from_numpy(
        np.column_stack([rng.normal(m, s, 4000) for m, s in ((0, 1), (2, 0.3), (-1, 2))])
    ).float()
    raw = torch.zeros(3 * output.n, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    first = float(output.loss(raw.detach().expand(len(targets), -1), targets))
    for _ in range(400):
        optimizer.zero_grad()
        output.loss(raw.expand(len(targets), -1), targets).backward()
        optimizer.step()
    mean, variance = output.moments(raw.detach()[None])
    assert float(output.loss(raw.detach().expand(len(targets), -1), targets)) < first
    assert mean[0].numpy() == pytest.approx([0, 2, -1], abs=0.15)
    if not isinstance(output, Point):
        assert variance[0].sqrt().numpy() == pytest.approx([1, 0.3, 2], rel=0.15)


@pytest.mark.parametrize("output", OUTPUTS, ids=NAMES)
@settings(deadline=None, max_examples=30)
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_losses_gradients_and_moments_are_finite_whatever_a_head_says(
    output: Output, number: float, target: float
) -> None:
    raw = torch.full((2, output.n), number, requires_grad=True)
    loss = output.loss(raw, torch.full((2, 1), target))
    loss.backward()  # type: ignore[no-untyped-call]
    mean, variance = output.moments(raw.detach())
    assert raw.grad is not None and torch.isfinite(raw.grad).all() and torch.isfinite(loss)
    assert torch.isfinite(mean).all() and (variance > 0).all()


def test_the_moments_of_normal_quantiles_are_those_of_the_normal_distribution() -> None:
    raw = torch.from_numpy(1.5 + 0.7 * ndtri(LEVELS))[None].float()
    mean, variance = Quantiles(LEVELS).moments(raw)
    assert float(mean) == pytest.approx(1.5, rel=1e-5) and float(variance) == pytest.approx(0.49, rel=1e-5)
    skewed = Quantiles((0.5, 0.9)).moments(torch.from_numpy(1.5 + 0.7 * ndtri((0.5, 0.9)))[None].float())
    assert float(skewed[0]) == pytest.approx(1.5, rel=1e-5) and float(skewed[1]) == pytest.approx(0.49, rel=1e-5)


def test_an_untrained_head_says_about_the_spread_of_the_training_events() -> None:
    _, variance = Gaussian("crps").moments(torch.zeros(1, 2))
    assert float(variance) == pytest.approx(1.0, rel=1e-5)


# ---------------------------------------------------------------- configuration
def test_each_loss_has_its_output() -> None:
    kinds = ("mse", "crps", "nll", "student_t", "quantiles")
    outputs = [make_output(Config.model_validate({"experiment": "x", "loss": {"kind": kind}}).loss) for kind in kinds]
    assert [type(output) for output in outputs] == [Point, Gaussian, Gaussian, StudentT, Quantiles]
    assert [output.n for output in outputs] == [1, 2, 2, 2, 5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": {"kind": "quantiles", "levels": [0.5, 0.1]}}, "levels must ascend"),
        ({"loss": {"kind": "quantiles", "levels": [0.5, 0.5]}}, "none stand twice"),
        ({"loss": {"kind": "student_t", "df": 2}}, "greater than 2"),
        ({"loss": {"kind": "crps"}, "model": {"head": {"kind": "ridge"}}}, "ridge minimises squared errors"),
    ],
)
def test_losses_that_cannot_be_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"experiment": "x", **values})


# ---------------------------------------------------------------- pooling
POOLS = st.sampled_from(["mean", "precision"])


@given(
    POOLS,
    st.lists(st.tuples(st.integers(0, 5), st.floats(-5, 5), st.floats(0.01, 10)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_pooling_does_not_depend_on_the_order_of_specimens_and_stays_within_them(pool, rows, random) -> None:  # type: ignore[no-untyped-def]
    def pooled(rows: list[tuple[int, float, float]]) -> tuple[np.ndarray, np.ndarray]:
        events, mean, variance = (np.array(column) for column in zip(*rows, strict=True))
        return pool_events(mean[:, None], variance[:, None], events, pool)

    mean, variance = pooled(rows)
    shuffled = list(rows)
    random.shuffle(shuffled)
    np.testing.assert_allclose(pooled(shuffled)[0], mean, rtol=1e-9, atol=1e-12)
    for i, event in enumerate(sorted({row[0] for row in rows})):
        values = [row[1] for row in rows if row[0] == event]
        spread = [row[2] for row in rows if row[0] == event]
        assert min(values) - 1e-9 <= mean[i, 0] <= max(values) + 1e-9
        assert min(spread) - 1e-9 <= variance[i, 0] <= max(spread) + 1e-9


def test_a_specimen_that_is_sure_counts_for_more_where_precision_weighs() -> None:
    mean, variance, events = np.array([[0.0], [10.0]]), np.array([[1.0], [4.0]]), np.array([0, 0])
    assert pool_events(mean, variance, events, "mean")[0] == pytest.approx(5)
    weighted, each = pool_events(mean, variance, events, "precision")
    assert weighted == pytest.approx(2.0) and each / 2 == pytest.approx(1 / (1 / 1 + 1 / 4))
