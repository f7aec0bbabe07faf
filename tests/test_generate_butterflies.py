"""What generated butterflies must be: the challenge's schema, files that their md5 tells, and hybrids that can be learned."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.config.trial import Config
from pipeline.data.sources import open_source
from pipeline.errors import UserError
from pipeline.stages import fetch
from pipeline.synthetic.butterflies import PATTERNS, make_pattern, make_specimens
from pipeline.tasks import load_task
from tests.conftest import carabid
from tests.small import named

HEADER = (
    "CAMID,file_url,hybrid_stat,split,zenodo_link,md5,subspecies,parent_subspecies_1,parent_subspecies_2,filename,ssp_indicator"
)
"""The challenge's columns in their order, and the one of its reference tables that says which score a row counts to."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "butterflies"
    load_task("butterflies").generate(folder, scale=0.15)
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "butterflies.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_has_the_challenges_columns_and_its_way_of_filling_them(made: Path) -> None:
    rows = rows_of(made)
    assert (made / "butterflies.csv").read_text().partition("\n")[0].strip() == HEADER
    assert len({row["filename"] for row in rows}) == len(rows)
    for row in rows:
        parents, own = [row["parent_subspecies_1"], row["parent_subspecies_2"]], row["subspecies"]
        is_hybrid = row["hybrid_stat"] == "hybrid"
        assert row["hybrid_stat"] in ("hybrid", "non-hybrid") and row["split"] == "train"
        assert (all(parents) and not own) if is_hybrid else (own and not any(parents))
        assert all(float(cell) in PATTERNS and cell.endswith(".0") for cell in (*parents, own) if cell)
        assert row["file_url"].startswith("https://example.org/") and row["file_url"].endswith(row["filename"])
        assert row["ssp_indicator"] == {"11.0": "mimic", "13.0": "mimic", "2.0": "minor", "7.0": "minor"}.get(
            own or parents[0], "major"
        )


def test_a_fifth_are_hybrids_of_each_score_even_in_the_smallest_set() -> None:
    for scale in (0.001, 0.05):
        specimens = make_specimens(0, scale)
        counts = Counter((one.indicator, len(one.parents)) for one in specimens)
        hybrids = [counts[indicator, 2] for indicator in ("major", "minor", "mimic")]
        assert sum(hybrids) * 5 == len(specimens) and min(hybrids) > 0
        assert len({one.camid for one in specimens}) == len(specimens)


def test_some_specimens_have_two_photographs_that_agree_on_all_but_the_image(made: Path) -> None:
    rows = rows_of(made)
    own = ("CAMID", "hybrid_stat", "subspecies", "parent_subspecies_1", "parent_subspecies_2", "ssp_indicator")
    counts = Counter(row["CAMID"] for row in rows)
    assert set(counts.values()) == {1, 2} and 0.08 < sum(n == 2 for n in counts.values()) / len(counts) < 0.25
    assert len({tuple(row[name] for name in own) for row in rows}) == len(counts)
    assert len({row["md5"] for row in rows}) == len(rows)


def test_the_md5_is_that_of_the_file_so_that_fetch_has_nothing_to_download(
    made: Path, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(made)
    assert {path.name for path in (made / "images").iterdir()} == {row["filename"] for row in rows}
    for row in rows[:20]:
        assert hashlib.md5((made / "images" / row["filename"]).read_bytes()).hexdigest() == row["md5"]
    data = {"source": str(made / "butterflies.csv"), "images": str(made / "images"), "download": {}}
    data |= {"columns": {"image": "filename", "id": "filename"}}
    config = Config.model_validate(named({"experiment": "x", "task": "butterflies", "data": data}))
    fetch._download(config)
    assert f"{len(rows)} were there, 0 downloaded" in capsys.readouterr().out
    assert open_source(config.data).is_here()


def test_equal_seeds_draw_equal_files_and_others_others(tmp_path: Path) -> None:
    task = load_task("butterflies")
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        task.generate(tmp_path / name, seed=seed, scale=0.001)
    one, same, other = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).rglob("*.*"))} for name in ("one", "same", "other")
    )
    assert one == same
    assert one["butterflies.csv"] != other["butterflies.csv"]
    before = task.generate(tmp_path / "one", seed=1, scale=0.001)
    assert before == {"train": len(rows_of(tmp_path / "one"))}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"form": "parquet"}, "form 'parquet': generated data are written as one of: csv"),
        ({"seed": -1}, "seed -1"),
        ({"scale": 0.0}, "scale 0"),
        ({"scale": 0.02}, "generated otherwise"),
    ],
)
def test_what_cannot_be_generated_is_refused(made: Path, request_: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_task("butterflies").generate(made, **request_)


def test_the_command_chooses_the_form_that_a_task_has(tmp_path: Path) -> None:
    done = carabid("generate", "butterflies", "--out", tmp_path / "b", "--scale", "0.01", root=tmp_path)
    assert "wrote" in done.stdout and (tmp_path / "b" / "butterflies.csv").is_file()
    failed = carabid("generate", "butterflies", "--out", tmp_path / "c", "--form", "disk", root=tmp_path, check=False)
    assert failed.returncode == 2 and "one of: csv" in failed.stderr


@given(st.integers(0, 2**32), st.sampled_from([(8,), (8, 9), (2, 7), (11, 13)]))
@settings(max_examples=50)
def test_a_pattern_can_be_drawn_whatever_the_variation(seed: int, parents: tuple[int, ...]) -> None:
    pattern = make_pattern(np.random.default_rng(seed), parents)
    assert all(0 <= trait <= 1 for trait in vars(pattern).values()) and pattern.width > 0


def test_hybrids_lie_between_their_parents_on_the_mean() -> None:
    rng = np.random.default_rng(0)

    def mean(*parents: int) -> np.ndarray:
        return np.mean([list(vars(make_pattern(rng, parents)).values()) for _ in range(400)], axis=0)

    assert np.abs(mean(8, 9) - (mean(8) + mean(9)) / 2).max() < 0.05


def test_hybrids_show_in_the_wings_but_not_in_their_mean_colour_and_are_not_trivial(made: Path) -> None:
    rows = rows_of(made)
    truth = np.array([row["hybrid_stat"] == "hybrid" for row in rows])
    specimens = [row["CAMID"] for row in rows]

    def auc(side: int) -> float:
        images = (Image.open(made / "images" / row["filename"]) for row in rows)
        pixels = np.stack([np.asarray(image.resize((side, side), Image.Resampling.BOX), float).ravel() for image in images])
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000, class_weight="balanced"))
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
        scores = cross_val_predict(model, pixels, truth, groups=specimens, cv=folds, method="decision_function")
        return float(roc_auc_score(truth, scores))

    assert 0.7 < auc(32) < 0.97
    assert 0.35 < auc(1) < 0.65
