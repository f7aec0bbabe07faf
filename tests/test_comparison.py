"""Comparing methods: validation chooses, the same images are compared, and draws are the same for both sides."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import r2_score, roc_auc_score

from pipeline.cli import results
from pipeline.config.identity import config_hash, plain, science
from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, TrialDir, experiment_dir
from pipeline.disk.writing import read_json, write_json, write_table, write_text
from pipeline.errors import UserError
from pipeline.experiments.reading import dump_config
from pipeline.metrics.classification import FIGURES
from pipeline.metrics.figures import Figure, Training
from pipeline.metrics.groups import Prediction
from pipeline.metrics.regression_report import FIGURES as NUMBERS
from pipeline.reporting.comparison import CHOSEN, HEADER, Line, candidates, cells, compare, method_of, notes, to_json, to_markdown
from pipeline.stages import collect
from pipeline.tasks import load_task
from tests.bootstrap import bootstrap
from tests.small import named

CLASSES = ("hybrid", "non-hybrid")
PIXELS = {"backbone": {"kind": "pixels", "size": 32}}
NETWORK = {"backbone": {"kind": "open_clip", "name": "hf-hub:owner/small-net"}, "model": {"encoder": {"kind": "finetuned"}}}
SVC = PIXELS | {"model": {"head": {"kind": "svc"}}}
TASK = {"task": "classify", "loss": {"kind": "cross_entropy"}}
pytestmark = pytest.mark.usefixtures("root")


def images(fold: int, n: int = 40) -> pd.DataFrame:
    """Two images a group; the groups of a fold are no other fold's."""
    rng = np.random.default_rng(fold)
    names = [f"f{fold}-{i}" for i in range(n)]
    groups = [f"f{fold}-s{i // 2}" for i in range(n)]
    return pd.DataFrame({"id": names, "group": groups, "truth": np.repeat(rng.random(n // 2) < 0.3, 2).astype(float)})


def long_form(table: pd.DataFrame, p: np.ndarray) -> pd.DataFrame:
    """predictions.parquet: a row per image and class."""
    both = [(CLASSES[0], table["truth"], p), (CLASSES[1], 1 - table["truth"], 1 - p)]
    parts = [
        table[["id", "group"]].assign(domain=None, species=None, target=f"stat={c}", truth=t, prediction=q) for c, t, q in both
    ]
    return pd.concat(parts, ignore_index=True)


def finish(
    method: dict[str, Any], fold: int, value: float, skill: float, name: str = "x", table: pd.DataFrame | None = None, **more: Any
) -> Config:
    """Leave the files of an evaluated trial, as good as `skill` on test and `value` on validation."""
    table = images(fold) if table is None else table
    values = (
        {"experiment": name, **TASK, "data": {"label": "stat", "split": {"kind": "folds", "fold": fold}}}
        | method
        | more.get("values", {})
    )
    config = Config.model_validate(named(values | {"data": {"label": "stat"} | values["data"]}))
    noise = np.random.default_rng(int(config_hash(config)[:8], 16)).random(len(table))
    p = (skill * table["truth"] + 3 * noise) / (3 + skill)
    trial = experiment_dir(config).trial(f"seed={config.seed}-{config_hash(config)[:8]}")
    write_text(trial.config, dump_config(config))
    write_table(trial.predictions, long_form(table, p.to_numpy()))
    labels, task = 1 - table["truth"].to_numpy("int64"), load_task("classify")
    said = np.stack([p, 1 - p], axis=1)
    summary: dict[str, Any] = {name: figure.value(labels, said) for name, figure in FIGURES.items()}
    summary |= {"classes": list(CLASSES), "warnings": []}
    summary["selection"] = {"metric": more.get("metric", "roc_auc"), "value": value}
    write_json(
        trial.results,
        {
            **task.describe({"summary": summary, "classes": {}}), "summary": summary,
            "split": more.get("split", "test"), "selected_on": more.get("chosen_on", "validation"),
            "config_hash": config_hash(config), "evaluation": plain(config.evaluate),
        },
    )  # fmt: skip
    return config


def experiment(name: str = "x") -> ExperimentDir:
    return experiment_dir(Config.model_validate(named({"experiment": name})))


def results_of(config: Config) -> dict[str, Any]:
    found: dict[str, Any] = read_json(experiment_dir(config).trial(f"seed=0-{config_hash(config)[:8]}").results)
    return found


def by_method(figure: str = "roc_auc", *names: str) -> dict[str, Line]:
    found = compare(candidates([experiment(name) for name in names or ("x",)]), figure)
    return {line.method: line for line in (found.chosen, *found.lines)}


def refusal(*names: str, figure: str = "roc_auc") -> str:
    with pytest.raises(UserError) as caught:
        by_method(figure, *names)
    return str(caught.value)


# ---------------------------------------------------------------- methods
def test_a_method_is_called_by_backbone_encoder_and_head() -> None:
    configs = [
        Config.model_validate(named({"experiment": "x", **TASK, "data": {"label": "stat"}, **values}))
        for values in (PIXELS, NETWORK, SVC)
    ]
    assert [method_of(science(config)) for config in configs] == [
        "pixels 32, mlp", "open_clip small-net, finetuned, mlp", "pixels 32, svc",
    ]  # fmt: skip
    parts = [{"kind": "dinov2", "name": "a/dinov2-base"}, {"kind": "timm", "name": "local-dir:b"}, {"kind": "pixels", "size": 8}]
    model = {"encoder": {"kind": "frozen"}, "head": {"kind": "svc"}}
    together = {"backbone": {"kind": "concat", "parts": parts}, "model": model}
    assert method_of(together) == "dinov2 dinov2-base + timm b + pixels 8, svc"


# ---------------------------------------------------------------- who is chosen
def test_validation_chooses_the_trial_of_a_method_and_the_method_and_test_never_does() -> None:
    for fold in (0, 1):
        finish(PIXELS, fold, 0.7, skill=3.0)
        finish(NETWORK, fold, 0.9, skill=0.5)
        finish(NETWORK, fold, 0.8, skill=3.0, values={"optim": {"lr": 0.5}})
    lines = by_method()
    assert list(lines) == [CHOSEN, "open_clip small-net, finetuned, mlp", "pixels 32, mlp"]
    assert lines[CHOSEN].trials == lines["open_clip small-net, finetuned, mlp"].trials
    assert lines[CHOSEN].validation == pytest.approx(0.9)
    assert (lines["pixels 32, mlp"].difference or 0) < 0, "the chosen one is worse on test, and says so"


def test_each_fold_chooses_for_itself_and_seeds_are_candidates() -> None:
    better = [finish(PIXELS, 0, 0.9, 1.0), finish(SVC, 1, 0.9, 1.0), finish(PIXELS, 2, 0.9, 1.0, values={"seed": 7})]
    for fold, config in enumerate((SVC, PIXELS, PIXELS)):
        finish(config, fold, 0.8, 1.0)
    finish(SVC, 2, 0.5, 1.0)
    lines = by_method()
    assert lines[CHOSEN].trials == {f: f"x/seed={c.seed}-{config_hash(c)[:8]}" for f, c in enumerate(better)}
    assert lines["pixels 32, mlp"].validation == pytest.approx((0.9 + 0.8 + 0.9) / 3)


@pytest.mark.parametrize("metric", ["log_loss", "brier"])
def test_the_lowest_loss_is_chosen(metric: str) -> None:
    finish(PIXELS, 0, 0.2, 1.0, metric=metric)
    finish(SVC, 0, 0.4, 1.0, metric=metric)
    assert list(by_method()) == [CHOSEN, "pixels 32, mlp", "pixels 32, svc"]
    assert by_method()[CHOSEN].trials == by_method()["pixels 32, mlp"].trials


def test_a_trial_without_what_is_needed_takes_no_part() -> None:
    finish(PIXELS, 0, 0.9, 1.0)
    finish(SVC, 0, 0.99, 1.0, values={"data": {"permute_targets": True, "split": {"kind": "folds", "fold": 0}}})
    config = finish(NETWORK, 0, 0.9, 1.0)
    trial = experiment().trial(f"seed=0-{config_hash(config)[:8]}")
    results = read_json(trial.results)
    for broken in (
        {"summary": {"r2": 0.5}},
        results | {"config_hash": "other"},
        results | {"summary": results["summary"] | {"selection": {"metric": "roc_auc", "value": None}}},
    ):
        write_json(trial.results, broken)
        assert list(by_method()) == [CHOSEN, "pixels 32, mlp"]
    trial.results.write_text("{")
    assert list(by_method()) == [CHOSEN, "pixels 32, mlp"]


# ---------------------------------------------------------------- figures and differences
def test_figures_are_those_of_the_trials_and_their_mean_over_folds() -> None:
    configs = [finish(PIXELS, fold, 0.9, 1.0) for fold in range(3)]
    for name in ("roc_auc", "average_precision", "log_loss"):
        values = [results_of(config)["summary"][name] for config in configs]
        line = by_method(name)["pixels 32, mlp"]
        assert (line.test, line.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_the_interval_is_that_of_the_mean_difference_over_draws_of_groups_from_all_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.reporting.comparison.DRAWS", 60)
    pairs = [(finish(NETWORK, fold, 0.9, 2.0), finish(PIXELS, fold, 0.8, 1.0)) for fold in (0, 1)]
    tables = [images(fold) for fold in (0, 1)]
    truth, groups = (np.concatenate([table[name] for table in tables]) for name in ("truth", "group"))
    fold = np.repeat([0, 1], 40)
    said = []
    for side in (0, 1):
        trials = [experiment().trial(f"seed=0-{config_hash(pair[side])[:8]}") for pair in pairs]
        frames = [pd.read_parquet(trial.predictions) for trial in trials]
        said.append(np.concatenate([f[f["target"] == "stat=hybrid"]["prediction"] for f in frames]))

    def difference(rows: np.ndarray) -> float | None:
        parts = [rows[fold[rows] == k] for k in (0, 1)]
        if any(len(set(truth[part])) < 2 for part in parts):
            return None
        a, b = ([roc_auc_score(truth[part], p[part]) for part in parts] for p in said)
        return float(np.mean(a) - np.mean(b))

    expected = bootstrap(difference, groups.tolist(), seed=0, n=60)
    line = by_method()["pixels 32, mlp"]
    assert expected and line.interval == pytest.approx([expected.low, expected.high], abs=1e-5)
    assert line.difference == pytest.approx(difference(np.arange(80)))


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 3), st.floats(0, 3), st.randoms(use_true_random=False))
def test_a_method_differs_from_itself_by_nothing_and_the_order_of_rows_says_nothing(
    tmp_path_factory: pytest.TempPathFactory, n_folds: int, skill: float, random: Any
) -> None:
    trained = {"paths": {"trained": str(tmp_path_factory.mktemp("trained"))}}
    configs = [finish(m, f, v, skill, values=trained) for f in range(n_folds) for m, v in ((PIXELS, 0.9), (SVC, 0.8))]
    directory = experiment_dir(configs[0])
    before = compare(candidates([directory]))
    assert before.lines[0].difference == 0 and before.lines[0].interval == [0, 0]
    for trial in directory.trials():
        frame = pd.read_parquet(trial.predictions)
        order = list(range(len(frame)))
        random.shuffle(order)
        write_table(trial.predictions, frame.iloc[order])
    assert to_json(compare(candidates([directory]))) == to_json(before)


def test_a_method_that_lacks_a_fold_says_so_and_is_compared_on_the_others() -> None:
    for fold in (0, 1, 2):
        finish(PIXELS, fold, 0.9, 2.0)
    finish(SVC, 1, 0.8, 1.0)
    found = compare(candidates([experiment()]))
    line = found.lines[1]
    assert line.missing_folds == [0, 2] and line.sd is None and line.trials.keys() == {1}
    chosen = results_of(finish(PIXELS, 1, 0.9, 2.0))["summary"]["roc_auc"]
    assert line.difference == pytest.approx(chosen - (line.test or 0))
    assert cells(found)[2][3] == "1 (not 0, 2)"
    assert found.warnings == ["pixels 32, svc has no results of fold 0, 2: its figures are of the others"]


def test_experiments_that_tested_the_same_are_compared_and_one_split_is_one_fold() -> None:
    source = {"data": {"split": {"kind": "source"}}}
    finish(PIXELS, 0, 0.9, 1.0, "first", values=source)
    finish(SVC, 0, 0.8, 1.0, "second", values=source)
    lines = by_method("roc_auc", "first", "second")
    assert lines["pixels 32, mlp"].trials[0].startswith("first/") and lines["pixels 32, svc"].trials[0].startswith("second/")


def test_one_method_on_other_data_is_another_line_and_none_is_dropped() -> None:
    finish(PIXELS, 0, 0.9, 1.0, "first", values={"data": {"split": {"kind": "source"}}})
    finish(PIXELS, 0, 0.8, 1.0, "second", values={"data": {"split": {"kind": "source"}, "range": "image"}})
    assert {"first: pixels 32, mlp", "second: pixels 32, mlp"} <= set(by_method("roc_auc", "first", "second"))


def test_a_figure_that_is_not_defined_is_none() -> None:
    table = images(0).assign(truth=0.0)
    finish(PIXELS, 0, 0.9, 1.0, table=table)
    finish(SVC, 0, 0.8, 1.0, table=table)
    # (results.json has no area either: such trials still take part by another figure.)
    lines = by_method("roc_auc")
    assert lines["pixels 32, svc"].test is None and lines["pixels 32, svc"].interval is None
    assert "–" in cells(compare(candidates([experiment()])))[1]
    assert by_method("accuracy")["pixels 32, svc"].difference is not None


# ---------------------------------------------------------------- what cannot be compared
@pytest.mark.parametrize(
    ("table", "says"),
    [
        (images(0)[2:], "2 images were tested by one of them alone"),
        (images(0).assign(group="other"), "80 images were tested by one of them alone"),
        (images(0).assign(truth=1.0), "what is true of them is another thing"),
    ],
)
def test_trials_that_tested_other_images_are_named(table: pd.DataFrame, says: str) -> None:
    names = [f"x/seed=0-{config_hash(c)[:8]}" for c in (finish(PIXELS, 0, 0.9, 1.0), finish(SVC, 0, 0.8, 1.0, table=table))]
    assert refusal() == f"fold 0: {names[0]} and {names[1]} did not test the same: {says}"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"metric": "log_loss"}, ("were chosen by different figures", "roc_auc: x/", "log_loss: x/")),
        ({"chosen_on": "cross-validation"}, ("were chosen on different images", "validation: x/", "cross-validation: x/")),
        ({"split": "validation"}, ("were evaluated on different splits", "test: x/", "validation: x/")),
    ],
)
def test_trials_that_were_chosen_or_evaluated_in_other_ways_are_refused(more: dict[str, Any], says: tuple[str, ...]) -> None:
    finish(PIXELS, 0, 0.9, 1.0)
    finish(NETWORK, 0, 0.8, 1.0, **more)
    assert all(part in refusal() for part in says)


def test_what_there_is_not_is_said() -> None:
    assert "no trial has results that say" in refusal()
    finish(PIXELS, 0, 0.9, 1.0)
    assert refusal(figure="roc_acu") == "--figure roc_acu: there is no such figure to compare by; did you mean roc_auc?"
    (trial,) = experiment().trials()
    write_text(trial.predictions, "x")
    assert refusal().startswith(f"damaged: {trial.path}: ")


def test_images_that_share_an_id_are_told_apart_by_their_order() -> None:
    table = images(0).assign(id="individual")
    for method, skill in ((PIXELS, 1.0), (SVC, 0.1)):
        finish(method, 0, 0.9, skill, table=table)
    assert compare(candidates([experiment()])).n == len(table)


def test_folds_that_share_an_image_are_no_cross_validation() -> None:
    for fold in (0, 1):
        finish(PIXELS, fold, 0.9, 1.0, table=images(0))
    assert "is tested in fold 0 and in fold 1" in refusal()


def test_figures_of_the_split_that_chose_are_marked() -> None:
    finish(PIXELS, 0, 0.9, 1.0, split="validation")
    assert "optimistic" in compare(candidates([experiment()])).warnings[0]


# ---------------------------------------------------------------- what is written
def test_collecting_writes_a_comparison_where_there_are_several_methods() -> None:
    config = finish(PIXELS, 0, 0.9, 1.0)
    directory = experiment()
    collect.run(config)
    assert not directory.comparison_json.exists()
    worse = finish(SVC, 0, 0.8, 0.1)
    collect.run(config)
    written = read_json(directory.comparison_json)
    assert written == json.loads(to_json(compare(candidates([directory])))) and written["n_groups"] == 20
    text = directory.comparison_md.read_text()
    assert text == to_markdown(compare(candidates([directory])))
    assert text.startswith(f"| {' | '.join(HEADER)} |") and f"Chosen in fold 0: {written['chosen']['trials']['0']}." in text
    directory.trial(f"seed=0-{config_hash(worse)[:8]}").results.unlink()
    collect.run(config)
    assert not directory.comparison_json.exists() and not directory.comparison_md.exists()


def test_collecting_does_not_fail_where_methods_cannot_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    config = finish(PIXELS, 0, 0.9, 1.0)
    finish(SVC, 0, 0.8, 0.1, table=images(1))
    collect.run(config)
    assert "carabid: no comparison of methods: fold 0: x/" in capsys.readouterr().err
    assert not experiment().comparison_json.exists()


def test_the_command_prints_a_table_json_or_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    finish(PIXELS, 0, 0.9, 2.0)
    finish(SVC, 0, 0.8, 0.1)
    found = compare(candidates([experiment()]), "accuracy")
    results.compare(["x"], "accuracy")
    shown = capsys.readouterr().out
    assert all(note in shown for note in notes(found)) and CHOSEN in shown and "pixels 32, svc" in shown
    for form, text in (("json", to_json(found)), ("markdown", to_markdown(found))):
        results.compare(["x"], "accuracy", form)
        assert capsys.readouterr().out.strip() == text.strip()
    with pytest.raises(UserError, match="choose table, markdown or json"):
        results.compare(["x"], form="csv")


# ---------------------------------------------------------------- numbers
LEVELS = ("level", "slope")


def finish_numbers(method: dict[str, Any], value: float, noise: float, fold: int = 0) -> TrialDir:
    """Leave the files of an evaluated trial of two numbers: three images a group, which share its numbers."""
    data = {"targets": list(LEVELS), "split": {"kind": "folds", "fold": fold}}
    config = Config.model_validate(named({"experiment": "x", "task": "regress", "data": data} | method))
    trial, task = experiment_dir(config).trial(f"seed={config.seed}-{config_hash(config)[:8]}"), load_task("regress")
    rng = np.random.default_rng([int(100 * noise), fold])
    groups = np.repeat(np.arange(20), 3)
    truth = np.random.default_rng(fold).normal(size=(20, 2))[groups]
    table = pd.DataFrame(
        {"id": [f"f{fold}-{i}" for i in range(60)], "group": [f"f{fold}-g{i}" for i in groups], "domain": "a", "species": None}
    )
    said = Prediction(truth + rng.normal(size=(60, 2)) * noise, np.ones((60, 2)), np.zeros((60, 2)))
    training = Training(["a"], dict.fromkeys(LEVELS, 0.0), dict.fromkeys(LEVELS, 1.0))
    predictions = task.predictions(table, truth, LEVELS, said)
    for path, content in zip((trial.predictions, trial.groups), task.tables(predictions), strict=True):
        write_table(path, content)
    blocks = task.report(predictions, training)
    blocks["summary"]["selection"] = {"metric": "r2", "value": value}
    facts = {"split": "test", "selected_on": "validation", "config_hash": config_hash(config)}
    write_text(trial.config, dump_config(config))
    write_json(trial.results, blocks | task.describe(blocks) | facts | {"evaluation": plain(config.evaluate)})
    return trial


def test_numbers_are_compared_by_the_first_of_their_headline_over_draws_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.reporting.comparison.DRAWS", 60)
    trials = [finish_numbers(NETWORK, 0.9, 0.3), finish_numbers(PIXELS, 0.8, 0.6)]
    found = compare(candidates([experiment()]))
    assert (found.figure, found.n, found.n_groups) == ("r2", 20, 20), "R² is of groups"
    frames = [pd.read_parquet(trial.groups) for trial in trials]
    names = frames[0]["group"].iloc[:20].tolist()

    def difference(rows: np.ndarray) -> float:
        each = ([f[f["target"] == t].iloc[rows] for t in LEVELS] for f in frames)
        values = [np.mean([r2_score(some["truth"], some["mean"]) for some in pair]) for pair in each]
        return float(values[0] - values[1])

    line = {line.method: line for line in found.lines}["pixels 32, mlp"]
    expected = bootstrap(difference, names, seed=0, n=60)
    assert expected and line.interval == pytest.approx([expected.low, expected.high], abs=1e-5)
    assert line.difference == pytest.approx(difference(np.arange(20))) and line.difference > 0
    assert found.chosen.test == pytest.approx(read_json(trials[0].results)["summary"]["r2"])


def test_a_figure_of_images_is_of_images_and_forecasts_are_not_compared() -> None:
    trials = [finish_numbers(method, value, 0.5, fold) for fold in (0, 1) for method, value in ((PIXELS, 0.9), (NETWORK, 0.8))]
    found = compare(candidates([experiment()]), "MAE")
    assert (found.n, found.n_groups) == (120, 40)
    values = [read_json(trial.results)["summary"]["MAE"] for trial in trials[::2]]
    assert found.chosen.test == pytest.approx(np.mean(values))
    assert refusal(figure="CRPS") == "--figure CRPS: there is no such figure to compare by; there are: r2, MAE, RMSE"


def test_a_figure_of_ones_own_that_knows_no_weights_is_computed_of_repeated_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.reporting.comparison.DRAWS", 40)
    finish_numbers(PIXELS, 0.9, 0.2), finish_numbers(NETWORK, 0.8, 0.7)
    compared = compare(candidates([experiment()]), "MAE")
    slow = Figure("MAE, slowly", NUMBERS["MAE"].compute, lower_is_better=True)
    monkeypatch.setattr(type(load_task("regress")), "figures", NUMBERS | {"slow": slow})
    own = compare(candidates([experiment()]), "slow")
    assert own.figure == "slow" and own.chosen.test == pytest.approx(compared.chosen.test)
    for mine, theirs in zip(own.lines, compared.lines, strict=True):
        assert mine.interval == pytest.approx(theirs.interval, abs=1e-6)
        assert mine.difference == pytest.approx(theirs.difference)


@given(st.integers(1, 30), st.integers(0, 99), st.sampled_from(["r2", "MAE", "RMSE"]), st.sampled_from([0.0, 1e6]))
def test_a_weighted_figure_of_numbers_is_that_of_repeated_rows(n: int, seed: int, name: str, shift: float) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, n) + shift
    said, weights = truth + rng.normal(size=n), rng.integers(0, 4, (n, 5)).astype("float32")
    weights[0] += 1  # a draw has rows
    repeated = Figure(name, NUMBERS[name].compute)
    expected, found = (figure.drawn(truth, said, weights=weights) for figure in (repeated, NUMBERS[name]))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
