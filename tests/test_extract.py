"""Extraction end to end: a tiny open_clip model on generated beetles, through kills, damage, races and bad images."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.backbones import load_backbone
from pipeline.config.trial import Config
from pipeline.disk.writing import read_json
from pipeline.errors import UserError, WorkError
from pipeline.features.hashes import known_feature_key
from pipeline.features.store import FeatureStore, open_key
from pipeline.stages import extract
from pipeline.stages.inputs import feature_key
from pipeline.tasks import load_task
from tests.small import SHARDS, extract_and_log, image_files, small_config, start

pytestmark = pytest.mark.jobs

CUT = {"encoder": {"kind": "finetuned", "blocks": 2}}


@pytest.fixture(scope="session")
def reference(table: Path, clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store of pooled features that was made without any disturbance."""
    store = extract.run(small_config(table, clip, tmp_path_factory.mktemp("reference")))
    assert store
    return store.dir.path


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a store that must come out the same whatever happened: shards and index."""
    files = [*folder.glob("*.safetensors"), *folder.glob("*.parquet")]
    assert len(files) == SHARDS + 1 and (folder / "manifest.json").exists()
    return {file.name: file.read_bytes() for file in files}


def opened(config: Config) -> FeatureStore:
    """The store as training opens it."""
    return open_key(config, feature_key(config, load_task(config.task).load(config.data)))


def rows(store: FeatureStore) -> torch.Tensor:
    """All features [n, …]."""
    return torch.cat([load_file(store.path(shard))["features"] for shard in range(store.n_shards)])


# ---------------------------------------------------------------- what is stored
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["pooled", "patches", "cut"])
def test_row_i_holds_the_features_of_image_i(table: Path, clip: Path, tmp_path: Path, kind: str, dtype: str) -> None:
    encoder = {"pooled": {"kind": "frozen"}, "patches": {"kind": "patch_convs"}, "cut": {"kind": "finetuned"}}[kind]
    config = small_config(table, clip, tmp_path, model={"encoder": encoder}, features={"dtype": dtype})
    store = extract.run(config)
    assert store and store.key == known_feature_key(config)
    backbone, dataset = load_backbone(config.backbone), load_task("beetles").load(config.data)
    images = torch.stack([backbone.transform(dataset.image(i)) for i in range(len(dataset))])
    with torch.inference_mode():
        functions = {"pooled": backbone.embed, "patches": backbone.patches, "cut": lambda x: backbone.trunk(x, 6)}
        direct = functions[kind](images)
    stored = rows(store)
    assert stored.shape == direct.shape == (40, *store.shape)
    assert read_json(store.dir.manifest)["embed_dim"] == backbone.embed_dim
    if dtype == "fp32":
        torch.testing.assert_close(stored, direct, rtol=1e-5, atol=1e-5)
    else:
        assert stored.dtype == torch.bfloat16
        torch.testing.assert_close(stored.float(), direct, rtol=2**-8, atol=1e-5)


def test_bf16_features_are_the_fp32_ones_rounded(table: Path, clip: Path, tmp_path: Path) -> None:
    exact = extract.run(small_config(table, clip, tmp_path, model=CUT))
    rounded = extract.run(small_config(table, clip, tmp_path, model=CUT, features={"dtype": "bf16"}))
    assert exact and rounded and exact.key != rounded.key
    assert torch.equal(rows(exact).to(torch.bfloat16), rows(rounded))


def test_index_and_manifest_describe_every_image(table: Path, clip: Path, tmp_path: Path, reference: Path) -> None:
    index = pd.read_parquet(reference / "index.parquet")
    dataset = load_task("beetles").load(small_config(table, clip, tmp_path).data)
    assert list(index["id"]) == list(dataset.table["id"]) and list(index["position"]) == list(range(40))
    assert list(index["source_split"]) == list(dataset.table["source_split"])
    assert index["ok"].all() and index["error"].isna().all()
    assert list(index["shard"]) == [i // 8 for i in range(40)] and list(index["offset"]) == [i % 8 for i in range(40)]
    assert index["image_sha256"].str.fullmatch("[0-9a-f]{64}").all()


def test_two_sources_with_the_same_images_share_a_store(own: Path, table: Path, clip: Path, tmp_path: Path) -> None:
    first = extract.run(small_config(table, clip, tmp_path))
    second = extract.run(small_config(own, clip, tmp_path))
    assert first and second and first.key == second.key


def test_progress_and_speed_are_told(table: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = extract.run(small_config(table, clip, tmp_path))
    assert store and "40 images" in (told := capsys.readouterr().err) and "images/s" in told
    manifest = read_json(store.dir.manifest)
    assert manifest["images_per_second"] > 0 and manifest["devices"] == ["cpu"]


# ---------------------------------------------------------------- kills and damage
def test_a_killed_extraction_goes_on_and_ends_with_the_same_bytes(
    table: Path, clip: Path, tmp_path: Path, reference: Path
) -> None:
    config, log = small_config(table, clip, tmp_path), tmp_path / "log"
    # Dies before each of these gets its name, and once in the middle of a shard; at last it is left alone.
    deaths = ["data-", "weights-", "00000-of-00005.safetensors", "00001-of-00005.json", "batch 4", "index", "manifest"]
    for death in [*deaths, None]:
        done = {f"{int(file.name[6:11])}" for file in tmp_path.glob("*/shard*.safetensors")}
        log.write_text("")
        process = start(extract_and_log, config, log, "run", death)
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if death else 0), death
        assert done.isdisjoint(log.read_text().split()), "a finished shard is not made again"
    assert contents(opened(config).dir.path) == contents(reference)


@pytest.mark.parametrize("how", ["run", "ensure"])
def test_a_truncated_shard_is_made_again(table: Path, clip: Path, tmp_path: Path, reference: Path, how: str) -> None:
    config = small_config(table, clip, tmp_path)
    store = extract.run(config)
    assert store
    with store.path(2).open("r+b") as file:
        file.truncate(store.path(2).stat().st_size - 1)
    with pytest.raises(WorkError, match="carabid extract"):
        opened(config)
    assert getattr(extract, how)(config)
    assert contents(store.dir.path) == contents(reference)


def test_a_flipped_bit_is_found_and_the_shard_made_again(
    table: Path, clip: Path, tmp_path: Path, reference: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(table, clip, tmp_path)
    store = extract.run(config)
    assert store
    data = bytearray(store.path(3).read_bytes())
    data[-100] ^= 4
    store.path(3).write_bytes(data)
    assert extract.run(config)
    assert contents(store.dir.path) == contents(reference) and f"{store.path(3)} is damaged" in capsys.readouterr().err


def test_a_store_is_not_complete_while_a_damaged_shard_is_made_again(table: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(table, clip, tmp_path)
    store = extract.run(config)
    assert store
    store.path(0).write_bytes(b"nonsense")
    process = start(extract_and_log, config, tmp_path / "log", "run", "batch 1")
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not store.dir.manifest.exists()


def test_a_complete_store_is_neither_computed_nor_written_again(table: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(table, clip, tmp_path)
    store = extract.run(config)
    assert store
    before = {file: file.stat().st_mtime_ns for file in store.dir.path.iterdir()}
    log = tmp_path / "log"
    for how in ("run", "ensure"):
        process = start(extract_and_log, config, log, how, ".")
        process.join(60)
        assert process.exitcode == 0
    assert not log.exists() and before == {file: file.stat().st_mtime_ns for file in store.dir.path.iterdir()}


# ---------------------------------------------------------------- several processes
@pytest.mark.parametrize("n_tasks", [3, 7])
def test_an_array_of_tasks_makes_the_same_store_as_one(
    table: Path, clip: Path, tmp_path: Path, reference: Path, n_tasks: int
) -> None:
    config = small_config(table, clip, tmp_path)
    *early, last = [extract.run(config, task, n_tasks) for task in reversed(range(n_tasks))]
    assert last and early[0] is None
    assert contents(last.dir.path) == contents(reference)


def test_two_processes_on_the_same_key_both_end_well(table: Path, clip: Path, tmp_path: Path, reference: Path) -> None:
    config = small_config(table, clip, tmp_path)
    processes = [start(extract_and_log, config, tmp_path / f"log{i}", "run") for i in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(opened(config).dir.path) == contents(reference)


def test_of_two_that_need_the_store_one_extracts_and_the_other_waits(
    table: Path, clip: Path, tmp_path: Path, reference: Path
) -> None:
    config = small_config(table, clip, tmp_path, resources={"lease_seconds": 60})  # nobody dies here
    log = tmp_path / "log"
    processes = [start(extract_and_log, config, log, "ensure") for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(log.read_text().split()) == [str(shard) for shard in range(SHARDS)]
    assert contents(opened(config).dir.path) == contents(reference)


def test_another_takes_over_from_an_extractor_that_died(table: Path, clip: Path, tmp_path: Path, reference: Path) -> None:
    config, log = small_config(table, clip, tmp_path), tmp_path / "log"
    first = start(extract_and_log, config, log, "ensure", "batch 6")
    first.join(60)
    assert first.exitcode == -signal.SIGKILL
    second = start(extract_and_log, config, log, "ensure")
    second.join(60)
    assert second.exitcode == 0 and contents(opened(config).dir.path) == contents(reference)


def test_an_extractor_that_was_suspended_for_too_long_leaves_the_rest_to_its_successor(
    table: Path, clip: Path, tmp_path: Path, reference: Path
) -> None:
    config, log = small_config(table, clip, tmp_path), tmp_path / "log"
    first = start(extract_and_log, config, log, "ensure", "batch 4", signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while Path(f"/proc/{first.pid}/stat").read_text().split()[2] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = start(extract_and_log, config, tmp_path / "log2", "ensure")
    second.join(60)
    assert (tmp_path / "log2").read_text(), "the successor had nothing left to do: the test would say nothing"
    os.kill(first.pid or 0, signal.SIGCONT)
    first.join(60)
    assert (first.exitcode, second.exitcode) == (0, 0)
    assert contents(opened(config).dir.path) == contents(reference)


# ---------------------------------------------------------------- bad images
def test_a_bad_image_stops_extraction_and_is_named_by_file_row_and_column(own: Path, clip: Path, tmp_path: Path) -> None:
    files = image_files(own)
    files[9].write_bytes(files[9].read_bytes()[:300])
    files[12].unlink()
    with pytest.raises(UserError) as caught:
        extract.run(small_config(own, clip, tmp_path))
    assert all(part in str(caught.value) for part in (str(own), "line 11", "file_path", "1 more", "on_bad_image=skip"))


def test_bad_images_can_be_skipped_and_are_counted_and_named(own: Path, clip: Path, tmp_path: Path) -> None:
    good = extract.run(small_config(own, clip, tmp_path))
    files = image_files(own)
    files[9].write_bytes(b"not an image")
    files[12].unlink()
    for file in files[16:24]:
        file.write_bytes(b"")
    bad = [9, 12, *range(16, 24)]
    config = small_config(own, clip, tmp_path, data={"on_bad_image": "skip"})
    store = extract.run(config)
    assert good and store and sorted(store.bad) == bad
    manifest = read_json(store.dir.manifest)
    assert manifest["n_bad"] == 10 and manifest["bad"][0]["id"] == files[9].stem
    index = pd.read_parquet(store.dir.index)
    assert list(index.index[~index["ok"]]) == bad and "line 11" in index["error"][9]
    assert (rows(store)[bad] == 0).all()
    whole = [i for i in range(40) if i not in bad]
    assert torch.equal(rows(store)[whole], rows(good)[whole]), "a bad image leaves its neighbours alone"
    strict = small_config(own, clip, tmp_path)
    for refused in (opened, extract.run, extract.ensure):
        with pytest.raises(UserError, match=r"line 11.*9 more"):
            refused(strict)
    assert opened(config).n == 40


def test_a_repaired_image_gets_its_features(own: Path, clip: Path, tmp_path: Path, reference: Path) -> None:
    file = image_files(own)[9]
    whole = file.read_bytes()
    file.write_bytes(b"not an image")
    extract.run(small_config(own, clip, tmp_path, data={"on_bad_image": "skip"}))
    file.write_bytes(whole)
    store = extract.run(small_config(own, clip, tmp_path))
    assert store and contents(store.dir.path) == contents(reference)


# ---------------------------------------------------------------- records that have become wrong
def change_unseen(file: Path, data: bytes) -> None:
    """New content of the same size, with the old time of change."""
    stat = file.stat()
    assert len(data) == stat.st_size
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_an_image_changed_behind_the_records_back_is_noticed(own: Path, clip: Path, tmp_path: Path) -> None:
    config, file = small_config(own, clip, tmp_path), image_files(own)[30]
    Image.new("RGB", (90, 60), "red").save(file, "BMP")
    before = extract.prepare(config).store.key
    Image.new("RGB", (90, 60), "lime").save(tmp_path / "lime", "BMP")
    change_unseen(file, (tmp_path / "lime").read_bytes())
    with pytest.raises(WorkError, match=r"line 32.*Run this again"):
        extract.run(config)
    store = extract.run(config)
    assert store and store.key != before


def test_weights_changed_behind_the_records_back_are_noticed(table: Path, clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    config = small_config(table, folder, tmp_path)
    before = extract.prepare(config).store.key
    file = folder / "open_clip_model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor * 0.5 for name, tensor in tensors.items()}, tmp_path / "changed")
    change_unseen(file, (tmp_path / "changed").read_bytes())
    with pytest.raises(WorkError, match="Run this again"):
        extract.run(config)
    store = extract.run(config)
    assert store and store.key != before


def test_features_that_are_not_finite_stop_the_work(
    table: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "compute_features", lambda _, images, *rest: torch.full((len(images), 3), torch.nan))
    with pytest.raises(WorkError, match=r"line 2.*not finite"):
        extract.run(small_config(table, clip, tmp_path))
    with pytest.raises(WorkError):
        opened(small_config(table, clip, tmp_path))


def test_more_blocks_than_the_backbone_has_are_refused(table: Path, clip: Path, tmp_path: Path) -> None:
    config: Config = small_config(table, clip, tmp_path, model={"encoder": {"kind": "finetuned", "blocks": 9}})
    with pytest.raises(UserError, match="8 blocks"):
        extract.run(config)
