"""What reading data must keep: the same rows and images from every form of data, and errors that name the place."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import hub
from pipeline.config.data import Columns, Data
from pipeline.data.dataset import Dataset, _signature, choose_splits, known_signature
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source
from pipeline.data.sources.csv_files import CsvSource, read_csv
from pipeline.data.sources.hugging_face import HubSource
from pipeline.data.sources.names import group_by_split, split_of_file
from pipeline.data.truth import Numbers
from pipeline.errors import NotFetched, UserError

SHA = "0123456789abcdef0123456789abcdef01234567"


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


IMAGES = [png(value) for value in range(6)]


def make_source(path: Path, column: str = "img", **more: Any) -> Source:
    return open_source(Data(source=str(path), columns=Columns(image=column), targets=("y",), **more))


def write_parquet(path: Path, values: list[int], kind: str = "struct", group: int = 2) -> Path:
    """A file whose row i is image values[i], stored as bytes, as {bytes, path}, or as a path beside the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    forms: dict[str, list[Any]] = {
        "struct": [{"bytes": IMAGES[v], "path": f"{v}.png"} for v in values],
        "binary": [IMAGES[v] for v in values],
        "path": [f"{v}.png" for v in values],
    }
    if kind == "path":
        for value in values:
            (path.parent / f"{value}.png").write_bytes(IMAGES[value])
    pq.write_table(pa.table({"img": forms[kind], "y": [float(v) for v in values]}), path, row_group_size=group)
    return path


def write_csv(folder: Path, text: str, name: str = "data.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    for value, image in enumerate(IMAGES):
        (folder / f"{value}.png").write_bytes(image)
    return folder / name


def hub_cache(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache as `datasets` leaves it after owner/name at commit SHA, and no network."""
    import datasets
    import datasets.config
    from huggingface_hub import constants

    write_parquet(root / "repo" / "data" / "train-00000-of-00001.parquet", [0, 1, 2])
    write_parquet(root / "repo" / "data" / "validation-00000-of-00001.parquet", [3])
    loaded = datasets.load_dataset(str(root / "repo"), cache_dir=str(root / "scratch"))
    made = Path(loaded["train"].cache_files[0]["filename"]).parent
    cached = root / "cache" / "owner___my_name" / "default" / "0.0.0" / SHA
    shutil.copytree(made, cached)
    for file in cached.glob("*.arrow"):
        file.rename(cached / f"my_name-{file.name.partition('-')[2]}")
    info = json.loads((cached / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "my_name"}
    (cached / "dataset_info.json").write_text(json.dumps(info))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(root / "cache"))


# ---------------------------------------------------------------- names of splits
@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.parquet", "train"),
        ("data/train-00000-of-00003.parquet", "train"),
        ("data/val.parquet", "validation"),
        ("validation_2.parquet", "validation"),
        ("Test.csv", "test"),
        ("default/test/0000.parquet", "test"),
        ("trainees.parquet", None),
        ("beetles.parquet", None),
    ],
)
def test_a_file_name_says_which_split_it_holds(name: str, split: str | None) -> None:
    assert split_of_file(Path("/d") / name, Path("/d")) == split


def test_files_whose_names_say_nothing_are_one_train_split() -> None:
    folder = Path("/d")
    parts = [folder / "part-0.parquet", folder / "part-1.parquet"]
    assert group_by_split(parts, folder) == {"train": parts}


def test_a_name_that_is_no_word_for_a_split_is_a_split_of_its_own_beside_others() -> None:
    folder = Path("/d")
    files = [folder / name for name in ("extra-00000-of-00002.csv", "extra-00001-of-00002.csv", "train.csv")]
    assert group_by_split(files, folder) == {"extra": files[:2], "train": files[2:]}


# ---------------------------------------------------------------- Parquet
@pytest.mark.parametrize("kind", ["struct", "binary", "path"])
def test_parquet_gives_the_same_rows_and_images_however_images_are_stored(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "set"
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", [0, 1, 2], kind)
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", [3, 4], kind)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [5], kind)
    source = make_source(folder, images=str(folder / "data") if kind == "path" else None)
    assert sorted(source.splits()) == ["test", "train"]
    assert source.table("train")["y"].tolist() == [0, 1, 2, 3, 4]
    assert [source.image_bytes("train", i, "img") for i in (4, 0, 3, 2, 1)] == [IMAGES[i] for i in (4, 0, 3, 2, 1)]
    assert source.image_bytes("test", 0, "img") == IMAGES[5]
    assert source.image_names("train", "img") == ([None] * 5 if kind == "binary" else [f"{i}.png" for i in range(5)])
    assert "train-00001-of-00002.parquet, split train, row 3 (counted from 0)" in source.where("train", 3)


def test_a_parquet_table_is_read_without_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(write_parquet(tmp_path / "a.parquet", [0, 1]))
    read: list[list[str]] = []
    real = pq.ParquetFile.read

    def spy(self: pq.ParquetFile, columns: list[str]) -> pa.Table:
        read.append(columns)
        return real(self, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read", spy)
    assert list(source.table("train")) == ["y"]
    assert source.image_names("train", "img") == ["0.png", "1.png"]
    assert read == [["y"], ["img.path"]]


@pytest.fixture
def group_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read, in order."""
    reads: list[int] = []
    real = pq.ParquetFile.read_row_group

    def spy(self: pq.ParquetFile, i: int, columns: list[str]) -> pa.Table:
        reads.append(i)
        return real(self, i, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    return reads


def test_threads_share_row_groups_and_read_each_once(tmp_path: Path, group_reads: list[int]) -> None:
    values = [i % 6 for i in range(60)]
    source = make_source(write_parquet(tmp_path / "a.parquet", values, group=10))
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda i: source.image_bytes("train", i, "img"), range(60)))
    assert images == [IMAGES[v] for v in values]
    assert sorted(group_reads) == list(range(6))


def test_old_row_groups_are_dropped_but_not_the_last_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_reads: list[int]
) -> None:
    monkeypatch.setattr("pipeline.data.sources.parquet.CACHED_BYTES", 1)
    source = make_source(write_parquet(tmp_path / "a.parquet", [0, 1, 2, 3, 4, 5], group=2))
    for row in (0, 1, 2, 1, 3, 4, 5, 3, 0):
        assert source.image_bytes("train", row, "img") == IMAGES[row]
    assert group_reads == [0, 1, 2, 0]


def test_each_column_of_images_keeps_its_last_two_row_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_reads: list[int]
) -> None:
    """A card is read after each image: the two columns must not push each other out."""
    monkeypatch.setattr("pipeline.data.sources.parquet.CACHED_BYTES", 1)
    cells = [{"bytes": image, "path": ""} for image in IMAGES]
    pq.write_table(pa.table({"img": cells, "card": cells[::-1]}), tmp_path / "a.parquet", row_group_size=2)
    source = make_source(tmp_path / "a.parquet")
    for row in (0, 1, 2, 1, 3, 4, 5):
        assert [source.image_bytes("train", row, name) for name in ("img", "card")] == [IMAGES[row], IMAGES[5 - row]]
    assert group_reads == [0, 0, 1, 1, 2, 2]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"damaged: .*a\.parquet: Parquet magic bytes"):
        make_source(path).table("train")


def test_parquet_files_of_one_split_must_agree_on_their_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", [0])
    pq.write_table(pa.table({"img": [IMAGES[0]], "z": [1.0]}), tmp_path / "train-1.parquet")
    with pytest.raises(UserError, match=r"train-1\.parquet: its columns differ .*: y, z\."):
        make_source(tmp_path).splits() and make_source(tmp_path).table("train")


def test_whole_numbers_stay_whole_where_some_are_missing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"n": pa.array([2**60 + 1, None])}), tmp_path / "a.parquet")
    assert make_source(tmp_path / "a.parquet").table("train")["n"].tolist() == [2**60 + 1, None]


# ---------------------------------------------------------------- CSV
def test_a_csv_with_a_split_column_has_its_splits_in_their_own_row_numbers(tmp_path: Path) -> None:
    source = make_source(write_csv(tmp_path, "img,y,split\n0.png,1,train\n1.png,2,test\n2.png,3,train\n"))
    assert source.splits() == ["train", "test"]
    assert source.table("train")["y"].tolist() == ["1", "3"]
    assert source.image_bytes("train", 1, "img") == IMAGES[2]
    assert source.where("train", 1).endswith("data.csv, line 4")


def test_a_csv_without_a_split_column_is_one_train_split(tmp_path: Path) -> None:
    source = make_source(write_csv(tmp_path, "img,y\n0.png,1\n"))
    assert source.splits() == ["train"]


def test_a_folder_of_csv_files_has_one_split_per_file(tmp_path: Path) -> None:
    for value, name in enumerate(("train", "validation", "test")):
        write_csv(tmp_path, f"img,y\n{value}.png,{value}\n", f"{name}.csv")
    source = make_source(tmp_path)
    assert {split: source.image_bytes(split, 0, "img") for split in source.splits()} == dict(
        zip(("test", "train", "validation"), (IMAGES[2], IMAGES[0], IMAGES[1]), strict=True)
    )


def test_image_paths_are_relative_to_data_images_where_it_is_set(tmp_path: Path) -> None:
    write_csv(tmp_path / "pictures", "")
    table = tmp_path / "data.csv"
    table.write_text("img\n3.png\n")
    assert make_source(table, images=str(tmp_path / "pictures")).image_bytes("train", 0, "img") == IMAGES[3]


def test_lines_are_counted_as_an_editor_shows_them(tmp_path: Path) -> None:
    text = '\ufeffimg,note\n\n0.png,"two\nlines"\n \n1.png,x\n'
    source = make_source(write_csv(tmp_path, text))
    assert source.columns("train") == ["img", "note"]
    assert [source.where("train", row).rpartition(" ")[2] for row in (0, 1)] == ["3", "6"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("img,y\n0.png,1\n1.png,2,3\n", "line 3: 3 cells, but the header names 2 columns"),
        ("img,y,y\n", "line 1: the column 'y' stands there twice"),
        ("", "the file is empty"),
        ("img;y\n0.png;1;5\n", "line 2: 3 cells, but the header names 2 columns. Quote cells that hold ';'"),
        ("img,split\n", "the table has a header and no rows"),
        ('img,y\n"0.png"x,1\n', "line 2: this is not CSV"),
        ("img,split\n0.png,train\n1.png,\n", "line 3: column split is empty"),
    ],
)
def test_a_faulty_csv_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_source(write_csv(tmp_path, text)).splits()


# ---------------------------------------------------------------- save_to_disk and the Hub
def test_a_saved_dataset_dict_gives_rows_and_images(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"img": datasets.Image(), "y": datasets.Value("float64")})
    rows = [{"img": {"bytes": IMAGES[v], "path": f"{v}.png"}, "y": float(v)} for v in range(4)]
    train = datasets.Dataset.from_list(rows[:3], features=features)
    datasets.DatasetDict({"train": train, "test": datasets.Dataset.from_list(rows[3:], features=features)}).save_to_disk(
        str(tmp_path / "set")
    )
    source = make_source(tmp_path / "set")
    assert source.splits() == ["train", "test"]
    assert list(source.table("train")) == ["y"] and source.columns("train") == ["img", "y"]
    assert [source.image_bytes("train", i, "img") for i in (2, 0)] == [IMAGES[2], IMAGES[0]]
    assert source.image_names("test", "img") == ["3.png"]


def test_a_saved_dataset_without_splits_is_one_train_split_and_may_name_image_files(tmp_path: Path) -> None:
    import datasets

    write_csv(tmp_path / "pictures", "")
    datasets.Dataset.from_dict({"img": ["1.png", "2.png"], "y": [1.0, 2.0]}).save_to_disk(str(tmp_path / "set"))
    source = make_source(tmp_path / "set", images=str(tmp_path / "pictures"))
    assert source.splits() == ["train"]
    assert source.image_bytes("train", 1, "img") == IMAGES[2]
    before = source.signature()
    (tmp_path / "pictures" / "2.png").write_bytes(IMAGES[3] + b"more")
    assert source.signature() != before


@pytest.mark.parametrize("content", [b"{", b"5", b"\xff", b'{"features": 5}'])
def test_a_damaged_description_of_a_saved_data_set_is_named(tmp_path: Path, content: bytes) -> None:
    import datasets

    write_csv(tmp_path / "pictures", "")
    datasets.Dataset.from_dict({"img": ["1.png"], "y": [1.0]}).save_to_disk(str(tmp_path / "set"))
    (tmp_path / "set" / "dataset_info.json").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged: .*dataset_info\.json: .*save the data set again"):
        make_source(tmp_path / "set", images=str(tmp_path / "pictures")).signature()


def test_a_hub_data_set_is_read_from_the_cache_without_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_cache(tmp_path, monkeypatch)
    source = open_source(Data(source="owner/my_name", revision=SHA, columns=Columns(image="img"), targets=("y",)))
    assert isinstance(source, HubSource)
    cheap = source.signature()
    assert sorted(source.splits()) == ["train", "validation"]
    assert source.image_bytes("train", 2, "img") == IMAGES[2]
    assert source.signature() == cheap and SHA in cheap


def test_the_splits_and_signature_of_a_cached_hub_data_set_are_known_without_loading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan on a login node asks no network and does not wait for `datasets` to be imported."""
    hub_cache(tmp_path, monkeypatch)
    data = Data(source="owner/my_name", revision=SHA, columns=Columns(image="img"), targets=("y",))
    loaded = open_source(data)
    assert len(loaded.table("train")) == 3
    expected = _signature(loaded, tuple(choose_splits(loaded.splits(), data)), ("img",))
    monkeypatch.setattr(HubSource, "_load", lambda self: pytest.fail("loaded"))
    assert known_signature(data) == expected
    assert known_signature(Data(source="owner/other", columns=Columns(image="file_path"), targets=("y",))) is None


def test_another_revision_in_the_cache_is_not_taken_for_the_one_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(tmp_path, monkeypatch)
    with pytest.raises(NotFetched, match=rf"owner___my_name\) holds owner/my_name at {SHA} instead.*carabid fetch CONFIG"):
        open_source(Data(source="owner/my_name", revision="f" * 40, columns=Columns(image="file_path"), targets=("y",))).splits()


# ---------------------------------------------------------------- what is there, and whether it changed
@pytest.mark.parametrize("name", ["nowhere.csv", "a/b/c", "/no/such/folder", "beetles"])
def test_a_source_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_source(Data(source=name, columns=Columns(image="file_path"), targets=("y",)))


def test_a_folder_without_data_or_with_two_kinds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no data set"):
        make_source(tmp_path)
    write_csv(tmp_path, "img\n")
    write_parquet(tmp_path / "a.parquet", [0])
    with pytest.raises(UserError, match="both Parquet and CSV"):
        make_source(tmp_path)


def test_the_signature_follows_the_files_and_nothing_else(tmp_path: Path) -> None:
    table = write_csv(tmp_path, "img,y\n0.png,1\n")
    before = make_source(table).signature()
    assert make_source(table).signature() == before
    (tmp_path / "5.png").unlink()
    assert make_source(table).signature() == before
    os.utime(tmp_path / "0.png", ns=(1, 1))
    changed = make_source(table).signature()
    assert changed != before
    (tmp_path / "0.png").unlink()
    assert make_source(table).signature() not in (before, changed)


def test_the_signature_follows_the_files_of_cards_only_where_cards_are_used(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / f"{split}.csv").write_text("img,card\na.png,c.png\n")
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(IMAGES[0])
    columns = Columns(image="img", colour_card="card")
    both = [Data(source=str(tmp_path), columns=columns, targets=("y",), colour_card=used) for used in (False, True)]
    before = [known_signature(data) for data in both]
    (tmp_path / "c.png").write_bytes(IMAGES[1] + b"longer")
    after = [known_signature(data) for data in both]
    assert after[0] == before[0] and len({*before, *after}) == 3 and None not in after


def test_importing_sources_loads_no_heavy_library_and_a_csv_signature_needs_none(tmp_path: Path) -> None:
    table = write_csv(tmp_path, "img,y\n0.png,1\n")
    assert isinstance(make_source(table), CsvSource)
    code = (
        "import sys; from pipeline.config.data import Data; from pipeline.data.sources import open_source;"
        f"open_source(Data(source={str(table)!r}, columns={{'image': 'file_path'}}, targets=('y',))).signature();"
        "print([m for m in ('torch', 'pandas', 'pyarrow', 'datasets', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_csv_in_another_encoding_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("img,name\na.png,A\nb.png,Käfer\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"data\.csv, line 3: .*save the file as CSV UTF-8"):
        read_csv(path)


def test_an_error_whose_cause_a_library_hid_still_tells_that_the_hub_was_asked() -> None:
    try:
        try:
            raise ConnectionError("no network")
        except ConnectionError:
            raise ValueError("cannot be loaded") from None  # as `datasets` raises it
    except ValueError as error:
        assert hub.was_asked(error)


def test_what_is_not_fetched_is_no_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1])
    dataset = Dataset(pd.DataFrame({"source_split": ["train"], "row": [0]}), Numbers(()), make_source(path), "img")

    def not_fetched(*_: object) -> bytes:
        raise NotFetched("the images are not here.")

    monkeypatch.setattr(dataset.source, "image_bytes", not_fetched)
    with pytest.raises(NotFetched, match="carabid fetch"):
        dataset.image_bytes(0)
