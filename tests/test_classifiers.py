"""Classifiers of scikit-learn as heads: fitted as they say, saved without pickle, and scored the same by numpy alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.config import classifiers as classifier_blocks
from pipeline.config.head import Head
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError, WorkError
from pipeline.features.bank import TensorBank
from pipeline.metrics.classification import FIGURES
from pipeline.models import plain
from pipeline.models.classifiers import Classifier
from pipeline.models.estimators import OfSome, Rows
from pipeline.models.metadata import Names
from pipeline.signals import StopFlag
from pipeline.training.classifiers import fit_classifier, fit_path, grouped_folds
from pipeline.training.run import Fitted, Run, Stop
from pipeline.training.samples import Samples, Targets, predict
from tests.small import named

CLASSIFIER_KINDS = [kind for kind, head in Head.kinds.items() if head.of == "classes" and not head.reads_texts]
CPU = torch.device("cpu")
ONE_CLASS = ("mahalanobis", "knn_distance")
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in CLASSIFIER_KINDS),
    ("svc", {"kernel": "linear", "balanced": False}),
    ("svc", {"gamma": 0.3, "C": 5.0}),
    ("knn", {"weights": "distance", "k": 3}),
    ("lda", {"shrinkage": None}),
    ("lda", {"shrinkage": 0.3}),
    ("gaussian_process", {"length_scale": 3.0}),
    ("hist_gradient_boosting", {"rounds": 7, "leaves": 4, "min_leaf": 5}),
]


def make_head(kind: str, **head: Any) -> Any:
    return make_config(kind, **head).model.head


def make_config(kind: str, folds: int | None = None, metric: str = "roc_auc", seed: int = 0, **head: Any) -> Config:
    return Config.model_validate(
        named(
            {
                "experiment": "x",
                "task": "classify",
                "seed": seed,
                "data": {"label": "kind"},
                "loss": {"kind": "cross_entropy"},
                "model": {"head": {"kind": kind, **head}, "normalize": False},
                "select": {"folds": folds, "metric": metric},
            }
        )
    )


def make_rows(n: int = 90, width: int = 4, n_classes: int = 2, seed: int = 0, apart: float = 1.0) -> Rows:
    """Photographs, two of each image, of classes whose means lie apart; features of unlike scales."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) // 2
    labels = groups % n_classes
    x = (rng.normal(size=(n, width)) + apart * labels[:, None]) * np.logspace(-2, 2, width) + 5
    parents = np.where(labels == 0, -1, groups % 3)
    return Rows(x.astype("float32").astype("float64"), labels, parents, groups)


def fit(kind: str, rows: Rows, **head: Any) -> tuple[Any, Any]:
    made = make_head(kind, **head)
    return made, fit_path(made, rows, [f"class {i}" for i in range(n_classes(rows))], 0)[-1]


def n_classes(rows: Rows) -> int:
    return int(rows.labels.max()) + 1


def make_samples(rows: Rows, auxiliary: Any = None) -> Samples:
    codes = rows.labels[:, None] if auxiliary is None else np.column_stack([rows.labels, auxiliary])
    n_names = 0 if auxiliary is None else int(np.max(auxiliary)) + 1
    bank = TensorBank(torch.tensor(rows.x, dtype=torch.float32), CPU, "device")
    names = Names().metadata({"domain": [None] * len(rows)})
    return Samples(bank, Targets(torch.tensor(codes), (n_classes(rows), n_names)), names, rows.groups, n_classes(rows))


def fit_it(model: Classifier, train: Samples, validation: Samples, config: Config) -> Fitted:
    run = Run(TrialDir(Path("nowhere")), "", "", config, Stop(StopFlag(), lambda: True))
    return fit_classifier(model, train, validation, run)


def plain_arrays(estimator: Any, head: Any) -> Any:
    return head.recipe().arrays(estimator.fitted)


# ---------------------------------------------------------------- plain arrays
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize(("kind", "head"), VARIANTS, ids=str)
def test_numpy_alone_says_what_scikit_learn_says(kind: str, head: dict[str, Any], n_classes: int) -> None:
    """Near the training images, on them, far away and very far away."""
    if kind in ONE_CLASS and n_classes > 2:
        return
    rows = make_rows(n_classes=n_classes)
    made, estimator = fit(kind, rows, **head)
    arrays = plain_arrays(estimator, made)
    for x in (rows.x, make_rows(seed=1, n_classes=n_classes).x, *(rows.x * far for far in (-1e3, 1e9, 1e30))):
        found = plain.probabilities(kind, arrays, x)
        np.testing.assert_allclose(found, estimator.predict_proba(x), atol=1e-6, rtol=0)
        assert np.isfinite(found).all() and found.shape == (len(x), n_classes)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(["svc", "sgd", "knn", "logistic", "lda", "gaussian_process"]),
    st.integers(24, 60),
    st.integers(1, 70),
    st.integers(2, 4),
    st.integers(0, 999),
)
def test_whatever_the_shape_of_the_data(kind: str, n: int, width: int, n_classes: int, seed: int) -> None:
    rows = make_rows(n, width, n_classes, seed)
    made, estimator = fit(kind, rows, **({"max_iter": 20} if kind == "sgd" else {}))
    x = np.vstack([rows.x, make_rows(n, width, n_classes, seed + 1).x])
    found = plain.probabilities(kind, plain_arrays(estimator, made), x)
    np.testing.assert_allclose(found, estimator.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize(("kind", "head"), VARIANTS, ids=str)
def test_log_odds_are_of_the_first_class_and_go_on_where_probabilities_have_ended(kind: str, head: dict[str, Any]) -> None:
    rows = make_rows()
    made, estimator = fit(kind, rows, **head)
    arrays, x = plain_arrays(estimator, made), make_rows(seed=1).x
    odds, p = plain.log_odds(kind, arrays, x), estimator.predict_proba(x)[:, 0]
    assert odds.shape == (len(x),)
    np.testing.assert_allclose(1 / (1 + np.exp(-odds)), p, atol=1e-3 if kind == "gaussian_process" else 2e-6)
    assert np.isfinite(plain.log_odds(kind, arrays, x * 1e30)).all()


@pytest.mark.parametrize("kind", ["logistic", "lda", "sgd", "mahalanobis", "knn_distance"])
def test_scores_far_out_keep_their_order_though_their_probabilities_are_one(kind: str) -> None:
    rows = make_rows(apart=6)
    made, estimator = fit(kind, rows)
    arrays = plain_arrays(estimator, made)
    outwards = rows.x.mean(0) - np.arange(1, 2000, 100)[:, None] * np.logspace(-2, 2, 4)
    assert len(set(plain.probabilities(kind, arrays, outwards)[:, 0])) < len(outwards)
    assert (np.diff(plain.log_odds(kind, arrays, outwards)) > 0).all()


def test_a_certain_gaussian_process_still_tells_scores_apart() -> None:
    arrays = plain_arrays(*reversed(fit("gaussian_process", make_rows())))
    arrays |= {"residual": arrays["residual"] * 1e3, "root": arrays["root"] * 0}
    x = make_rows(seed=1).x
    odds = plain.log_odds("gaussian_process", arrays, x)
    assert odds.max() > 40 and np.isfinite(odds).all() and len(set(odds)) == len(odds)


def test_where_no_class_is_probable_all_are_alike() -> None:
    flat = {"mean": np.zeros(2), "scale": np.ones(2), "weights": np.zeros((2, 3)), "bias": np.zeros(3)}
    said = plain.probabilities("sgd", {**flat, "slope": np.ones(3), "intercept": np.full(3, -1e4)}, np.ones((4, 2)))
    np.testing.assert_allclose(said, 1 / 3)


def test_log_odds_are_of_two_classes() -> None:
    for kind in ("knn", "logistic", "gaussian_process"):
        made, estimator = fit(kind, make_rows(n_classes=3))
        with pytest.raises(ValueError, match="of two classes"):
            plain.log_odds(kind, plain_arrays(estimator, made), make_rows().x)


def test_the_module_that_is_copied_into_submissions_needs_numpy_alone(tmp_path: Path) -> None:
    shutil.copy(plain.__file__, tmp_path / "alone.py")
    script = "import sys, alone; sys.exit(any(m in sys.modules for m in ('torch', 'sklearn', 'scipy', 'pandas', 'pipeline')))"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, env={"PYTHONSAFEPATH": ""})


# ---------------------------------------------------------------- one class
def test_mahalanobis_is_the_distance_to_the_nearest_parents_gaussian_of_one_covariance() -> None:
    rows = make_rows()
    made, estimator = fit("mahalanobis", rows)
    negative = rows.labels == 1
    z = StandardScaler().fit(rows.x[negative]).transform(rows.x)
    inside, parents = z[negative], rows.parents[negative]
    centres = np.stack([inside[parents == parent].mean(0) for parent in range(3)])
    covariance = LedoitWolf(assume_centered=True).fit(inside - centres[parents])
    expected = np.sqrt(np.min([covariance.mahalanobis(z - centre) for centre in centres], 0))
    np.testing.assert_allclose(distance_of(made, estimator, rows.x), expected, rtol=1e-6)


def test_knn_distance_is_the_mean_distance_to_the_nearest_that_are_not_positive() -> None:
    rows = make_rows()
    made, estimator = fit("knn_distance", rows, k=3)
    scaler = StandardScaler().fit(rows.x[rows.labels == 1])
    nearest = NearestNeighbors(n_neighbors=3).fit(scaler.transform(rows.x[rows.labels == 1]))
    expected = nearest.kneighbors(scaler.transform(make_rows(seed=1).x))[0].mean(1)
    np.testing.assert_allclose(distance_of(made, estimator, make_rows(seed=1).x), expected, rtol=1e-6)


def distance_of(head: Any, estimator: OfSome, x: Any) -> Any:
    arrays = {**estimator.fitted.arrays, "slope": np.ones(1), "intercept": np.zeros(1)}
    return plain.log_odds(head.kind, arrays, x)


@pytest.mark.parametrize("kind", ONE_CLASS)
@pytest.mark.parametrize("apart", [4.0, 0.0], ids=["far", "among them"])
def test_what_is_far_is_more_probably_positive_even_where_positives_are_not(kind: str, apart: float) -> None:
    rows = make_rows(apart=apart, seed=3)
    if apart == 0:  # positives in the very middle
        rows.x[rows.labels == 0] = rows.x[rows.labels == 1].mean(0)
    made, estimator = fit(kind, rows)
    x = rows.x.mean(0) + np.arange(5)[:, None] * 10 * np.logspace(-2, 2, 4)
    order = np.argsort(distance_of(made, estimator, x))
    assert (np.diff(estimator.predict_proba(x)[order, 0]) >= 0).all()
    assert (np.diff(plain.log_odds(kind, plain_arrays(estimator, made), x)[order]) > 0).all()


def test_the_line_of_a_one_class_score_is_of_distances_to_other_images() -> None:
    """Two photographs of an image are all but the same: among those fitted on, each would be at home."""
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 2
    x = rng.normal(size=(100, 20))[groups] + 1e-3 * rng.normal(size=(200, 20))
    labels = (groups >= 20).astype(int)  # and positives are like the others
    rows = Rows(x, labels, np.full(200, -1), groups)
    _, estimator = fit("knn_distance", rows, k=1)
    other = Rows(rng.normal(size=(300, 20)), np.ones(300, int), np.full(300, -1), np.arange(300))
    assert abs(estimator.predict_proba(other.x)[:, 0].mean() - 0.2) < 0.1


def test_images_without_a_parent_are_no_parent_class() -> None:
    rows = make_rows()
    told = np.where(np.arange(len(rows)) < 10, -1, rows.parents)
    made, estimator = fit("mahalanobis", Rows(rows.x, rows.labels, told, rows.groups))
    assert plain_arrays(estimator, made)["centres"].shape == (3, 4)


@pytest.mark.parametrize("parents", ["unknown", "one image each"])
def test_without_parents_all_that_is_not_positive_is_one_class(parents: str) -> None:
    rows = make_rows()
    told = np.full(len(rows), -1) if parents == "unknown" else np.arange(len(rows))
    made, estimator = fit("mahalanobis", Rows(rows.x, rows.labels, told, rows.groups))
    assert plain_arrays(estimator, made)["centres"].shape == (1, 4)
    np.testing.assert_allclose(plain_arrays(estimator, made)["centres"], 0, atol=1e-9)


# ---------------------------------------------------------------- fitting
def test_all_penalties_of_logistic_regression_are_those_of_fits_of_their_own() -> None:
    rows = make_rows(n=200, width=6)
    Cs = (1e-3, 1e-1, 1.0, 10.0)
    for C, found in zip(Cs, fit_path(make_head("logistic", Cs=Cs), rows, "ab", 0), strict=True):
        alone = make_pipeline(StandardScaler(), LogisticRegression(C=C, class_weight="balanced", tol=1e-8))
        expected = alone.fit(rows.x, rows.labels).predict_proba(rows.x)
        np.testing.assert_allclose(found.predict_proba(rows.x), expected, atol=2e-3)


def test_each_penalty_starts_where_the_one_before_has_ended() -> None:
    first, second = fit_path(make_head("logistic", Cs=(1.0, 1.001)), make_rows(n=200, width=6), "ab", 0)
    assert second.fitted[-1].n_iter_[0] < first.fitted[-1].n_iter_[0] / 2


def test_trees_grow_on_without_holding_out_images_that_other_photographs_betray() -> None:
    made, estimator = fit("hist_gradient_boosting", make_rows(apart=0), rounds=40, min_leaf=5)
    assert len(plain_arrays(estimator, made)["value"]) == 40


def test_a_calibrated_model_does_not_keep_its_folds() -> None:
    assert fit("svc", make_rows())[1].fitted.cv is None


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "balanced_accuracy", "log_loss"])
def test_the_penalty_is_chosen_by_the_metric_on_validation(metric: str) -> None:
    train, validation = make_rows(n=60, width=30, apart=0.5), make_rows(n=200, width=30, apart=0.5, seed=1)
    config = make_config("logistic", metric=metric, Cs=(1e-6, 1e-2, 1e4))
    model = Classifier(config.model.head, "ab", normalize=False)  # type: ignore[arg-type]
    fitted = fit_it(model, make_samples(train), make_samples(validation), config)
    progress, out_of_fold = fitted.progress, fitted.left_out
    fits = fit_path(config.model.head, train, "ab", 0)  # type: ignore[arg-type]
    values = [FIGURES[metric].value(validation.labels, fit.predict_proba(validation.x)) for fit in fits]
    best = min(values) if metric == "log_loss" else max(values)  # type: ignore[type-var]
    losses = [FIGURES["log_loss"].value(validation.labels, fit.predict_proba(validation.x)) or 0.0 for fit in fits]
    tied = [i for i, value in enumerate(values) if value == best]  # of these, the one with the better probabilities
    assert (progress.epoch, progress.best_epoch, out_of_fold) == (3, min(tied, key=losses.__getitem__), None)
    assert progress.best_metric == pytest.approx(best)
    said = predict(model, make_samples(validation)).mean  # type: ignore[arg-type]
    assert FIGURES[metric].value(validation.labels, said) == pytest.approx(best, abs=1e-9)  # no ties by rounding


@pytest.mark.parametrize("kind", ["logistic", "svc", "knn_distance"])
def test_with_folds_both_splits_are_fitted_on_and_what_is_said_of_each_image_is_out_of_fold(kind: str) -> None:
    train, validation = make_rows(n=60), make_rows(n=30, seed=1)
    config = make_config(kind, folds=4)
    model = Classifier(config.model.head, "ab", normalize=False)  # type: ignore[arg-type]
    fitted = fit_it(model, make_samples(train), make_samples(validation), config)
    progress, said = fitted.progress, fitted.left_out
    assert said is not None and said.shape == (90, 2)
    np.testing.assert_allclose(said.sum(1), 1)
    truth = np.concatenate([train.labels, validation.labels])
    assert progress.best_metric == pytest.approx(FIGURES["roc_auc"].value(truth, said))
    both = Rows(np.vstack([train.x, validation.x]), truth, np.full(90, -1), np.r_[train.groups, 1000 + validation.groups])
    whole = fit_path(config.model.head, both, "ab", 0)[progress.best_epoch]  # type: ignore[arg-type]
    if kind == "logistic":  # (its fit does not depend on the numbers of groups)
        np.testing.assert_allclose(model.estimator.predict_proba(both.x), whole.predict_proba(both.x), atol=1e-6)
    assert np.abs(said - model.estimator.predict_proba(both.x)).max() > 1e-3


def test_no_image_is_fitted_on_with_another_of_its_image_left_out() -> None:
    """Labels without any rule: who has seen the other photograph knows, and nobody else does."""
    rng = np.random.default_rng(0)
    groups = np.arange(120) // 2
    x = rng.normal(size=(60, 8))[groups]
    rows = Rows(x, rng.integers(0, 2, 60)[groups], np.full(120, -1), groups)
    config = make_config("knn", folds=5, k=1)
    model = Classifier(config.model.head, "ab", normalize=False)  # type: ignore[arg-type]
    half = rows[np.arange(60)], rows[np.arange(60, 120)]
    halves = [Rows(part.x, part.labels, part.parents, part.groups - part.groups.min()) for part in half]
    progress = fit_it(model, *(make_samples(part) for part in halves), config).progress
    assert progress.best_metric is not None and progress.best_metric < 0.75


@pytest.mark.parametrize("kind", CLASSIFIER_KINDS)
def test_the_same_seed_fits_the_same(kind: str) -> None:
    rows = make_rows(n=60)
    said = [fit_path(make_head(kind), rows, "ab", 2**40)[-1].predict_proba(rows.x) for _ in range(2)]
    assert np.array_equal(*said)


def test_another_seed_draws_other_folds() -> None:
    drawn = [[tuple(left) for _, left in grouped_folds(make_rows(), "ab", 5, seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 30), st.integers(2, 8), st.integers(0, 999))
def test_folds_keep_images_together_and_leave_every_class_in(few: int, many: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.r_[np.zeros(few, int), np.ones(many, int)]
    groups = np.repeat(np.arange(few + many), rng.integers(1, 4, few + many))
    rows = Rows(np.zeros((len(groups), 1)), labels[groups], groups, groups)
    folds = grouped_folds(rows, ("few", "many"), n, seed)
    assert 2 <= len(folds) <= min(n, few, many)
    assert sorted(np.concatenate([left for _, left in folds])) == list(range(len(groups)))
    for kept, left in folds:
        assert not set(groups[kept]) & set(groups[left]) and set(rows.labels[kept]) == {0, 1}


def test_auxiliary_columns_are_parents_and_no_classes() -> None:
    rows = make_rows(n=60)
    auxiliary = np.stack([rows.parents, np.full(len(rows), -1)], axis=1)
    auxiliary[rows.labels == 0] = [0, 1]
    config = make_config("mahalanobis")
    model = Classifier(config.model.head, "ab", normalize=False)  # type: ignore[arg-type]
    fit_it(model, *(make_samples(rows, auxiliary),) * 2, config)
    assert model.estimator.fitted.arrays["centres"].shape == (3, 4)
    assert predict(model, make_samples(rows, auxiliary)).mean.shape == (60, 2)  # type: ignore[arg-type]


def test_embeddings_are_normalised_in_training_and_in_prediction_alike() -> None:
    rows = make_rows(n=60)
    config = make_config("logistic", Cs=(1.0,))
    model = Classifier(config.model.head, "ab", normalize=True)  # type: ignore[arg-type]
    fit_it(model, make_samples(rows), make_samples(rows), config)
    longer = Rows(rows.x * 7, rows.labels, rows.parents, rows.groups)
    first, second = (predict(model, make_samples(part)) for part in (rows, longer))  # type: ignore[arg-type]
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-5)
    x = rows.x / np.linalg.norm(rows.x, axis=1, keepdims=True)
    np.testing.assert_allclose(first.mean, model.estimator.predict_proba(x), atol=1e-5)
    assert (first.variance == 1).all() and (first.log_weights == 0).all()


# ---------------------------------------------------------------- what is refused
def few_positives(n: int) -> Rows:
    labels = np.r_[np.zeros(n, int), np.ones(20, int)]
    rng = np.random.default_rng(0)
    return Rows(rng.normal(size=(n + 20, 3)), labels, np.full(n + 20, -1), np.arange(n + 20))


@pytest.mark.parametrize("kind", ["svc", "sgd", "mahalanobis"])
def test_a_class_of_one_image_cannot_be_calibrated_on_and_is_named(kind: str) -> None:
    with pytest.raises(UserError, match=r"hybrid has too few groups .* \(1\)"):
        fit_path(make_head(kind), few_positives(1), ("hybrid", "parent"), 0)
    fit_path(make_head(kind), few_positives(2), ("hybrid", "parent"), 0)


def test_of_two_classes_none_may_be_without_images() -> None:
    with (
        pytest.raises(UserError, match=r"head\.kind knn tells classes apart, and all images to fit on are of parent"),
        pytest.warns(),
    ):
        fit_path(make_head("knn"), few_positives(0), ("hybrid", "parent"), 0)


def test_a_head_that_does_not_fit_the_data_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"mahalanobis tells one class from all else, and here are 3 \(a, b, c\)"):
        fit_path(make_head("mahalanobis"), make_rows(n_classes=3), "abc", 0)
    with pytest.raises(UserError, match=r"head\.kind knn has k 23, more than the 22 images"):
        fit_path(make_head("knn", k=23), few_positives(2), "ab", 0)
    with pytest.raises(UserError, match=r"has k 21, more than the 20 images .* not positive"):
        fit_path(make_head("knn_distance", k=21), few_positives(5), "ab", 0)
    with pytest.raises(UserError, match=r"head.k 19 is more than the 16 images .* not positive"):
        fit_path(make_head("knn_distance", k=19), few_positives(5), "ab", 0)
    monkeypatch.setattr(classifier_blocks, "MOST_OF_A_PROCESS", 20)
    with pytest.raises(UserError, match="22 are more than 20"):
        fit_path(make_head("gaussian_process"), few_positives(2), "ab", 0)


# ---------------------------------------------------------------- on disk
def saved(kind: str, folder: Path, n_classes: int = 2) -> tuple[Classifier, Classifier, TrialDir]:
    """A fitted model, one that knows nothing yet, and the folder where the first is saved."""
    rows = make_rows(n_classes=n_classes)
    made, estimator = fit(kind, rows)
    model, empty = (Classifier(made, "abc"[:n_classes], normalize=False) for _ in range(2))
    model.estimator = estimator
    model.save_more(TrialDir(folder))
    return model, empty, TrialDir(folder)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("kind", CLASSIFIER_KINDS)
def test_what_is_loaded_says_what_was_saved(kind: str, n_classes: int, tmp_path: Path) -> None:
    if kind in ONE_CLASS and n_classes > 2:
        return
    model, loaded, trial = saved(kind, tmp_path, n_classes)
    loaded.load_more(trial)
    x = torch.tensor(make_rows(seed=1).x, dtype=torch.float32)
    assert torch.equal(model.predict(x).mean, loaded.predict(x).mean)
    assert [path.name for path in tmp_path.iterdir()] == ["classifier.skops"]


def test_a_file_of_another_scikit_learn_names_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn

    _, loaded, trial = saved("logistic", tmp_path)
    here = sklearn.__version__
    monkeypatch.setattr(sklearn, "__version__", "9.8.7")
    with pytest.raises(WorkError, match=rf"written with scikit-learn {here}, and here is 9\.8\.7.*carabid train"):
        loaded.load_more(trial)


def test_a_file_of_types_that_no_classifier_has_is_not_loaded(tmp_path: Path) -> None:
    import sklearn

    trial = TrialDir(tmp_path)
    skops.io.dump({"estimator": Config}, trial.classifier)
    with zipfile.ZipFile(trial.classifier, "a") as file:
        file.writestr("carabid.json", json.dumps({"scikit-learn": sklearn.__version__}))
    with pytest.raises(WorkError, match=r"no classifier of this project is made of \(pipeline\.config\.trial\.Config\)"):
        Classifier(make_head("logistic"), "ab", normalize=False).load_more(trial)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "no record"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    _, loaded, trial = saved("logistic", tmp_path)
    whole = trial.classifier.read_bytes()
    middle = len(whole) // 2
    content = {
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
        "empty": b"",
        "text": b"no zip file",
        "no record": skops.io.dumps(StandardScaler()),
    }
    trial.classifier.write_bytes(content[damage])
    with pytest.raises(WorkError, match=r"damaged: .*classifier\.skops: .*carabid train"):
        loaded.load_more(trial)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match=r"there is no classifier\.skops: `carabid train` makes it"):
        Classifier(make_head("knn"), "ab", normalize=False).load_more(TrialDir(tmp_path))
