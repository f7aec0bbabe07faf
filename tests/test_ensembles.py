"""Ensembles over seeds: what members say together, and what collection makes of an experiment's trials."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scoringrules
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.identity import digest
from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.disk.writing import read_hashed, read_json, write_hashed, write_json, write_table, write_text
from pipeline.errors import WorkError
from pipeline.experiments.reading import Experiment, load_experiment, saved_science
from pipeline.metrics.calibration import Calibration, Forecast
from pipeline.metrics.ensembles import combine, combine_images
from pipeline.metrics.figures import Training
from pipeline.metrics.groups import SAID, SAID_OF_IMAGES, fit_calibrations, groups_long_form, wide_form
from pipeline.metrics.probabilistic import MIN_SIGMA
from pipeline.reporting import cost
from pipeline.reporting.results import collect as collect_rows
from pipeline.reporting.state import planned_trials
from pipeline.stages import collect, ensemble, evaluate, extract, train
from pipeline.stages.predict import Origin, predict_group
from pipeline.tasks import load_task
from tests.conftest import Assets, carabid

pytestmark = pytest.mark.jobs

TARGETS = ("a", "b")
ENDS = [f"{target}_{end}" for target in TARGETS for end in SAID]


# ---------------------------------------------------------------- what members say together
def group_tables(n_members: int, seed: int, n_groups: int = 9) -> list[pd.DataFrame]:
    """Event tables of models that tell of the same groups."""
    rng = np.random.default_rng(seed)
    groups = pd.DataFrame({"group": [f"e{i}" for i in range(n_groups)], "n": rng.integers(1, 9, n_groups)})
    groups["domain"] = pd.Series([("1", "2", None)[i % 3] for i in range(n_groups)], dtype=object)
    groups = groups.assign(**{target: rng.normal(size=n_groups) for target in TARGETS})
    values = rng.normal(size=(n_members, len(ENDS), n_groups))
    return [groups.assign(**{e: v if e.endswith("_mean") else np.exp(v) for e, v in zip(ENDS, of, strict=True)}) for of in values]


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one, other, rtol=1e-12, check_like=True)


@given(st.integers(0, 10**6))
def test_one_member_is_itself(seed: int) -> None:
    (table,) = group_tables(1, seed)
    same(combine([table], TARGETS), table)


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_equal_members_say_what_each_of_them_says(seed: int, n: int) -> None:
    (table,) = group_tables(1, seed)
    same(combine([table] * n, TARGETS), table)


@given(st.integers(0, 10**6), st.permutations(range(4)))
def test_the_order_of_members_does_not_matter(seed: int, order: Sequence[int]) -> None:
    tables = group_tables(4, seed)
    same(combine([tables[i] for i in order], TARGETS), combine(tables, TARGETS))


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_disagreement_adds_to_the_variance_just_as_the_law_of_total_variance_says(seed: int, n: int) -> None:
    """(Lakshminarayanan et al. 2017, section 2.4: σ*² = mean of (σ² + μ²) − μ*².)"""
    tables = group_tables(n, seed)
    together = combine(tables, TARGETS)
    for target in TARGETS:
        means, variances = (np.array([table[f"{target}_{end}"].to_numpy() for table in tables]) for end in ("mean", "variance"))
        mean, variance = (together[f"{target}_{end}"].to_numpy() for end in ("mean", "variance"))
        assert (variance >= variances.mean(axis=0)).all()
        np.testing.assert_allclose(mean, means.mean(axis=0))
        np.testing.assert_allclose(variance, (variances + means**2).mean(axis=0) - mean**2)


@given(st.integers(0, 10**6), st.permutations(range(9)))
def test_groups_are_matched_whatever_their_order(seed: int, order: Sequence[int]) -> None:
    first, second = group_tables(2, seed)
    same(combine([first, second.iloc[list(order)].reset_index(drop=True)], TARGETS), combine([first, second], TARGETS))


@pytest.mark.parametrize(("column", "value"), [("group", "another"), ("a", 7.0), ("n", 99), ("domain", "7")])
def test_members_that_tell_of_other_groups_are_refused(column: str, value: Any) -> None:
    first, second = group_tables(2, 0)
    second.loc[0, column] = value
    for tables in ([first, second], [first, first.iloc[1:]]):
        with pytest.raises(WorkError, match="same groups"):
            combine(tables, TARGETS)


def test_predictions_for_images_are_means_and_other_images_are_refused() -> None:
    table = pd.DataFrame({"id": ["x", "y"], "group": ["e", "e"], "domain": ["1", None], "a": [0.5, 0.5]})
    first, second = (table.assign(**{f"a_{end}": values for end in SAID_OF_IMAGES}) for values in ([1.0, 2.0], [3.0, 5.0]))
    assert combine_images([first, second], ["a"])["a_prediction"].tolist() == [2.0, 3.5]
    with pytest.raises(WorkError, match="same images"):
        combine_images([first, second.iloc[::-1]], ["a"])


def test_groups_come_back_from_their_long_form() -> None:
    groups = group_tables(1, 1)[0].assign(a_mu=0.0, a_sigma=1.0, b_mu=2.0, b_sigma=3.0)
    ends = (*SAID, "mu", "sigma")
    same(wide_form(groups_long_form(groups, TARGETS), ends), groups)
    with pytest.raises(ValueError, match="equally many"):
        wide_form(groups_long_form(groups, TARGETS).iloc[1:], ends)


# ---------------------------------------------------------------- from trials to an ensemble
MLP = ("model.head.kind=mlp", "model.standardize_targets=true", "optim.lr=1e-3", "train.epochs=3")
FOLDS = ("data.split.kind=domains", "data.split.fold=0,1")
SEEDS = ("seed=0,1,2",)


def load(assets: Assets) -> Experiment:
    return load_experiment("configs/beetles/pixels.yaml", (*assets.overrides("pixels"), *MLP, *FOLDS, *SEEDS, "loss.kind=crps"))


def finish(experiment: Experiment) -> None:
    extract.ensure(experiment.config)
    for trial in experiment.trials:
        folder = experiment.dir.trial(trial.name)
        train.run(trial.config, folder)
        evaluate.run(trial.config, folder)


@pytest.fixture(scope="module")
def evaluated(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with three seeds in two folds, not collected yet."""
    root = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARABID_ROOT", str(root))
        finish(load(assets))
    return root


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing one at each collection takes longer than all else here; what stands in it is for tests/test_report.py."""
    monkeypatch.setattr(collect, "_report", lambda *_: None)


@pytest.fixture
def experiment(assets: Assets, evaluated: Path, root: Path) -> Experiment:
    """These trials, for a test to change."""
    shutil.copytree(evaluated, root, dirs_exist_ok=True)
    return load(assets)


def members(experiment: Experiment, fold: int = 0) -> list[TrialDir]:
    trials = [trial for trial in experiment.trials if trial.config.data.split.fold == fold]  # type: ignore[union-attr]
    return [experiment.dir.trial(trial.name) for trial in trials]


def ensemble_of(experiment: Experiment, fold: int = 0) -> TrialDir:
    """The ensemble of a fold's trials, collected."""
    names = {trial.path.name for trial in members(experiment, fold)}
    (found,) = [f for f in experiment.dir.ensembles() if names >= set(read_json(f.results)["members"])]
    return found


def tables(trials: Sequence[TrialDir], which: str) -> list[pd.DataFrame]:
    """Members' group tables, of validation or of what was evaluated, groups in one order."""
    if which == "validation":
        return [pd.read_parquet(trial.validation).sort_values("group", ignore_index=True) for trial in trials]
    long = [pd.read_parquet(trial.groups) for trial in trials]
    return [table.sort_values(["target", "group"], ignore_index=True) for table in long]


def test_training_keeps_what_its_calibration_was_fitted_to(experiment: Experiment) -> None:
    trial, config = members(experiment)[0], experiment.config
    record, groups = read_json(trial.trained), pd.read_parquet(trial.validation)
    ends = [f"{target}_{end}" for target in config.data.targets for end in SAID]
    assert set(groups.columns) == {"group", "domain", "n", *config.data.targets, *ends}
    again = fit_calibrations(groups, config.data.targets, Training.of(record), "scale")
    stands = {t: {p: Calibration(**values) for p, values in parts.items()} for t, parts in record["calibration"].items()}
    assert again == stands


def test_a_trial_that_is_trained_again_forgets_what_calibrated_it(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = members(experiment)[0]
    trial.model.write_bytes(b"damaged")
    monkeypatch.setattr(train, "_train", lambda *_: pytest.fail("stop"))
    with pytest.raises(pytest.fail.Exception):
        train.run(experiment.config, trial)
    assert not trial.validation.exists() and not trial.results.exists()


def test_collection_makes_an_ensemble_of_the_seeds_of_each_fold(experiment: Experiment) -> None:
    collect.run(experiment.config)
    assert len(experiment.dir.ensembles()) == 2
    for fold in (0, 1):
        found, trials = ensemble_of(experiment, fold), members(experiment, fold)
        results, of_member = read_json(found.results), read_json(trials[0].results)
        assert sorted(results["members"]) == sorted(trial.path.name for trial in trials)
        shared = ("split", "selected_on", "n_images", "n_events", "feature_key", "data_signature", "evaluation")
        assert {key: results[key] for key in shared} == {key: of_member[key] for key in shared}
        assert results.keys() == of_member.keys() | {"members", "made_from", "calibration", "sha256"}
        assert results["summary"].keys() == of_member["summary"].keys() - {"selection"}  # (nothing chose it)
        assert len(results["summary"]["warnings"]) == len(set(results["summary"]["warnings"]))


def test_trials_of_before_there_were_classes_stay_in_their_ensemble(experiment: Experiment) -> None:
    """Their config.yaml has fewer keys, which is no reason to delete what was made of them."""
    for trial in experiment.trials:
        folder = experiment.dir.trial(trial.name)
        values = yaml.safe_load(folder.config.read_text())
        del values["data"]["label"], values["data"]["positive"]
        folder.config.write_text(yaml.safe_dump(values, sort_keys=False))
        older = saved_science(folder.config)
        write_json(folder.results, read_json(folder.results) | {"config_hash": digest(older)})
    collect.run(experiment.config)
    assert len(experiment.dir.ensembles()) == 2


def test_its_figures_can_be_computed_from_its_members_files(experiment: Experiment) -> None:
    """Independently: means and variances by the paper's formula, sigma by the calibration that stands in results.json."""
    collect.run(experiment.config)
    found, trials = ensemble_of(experiment), members(experiment)
    results, each = read_json(found.results), tables(trials, "groups")
    known = set(read_json(trials[0].trained)["train_domains"])
    mean = np.mean([table["mean"] for table in each], axis=0)
    variance = np.mean([table["variance"] + table["mean"] ** 2 for table in each], axis=0) - mean**2
    trust = np.mean([table["trust"] for table in each], axis=0)
    assert (trust <= 1).all() and (trust == 1).mean() > 0.8
    frame = each[0][["group", "domain", "n", "target", "truth"]].assign(mean=mean, variance=variance, trust=trust)
    frame["part"] = np.where(frame["domain"].isin(known), "in_domain", "out_of_domain")
    assert set(frame["part"]) == {"in_domain", "out_of_domain"}
    for (target, part), rows in frame.groupby(["target", "part"]):
        fit = results["calibration"][target][part]
        sigma = np.sqrt(rows["variance"] * (fit["shared"] ** 2 + fit["own"] ** 2 / rows["n"])).clip(fit["floor"])
        w, off = rows["trust"], rows["mean"] - fit["usual"]  # a mixture of what is said with what is usual
        sigma = np.sqrt(w * (sigma**2 + off**2) + (1 - w) * fit["usual_sd"] ** 2 - (w * off) ** 2)
        expected = scoringrules.crps_normal(rows["truth"], fit["usual"] + w * off, sigma).mean()
        assert results[target][part]["CRPS"] == pytest.approx(expected)
    written = tables([found], "groups")[0]
    for name in ("mean", "variance"):
        np.testing.assert_allclose(written[name], frame[name])
    images = [pd.read_parquet(trial.predictions) for trial in trials]
    errors = np.mean([table["prediction"] for table in images], axis=0) - images[0]["truth"]
    for target, rows in errors.abs().groupby(images[0]["target"]):
        assert results[target]["MAE"] == pytest.approx(rows.mean())


def test_it_is_calibrated_on_its_own_forecasts_of_the_validation_groups(experiment: Experiment) -> None:
    """No shared or own near those in results.json gives a lower CRPS on the groups that they were fitted to."""
    collect.run(experiment.config)
    trials = members(experiment)
    results, each = read_json(ensemble_of(experiment).results), tables(trials, "validation")
    known = each[0]["domain"].isin(read_json(trials[0].trained)["train_domains"]).to_numpy()
    for target in experiment.config.data.targets:
        mean = np.mean([table[f"{target}_mean"] for table in each], axis=0)
        second = np.mean([table[f"{target}_variance"] + table[f"{target}_mean"] ** 2 for table in each], axis=0)
        spread = np.full(len(mean), np.nan)  # nobody asks for it here
        trust = np.mean([table[f"{target}_trust"] for table in each], axis=0)
        whole = Forecast(mean, second - mean**2, each[0]["n"].to_numpy("float64"), spread, trust)
        for part, its_own in (("in_domain", known), ("out_of_domain", ~known)):
            fit = results["calibration"][target][part]
            rows = np.full(len(known), True) if fit["of_all"] else its_own
            truth, forecast = each[0][target].to_numpy()[rows], whole[rows]
            bare = {**fit, "floor": MIN_SIGMA}  # (the floor comes last, and only betters it)
            near = [fit, bare, *({**bare, name: fit[name] * by} for name in ("shared", "own") for by in (0.8, 1.25))]
            best, *others = (scoringrules.crps_normal(truth, *Calibration(**one)(forecast)).mean() for one in near)
            assert fit["groups"] == len(truth) and best <= min(others) + 1e-9


def test_points_make_an_ensemble_too(assets: Assets, root: Path) -> None:
    """A point has variance 1 in the head's units: the ensemble's is that and the disagreement of its members."""
    points = load_experiment("configs/beetles/pixels.yaml", (*assets.overrides("pixels"), *MLP, "loss.kind=mse", "seed=0,1"))
    finish(points)
    collect.run(points.config)
    (found,) = points.dir.ensembles()
    each = tables([points.dir.trial(trial.name) for trial in points.trials], "groups")
    sds = read_json(points.dir.trial(points.trials[0].name).trained)["train_sds"]
    assert each[0]["variance"].round(9).nunique() == 3
    np.testing.assert_allclose(each[0]["variance"], each[0]["target"].map(sds) ** 2, rtol=1e-5)
    expected = each[0]["variance"] + ((each[0]["mean"] - each[1]["mean"]) / 2) ** 2
    np.testing.assert_allclose(tables([found], "groups")[0]["variance"], expected)


def test_predict_forecasts_a_group_as_the_ensemble_was_evaluated(experiment: Experiment, assets: Assets, tmp_path: Path) -> None:
    """Its folder, or its name among what is trained, stands where a trial's would."""
    collect.run(experiment.config)
    found, config = ensemble_of(experiment), experiment.config
    dataset = load_task("beetles").load(config.data)
    rows = pd.read_parquet(found.groups)
    assert rows["n"].nunique() > 1
    for group in rows.drop_duplicates("n")["group"]:
        some = dataset.table[dataset.table["group"] == group]
        files = [tmp_path / f"{group}-{i}.png" for i in some.index]
        for i, file in zip(some.index, files, strict=True):
            dataset.image(i).save(file)
        expected = {row.target: (row.mu, row.sigma) for row in rows[rows["group"] == group].itertuples()}
        name, origin = found.path.relative_to(experiment.dir.path.parent), Origin(some["domain"].iloc[0])
        said = predict_group(name, files, origin, "cpu")
        assert said.keys() == expected.keys()
        for target, forecast in said.items():
            assert forecast == pytest.approx(expected[target], abs=2e-3), (group, target)  # (features are stored in bf16)
        assert predict_group(members(experiment)[0].path, files, origin, "cpu") != said


def test_a_bad_image_of_a_group_is_named_once_and_not_once_per_member(
    experiment: Experiment, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collect.run(experiment.config)
    files = [tmp_path / f"{i}.png" for i in range(4)]
    for i in (0, 2, 3):
        Image.new("RGB", (40, 30), (60 * i, 120, 30)).save(files[i])
    files[1].write_bytes(b"no image")
    folder, bad = ensemble_of(experiment).path, list[Path]()
    said = predict_group(folder, files, Origin(species=("a", "b", "c", "d")), "cpu", bad)
    assert bad == [files[1]] and capsys.readouterr().err.count(str(files[1])) == 1
    assert predict_group(folder, [files[i] for i in (0, 2, 3)], Origin(species=("a", "c", "d")), "cpu") == said


def test_an_ensemble_that_is_out_of_date_is_not_predicted_with(experiment: Experiment, assets: Assets, tmp_path: Path) -> None:
    collect.run(experiment.config)
    found, trial = ensemble_of(experiment), members(experiment)[0]
    write_json(trial.results, read_json(trial.results) | {"more": 1})
    with pytest.raises(WorkError, match="carabid collect"):
        predict_group(found.path, [tmp_path / "x.png"], Origin(), "cpu")


# ---------------------------------------------------------------- when it is made again
def written(experiment: Experiment) -> dict[str, tuple[int, bytes]]:
    """What tells whether an ensemble has been written again."""
    return {f.path.name: (f.results.stat().st_ino, f.results.read_bytes()) for f in experiment.dir.ensembles()}


def become(trial: TrialDir, other: TrialDir) -> None:
    """Make a trial's results those of another model of the same groups, as if it had been trained again."""
    for name in ("validation", "groups", "predictions"):
        shutil.copy(getattr(other, name), getattr(trial, name))
    own = read_json(trial.config.parent / "trained.json")["config_hash"]
    write_json(trial.results, read_json(other.results) | {"config_hash": own})


def test_collecting_again_changes_nothing(experiment: Experiment) -> None:
    collect.run(experiment.config)
    before, csv = written(experiment), experiment.dir.results_csv.read_bytes()
    assert not ensemble.update_ensembles(experiment.dir)
    collect.run(experiment.config)
    assert written(experiment) == before and experiment.dir.results_csv.read_bytes() == csv


def test_the_same_trials_make_the_same_bytes(experiment: Experiment) -> None:
    collect.run(experiment.config)
    before = {name: text for name, (_, text) in written(experiment).items()}
    shutil.rmtree(experiment.dir.path / "ensembles")
    collect.run(experiment.config)
    assert {name: text for name, (_, text) in written(experiment).items()} == before


def test_a_member_that_is_trained_again_makes_its_ensemble_again_and_no_other(experiment: Experiment) -> None:
    collect.run(experiment.config)
    before, mine = written(experiment), ensemble_of(experiment).path.name
    become(members(experiment)[1], members(experiment)[2])
    assert len([row for row in collect_rows([experiment.dir]) if row.members]) == 1, "an outdated ensemble is not shown"
    collect.run(experiment.config)
    changed = {name for name, state in written(experiment).items() if state != before[name]}
    assert changed == {mine}
    assert len([row for row in collect_rows([experiment.dir]) if row.members]) == 2


def test_a_trial_that_is_trained_anew_to_the_same_model_leaves_the_ensemble_as_it_is(experiment: Experiment) -> None:
    collect.run(experiment.config)
    before, trial = written(experiment), members(experiment)[0]
    config = next(each.config for each in experiment.trials if each.name == trial.path.name)
    trial.trained.unlink()
    train.run(config, trial)
    evaluate.run(config, trial)
    collect.run(experiment.config)
    assert written(experiment) == before


def test_members_come_and_go_and_with_the_last_but_one_the_ensemble_goes(experiment: Experiment) -> None:
    trials = members(experiment)
    third = trials[2].results.read_bytes()
    trials[2].results.unlink()
    collect.run(experiment.config)
    found = ensemble_of(experiment)
    assert len(read_json(found.results)["members"]) == 2
    trials[2].results.write_bytes(third)
    collect.run(experiment.config)
    assert len(read_json(found.results)["members"]) == 3
    for trial in trials[1:]:
        shutil.rmtree(trial.path)
    collect.run(experiment.config)
    assert not found.path.exists() and len(experiment.dir.ensembles()) == 1


def test_a_trial_that_was_evaluated_in_another_way_is_in_no_ensemble_with_the_others(experiment: Experiment) -> None:
    trial = members(experiment)[0]
    config = next(each.config for each in experiment.trials if each.name == trial.path.name)
    evaluate.run(config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"split": "validation"})}), trial)
    collect.run(experiment.config)
    assert trial.path.name not in read_json(ensemble_of(experiment).results)["members"]


def test_results_of_other_data_are_in_no_ensemble_with_the_others(experiment: Experiment) -> None:
    trial = members(experiment)[0]
    write_json(trial.results, read_json(trial.results) | {"data_signature": "another"})
    collect.run(experiment.config)
    assert trial.path.name not in read_json(ensemble_of(experiment).results)["members"]


def test_a_folder_keeps_its_name_whatever_its_members_are_called(experiment: Experiment) -> None:
    """A YAML that has changed names its trials otherwise; the same ensemble is found by the end of its name."""
    collect.run(experiment.config)
    found = ensemble_of(experiment)
    renamed = found.path.with_name(f"earlier-{found.path.name.rpartition('-')[2]}")
    found.path.rename(renamed)
    become(members(experiment)[1], members(experiment)[2])
    collect.run(experiment.config)
    assert ensemble_of(experiment).path == renamed and len(experiment.dir.ensembles()) == 2


# ---------------------------------------------------------------- what is amiss
def test_a_damaged_file_of_a_member_is_said_once_and_the_others_are_an_ensemble(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    trial, *others = members(experiment)
    whole = trial.validation.read_bytes()
    trial.validation.write_bytes(whole[:100])
    for _ in range(2):
        collect.run(experiment.config)
        said = [line for line in capsys.readouterr().err.splitlines() if "in no ensemble" in line]
        assert len(said) == 1 and str(trial.validation) in said[0]
        found = ensemble_of(experiment)
        assert read_json(found.results)["members"] == sorted(other.path.name for other in others)
    before = written(experiment)
    collect.run(experiment.config)
    assert written(experiment) == before
    trial.validation.write_bytes(whole)
    collect.run(experiment.config)
    assert len(read_json(found.results)["members"]) == 3


@pytest.mark.parametrize("name", ["groups", "predictions", "trained"])
def test_any_file_may_be_damaged_or_of_an_older_form(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    first, second, third = members(experiment)
    path: Path = getattr(first, name)
    path.write_text("{}")
    if name == "groups":  # as evaluation wrote it before it kept mean and variance
        write_table(second.groups, pd.read_parquet(third.groups).drop(columns=["mean", "variance"]))
    collect.run(experiment.config)
    said = capsys.readouterr().err
    assert str(path) in said and "Delete the trial's folder and submit it again" in said
    assert len(experiment.dir.ensembles()) == (1 if name == "groups" else 2)
    assert experiment.dir.results_csv.exists()


def test_trials_of_before_say_so_in_one_line(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    for trial in members(experiment, 0) + members(experiment, 1)[:2]:
        trial.validation.unlink()
    collect.run(experiment.config)
    said = [line for line in capsys.readouterr().err.splitlines() if "ensemble" in line]
    assert len(said) == 1 and "and 2 others" in said[0] and "validation.parquet" in said[0]
    assert experiment.dir.ensembles() == []


def test_whatever_goes_wrong_with_ensembles_the_results_are_collected(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("by chance")

    monkeypatch.setattr("pipeline.metrics.groups.fit_calibrations", fail)
    collect.run(experiment.config)
    said = capsys.readouterr()
    assert "no ensemble of" in said.err and "by chance" in said.err and "6 of 6 trials have results" in said.out
    assert experiment.dir.results_csv.read_text().count(",done,") == 6


def test_members_that_were_trained_on_other_targets_are_refused(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = members(experiment)[0]
    write_hashed(trial.trained, read_hashed(trial.trained) | {"table_hash": "another"})
    collect.run(experiment.config)
    assert "trained on different targets" in capsys.readouterr().err and len(experiment.dir.ensembles()) == 1


def test_an_ensemble_whose_file_is_damaged_is_made_again(experiment: Experiment, capsys: pytest.CaptureFixture[str]) -> None:
    collect.run(experiment.config)
    before, found = written(experiment), ensemble_of(experiment)
    write_text(found.results, "{")
    rows = collect_rows([experiment.dir])
    assert str(found.results) in capsys.readouterr().err and len([row for row in rows if row.members]) == 1
    collect.run(experiment.config)
    assert {name: text for name, (_, text) in written(experiment).items()} == {n: t for n, (_, t) in before.items()}


def test_the_last_of_several_collectors_leaves_the_ensemble_of_all_members(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that read early may write late; what it finds when it looks again is right."""
    late = members(experiment)[2]
    third = late.results.read_bytes()
    late.results.unlink()
    real, calls = ensemble._write, []

    def write_late(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:  # between this collector's look and its writing another result comes, and is collected
            late.results.write_bytes(third)
            collect.run(experiment.config)
        real(*arguments)

    monkeypatch.setattr(ensemble, "_write", write_late)
    collect.run(experiment.config)
    for fold in (0, 1):
        assert len(read_json(ensemble_of(experiment, fold).results)["members"]) == 3
    rows = [row for row in collect_rows([experiment.dir]) if row.members]
    assert [len(row.members) for row in rows] == [3, 3]
    assert all(row.trial in experiment.dir.results_csv.read_text() for row in rows)


def test_two_that_write_at_the_same_moment_do_not_fail(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = ensemble._write, []

    def beaten(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            real(*arguments)
            raise OSError(39, "Directory not empty")
        real(*arguments)

    monkeypatch.setattr(ensemble, "_write", beaten)
    collect.run(experiment.config)
    assert len(calls) == 2 and len(experiment.dir.ensembles()) == 2


# ---------------------------------------------------------------- where it is seen, and where not
def test_ensembles_are_in_every_table_and_no_trials(experiment: Experiment, root: Path) -> None:
    said = carabid("collect", PROJECT / "configs/beetles/pixels.yaml", root=root).stdout
    assert "6 of 6 trials have results, and there are 2 ensembles of them" in said
    names = {trial.name for trial in experiment.trials}
    assert set(planned_trials(experiment.dir)) == names
    rows = collect_rows([experiment.dir])
    assert {row.trial for row in rows if not row.members} == names and len(rows) == len(names) + 2
    assert [spent.trial for spent in cost.collect([experiment.dir], rows)] == planned_trials(experiment.dir)
    status = carabid("status", root=root).stdout
    assert status.endswith("beetles-pixels: 6 done\n") and "ensemble" not in status
    table = carabid("results", "--format", "markdown", "--sort", "rms", root=root).stdout
    (line,) = [line for line in table.splitlines() if "ensemble of 3: " in line]
    assert " | 2 | test | " in line and "±" in line
    for form in ("csv", "json"):
        assert carabid("results", "--format", form, root=root).stdout.count("ensembles/") == 2


FREE_OF_TORCH = """
import sys
from pipeline.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
sys.exit(", ".join({"torch", "open_clip", "transformers", "peft"} & set(sys.modules)) or None)
"""


def test_collecting_loads_no_torch(experiment: Experiment) -> None:
    command = [sys.executable, "-c", FREE_OF_TORCH, "collect", str(PROJECT / "configs/beetles/pixels.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    assert len(experiment.dir.ensembles()) == 2


def test_the_error_of_the_mean_is_no_larger_than_the_mean_of_the_errors(experiment: Experiment) -> None:
    collect.run(experiment.config)
    found, each = read_json(ensemble_of(experiment).results), [read_json(m.results) for m in members(experiment)]
    for target in experiment.config.data.targets:
        assert found[target]["RMSE"] ** 2 < np.mean([results[target]["RMSE"] ** 2 for results in each])
