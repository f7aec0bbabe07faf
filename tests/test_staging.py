"""Features copied to a node's own disk: the same bytes, copied once, made again where they are damaged, and never a must."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from pipeline.config.trial import Config
from pipeline.disk.layout import StoreDir
from pipeline.errors import MissingFeatures, UserError
from pipeline.experiments.reading import load_experiment
from pipeline.features import staging
from pipeline.features.bank import make_bank
from pipeline.features.key import Ingredients
from pipeline.features.staging import StagedStore, node_folder, staged
from pipeline.features.store import FeatureStore, open_key
from pipeline.launch.jobs.trials import trial_dir
from pipeline.stages import evaluate, extract, train
from tests.conftest import Assets
from tests.small import named, start

MADE_OF = Ingredients("data", "open_clip", "architecture", "weights", "transform", "pooled", 0, "fp32", 4)
N = 18
SHARDS = 5


def write_store(root: Path, add: float = 0.0) -> FeatureStore:
    """A complete store of 18 images; features of image i are [i, i] + `add`."""
    import pandas as pd

    store = FeatureStore(StoreDir(root / MADE_OF.key()), MADE_OF, N)
    for number in range(SHARDS):
        rows = torch.tensor(list(store.positions(number)), dtype=torch.float32)[:, None].repeat(1, 2)
        store.write_shard(number, (rows + add).contiguous(), {}, {"images": len(rows), "seconds": 1.0, "device": "cpu"})
    table = pd.DataFrame({"id": [str(i) for i in range(N)], "source_split": "train", "row": range(N)})
    store.write_manifest(table, ["sha"] * N, {})
    return store


def config_at(shared: Path, stage: Path | str | None) -> Config:
    paths = {"features": str(shared), "stage": None if stage is None else str(stage)}
    return Config.model_validate(named({"experiment": "x", "paths": paths, "resources": {"lease_seconds": 1}}))


def stage_again(shared: Path, stage: Path | str | None) -> FeatureStore:
    """The store as a process that has just started opens it."""
    config = config_at(shared, stage)
    return staged(open_key(config, MADE_OF.key()), config)


def features(store: FeatureStore) -> list[float]:
    return make_bank(store, range(N), torch.device("cpu")).gather(torch.arange(N))[:, 0].tolist()


def damage(path: Path) -> None:
    """Change the last byte; size and header stay right."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    write_store(tmp_path / "shared")
    return tmp_path / "shared"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    return tmp_path / "node"


# ---------------------------------------------------------------- the copy
def test_without_a_folder_features_are_read_where_they_are(shared: Path) -> None:
    assert stage_again(shared, None).dir.path.parent == shared


def test_the_copy_is_whole_and_is_what_is_read(shared: Path, node: Path) -> None:
    store = stage_again(shared, node)
    names = {path.name for path in store.dir.path.iterdir() if path.is_file()}
    assert names == {store.path(i).name for i in range(SHARDS)} | {"index.parquet", "manifest.json"}
    assert all((store.dir.path / name).read_bytes() == (shared / store.key / name).read_bytes() for name in names)
    shutil.rmtree(shared)
    store.verify()
    assert store.dir.path == node / store.key and features(store) == list(range(N))


def test_what_is_there_is_not_copied_again(shared: Path, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stage_again(shared, node)
    first.path(2).unlink()
    copied: list[str] = []
    copy = staging.copy
    monkeypatch.setattr(staging, "copy", lambda source, target: (copied.append(source.name), copy(source, target)))
    again = stage_again(shared, node)
    assert [name for name in copied if name.startswith("shard")] == [first.path(2).name]
    copied.clear()
    assert stage_again(shared, node).dir == again.dir and copied == []


def test_features_that_were_made_again_are_copied_again(shared: Path, node: Path) -> None:
    stage_again(shared, node)
    write_store(shared, add=0.5)
    assert features(stage_again(shared, node)) == [i + 0.5 for i in range(N)]


# ---------------------------------------------------------------- damage
@pytest.mark.parametrize("how", ["cut short", "another byte", "gone"])
def test_a_damaged_copy_is_made_again_from_the_shared_one(shared: Path, node: Path, how: str) -> None:
    path = stage_again(shared, node).path(1)
    whole = path.read_bytes()
    if how == "cut short":
        path.write_bytes(whole[:-7])
    elif how == "gone":
        path.unlink()
    else:
        damage(path)
    store = stage_again(shared, node)
    store.verify()
    assert path.read_bytes() == whole and features(store) == list(range(N))


def test_a_shared_shard_that_is_damaged_itself_is_named(shared: Path, node: Path) -> None:
    stage_again(shared, node)
    damage(node / MADE_OF.key() / stage_again(shared, None).path(3).name)
    damage(stage_again(shared, None).path(3))
    with pytest.raises(MissingFeatures, match=f"{stage_again(shared, None).path(3)} is damaged"):
        stage_again(shared, node).verify()


def test_a_copy_that_is_right_is_used_although_the_shared_one_was_damaged_since(shared: Path, node: Path) -> None:
    stage_again(shared, node)
    damage(stage_again(shared, None).path(3))
    store = stage_again(shared, node)
    store.verify()
    assert store.dir.path.parent == node and features(store) == list(range(N))


# ---------------------------------------------------------------- no room
def test_without_room_the_shared_features_are_read_and_that_is_said(
    shared: Path, node: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(path)._replace(free=100))
    store = stage_again(shared, node)
    assert store.dir.path.parent == shared and features(store) == list(range(N))
    assert f"not copied to {node / store.key}: it needs" in capsys.readouterr().err
    assert list(node.rglob("*.safetensors*")) == []


def test_a_copy_that_fails_half_way_leaves_the_disk_as_it_was(
    shared: Path, node: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on the size of files stands for a quota: what is free cannot be told beforehand."""
    sizes = sorted(path.stat().st_size for path in shared.rglob("*.safetensors"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert sizes[0] < sizes[-1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1, before[1]))
    try:
        store = stage_again(shared, node)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.dir.path.parent == shared and "File too large" in capsys.readouterr().err
    assert [path for path in (node / store.key).iterdir() if path.is_file()] == []


@pytest.mark.parametrize("kind", ["a file", "a link that leads nowhere"])
def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(
    shared: Path, node: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "a file":
        node.write_text("")
    else:
        node.mkdir()
        (node / MADE_OF.key()).symlink_to(node / "nowhere")
    assert stage_again(shared, node).dir.path.parent == shared
    assert "are read from" in capsys.readouterr().err


# ---------------------------------------------------------------- several processes
def stage_and_log(shared: Path, node: Path, log: Path, kill: str = "") -> None:
    """Stage in a process of its own; `log` gets a line for each file copied. It kills itself before file `kill` is whole."""
    copyfile = shutil.copyfile

    def logged(source: Path, target: Path) -> None:
        with log.open("a") as file:
            file.write(f"{source.name}\n")
        copyfile(source, target)
        if kill and kill in source.name:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)

    shutil.copyfile = logged  # type: ignore[assignment]
    store = stage_again(shared, node)
    store.verify()
    assert isinstance(store, StagedStore) and features(store) == list(range(N))


def test_processes_of_one_node_share_one_copy(shared: Path, node: Path, tmp_path: Path) -> None:
    processes = [start(stage_and_log, shared, node, tmp_path / "log") for _ in range(4)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    copied = (tmp_path / "log").read_text().split()
    assert len(copied) == len(set(copied)) == SHARDS + 2


def test_a_process_that_is_killed_while_it_copies_leaves_nothing_half_and_the_next_one_goes_on(
    shared: Path, node: Path, tmp_path: Path
) -> None:
    killed = start(stage_and_log, shared, node, tmp_path / "log", "shard-00003")
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and list(node.rglob(".*.tmp")) != []
    next_one = start(stage_and_log, shared, node, tmp_path / "log")
    next_one.join()
    assert next_one.exitcode == 0 and list(node.rglob(".shard-00003*.tmp")) == []


# ---------------------------------------------------------------- the folder's name
def test_variables_mean_what_they_mean_on_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/local/17")
    monkeypatch.setenv("HOME", "/home")
    assert node_folder("$TMPDIR/features") == node_folder("${TMPDIR}/features") == Path("/local/17/features")
    assert node_folder("~/x") == Path("/home/x")


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("path", ["$NODE_DISK/features", "/local/${NODE_DISK}"])
def test_a_variable_that_is_not_set_on_the_node_is_named(path: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NODE_DISK", raising=False)
    if value is not None:
        monkeypatch.setenv("NODE_DISK", value)
    with pytest.raises(UserError, match=r"paths\.stage .*: NODE_DISK is not set on "):
        node_folder(path)


def test_a_relative_folder_is_refused() -> None:
    with pytest.raises(UserError, match="absolute"):
        node_folder("features")


# ---------------------------------------------------------------- training and evaluation
@pytest.mark.jobs
def test_a_trial_is_trained_and_evaluated_from_the_copy_with_the_same_results(
    assets: Assets, root: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(node))
    overrides = (*assets.overrides("frozen"), "train.epochs=2")
    plain = load_experiment("configs/beetles/frozen.yaml", overrides).trials[0]
    elsewhere = load_experiment("configs/beetles/frozen.yaml", (*overrides, "paths.stage=$NODE_DISK/x")).trials[0]
    assert plain.name == elsewhere.name
    store = extract.run(plain.config)
    assert store
    train.run(plain.config, trial_dir(plain))
    expected = evaluate.run(plain.config, trial_dir(plain))
    shutil.rmtree(trial_dir(plain).path)

    train.run(elsewhere.config, trial_dir(elsewhere))
    damage(store.path(0))  # who reads the shared one from here on would stop
    assert evaluate.run(elsewhere.config, trial_dir(elsewhere)) == expected
    with pytest.raises(MissingFeatures, match="is damaged"):
        evaluate.run(plain.config, trial_dir(plain))
