"""Figures of classifiers: equal to scikit-learn's where it has them, for weighted rows as for repeated ones, and in words."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import write_json, write_table
from pipeline.errors import UserError
from pipeline.metrics.classification import FIGURES, average_precision, roc_auc
from pipeline.metrics.classification_report import Said, classification_report
from pipeline.metrics.figures import Training
from pipeline.metrics.groups import Prediction
from pipeline.metrics.hybrids import challenge_scores, hybrid_report
from pipeline.metrics.intervals import central, draws
from pipeline.tasks import load_task
from tests.bootstrap import Rows, bootstrap

SCORES = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=50)


def figure(name: str, truth: np.ndarray, p: np.ndarray) -> float | None:
    """One of FIGURES for classes as a 1 among 0s [N, C]."""
    return FIGURES[name].value(truth.argmax(axis=1), p)


def figures(truth: np.ndarray, p: np.ndarray) -> dict[str, float | None]:
    return {name: figure(name, truth, p) for name in FIGURES}


def drawn(name: str, truth: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return FIGURES[name].drawn(truth.argmax(axis=1), p, weights=weights)


def made_up(n: int, n_classes: int, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """True classes of which some may be absent, and probabilities that know something of them."""
    rng = np.random.default_rng(seed)
    truth = np.eye(n_classes)[rng.integers(n_classes, size=n)]
    p = 0.7 * rng.dirichlet(np.ones(n_classes), n) + 0.3 * np.eye(n_classes)[rng.integers(n_classes, size=n)] * 0.5
    p = p + 0.4 * truth
    p /= p.sum(axis=1, keepdims=True)
    return truth, np.round(p * 4) / 4 if ties else p


def by_scikit_learn(truth: np.ndarray, p: np.ndarray, weights: np.ndarray | None = None) -> dict[str, float]:
    """The figures that scikit-learn has, for data in which every class is there."""
    of, said = truth.argmax(axis=1), p.argmax(axis=1)
    columns = [0] if truth.shape[1] == 2 else range(truth.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of probabilities that were rounded
        return {
            "roc_auc": np.mean([sk.roc_auc_score(truth[:, i], p[:, i], sample_weight=weights) for i in columns]),
            "average_precision": np.mean(
                [sk.average_precision_score(truth[:, i], p[:, i], sample_weight=weights) for i in columns]
            ),
            "accuracy": sk.accuracy_score(of, said, sample_weight=weights),
            "balanced_accuracy": sk.balanced_accuracy_score(of, said, sample_weight=weights),
            "log_loss": sk.log_loss(of, p, sample_weight=weights),
            "brier": sk.brier_score_loss(of, p, sample_weight=weights)
            if truth.shape[1] > 2
            else sk.brier_score_loss(truth[:, 0], p[:, 0], sample_weight=weights),
        }


# ---------------------------------------------------------------- figures
@pytest.mark.parametrize("n_classes", [2, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_figures_are_scikit_learns(n_classes: int, seed: int) -> None:
    truth, p = made_up(200, n_classes, seed)
    found = figures(truth, p)
    assert found == {**found, **{k: pytest.approx(v, abs=1e-12) for k, v in by_scikit_learn(truth, p).items()}}


@pytest.mark.parametrize("n_classes", [2, 3])
def test_figures_of_weighted_rows_are_scikit_learns(n_classes: int) -> None:
    truth, p = made_up(120, n_classes, 1, ties=True)
    weights = np.random.default_rng(2).integers(0, 4, size=(120, 3)).astype("float64")
    for i in range(3):
        for name, value in by_scikit_learn(truth, p, weights[:, i]).items():
            if name != "log_loss" or (p > 0).all():
                assert drawn(name, truth, p, weights)[i] == pytest.approx(value, abs=1e-9), name


@given(SCORES)
def test_detection_with_ties_is_scikit_learns(rows: list[tuple[int, bool]]) -> None:
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    if positive.any():
        assert average_precision(positive, scores) == pytest.approx(sk.average_precision_score(positive, scores))
    if positive.any() and not positive.all():
        assert roc_auc(positive, scores) == pytest.approx(sk.roc_auc_score(positive, scores))


@given(SCORES)
def test_an_area_depends_on_the_order_of_scores_alone_and_reversing_it_mirrors_it(rows: list[tuple[int, bool]]) -> None:
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    area = roc_auc(positive, scores.astype(float))
    assert roc_auc(positive, np.exp(scores)) == area and roc_auc(positive, np.zeros(len(scores))) in (0.5, None)
    if area is not None:
        assert roc_auc(positive, -scores) == pytest.approx(1 - area) == pytest.approx(roc_auc(~positive, scores))


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy_of_bins() -> None:
    p = np.array([[0.9, 0.1]] * 10 + [[0.4, 0.6]] * 10)
    truth = np.array([[1.0, 0.0]] * 7 + [[0.0, 1.0]] * 3 + [[0.0, 1.0]] * 10)
    assert figure("calibration_error", truth, p) == pytest.approx((0.2 + 0.4) / 2)
    edges = np.array([[1.0, 0.0], [14 / 15, 1 / 15]])  # a bin holds its upper end: these are two bins
    assert figure("calibration_error", np.eye(2)[::-1], edges) == pytest.approx((1 + 1 / 15) / 2)


def test_a_certain_mistake_has_a_finite_loss() -> None:
    assert figure("log_loss", np.eye(2), np.eye(2)[::-1]) == pytest.approx(-np.log(np.finfo(float).eps))


def test_classes_that_are_absent_are_left_out_of_means() -> None:
    truth, p = made_up(60, 3)
    more = np.hstack([truth, np.zeros((60, 1))]), np.hstack([p, np.zeros((60, 1))])
    for name in ("roc_auc", "average_precision", "balanced_accuracy", "accuracy", "log_loss"):
        assert figure(name, *more) == pytest.approx(figure(name, truth, p))


def test_what_is_not_defined_is_none() -> None:
    ones, p = np.array([[1.0, 0.0]] * 4), np.array([[0.8, 0.2]] * 4)
    assert figure("roc_auc", ones, p) is None and figure("average_precision", 1 - ones, p) is None
    assert figures(ones, p)["accuracy"] == 1
    assert set(figures(ones, np.where(p > 0.5, np.nan, p)).values()) == {None}
    assert set(figures(ones[:0], p[:0]).values()) == {None}
    assert np.isnan(drawn("accuracy", ones, p * np.inf, np.ones((4, 2)))).all()
    assert roc_auc(np.array([], bool), np.array([])) is None and average_precision(np.array([], bool), np.array([])) is None


def test_selection_knows_of_which_figures_less_is_better() -> None:
    truth, p = made_up(100, 2)
    for name in FIGURES:
        good, bad = figure(name, truth, 0.9 * truth + 0.05), figure(name, truth, 0.9 * (1 - truth) + 0.05)
        assert good is not None and bad is not None and (good < bad) == FIGURES[name].lower_is_better
    assert figure("roc_auc", truth.astype("float32"), p.astype("float32")) == pytest.approx(figures(truth, p)["roc_auc"])


# ---------------------------------------------------------------- draws
@settings(max_examples=20)
@given(st.lists(st.sampled_from("abcdef"), min_size=4, max_size=30), st.integers(0, 9))
def test_weights_are_the_draws_of_the_bootstrap(images: list[str], seed: int) -> None:
    truth, p = made_up(len(images), 2, seed, ties=True)

    def of_rows(rows: Rows) -> float | None:
        return figure("roc_auc", truth[rows], p[rows])

    found = np.concatenate([drawn("roc_auc", truth, p, weights) for weights in draws(images, seed, 30)])
    expected, interval = bootstrap(of_rows, images, seed, n=30), central(found)
    assert len(found) == 30 and (expected is None) == (interval is None)
    if expected and interval:
        assert interval == pytest.approx([expected.low, expected.high], abs=1e-6)
        assert np.isfinite(found).sum() == expected.n


def test_draws_come_in_blocks_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = draws(list("aabcd"), 0, 7)
    monkeypatch.setattr("pipeline.metrics.intervals.AT_ONCE", 12)
    parts = list(draws(list("aabcd"), 0, 7))
    assert [part.shape for part in parts] == [(5, 2)] * 3 + [(5, 1)] and (np.hstack(parts) == whole).all()


# ---------------------------------------------------------------- the report
STAT = ("stat=hybrid", "stat=non-hybrid")
SPECIES = tuple(f"species={name}" for name in ("erato", "melpomene", "cydno"))


def table(targets: tuple[str, ...], n: int = 90, seed: int = 0) -> pd.DataFrame:
    """Three photographs an image, in two domains, of two species and an unknown one."""
    rng = np.random.default_rng(seed)
    truth, p = (
        np.repeat(np.eye(len(targets))[rng.integers(len(targets), size=n // 3)], 3, axis=0),
        made_up(n, len(targets), seed)[1],
    )
    frame = pd.DataFrame(np.hstack([truth, p]), columns=[*targets, *(f"{t}_prediction" for t in targets)])
    places = {
        "domain": ["major" if 3 * i < 2 * n else "mimic" for i in range(n)],
        "species": [("x", "y", None)[3 * i // n] for i in range(n)],
    }
    return frame.assign(id=[f"p{i}" for i in range(n)], group=[f"g{i // 3}" for i in range(n)], **places)


def report(frame: pd.DataFrame, targets: tuple[str, ...], shares: tuple[float, ...] = (0.2, 0.8)) -> dict[str, Any]:
    truth, p = (frame[[f"{target}{end}" for target in targets]].to_numpy("float64") for end in ("", "_prediction"))
    classes = [target.partition("=")[2] for target in targets]
    return classification_report(frame, Said(truth.argmax(axis=1), p), classes, shares)


def hybrids(frame: pd.DataFrame) -> dict[str, float | None]:
    return hybrid_report(frame, frame[STAT[0]].to_numpy() == 1, frame[f"{STAT[0]}_prediction"].to_numpy())


def test_a_report_of_two_classes_has_the_figures_of_detection() -> None:
    frame = table(STAT)
    truth, p = frame[list(STAT)].to_numpy(), frame[[f"{t}_prediction" for t in STAT]].to_numpy()
    found = report(frame, STAT)
    summary, hybrid = found["summary"], found["classes"]["hybrid"]
    assert {name: summary[name] for name in FIGURES} == figures(truth, p)
    assert (summary["positive"], summary["classes"]) == ("hybrid", ["hybrid", "non-hybrid"])
    is_worse = summary["log_loss"] > summary["majority"]["log_loss"]
    assert is_worse and "is worse than always saying how frequent each class is" in summary["warnings"][0]
    of, said = truth[:, 0] > 0, p[:, 0] >= p[:, 1]
    assert hybrid == pytest.approx({
        "n": of.sum(), "recall": sk.recall_score(of, said), "precision": sk.precision_score(of, said),
        "roc_auc": sk.roc_auc_score(of, p[:, 0]),
    })  # fmt: skip
    assert summary["confusion"] == sk.confusion_matrix(~of, ~said).tolist()
    mimics = frame[frame["domain"] == "mimic"]
    assert found["by_domain"]["mimic"] == pytest.approx({
        "n": 30, "n_positive": mimics[STAT[0]].sum(),
        "recall": sk.recall_score(of[60:], said[60:]), "specificity": sk.recall_score(~of[60:], ~said[60:]),
        "roc_auc": sk.roc_auc_score(of[60:], p[60:, 0]),
    })  # fmt: skip
    assert set(found["by_species"]) == {"x", "y"} and "by_species" not in report(frame.assign(species=None), STAT)


def test_a_report_of_many_classes_has_each_against_the_rest() -> None:
    found = report(table(SPECIES), SPECIES, (0.5, 0.3, 0.2))
    assert found["summary"]["positive"] is None and list(found["classes"]) == [target.partition("=")[2] for target in SPECIES]
    areas = [block["roc_auc"] for block in found["classes"].values()]
    assert found["summary"]["roc_auc"] == pytest.approx(np.mean(areas))
    assert found["by_domain"]["major"].keys() == {"n", "accuracy", "balanced_accuracy"}
    assert np.array(found["summary"]["confusion"]).sum() == 90
    many = tuple(f"s={i}" for i in range(51))
    assert "confusion" not in report(table(many), many, (1 / 51,) * 51)["summary"]


def test_intervals_hold_their_figure_and_photographs_of_one_image_make_them_no_narrower() -> None:
    once = table(STAT, 300, 3)
    alone = once.assign(group=once["id"])
    twice = pd.concat([alone, alone], ignore_index=True)
    narrow, wide = report(alone, STAT)["summary"], report(twice, STAT)["summary"]
    assert wide["intervals"]["roc_auc"] == pytest.approx(narrow["intervals"]["roc_auc"], abs=1e-6)
    for name, (low, high) in narrow["intervals"].items():
        assert low < narrow[name] < high


def test_images_of_a_group_are_averaged_before_its_class_is_said() -> None:
    frame = table(STAT, 6).assign(**{STAT[0]: [1.0] * 3 + [0.0] * 3, STAT[1]: [0.0] * 3 + [1.0] * 3})
    p = np.array([0.1, 0.9, 0.9, 0.6, 0.2, 0.45])
    found = report(frame.assign(**{f"{STAT[0]}_prediction": p, f"{STAT[1]}_prediction": 1 - p}), STAT)["summary"]
    assert found["accuracy"] == pytest.approx(4 / 6) and found["roc_auc"] < 1
    assert (found["by_group"]["accuracy"], found["by_group"]["roc_auc"], found["by_group"]["n"]) == (1, 1, 2)


def test_always_saying_the_most_frequent_class_is_the_measure_to_beat() -> None:
    frame = table(STAT)
    found = report(frame, STAT, (0.3, 0.7))["summary"]["majority"]
    assert found["class"] == "non-hybrid" and found["accuracy"] == pytest.approx(frame[STAT[1]].mean())
    assert found["balanced_accuracy"] == 0.5 == found["roc_auc"]
    share = frame[STAT[0]].mean()
    assert found["log_loss"] == pytest.approx(-share * np.log(0.3) - (1 - share) * np.log(0.7))


def test_predictions_that_are_not_finite_make_no_figure_and_a_warning() -> None:
    frame = table(STAT)
    frame.loc[3, f"{STAT[0]}_prediction"] = np.nan
    found = report(frame, STAT)
    assert found["summary"]["warnings"] == ["predictions of 1 of 90 images are not finite: no figure is given"]
    blocks = [found["summary"], found["classes"]["hybrid"], found["by_domain"]["major"]]
    assert {block["roc_auc"] for block in blocks} == {None} and found["summary"]["confusion"] is None
    assert set(found["summary"]["intervals"].values()) == {None}


def test_a_class_without_images_is_warned_of_and_no_images_are_no_error() -> None:
    frame = table(SPECIES).assign(**{SPECIES[0]: 0.0, SPECIES[1]: 0.0, SPECIES[2]: 1.0})
    found = report(frame, SPECIES, (0.5, 0.3, 0.2))
    assert found["summary"]["warnings"] == ["no images of erato, melpomene: nothing is known of how they are recognised"]
    assert found["classes"]["erato"]["recall"] is None and found["summary"]["roc_auc"] is None
    assert report(frame[:0], SPECIES, (0.5, 0.3, 0.2))["summary"]["accuracy"] is None


# ---------------------------------------------------------------- the butterflies' challenge
def test_the_challenges_scores_are_there_only_where_domains_are_kinds() -> None:
    frame = table(STAT)
    scores, truth = frame[f"{STAT[0]}_prediction"].to_numpy(), frame[STAT[0]].to_numpy() == 1
    found = hybrids(frame)
    assert found == challenge_scores(scores, truth, frame["domain"].to_numpy(str))
    assert found["A_score_major_recall"] is not None and found["A_score_minor_recall"] is None
    assert hybrids(frame.assign(domain="D01")) == {} == hybrids(frame.assign(domain=None))
    broken = hybrids(frame.assign(**{f"{STAT[0]}_prediction": np.nan}))
    assert broken.keys() == found.keys() and set(broken.values()) == {None}


def test_no_tie_is_made_by_rounding() -> None:
    """What is submitted keeps the order of probabilities that both round to 1.0000."""
    frame = table(STAT, 6).assign(domain="minor", **{STAT[0]: [0.0, 0, 0, 0, 0, 1]})
    frame[f"{STAT[0]}_prediction"] = [0.1, 0.2, 0.3, 0.4, 0.99996, 0.99999]
    assert hybrids(frame)["A_score_minor_recall"] == 1


# ---------------------------------------------------------------- many classes
@pytest.mark.jobs
def test_of_a_thousand_classes_files_stay_small_and_tell_what_can_be_compared(tmp_path: Path) -> None:
    n, n_classes, task = 4000, 1000, load_task("classify")
    rng = np.random.default_rng(0)
    names = [f"species={i:03}" for i in range(n_classes)]
    labels = np.repeat(rng.integers(n_classes, size=n // 2), 2)
    raw = rng.normal(size=(n, n_classes)).astype("float32")
    raw[np.arange(n), labels] += 3
    p = np.exp(raw) / np.exp(raw).sum(axis=1, keepdims=True)
    ids = {"id": [f"i{i // 4}" for i in range(n)], "group": [f"g{i // 2}" for i in range(n)], "domain": None}
    predictions = task.predictions(pd.DataFrame(ids), labels, names, Prediction(p, p * (1 - p), np.zeros_like(p)))
    assert len(task.answer(predictions)) == n_classes and task.validation_table(predictions) is None

    blocks = task.report(predictions, Training([], dict.fromkeys(names, 1 / n_classes)))
    trial, described = TrialDir(tmp_path), task.describe(blocks)
    write_json(trial.results, blocks | described)
    assert trial.results.stat().st_size < 300_000 and len(described["figures"]) < 20 and "confusion" not in blocks["summary"]
    assert blocks["summary"]["intervals"].keys() == {"balanced_accuracy", "accuracy"}, "a thousand draws of areas take long"

    images, groups = task.tables(predictions)
    for table, rows in ((images, n), (groups, n // 2)):
        assert 5 * rows <= len(table) <= 6 * rows and table["truth"].sum() == rows
    write_table(trial.predictions, images.sample(frac=1, random_state=0))
    assert trial.predictions.stat().st_size < 1_000_000
    for name in ("accuracy", "balanced_accuracy", "log_loss", "calibration_error"):
        tested = task.tested(trial, name)
        assert tested.value(FIGURES[name]) == pytest.approx(blocks["summary"][name]), name
    assert len(tested.index) == n and len(tested.names) == n_classes
    with pytest.raises(UserError, match="of so many classes only the first are kept; choose balanced_accuracy, accuracy"):
        task.tested(trial, "roc_auc")
