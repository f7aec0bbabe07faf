"""A task of a lab's own, the example of docs/: its figures reach everything that reads results."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.metrics.figures import Figure
from tests.conftest import carabid

pytestmark = pytest.mark.jobs

EXAMPLES = PROJECT / "docs" / "examples"
SUBMIT = ("submit", "phenology.yaml", "seed=0,1", "device=cpu", "--cluster", "local", "--wait")
UNFINISHED = """from typing import Literal
from pipeline.config.loss import Loss
class Unfinished(Loss):
    kind: Literal["unfinished"]
"""
OTHER = ("experiment=phenology", "model.head={kind: ridge}", "model.standardize_features=false", "seed=0,1")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab's folder with the example, sixty images of twenty plants, and two trials of it, trained and evaluated."""
    folder = tmp_path_factory.mktemp("lab")
    for name in ("phenology.py", "phenology.yaml"):
        shutil.copy(EXAMPLES / name, folder)
    rng = np.random.default_rng(0)
    rows = []
    for i in range(60):
        stage = (i // 3) % 5
        pixels = np.clip(rng.normal(40 + 40 * stage, 25, (16, 16, 3)), 0, 255).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append({"file": f"{i}.png", "plant": f"p{i // 3}", "stage": stage})
    with (folder / "stages.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    carabid(*SUBMIT, root=folder / "root", cwd=folder)
    return folder


def results(lab: Path) -> list[Path]:
    return sorted((lab / "root" / "trained" / "phenology").glob("*/results.json"))


def said(lab: Path, *arguments: str) -> str:
    return carabid(*arguments, root=lab / "root", cwd=lab).stdout


def test_the_file_and_its_yaml_are_short() -> None:
    lines = [line for name in ("phenology.py", "phenology.yaml") for line in (EXAMPLES / name).read_text().splitlines()]
    assert len(lines) <= 60


def test_its_figures_are_in_results_json_of_the_target_and_in_the_summary(lab: Path) -> None:
    for file in results(lab):
        found = read_json(file)
        assert found["stage"]["kappa"] > 0.5 and found["stage"]["within_one"] > 0.8
        assert found["summary"]["kappa"] == found["stage"]["kappa"] == found["figures"]["kappa"]
        assert list(found["headline"].values()) == ["weighted kappa", "within one stage", "MAE"]


def test_it_chooses_the_epoch(lab: Path) -> None:
    found = [read_json(file) for file in results(lab)]
    assert {each["summary"]["selection"]["metric"] for each in found} == {"kappa"}
    assert all(each["summary"]["selection"]["value"] > 0.5 for each in found)


def test_tables_csv_and_json_show_and_sort_by_it(lab: Path) -> None:
    shown = said(lab, "results", "--sort", "kappa", "--format", "markdown")
    assert "weighted kappa" in shown and "within one stage" in shown
    rows = list(csv.DictReader(said(lab, "results", "--sort", "kappa", "--format", "csv").splitlines()))
    values = [float(row["kappa"]) for row in rows]
    assert values == sorted(values, reverse=True) and len(rows) == 3
    assert json.loads(said(lab, "results", "--format", "json"))[0]["figures"]["stage.within_one"] is not None


def test_an_ensemble_of_the_seeds_has_it(lab: Path) -> None:
    (file,) = (lab / "root" / "trained" / "phenology" / "ensembles").glob("*/results.json")
    assert read_json(file)["figures"]["kappa"] > 0.5 and len(read_json(file)["members"]) == 2


def test_the_card_says_it(lab: Path) -> None:
    cards = [(file.parent / "README.md").read_text() for file in results(lab)]
    assert all(re.search(r"^\| weighted kappa \| [01]\.\d", card, re.M) and "| stage |" in card for card in cards)


def test_methods_are_compared_by_it_with_an_interval_over_groups(lab: Path) -> None:
    carabid("submit", "phenology.yaml", *OTHER, "device=cpu", "--cluster", "local", "--wait", root=lab / "root", cwd=lab)
    found = json.loads(said(lab, "compare", "phenology", "--format", "json"))
    assert found["figure"] == "kappa" == found["metric"] and {line["method"] for line in found["lines"]} == {
        "pixels 2, mlp", "pixels 2, ridge",
    }  # fmt: skip
    assert all(line["interval"] for line in found["lines"])
    assert "stage" in said(lab, "predict", str(results(lab)[0].parent), "0.png")


def test_plan_says_that_a_trial_is_stale_when_the_file_changes(lab: Path) -> None:
    plan = ("plan", "phenology.yaml", "seed=0,1", "device=cpu")
    assert said(lab, *plan).count("done  ") == 2
    file = lab / "phenology.py"
    before = file.read_text()
    try:
        file.write_text(before.replace("<= 1", "<= 2"))
        assert said(lab, *plan).count("stale  ") == 2 and "the task's file" in said(lab, *plan)
    finally:
        file.write_text(before)
    assert said(lab, *plan).count("done  ") == 2


def test_a_file_without_a_task_or_that_cannot_be_run_is_said(lab: Path) -> None:
    for text, words in (("x = 1", "has one `TASK"), ("import nothing_of_that_name", "cannot be run: ModuleNotFoundError")):
        (lab / "broken.py").write_text(text)
        done = carabid("plan", "phenology.yaml", "task=broken.py", root=lab / "root", cwd=lab, check=False)
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    done = carabid("plan", "phenology.yaml", "task=gone.py", root=lab / "root", cwd=lab, check=False)
    assert done.returncode == 2 and "gone.py" in done.stderr
    done = carabid("plan", "phenology.yaml", "select.metric=kapa", root=lab / "root", cwd=lab, check=False)
    assert done.returncode == 2 and "did you mean kappa" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            'headline = ("kappa", "within_one", "MAE")',
            'headline = ("kappa", "within_too")',
            "'within_too', and there is no such figure; did you mean within_one",
        ),
        ('Figure("within one stage", within_one)', 'Figure("within one stage", within_one, of="plots")', "is of 'plots'"),
        ('"kappa": Figure', '"a.kappa": Figure(""), "kappa": Figure', "'a.kappa' has a dot in its name"),
        ("TASK = ", f"{UNFINISHED}TASK = ", "Unfinished: a kind of Loss defines make"),
    ],
)
def test_a_task_that_cannot_be_right_is_refused_before_anything_is_trained(lab: Path, old: str, new: str, words: str) -> None:
    (lab / "wrong.py").write_text((EXAMPLES / "phenology.py").read_text().replace(old, new))
    done = carabid("plan", "phenology.yaml", "task=wrong.py", root=lab / "root", cwd=lab, check=False)
    assert done.returncode == 2 and words in done.stderr


def test_a_figure_that_fails_is_named_with_its_line_and_one_that_is_nan_is_not_defined() -> None:
    def fails(truth: np.ndarray, prediction: np.ndarray) -> float:
        return float(truth[999])

    rows = np.arange(3.0)
    with pytest.raises(UserError, match=r"figure 'mine' cannot be computed \(.*test_own_task.py, line \d+\): IndexError"):
        Figure("mine", fails).value(rows, rows)
    with pytest.raises(UserError, match="figure 'mine' cannot be computed"):
        Figure("mine", lambda truth, prediction: truth).value(rows, rows)  # type: ignore[arg-type, return-value]
    assert Figure("mine", lambda truth, prediction: float("nan")).value(rows, rows) is None
