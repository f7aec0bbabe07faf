"""Evaluation of trained trials: two ways to the same predictions, the files it writes, new images, unreadable ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scoringrules
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir, experiment_dir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError, WorkError
from pipeline.models.saved import read_trained, write_trained
from pipeline.stages import evaluate, extract, train
from tests.conftest import Assets, carabid

pytestmark = pytest.mark.jobs

MakeConfig = Callable[..., Config]
SMALL = ("train.epochs=2", "features.dtype=fp32")
QUICK_LORA = ("model.encoder.r=4", "model.encoder.alpha=4")


def finished(config: Config, name: str = "trial") -> TrialDir:
    trial = experiment_dir(config).trial(name)
    extract.ensure(config)
    train.run(config, trial)
    return trial


def evaluated(config: Config, trial: TrialDir, **how: str) -> dict[str, object]:
    return evaluate.run(config.model_copy(update={"evaluate": config.evaluate.model_copy(update=how)}), trial)


@pytest.mark.parametrize("method", ["frozen", "finetune", "baseline", "dinov2", "lora", "combined"])
def test_predictions_from_fp32_features_and_from_images_agree(config_of: MakeConfig, method: str) -> None:
    config = config_of(method, *SMALL, *(QUICK_LORA if method in ("lora", "combined") else ()))
    trial = finished(config)
    evaluated(config, trial)
    cached = pd.read_parquet(trial.predictions)
    results = evaluated(config, trial, inputs="images")
    whole = pd.read_parquet(trial.predictions)
    np.testing.assert_allclose(whole["prediction"], cached["prediction"], atol=1e-5)
    assert results["summary"]["features_difference"]["max_abs"] <= 1e-5  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("pixels", ()),  # ridge regression
        ("pixels", ("model.head.kind=mlp", "loss.kind=crps", "optim.lr=1e-2")),
        ("baseline", ("optim.lr=1e-2",)),
        ("dinov2", ("optim.lr=1e-2",)),  # patch tokens
        ("finetune", ("optim.lr=1e-2",)),  # tokens at a cut
    ],
)
def test_predictions_from_images_are_those_from_bf16_features(config_of: MakeConfig, method: str, more: tuple[str, ...]) -> None:
    """What a store rounds is rounded in every way to a prediction; unrounded, they differ by up to 0.09."""
    epochs = ("train.epochs=5",) if more else ()
    config = config_of(method, *epochs, "features.dtype=bf16", *more)
    trial = finished(config)
    difference = evaluated(config, trial, inputs="images")["summary"]["features_difference"]  # type: ignore[index]
    assert difference["max_abs"] <= 2e-5
    assert {f"{target}.r2" for target in config.data.targets} <= difference.keys()


def test_results_have_the_schema_and_are_valid_json(config_of: MakeConfig) -> None:
    config = config_of("baseline", *SMALL)
    trial = finished(config)
    evaluate.run(config, trial)
    results = json.loads(trial.results.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert results["split"] == "test" and results["selected_on"] == "validation" and results["schema_version"] == 1
    for target in config.data.targets:
        for part in (results[target], results[target]["in_domain"], results[target]["out_of_domain"]):
            assert {"MAE", "r2", "RMSE", "n", "n_events"} <= part.keys()
        assert results[target]["n"] == results[target]["in_domain"]["n"] + results[target]["out_of_domain"]["n"]
    predictions = pd.read_parquet(trial.predictions)
    assert list(predictions.columns) == ["id", "group", "domain", "species", "target", "truth", "prediction"]
    assert len(predictions) == 3 * results["n_images"]
    provenance = json.loads(trial.provenance.read_text())
    assert provenance["train"]["device"]["threads"] == 1 and provenance["evaluate"]["packages"]["torch"]
    assert "R² in-domain" in trial.card.read_text() and "| SPEI_30d.in_domain |" in trial.card.read_text()


def test_the_reported_figures_can_be_computed_again_from_predictions_parquet(config_of: MakeConfig) -> None:
    from sklearn.metrics import mean_absolute_error, r2_score

    config = config_of("frozen", *SMALL)
    trial = finished(config)
    results = evaluate.run(config, trial)
    for target, rows in pd.read_parquet(trial.predictions).groupby("target"):
        groups = rows.groupby("group")[["truth", "prediction"]].mean()
        assert results[target]["r2"] == pytest.approx(r2_score(groups["truth"], groups["prediction"]))
        assert results[target]["MAE"] == pytest.approx(mean_absolute_error(rows["truth"], rows["prediction"]))


def test_the_split_that_selected_the_epoch_is_marked_as_optimistic(config_of: MakeConfig, root: Path) -> None:
    config = config_of("frozen", *SMALL)
    evaluated(config, finished(config), split="validation")
    assert "optimistic" in carabid("results", "--format", "markdown", root=root).stdout


def test_an_untrained_trial_is_not_evaluated(config_of: MakeConfig) -> None:
    config = config_of("frozen", *SMALL)
    with pytest.raises(WorkError, match="not evaluated"):
        evaluate.run(config, experiment_dir(config).trial("trial"))


def test_predict_prints_what_evaluation_predicts(assets: Assets, config_of: MakeConfig, root: Path, tmp_path: Path) -> None:
    from pipeline.tasks import load_task

    config = config_of("baseline", *SMALL)
    trial = finished(config)
    evaluate.run(config, trial)
    dataset = load_task("beetles").load(config.data)
    row = int(np.flatnonzero(dataset.table["split"] == "test")[0])
    file = tmp_path / "new beetle.png"
    dataset.image(row).save(file)
    done = carabid("predict", trial.path, file, "--domain", str(dataset.table["domain"][row]), root=root)
    printed = dict(re.findall(r"(\w+)=(-?[\d.]+)", done.stdout))
    expected = pd.read_parquet(trial.predictions).query("id == @dataset.table['id'][@row]")
    for target, value in zip(expected["target"], expected["prediction"], strict=True):
        assert float(printed[target]) == pytest.approx(value, abs=1e-3)


POOLS = {
    "mean": ("loss.kind=mse",),
    "precision": ("loss.kind=crps",),
    "attention": ("loss.kind=crps", "train.sample=groups", "optim.lr=1e-2", "model.species_embedding=true"),
}


@pytest.mark.parametrize("pool", POOLS)
def test_predict_forecasts_a_group_as_evaluation_does(config_of: MakeConfig, tmp_path: Path, pool: str) -> None:
    from pipeline.tasks import load_task

    config = config_of("baseline", *SMALL, f"model.pool={pool}", *POOLS[pool])
    trial = finished(config)
    evaluate.run(config, trial)
    table = load_task("beetles").load(config.data)
    test = table.table[table.table["split"] == "test"]
    group = test["group"].value_counts().index[0]
    files: list[Path] = []
    for row in test.index[test["group"] == group]:
        files.append(tmp_path / f"{row}.png")
        table.image(row).save(files[-1])
    rows = test[test["group"] == group][::-1]
    species = [option for name in rows["species"] for option in ("--species", name)]
    arguments = ["predict", "--group", str(trial.path), *map(str, files[::-1]), "--domain", rows["domain"].iloc[0]]
    done = CliRunner().invoke(app, [*arguments, *species], catch_exceptions=False)
    printed = {name: (mu, sigma) for name, mu, sigma in re.findall(r"(\w+)=(-?[\d.]+) ± ([\d.]+)", done.stdout)}
    expected = pd.read_parquet(trial.groups).query("group == @group")
    assert expected["n"].tolist() == [len(files)] * 3 and len(files) > 1
    for target, *values in expected[["target", "mu", "sigma"]].itertuples(index=False):
        assert [float(value) for value in printed[target]] == pytest.approx(values, abs=1e-3)


def test_without_calibration_sigma_is_the_spread_of_images_and_the_usual_one_of_a_single(config_of: MakeConfig) -> None:
    config = config_of("baseline", *SMALL, "calibrate.kind=spread")
    trial = finished(config)
    warnings = evaluate.run(config, trial)["summary"]["warnings"]
    usual = {target: parts["in_domain"]["alone"] for target, parts in read_json(trial.trained)["calibration"].items()}
    said = pd.read_parquet(trial.predictions).groupby(["group", "target"])["prediction"].std(ddof=1)
    groups = pd.read_parquet(trial.groups)
    assert {1, 2} <= set(groups["n"]) and not any("sigma in new domains" in warning for warning in warnings)
    for group in groups.itertuples():
        expected = usual[group.target] if group.n == 1 else max(said[group.group, group.target], 1e-3)
        assert group.sigma == pytest.approx(expected, rel=1e-5)


def test_a_sigma_that_new_domains_borrow_from_known_ones_is_said_and_one_of_their_own_is_not(config_of: MakeConfig) -> None:
    config = config_of("baseline", *SMALL)
    trial = finished(config)
    borrowed = [w for w in evaluate.run(config, trial)["summary"]["warnings"] if w.startswith("sigma in new domains")]
    assert len(borrowed) == 1  # validation is of known domains, the test split of new ones too
    record = read_trained(trial)
    for parts in record["calibration"].values():
        parts["out_of_domain"]["of_all"] = False
    write_trained(trial, record)
    assert not any("sigma in new" in w for w in evaluate.run(config, trial)["summary"]["warnings"])


def test_the_reported_scores_can_be_computed_again_from_groups_parquet(config_of: MakeConfig) -> None:
    config = config_of("baseline", *SMALL)
    trial = finished(config)
    results = evaluate.run(config, trial)
    for target, rows in pd.read_parquet(trial.groups).groupby("target"):
        assert len(rows) == results["n_events"] and (rows["sigma"] > 0).all()
        scores = scoringrules.crps_normal(rows["truth"], rows["mu"], rows["sigma"])
        assert results[target]["CRPS"] == pytest.approx(scores.mean())


def test_predict_on_a_file_that_is_no_image_is_a_clear_error(config_of: MakeConfig, root: Path, tmp_path: Path) -> None:
    config = config_of("frozen", *SMALL)
    trial = finished(config)
    (tmp_path / "x.jpg").write_text("no image")
    done = carabid("predict", trial.path, tmp_path / "x.jpg", root=root, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "x.jpg is not a readable image: its content is in no image format" in done.stderr


def test_unreadable_images_stop_the_chain_or_are_recorded_in_the_results(
    tmp_path: Path, assets: Assets, config_of: MakeConfig
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["name,split,y"]
    for i in range(40):
        split = ("train", "validation", "test")[i % 3]
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{split},{rng.normal()}")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:100])
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    columns = "data.columns={image: name, id: name, group: null, domain: null, species: null, site: null, date: null}"
    common = (columns, "data.targets=[y]", f"data.images={folder}", "train.epochs=1")
    source = tuple(o for o in assets.overrides("frozen") if not o.startswith("data.source"))
    from pipeline.experiments.reading import load_experiment

    config = load_experiment("configs/beetles/frozen.yaml", (*source, *common, f"data.source={table}")).config
    with pytest.raises(UserError, match=r"table\.csv.*line 9.*name"):
        extract.run(config)
    skipping = config.model_copy(update={"data": config.data.model_copy(update={"on_bad_image": "skip"})})
    results = evaluate.run(skipping, finished(skipping))
    assert results["summary"]["n_bad_images"] == 1 and results["summary"]["bad_images"] == ["7.png"]
    assert results["summary"]["in_domain"]["r2"] is None and results["y"]["out_of_domain"]["n"] == 0
