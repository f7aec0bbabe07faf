"""Scores of forecasts, against a library and against what they must obey, and calibration, on groups whose truth is known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import scoringrules
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import integrate, stats

from pipeline.metrics.calibration import (
    MIN_EVENTS,
    Calibration,
    Forecast,
    Spread,
    fit_calibration,
    fit_parts,
    fit_spread,
    load_calibration,
)
from pipeline.metrics.probabilistic import LEVELS, MIN_SIGMA, coverage, crps, pit, pit_histogram, rms

Array = NDArray[np.float64]
VALUES = st.floats(-1e3, 1e3)
SIGMAS = st.floats(1e-3, 1e3)


# ---------------------------------------------------------------- scores
@given(VALUES, VALUES, SIGMAS)
def test_crps_is_that_of_scoringrules(truth: float, mu: float, sigma: float) -> None:
    expected = float(scoringrules.crps_normal(truth, mu, sigma))
    assert float(crps(truth, mu, sigma)) == pytest.approx(expected, rel=1e-9, abs=1e-9 * sigma)


@pytest.mark.parametrize(("truth", "mu", "sigma"), [(0.0, 0.0, 1.0), (2.0, -1.0, 0.5), (-0.3, 0.4, 3.0)])
def test_crps_is_the_integral_that_defines_it(truth: float, mu: float, sigma: float) -> None:
    below, _ = integrate.quad(lambda x: stats.norm.cdf(x, mu, sigma) ** 2, -30, truth)
    above, _ = integrate.quad(lambda x: stats.norm.sf(x, mu, sigma) ** 2, truth, 30)
    assert float(crps(truth, mu, sigma)) == pytest.approx(below + above, rel=1e-6)


@given(VALUES, VALUES, SIGMAS, st.floats(0.01, 100), VALUES)
def test_crps_has_the_unit_of_the_target_and_no_origin(truth: float, mu: float, sigma: float, scale: float, shift: float) -> None:
    score = float(crps(truth, mu, sigma))
    assert float(crps(-truth, -mu, sigma)) == pytest.approx(score, rel=1e-9, abs=1e-9)
    moved = float(crps(scale * truth + shift, scale * mu + shift, scale * sigma))
    assert moved == pytest.approx(scale * score, rel=1e-6, abs=1e-6)
    assert score > 0


def test_crps_of_a_sigma_that_vanishes_is_the_absolute_error() -> None:
    assert crps([1.0, -3.0], 0.0, 1e-9) == pytest.approx([1.0, 3.0])


def test_what_is_calibrated_has_a_flat_pit_and_the_coverage_that_it_says() -> None:
    rng = np.random.default_rng(0)
    mu, sigma = rng.normal(0, 2, 20_000), rng.uniform(0.2, 3, 20_000)
    truth = rng.normal(mu, sigma)
    counts = pit_histogram(pit(truth, mu, sigma))
    assert sum(counts) == 20_000 and max(counts) - min(counts) < 250
    for level in LEVELS:
        assert coverage(truth, mu, sigma, level) == pytest.approx(level, abs=0.01)
    too_sure = pit_histogram(pit(truth, mu, sigma / 3))
    assert too_sure[0] > 2 * counts[0] and too_sure[-1] > 2 * counts[-1]


def test_coverage_of_no_group_is_not_defined_and_ends_of_the_pit_are_counted() -> None:
    assert coverage([], [], [], 0.8) is None
    assert pit_histogram(np.array([0.0, 1.0])) == [1, *[0] * 8, 1]


@given(st.lists(st.floats(0, 10), min_size=1))
def test_rms_lies_between_the_smallest_and_the_largest_score(scores: list[float]) -> None:
    value = rms(scores)
    assert value is not None and min(scores) - 1e-9 <= value <= max(scores) + 1e-9
    assert rms([*scores, None]) is None


def test_rms_is_the_root_of_the_mean_square_and_not_defined_without_scores() -> None:
    assert rms([3.0, 4.0]) == pytest.approx(np.sqrt(12.5))
    assert rms([]) is None


# ---------------------------------------------------------------- calibration
def simulate(shared: float, own: float, n_groups: int, seed: int) -> tuple[Array, Forecast]:
    """Truth and forecasts of groups of 1 to 50 images, off by what they share and by what is each one's own."""
    rng = np.random.default_rng(seed)
    n = rng.integers(1, 51, n_groups).astype("float64")
    variance = rng.uniform(0.5, 2, n_groups)
    mean = rng.normal(0, 1, n_groups)
    off = np.sqrt(variance) * (shared * rng.normal(size=n_groups) + own * rng.normal(size=n_groups) / np.sqrt(n))
    return mean + off, forecast_of(mean, variance, n)


def forecast_of(mean: Array, variance: Array, n: Array) -> Forecast:
    """A forecast whose spread over images is not asked for."""
    return Forecast(mean, variance, n, np.full(len(mean), np.nan), np.ones(len(mean)))


@pytest.mark.parametrize(("shared", "own"), [(0.5, 1.5), (0.2, 2.0), (1.0, 0.5), (0.6, 1.0)])
def test_what_images_share_is_told_from_what_is_each_ones_own(shared: float, own: float) -> None:
    fitted = fit_calibration(*simulate(shared, own, 5000, 1))
    assert fitted.shared == pytest.approx(shared, rel=0.1)
    assert fitted.own == pytest.approx(own, rel=0.2)
    assert fitted.groups == 5000


def test_where_errors_are_shared_sigma_does_not_shrink_with_the_number_of_images() -> None:
    fitted = fit_calibration(*simulate(1.0, 0.0, 2000, 2))
    _, sigma = fitted(forecast_of(np.zeros(2), np.ones(2), np.array([1.0, 500.0])))
    assert sigma[1] > 0.8 * sigma[0]


def test_a_calibration_holds_on_groups_that_it_was_not_fitted_to() -> None:
    fitted = fit_calibration(*simulate(0.4, 1.0, 500, 3))
    truth, forecast = simulate(0.4, 1.0, 5000, 4)
    assert coverage(truth, *fitted(forecast), 0.8) == pytest.approx(0.8, abs=0.03)


def test_emos_takes_back_forecasts_that_are_too_bold() -> None:
    rng = np.random.default_rng(5)
    truth = rng.normal(0.5, 1, 2000)
    bold = forecast_of(3 * (truth + rng.normal(0, 1, 2000)) + 2, np.ones(2000), np.ones(2000))
    fitted = fit_calibration(truth, bold, "emos")
    assert fitted.slope == pytest.approx(1 / 6, abs=0.02)
    plain, corrected = (crps(truth, *fit(bold)).mean() for fit in (fit_calibration(truth, bold), fitted))
    assert corrected < 0.5 * plain


def test_emos_of_forecasts_that_do_not_vary_is_the_mean_of_the_groups() -> None:
    truth = np.random.default_rng(6).normal(0.5, 1, 200)
    fitted = fit_calibration(truth, forecast_of(np.full(200, 9.0), np.ones(200), np.ones(200)), "emos")
    mu, sigma = fitted(forecast_of(np.array([9.0]), np.ones(1), np.ones(1)))
    assert mu == pytest.approx(truth.mean(), abs=0.1) and sigma == pytest.approx(truth.std(), rel=0.1)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from(["scale", "emos"]), st.sampled_from([1e-6, 1.0, 1e4]))
def test_sigma_is_finite_and_never_below_what_the_platform_can_write(seed: int, n_groups: int, kind: str, scale: float) -> None:
    truth, forecast = simulate(0.5, 1.0, n_groups, seed)
    fitted = fit_calibration(scale * truth, forecast_of(scale * forecast.mean, forecast.variance, forecast.n), kind)  # type: ignore[arg-type]
    mu, sigma = fitted(forecast)
    assert np.isfinite(mu).all() and np.isfinite(sigma).all() and (sigma >= MIN_SIGMA).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.floats(0.05, 5), st.floats(0.05, 5))
def test_no_other_scale_scores_better_on_the_groups_it_was_fitted_to(seed: int, shared: float, own: float) -> None:
    truth, forecast = simulate(0.5, 1.0, 60, seed)
    score = crps(truth, *fit_calibration(truth, forecast)(forecast)).mean()
    assert score <= crps(truth, *Calibration(shared, own)(forecast)).mean() + 1e-6


def test_groups_of_new_domains_are_calibrated_apart_where_there_are_enough() -> None:
    known, new = simulate(0.2, 0.5, 300, 7), simulate(1.5, 0.5, 300, 8)
    truth = np.concatenate([known[0], new[0]])
    forecast = Forecast(*(np.concatenate([a, b]) for a, b in zip(vars(known[1]).values(), vars(new[1]).values(), strict=True)))
    is_new = np.arange(600) >= 300
    parts = fit_parts(truth, forecast, ~is_new, is_new, "scale")
    assert parts["out_of_domain"].shared > 3 * parts["in_domain"].shared
    few = np.arange(600) >= 600 - MIN_EVENTS + 1
    assert fit_parts(truth, forecast, ~few, few, "scale")["out_of_domain"].groups == 600


def test_a_calibration_needs_groups() -> None:
    with pytest.raises(ValueError, match="held-out groups"):
        fit_calibration(np.zeros(0), forecast_of(np.zeros(0), np.zeros(0), np.zeros(0)))


# ---------------------------------------------------------------- floor and trust
def collapsing(wrongly: bool, seed: int) -> tuple[Array, Forecast]:
    """Groups of one image, of a fifth of which the head says that it is surer by far than of the others."""
    rng = np.random.default_rng(seed)
    sd = np.where(rng.random(1000) < 0.2, 0.02, 1.0)
    mean = rng.normal(size=1000)
    truth = mean + rng.normal(size=1000) * (1.0 if wrongly else sd)
    return truth, forecast_of(mean, sd**2, np.ones(1000))


def test_a_sigma_that_collapses_where_the_head_is_wrong_is_held_up() -> None:
    """(an ordinary event got −1.22 ± 0.016, and its truth was −0.21)"""
    fitted = fit_calibration(*collapsing(wrongly=True, seed=1))
    truth, forecast = collapsing(wrongly=True, seed=2)
    mu, sigma = fitted(forecast)
    assert sigma.min() > 0.7 and coverage(truth, mu, sigma, 0.8) == pytest.approx(0.8, abs=0.04)
    without = replace(fitted, floor=MIN_SIGMA)(forecast)
    assert without[1].min() < 0.05 and crps(truth, mu, sigma).mean() < 0.95 * crps(truth, *without).mean()


def test_a_head_that_is_rightly_sure_stays_sure_and_no_surer_than_it_was_seen_to_be() -> None:
    fitted = fit_calibration(*collapsing(wrongly=False, seed=3))
    assert 0.01 < fitted.floor < 0.03
    _, sigma = fitted(forecast_of(np.zeros(2), np.array([1e-4, 1e-12]), np.ones(2)))
    assert sigma[0] < 0.03 and sigma[1] == fitted.floor


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 60))
def test_a_floor_makes_no_held_out_group_worse_on_average(seed: int, n_groups: int) -> None:
    truth, forecast = simulate(0.5, 1.0, n_groups, seed)
    fitted = fit_calibration(truth, forecast)
    assert fitted.floor >= MIN_SIGMA
    assert crps(truth, *fitted(forecast)).mean() <= crps(truth, *replace(fitted, floor=MIN_SIGMA)(forecast)).mean() + 2e-7


USUAL = Calibration(1.0, 0.5, floor=0.2, usual=0.5, usual_sd=1.2)
TRUSTS = st.floats(0, 1)


@given(st.floats(-4, 4), st.floats(1e-6, 1e3), st.integers(1, 500), TRUSTS)
def test_a_forecast_is_the_mixture_of_what_is_said_and_what_is_usual(mean: float, variance: float, n: int, trust: float) -> None:
    """Its moments by the law of total variance; where trust is 1 it is what was said, to the bit."""
    said = forecast_of(np.array([mean]), np.array([variance]), np.array([float(n)]))
    (mu,), (sigma,) = USUAL(said)
    (mixed_mu,), (mixed_sigma,) = USUAL(replace(said, trust=np.array([trust])))
    second = trust * (sigma**2 + mu**2) + (1 - trust) * (USUAL.usual_sd**2 + USUAL.usual**2)
    expected = trust * mu + (1 - trust) * USUAL.usual
    assert mixed_mu == pytest.approx(expected, abs=1e-9)
    assert mixed_sigma**2 == pytest.approx(second - expected**2, rel=1e-6, abs=1e-6)
    assert trust < 1 or (mixed_mu, mixed_sigma) == (mu, sigma)


@given(st.floats(-4, 4), st.floats(0.01, 1.0), TRUSTS, TRUSTS)
def test_the_less_a_forecast_is_trusted_the_nearer_to_the_usual_it_is(mean: float, sd: float, one: float, two: float) -> None:
    trusts = np.array([0.0, *sorted((one, two)), 1.0])
    mu, sigma = USUAL(replace(forecast_of(np.full(4, mean), np.full(4, sd**2), np.ones(4)), trust=trusts))
    assert (np.diff(np.abs(mu - USUAL.usual)) >= -1e-12).all()
    assert mu[0] == pytest.approx(USUAL.usual) and sigma[0] == pytest.approx(USUAL.usual_sd)
    assert (sigma >= min(sigma[0], sigma[-1]) - 1e-12).all()


def test_what_is_usual_is_how_far_held_out_groups_lie_from_the_training_mean() -> None:
    truth, forecast = simulate(0.5, 0.5, 200, 5)
    fitted = fit_calibration(truth, forecast, usual=3.0)
    assert fitted.usual == 3 and fitted.usual_sd == pytest.approx(np.sqrt(np.mean((truth - 3) ** 2)))


# ---------------------------------------------------------------- spread: what calibration is compared with
def spreads(*values: float) -> Forecast:
    """Forecasts of 1 of groups whose images differ by so much."""
    n = len(values)
    return Forecast(np.ones(n), np.full(n, 7.0), np.full(n, 3.0), np.array(values))


def test_the_spread_of_images_is_their_sd_and_a_single_one_gets_the_usual_one() -> None:
    """(mistake 9: NaN for a single image)"""
    fitted = fit_spread(np.zeros(4), spreads(0.2, 0.6, np.nan, 0.4))
    assert fitted.alone == pytest.approx(0.4) and fitted.groups == 4
    mu, sigma = fitted(spreads(0.7, np.nan, 0.0))
    assert mu.tolist() == [1, 1, 1] and sigma == pytest.approx([0.7, 0.4, MIN_SIGMA])


def test_where_every_held_out_group_has_one_image_their_errors_tell_what_is_usual() -> None:
    assert fit_spread(np.array([1.0, 3.0]), spreads(np.nan, np.nan)).alone == pytest.approx(np.sqrt(2))


def test_known_and_new_domains_have_the_same_spread_and_none_is_borrowed() -> None:
    known = np.array([True, False, True])
    parts = fit_parts(np.zeros(3), spreads(0.2, 0.4, np.nan), known, ~known, "spread")
    assert parts["in_domain"] == parts["out_of_domain"] == Spread(pytest.approx(0.3), 3)  # type: ignore[arg-type]
    assert not parts["out_of_domain"].of_all


@pytest.mark.parametrize(
    "calibration", [Calibration(0.1, 2.0, 0.3, 0.9, 50, True, 0.2, 0.4, 1.1), Calibration(1.0, 0.0), Spread(0.25, 9), Spread(0.0)]
)
def test_a_calibration_is_the_same_after_it_was_written_as_json(calibration: Calibration | Spread) -> None:
    assert load_calibration(json.loads(json.dumps(asdict(calibration)))) == calibration


@pytest.mark.parametrize("n", [1.0, 5.0])
def test_where_all_held_out_groups_have_equally_many_images_sigma_does_not_shrink_with_their_number(n: float) -> None:
    """Nothing tells then what is shared from what is each one's own."""
    truth, forecast = simulate(0.5, 0.0, 200, 3)
    fitted = fit_calibration(truth, forecast_of(forecast.mean, forecast.variance, np.full(200, n)))
    assert fitted.own == 0 and fitted.shared == pytest.approx(0.5, rel=0.2)


def test_of_a_handful_of_groups_no_line_is_told() -> None:
    truth, forecast = simulate(0.5, 0.5, 3, 4)
    known = np.array([True, True, False])
    for calibration in fit_parts(truth, forecast, known, ~known, "emos").values():
        assert isinstance(calibration, Calibration) and (calibration.bias, calibration.slope) == (0.0, 1.0)
