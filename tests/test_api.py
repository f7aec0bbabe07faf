"""`import carabid`: experiments, trials and stores as they lie on disk say what the command line says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import carabid
from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import read_json
from pipeline.errors import MissingFeatures
from pipeline.experiments.reading import load_experiment
from pipeline.stages import evaluate, extract, train
from pipeline.stages.predict import Origin, predict_files, predict_group
from tests.conftest import Assets

pytestmark = pytest.mark.jobs


@pytest.fixture(scope="module")
def experiment(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> carabid.Experiment:
    """Two heads of one step each on a tail, one trial that has not begun."""
    root = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARABID_ROOT", str(root))
        grid = ("train.epochs=2", "train.batch_size=64", "optim.lr=1e-3,1e-2,1e-1", "model.encoder.blocks=1")
        made = load_experiment("configs/beetles/finetune.yaml", (*assets.overrides("finetune"), *grid))
        for trial in made.trials[:2]:
            folder = made.dir.trial(trial.name)
            extract.ensure(trial.config)
            train.run(trial.config, folder)
            evaluate.run(trial.config, folder)
        made.dir.trial(made.trials[2].name).path.mkdir()
        return carabid.open_experiment(made.dir.path)


@pytest.fixture
def images(assets: Assets, tmp_path: Path) -> list[Path]:
    """Three photographs."""
    from pipeline.tasks import load_task
    from tests.small import image_files, make_small

    load_task("beetles").generate(tmp_path / "csv", seed=0, scale=0.1, form="csv")
    return image_files(make_small(tmp_path / "csv", tmp_path / "small"))[:3]


@pytest.fixture(autouse=True)
def root(experiment: carabid.Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARABID_ROOT", str(experiment.path.parent.parent))


def test_results_are_a_frame_of_what_is_in_results_json(experiment: carabid.Experiment) -> None:
    assert [each.name for each in carabid.experiments()] == [experiment.name] == ["beetles-finetune"]
    frame = carabid.open_experiment("beetles-finetune").results().set_index("trial")
    assert len(frame) == 2 and set(frame["state"]) == {"done"}
    for trial in experiment.trials:
        assert frame.loc[trial.name, "in_domain.r2"] == read_json(trial.path / "results.json")["figures"]["in_domain.r2"]
    best = experiment.best("in_domain.r2")
    assert frame.loc[best.name, "in_domain.r2"] == frame["in_domain.r2"].max() and best.name in experiment._repr_html_()


def test_a_trial_says_of_images_what_predict_says(experiment: carabid.Experiment, images: list[Path]) -> None:
    trial = experiment.trials[0]
    said = trial.predict(images)
    assert list(said.index) == [*map(str, images)] and list(said) == list(trial.config.data.targets)
    assert said.to_dict("records") == list(predict_files(trial.path, images, Origin(), None))
    group = trial.predict_group(images)
    assert dict(zip(group.index, zip(group["mean"], group["sd"], strict=True), strict=True)) == predict_group(
        trial.path, images, Origin(), None
    )


def test_an_embedding_is_what_the_head_reads(experiment: carabid.Experiment, images: list[Path]) -> None:
    trial = experiment.trials[0]
    whole, one = trial.embed(images), trial.embed(images[1:2])
    assert whole.dtype == np.float32 and whole.shape == (3, 64) and np.allclose(whole[1], one[0], atol=1e-6)
    other = experiment.trials[1].embed(images)
    assert not np.allclose(whole, other), "each trial has learnt another encoder"


def test_tables_of_a_trial_are_frames(experiment: carabid.Experiment) -> None:
    trial = carabid.open_trial(experiment.trials[0].path)
    assert {"id", "truth", "prediction"} <= set(trial.predictions()) and {"group", "mu", "sigma"} <= set(trial.groups())
    assert list(trial.metrics()["epoch"]) == [0, 1] and trial.provenance["train"]["packages"]["torch"]
    assert trial.results["n_images"] == trial.predictions()["id"].nunique()


def test_a_store_is_an_array_in_the_order_of_its_index(experiment: carabid.Experiment) -> None:
    store = experiment.trials[0].store()
    array, index = store.array(), store.index()
    assert (
        array.dtype == np.float32
        and len(array) == len(index) == store.about["n"]
        and array.shape[1:] == tuple(store.about["shape"])
    )
    assert np.array_equal(carabid.open_store(store.path.name).array(), array) and np.isfinite(array).all()


def test_charts_are_those_of_the_report_with_their_tables(experiment: carabid.Experiment, tmp_path: Path) -> None:
    charts = experiment.charts()
    name = "tested-beetles-finetune-observed-SPEI_30d"
    assert isinstance(charts[name].table, pd.DataFrame) and charts[name]._repr_svg_().startswith("<svg")
    assert experiment.report(tmp_path / "page.html").read_text().count("<figure>") == len(charts)


def test_what_is_not_there_is_said_with_what_is_near(experiment: carabid.Experiment, tmp_path: Path) -> None:
    with pytest.raises(carabid.UserError, match=r"no experiment beetles-finetun .*beetles-finetune"):
        carabid.open_experiment("beetles-finetun")
    with pytest.raises(carabid.UserError, match="2 trials of beetles-finetune hold 'seed'"):
        experiment.trial("seed")
    assert experiment.trial(experiment.trials[1].name[-8:]) == experiment.trials[1]
    with pytest.raises(carabid.UserError, match="is not a trial's folder"):
        carabid.open_trial(tmp_path)
    with pytest.raises(MissingFeatures, match="are not there"):
        carabid.open_store("none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(carabid.UserError, match=r"has no results\.json: it is not evaluated yet"):
        _ = carabid.Trial(tmp_path / "empty").results
    with pytest.raises(carabid.UserError, match="no trial of empty has results"):
        carabid.Experiment(tmp_path / "empty").best()


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, carabid; print('torch' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"
