"""The table of results: means over repetitions, what failed or is missing, order, and the formats."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.identity import config_hash, plain
from pipeline.disk.layout import PROJECT, all_experiments
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.errors import UserError
from pipeline.experiments.reading import Experiment, Trial, dump_config
from pipeline.launch.manifest.manifest import make_manifest
from pipeline.reporting.results import (
    Line,
    Look,
    Row,
    by_look,
    collect,
    hash_results,
    print_tables,
    sort_rows,
    sorts,
    summarize,
    to_csv,
    to_json,
    to_markdown,
)
from pipeline.reporting.terminal import short_names
from pipeline.tasks import load_task
from tests.fuzz.verdict import command
from tests.small import load_named as load_experiment

BEETLES = load_task("beetles")
NUMBERS = Look(tuple((name, BEETLES.title(name)) for name in BEETLES.headline))
LORA = PROJECT / "configs" / "beetles" / "lora.yaml"
TARGETS = ("SPEI_30d", "SPEI_1y", "SPEI_2y")
pytestmark = pytest.mark.usefixtures("root")


def figures(r2: float | None, error: float = 0.5) -> dict[str, float | None]:
    return {"r2": r2, "MAE": error, "RMSE": error * 1.2, "CRPS": error * 0.8}


def block(r2: float | None, error: float = 0.5) -> dict[str, Any]:
    lower = None if r2 is None else r2 - 0.2
    return figures(r2, error) | {"in_domain": figures(r2, error), "out_of_domain": figures(lower, error)}


def finish(trial: Trial, experiment: Experiment, r2: float | None, split: str = "test", error: float = 0.5) -> None:
    """Leave the files of an evaluated trial."""
    folder = experiment.dir.trial(trial.name)
    write_text(folder.config, dump_config(trial.config))
    chance = figures(0.0, error) | {"in_domain": figures(0.0, error), "rms": error * 0.9}
    summary = block(r2, error) | {"rms": error * 0.7, "warnings": [], "mean_predictor": chance}
    values = {target: block(r2, error) for target in TARGETS} | {"summary": summary}
    more = {"split": split, "selected_on": "validation", "config_hash": config_hash(trial.config)}
    more |= BEETLES.describe(values) | {"evaluation": plain(trial.config.evaluate)}
    write_json(folder.results, values | more)


def plan(*overrides: str, source: Path = LORA) -> Experiment:
    experiment = load_experiment(source, overrides)
    make_manifest(experiment, experiment.trials, [])
    return experiment


def table(sort: str = "r2") -> list[Line]:
    return summarize(collect(all_experiments()), sort)


# ---------------------------------------------------------------- repetitions
def test_seeds_of_one_configuration_are_one_line_with_mean_and_sd() -> None:
    experiment, values = plan("optim.lr=1e-3", "seed=0,1,2"), [0.1, 0.2, 0.6]
    for trial, r2 in zip(experiment.trials, values, strict=True):
        finish(trial, experiment, r2)
    (line,) = table()
    assert (line.name, line.n) == ("lr=1e-3", 3)
    assert line.means["r2"] == pytest.approx(0.3) and line.sds["r2"] == pytest.approx(statistics.stdev(values))
    assert NUMBERS.cells(line)[4] == "0.300 ± 0.265"


def test_folds_are_repetitions_too() -> None:
    experiment = plan("data.split.kind=folds", "data.split.fold=0,1,2,3,4", "seed=0,1")
    for number, trial in enumerate(experiment.trials):
        finish(trial, experiment, number / 10)
    (line,) = table()
    assert line.n == 10 and line.means["r2"] == pytest.approx(0.45)


def test_different_configurations_are_different_lines() -> None:
    experiment = plan("optim.lr=1e-3,3e-3", "seed=0,1")
    for trial in experiment.trials:
        finish(trial, experiment, trial.config.optim.lr)
    assert [(line.name, line.n) for line in table()] == [("lr=3e-3", 2), ("lr=1e-3", 2)]


def test_the_same_configuration_in_two_experiments_is_two_lines() -> None:
    for name in ("first", "second"):
        experiment = plan(f"experiment={name}")
        finish(experiment.trials[0], experiment, 0.5)
    assert [line.experiment for line in table()] == ["first", "second"]


def test_a_single_trial_shows_its_own_name_and_no_sd() -> None:
    experiment = plan("optim.lr=1e-3")
    finish(experiment.trials[0], experiment, 0.5)
    (line,) = table()
    assert line.name == experiment.trials[0].name and line.sds["r2"] is None
    assert NUMBERS.cells(line)[4] == "0.500"


def test_results_on_validation_and_on_test_are_never_averaged() -> None:
    experiment = plan("seed=0,1")
    finish(experiment.trials[0], experiment, 0.9, split="validation")
    finish(experiment.trials[1], experiment, 0.1, split="test")
    assert [(line.split, line.n, line.means["r2"]) for line in table()] == [("validation", 1, 0.9), ("test", 1, 0.1)]


def test_the_split_that_chose_the_epoch_is_marked_as_optimistic() -> None:
    experiment = plan("seed=0,1")
    finish(experiment.trials[0], experiment, 0.9, split="validation")
    finish(experiment.trials[1], experiment, 0.1, split="test")
    assert [NUMBERS.cells(line)[3] for line in table()] == ["validation (optimistic)", "test"]


def test_a_mean_over_a_figure_that_one_repetition_lacks_is_not_made_up() -> None:
    experiment = plan("seed=0,1")
    finish(experiment.trials[0], experiment, 0.4)
    finish(experiment.trials[1], experiment, None)
    (line,) = table()
    assert line.means["r2"] is None and line.means["MAE"] == 0.5 and NUMBERS.cells(line)[4] == "–"


# ---------------------------------------------------------------- ensembles
def join(experiment: Experiment, trials: list[Trial], name: str, r2: float) -> None:
    """Leave the results of an ensemble of these trials."""
    folders = [experiment.dir.trial(trial.name) for trial in trials]
    origin = {folder.path.name: hash_results(folder) for folder in folders}
    values = read_json(folders[0].results) | {"members": list(origin), "made_from": origin}
    write_json(experiment.dir.ensemble(name).results, values | {"figures": values["figures"] | figures(r2)})


def test_an_ensemble_is_a_line_of_its_own_beside_the_mean_of_its_members() -> None:
    experiment = plan("optim.lr=1e-3", "seed=0,1,2")
    for trial, r2 in zip(experiment.trials, (0.1, 0.2, 0.6), strict=True):
        finish(trial, experiment, r2)
    join(experiment, experiment.trials, "lr=1e-3-0123abcd", 0.7)
    assert [(line.name, line.n, line.means["r2"]) for line in table()] == [
        ("ensemble of 3: lr=1e-3", 1, 0.7),
        ("lr=1e-3", 3, pytest.approx(0.3)),
    ]
    row = collect(all_experiments())[-1]
    assert (row.trial, row.state) == ("ensembles/lr=1e-3-0123abcd", "done")
    assert row.members == tuple(trial.name for trial in experiment.trials)
    lines = list(csv.DictReader(io.StringIO(to_csv(collect(all_experiments())))))
    assert [line["members"] for line in lines] == ["", "", "", "3"]
    assert json.loads(to_json([row]))[0]["members"] == list(row.members)
    assert [row.figures["r2"] for row in sort_rows(collect(all_experiments()), "r2")] == [0.7, 0.6, 0.2, 0.1]


def test_ensembles_of_equally_many_members_are_averaged_over_folds() -> None:
    experiment = plan("data.split.kind=folds", "data.split.fold=0,1,2", "seed=0,1,2")
    for trial in experiment.trials:
        finish(trial, experiment, 0.3)
    for fold, r2 in enumerate((0.4, 0.6, 0.9)):
        found = [t for t in experiment.trials if t.config.data.split.fold == fold]  # type: ignore[union-attr]
        join(experiment, found[: 2 if fold == 2 else 3], f"fold={fold}-0000000{fold}", r2)
    lines = {line.name.partition(":")[0]: line for line in table()}
    assert {name: line.n for name, line in lines.items()} == {"ensemble of 2": 1, "ensemble of 3": 2, "split=folds": 9}
    assert lines["ensemble of 3"].means["r2"] == pytest.approx(0.5) and lines["ensemble of 3"].sds["r2"] is not None


def test_an_ensemble_of_results_that_are_no_more_is_not_shown() -> None:
    experiment = plan("seed=0,1")
    for trial in experiment.trials:
        finish(trial, experiment, 0.3)
    join(experiment, experiment.trials, "defaults-0123abcd", 0.7)
    finish(experiment.trials[1], experiment, 0.4)
    assert [line.n for line in table()] == [2]
    experiment.dir.trial(experiment.trials[1].name).results.unlink()
    assert not any(row.members for row in collect(all_experiments()))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"members": []}', '{"members": [], "made_from": {}}'])
def test_a_damaged_ensemble_is_said_and_hides_nothing(content: str, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = plan("seed=0,1")
    for trial in experiment.trials:
        finish(trial, experiment, 0.3)
    write_text(experiment.dir.ensemble("defaults-0123abcd").results, content)
    assert [row.state for row in collect(all_experiments())] == ["done", "done"]
    assert f"damaged: {experiment.dir.ensemble('defaults-0123abcd').results}" in capsys.readouterr().err


def odd(results: dict[str, Any], key: str, value: Any) -> str:
    """Results with another value at `key`, a path in it; a text of JSON stands as it is."""
    *above, last = key.split("/")
    block = results
    for name in above:
        block = block.setdefault(name, {})
    block[last] = "\ufffd"
    return json.dumps(results).replace(json.dumps("\ufffd"), value if isinstance(value, str) else json.dumps(value))


ODD = [
    ("figures/r2", "1e999"), ("figures/r2", "9" * 401), ("figures/r2", 1e200), ("figures/r2", True), ("figures/r2", '"0.5"'),
    ("figures/own", [1]), ("figures", [[1, 2.0]]), ("figures", 3), ("headline/r2", 5), ("headline/gone", '"gone"'),
    ("lower_is_better", [1]), ("instead", {"rms": ["a"]}), ("instead", {"rms": [1, 2]}), ("split", True), ("selected_on", ["x"]),
    ("selected_on", {}), ("summary/selection", {"metric": {}, "value": 1}), ("summary/selection", {"metric": None, "value": 1}),
    ("summary/selection", {"metric": "r2", "value": "nan"}), ("summary/selection", '{"metric": "r2", "value": 1e999}'),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), ODD)
def test_odd_results_are_damaged_and_hide_no_others(key: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = plan("seed=0,1,2")
    for trial in experiment.trials:
        finish(trial, experiment, 0.4)
    path = experiment.dir.trial(experiment.trials[1].name).results
    path.write_text(odd(read_json(path), key, value))
    states = {row.trial: (row.state, row.reason) for row in collect(all_experiments())}
    state, reason = states.pop(experiment.trials[1].name)
    assert state == "failed" and f"damaged: {path}: " in reason and len(reason) < 800
    assert [state for state, _ in states.values()] == ["done", "done"]
    for form in ("table", "csv", "json", "markdown"):
        assert command("results", "--format", form).status == 0
    ended = command("compare", experiment.dir.path.name)
    assert ended.status == 2 and (f"damaged: {path}: " in ended.err or key == "headline/gone")  # (it compares the first alone)


def test_a_repetition_that_lacks_a_figure_or_has_another_hides_nothing() -> None:
    experiment = plan("seed=0,1")
    for trial in experiment.trials:
        finish(trial, experiment, 0.4)
    path = experiment.dir.trial(experiment.trials[1].name).results
    results = read_json(path)
    del results["figures"]["SPEI_1y.RMSE"]
    write_json(path, results | {"figures": results["figures"] | {"own": 1.0}})
    (line,) = table()
    assert line.means["r2"] == pytest.approx(0.4) and line.means["SPEI_1y.RMSE"] is None and line.means["own"] is None


# ---------------------------------------------------------------- failed and missing
def test_missing_and_failed_trials_are_named_with_the_reason_below_the_results() -> None:
    experiment = plan("seed=0,1,2")
    finish(experiment.trials[1], experiment, 0.4)
    failed = experiment.dir.trial(experiment.trials[2].name)
    write_text(failed.config, dump_config(experiment.trials[2].config))
    write_json(failed.failure, {"stage": "train", "message": "the loss became nan\nin epoch 3"})
    lines = table()
    assert [line.name for line in lines] == [experiment.trials[i].name for i in (1, 0, 2)]
    assert lines[1].state == "missing: not run"
    assert lines[2].state.startswith("failed: train: the loss became nan") and "epoch 3" not in lines[2].state
    assert lines[1].means == {} and NUMBERS.cells(lines[2])[4].startswith("failed: train")


def test_two_trials_that_are_missing_are_two_lines() -> None:
    plan("seed=0,1")
    assert len(table()) == 2


def test_a_failed_repetition_does_not_hide_the_others() -> None:
    experiment = plan("seed=0,1,2")
    for trial in experiment.trials[:2]:
        finish(trial, experiment, 0.4)
    assert [line.n for line in table()] == [2, 1]


def test_trials_without_a_submission_are_rows_too() -> None:
    """A job script trains without a manifest."""
    experiment = load_experiment(LORA, ["seed=7"])
    finish(experiment.trials[0], experiment, 0.4)
    assert [row.trial for row in collect(all_experiments())] == [experiment.trials[0].name]


def test_nothing_yet_is_an_empty_table() -> None:
    assert table() == []
    assert to_csv([]).splitlines() == ["experiment,trial,members,state,reason,split,optimistic"]
    assert json.loads(to_json([])) == []


# ---------------------------------------------------------------- order
@pytest.mark.parametrize(
    ("sort", "best_first"),
    [("r2", [0.9, 0.5, -0.1]), ("in_domain.r2", [0.9, 0.5, -0.1]), ("MAE", [0.5, -0.1, 0.9]), ("SPEI_1y.RMSE", [0.5, -0.1, 0.9])],
)
def test_the_best_stands_first_whichever_figure_decides(sort: str, best_first: list[float]) -> None:
    experiment = plan("optim.lr=1e-3,2e-3,3e-3")
    for trial, r2, error in zip(experiment.trials, (0.5, -0.1, 0.9), (0.1, 0.2, 0.3), strict=True):
        finish(trial, experiment, r2, error=error)
    assert [line.means["r2"] for line in table(sort)] == best_first
    assert [row.figures["r2"] for row in sort_rows(collect(all_experiments()), sort)] == best_first


def test_a_result_without_the_figure_stands_after_those_that_have_it_and_before_what_has_no_result() -> None:
    experiment = plan("optim.lr=1e-3,2e-3,3e-3")
    finish(experiment.trials[0], experiment, None)
    finish(experiment.trials[2], experiment, -5.0)
    assert [line.means.get("r2") for line in table()] == [-5.0, None, None]
    assert [line.state for line in table()] == ["done", "done", "missing: not run"]
    assert [row.figures.get("r2") for row in sort_rows(collect(all_experiments()), "r2")] == [-5.0, None, None]


def test_trials_are_sorted_one_by_one_and_the_table_does_not_depend_on_their_order() -> None:
    experiment = plan("optim.lr=1e-3,2e-3", "seed=0,1")
    for trial, r2 in zip(experiment.trials, (0.1, 0.6, 0.2, 0.4), strict=True):
        finish(trial, experiment, r2)
    rows = sort_rows(collect(all_experiments()), "r2")
    assert [row.figures["r2"] for row in rows] == [0.6, 0.4, 0.2, 0.1]
    assert [NUMBERS.cells(line) for line in summarize(rows, "r2")] == [NUMBERS.cells(line) for line in table()]


def test_sorting_by_a_figure_that_no_result_has_is_refused_with_those_there_are() -> None:
    experiment = plan()
    finish(experiment.trials[0], experiment, 0.5)
    with pytest.raises(UserError, match=r"--sort R2: no result has that figure; there are: .*SPEI_30d\.r2.* r2"):
        table("R2")
    with pytest.raises(UserError, match=r"--sort R2: no result has that figure; there are: .*SPEI_30d\.r2.* r2"):
        sort_rows(collect(all_experiments()), "R2")


def test_nothing_yet_can_be_sorted_by_anything() -> None:
    assert sort_rows([], "r2") == []


@pytest.mark.parametrize("content", ["", '{"split": "te', "[]", "{}"])
def test_damaged_results_are_a_failed_trial_and_the_others_are_shown(content: str) -> None:
    experiment = plan("optim.lr=1e-3,2e-3")
    for trial in experiment.trials:
        finish(trial, experiment, 0.5)
    file = experiment.dir.trial(experiment.trials[0].name).results
    write_text(file, content)
    damaged, whole = collect(all_experiments())
    assert whole.state == "done" and damaged.state == "failed"
    assert damaged.reason.startswith(f"damaged: {file}: ") and "Delete it" in damaged.reason


ODD: list[tuple[str, str]] = [
    ('"split": "test"', '"split": true'),
    ('"split": "test"', '"split": ["test"]'),
    ('"headline": {', '"headline": {"x": 1, '),
    ('"figures": {', '"figures": {"r2": NaN, "x": '),
    ('"lower_is_better": [', '"lower_is_better": [{}, '),
    ('"figures": {', '"figures": {"more": ' + "[" * 100_000 + "]" * 100_000 + ", "),
]
"""What stands in results.json, and what stands there instead."""


@pytest.mark.parametrize(("was", "odd"), ODD, ids=[odd[:40] for _, odd in ODD])
def test_odd_results_are_a_failed_trial_in_every_form_and_the_others_are_shown(was: str, odd: str) -> None:
    experiment = plan("optim.lr=1e-3,2e-3")
    for trial in experiment.trials:
        finish(trial, experiment, 0.5)
    file = experiment.dir.trial(experiment.trials[0].name).results
    text = file.read_text()
    assert was in text
    write_text(file, text.replace(was, odd, 1))
    rows = collect(all_experiments())
    assert [row.state for row in rows] == ["failed", "done"] and rows[0].reason.startswith(f"damaged: {file}: ")
    assert to_csv(rows) and to_json(rows) and to_markdown(by_look_lines(rows))


def by_look_lines(rows: list[Row]) -> dict[Any, list[Line]]:
    return {look: summarize(some, "r2") for look, some in by_look(rows).items()}


@pytest.mark.parametrize(
    "failure", ['{"stage": {}, "message": "x"}', '{"stage": [], "message": {}}', "[" * 100_000, '{"stage": 1}']
)
def test_an_odd_record_of_a_failure_is_damaged_and_hides_no_other(failure: str, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = plan("optim.lr=1e-3,2e-3")
    finish(experiment.trials[1], experiment, 0.5)
    folder = experiment.dir.trial(experiment.trials[0].name)
    write_text(folder.config, dump_config(experiment.trials[0].config))
    write_text(folder.failure, failure)
    rows = collect(all_experiments())
    assert [row.state for row in rows] == ["failed", "done"] and rows[0].reason.startswith(f"damaged: {folder.failure}: ")
    ended = command("status", experiment.dir.path.name)
    assert ended.status == 0 and f"damaged: {folder.failure}: " in ended.out and "1 failed, 1 done" in ended.out, ended


def test_a_damaged_config_is_said_and_not_taken_for_a_repetition_of_nothing() -> None:
    experiment = plan("seed=0,1")
    for trial in experiment.trials:
        finish(trial, experiment, 0.5)
    folder = experiment.dir.trial(experiment.trials[0].name)
    folder.config.write_text(": [")
    rows = {row.trial: row for row in collect([experiment.dir])}
    assert rows[experiment.trials[0].name].reason.startswith("config.yaml is damaged")
    assert rows[experiment.trials[1].name].state == "done"


def test_results_that_lack_a_figure_are_damaged() -> None:
    experiment = plan()
    finish(experiment.trials[0], experiment, 0.5)
    file = experiment.dir.trial(experiment.trials[0].name).results
    values = read_json(file)
    changes: list[dict[str, Any]] = [{"figures": {}}, {"figures": None}, {"headline": 3}, {"figures": {"r2": "high"}}]
    for change in changes:
        write_json(file, values | change)
        (row,) = collect(all_experiments())
        assert row.state == "failed" and row.reason.startswith(f"damaged: {file}: ") and not row.figures


# ---------------------------------------------------------------- formats
@pytest.fixture
def rows() -> list[Row]:
    experiment = plan("seed=0,1,2")
    finish(experiment.trials[0], experiment, 0.25)
    finish(experiment.trials[1], experiment, None)
    failed = experiment.dir.trial(experiment.trials[2].name)
    write_json(failed.failure, {"stage": "train", "message": 'a "quoted" reason, with | and [/bracket]'})
    return collect(all_experiments())


def test_csv_has_a_line_for_every_trial_with_every_figure(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["trial"] for line in lines] == [row.trial for row in rows]
    assert float(lines[0]["r2"]) == 0.25 and float(lines[0]["SPEI_2y.out_of_domain.r2"]) == pytest.approx(0.05)
    assert lines[1]["r2"] == "" and lines[1]["state"] == "done"
    assert lines[2]["state"] == "failed" and '"quoted" reason, with |' in lines[2]["reason"]


def test_json_is_valid_and_has_null_where_a_figure_is_not_defined(rows: list[Row]) -> None:
    values = json.loads(to_json(rows), parse_constant=pytest.fail)
    assert [value["state"] for value in values] == ["done", "done", "failed"]
    assert values[0]["figures"]["r2"] == 0.25 and values[1]["figures"]["r2"] is None


def test_markdown_has_one_cell_for_each_column_even_with_a_bar_in_a_reason(rows: list[Row]) -> None:
    lines = to_markdown({NUMBERS: summarize(rows, "r2")}).splitlines()
    assert lines[0].split(" | ")[0] == "| experiment" and set(lines[1]) <= set("|- ")
    assert len(lines) == 2 + 2
    assert all(line.replace("\\|", "").count("|") == len(NUMBERS.header) + 1 for line in lines)


def test_the_table_for_a_terminal_shows_reasons_as_they_are(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    """A reason may hold brackets, which rich would take for markup."""
    print_tables({NUMBERS: summarize(rows, "r2")})
    printed = " ".join(capsys.readouterr().out.split())
    assert all(title in printed for title in NUMBERS.header[:4]) and "[/bracket]" in printed.replace("│ ", "")


def test_an_empty_root_has_a_sentence_and_no_empty_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(by_look(collect(all_experiments())))
    assert capsys.readouterr().out == f"no trials yet under {root / 'trained'}\n"


def test_long_names_are_folded_and_never_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Names tell trials apart, mostly by what stands at their end."""
    monkeypatch.setenv("COLUMNS", "100")
    values = ",".join(f"key{number}=value{number}" for number in range(30))
    means = {"r2": 0.5, "in_domain.r2": 0.4, "out_of_domain.r2": 0.3, "MAE": 0.2}
    print_tables({NUMBERS: [Line("an-experiment", values, "done", 1, "test", False, means, dict.fromkeys(means))]})
    printed = capsys.readouterr().out
    assert "…" not in printed and max(map(len, printed.splitlines())) <= 160
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    assert "".join(row[2].strip() for row in rows) == values
    assert all(figure in printed for figure in ("0.500", "0.400", "0.300", "0.200"))


def test_repetitions_share_a_line_whatever_their_folders_are_called() -> None:
    """What is grouped is the configuration, not the name."""
    experiment = plan("seed=0,1")
    for trial in experiment.trials:
        finish(Trial(f"renamed-{trial.name}", trial.config), experiment, 0.5)
    done = [line for line in table() if line.state == "done"]
    assert [line.n for line in done] == [2]


# ---------------------------------------------------------------- in a terminal
STOCK = ("butterflies-classifiers", "head=hist_gradient_boosting,backbone.name=facebook_dinov2-with-registers-base,dtype=fp32")


def lines_of(*names: tuple[str, str], sd: float | None = 0.002, look: Look = NUMBERS) -> list[Line]:
    means = {name: -0.605 for name, _ in look.columns}
    return [Line(*name, "done", 2, "validation", True, means, dict.fromkeys(means, sd)) for name in names]


def test_trials_are_called_by_what_tells_them_apart_and_the_hash_of_their_folder() -> None:
    names = {
        ("frozen", "name=clip,dtype=fp32,precision=fp32"): "–",
        ("lora", "name=clip,dtype=fp32,precision=fp32,lr=1e-3,seed=0-0123abcd"): "lr=1e-3-0123abcd",
        ("lora", "name=clip,dtype=fp32,precision=fp32,lr=3e-3,seed=0-0123abce"): "lr=3e-3-0123abce",
        ("lora", "ensemble of 2: name=clip,dtype=fp32,precision=fp32,seed=0"): "ensemble of 2",
        ("dinov2", "name=dinov2,dtype=fp32,seed=0-0123abcf"): "name=dinov2-0123abcf",
        ("again", "name=clip,dtype=fp32,seed=0-0123abc0"): "0123abc0",
    }
    assert short_names(list(names)) == list(names.values())
    assert short_names([("lora", "name=clip,seed=0-0123abcd")]) == ["name=clip,seed=0-0123abcd"]


@pytest.mark.parametrize("columns", [60, 80, 100, 140, 200])
@pytest.mark.parametrize("sd", [None, 0.002])
def test_a_table_fits_its_terminal_and_says_what_it_leaves_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: int, sd: float | None
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    names = [(STOCK[0], f"{STOCK[1]},C={number},seed=0-0123abc{number}") for number in range(9)]
    print_tables({NUMBERS: lines_of(*names, ("butterflies-logistic", "defaults"), sd=sd)})
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns and "…" not in printed
    shown = next(line for line in printed.splitlines() if line.startswith("│")).count("│") - 5
    assert shown == 5 if columns == 200 else shown >= 3 if columns >= 100 else shown >= 1
    assert ("Left out: " in printed) == (shown < 5) and "`--format csv` has all." in " ".join(printed.split())
    assert ("rms" in printed.partition("Left out: ")[2]) == (shown < 5)
    assert printed.count("-0.605") == 10 * shown
    rows = [line.split("│") for line in printed.splitlines() if line.startswith("│")]
    assert all(f"0123abc{number}" in "".join(row[2].strip() for row in rows) for number in range(9))


def test_other_forms_have_whole_names_and_every_figure(rows: list[Row]) -> None:
    text = to_markdown({NUMBERS: lines_of((STOCK[0], STOCK[1]), (STOCK[0], f"{STOCK[1]},C=3"))})
    assert text.count(STOCK[1]) == 2 and text.count("-0.605") == 2 * len(NUMBERS.columns)


def undefined(values: dict[str, Any]) -> dict[str, Any]:
    """Results without images of new domains: the challenge's score is not defined."""
    values["summary"]["rms"] = None
    return values | BEETLES.describe({key: values[key] for key in (*TARGETS, "summary")})


def test_where_the_challenges_score_is_not_defined_crps_ranks_and_is_shown() -> None:
    experiment = plan("optim.lr=1e-3,2e-3,3e-3")
    for trial, error in zip(experiment.trials, (0.3, 0.1, 0.2), strict=True):
        finish(trial, experiment, 0.5, error=error)
        file = experiment.dir.trial(trial.name).results
        write_json(file, undefined(read_json(file)))
    tables = by_look(collect(all_experiments()))
    ((look, found),) = tables.items()
    by = sorts(tables, "rms")[look]
    assert by == "CRPS" and look.columns[-1] == ("CRPS", "CRPS") and look.led_by(by).sort == "CRPS"
    assert [line.means["MAE"] for line in summarize(found, by)] == [0.1, 0.2, 0.3]
    assert [row.figures["MAE"] for row in sort_rows(found, by)] == [0.1, 0.2, 0.3]


def test_where_some_results_have_the_challenges_score_it_ranks_and_the_others_come_after_them() -> None:
    experiment = plan("optim.lr=1e-3,2e-3")
    for trial, error in zip(experiment.trials, (0.3, 0.1), strict=True):
        finish(trial, experiment, 0.5, error=error)
    file = experiment.dir.trial(experiment.trials[1].name).results
    write_json(file, undefined(read_json(file)))
    tables = by_look(collect(all_experiments()))
    ((look, found),) = tables.items()
    assert sorts(tables, "rms") == {look: "rms"} and look.columns[-1][0] == "rms"
    assert [line.means["MAE"] for line in summarize(found, "rms")] == [0.3, 0.1]


def test_results_of_before_there_was_a_stand_in_are_shown() -> None:
    experiment = plan()
    finish(experiment.trials[0], experiment, 0.5)
    file = experiment.dir.trial(experiment.trials[0].name).results
    write_json(file, {key: value for key, value in read_json(file).items() if key != "instead"})
    (row,) = collect(all_experiments())
    assert row.state == "done" and row.instead == {}
