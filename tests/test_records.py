"""Records of data and weights: made once, kept while nothing has changed, renewed when something has."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from safetensors.torch import load_file, save_file

from pipeline.backbones import load_backbone
from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset, known_signature
from pipeline.disk.layout import store_dir
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.errors import UserError
from pipeline.features.hashes import (
    Basis,
    DataRecord,
    WeightsRecord,
    basis_change,
    data_record,
    ingredients,
    known_feature_key,
    weights_record,
)
from pipeline.stages import extract
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
    "backbone", [{"kind": "pixels", "size": 4}, {"kind": "open_clip", "name": "RN50", "seed": 3}], ids=["pixels", "random"]
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
def test_the_key_is_known_from_records_alone(table: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        "import sys; from pipeline.config.trial import Config; from pipeline.features.hashes import known_feature_key; "
        "print(known_feature_key(Config.model_validate_json(sys.argv[1])), 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, config.model_dump_json()]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.split() == [expected, "False"]
    # CPU seconds: other work on the machine does not count.
    assert after.ru_utime - before.ru_utime < 3, "a plan on a login node should not have to wait"


# ---------------------------------------------------------------- what has changed
def basis(config: Config) -> Basis:
    return Basis(known_signature(config.data), known_feature_key(config))


def edit_table(table: Path, edit: Callable[[list[str]], list[str]]) -> None:
    """Change the lines of a CSV below its header."""
    header, *lines = table.read_text().splitlines()
    write_text(table, "\n".join([header, *edit(lines)]) + "\n")


def swap_contents(one: Path, other: Path) -> None:
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda files, table: files[3].write_bytes(files[0].read_bytes()), "1 image changed"),
        (lambda files, table: [f.write_bytes(f.read_bytes() + b" ") for f in files[:3]], "3 images changed"),
        (lambda files, table: edit_table(table, lambda lines: lines[:-2]), "2 images removed"),
        (lambda files, table: edit_table(table, lambda lines: [*lines, lines[0], lines[1]]), "2 images added"),
        (lambda files, table: edit_table(table, lambda lines: lines[::-1]), "images put in another order"),
        (lambda files, table: swap_contents(files[0], files[1]), "images put in another order"),
        (
            lambda files, table: [files[7].write_bytes(b"other"), edit_table(table, lambda lines: [*lines, lines[3], lines[4]])],
            "1 image changed, 2 images added",
        ),
    ],
    ids=["another", "three", "removed", "added", "reversed", "swapped", "both"],
)
def test_what_has_changed_about_the_images_is_counted(
    own: Path, clip: Path, tmp_path: Path, change: Callable[[list[Path], Path], object], words: str
) -> None:
    config = small_config(own, clip, tmp_path)
    record(config)
    then = basis(config)
    change(image_files(own), own)
    record(config)
    assert basis_change(config, then, basis(config)) == f"features to be rebuilt: {words}"


def test_data_whose_files_are_others_and_whose_images_are_the_same_say_so(own: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(own, clip, tmp_path)
    record(config)
    then = basis(config)
    image_files(own)[0].touch()
    changed = "the data's files have changed since it was evaluated; "
    assert basis_change(config, then, basis(config)) == changed + "which images, extraction will tell"
    record(config)
    assert basis_change(config, then, basis(config)) == changed + "the images are the same"


def test_nothing_has_changed_where_it_has_not_or_where_data_and_weights_are_not_here(
    own: Path, clip: Path, tmp_path: Path
) -> None:
    config = small_config(own, clip, tmp_path)
    key(config)
    then = basis(config)
    assert then.key and basis_change(config, then, basis(config)) == ""
    own.unlink()
    assert basis(config).signature is None and basis_change(config, then, Basis(None, None)) == ""


def test_features_that_have_been_rebuilt_are_told_from_those_that_will_be(own: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(own, clip, tmp_path)
    extract.run(config)
    then = basis(config)
    image_files(own)[0].write_bytes(image_files(own)[1].read_bytes())
    record(config)
    assert basis_change(config, then, basis(config)) == "features to be rebuilt: 1 image changed"
    extract.run(config)
    assert basis_change(config, then, basis(config)) == "features rebuilt: 1 image changed"
    for file in (tmp_path / "records").glob("data-*.json"):
        if read_json(file)["signature"] == then.signature:
            file.unlink()
    assert basis_change(config, then, basis(config)) == "features rebuilt: images changed"


def double_weights(folder: Path) -> None:
    file = folder / "open_clip_model.safetensors"
    save_file({name: tensor * 2 for name, tensor in load_file(file).items()}, file)


def other_mean(folder: Path) -> None:
    values = read_json(folder / "open_clip_config.json")
    values["preprocess_cfg"]["mean"] = [0.1, 0.2, 0.3]
    write_json(folder / "open_clip_config.json", values)


def other_activation(folder: Path) -> None:
    values = read_json(folder / "open_clip_config.json")
    values["model_cfg"]["quick_gelu"] = not values["model_cfg"].get("quick_gelu", False)
    write_json(folder / "open_clip_config.json", values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (double_weights, "the backbone's weights changed"),
        (other_mean, "the transform of images changed"),
        (other_activation, "the backbone's architecture changed"),
    ],
)
def test_what_has_changed_about_the_backbone_is_named(
    table: Path, clip: Path, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    shutil.copytree(clip, tmp_path / "clip")
    config = small_config(table, tmp_path / "clip", tmp_path)
    extract.run(config)
    then = basis(config)
    assert then.key
    change(tmp_path / "clip")
    assert basis_change(config, then, basis(config)) == "", "what has not been looked at again tells nothing"
    weights(config)
    assert basis_change(config, then, basis(config)) == f"features to be rebuilt: {words}"
    shutil.rmtree(store_dir(config, then.key).path)
    assert basis_change(config, then, basis(config)) == "its features are others now than it was trained on"
