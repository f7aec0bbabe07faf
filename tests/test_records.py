"""Records of data and weights: made once, kept while nothing has changed, renewed when something has."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
from safetensors.torch import load_file, save_file

from pipeline.backbones import load_backbone
from pipeline.config import Config
from pipeline.dataset import Dataset
from pipeline.errors import UserError
from pipeline.layout import write_text
from pipeline.records import DataRecord, WeightsRecord, data_record, ingredients, known_feature_key, weights_record
from pipeline.tasks import load_task
from tests.conftest import Assets
from tests.small import image_files, small_config


def never(*_: Any) -> NoReturn:
    raise AssertionError("this should not have been called")


def record(config: Config) -> DataRecord:
    return data_record(config, load_task("beetles").load(config.data))


def weights(config: Config) -> WeightsRecord:
    return weights_record(config, lambda: load_backbone(config.backbone))


def key(config: Config) -> str:
    """The key as extraction finds it."""
    return ingredients(config, record(config), weights(config)).key()


# ---------------------------------------------------------------- data
def test_no_image_is_read_while_sizes_and_times_are_the_same(
    table: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(table, clip, tmp_path)
    first = record(config)
    monkeypatch.setattr(Dataset, "image_bytes", never)
    assert record(config) == first and len(first.images) == first.n == 40


def test_a_changed_image_renews_the_record(own: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(own, clip, tmp_path)
    before = record(config)
    one, other = image_files(own)[:2]
    one.write_bytes(other.read_bytes())
    after = record(config)
    assert after.content != before.content and after.images[0] == after.images[1] == before.images[1]
    assert after.images[1:] == before.images[1:]


def test_a_touched_image_is_read_again_and_the_content_is_the_same(own: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(own, clip, tmp_path)
    before = record(config)
    image_files(own)[0].touch()
    after = record(config)
    assert after.content == before.content and after.signature != before.signature


def test_an_image_that_is_not_there_is_recorded_and_its_return_noticed(own: Path, clip: Path, tmp_path: Path) -> None:
    config, file = small_config(own, clip, tmp_path), image_files(own)[3]
    whole = file.read_bytes()
    file.unlink()
    without = record(config)
    file.write_bytes(whole)
    assert without.images[3] == "" and record(config).images[3] != ""


def test_a_damaged_record_is_made_again(table: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(table, clip, tmp_path)
    before = record(config)
    (file,) = (tmp_path / "records").glob("data-*.json")
    write_text(file, file.read_text()[:100])
    assert known_feature_key(config) is None and record(config) == before


# ---------------------------------------------------------------- weights
def test_weights_are_not_loaded_while_they_look_the_same(table: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(table, clip, tmp_path)
    first = weights(config)
    assert weights_record(config, never) == first
    assert (first.n_blocks, first.embed_dim) == (8, 64)


@pytest.mark.parametrize(
    "backbone",
    [{"kind": "pixels", "size": 4}, {"kind": "open_clip", "name": "RN50", "seed": 3}],
    ids=["pixels", "random"],
)
def test_weights_without_files_are_recorded_too(
    table: Path, clip: Path, tmp_path: Path, backbone: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config.model_validate({**small_config(table, clip, tmp_path).model_dump(), "backbone": backbone})
    # An architecture of its real size takes seconds: any backbone will do here.
    loaded = load_backbone(small_config(table, clip, tmp_path).backbone)
    first = weights_record(config, lambda: loaded)
    assert weights_record(config, never) == first


def test_other_weights_in_the_same_place_renew_the_record(table: Path, assets: Assets, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(assets.dinov2, folder)
    values = small_config(table, folder, tmp_path).model_dump()
    config = Config.model_validate({**values, "backbone": {"kind": "dinov2", "name": str(folder)}})
    before = weights(config)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    assert weights(config).weights != before.weights


@pytest.mark.parametrize(
    "backbone",
    [{"kind": "dinov2", "name": "/no/such folder"}, {"kind": "open_clip", "name": "hf-hub:owner/name/more"}],
    ids=["folder", "hub"],
)
def test_weights_that_can_be_nowhere_are_refused_by_name(
    table: Path, clip: Path, tmp_path: Path, backbone: dict[str, Any]
) -> None:
    config = Config.model_validate({**small_config(table, clip, tmp_path).model_dump(), "backbone": backbone})
    name = backbone["name"].removeprefix("hf-hub:")
    for look in (lambda: weights_record(config, never), lambda: known_feature_key(config)):
        with pytest.raises(UserError, match=f"backbone.name {name}: there is no such folder"):
            look()


# ---------------------------------------------------------------- the known key
def test_the_key_is_known_from_records_alone(
    table: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(table, clip, tmp_path)
    assert known_feature_key(config) is None
    record(config)
    assert known_feature_key(config) is None
    found = key(config)
    monkeypatch.setattr(Dataset, "image_bytes", never)
    assert known_feature_key(config) == found


def test_the_key_is_not_known_once_data_or_weights_have_changed(own: Path, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    config = small_config(own, folder, tmp_path)
    before = key(config)
    image_files(own)[0].touch()
    assert known_feature_key(config) is None
    assert key(config) == before == known_feature_key(config)
    os.utime(folder / "open_clip_model.safetensors")
    assert known_feature_key(config) is None
    assert key(config) == before == known_feature_key(config)


def test_the_key_is_known_without_torch_and_quickly(table: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(table, clip, tmp_path)
    expected = key(config)
    script = (
        "import sys; from pipeline.config import Config; from pipeline.records import known_feature_key; "
        "print(known_feature_key(Config.model_validate_json(sys.argv[1])), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, config.model_dump_json()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split() == [expected, "False"]
    # CPU seconds: other work on the machine does not count.
    assert after.ru_utime - before.ru_utime < 3, "a plan on a login node should not have to wait"
