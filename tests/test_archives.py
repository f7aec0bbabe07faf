"""Archived images: the same bytes and features as from the files, and never those of files that have changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.trial import Config
from pipeline.data.dataset import BadImage, Dataset
from pipeline.disk.reading import Damaged
from pipeline.errors import UserError
from pipeline.features import archives
from pipeline.stages import extract
from pipeline.tasks import load_task
from tests.small import named

N = 6


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Six images in files, the last of which is damaged, and one that is not there."""
    (tmp_path / "images").mkdir()
    rows = [f"{i}.png,{i},{'train' if i % 2 else 'validation'},{i}.5" for i in range(N + 1)]
    for i, colours in enumerate(np.random.default_rng(0).integers(0, 255, (N, 8, 8, 3), dtype="uint8")):
        Image.fromarray(colours).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / f"{N - 1}.png").write_bytes(b"no image")
    (tmp_path / "table.csv").write_text("\n".join(["file,id,split,target", *rows]))
    data = {"source": str(tmp_path / "table.csv"), "images": str(tmp_path / "images"), "targets": ["target"]}
    data |= {"columns": {"image": "file", "id": "id"}, "on_bad_image": "skip"}
    paths = {"features": str(tmp_path / "features"), "stage": None}
    values = {"experiment": "x", "task": "regress", "backbone": {"kind": "pixels"}, "paths": paths, "device": "cpu"}
    return Config.model_validate(named({**values, "data": data, "resources": {"lease_seconds": 1}}))


def load(config: Config) -> Dataset:
    return load_task(config.task).load(config.data)


def with_paths(config: Config, **values: str) -> Config:
    return config.model_copy(update={"paths": config.paths.model_copy(update=values)})


def test_images_are_the_same_bytes_from_an_archive_and_those_that_are_not_in_it_say_so_as_before(config: Config) -> None:
    archives.make(config, load(config))
    plain, archived = load(config), archives.archived(config, load(config))
    assert archived.archived is not None and plain.archived is None
    files = list(Path(config.data.images or "").iterdir())
    there = [i for i, name in enumerate(plain.image_names()) if name != f"{N}.png"]
    (missing,) = set(range(N + 1)) - set(there)
    expected = [plain.encoded(i) for i in there]
    with pytest.raises(BadImage, match=r"table.csv, line \d+: the image in column file cannot be read: there is no file"):
        archived.encoded(missing)
    for file in files:  # what is read now is no file
        file.rename(file.with_suffix(".away"))
    assert [archived.encoded(i) for i in there] == expected


def test_features_from_an_archive_have_the_key_and_the_bytes_of_those_from_files(config: Config, tmp_path: Path) -> None:
    from_files = extract.ensure(config)
    other = with_paths(config, features=str(tmp_path / "other"))
    archives.make(other, load(other))
    assert extract.prepare(other).dataset.archived is not None
    from_pack = extract.ensure(other)
    assert from_pack.key == from_files.key and from_pack.bad == from_files.bad and len(from_pack.bad) == 2
    assert from_pack.path(0).read_bytes() == from_files.path(0).read_bytes()
    assert from_pack.images() == from_files.images()


@pytest.mark.parametrize("change", ["content", "new file"])
def test_files_that_change_after_archiving_are_read_themselves(
    config: Config, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    archives.make(config, load(config))
    name = "0.png" if change == "content" else f"{N}.png"
    file = Path(config.data.images or "") / name
    Image.new("RGB", (9, 9)).save(file)
    dataset = archives.archived(config, load(config))
    assert dataset.archived is None and "has changed since it was archived" in "".join(capsys.readouterr())
    assert dataset.encoded(dataset.image_names().index(name)) == (file.read_bytes(),)
    archives.make(config, load(config))
    assert archives.archived(config, load(config)).archived is not None


def test_an_archive_is_made_once_and_copied_once_to_the_node(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = archives.make(config, load(config))
    archives.make(config, load(config))
    assert "archived already" in "".join(capsys.readouterr())
    staged = with_paths(config, stage=str(tmp_path / "node"))
    archives.archived(staged, load(staged))
    assert "copied to" in "".join(capsys.readouterr())
    (copied,) = (tmp_path / "node").glob("*/images.bin")
    assert copied.read_bytes() == archive.content.read_bytes()
    archives.archived(staged, load(staged))
    assert "copied to" not in "".join(capsys.readouterr())
    os.truncate(copied, 10)
    archives.archived(staged, load(staged))
    assert copied.read_bytes() == archive.content.read_bytes()


def test_a_damaged_archive_is_read_from_the_files_and_made_again(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    content = archives.make(config, load(config)).content
    whole = content.read_bytes()
    os.truncate(content, 10)
    dataset = archives.archived(config, load(config))
    assert dataset.archived is None and "its archive is damaged: its files are read" in "".join(capsys.readouterr())
    archives.make(config, load(config))
    assert content.read_bytes() == whole


def test_an_image_whose_bytes_have_changed_in_the_archive_is_read_from_its_file(config: Config) -> None:
    content = archives.make(config, load(config)).content
    with content.open("r+b") as file:
        file.seek(20)
        file.write(b"damage")
    plain, archived = load(config), archives.archived(config, load(config))
    assert archived.archived is not None
    assert [archived.encoded(i) for i in range(N - 1)] == [plain.encoded(i) for i in range(N - 1)]


def test_an_archive_whose_index_cannot_be_read_is_refused_with_what_to_do(config: Config) -> None:
    archives.make(config, load(config)).index.write_bytes(b"no table")
    with pytest.raises(Damaged, match=r"index\.parquet.*carabid archive"):
        archives.archived(config, load(config))


def test_images_within_tables_are_archived_already(config: Config, tmp_path: Path) -> None:
    import pandas as pd

    table = pd.read_csv(config.data.source)
    table["file"] = [b"bytes"] * len(table)
    table.to_parquet(tmp_path / "table.parquet")
    data = {"source": str(tmp_path / "table.parquet"), "columns": {"image": "file", "id": "id"}, "targets": ["target"]}
    data |= {"split": {"kind": "folds", "fold": 0}}
    inside = Config.model_validate(named({"experiment": "x", "task": "regress", "data": data}))
    with pytest.raises(UserError, match="its images lie in its tables"):
        archives.make(inside, load(inside))
