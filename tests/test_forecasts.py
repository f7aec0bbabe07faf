"""Forecasts of groups in results.json: a sigma for every group, known and new domains apart, and the challenge's score."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scoringrules
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import WorkError
from pipeline.metrics.figures import Training
from pipeline.metrics.groups import Calibrations, Prediction, add_forecasts, fit_calibrations, group_table, image_table
from pipeline.metrics.regression_report import regression_report

TARGETS = ("a", "b")
ARRAYS = ("mean", "variance", "log_weights", "trust")
TRAIN = Training(["1", "2"], {"a": 0.0, "b": 0.5}, {"a": 1.0, "b": 2.0})


def table(n_groups: int, seed: int, domains: tuple[str | None, ...] = ("1", "2", "99")) -> pd.DataFrame:
    """Specimens of groups of 1 to 6 images in these domains, in shuffled rows."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), rng.integers(1, 7, n_groups))
    rng.shuffle(group)
    values = rng.normal(size=(n_groups, 2))
    rows = pd.DataFrame({"id": [f"s{i}" for i in range(len(group))], "group": [f"e{e}" for e in group]})
    rows["domain"] = pd.Series([domains[e % len(domains)] for e in group], dtype=object)
    return rows.assign(a=values[group, 0], b=values[group, 1])


def predictions(rows: pd.DataFrame, seed: int, error: float = 0.7) -> Prediction:
    rng = np.random.default_rng(seed)
    return said((rows[list(TARGETS)].to_numpy() + rng.normal(0, error, (len(rows), 2))).astype("float32"))


def said(mean: Any) -> Prediction:
    """What a point model says."""
    return Prediction(mean, np.ones_like(mean), np.zeros_like(mean), np.ones_like(mean))


def forecasts(rows: pd.DataFrame, predicted: Any) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Specimens and groups of `rows` with forecasts that are calibrated on other groups."""
    images = image_table(rows, TARGETS, predicted)
    return images, add_forecasts(group_table(images, TARGETS), fitted(), TRAIN.domains, TARGETS)


@cache
def fitted() -> Calibrations:
    held_out = table(120, 99)
    groups = group_table(image_table(held_out, TARGETS, predictions(held_out, 98)), TARGETS)
    return fit_calibrations(groups, TARGETS, TRAIN, "scale")


def report(rows: pd.DataFrame, predicted: Any) -> dict[str, Any]:
    return regression_report(*forecasts(rows, predicted), TARGETS, TRAIN)


def test_a_group_of_one_image_has_a_sigma_and_many_images_do_not_make_it_vanish() -> None:
    """(mistake 9: the spread over images is NaN for one and far too small for many)"""
    rows = pd.concat(
        [table(1, 0).iloc[[0]], pd.DataFrame({"id": range(500), "group": "many", "domain": "1", "a": 0.0, "b": 0.0})]
    )
    _, groups = forecasts(rows.reset_index(drop=True), said(np.zeros((501, 2), "float32")))
    assert groups["n"].tolist() == [1, 500]
    sigma = groups[["a_sigma", "b_sigma"]].to_numpy()
    assert np.isfinite(sigma).all() and (sigma > 0.02).all() and (sigma[1] <= sigma[0]).all()


@settings(deadline=None, max_examples=20)
@given(st.randoms(use_true_random=False))
def test_a_forecast_does_not_depend_on_the_order_of_images(random: Any) -> None:
    rows = table(12, 1)
    weights = np.random.default_rng(3).normal(size=(len(rows), 2)).astype("float32")
    predicted = replace(predictions(rows, 2), log_weights=weights)
    order = list(range(len(rows)))
    random.shuffle(order)
    _, one = forecasts(rows, predicted)
    _, other = forecasts(
        rows.iloc[order].reset_index(drop=True), Prediction(*(getattr(predicted, name)[order] for name in ARRAYS))
    )
    together = one.merge(other, on="group", suffixes=("", "_other"))
    assert len(together) == 12
    for name in ("a_mu", "a_sigma", "b_mu", "b_sigma", "n"):
        np.testing.assert_allclose(together[name], together[f"{name}_other"], rtol=1e-9)


def test_a_group_has_the_mean_and_sd_of_its_images_and_what_weighs_more_counts_more() -> None:
    rows = table(1, 0).iloc[[0, 0, 0]].assign(group=["one", "two", "two"])
    predicted = Prediction(
        *(
            np.array(column, "float32")
            for column in ([[5, 1], [0, 0], [4, 2]], [[9, 1], [1, 1], [4, 4]], [[7, 0], [0, 0], [0, np.log(3)]])
        )
    )
    one, two = group_table(image_table(rows, TARGETS, predicted), TARGETS).to_dict("records")
    assert (one["n"], one["a_mean"], one["a_variance"]) == (1, 5, 9) and np.isnan(one["a_spread"])
    assert (two["n"], two["a_mean"], two["b_mean"]) == (2, 2, pytest.approx(1.5))
    assert two["a_variance"] == pytest.approx(1.5**2) and two["b_variance"] == pytest.approx(1.75**2)
    assert two["a_spread"] == pytest.approx(np.std([0, 4], ddof=1)) and two["b_spread"] == pytest.approx(np.sqrt(2))


def test_each_target_has_the_scores_of_its_groups_in_known_and_in_new_domains() -> None:
    rows = table(60, 3)
    _, groups = forecasts(rows, predictions(rows, 4))
    found = report(rows, predictions(rows, 4))
    for target in TARGETS:
        for part, chosen in (("in_domain", groups["domain"] != "99"), ("out_of_domain", groups["domain"] == "99")):
            some = groups[chosen]
            expected = scoringrules.crps_normal(some[target], some[f"{target}_mu"], some[f"{target}_sigma"]).mean()
            assert found[target][part]["CRPS"] == pytest.approx(expected)
            assert sum(found[target][part]["PIT"]) == len(some) == found[target][part]["n_events"]
            assert set(found[target][part]["coverage"]) == {"50", "80", "95"}
    six = [found[target][part]["CRPS"] for target in TARGETS for part in ("in_domain", "out_of_domain")]
    assert found["summary"]["rms"] == pytest.approx(np.sqrt(np.mean(np.square(six))))


def test_a_good_forecast_scores_better_than_the_spread_of_the_training_groups() -> None:
    rows = table(60, 5)
    found = report(rows, predictions(rows, 6, error=0.2))
    assert found["summary"]["rms"] < found["summary"]["mean_predictor"]["rms"]
    truth = group_table(image_table(rows, TARGETS, predictions(rows, 6)), TARGETS)["a"]
    expected = scoringrules.crps_normal(truth, 0.0, 1.0).mean()
    assert found["a"]["mean_predictor"]["CRPS"] == pytest.approx(expected)


def test_a_group_whose_domain_is_not_known_is_forecast_like_one_of_a_new_domain() -> None:
    rows = table(3, 7, domains=(None, "99"))
    _, groups = forecasts(rows, said(np.zeros((len(rows), 2), "float32")))
    _, twins = forecasts(rows.assign(domain="1234"), said(np.zeros((len(rows), 2), "float32")))
    np.testing.assert_allclose(groups["a_sigma"], twins["a_sigma"])


def test_without_groups_of_new_domains_there_is_no_score_over_both() -> None:
    rows = table(20, 8, domains=("1", "2"))
    found = report(rows, predictions(rows, 9))
    assert found["summary"]["rms"] is None and found["a"]["out_of_domain"]["CRPS"] is None
    assert found["a"]["in_domain"]["CRPS"] is not None


def test_predictions_that_are_not_finite_give_null_and_valid_json() -> None:
    rows = table(20, 10)
    predicted = predictions(rows, 11)
    predicted.mean[0, 0] = np.nan
    found = report(rows, predicted)
    assert found["a"]["CRPS"] is None and found["b"]["CRPS"] is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_model_that_says_nothing_finite_cannot_be_calibrated() -> None:
    rows = table(20, 12)
    groups = group_table(image_table(rows, TARGETS, said(np.full((len(rows), 2), np.nan, "float32"))), TARGETS)
    with pytest.raises(WorkError, match="no prediction of a for the validation groups is finite"):
        fit_calibrations(groups, TARGETS, TRAIN, "scale")
