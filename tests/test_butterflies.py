"""The butterflies' task: from photographs to figures, and the exported submission, which scores as the trained model does."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.backbones import halves
from pipeline.config.split import SourceSplit
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import Experiment, load_experiment
from pipeline.export.check import check
from pipeline.export.clean import environment
from pipeline.export.codabench import export
from pipeline.metrics.classification import roc_auc
from pipeline.models.plain import spread
from pipeline.reporting.results import by_look, collect
from pipeline.stages import evaluate, extract, train
from pipeline.stages.predict import Origin, predict_files, predict_group
from pipeline.tasks import load_task
from tests.conftest import Assets, carabid
from tests.test_export import MODELS

pytestmark = pytest.mark.jobs

CONFIG = "configs/butterflies/logistic.yaml"
QUICK = ("device=cpu", "features.dtype=fp32", "data.split.fold=0", "resources.lease_seconds=1")
MLP = ("train.epochs=3", "train.precision=fp32", "optim.lr=1e-2")
ROUNDED = "features.dtype=bf16"
PIXELS = ("backbone={kind: pixels, size: 8}", "model.normalize=false", "model.encoder.kind=frozen")
TRIALS = {
    "logistic": (*PIXELS, "model.head.kind=logistic", ROUNDED),
    "svc": (*PIXELS, "model.head.kind=svc", "select.folds=3"),
    "sgd": (*PIXELS, "model.head.kind=sgd", "model.head.max_iter=100"),
    "knn": (*PIXELS, "model.head.kind=knn"),
    "gaussian_process": (*PIXELS, "model.head.kind=gaussian_process"),
    "lda": (*PIXELS, "model.head.kind=lda"),
    "trees": (*PIXELS, "model.head.kind=hist_gradient_boosting", "model.head.rounds=10"),
    "mahalanobis": (*PIXELS, "model.head.kind=mahalanobis", "data.columns.auxiliary=[subspecies,parent_subspecies_1]"),
    "knn_distance": (*PIXELS, "model.head.kind=knn_distance"),
    "mlp": (
        *PIXELS, *MLP, ROUNDED, "model.head={kind: mlp, hidden: [8]}", "loss.auxiliary=0.5", "loss.balanced=true", "loss.focal=1",
        "data.columns.auxiliary=[subspecies,parent_subspecies_1,parent_subspecies_2]", "model.standardize_features=true",
    ),
}  # fmt: skip
TAILS = {
    "lora": ("model.encoder={kind: lora, blocks: 1, r: 4}", "model.head={kind: mlp, hidden: [8]}", *MLP, ROUNDED),
    "finetuned": ("model.encoder={kind: finetuned, blocks: 1}", "model.head={kind: mlp, hidden: []}", *MLP),
}
FLIPS = "augment.images={flip: true, rotation: 10, scale: 0.1, shift: 0.05}"
END_TO_END = (
    "model.encoder={kind: end_to_end}",
    "model.head={kind: mlp, hidden: []}",
    "train.epochs=1",
    "train.precision=fp32",
    "optim.lr=1e-3",
)
OTHERS = {
    "network": ("backbone={kind: timm, name: test_resnet, image_size: 32}", *END_TO_END, FLIPS),
    "rounded network": ("backbone={kind: timm, name: test_resnet, image_size: 32}", *END_TO_END, FLIPS, ROUNDED),
    "whole dinov2": ("backbone={kind: dinov2, name: DINOV2, pooling: cls_mean}", *END_TO_END),
    "dinov2": ("backbone={kind: dinov2, name: DINOV2, pooling: cls_mean}", "model.head.kind=lda"),
    "timm": ("backbone={kind: timm, name: test_vit, image_size: 64}", "model.head.kind=lda"),
    "concat": (
        "backbone={kind: concat, parts: [{kind: pixels, size: 8}, CLIP, {kind: dinov2, name: DINOV2}]}",
        "model.head.kind=lda",
    ),
}
"""Other backbones: whole ones that learn, one of them from stored images that are rounded, and several side by side."""
DRIVER = f"""{MODELS}
folders, files, said = json.load(open(sys.argv[1])), json.load(open(sys.argv[2])), {{}}
for folder, model in models(folders):
    model.load()
    scores = [model.predict(Image.open(file)) for file in files]
    assert all(type(score) is float for score in scores)
    said[folder] = [scores, [model.log_odds(Image.open(file)) for file in files[:-1]]]
assert not {{"pipeline", "peft", "sklearn", "skops"}} & set(sys.modules)
json.dump(said, open(sys.argv[3], "w"))
"""
"""Lets exported folders score photographs; the last file is one that does not decode."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("butterflies")
    load_task("butterflies").generate(folder / "data", seed=0, scale=0.1)
    return folder / "data" / "butterflies.csv"


def load(table: Path, *overrides: str) -> Experiment:
    columns = ("data.columns.domain=ssp_indicator", f"data.images={table.parent / 'images'}")
    given = {text.partition("=")[0] for text in overrides}
    quick = (text for text in QUICK if text.partition("=")[0] not in given)
    return load_experiment(CONFIG, (f"data.source={table}", *columns, *quick, *overrides))


def finish(experiment: Experiment) -> TrialDir:
    (trial,) = experiment.trials
    folder = experiment.dir.trial(trial.name)
    extract.ensure(trial.config)
    train.run(trial.config, folder)
    evaluate.run(trial.config, folder)
    return folder


@pytest.fixture(scope="module")
def trained(table: Path, assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, TrialDir]]:
    """A trial of each kind, trained and evaluated."""
    clip = f"backbone={{kind: open_clip, name: 'local-dir:{assets.clip}'}}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARABID_ROOT", str(tmp_path_factory.mktemp("trained")))
        patch.setattr(halves, "_shrinks", lambda *_: (1.0, 1.0))  # to the bit what Pillow alone gives a submission
        kinds = TRIALS | {name: (clip, *overrides) for name, overrides in TAILS.items()}
        kinds |= {
            name: tuple(text.replace("DINOV2", f"'{assets.dinov2}'").replace("CLIP", clip.partition("=")[2]) for text in more)
            for name, more in OTHERS.items()
        }
        yield {name: finish(load(table, *overrides)) for name, overrides in kinds.items()}


@pytest.fixture(scope="module")
def photographs(table: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photographs in the modes that people save, and at the end one that opens and does not decode."""
    folder, files = tmp_path_factory.mktemp("photographs"), []
    for i, path in enumerate(sorted((table.parent / "images").iterdir())[:8]):
        files.append(folder / f"{i}.png")
        Image.open(path).convert(("RGB", "RGBA", "L", "P")[i % 4]).save(files[-1])
    broken = folder / "broken.png"
    broken.write_bytes(files[0].read_bytes()[: files[0].stat().st_size // 2])
    return [*files, broken]


# ---------------------------------------------------------------- results
def test_every_kind_of_classifier_is_evaluated_in_one_schema(trained: dict[str, TrialDir]) -> None:
    for name, trial in trained.items():
        results = read_json(trial.results)
        assert {"roc_auc", "average_precision", "balanced_accuracy", "log_loss", "intervals"} <= results["summary"].keys()
        assert set(results["classes"]) == {"hybrid", "non-hybrid"} and results["summary"]["positive"] == "hybrid"
        assert {"challenge_score", "mimic_recall", "A_PRC_AUC"} <= results["challenge"].keys(), name
        assert results["summary"]["selection"]["metric"] == "roc_auc"
        assert results["selected_on"] == ("cross-validation" if name == "svc" else "validation")
        said = pd.read_parquet(trial.predictions)
        assert said.groupby("id")["prediction"].sum().to_numpy() == pytest.approx(1, abs=1e-5)


def test_classifiers_find_hybrids_among_generated_butterflies(trained: dict[str, TrialDir]) -> None:
    scores = {name: read_json(trained[name].results)["summary"]["roc_auc"] for name in ("logistic", "svc", "trees")}
    assert min(scores.values()) > 0.6, scores


def test_images_of_a_group_are_on_one_side(table: Path) -> None:
    experiment = load(table, *TRIALS["lda"])
    found = load_task("butterflies").load(experiment.config.data).table
    assert found["group"].duplicated().any() and found.groupby("group")["split"].nunique().max() == 1
    hybrids = found[found["label"] == "hybrid"].groupby("split")["group"].nunique()
    assert abs(hybrids["test"] - hybrids["validation"]) <= 1 and abs(hybrids["train"] - 3 * hybrids["test"]) <= 3


def test_folds_of_its_own_leave_no_validation_image_to_evaluate_on(trained: dict[str, TrialDir], table: Path) -> None:
    with pytest.raises(UserError, match=r"select\.folds 3 fits validation images too"):
        load(table, *TRIALS["svc"], "evaluate.split=validation")


def test_held_out_images_are_those_that_the_trial_was_chosen_by(trained: dict[str, TrialDir], table: Path) -> None:
    """Of a trial with folds of its own: those of training and validation, each as it was left out."""
    found = load_task("butterflies").load(load(table, *TRIALS["svc"]).config.data).table
    for name, splits in {"svc": ["train", "validation"], "lda": ["validation"]}.items():
        held_out = pd.read_parquet(trained[name].validation)
        learnt = found[found["split"].isin(splits)]
        assert set(held_out["group"]) == set(learnt["group"])
        said = held_out.set_index("group")["hybrid_stat=hybrid_mean"]
        truth = learnt.groupby("group")["label"].first()
        chosen_by = read_json(trained[name].trained)["best_metric"]
        assert roc_auc(truth.to_numpy() == "hybrid", said[truth.index].to_numpy()) == pytest.approx(chosen_by, abs=0.05), name


def test_folds_of_its_own_are_refused_where_a_group_is_on_both_sides(table: Path, root: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(table, dtype=str)
    doubled = pd.concat([rows.assign(split="train"), rows[:40].assign(split="validation"), rows[40:60].assign(split="test")])
    doubled.to_csv(tmp_path / "data.csv", index=False)
    experiment = load(table, *TRIALS["svc"])
    config = experiment.config.model_copy(
        update={"data": experiment.config.data.model_copy(update={"source": f"{tmp_path / 'data.csv'}", "split": SourceSplit()})}
    )
    extract.ensure(config)
    with pytest.raises(UserError, match="cannot keep a group in one fold"):
        train.run(config, TrialDir(tmp_path / "trial"))


def test_a_name_that_tells_the_class_by_itself_is_not_learnt_from(table: Path, root: Path) -> None:
    """Subspecies are blank just for hybrids."""
    experiment = load(table, *TRIALS["mlp"], "model.species_embedding=true")
    extract.ensure(experiment.config)
    with pytest.raises(UserError, match=r"column subspecies .* tells the class of every training image by itself"):
        train.run(experiment.config, TrialDir(root / "trial"))


def test_a_folder_of_images_is_looked_for_beside_the_table(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images", "photos"):  # the first is beside the table too, which counts more than where one happens to be
        (tmp_path / name).mkdir()
    found = load_experiment(CONFIG, (f"data.source={table}", "data.images=photos")).config
    assert found.data.images == str(tmp_path / "photos")
    for source in (table, table.parent):
        config = load_experiment(CONFIG, (f"data.source={source}",)).config
        assert config.data.images == str(table.parent / "images")
    assert load_experiment(CONFIG, (f"data.source={table}", "data.images=new")).config.data.images == f"{table.parent / 'new'}"


def test_hybrids_must_be_named(table: Path) -> None:
    with pytest.raises(UserError, match=r"Set data\.positive to one of hybrid, non-hybrid"):
        load_task("butterflies").load(load(table, "data.positive=null").config.data)


def test_balanced_classes_learn_otherwise(trained: dict[str, TrialDir], table: Path, root: Path) -> None:
    plain = finish(load(table, *[each for each in TRIALS["mlp"] if each != "loss.balanced=true"]))
    p = [pd.read_parquet(trial.predictions)["prediction"] for trial in (trained["mlp"], plain)]
    assert not np.allclose(p[0], p[1], atol=1e-3)


def test_a_classifiers_file_that_is_damaged_is_trained_again(
    trained: dict[str, TrialDir], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, trial = load(table, *TRIALS["lda"]), trained["lda"]
    before = trial.classifier.read_bytes()
    trial.classifier.write_bytes(before[:100])
    with pytest.raises(WorkError, match=r"classifier\.skops"):
        evaluate.run(experiment.config, trial)
    finish(experiment)
    assert "trained again" in capsys.readouterr().out and trial.classifier.stat().st_size > 100


def test_results_of_classes_have_a_table_of_their_own(trained: dict[str, TrialDir]) -> None:
    tables = by_look(collect([ExperimentDir(trained["lda"].path.parent)]))
    ((look, rows),) = tables.items()
    assert look.sort == "roc_auc" and look.header[-1] == "validation"
    assert all("challenge_score" in row.figures and "hybrid.recall" in row.figures for row in rows)


def test_predict_says_the_probability_of_each_class(trained: dict[str, TrialDir], photographs: list[Path]) -> None:
    for name in ("mlp", "lda"):
        (said,) = predict_files(trained[name].path, photographs[:1], Origin(), "cpu")
        assert list(said) == ["hybrid_stat=hybrid", "hybrid_stat=non-hybrid"] and sum(said.values()) == pytest.approx(1)
        group = predict_group(trained[name].path, photographs[:2], Origin(), "cpu")
        assert group["hybrid_stat=hybrid"][1] is None and 0 <= group["hybrid_stat=hybrid"][0] <= 1


# ---------------------------------------------------------------- the submission
@pytest.fixture(scope="module")
def clean() -> Iterator[Path]:
    with environment(None) as interpreter:
        yield interpreter


@pytest.fixture(scope="module")
def submitted(
    trained: dict[str, TrialDir], photographs: list[Path], clean: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What exported folders say, in a process of its own: scores, and log odds of those that decode."""
    here = tmp_path_factory.mktemp("submitted")
    folders = {name: export([t.path], here / name, zipped=False, with_backbone=True) for name, t in trained.items()}
    both = [trained["lda"].path, trained["mlp"].path]
    folders["both"] = export(both, here / "both", zipped=False, with_backbone=True)
    answer = answered(list(folders.values()), list(map(str, photographs)), clean, here)
    return {name: answer[str(folder)] for name, folder in folders.items()}


def answered(folders: list[Path], photographs: list[str], python: Path, here: Path) -> dict[str, Any]:
    """What exported folders say of photographs, the last of which counts for its score alone."""
    (here / "folders.json").write_text(json.dumps(list(map(str, folders))))
    (here / "files.json").write_text(json.dumps(photographs))
    files = [str(here / name) for name in ("folders.json", "files.json", "answer.json")]
    environ = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, "-c", DRIVER, *files], capture_output=True, text=True, env=environ, timeout=300)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads((here / "answer.json").read_text())
    return answer


def test_a_submission_says_the_probabilities_that_predict_says(
    trained: dict[str, TrialDir], submitted: dict[str, Any], photographs: list[Path]
) -> None:
    for name, trial in trained.items():
        said = [each["hybrid_stat=hybrid"] for each in predict_files(trial.path, photographs[:-1], Origin(), "cpu")]
        odds = np.array(submitted[name][1])
        # Log odds of a Gaussian process are by another, finer quadrature; k-NN's are clipped (see models/plain.py).
        tolerance = {"gaussian_process": 1e-3}.get(name, 2e-6 if name in TRIALS and name != "mlp" else 1e-5)
        assert 1 / (1 + np.exp(-odds)) == pytest.approx(said, abs=tolerance), name


def test_a_submission_says_the_probabilities_that_were_evaluated(
    trained: dict[str, TrialDir], table: Path, clean: Path, tmp_path: Path
) -> None:
    """From stores of fp32, and of bf16, which round what they hold (images, embeddings, tokens at a cut): who learnt from such
    reads such. A number between two of bf16 may be rounded to the other one here."""
    names = ("network", "rounded network", "whole dinov2", "logistic", "mlp", "lora", "finetuned")
    folders = {name: export([trained[name].path], tmp_path / name, zipped=False, with_backbone=True) for name in names}
    rows = pd.read_parquet(trained["network"].predictions).query("target == 'hybrid_stat=hybrid'")
    files = [str(table.parent / "images" / name) for name in rows["id"]]
    odds = answered(list(folders.values()), [*files, files[0]], clean, tmp_path)
    for name, folder in folders.items():
        told = pd.read_parquet(trained[name].predictions).query("target == 'hybrid_stat=hybrid'")
        assert told["id"].tolist() == rows["id"].tolist() and len(told) > 20
        tolerance = 1e-4 if name == "lora" else 1e-5
        assert 1 / (1 + np.exp(-np.array(odds[str(folder)][1]))) == pytest.approx(told["prediction"], abs=tolerance), name


def test_a_broken_image_gets_a_neutral_score_and_others_keep_their_order(submitted: dict[str, Any]) -> None:
    for name, (scores, odds) in submitted.items():
        assert min(scores) > 0 and max(scores) < 1
        order = np.argsort(odds, kind="stable")
        assert (np.diff(np.array(scores[:-1])[order]) >= 0).all(), name


def test_the_neutral_score_is_that_of_the_median_validation_image(trained: dict[str, TrialDir], submitted: Any) -> None:
    for name in ("logistic", "svc", "mlp", "network"):
        p = pd.read_parquet(trained[name].validation)["hybrid_stat=hybrid_mean"].clip(1e-6, 1 - 1e-6)
        odds = np.log(p / (1 - p))
        knots = np.unique(np.quantile(odds, np.linspace(0, 1, 101))).tolist()
        assert submitted[name][0][-1] == pytest.approx(spread(float(np.median(odds)), knots), abs=1e-6), name
        assert submitted[name][0][-1] == pytest.approx(0.5, abs=0.1), name  # (ties at the ends are one knot each)


def test_what_says_other_things_is_not_exported_together(trained: dict[str, TrialDir], table: Path, tmp_path: Path) -> None:
    other = finish(load(table, *TRIALS["lda"], "data.positive=non-hybrid"))
    with pytest.raises(UserError, match="an exported ensemble says one thing"):
        export([trained["lda"].path, other.path], tmp_path / "out", zipped=False, with_backbone=False)


def test_several_trials_are_one_by_their_mean_log_odds(submitted: dict[str, Any]) -> None:
    expected = (np.array(submitted["lda"][1]) + np.array(submitted["mlp"][1])) / 2
    assert submitted["both"][1] == pytest.approx(expected, abs=1e-6)


def test_an_exported_submission_passes_the_check(trained: dict[str, TrialDir], clean: Path, tmp_path: Path) -> None:
    archive = export([trained["lda"].path], tmp_path / "out", zipped=True, with_backbone=False)
    said = "\n".join(check(archive, clean))
    assert "2 that open and do not decode" in said and "the same scores again" in said
    done = carabid("export", "--check", tmp_path / "out", "--challenge", "moths", root=tmp_path, check=False)
    assert done.returncode == 2 and "choose beetles or butterflies" in done.stderr


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1", "is int, not a Python float"),
        ("return float('nan')", "is nan"),
        ("return float(np.asarray(image).mean())", r"cut-short.*raised(.|\n)*truncated"),
        ("return random.random()", "draw nothing at random"),
    ],
)
def test_what_the_platform_would_stumble_over_is_named(body: str, message: str, clean: Path, tmp_path: Path) -> None:
    head = "import random\nimport numpy as np\n\n\nclass Model:\n    def load(self):\n        pass\n\n"
    (tmp_path / "model.py").write_text(f"{head}    def predict(self, image):\n        {body}\n")
    with pytest.raises(WorkError, match=message):
        check(tmp_path, clean, challenge="butterflies")


def test_scores_that_are_all_the_same_are_noted(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("class Model:\n    load = lambda self: None\n    predict = lambda self, image: 1.0\n")
    assert any(line.startswith("note: 16 of 16 images") for line in check(tmp_path, clean, challenge="butterflies"))


def test_more_than_two_classes_are_no_submission(table: Path, root: Path, tmp_path: Path) -> None:
    trial = finish(load(table, *TRIALS["lda"], "data.label=ssp_indicator", "data.positive=null"))
    with pytest.raises(UserError, match="tells 3 classes apart"):
        export([trial.path], tmp_path / "out", zipped=False, with_backbone=False)


odds = st.lists(st.floats(-50, 50), min_size=2, max_size=30)


@given(odds, st.lists(st.floats(-20, 20), min_size=1, max_size=50))
def test_spread_scores_keep_the_order_of_log_odds(values: list[float], others: list[float]) -> None:
    knots = np.unique(others).tolist()
    scores = [spread(value, knots) for value in sorted(values)]
    assert all(a <= b for a, b in itertools.pairwise(scores)) and scores[0] >= 0 and scores[-1] <= 1


def test_spread_scores_do_not_saturate_where_probabilities_do() -> None:
    """Log odds of 12 and 13 are probabilities that both round to 1.0000."""
    knots = np.quantile(np.random.default_rng(0).normal(0, 6, 300), np.linspace(0, 1, 101)).tolist()
    scores = [round(spread(value, knots), 4) for value in (11.0, 12.0, 13.0, 14.0, knots[-1] + 1, knots[-1] + 2)]
    assert len(set(scores)) == 6 and scores == sorted(scores)
