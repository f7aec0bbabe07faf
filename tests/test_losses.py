"""What heads say and how it is scored: each loss against a library, each loss' moments against what they are moments of."""

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

from pipeline.config.trial import Config
from pipeline.models.losses import Gaussian, Loss, Quantiles, SquaredError, StudentT
from tests.small import named

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
OUTPUTS = [SquaredError(), Gaussian("crps"), Gaussian("nll"), StudentT(5.0), Quantiles(LEVELS)]
NAMES = ["mse", "crps", "nll", "student_t", "quantiles"]


def losses(output: Loss, raw: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of a head's numbers."""
    return output.losses(output.parameters(raw), targets)


def moments(output: Loss, raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return output.moments(output.parameters(raw))


def draw(output: Loss, n: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of a head for three targets, and targets."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3 * output.n, generator=generator), torch.randn(n, 3, generator=generator)


# ---------------------------------------------------------------- losses
def test_crps_and_likelihoods_are_those_of_libraries() -> None:
    for output in (Gaussian("crps"), Gaussian("nll"), StudentT(5.0)):
        raw, targets = draw(output)
        mean, variance = (each.double().numpy() for each in moments(output, raw))
        truth, sigma = targets.double().numpy(), np.sqrt(variance)
        if isinstance(output, StudentT):
            expected = -stats.t.logpdf(truth, 5, mean, sigma * math.sqrt(3 / 5)).mean()
        elif output.score == "nll":
            expected = -stats.norm.logpdf(truth, mean, sigma).mean()
        else:
            expected = scoringrules.crps_normal(truth, mean, sigma).mean()
        assert float(losses(output, raw, targets).mean()) == pytest.approx(expected, rel=1e-5)


def test_the_pinball_loss_is_least_at_the_quantiles() -> None:
    sample = torch.from_numpy(np.random.default_rng(0).normal(size=(20_000, 1))).float()
    output, raw = Quantiles(LEVELS), torch.zeros(1, 5, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = losses(output, raw.expand(len(sample), -1), sample).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert raw.detach()[0].numpy() == pytest.approx(ndtri(LEVELS), abs=0.05)


@pytest.mark.parametrize("output", OUTPUTS, ids=NAMES)
def test_a_loss_falls_when_the_truth_is_learned_and_the_variance_finds_the_noise(output: Loss) -> None:
    rng = np.random.default_rng(1)
    targets = torch.from_numpy(np.column_stack([rng.normal(m, s, 4000) for m, s in ((0, 1), (2, 0.3), (-1, 2))])).float()
    raw = torch.zeros(3 * output.n, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.05)
    first = float(losses(output, raw.detach().expand(len(targets), -1), targets).mean())
    for _ in range(400):
        optimizer.zero_grad()
        losses(output, raw.expand(len(targets), -1), targets).mean().backward()
        optimizer.step()
    mean, variance = moments(output, raw.detach()[None])
    assert float(losses(output, raw.detach().expand(len(targets), -1), targets).mean()) < first
    assert mean[0].numpy() == pytest.approx([0, 2, -1], abs=0.15)
    if not isinstance(output, SquaredError):
        assert variance[0].sqrt().numpy() == pytest.approx([1, 0.3, 2], rel=0.15)


@pytest.mark.parametrize("output", OUTPUTS, ids=NAMES)
@settings(deadline=None, max_examples=30)
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_losses_gradients_and_moments_are_finite_whatever_a_head_says(output: Loss, number: float, target: float) -> None:
    raw = torch.full((2, output.n), number, requires_grad=True)
    loss = losses(output, raw, torch.full((2, 1), target)).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    mean, variance = moments(output, raw.detach())
    assert raw.grad is not None and torch.isfinite(raw.grad).all() and torch.isfinite(loss)
    assert torch.isfinite(mean).all() and (variance > 0).all()


@pytest.mark.parametrize("output", OUTPUTS, ids=NAMES)
def test_a_images_loss_is_the_mean_over_its_targets(output: Loss) -> None:
    raw, targets = draw(output, 7)
    one_by_one = [losses(output, raw[:, i * output.n :][:, : output.n], targets[:, i : i + 1]) for i in range(3)]
    assert losses(output, raw, targets).shape == (7,)
    torch.testing.assert_close(losses(output, raw, targets), torch.stack(one_by_one).mean(0))


@pytest.mark.parametrize("output", OUTPUTS, ids=NAMES)
@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.integers(0, 999))
def test_mean_and_sd_of_a_weighted_mean_of_parameters_are_the_weighted_means_of_theirs(
    output: Loss, weights: list[float], seed: int
) -> None:
    """So a group that training pools by parameters is the one that evaluation pools by moments."""
    raw = draw(output, len(weights), seed)[0].unflatten(-1, (3, -1)).sort(-1).values.flatten(1)  # no quantiles cross
    parameters = output.parameters(raw)
    shares = (torch.tensor(weights) / sum(weights))[:, None]
    mean, variance = output.moments((shares[..., None] * parameters).sum(0, keepdim=True))
    means, variances = output.moments(parameters)
    torch.testing.assert_close(mean[0], (shares * means).sum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(variance[0].sqrt(), (shares * variances.sqrt()).sum(0), rtol=1e-4, atol=1e-5)


def test_the_moments_of_normal_quantiles_are_those_of_the_normal_distribution() -> None:
    raw = torch.from_numpy(1.5 + 0.7 * ndtri(LEVELS))[None].float()
    mean, variance = moments(Quantiles(LEVELS), raw)
    assert float(mean) == pytest.approx(1.5, rel=1e-5) and float(variance) == pytest.approx(0.49, rel=1e-5)
    skewed = moments(Quantiles((0.5, 0.9)), torch.from_numpy(1.5 + 0.7 * ndtri((0.5, 0.9)))[None].float())
    assert float(skewed[0]) == pytest.approx(1.5, rel=1e-5) and float(skewed[1]) == pytest.approx(0.49, rel=1e-5)


def test_an_untrained_head_says_about_the_spread_of_the_training_groups() -> None:
    _, variance = moments(Gaussian("crps"), torch.zeros(1, 2))
    assert float(variance) == pytest.approx(1.0, rel=1e-5)


# ---------------------------------------------------------------- configuration
def test_each_loss_has_its_output() -> None:
    kinds = ("mse", "crps", "nll", "student_t", "quantiles")
    outputs = [Config.model_validate(named({"experiment": "x", "loss": {"kind": kind}})).loss.make(1) for kind in kinds]
    assert [type(output) for output in outputs] == [SquaredError, Gaussian, Gaussian, StudentT, Quantiles]
    assert [output.n for output in outputs] == [1, 2, 2, 2, 5]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": {"kind": "quantiles", "levels": [0.5, 0.1]}}, "levels\n.*they must ascend"),
        ({"loss": {"kind": "quantiles", "levels": [0.5, 0.5]}}, "none stand twice"),
        ({"loss": {"kind": "student_t", "df": 2}}, "greater than 2"),
        (
            {"loss": {"kind": "crps"}, "model": {"head": {"kind": "ridge"}}},
            "ridge has no use for loss.kind crps: set loss.kind mse or cross_entropy, or model.head.kind mlp",
        ),
    ],
)
def test_losses_that_cannot_be_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate(named({"experiment": "x", **values}))
