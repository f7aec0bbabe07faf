"""What looks at no image: climatology against pandas, boosting on planted effects, and both as whole trials."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.trial import Config
from pipeline.data.truth import Numbers
from pipeline.disk.layout import TrialDir, experiment_dir
from pipeline.disk.writing import read_json
from pipeline.features.bank import TensorBank
from pipeline.metrics.probabilistic import MIN_SIGMA
from pipeline.models.base import Facts
from pipeline.models.baselines import Boosting, Climatology
from pipeline.models.metadata import Names
from pipeline.models.saved import load_model, make_model, save_model
from pipeline.signals import StopFlag
from pipeline.stages import evaluate, extract, train
from pipeline.training.baselines import fit_boosting, fit_climatology
from pipeline.training.run import Run, Stop
from pipeline.training.samples import Samples, make_samples, predict
from tests.small import named

CPU, TARGETS = torch.device("cpu"), ("y", "z")
MakeConfig = Callable[..., Config]


def make_config(kind: str, **head: Any) -> Config:
    values = {"experiment": "x", "data": {"targets": TARGETS}, "model": {"head": {"kind": kind, **head}}}
    return Config.model_validate(named(values))


def facts_of(table: pd.DataFrame) -> Facts:
    names = Names.of({name: table[name] for name in ("domain", "species", "site")})
    return Facts(TARGETS, names, 1, "", None, "key")


def samples_of(table: pd.DataFrame, facts: Facts) -> Samples:
    return make_samples(TensorBank(torch.zeros(len(table), 1), CPU, "device"), table, facts, Numbers(facts.targets), CPU)


def run_of(config: Config) -> Run:
    return Run(TrialDir(Path("nowhere")), "", "", config, Stop(StopFlag(), lambda: True))


# ---------------------------------------------------------------- climatology
def make_groups(n: int, seed: int, unknown: float = 0.1) -> pd.DataFrame:
    """Specimens of n groups at four sites in two domains, on days around the new year; some names and days unknown."""
    rng = np.random.default_rng(seed)
    site = rng.integers(0, 4, n)
    days = [(date(2018 + i % 3, 12, 1) + timedelta(int(d))).isoformat() for i, d in enumerate(rng.integers(0, 80, n))]
    groups = pd.DataFrame({"group": [f"e{i}" for i in range(n)], "site": [f"S{s}" for s in site], "date": days})
    groups["domain"] = [f"D{s // 2}" for s in site]
    groups["species"] = None
    for name in ("site", "domain", "date"):
        groups[name] = groups[name].astype(object).where(rng.random(n) >= unknown, None)
    groups["y"], groups["z"] = rng.normal(site, 1), rng.normal(1000, 0.01, n)
    return groups.loc[np.repeat(np.arange(n), rng.integers(1, 4, n))].reset_index(drop=True)


def day_number(day: str | None) -> float:
    return float("nan") if day is None else float(pd.Timestamp(day).dayofyear)


def by_pandas(train_table: pd.DataFrame, row: Any, window: int, least: int) -> list[float]:
    """Mean and sd of each target as the docstring says, in a loop over training groups."""
    groups = train_table.drop_duplicates("group")
    days = groups["date"].map(day_number)
    apart = (days - day_number(row.date)).abs()
    near = np.minimum(apart, 365.25 - apart) <= window
    for alike in ((groups["site"] == row.site) & near, groups["domain"] == row.domain):
        if alike.sum() >= least:
            return [figure for t in TARGETS for figure in (groups.loc[alike, t].mean(), groups.loc[alike, t].std())]
    return [figure for t in TARGETS for figure in (groups[t].mean(), groups[t].std())]


@settings(max_examples=15)
@given(st.integers(0, 999), st.integers(0, 40), st.integers(2, 9))
@example(seed=293, window=0, least=2)  # two groups so alike that the floor of sigma speaks
def test_climatology_is_that_of_the_site_and_season_else_of_the_domain_else_of_all(seed: int, window: int, least: int) -> None:
    table, new = make_groups(60, seed), make_groups(20, seed + 1, unknown=0.3)
    new.loc[0, ["site", "domain"]] = ["never seen", "D0"]
    new.loc[1, ["site", "domain"]] = ["never seen", "never seen"]
    facts, config = facts_of(table), make_config("climatology", window=window, min_groups=least)
    model = make_model(config, facts, None)
    assert isinstance(model, Climatology)
    fit_climatology(model, samples_of(table, facts), samples_of(table, facts), run_of(config))
    said = predict(model, samples_of(new, facts))
    for i, row in enumerate(new.itertuples()):
        expected = by_pandas(table, row, window, least)
        found = [figure for t in range(2) for figure in (said.mean[i, t], np.sqrt(said.variance[i, t]))]
        expected[1::2] = [max(sigma, MIN_SIGMA) for sigma in expected[1::2]]
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), row
    assert (said.log_weights == 0).all()


@pytest.mark.parametrize(
    ("site", "domain", "day", "expected"),
    [
        ("A", "1", "2021-01-03", 1),  # around the new year, in another year
        ("A", "1", "2020-12-29", 1),
        ("A", "1", "2021-07-01", 4),  # no group of the season: the domain
        ("A", "2", "2021-07-01", 9),
        ("A", "1", None, 4),
        (None, "1", "2021-01-03", 4),
        ("C", "1", "2021-01-03", 4),
        ("C", None, "2021-01-03", 5.2),  # of all, those of which nothing is known too
        ("C", "3", "2021-01-03", 5.2),  # a new domain is not the one that some groups lack
    ],
)
def test_climatology_falls_back_step_by_step(site: str | None, domain: str | None, day: str | None, expected: float) -> None:
    rows = [("A", "1", "2018-12-30", 0), ("A", "1", "2019-01-02", 2), ("B", "1", "2018-06-01", 7), ("B", "1", "2019-06-01", 7)]
    rows += [("D", "2", None, 9), ("D", "2", None, 9)] + [(None, None, "2019-01-02", 4.5)] * 4  # type: ignore[list-item]
    table = pd.DataFrame(rows, columns=["site", "domain", "date", "y"], dtype=object)
    table["group"], table["species"], table["z"] = [str(i) for i in range(len(rows))], None, 0.0
    table["y"] = table["y"].astype(float)
    facts, config = facts_of(table), make_config("climatology", window=7, min_groups=2)
    model = make_model(config, facts, None)
    assert isinstance(model, Climatology)
    progress = fit_climatology(model, samples_of(table, facts), samples_of(table, facts), run_of(config)).progress
    metadata = facts.names.metadata({"site": [site], "domain": [domain], "date": [day]})
    said = model.predict(torch.zeros(1, 1), metadata)
    assert float(said.mean[0, 0]) == pytest.approx(expected) and float(said.variance[0, 1]) > 0
    assert progress.epoch == 1


# ---------------------------------------------------------------- boosting
def planted(n: int, seed: int) -> pd.DataFrame:
    """Events whose y depends on domain and season and whose z on the species, with some names unknown."""
    rng = np.random.default_rng(seed)
    domain, species, day = rng.integers(0, 3, n), rng.integers(0, 4, n), rng.integers(1, 365, n)
    table = pd.DataFrame({"group": [f"e{i}" for i in range(n)], "site": None})
    table["domain"] = pd.Series([f"D{d}" for d in domain], dtype=object)
    table["species"] = pd.Series([f"Carabus {s}" for s in species], dtype=object)
    table["date"] = [(date(2019, 1, 1) + timedelta(int(d) - 1)).isoformat() for d in day]
    table["y"] = np.array([-2.0, 0.0, 2.0])[domain] + (day > 180) + rng.normal(0, 0.1, n)
    table["z"] = np.array([5.0, -5.0, 5.0, -5.0])[species] + rng.normal(0, 0.1, n)
    return table


def boosted(seed: int = 0) -> tuple[Boosting, Facts, Config, Any]:
    table, config = planted(300, 0), make_config("boosting", rounds=100, patience=5, lr=0.3, min_leaf=5)
    config = config.model_copy(update={"seed": seed})
    facts = facts_of(table)
    model = make_model(config, facts, None)
    assert isinstance(model, Boosting)
    progress = fit_boosting(model, samples_of(table, facts), samples_of(planted(100, 1), facts), run_of(config)).progress
    return model, facts, config, progress


def test_boosting_learns_what_domain_species_and_season_tell() -> None:
    model, facts, _, progress = boosted()
    test = planted(100, 2)
    said = predict(model, samples_of(test, facts))
    for target, name in enumerate(TARGETS):
        assert np.corrcoef(said.mean[:, target], test[name])[0, 1] > 0.97
    assert (said.variance == 1).all() and (said.log_weights == 0).all()
    assert 0 <= progress.best_epoch < progress.epoch <= 100 and progress.best_metric > 0.9


def test_the_same_data_and_seed_grow_the_same_trees_to_the_bit() -> None:
    one, other = (boosted()[0].state_dict() for _ in range(2))
    assert one.keys() == other.keys() == {"target_0", "target_1"}
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_names_and_days_that_are_not_known_are_missing_values_and_predicted() -> None:
    model, facts, _, _ = boosted()
    unknown = facts.names.metadata({"domain": [None, "new"], "species": [float("nan"), "Carabus 9"], "date": [None, None]})  # type: ignore[list-item]
    assert np.isnan(model.columns(unknown)).all()
    said = model.predict(torch.zeros(2, 1), unknown).mean
    assert torch.isfinite(said).all() and torch.equal(said[0], said[1])
    known = facts.names.metadata({"domain": ["D2"], "species": ["Carabus 1"], "site": [None], "date": ["2020-02-01"]})
    assert model.columns(known)[0].tolist()[:2] == [2, 1] and model.columns(known)[0, 3] == 32


def test_every_group_counts_once_however_many_images_it_has() -> None:
    """A thousand images of one group would otherwise drown the others."""
    few = planted(60, 3)
    many = pd.concat([few, few.iloc[[0] * 1000]], ignore_index=True)
    many.loc[many["group"] == "e0", "y"] = 100.0
    config = make_config("boosting", rounds=1, lr=1.0, leaves=2, min_leaf=2000)
    facts = facts_of(many)
    model = make_model(config, facts, None)
    assert isinstance(model, Boosting)
    fit_boosting(model, samples_of(many, facts), samples_of(many, facts), run_of(config))  # no split is allowed: the mean
    expected = many.drop_duplicates("group")["y"].mean()
    assert predict(model, samples_of(few, facts)).mean[:, 0] == pytest.approx(expected, rel=1e-3)


def test_more_than_ten_targets_keep_their_order_when_they_are_loaded(tmp_path: Path) -> None:
    """(by name, target_10 stands before target_2)"""
    targets = tuple(f"t{i}" for i in range(12))
    table = planted(40, 4).assign(**{name: float(i) for i, name in enumerate(targets)})
    config = Config.model_validate(
        named({"experiment": "x", "data": {"targets": targets}, "model": {"head": {"kind": "boosting", "rounds": 1}}})
    )
    facts = Facts(targets, Names.of({"domain": table["domain"]}), 1, "", None, "key")
    model, samples = make_model(config, facts, None), samples_of(table, facts)
    assert isinstance(model, Boosting)
    fit_boosting(model, samples, samples, run_of(config))
    save_model(model, facts, TrialDir(tmp_path))
    again = load_model(config, TrialDir(tmp_path), None)
    assert predict(again, samples).mean[0].tolist() == pytest.approx(list(range(12)), abs=1e-6)


# ---------------------------------------------------------------- on disk
def climate() -> tuple[Climatology, Facts, Config]:
    table, config = make_groups(60, 0), make_config("climatology")
    facts = facts_of(table)
    model = make_model(config, facts, None)
    assert isinstance(model, Climatology)
    fit_climatology(model, samples_of(table, facts), samples_of(table, facts), run_of(config))
    return model, facts, config


@pytest.mark.parametrize("kind", ["climatology", "boosting"])
def test_a_baseline_predicts_the_same_when_it_is_loaded_and_is_saved_as_tensors_alone(kind: str, tmp_path: Path) -> None:
    model, facts, config = climate() if kind == "climatology" else boosted()[:3]
    save_model(model, facts, TrialDir(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    new = samples_of(pd.concat([make_groups(30, 5, 0.3), planted(30, 5)], ignore_index=True), facts)
    one, other = (vars(predict(each, new)) for each in (model, load_model(config, TrialDir(tmp_path), None)))
    assert all(np.all(one[name] == other[name]) for name in one)


# ---------------------------------------------------------------- whole trials
@pytest.mark.jobs
@pytest.mark.parametrize("method", ["climatology", "metadata"])
def test_a_baseline_is_trained_evaluated_and_asked_like_any_trial(config_of: MakeConfig, tmp_path: Path, method: str) -> None:
    from pipeline.tasks import load_task

    config = config_of(method)
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    train.run(config, trial)
    results = evaluate.run(config, trial)
    assert results["summary"]["rms"] > 0 and results["summary"]["mean_predictor"]["rms"] > 0
    assert not any(path.suffix in (".pkl", ".pickle", ".joblib") for path in trial.path.rglob("*"))
    model = trial.model.read_bytes()
    trial.trained.unlink()
    train.run(config, trial)
    assert trial.model.read_bytes() == model and read_json(trial.trained)["epochs"] >= 1
    dataset = load_task("beetles").load(config.data)
    dataset.image(0).save(tmp_path / "beetle.png")
    asked = ["predict", str(trial.path), str(tmp_path / "beetle.png"), "--domain", str(dataset.table["domain"][0])]
    for more in ([], ["--group"]):
        done = CliRunner().invoke(app, [*asked, *more], catch_exceptions=False)
        assert done.exit_code == 0 and done.stdout.count("=") == 3 and "nan" not in done.stdout
