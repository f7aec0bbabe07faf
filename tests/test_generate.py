"""What generated beetles must be: the challenge's schema in every form, a signal, a shift, and never a loss of data."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.config.data import Columns, Data
from pipeline.data.dataset import Dataset, signature
from pipeline.errors import UserError
from pipeline.synthetic import beetles as drawing
from pipeline.synthetic.beetles import KNOWN_DOMAINS, LIMIT, MAX_SPECIMENS, UNSEEN_DOMAINS, Form, Size, make_events
from pipeline.tasks import available, load_task

FORMS: tuple[Form, ...] = ("parquet", "csv", "disk")
COLUMNS = [
    *("file_path", "colorpicker_full_path", "scalebar_full_path"),
    *("SPEI_30d", "SPEI_1y", "SPEI_2y"),
    *("public_id", "eventID", "domainID", "scientificName", "siteID", "collectDate"),
    *("relative_img_loc", "colorpicker_path", "scalebar_path"),
]
beetles = load_task("beetles")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[Form, Path]:
    """The same small data set in every form."""
    folders = {form: tmp_path_factory.mktemp("small") / form for form in FORMS}
    for form, folder in folders.items():
        beetles.generate(folder, seed=3, scale=0.05, form=form)
    return folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the demo."""
    folder = tmp_path_factory.mktemp("whole") / "beetles"
    beetles.generate(folder)
    return folder


def load(folder: Path, **more: Any) -> Dataset:
    columns = Columns(image="file_path", id="public_id", group="eventID", domain="domainID")
    data: Dataset = beetles.load(Data(source=str(folder), columns=columns, targets=("SPEI_30d", "SPEI_1y", "SPEI_2y"), **more))
    return data


# ---------------------------------------------------------------- schema
def test_tasks_are_found_by_their_modules() -> None:
    assert "beetles" in available()
    with pytest.raises(UserError, match=r"no task 'moths'\. There are: .*beetles"):
        load_task("moths")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_as_the_same_data(small: dict[Form, Path], form: Form) -> None:
    one, other = load(small["parquet"]), load(small[form])
    assert other.table.equals(one.table)
    assert [other.image_bytes(i) for i in range(len(other))] == [one.image_bytes(i) for i in range(len(one))]
    assert other.signature() == signature(Data(source=str(small[form]), columns=Columns(image="file_path"), targets=("y",)))


def test_parquet_has_the_challenges_columns_and_the_hubs_layout(small: dict[Form, Path]) -> None:
    files = sorted(path.name for path in (small["parquet"] / "data").iterdir())
    assert files == [f"{split}-00000-of-00001.parquet" for split in ("test", "train", "validation")]
    table = pq.read_table(small["parquet"] / "data" / files[1])
    assert table.column_names == COLUMNS
    frame = table.to_pandas()
    assert frame["SPEI_30d"].dtype == np.float64 and frame["eventID"].dtype == np.int64 == frame["domainID"].dtype
    lengths = {len(day) for day in frame["collectDate"]}
    assert lengths == {len("2017-07-11"), len("2021-04-14 04:00:00")}
    hidden = pq.read_table(small["parquet"] / "data" / files[0], columns=["siteID", "collectDate"])
    assert hidden["siteID"].null_count == hidden["collectDate"].null_count == len(hidden)


def test_datasets_decodes_the_three_images_of_a_row(small: dict[Form, Path], tmp_path: Path) -> None:
    import datasets

    row = datasets.load_dataset(str(small["parquet"]), cache_dir=str(tmp_path))["validation"][0]
    for column in ("file_path", "colorpicker_full_path", "scalebar_full_path"):
        assert isinstance(row[column], Image.Image)


# ---------------------------------------------------------------- events
@pytest.mark.parametrize("seed", range(3))
def test_unseen_domains_are_in_test_alone_and_known_ones_everywhere(seed: int) -> None:
    events = make_events(seed, Size().scaled(0.01))
    domains = {split: {e.domain.id for e in events if e.split == split} for split in ("train", "validation", "test")}
    assert domains["train"] == domains["validation"] == set(KNOWN_DOMAINS)
    assert domains["test"] == set(KNOWN_DOMAINS) | set(UNSEEN_DOMAINS)
    assert len({event.id for event in events}) == len(events)
    assert all(abs(event.spei).max() <= LIMIT for event in events)


def test_events_have_one_to_sixty_specimens_with_a_long_tail() -> None:
    sizes = np.array([event.n_specimens for event in make_events(0, Size())])
    assert sizes.min() == 1 and sizes.max() == MAX_SPECIMENS
    assert np.median(sizes) < sizes.mean() < np.median(sizes) * 2 < 20


# ---------------------------------------------------------------- writing
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(small: dict[Form, Path], tmp_path: Path) -> None:
    for name, seed in (("same", 3), ("other", 4)):
        beetles.generate(tmp_path / name, seed=seed, scale=0.05)
    bytes_of = {
        name: (folder / "data" / "train-00000-of-00001.parquet").read_bytes()
        for name, folder in (("first", small["parquet"]), ("same", tmp_path / "same"), ("other", tmp_path / "other"))
    }
    assert bytes_of["first"] == bytes_of["same"] != bytes_of["other"]


def test_the_same_data_already_there_is_left_as_it_is(small: dict[Form, Path]) -> None:
    before = signature(Data(source=str(small["parquet"]), columns=Columns(image="file_path"), targets=("y",)))
    assert set(beetles.generate(small["parquet"], seed=3, scale=0.05)) == {"train", "validation", "test"}
    assert signature(Data(source=str(small["parquet"]), columns=Columns(image="file_path"), targets=("y",))) == before


def test_anything_else_already_there_is_refused_and_kept(small: dict[Form, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds data generated otherwise"):
        beetles.generate(small["parquet"], seed=4, scale=0.05)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        beetles.generate(tmp_path, scale=0.05)
    with pytest.raises(UserError, match="holds something else"):
        beetles.generate(tmp_path / "thesis.txt", scale=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"form": "xlsx"}, r"form 'xlsx'.*parquet, csv, disk"),
        ({"seed": -1}, r"seed -1.*0 or above"),
        ({"scale": -1.0}, r"scale -1\.0.*above 0"),
        ({"scale": float("nan")}, r"scale nan.*above 0"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_anything_is_drawn(
    request_: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "make_rows", lambda *_: pytest.fail("drawn"))
    with pytest.raises(UserError, match=message):
        beetles.generate(tmp_path / "out", **request_)
    assert list(tmp_path.iterdir()) == []


def test_writing_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq, "write_table", lambda *_, **__: 1 / 0)
    (tmp_path / "out").mkdir()
    with pytest.raises(ZeroDivisionError):
        beetles.generate(tmp_path / "out", scale=0.01)
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]


def test_naming_the_task_loads_neither_torch_nor_the_drawing() -> None:
    code = (
        "import sys; from pipeline.tasks import load_task; load_task('beetles');"
        "print([m for m in ('torch', 'datasets', 'pandas', 'PIL', 'pipeline.synthetic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- signal and shift
def thumbnails(data: Dataset, side: int) -> np.ndarray:
    """[images, side·side·3]"""
    images = (Image.open(io.BytesIO(data.image_bytes(i))) for i in range(len(data)))
    small = [np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32) for image in images]
    return np.stack(small).reshape(len(data), -1)


def event_r2(data: Dataset, pixels: np.ndarray, unseen: bool) -> float:
    """Mean over targets of the event R² on test events of known or of unseen domains, by ridge regression."""
    table, targets = data.table, list(data.targets)
    train = (table["split"] == "train").to_numpy()
    model = make_pipeline(StandardScaler(), RidgeCV(10.0 ** np.arange(-1, 6)))
    model.fit(pixels[train], table.loc[train, targets])
    test = (table["split"] == "test") & (table["domain"].isin([str(d) for d in UNSEEN_DOMAINS]) == unseen)
    true = table[test].groupby("group")[targets].mean()
    predicted = table[test].assign(**dict(zip(targets, model.predict(pixels[test]).T, strict=True)))
    error = true - predicted.groupby("group")[targets].mean()
    return float((1 - (error**2).sum() / ((true - true.mean()) ** 2).sum()).mean())


@pytest.mark.jobs
def test_drought_shows_in_shape_but_not_in_mean_colour_nor_elsewhere_nor_in_permuted_targets(whole: Path) -> None:
    data, permuted = load(whole), load(whole, permute_targets=True)
    shapes, colours = thumbnails(data, 8), thumbnails(data, 1)
    known = event_r2(data, shapes, unseen=False)
    assert 0.4 < known < 0.8
    assert event_r2(data, shapes, unseen=True) < known - 0.3
    assert event_r2(data, colours, unseen=False) < 0.1
    assert event_r2(permuted, shapes, unseen=False) < 0.05
