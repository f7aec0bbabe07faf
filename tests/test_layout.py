"""Where things lie, and files that are old or new but never in between."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.trial import Config
from pipeline.disk.layout import (
    PROJECT,
    ExperimentDir,
    all_experiments,
    experiment_dir,
    features_root,
    root,
    store_dir,
    trained_root,
)
from pipeline.disk.writing import atomic_folder, atomic_path, read_json, read_record, write_bytes, write_json, write_text
from pipeline.errors import UserError
from tests.small import named


def config(**paths: str) -> Config:
    return Config.model_validate(named({"experiment": "exp", "paths": paths}))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- where
def test_without_a_root_things_go_to_the_project_and_never_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CARABID_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert root() == PROJECT
    assert features_root(config()) == PROJECT / "features" and trained_root(config()) == PROJECT / "trained"
    assert trained_root(config(trained="mine")) == PROJECT / "mine"


def test_carabid_root_moves_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARABID_ROOT", str(tmp_path))
    assert features_root(config()) == tmp_path / "features"
    assert experiment_dir(config()).path == tmp_path / "trained" / "exp"
    assert store_dir(config(), "abc").path == tmp_path / "features" / "abc"
    assert trained_root() == tmp_path / "trained"


@pytest.mark.parametrize("relative", ["scratch", "./scratch", "~nosuchuser/scratch"])
def test_a_root_that_means_another_place_in_another_folder_is_refused(monkeypatch: pytest.MonkeyPatch, relative: str) -> None:
    """A job may start elsewhere than the command that queued it."""
    monkeypatch.setenv("CARABID_ROOT", relative)
    with pytest.raises(UserError, match=f"CARABID_ROOT must be an absolute path \\(it is {relative}\\)"):
        root()


def test_a_root_may_be_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARABID_ROOT", "~/scratch")
    assert root() == tmp_path / "home" / "scratch"


def test_paths_in_the_config_win_over_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARABID_ROOT", str(tmp_path / "root"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    chosen = config(features="~/stores", trained=str(tmp_path / "models"))
    assert features_root(chosen) == tmp_path / "home" / "stores"
    assert experiment_dir(chosen).path == tmp_path / "models" / "exp"


def test_experiments_are_found_whether_submitted_or_trained_by_a_job_script(tmp_path: Path) -> None:
    (tmp_path / "submitted" / "submissions").mkdir(parents=True)
    write_text(tmp_path / "by-script" / "seed=0-abcdef" / "config.yaml", "")
    write_text(tmp_path / "README.md", "not an experiment")
    (tmp_path / "empty").mkdir()
    assert [experiment.path.name for experiment in all_experiments(tmp_path)] == ["by-script", "submitted"]


def test_a_trial_is_a_folder_with_a_config_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_text(tmp_path / name / "config.yaml", "")
    for name in ("logs", "submissions"):
        (tmp_path / name).mkdir()
    assert [trial.path.name for trial in ExperimentDir(tmp_path).trials()] == ["a", "b"]


def test_an_experiments_folders_are_told_from_its_files_and_there_may_be_none(tmp_path: Path) -> None:
    experiment = ExperimentDir(tmp_path / "experiment")
    assert experiment.folders() == set()
    experiment.trial("seed=0-5f2c9a31").path.mkdir(parents=True)
    write_text(experiment.results_csv, "")
    (tmp_path / "experiment" / "linked").symlink_to(tmp_path)
    assert experiment.folders() == {"seed=0-5f2c9a31", "linked"}
    assert ExperimentDir(experiment.results_csv).folders() == set()


def test_shards_sort_by_number_and_have_their_records_beside_them() -> None:
    store = store_dir(config(), "key")
    shards = [store.shard(number, 12).name for number in range(12)]
    assert shards == sorted(shards) and shards[3] == "shard-00003-of-00012.safetensors"
    assert store.shard_record(3, 12).name == "shard-00003-of-00012.json"


# ---------------------------------------------------------------- atomic writing
@given(st.binary(max_size=2000), st.binary(max_size=2000))
@settings(deadline=None, max_examples=15)
def test_a_file_is_replaced_as_a_whole(old: bytes, new: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "deep" / "er" / "file"
        write_bytes(path, old)
        write_bytes(path, new)
        assert path.read_bytes() == new and names(path.parent) == ["file"]


def test_a_failure_while_writing_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        assert path.read_text() == "old" and temporary.parent == tmp_path
        raise RuntimeError("disk full")
    assert path.read_text() == "old" and names(tmp_path) == ["results.json"]


def test_writing_nothing_is_an_error_and_not_a_lost_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(FileNotFoundError), atomic_path(path):
        pass
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.disk.writing import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of the n")
    if sys.argv[2] == "before the rename":
        os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    else:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["while writing", "before the rename"])
def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "results.json"
    write_text(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    # What it left is hidden and is no results.json, nor anything else that is looked for.
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["results.json"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_the_content_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash of the machine after the rename must not leave an empty file: contents are synced first, the folder last."""
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "file", "text")
    assert calls == ["file", "rename", "folder"]


@pytest.fixture(params=[0o022, 0o007, 0o077], ids=oct)
def ordinary(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of a file that anybody writes under the umask of this test."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def write_private(path: Path) -> None:
    """As safetensors does."""
    path.write_text("tensors")
    path.chmod(0o600)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_who_may_read_a_file_is_for_the_umask_to_say_whoever_wrote_it(tmp_path: Path, ordinary: int) -> None:
    path = tmp_path / "model.safetensors"
    with atomic_path(path) as temporary:
        write_private(temporary)
    write_text(tmp_path / "plain", "text")
    assert mode(path) == mode(tmp_path / "plain") == ordinary and names(tmp_path) == ["model.safetensors", "plain"]


def test_who_may_read_a_folders_files_is_for_the_umask_to_say_too(tmp_path: Path, ordinary: int) -> None:
    with atomic_folder(tmp_path / "adapter") as folder:
        (folder / "deep").mkdir()
        write_private(folder / "deep" / "adapter.safetensors")
        (folder / "plain").write_text("text")
    assert {mode(path) for path in (tmp_path / "adapter").rglob("*") if path.is_file()} == {ordinary}
    assert names(tmp_path / "adapter" / "deep") == ["adapter.safetensors"]


# ---------------------------------------------------------------- folders
def write_folder(path: Path, *files: str, replace: bool = True) -> None:
    with atomic_folder(path, replace) as folder:
        assert folder.parent == path.parent
        for name in files:
            (folder / name).write_text(name)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "parents" / "adapter"
    write_folder(path, "old", "both")
    write_folder(path, "new", "both")
    assert names(path) == ["both", "new"] and names(path.parent) == ["adapter"]


def test_a_folder_that_is_not_to_be_replaced_stays_unless_it_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.mkdir()
    write_folder(path, "mine", replace=False)
    with pytest.raises(OSError, match="not empty"):
        write_folder(path, "new", replace=False)
    assert names(path) == ["mine"] and names(tmp_path) == ["data"]


def test_a_failure_while_filling_a_folder_leaves_the_old_one_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    write_folder(path, "old")
    with pytest.raises(RuntimeError, match="disk"), atomic_folder(path, replace=True) as folder:
        (folder / "half").write_text("of the")
        raise RuntimeError("disk full")
    assert names(path) == ["old"] and names(tmp_path) == ["adapter"]


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "adapter", os.rename
    write_folder(path, "old")
    failures = iter([False, True, False])

    def failing(source: Path, target: Path) -> None:
        if next(failures):
            raise OSError("quota exceeded")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="quota"):
        write_folder(path, "new")
    assert names(path) == ["old"] and names(tmp_path) == ["adapter"]


def test_a_folders_files_are_on_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        calls.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def noted_rename(source: Path, target: Path) -> None:
        rename(source, target)
        calls.append("rename")

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    write_folder(tmp_path / "adapter", "a", "b")
    assert calls == ["file", "file", "folder", "rename", "folder"]


# ---------------------------------------------------------------- readers
def test_a_reader_never_sees_a_part_while_two_writers_race(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", set()
    contents = ["a" * 200_000, "b" * 200_000]
    write_text(path, contents[0])
    writers = [threading.Thread(target=lambda c=c: [write_text(path, c) for _ in range(20)]) for c in contents]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        seen.add(path.read_text())
    assert seen <= set(contents) and names(tmp_path) == ["file"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1.0, float("-inf")]}])
def test_json_that_would_not_be_valid_is_refused_and_the_old_file_stays(tmp_path: Path, value: object) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"r2": None})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, value)
    assert read_json(path) == {"r2": None} and names(tmp_path) == ["results.json"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
@settings(deadline=None, max_examples=25)
def test_json_comes_back_as_it_was(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        write_json(path, value)
        assert read_json(path) == value == json.loads(path.read_bytes())


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "NaN", '{"a": Infinity}'])
def test_json_that_nobody_wrote_is_a_value_error_and_no_record(tmp_path: Path, content: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"JSON|deep|Expecting"):
        read_json(path)
    assert read_record(path) == {}
