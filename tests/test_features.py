"""The feature store: keys that depend on what features depend on, and shards that know when they are not right."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config.trial import Config
from pipeline.disk.layout import StoreDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError, WorkError
from pipeline.features.hashes import DataRecord, WeightsRecord, ingredients
from pipeline.features.key import Ingredients
from pipeline.features.store import FeatureStore, load_store, open_key
from tests.small import named

MADE_OF = Ingredients("data", "open_clip", "architecture", "weights", "transform", "pooled", 0, "fp32", 4)
MADE = {"images": 4, "seconds": 2.0, "device": "cpu", "host": "here"}

text = st.text(max_size=4)
any_ingredients = st.builds(
    Ingredients,
    data=text,
    backbone=st.sampled_from(["open_clip", "dinov2", "pixels"]),
    architecture=text,
    weights=text,
    transform=text,
    kind=st.sampled_from(["pooled", "patches", "cut"]),
    cut=st.integers(0, 24),
    dtype=st.sampled_from(["bf16", "fp32"]),
    shard_size=st.integers(1, 4096),
    format=st.integers(1, 3),
    correction=text,
)


# ---------------------------------------------------------------- keys
@given(any_ingredients, any_ingredients)
def test_keys_are_equal_exactly_where_the_ingredients_are(one: Ingredients, other: Ingredients) -> None:
    assert (one.key() == other.key()) == (one == other)


@given(any_ingredients, any_ingredients, st.sampled_from([field.name for field in fields(Ingredients)]))
def test_each_single_ingredient_changes_the_key(one: Ingredients, other: Ingredients, name: str) -> None:
    mixed = replace(one, **{name: getattr(other, name)})
    assert (mixed.key() != one.key()) == (getattr(one, name) != getattr(other, name))


def test_without_a_correction_a_key_is_what_it_was_before_there_were_any() -> None:
    assert "correction" not in MADE_OF.as_dict()
    assert MADE_OF.key() == "13450c4f5fb0a3fe" != replace(MADE_OF, correction="x").key()


def key_of(config: Config, data: str = "data", **weights: Any) -> str:
    return ingredients(config, DataRecord("s", data, 1, ["x"]), weights_with(**weights)).key()


def weights_with(**values: Any) -> WeightsRecord:
    text = {"signature": "s", "weights": "w", "architecture": "a", "transform": "t"}
    numbers = {"n_blocks": 12, "embed_dim": 8, "width": 16, "n_patches": 9, "n_parameters": 1000, "n_inputs": 48}
    return WeightsRecord(**{**text, **numbers, **values})


def config_with(**sections: Any) -> Config:
    return Config.model_validate(named({"experiment": "x", **sections}))


BESIDE = {"columns": {"colour_card": "card", "scale_bar": "bar"}}
LORA = {"encoder": {"kind": "lora", "blocks": 4}}


@pytest.mark.parametrize(
    "sections",
    [
        {"features": {"dtype": "fp32"}},
        {"features": {"shard_size": 7}},
        {"backbone": {"kind": "dinov2"}},
        {"model": {"encoder": {"kind": "patch_convs"}}},
        {"model": {"encoder": {"kind": "finetuned"}}},
        {"data": {"colour_card": True, **BESIDE}},
        {"data": {"scale_bar": True, **BESIDE}},
    ],
    ids=str,
)
def test_a_config_that_changes_the_features_changes_the_key(sections: dict[str, Any]) -> None:
    assert key_of(config_with(**sections)) != key_of(config_with())


@pytest.mark.parametrize("change", [{"data": "d"}, {"weights": "v"}, {"architecture": "b"}, {"transform": "u"}], ids=str)
def test_data_and_backbone_change_the_key(change: dict[str, str]) -> None:
    assert key_of(config_with(), **change) != key_of(config_with())


@pytest.mark.parametrize(
    "sections",
    [
        {"seed": 5, "optim": {"lr": 1.0}, "train": {"epochs": 3}, "augment": {"noise": 0.5}, "select": {"metric": "MAE"}},
        {"device": "cpu", "resources": {"extract_batch": 3, "decode_threads": 9, "residence": "mmap", "extract_tasks": 4}},
        {"paths": {"features": "elsewhere"}, "experiment": "y"},
        {"data": {"targets": ["one"], "on_bad_image": "skip", "permute_targets": True, "source": "another"}},
        {"data": {"split": {"kind": "folds", "fold": 2}}},
        {"data": {"canvas": 3, **BESIDE}},
        {"model": {**LORA, "normalize": False, "domain_embedding": True}},
        {"model": {"encoder": {**LORA["encoder"], "r": 8, "dora": False}}},
        {"model": {"encoder": {"kind": "finetuned", "blocks": 4}}},
        {"backbone": {"kind": "open_clip", "name": "hf-hub:elsewhere/the-same-weights"}},
    ],
    ids=lambda sections: "-".join(sections),
)
def test_nothing_else_in_a_config_changes_the_key(sections: dict[str, Any]) -> None:
    assert key_of(config_with(**{"model": LORA, **sections})) == key_of(config_with(model=LORA))


@given(blocks=st.integers(1, 12), n_blocks=st.integers(1, 24))
def test_the_cut_counts_from_the_front(blocks: int, n_blocks: int) -> None:
    config = config_with(model={"encoder": {"kind": "lora", "blocks": blocks}})
    data, weights = DataRecord("s", "d", 1, ["x"]), weights_with(n_blocks=n_blocks)
    if blocks <= n_blocks:
        assert ingredients(config, data, weights).cut == n_blocks - blocks
    else:
        with pytest.raises(UserError, match=str(n_blocks)):
            ingredients(config, data, weights)


# ---------------------------------------------------------------- shards
def make_store(folder: Path, n: int = 10, **changes: Any) -> FeatureStore:
    return FeatureStore(StoreDir(folder), replace(MADE_OF, **changes), n)


def features(n: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, 3, 5).to(dtype)


def fill(store: FeatureStore, bad: dict[int, str] | None = None) -> FeatureStore:
    import pandas as pd

    for shard in range(store.n_shards):
        here = {position: error for position, error in (bad or {}).items() if position in store.positions(shard)}
        store.write_shard(shard, features(len(store.positions(shard))), here, MADE)
    table = pd.DataFrame({"id": [f"b{i}" for i in range(store.n)], "source_split": "train", "row": range(store.n)})
    store.write_manifest(table, ["0" * 64] * store.n, {"embed_dim": 5})
    return store


@given(n=st.integers(1, 50), size=st.integers(1, 20))
def test_shards_deal_out_every_position_once_and_in_order(n: int, size: int) -> None:
    store = make_store(Path("nowhere"), n, shard_size=size)
    assert [i for shard in range(store.n_shards) for i in store.positions(shard)] == list(range(n))


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_a_shard_is_missing_then_done(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path, dtype=dtype)
    assert store.state(2) == store.state(2, thorough=True) == "missing" and store.missing() == [0, 1, 2]
    store.write_shard(2, features(2, torch.bfloat16 if dtype == "bf16" else torch.float32), {9: "why"}, MADE)
    assert store.state(2) == store.state(2, thorough=True) == "done" and store.missing() == [0, 1]
    assert store.shard(2).shape == (2, 3, 5) and store.shard(2).bad == {9: "why"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found(tmp_path: Path, place: float, bit: int) -> None:
    store = make_store(tmp_path)
    if store.state(0) == "missing":
        store.write_shard(0, features(4), {1: "a message"}, MADE)
    whole = store.path(0).read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * len(whole))] ^= 1 << bit
    store.path(0).write_bytes(damaged)
    assert store.state(0, thorough=True) == "damaged"
    store.path(0).write_bytes(whole)
    assert store.state(0, thorough=True) == "done"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.floats(0, 1, exclude_max=True))
def test_any_truncation_is_found_at_once(tmp_path: Path, place: float) -> None:
    store = make_store(tmp_path)
    store.write_shard(0, features(4), {}, MADE)
    whole = store.path(0).read_bytes()
    store.path(0).write_bytes(whole[: int(place * len(whole))])
    assert store.state(0) == "damaged"


def test_a_shard_of_another_store_or_place_is_damaged(tmp_path: Path) -> None:
    one, other = make_store(tmp_path / "one"), make_store(tmp_path / "other", weights="others")
    one.write_shard(0, features(4), {}, MADE)
    other.dir.path.mkdir()
    os.link(one.path(0), other.path(0))
    os.link(one.path(0), one.path(1))
    assert other.state(0) == one.state(1) == "damaged"


def test_equal_shards_are_equal_files(tmp_path: Path) -> None:
    values, files = features(4), []
    for name in "abcd":
        store = make_store(tmp_path / name)
        store.write_shard(0, values, {1: "x", 3: "y"}, {**MADE, "seconds": time.time()})
        files.append(store.path(0).read_bytes())
    assert len(set(files)) == 1


def test_writers_of_the_same_shard_leave_one_of_their_shards_whole(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: store.write_shard(0, features(4), {}, MADE), range(40)))
    assert store.state(0, thorough=True) == "done" and not list(tmp_path.glob(".*"))


def test_temporary_files_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    store = make_store(tmp_path)
    old, new = tmp_path / ".shard.1.tmp", tmp_path / ".shard.2.tmp"
    old.touch()
    new.touch()
    os.utime(old, (time.time() - 200_000,) * 2)
    store.sweep()
    assert not old.exists() and new.exists()


# ---------------------------------------------------------------- opening
def config_at(folder: Path, **data: Any) -> Config:
    return config_with(paths={"features": str(folder)}, data=data)


def test_a_complete_store_opens_and_describes_itself(tmp_path: Path) -> None:
    store = fill(make_store(tmp_path / MADE_OF.key()))
    opened = open_key(config_at(tmp_path), MADE_OF.key())
    assert opened == store and opened.shape == (3, 5) and opened.bad == {}
    manifest = read_json(opened.dir.manifest)
    assert manifest["embed_dim"] == 5 and manifest["images_per_second"] == 2.0


def test_a_store_without_its_manifest_or_with_a_shard_missing_is_not_opened(tmp_path: Path) -> None:
    store = make_store(tmp_path / MADE_OF.key())
    with pytest.raises(WorkError, match="carabid extract"):
        open_key(config_at(tmp_path), store.key)
    fill(store)
    store.path(1).unlink()
    with pytest.raises(WorkError, match=r"00001-of-00003.*carabid extract"):
        open_key(config_at(tmp_path), store.key)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"n": 3}'])
def test_a_damaged_manifest_is_an_error_that_says_what_to_do(tmp_path: Path, damage: bytes) -> None:
    store = fill(make_store(tmp_path / MADE_OF.key()))
    store.dir.manifest.write_bytes(damage)
    with pytest.raises(WorkError, match="Remove it"):
        load_store(store.dir)


def test_bad_images_are_an_error_unless_they_may_be_skipped(tmp_path: Path) -> None:
    store = fill(make_store(tmp_path / MADE_OF.key()), bad={2: "table, row 2: bad", 7: "table, row 7: bad"})
    with pytest.raises(UserError, match=r"^table, row 2: bad \(1 more"):
        open_key(config_at(tmp_path), store.key)
    opened = open_key(config_at(tmp_path, on_bad_image="skip"), store.key)
    assert list(opened.bad) == [2, 7]
    assert read_json(opened.dir.manifest)["bad"] == [
        {"position": 2, "id": "b2", "error": "table, row 2: bad"},
        {"position": 7, "id": "b7", "error": "table, row 7: bad"},
    ]
