"""Biomass: the challenge's long table, its score, targets that add up, and generated quadrats."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import minimize
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict

from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.disk.layout import ExperimentDir
from pipeline.disk.writing import read_json, write_hashed, write_text
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import Experiment, dump_config, load_experiment
from pipeline.export import kaggle
from pipeline.launch.watching.preflight import preflight
from pipeline.metrics.groups import Prediction
from pipeline.metrics.regression import weighted_r2, weighted_r2_drawn
from pipeline.metrics.sums import Sums
from pipeline.reporting import folds
from pipeline.stages import collect, evaluate, extract, train
from pipeline.stages.ensemble import update_ensembles
from pipeline.stages.predict import Origin, predict_files, predict_group
from pipeline.tasks import load_task
from pipeline.tasks.biomass import WEIGHTS
from tests.conftest import carabid

TASK = load_task("biomass")
PREDICTED = ("Dry_Total_g", "GDM_g", "Dry_Green_g")
ADD_UP = {"Dry_Total_g": ("GDM_g", "Dry_Dead_g"), "GDM_g": ("Dry_Green_g", "Dry_Clover_g")}
Y = np.array([[10, 5, 2, 12, 17], [20, 0, 0, 20, 20], [5, 30, 5, 10, 40], [40, 10, 20, 60, 70]], float)
P = np.array([[12, 4, 1, 13, 17], [18, 3, 0, 18, 21], [8, 24, 6, 14, 38], [35, 12, 15, 50, 62]], float)
"""The challenge's check values: green, dead, clover, GDM, total of four images, and what is said of them."""


@pytest.fixture(scope="module")
def quadrats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "quadrats"
    TASK.generate(folder, scale=0.1)
    return folder


def biomass_config(folder: Path, **data: Any) -> Config:
    columns = {"image": "image_path", "id": "sample_id", "date": "Sampling_Date", "species": "Species"}
    values = {
        "source": str(folder / "train.csv"),
        "long": {},
        "columns": columns,
        "targets": PREDICTED,
        "split": {"kind": "folds"},
    }
    return Config.model_validate({"task": "biomass", "experiment": "b", "data": {**values, **data}})


def load(folder: Path, **data: Any) -> Dataset:
    return TASK.load(biomass_config(folder, **data).data)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rewrite(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def copy(quadrats: Path, tmp_path: Path) -> Path:
    """The same with a table of its own, to break."""
    (tmp_path / "train").symlink_to(quadrats / "train")
    rewrite(tmp_path / "train.csv", rows_of(quadrats / "train.csv"))
    return tmp_path


# ---------------------------------------------------------------- the score
def test_the_score_is_the_challenges_check_value_and_not_the_mean_over_targets() -> None:
    weights = tuple(WEIGHTS.values())
    assert weighted_r2(Y, P, weights) == pytest.approx(0.961893658478661, abs=1e-14)
    assert r2_score(Y, P, multioutput=weights) == pytest.approx(0.939537763400051, abs=1e-12)


NUMBERS = st.floats(-1e3, 1e3, width=32)
MATRICES = st.integers(2, 12).flatmap(lambda n: st.lists(st.lists(NUMBERS, min_size=5, max_size=5), min_size=n, max_size=n))


@given(MATRICES, MATRICES)
def test_the_score_is_scikit_learns_of_all_pairs_weighted(truth: list[list[float]], said: list[list[float]]) -> None:
    n = min(len(truth), len(said))
    y, p, w = np.array(truth[:n]), np.array(said[:n]), np.broadcast_to([*WEIGHTS.values()], (n, 5))
    found = weighted_r2(y, p, tuple(WEIGHTS.values()))
    if np.ptp(y) <= 1e-6:
        return
    assert found == pytest.approx(r2_score(y.ravel(), p.ravel(), sample_weight=w.ravel()), rel=1e-12, abs=1e-12)
    draws = np.random.default_rng(0).integers(0, 3, (n, 6)).astype(float)
    draws[0] += 1
    expected = [
        weighted_r2(np.repeat(y, d.astype(int), 0), np.repeat(p, d.astype(int), 0), tuple(WEIGHTS.values())) for d in draws.T
    ]
    drawn = weighted_r2_drawn(y, p, draws, tuple(WEIGHTS.values()))
    for one, other in zip(drawn, expected, strict=True):
        if np.isfinite(one) and other is not None:
            assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


def test_the_task_scores_three_targets_with_the_two_that_follow_from_them() -> None:
    """By name, in whatever order the targets stand; of what is said, those that follow are not below 0."""
    order = ["GDM_g", "Dry_Green_g", "Dry_Total_g"]
    columns = [[*WEIGHTS].index(name) for name in order]
    said = Prediction.of(P[:, columns])
    whole = P.copy()
    whole[:, 1], whole[:, 2] = (whole[:, 4] - whole[:, 3]).clip(0), (whole[:, 3] - whole[:, 0]).clip(0)
    found = TASK.score("score", Y[:, columns], said, np.arange(4), names=order)
    assert found == pytest.approx(weighted_r2(Y, whole, tuple(WEIGHTS.values())), abs=1e-14)
    assert TASK.metric(None) == "score"


def test_who_predicts_all_five_targets_is_scored_by_what_he_says() -> None:
    assert TASK.score("score", Y, Prediction.of(P), np.arange(4), names=[*WEIGHTS]) == pytest.approx(0.961893658478661, abs=1e-14)


def test_dead_and_clover_follow_and_are_never_below_nothing() -> None:
    said = pd.DataFrame({"Dry_Total_g": [10.0, 3.0], "GDM_g": [4.0, 5.0], "Dry_Green_g": [1.0, 6.0]})
    assert TASK.derive(said).to_dict("list") == {"Dry_Dead_g": [6.0, 0.0], "Dry_Clover_g": [3.0, 0.0]}


def test_the_task_says_which_targets_it_needs(quadrats: Path) -> None:
    with pytest.raises(UserError, match="Dry_Green_g is missing"):
        load(quadrats, targets=["Dry_Total_g", "GDM_g"])


def test_dead_and_clover_of_the_table_must_be_what_follows(copy: Path) -> None:
    rows = rows_of(copy / "train.csv")
    for row in rows[:10]:
        row["target"] = str(float(row["target"]) + 0.01)  # a few, and rounding
    rewrite(copy / "train.csv", rows)
    load(copy)
    for row in rows:
        if row["target_name"] == "Dry_Clover_g":
            row["target"] = str(2 * float(row["target"]) + 30)
    rewrite(copy / "train.csv", rows)
    with pytest.raises(UserError, match=r"GDM_g should be Dry_Green_g \+ Dry_Clover_g, and is wrong by 3\d"):
        load(copy)


# ---------------------------------------------------------------- sums
SAID = st.lists(st.lists(st.floats(-50, 200), min_size=5, max_size=5), min_size=1, max_size=5)


@given(SAID)
def test_what_is_reconciled_adds_up_and_nothing_of_it_is_below_nothing(said: list[list[float]]) -> None:
    of, values = Sums.of([*WEIGHTS], ADD_UP), np.array(said)
    found = of.reconciled(values)
    green, dead, clover, gdm, total = found.T
    assert (found >= 0).all()
    np.testing.assert_allclose(green + clover, gdm, atol=1e-9)
    np.testing.assert_allclose(gdm + dead, total, atol=1e-9)
    assert of.apart(found).max() <= 1e-9
    np.testing.assert_allclose(of.reconciled(found), found, atol=1e-9)


@given(SAID)
def test_nothing_that_adds_up_is_nearer_to_what_was_said(said: list[list[float]]) -> None:
    """Against scipy's general solver of the same problem: projecting and then clipping would fail it."""
    of, values = Sums.of([*WEIGHTS], ADD_UP), np.array(said[:1])
    found = of.reconciled(values)[0]
    far = [np.square(of.matrix @ np.abs(other) - values[0]).sum() for other in np.random.default_rng(0).normal(60, 60, (20, 3))]
    best = minimize(lambda parts: np.square(of.matrix @ parts - values[0]).sum(), np.full(3, 20.0), bounds=[(0, None)] * 3)
    assert np.square(found - values[0]).sum() <= min(best.fun, *far) + 1e-6


def test_sums_may_be_of_any_depth_and_stand_in_any_order() -> None:
    of = Sums.of(["a", "all", "b", "ab", "c"], {"all": ["ab", "c"], "ab": ["a", "b"]})
    assert of.parts == ("a", "b", "c") and of.matrix.tolist() == [[1, 0, 0], [1, 1, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]]


# ---------------------------------------------------------------- the long table
def test_a_long_table_is_one_row_for_each_image(quadrats: Path) -> None:
    dataset, rows = load(quadrats), rows_of(quadrats / "train.csv")
    table = dataset.table
    assert len(table) * 5 == len(rows) and table["group"].is_unique
    by_image = {(row["sample_id"].split("__")[0], row["target_name"]): float(row["target"]) for row in rows}
    for name in PREDICTED:
        assert table[name].tolist() == [by_image[image, name] for image in table["id"]]
    assert table["date"].str.fullmatch(r"2015-\d\d-\d\d").all()
    assert dataset.where(1).endswith(f"train.csv, line {2 + 5}")
    assert dataset.image(3).size == (2000, 1000)


def test_the_rows_of_images_may_stand_in_any_order(quadrats: Path, copy: Path) -> None:
    rows = rows_of(copy / "train.csv")
    np.random.default_rng(0).shuffle(rows)  # type: ignore[arg-type]
    rewrite(copy / "train.csv", rows)
    one, other = (load(folder).table.set_index("id")[list(PREDICTED)].sort_index() for folder in (quadrats, copy))
    pd.testing.assert_frame_equal(one, other)


Rows = list[dict[str, str]]


def _lack(rows: Rows) -> None:
    del rows[7]


def _repeat(rows: Rows) -> None:
    rows.append(dict(rows[3]))


def _contradict(rows: Rows) -> None:
    rows[6]["State"] = "Qld"


def _misname(rows: Rows) -> None:
    rows[8]["target_name"] = "GDM_g"


def _no_separator(rows: Rows) -> None:
    rows[2]["sample_id"] = "ID5"


def _another_image(rows: Rows) -> None:
    rows[4]["image_path"] = rows[11]["image_path"]


BREAKS: dict[str, tuple[Callable[[Rows], None], str]] = {
    "a target is missing": (_lack, r"line 7: this image has no row of Dry_Green_g"),
    "a target stands there twice": (_repeat, r"its image has a row of Dry_Total_g already"),
    "an image's rows contradict": (_contradict, r"line 8: column State holds 'Qld'"),
    "name and target disagree": (_misname, r"line 10: column sample_id .* and column target_name 'GDM_g'"),
    "no separator": (_no_separator, r"line 4: column sample_id .* holds 'ID5'"),
    "two images by one name": (_another_image, r"line 6: column image_path holds"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_long_table_that_cannot_be_right_is_refused_by_line(copy: Path, what: str) -> None:
    break_it, said = BREAKS[what]
    rows = rows_of(copy / "train.csv")
    break_it(rows)
    rewrite(copy / "train.csv", rows)
    with pytest.raises(UserError, match=said):
        load(copy)


def test_a_split_that_is_left_out_need_not_have_targets(copy: Path, quadrats: Path) -> None:
    """test.csv asks for them."""
    rows, cut = rows_of(copy / "train.csv"), 5 * 10
    rewrite(copy / "train.csv", rows[cut:])
    rewrite(copy / "validation.csv", rows[:cut])
    rewrite(copy / "test.csv", rows_of(quadrats / "test.csv"))
    kept = load(copy, source=str(copy), split={"kind": "source", "test": "none"})
    assert len(kept) * 5 == len(rows)
    with pytest.raises(UserError, match="split test: there is no column 'target'"):
        load(copy, source=str(copy), split={"kind": "source"})


def test_a_table_that_was_handed_out_may_be_written_into(quadrats: Path) -> None:
    source = load(quadrats).source
    source.table("train")["target"] = 0
    assert "target" not in source.table("train")


def test_a_column_that_is_not_there_is_said_by_its_key(quadrats: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'value' \(data.long.value\).*target"):
        load(quadrats, long={"value": "value"})


def test_a_broken_image_is_an_error_with_its_name(copy: Path, quadrats: Path) -> None:
    (copy / "train").unlink()
    (copy / "train").mkdir()
    for image in (quadrats / "train").iterdir():
        (copy / "train" / image.name).symlink_to(image)
    first = copy / rows_of(copy / "train.csv")[0]["image_path"]
    data = first.read_bytes()
    first.unlink()
    first.write_bytes(data[:3000])
    with pytest.raises(UserError, match=r"line 2.*column image_path cannot be read"):
        load(copy).image(0)


# ---------------------------------------------------------------- folds by columns
@pytest.mark.parametrize("by", [["Sampling_Date"], ["State", "Sampling_Date"], ["State"]], ids="+".join)
@pytest.mark.parametrize("stratify", [None, "Dry_Total_g"])
def test_nothing_that_shares_the_columns_is_in_two_folds_and_each_image_is_tested_once(
    quadrats: Path, by: list[str], stratify: str | None
) -> None:
    known = {row["sample_id"].split("__")[0]: tuple(row[column] for column in by) for row in rows_of(quadrats / "train.csv")}
    tested: list[str] = []
    for fold in range(3):
        split = {"kind": "folds", "n": 3, "fold": fold, "by": by, "stratify": stratify}
        table = load(quadrats, split=split).table
        unit = table["id"].map(known)
        assert table.groupby(unit)["split"].nunique().max() == 1
        assert set(table["split"]) == {"train", "validation", "test"}
        tested += table["id"][table["split"] == "test"].tolist()
    assert sorted(tested) == sorted(known)


def test_a_fold_that_does_not_test_validates_and_all_others_train(quadrats: Path) -> None:
    honest, other = (
        load(quadrats, split={"kind": "folds", "fold": 2, "by": ["Sampling_Date"], "tests": tests}).table["split"]
        for tests in (True, False)
    )
    assert set(other) == {"train", "validation"}
    assert ((honest == "test") == (other == "validation")).all()


def test_folds_may_be_dealt_by_columns_that_are_there_alone(quadrats: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'Site' \(data.split.by\)"):
        load(quadrats, split={"kind": "folds", "by": ["Site"]})
    with pytest.raises(ValueError, match=r"data.split.stratify Height.*is no target"):
        load(quadrats, split={"kind": "folds", "stratify": "Height"})


# ---------------------------------------------------------------- generated quadrats
def test_generated_tables_have_the_challenges_columns_and_sums(quadrats: Path) -> None:
    train, test = rows_of(quadrats / "train.csv"), rows_of(quadrats / "test.csv")
    header = (quadrats / "train.csv").read_text().partition("\n")[0].strip()
    assert header == ("sample_id,image_path,Sampling_Date,State,Species,Pre_GSHH_NDVI,Height_Ave_cm,target_name,target")
    assert list(test[0]) == ["sample_id", "image_path", "target_name"]
    wide = (
        pd.DataFrame(train)
        .assign(target=lambda t: t["target"].astype(float))
        .pivot(index="image_path", columns="target_name", values="target")
    )
    np.testing.assert_allclose(wide["Dry_Green_g"] + wide["Dry_Clover_g"], wide["GDM_g"], atol=1e-3)
    np.testing.assert_allclose(wide["GDM_g"] + wide["Dry_Dead_g"], wide["Dry_Total_g"], atol=1e-3)
    with Image.open(quadrats / train[0]["image_path"]) as image:
        assert image.size == (2000, 1000) and image.format == "JPEG"
    for name in ("solution.csv", "sample_submission.csv"):
        assert [row["sample_id"] for row in rows_of(quadrats / name)] == [row["sample_id"] for row in test]


def test_the_command_writes_quadrats_once_and_the_same_again(tmp_path: Path, root: Path) -> None:
    out = tmp_path / "made"
    for _ in range(2):
        assert "wrote" in carabid("generate", "biomass", "--out", out, "--scale", "0.03", root=root).stdout
    assert "holds data generated otherwise" in carabid("generate", "biomass", "--out", out, root=root, check=False).stderr


def mean_colours(folder: Path, halves: bool) -> np.ndarray[Any, Any]:
    """Means and squares of colours, of the whole image or of both halves."""
    table, found = load(folder).table, []
    for row in range(len(table)):
        with Image.open(folder / rows_of(folder / "train.csv")[5 * row]["image_path"]) as image:
            small = np.asarray(image.resize((16, 8), Image.Resampling.BOX), float) / 255
        parts = [small[:, :8], small[:, 8:]] if halves else [small]
        found.append(np.concatenate([part.reshape(-1, 3).mean(0) for part in parts]))
    values = np.array(found)
    return np.concatenate([values, np.square(values)], axis=1)


@pytest.mark.long
def test_images_tell_biomass_better_than_the_mean_and_folds_by_sampling_tell_less(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    TASK.generate(folder)
    table = load(folder).table
    inputs, targets = mean_colours(folder, halves=True), table[list(PREDICTED)].to_numpy()
    samplings = table["date"]
    model = RidgeCV(np.logspace(-6, 2, 17))

    def score(cv: Any) -> float:
        said = cross_val_predict(model, inputs, targets, cv=cv, groups=samplings)
        found = TASK.score("score", targets, Prediction.of(said), np.arange(len(table)), names=PREDICTED)
        assert found is not None
        return found

    parted, together = score(KFold(5, shuffle=True, random_state=0)), score(GroupKFold(5))
    print(f"weighted R² of colours alone: {parted:.3f} by images, {together:.3f} by day")
    assert parted > 0.4 and together > 0.2


# ---------------------------------------------------------------- what could not be trained on
def ridge_stack(folder: Path, *overrides: str) -> Experiment:
    return load_experiment("configs/biomass/ridge_stack.yaml", (f"data.source={folder / 'train.csv'}", *overrides))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["data.sums={}", "data.sums.Dry_Total_g=[GDM_g,Dry_Clover_g]"],
            r"data.sums has it that Dry_Total_g is GDM_g \+ Dry_Clover_g, and in the training images that is wrong by \d",
        ),
        (["data.sums={}", "data.sums.GDM_g=[Dry_Green_g,Dry_Dead_g]"], "data.sums has it that GDM_g"),
        ([], r"model.head.folds is 5, and data.split leaves \d groups that it may part: set it to \d or lower"),
    ],
)
def test_sums_that_do_not_hold_and_too_many_folds_are_refused_before_anything_is_queued(
    quadrats: Path, root: Path, overrides: list[str], said: str
) -> None:
    few = [] if not overrides else ["model.head.folds=3"]
    with pytest.raises(UserError, match=said):
        preflight([ridge_stack(quadrats, *few, *overrides).config])
    preflight([ridge_stack(quadrats, "model.head.folds=3").config])


def test_sums_that_a_model_does_not_keep_are_refused(quadrats: Path) -> None:
    with pytest.raises(UserError, match=r"data.sums would change nothing: .* set model.outputs.kind to parts or ratios, or"):
        ridge_stack(quadrats, "model.head.kind=per_target")


@pytest.mark.parametrize(
    ("config", "overrides", "said"),
    [
        ("biomass/ridge_stack", ["optim.lr=1e-3"], "`optim.lr` would change nothing, since no trial learns by gradient"),
        ("biomass/ridge_stack", ["schedule.kind=cosine"], "`schedule.kind` would change nothing"),
        ("biomass/ridge_stack", ["train={epochs: 3}"], "`train.epochs` would change nothing"),
        ("biomass/two_stream", ["train.max_images=3,4"], "no trial draws sets of images"),
        ("biomass/two_stream", ["augment.domain_dropout=0.1"], "no trial reads the domain"),
        ("biomass/two_stream", ["augment.species_dropout=0.1"], "no trial reads the species"),
    ],
)
def test_what_is_set_and_no_trial_reads_is_refused(quadrats: Path, config: str, overrides: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_experiment(f"configs/{config}.yaml", overrides)


def test_what_some_trials_of_a_grid_read_is_not_refused() -> None:
    grid = ("data.sums={}", "model.head.kind=ridge_stack,per_target", "optim.lr=1e-3,1e-4")
    assert len(load_experiment("configs/biomass/ridge_stack.yaml", grid).trials) == 4


# ---------------------------------------------------------------- all folds together
FOLDS = ("data.split.n=3", "data.split.fold=0,1,2")


def pixels(folder: Path, *overrides: str) -> Experiment:
    """Ridge regression on shrunken halves, and every fold a trial."""
    plain = {"task": "biomass", "backbone": {"kind": "pixels", "size": 4, "views": {"crops": ["left", "right"]}}, "device": "cpu"}
    values = plain | {
        "model": {"normalize": False, "head": {"kind": "ridge"}},
        "features": {"dtype": "fp32"},
        "experiment": "folds",
    }
    columns = {"image": "image_path", "id": "sample_id", "date": "Sampling_Date"}
    data = {"source": str(folder / "train.csv"), "long": {}, "columns": columns, "targets": list(PREDICTED)}
    path = Path.cwd() / "folds.yaml"
    path.write_text(yaml.safe_dump(values | {"data": {**data, "split": {"kind": "folds", "by": ["Sampling_Date"]}}}))
    return load_experiment(path, (*FOLDS, *overrides))


def finish(experiment: Experiment) -> None:
    for trial in experiment.trials:
        extract.ensure(trial.config)
        folder = experiment.dir.trial(trial.name)
        train.run(trial.config, folder)
        evaluate.run(trial.config, folder)
    collect.run(experiment.config)


@pytest.fixture(scope="module")
def folded(quadrats: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentDir, Experiment]:
    root = tmp_path_factory.mktemp("folded")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARABID_ROOT", str(root))
        patch.chdir(root)
        experiment = pixels(quadrats)
        finish(experiment)
    return root, ExperimentDir(root / "trained" / "folds"), experiment


@pytest.mark.jobs
def test_folds_are_scored_together_on_images_that_none_of_them_learnt_from(
    folded: tuple[Path, ExperimentDir, Experiment], quadrats: Path
) -> None:
    """The score of all pairs at once is scikit-learn's, and no mean over folds."""
    _, there, experiment = folded
    (together,) = there.ensembles()
    results = read_json(together.results)
    said = pd.read_parquet(together.predictions)
    rows = {row["sample_id"]: float(row["target"]) for row in rows_of(quadrats / "train.csv")}
    assert results["of"] == "folds" and sorted(results["members"]) == sorted(trial.name for trial in experiment.trials)
    wide = said.pivot(index="id", columns="target", values="prediction").pipe(lambda t: t.join(TASK.derive(t)))
    assert len(wide) * 5 == len(rows)
    truth = np.array([[rows[f"{image}__{target}"] for target in WEIGHTS] for image in wide.index])
    weights = np.broadcast_to([*WEIGHTS.values()], truth.shape).ravel()
    found = r2_score(truth.ravel(), wide[[*WEIGHTS]].to_numpy().ravel(), sample_weight=weights)
    assert results["figures"]["score"] == pytest.approx(found, abs=1e-6)  # (the table's sums are rounded)
    exact = wide[[*PREDICTED]].to_numpy()
    true = said.pivot(index="id", columns="target", values="truth")
    groups = np.arange(len(true))
    again = TASK.score("score", true[[*PREDICTED]].to_numpy(), Prediction.of(exact), groups, names=PREDICTED)
    assert results["figures"]["score"] == pytest.approx(again, abs=1e-12)
    folds = [read_json(there.trial(trial.name).results)["figures"]["score"] for trial in experiment.trials]
    assert results["figures"]["score"] != pytest.approx(np.mean(folds), abs=1e-3)
    assert {f"{target}.r2" for target in WEIGHTS} <= set(results["figures"])


@pytest.mark.jobs
def test_folds_together_stand_in_tables_and_predict_new_images_as_one_model(
    folded: tuple[Path, ExperimentDir, Experiment], quadrats: Path
) -> None:
    root, there, experiment = folded
    table = carabid("results", root=root).stdout
    assert "out of 3 folds" in table and "weighted" in table
    (together,) = there.ensembles()
    image = sorted((quadrats / "test").iterdir())[0]
    members = [there.trial(trial.name).path for trial in experiment.trials]
    alone = [predict_group(member, [image], Origin(), "cpu") for member in members]
    found = predict_group(together.path, [image], Origin(), "cpu")
    for target in PREDICTED:
        assert found[target][0] == pytest.approx(np.mean([each[target][0] for each in alone]), rel=1e-5)
        assert found[target][1] is not None and found[target][1] > 0


@pytest.mark.jobs
def test_folds_that_are_not_all_there_are_not_taken_together(
    folded: tuple[Path, ExperimentDir, Experiment], tmp_path: Path
) -> None:
    root, _, experiment = folded
    shutil.copytree(root / "trained", tmp_path / "trained")
    other = ExperimentDir(tmp_path / "trained" / "folds")
    shutil.rmtree(other.trial(experiment.trials[1].name).path)
    assert update_ensembles(other) and not other.ensembles()


@pytest.mark.jobs
def test_folds_that_part_what_is_alike_are_told_by_how_much_they_flatter(
    folded: tuple[Path, ExperimentDir, Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of trials that differ in nothing else, the coarser folds' score is said beside the finer ones', where it is lower by more
    than 0.05; other trials are not compared."""
    root, _, experiment = folded
    shutil.copytree(root / "trained", tmp_path / "trained")
    other = ExperimentDir(tmp_path / "trained" / "folds")
    assert folds.warnings([other]) == []
    (together,) = other.ensembles()
    finer = other.ensemble("finer")
    shutil.copytree(together.path, finer.path)
    results = {**read_json(finer.results), "members": ["fine"], "made_from": {"fine": ""}}
    results["figures"]["score"] += 0.06
    trial = other.trial("fine")
    trial.path.mkdir()
    config = experiment.trials[0].config
    for by, said in (((), 1), (("State", "Sampling_Date"), 1), (("State",), 0)):
        split = config.data.split.model_copy(update={"by": by})
        write_text(trial.config, dump_config(config.model_copy(update={"data": config.data.model_copy(update={"split": split})})))
        write_hashed(finer.results, {key: value for key, value in results.items() if key != "sha256"})
        found = folds.warnings([other])
        assert len(found) == said
        assert all("by Sampling_Date: images of one Sampling_Date are alike" in sentence for sentence in found)
    write_text(trial.config, dump_config(config.model_copy(update={"seed": 7})))
    assert folds.warnings([other]) == []


# ---------------------------------------------------------------- a submission
@pytest.mark.jobs
def test_a_submission_has_a_number_for_each_row_of_the_test_in_its_order(
    folded: tuple[Path, ExperimentDir, Experiment], quadrats: Path, tmp_path: Path
) -> None:
    """Of all five targets, derived model by model; of all folds their mean."""
    root, there, _ = folded
    (together,) = there.ensembles()
    rows = rows_of(quadrats / "test.csv")
    np.random.default_rng(1).shuffle(rows)  # type: ignore[arg-type]
    (tmp_path / "test").symlink_to(quadrats / "test")
    rewrite(tmp_path / "test.csv", rows)
    out = tmp_path / "out"
    said = carabid("export", together.path, "--to", "kaggle", "--test", tmp_path / "test.csv", "--out", out, root=root)
    assert said.stdout.strip() == str(out / "submission.csv")
    table = rows_of(out / "submission.csv")
    assert [row["sample_id"] for row in table] == [row["sample_id"] for row in rows]
    image = tmp_path / rows[0]["image_path"]
    of_image = {row["sample_id"].split("__")[1]: float(row["target"]) for row in table if row["sample_id"].startswith(image.stem)}
    each = [
        next(predict_files(there.trial(name).path, [image], Origin(), "cpu")) for name in read_json(together.results)["members"]
    ]
    assert set(of_image) == set(WEIGHTS) == set(each[0])
    assert of_image == pytest.approx({name: np.mean([one[name] for one in each]) for name in WEIGHTS})
    checked = carabid("export", "--check", out, "--test", tmp_path / "test.csv", root=root).stdout
    assert f"{len(rows)} rows" in checked and "in the order of the test's" in checked


@pytest.mark.jobs
def test_what_follows_is_the_same_in_a_submission_and_in_what_is_predicted_of_one_image(
    folded: tuple[Path, ExperimentDir, Experiment], quadrats: Path, tmp_path: Path
) -> None:
    """Clamped member by member: where one has less dead than nothing, the mean of all has not."""
    _, there, _ = folded
    (together,) = there.ensembles()
    table = rows_of(kaggle.export([together.path], quadrats / "test.csv", tmp_path / "out", (), "cpu"))
    exported = {row["sample_id"]: float(row["target"]) for row in table}
    for row in rows_of(quadrats / "test.csv")[::5]:
        image = quadrats / row["image_path"]
        said = predict_group(together.path, [image], Origin(), "cpu")
        for name in ("Dry_Dead_g", "Dry_Clover_g"):
            assert said[name][0] == pytest.approx(exported[f"{image.stem}__{name}"], abs=1e-4)


@pytest.mark.jobs
def test_members_may_weigh_unlike(folded: tuple[Path, ExperimentDir, Experiment], quadrats: Path, tmp_path: Path) -> None:
    _, there, experiment = folded
    trials = [there.trial(trial.name).path for trial in experiment.trials[:2]]
    tables = []
    for i, weights in enumerate([(1, 0), (0, 1), (3, 1)]):
        path = kaggle.export(trials, quadrats / "test.csv", tmp_path / str(i), weights, "cpu")
        tables.append(np.array([float(row["target"]) for row in rows_of(path)]))
    np.testing.assert_allclose(tables[2], (3 * tables[0] + tables[1]) / 4, rtol=1e-12)


Cells = list[dict[str, str]]
TEST_BREAKS: dict[str, tuple[Callable[[Cells], Any], str]] = {
    "another target": (lambda rows: rows[2].update(target_name="GDM_g"), r"line 4: column sample_id .* should end in __GDM_g"),
    "a target that nobody says": (
        lambda rows: rows[0].update(sample_id=rows[0]["sample_id"].split("__")[0] + "__Moss_g", target_name="Moss_g"),
        "does not say Moss_g",
    ),
    "a row twice": (lambda rows: rows.append(dict(rows[1])), "stands there twice"),
    "an image that is not there": (lambda rows: rows[5].update(image_path="test/none.jpg"), "none.jpg does not exist"),
}


@pytest.mark.jobs
@pytest.mark.parametrize("what", TEST_BREAKS)
def test_a_test_that_cannot_be_answered_is_refused_in_words(
    what: str, folded: tuple[Path, ExperimentDir, Experiment], quadrats: Path, tmp_path: Path
) -> None:
    _, there, experiment = folded
    break_it, said = TEST_BREAKS[what]
    rows = rows_of(quadrats / "test.csv")
    break_it(rows)
    (tmp_path / "test").symlink_to(quadrats / "test")
    rewrite(tmp_path / "test.csv", rows)
    with pytest.raises(UserError, match=said):
        kaggle.export([there.trial(experiment.trials[0].name).path], tmp_path / "test.csv", tmp_path / "out", (), "cpu")
    assert not (tmp_path / "out").exists()


def test_a_submission_that_is_none_is_named_by_its_line(tmp_path: Path) -> None:
    for text, said in (
        ("sample_id,target\na,1\nb,nan\n", "line 3: b is 'nan'"),
        ("sample_id,target\na,1\na,2\n", "a stands there twice"),
        ("id,target\na,1\n", "its columns are id, target"),
        ("sample_id,target\n", "it has a header and no rows"),
    ):
        (tmp_path / "submission.csv").write_text(text)
        with pytest.raises(WorkError, match=said):
            kaggle.check(tmp_path)
    (tmp_path / "submission.csv").write_text("sample_id,target\na,1\nb,2\n")
    (tmp_path / "test.csv").write_text("sample_id,image_path,target_name\nb,x,y\na,x,y\n")
    assert kaggle.check(tmp_path) == [f"{tmp_path / 'submission.csv'}: 2 rows, all finite"]
    with pytest.raises(WorkError, match="in another order, from row 1 on"):
        kaggle.check(tmp_path, tmp_path / "test.csv")
    (tmp_path / "test.csv").write_text("id,image_path\na,x\n")
    with pytest.raises(UserError, match=r"test.csv: there is no column 'sample_id'; it has id, image_path"):
        kaggle.check(tmp_path, tmp_path / "test.csv")
