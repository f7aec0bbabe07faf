"""Metrics: what sklearn says, per group where the challenge says so, and None instead of NaN."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from pipeline.metrics.figures import Training
from pipeline.metrics.groups import Prediction, group_table
from pipeline.metrics.regression import group_means, mae, r2, rmse
from pipeline.metrics.regression_report import regression_report
from pipeline.tasks import load_task

numbers = st.floats(-1e3, 1e3, width=32)


def group_r2(truth: np.ndarray, said: np.ndarray, groups: np.ndarray, log_weights: np.ndarray | None = None) -> float | None:
    return r2(group_means(truth, groups), group_means(said, groups, log_weights))


def columns(n: int, width: int = 2, dtype: str = "float64") -> st.SearchStrategy[Any]:
    return arrays(dtype, (width, n), elements=numbers)


pairs = st.integers(2, 12).flatmap(columns)
# Specimens of a few groups: (group numbers, targets, predictions).
images = st.integers(1, 12).flatmap(lambda n: st.tuples(arrays("int64", n, elements=st.integers(0, 4)), columns(n)))


def varies(values: Any) -> bool:
    return bool(np.ptp(values) > 1e-3)


# ---------------------------------------------------------------- figures
@given(pairs)
def test_r2_is_sklearns(pair: Any) -> None:
    truth, prediction = pair
    value = r2(truth, prediction)
    if varies(truth):
        assert value == pytest.approx(r2_score(truth, prediction), rel=1e-9, abs=1e-9)
    elif np.ptp(truth) == 0:
        assert value is None


@given(pairs)
def test_errors_are_sklearns(pair: Any) -> None:
    truth, prediction = pair
    assert mae(truth, prediction) == pytest.approx(mean_absolute_error(truth, prediction), abs=1e-9)
    assert rmse(truth, prediction) == pytest.approx(root_mean_squared_error(truth, prediction), abs=1e-9)


def test_predicting_the_mean_has_an_r2_of_zero_and_worse_is_negative() -> None:
    truth = np.array([0.0, 1.0, 2.0])
    assert r2(truth, np.ones(3)) == 0
    assert r2(truth, truth) == 1
    assert r2(truth, truth[::-1]) == -3


@pytest.mark.parametrize("truth", [[], [1.0], [0.1] * 3, [-7.3] * 7, [0.0, 0.0]])
def test_r2_without_variation_is_none_and_never_nan(truth: list[float]) -> None:
    values = np.array(truth)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert r2(values, values + 1) is None


def test_figures_of_nothing_are_none() -> None:
    empty = np.array([])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (mae(empty, empty), rmse(empty, empty), r2(empty, empty)) == (None, None, None)


def test_float32_predictions_are_judged_in_double_precision() -> None:
    truth = np.arange(1000, dtype="float32") + 1e5
    prediction = truth + np.float32(0.5)
    assert r2(truth, prediction) == pytest.approx(r2_score(truth.astype("float64"), prediction.astype("float64")))


# ---------------------------------------------------------------- groups
@given(images)
def test_group_means_are_those_of_a_group_by(sample: Any) -> None:
    groups, values = sample
    expected = pd.DataFrame(values.T).groupby(groups).mean().to_numpy()
    np.testing.assert_allclose(group_means(values.T, groups), expected, atol=1e-9)
    np.testing.assert_allclose(group_means(values[0], groups), expected[:, 0], atol=1e-9)


@given(images, st.integers(0, 99))
def test_weighted_group_means_are_those_of_numpys_average(sample: Any, seed: int) -> None:
    groups, values = sample
    log_weights = np.random.default_rng(seed).normal(0, 3, values.T.shape)
    means = group_means(values.T, groups, log_weights)
    for row, group in zip(means, np.unique(groups), strict=True):
        chosen = groups == group
        for target in range(2):
            some = np.average(values[target][chosen], weights=np.exp(log_weights[chosen, target]))
            assert row[target] == pytest.approx(some, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(group_means(values.T, groups, np.full(values.T.shape, 1e30)), group_means(values.T, groups))


def test_r2_counts_groups_not_images() -> None:
    """A hundred images of one group weigh as much as the single one of another."""
    groups = np.array([0] * 100 + [1, 2])
    truth = np.array([0.0] * 100 + [1.0, 2.0])
    rng = np.random.default_rng(0)
    noise = rng.normal(size=100)
    prediction = np.array([*(noise - noise.mean()), 1.0, 2.0])
    assert group_r2(truth, prediction, groups) == pytest.approx(1)
    image_r2 = r2(truth, prediction)
    assert image_r2 is not None and image_r2 < 0


@given(images, st.randoms(use_true_random=False))
def test_the_order_of_images_does_not_matter(sample: Any, random: Any) -> None:
    groups, (truth, prediction) = sample
    order = list(range(len(groups)))
    random.shuffle(order)
    if varies(group_means(truth, groups)):
        assert group_r2(truth[order], prediction[order], groups[order]) == pytest.approx(
            group_r2(truth, prediction, groups), abs=1e-6
        )


def test_groups_with_the_same_target_have_no_r2_whatever_their_sizes() -> None:
    """Means of 0.1 over 3 and over 7 images differ in the last bit: that is no variation to explain."""
    groups = np.repeat([0, 1, 2], [3, 7, 1])
    assert group_r2(np.full(11, 0.1), np.linspace(0, 1, 11), groups) is None


# ---------------------------------------------------------------- selection
def targets_and_predictions() -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(1)
    truth = np.repeat(rng.normal(size=(6, 3)), [1, 2, 3, 4, 5, 6], axis=0).astype("float32")
    return truth, truth + rng.normal(size=truth.shape).astype("float32"), np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])


def scored(metric: str, truth: Any, prediction: Any, groups: Any, weights: Any = None) -> float | None:
    said = Prediction.of(prediction)
    return load_task("regress").score(metric, truth, said if weights is None else replace(said, log_weights=weights), groups)


def test_the_best_epoch_is_chosen_by_the_mean_over_targets() -> None:
    truth, prediction, groups = targets_and_predictions()
    per_group = [r2_score(group_means(t, groups), group_means(p, groups)) for t, p in zip(truth.T, prediction.T, strict=True)]
    assert scored("r2", truth, prediction, groups) == pytest.approx(np.mean(per_group), abs=1e-6)
    assert scored("MAE", truth, prediction, groups) == pytest.approx(np.abs(truth - prediction).mean(), abs=1e-6)


def test_the_best_epoch_is_chosen_by_groups_as_they_are_pooled_and_by_each_images_error() -> None:
    truth, prediction, groups = targets_and_predictions()
    weights = np.random.default_rng(2).normal(0, 2, truth.shape).astype("float32")
    pooled = group_means(prediction, groups, weights)
    expected = np.mean([r2_score(t, p) for t, p in zip(group_means(truth, groups).T, pooled.T, strict=True)])
    assert scored("r2", truth, prediction, groups, weights) == pytest.approx(expected, abs=1e-6)
    assert scored("r2", truth, prediction, groups) != pytest.approx(expected, abs=1e-3)
    by_error = [scored("MAE", truth, prediction, groups, *some) for some in ((), (weights,))]
    assert by_error[0] == by_error[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", ["r2", "MAE"])
def test_an_epoch_that_predicts_nonsense_has_no_metric(metric: str, bad: float) -> None:
    truth, prediction, groups = targets_and_predictions()
    weights = np.zeros_like(prediction)
    weights[4, 1] = bad
    assert scored(metric, truth, prediction, groups, weights) is None
    prediction[4, 1] = bad
    assert scored(metric, truth, prediction, groups) is None


def test_a_target_that_does_not_vary_leaves_no_mean_of_the_others() -> None:
    truth, prediction, groups = targets_and_predictions()
    truth[:, 2] = 0.1
    assert scored("r2", truth, prediction, groups) is None


# ---------------------------------------------------------------- the report
TARGETS = ("a", "b")
MEANS = {"a": 0.5, "b": -1.0}


def make_frame(n: int = 40, seed: int = 0) -> pd.DataFrame:
    """Specimens of ten groups in domains 1 and 2, which were trained on, 99, which was not, and an unknown one."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) % 10
    frame = pd.DataFrame({"group": [f"e{e}" for e in groups], "domain": [["1", "2", "99", None][e % 4] for e in groups]})
    for target in TARGETS:
        frame[target] = rng.normal(size=10)[groups]
        frame[f"{target}_prediction"] = frame[target] + rng.normal(size=n)
        frame[f"{target}_weight"] = 0.0
    return frame


def report_of(frame: pd.DataFrame, domains: list[str], means: dict[str, float]) -> dict[str, Any]:
    """The report of images, whose groups are pooled from them."""
    groups = group_table(frame.assign(**{f"{target}_variance": 1.0 for target in TARGETS}), TARGETS)
    return regression_report(frame, groups, TARGETS, Training(domains, means, {}))


def expected(frame: pd.DataFrame, target: str) -> dict[str, Any]:
    truth, prediction = frame[target], frame[f"{target}_prediction"]
    means = frame.groupby("group")[[target, f"{target}_prediction"]].mean()
    return {
        "MAE": pytest.approx(mean_absolute_error(truth, prediction)),
        "RMSE": pytest.approx(root_mean_squared_error(truth, prediction)),
        "r2": pytest.approx(r2_score(means[target], means[f"{target}_prediction"])),
        "n": len(frame),
        "n_events": frame["group"].nunique(),
    }


def part_of(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: figures[name] for name in ("MAE", "RMSE", "r2", "n", "n_events")}


def test_each_target_has_its_figures_and_those_of_known_and_new_domains_apart() -> None:
    frame = make_frame()
    report = report_of(frame, ["1", "2", "3"], MEANS)
    for target in TARGETS:
        assert part_of(report[target]) == expected(frame, target)
        assert report[target]["in_domain"] == expected(frame[frame["domain"].isin(["1", "2"])], target)
        assert report[target]["out_of_domain"] == expected(frame[frame["domain"] == "99"], target)


def test_r2_is_of_groups_as_they_are_pooled() -> None:
    frame = make_frame()
    frame["a_weight"] = np.random.default_rng(5).normal(0, 2, len(frame))
    report = report_of(frame, ["1", "2"], MEANS)
    weighted = [
        (rows["a"].iloc[0], np.average(rows["a_prediction"], weights=np.exp(rows["a_weight"])))
        for _, rows in frame.groupby("group")
    ]
    assert report["a"]["r2"] == pytest.approx(r2_score(*zip(*weighted, strict=True)))
    assert report["a"]["MAE"] == pytest.approx(mean_absolute_error(frame["a"], frame["a_prediction"]))


def test_an_image_whose_domain_is_not_known_is_neither_in_nor_out_of_domain() -> None:
    frame = make_frame().assign(domain=None)
    report = report_of(frame, ["1", "2"], MEANS)
    assert report["a"]["in_domain"]["n"] == report["a"]["out_of_domain"]["n"] == 0
    assert report["a"]["n"] == len(frame) and report["a"]["r2"] is not None


def test_the_summary_is_the_mean_over_targets() -> None:
    report = report_of(make_frame(), ["1", "2"], MEANS)
    for name in ("r2", "MAE", "RMSE"):
        assert report["summary"][name] == pytest.approx(np.mean([report[t][name] for t in TARGETS]))
        for part in ("in_domain", "out_of_domain", "mean_predictor"):
            assert report["summary"][part][name] == pytest.approx(np.mean([report[t][part][name] for t in TARGETS]))


def test_every_result_stands_beside_that_of_always_predicting_the_training_mean() -> None:
    frame = make_frame()
    report = report_of(frame, ["1", "2"], MEANS)
    for target in TARGETS:
        guess = frame.assign(**{f"{target}_prediction": MEANS[target]})
        assert part_of(report[target]["mean_predictor"]) == expected(guess, target)
        known = guess[guess["domain"].isin(["1", "2"])]
        assert report[target]["mean_predictor"]["in_domain"] == expected(known, target)
        assert report[target]["mean_predictor"]["r2"] <= 0


@given(st.integers(1, 40), st.randoms(use_true_random=False))
@settings(max_examples=20, deadline=None)
def test_batches_of_unequal_size_cannot_change_a_figure(size: int, random: Any) -> None:
    """Figures are of all images at once, whatever order and pieces the predictions came in (mistake 7)."""
    frame = make_frame()
    order = list(range(len(frame)))
    random.shuffle(order)
    pieces = [frame.iloc[order[i : i + size]] for i in range(0, len(frame), size)]
    together = report_of(pd.concat(pieces), ["1", "2"], MEANS)
    assert together["summary"]["MAE"] == pytest.approx(
        float(np.mean([np.abs(frame[t] - frame[f"{t}_prediction"]).mean() for t in TARGETS]))
    )
    assert together["a"]["r2"] == pytest.approx(report_of(frame, ["1", "2"], MEANS)["a"]["r2"])


def test_all_domains_known_leaves_null_out_of_domain_with_the_reason() -> None:
    report = report_of(make_frame().assign(domain="1"), ["1"], MEANS)
    assert report["a"]["out_of_domain"] == {"MAE": None, "r2": None, "RMSE": None, "n": 0, "n_events": 0}
    assert report["summary"]["out_of_domain"]["r2"] is None
    assert "a, out_of_domain: no images" in report["summary"]["warnings"]
    assert report["summary"]["r2"] is not None


def test_predictions_that_are_not_finite_are_null_with_the_reason_where_they_stand() -> None:
    frame = make_frame()
    frame.loc[frame["domain"] == "99", "a_prediction"] = np.nan
    report = report_of(frame, ["1", "2"], MEANS)
    assert report["a"]["MAE"] is None and report["a"]["out_of_domain"]["r2"] is None
    assert report["a"]["in_domain"]["r2"] is not None and report["b"]["MAE"] is not None
    assert report["summary"]["MAE"] is None and report["summary"]["in_domain"]["MAE"] is not None
    assert report["summary"]["warnings"] == ["a, all: predictions are not finite", "a, out_of_domain: predictions are not finite"]


def test_weights_that_are_not_finite_are_like_predictions_that_are_not() -> None:
    frame = make_frame()
    frame.loc[3, "a_weight"] = np.nan
    report = report_of(frame, ["1", "2"], MEANS)
    assert report["a"]["r2"] is None and report["b"]["r2"] is not None
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_one_group_has_an_error_but_no_r2_and_says_why() -> None:
    frame = make_frame(3).assign(group="e0", a=0.1, b=0.2)
    report = report_of(frame, ["1", "2"], MEANS)
    assert report["a"]["MAE"] is not None and report["a"]["r2"] is None
    assert "a, all: R² is not defined for 1 group(s) with the same target" in report["summary"]["warnings"]


def test_a_complete_report_has_no_warnings() -> None:
    assert report_of(make_frame(), ["1", "2"], MEANS)["summary"]["warnings"] == []


anything = st.floats(width=32)  # NaN, infinities and the largest float32 among them


@given(
    st.integers(0, 6).flatmap(
        lambda n: st.tuples(
            arrays("float32", (6, n), elements=anything),
            st.lists(st.sampled_from(["e1", "e2"]), min_size=n, max_size=n),
            st.lists(st.sampled_from(["1", "99", None]), min_size=n, max_size=n),
        )
    )
)
@settings(deadline=None, max_examples=60)
def test_a_report_is_valid_json_whatever_a_model_predicts(sample: Any) -> None:
    values, groups, domains = sample
    truth, weights = np.nan_to_num(values[:2], nan=0, posinf=2, neginf=-2).clip(-2, 2), values[4:]
    frame = pd.DataFrame({"group": groups, "domain": pd.Series(domains, dtype=object)})
    for i, target in enumerate(TARGETS):
        frame[target], frame[f"{target}_prediction"], frame[f"{target}_weight"] = truth[i], values[2 + i], weights[i]
    with np.errstate(all="ignore"):
        report = report_of(frame, ["1"], MEANS)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
