"""Trials on tables as labs have them, from images to `results.json`: rare classes, copies, classes that a fold does not train."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.features.hashes import known_data
from pipeline.launch.watching.preflight import copies
from pipeline.models.saved import load_model, read_trained
from pipeline.stages import evaluate, extract, train
from tests.lab import lab_config, labelled, write_table

pytestmark = pytest.mark.jobs
RARE = ["a"] * 12 + ["b"] * 10 + ["c"] * 6 + ["d", "e"]


def run(config: Config, folder: Path) -> tuple[TrialDir, dict]:
    trial = TrialDir(folder)
    extract.ensure(config)
    train.run(config, trial)
    return trial, evaluate.run(config, trial)


@pytest.mark.parametrize("head", ["{kind: logistic}", "{kind: svc}", "{kind: knn, k: 3}", "{kind: lda}", "{kind: mlp}"])
def test_every_head_goes_on_where_classes_are_rare(
    root: Path, tmp_path: Path, head: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """12/10/6/1/1 images: five folds, none of which ends."""
    table = write_table(tmp_path, labelled(tmp_path, RARE))
    for fold in (0, 3):
        quick = ("train.epochs=2",) if "mlp" in head else ()
        config = lab_config(table, f"data.split.fold={fold}", f"model.head={head}", *quick)
        trial, results = run(config, tmp_path / f"trial{fold}")
        assert list(results["classes"]) == list("abcde") and results["summary"]["warnings"]
        if "svc" in head:
            assert "d, e have fewer than the two groups" in capsys.readouterr().err
        assert TrialDir(trial.path).results.exists()


def test_a_class_that_is_not_fitted_is_never_said_to_be_one_and_the_model_is_read_so_again(root: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path, labelled(tmp_path, RARE))
    config = lab_config(table, "model.head={kind: svc}")
    trial, _ = run(config, tmp_path / "trial")
    model = load_model(config, trial, None)
    said = model.predict(__import__("torch").rand(4, 192)).mean.numpy()
    assert said.shape == (4, 5) and (said[:, 3:] == 0).all() and np.allclose(said.sum(1), 1)
    assert set(model.plain_state()) >= {"present", "n_in_all"} and read_trained(trial)


@pytest.mark.parametrize("policy", ["warn", "drop", "error"])
def test_copies_of_images_are_told_in_results_log_and_doctor(
    root: Path, tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """15 copies over 9/3/3 images of train, validation and test, and one image under two labels."""
    copied = [*range(0, 18, 2), 20, 22, 24, 30, 32, 34]
    rows = labelled(tmp_path, ["a" if i in copied or i % 3 == 0 else "b" for i in range(40)])
    splits = ["train"] * 20 + ["validation"] * 10 + ["test"] * 10
    for i in copied[1:]:
        shutil.copy(tmp_path / rows[0][0], tmp_path / rows[i][0])
    shutil.copy(tmp_path / rows[1][0], tmp_path / rows[18][0])
    table = write_table(
        tmp_path, [(*row, split) for row, split in zip(rows, splits, strict=True)], ("filename", "label", "split")
    )
    config = lab_config(table, "data.split.kind=source", f"data.on_duplicate={policy}")
    assert copies(config) == []
    if policy == "error":
        with pytest.raises(UserError, match=r"2 images are copies of one.*different truths.*; 15 images are copies"):
            run(config, tmp_path / "trial")
        return
    trial, results = run(config, tmp_path / "trial")
    warnings = results["summary"]["warnings"]
    assert any(line.startswith("2 images are copies of one, byte for byte, with different truths") for line in warnings)
    assert any(line.startswith("15 images are copies of one, byte for byte, in several splits") for line in warnings)
    assert "15 images are copies" in capsys.readouterr().err and known_data(config)
    assert any(line.startswith("15 images are copies") for line in copies(config))
    n_train, n_test = (20 - 9 - 2, 10) if policy == "drop" else (20, 10)
    assert read_json(trial.trained)["n_train"] == n_train and results["n_images"] == n_test


def test_the_names_of_datasets_stand_in_results(root: Path, tmp_path: Path) -> None:
    import datasets

    rows = labelled(tmp_path, ["0", "1"] * 15)
    features = datasets.Features({"filename": datasets.Value("string"), "label": datasets.ClassLabel(names=["ant", "bee"])})
    made = {"filename": [name for name, _ in rows], "label": [int(label) for _, label in rows]}
    datasets.Dataset.from_dict(made, features=features).save_to_disk(tmp_path / "saved")
    _, results = run(lab_config(tmp_path / "saved", f"data.images={tmp_path}"), tmp_path / "trial")
    assert set(results["classes"]) == {"ant", "bee"}
