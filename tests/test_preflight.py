"""Nothing is queued that the login node could refuse: tables are looked at first, once, without torch or an image decoded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT
from pipeline.errors import NotFetched, UserError
from pipeline.experiments.cluster import Profile
from pipeline.experiments.reading import Experiment, Trial, load_experiment
from pipeline.launch.doctor import doctor
from pipeline.launch.doctor.findings import Context
from pipeline.launch.watching import plan
from pipeline.launch.watching import preflight as module
from pipeline.launch.watching.preflight import preflight
from pipeline.reporting.state import TrialState
from tests.broken_tables import AB, BROKEN, BY_COLUMN, Broken
from tests.fuzz.verdict import command
from tests.lab import PIXELS, lab_config, labelled, write_images, write_table

CONFIG = "configs/generic/classify.yaml"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often a table has been read."""
    seen: list[str] = []
    load = module.load_task

    def counted(name: str) -> object:
        seen.append(name)
        return load(name)

    monkeypatch.setattr(module, "load_task", counted)
    return lambda: len(seen)


def good(folder: Path) -> Path:
    return write_table(folder, labelled(folder, AB))


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_plan_and_submit_refuse_a_table_that_no_job_could_train_on(
    root: Path, tmp_path: Path, broken: Broken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")  # no Slurm is asked
    arguments = broken.arguments(tmp_path / "data")
    for name, more in (("plan", ()), ("submit", ("--cluster", "local")), ("submit", ("--cluster", "local", "--dry-run"))):
        ended = command(name, *arguments, *more)
        assert ended.status == 2 and re.search(broken.says, ended.err), ended.err
        assert "--no-check" in ended.err
    assert not (root / "trained").exists() and ("missing" in command("plan", *arguments).out)


def test_what_a_configuration_does_not_ask_is_not_refused(root: Path, tmp_path: Path) -> None:
    few = BROKEN["a validation of one class"].write(tmp_path)
    with pytest.raises(UserError, match="too much alike"):
        preflight([lab_config(few, BY_COLUMN)])
    preflight([lab_config(few, BY_COLUMN, "select.metric=accuracy")])
    preflight([lab_config(few, BY_COLUMN, "model.head={kind: mlp}", "select.epoch=last")])
    gone = BROKEN["one image is not there"].write(tmp_path)
    (warning,) = preflight([lab_config(gone, "data.on_bad_image=skip")])
    assert warning.startswith("1 of 20 images are not there and left out (data.on_bad_image=skip): ") and "line 9" in warning


def test_where_no_image_is_there_skipping_bad_ones_is_no_way_on(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Neither are 19 more"):
        preflight([lab_config(BROKEN["no image is there"].write(tmp_path), "data.on_bad_image=skip")])


def without_images(folder: Path, is_gone: Callable[[int, str, str], bool]) -> Path:
    """A table with splits, some of whose images are not there."""
    rows = [(*row, "train" if i < 10 else "validation" if i < 16 else "test") for i, row in enumerate(labelled(folder, AB))]
    for i, (name, label, split) in enumerate(rows):
        if is_gone(i, label, split):
            (folder / name).unlink()
    return write_table(folder, rows, ("filename", "label", "split"))


GONE: dict[str, tuple[Callable[[int, str, str], bool], tuple[str, ...], str]] = {
    "a class": (lambda i, label, split: label == "b", (), r"labels\.csv: .* all images to fit on are of a"),
    "a class in training": (
        lambda i, label, split: label == "b" and split == "train",
        (BY_COLUMN,),
        "all images to fit on are of a",
    ),
    "all that validate": (
        lambda i, label, split: split == "validation",
        (BY_COLUMN,),
        "the validation split has no usable image",
    ),
    "all that train": (lambda i, label, split: split == "train", (BY_COLUMN,), "the train split has no usable image"),
    "all tests": (lambda i, label, split: split == "test", (BY_COLUMN, "evaluate.split=test"), "the data have no such images"),
    "too many for k": (lambda i, label, split: i < 6, ("model.head={kind: knn, k: 9}",), "knn has k 9, more than the"),
}


@pytest.mark.parametrize(("is_gone", "overrides", "says"), GONE.values(), ids=GONE)
def test_what_is_asked_of_a_table_is_asked_of_the_images_that_are_there(
    root: Path, tmp_path: Path, is_gone: Callable[[int, str, str], bool], overrides: tuple[str, ...], says: str
) -> None:
    config = lab_config(without_images(tmp_path, is_gone), *overrides, "data.on_bad_image=skip")
    with pytest.raises(UserError, match=rf"{says}.*of 20 images are not there and left out .*labels\.csv, line \d+"):
        preflight([config])
    write_images(tmp_path, 20)
    assert preflight([config]) == []


def test_every_fold_is_looked_at(root: Path, tmp_path: Path) -> None:
    """Fold 0 may be well where another one is not."""
    rows = [(*row, "b" if row[1] == "b" and i < 18 else f"p{i}") for i, row in enumerate(labelled(tmp_path, AB))]
    table = write_table(tmp_path, rows, ("filename", "label", "plant"))
    configs = [lab_config(table, "data.columns.group=plant", f"data.split.fold={fold}", "data.split.n=3") for fold in range(3)]
    ends = []
    for config in configs:
        try:
            ends.append(preflight([config]))
        except UserError as error:
            ends.append(str(error))
    assert len({isinstance(end, str) for end in ends}) == 2  # two groups of b: in some folds none validates
    with pytest.raises(UserError, match=r"all training images are of the class a: .*\(data\.split\.fold=1\)"):
        preflight(configs)


def test_no_check_leaves_tables_alone(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    arguments = [CONFIG, f"data.source={tmp_path / 'on-nodes-alone.csv'}", *PIXELS, "--no-check"]
    assert command("plan", *arguments).status == 0
    assert command("submit", *arguments, "--cluster", "local", "--dry-run").status == 0


def test_a_data_set_that_is_not_there_is_refused(root: Path, tmp_path: Path) -> None:
    ended = command("plan", CONFIG, f"data.source={tmp_path / 'nowhere.csv'}", *PIXELS)
    assert ended.status == 2 and "there is no such file or folder" in ended.err and "--no-check" in ended.err


@pytest.mark.parametrize(("name", "verdict", "words"), [("an empty label", "FAIL", "line 4"), ("", "ok", "can be trained on")])
def test_the_doctor_tells_it(root: Path, tmp_path: Path, name: str, verdict: str, words: str) -> None:
    table = BROKEN[name].write(tmp_path) if name else good(tmp_path)
    experiment = load_experiment(PROJECT / CONFIG, (f"data.source={table}", *PIXELS))
    found = [f for f in doctor.run(Context(experiment, Profile(scheduler="local"), look=False)) if f.what == "tables"]
    assert [(f.verdict, words in f.text) for f in found] == [(verdict, True)]


# ---------------------------------------------------------------- once
def test_a_table_is_read_once_for_as_long_as_nothing_changes(root: Path, tmp_path: Path, reads: Callable[[], int]) -> None:
    table = good(tmp_path)
    configs = [lab_config(table, f"seed={seed}") for seed in (0, 1)]
    assert preflight(configs) == preflight(configs[::-1]) == [] and reads() == 1
    preflight([lab_config(table, "data.split.fold=1")])  # other rows train
    assert reads() == 2
    knn = lab_config(table, "model.head={kind: knn}")  # something else is asked
    preflight([knn])
    assert reads() == 3
    preflight([*configs, knn])
    assert reads() == 3


@pytest.mark.parametrize("change", ["a cell", "an image goes", "an image goes from a folder of its own"])
def test_a_change_is_seen(root: Path, tmp_path: Path, change: str) -> None:
    rows = labelled(tmp_path, AB)
    (tmp_path / "apart").mkdir()
    (tmp_path / rows[3][0]).rename(tmp_path / "apart" / "3.png")
    table = write_table(tmp_path, [*rows[:3], ("apart/3.png", "b"), *rows[4:]])
    config = lab_config(table)
    assert preflight([config]) == []
    time.sleep(0.02)  # (a clock of the file system's)
    if change == "a cell":
        table.write_text(table.read_text().replace(",b\n", ",\n", 1))
    else:
        (tmp_path / ("apart/3.png" if "own" in change else rows[5][0])).unlink()
    with pytest.raises(UserError, match=r"is empty|there is no file"):
        preflight([config])


def test_a_refusal_is_not_recorded(root: Path, tmp_path: Path) -> None:
    config = lab_config(BROKEN["one image is not there"].write(tmp_path))
    for _ in range(2):
        with pytest.raises(UserError, match=r"gone\.png"):
            preflight([config])
    (tmp_path / "images" / "0.png").rename(tmp_path / "images" / "gone.png")
    with pytest.raises(UserError, match=r"0\.png"):
        preflight([config])


def test_a_record_that_is_damaged_is_made_again(root: Path, tmp_path: Path, reads: Callable[[], int]) -> None:
    config = lab_config(good(tmp_path))
    for content in (None, "{", "[]", '{"folders": 1}', '{"folders": {}, "warnings": [], "fits": []}'):
        (record,) = (root / "features" / "records").glob("table-*.json") if content else (None,)
        if record and content:
            record.write_text(content)
        assert preflight([config]) == []
    assert reads() == 5


def test_who_may_not_write_records_looks_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(module, "write_json", refuse)
    assert preflight([lab_config(good(tmp_path))]) == []


def test_a_look_loads_no_torch_and_decodes_no_image(root: Path, tmp_path: Path) -> None:
    rows = labelled(tmp_path, AB)
    for name, _ in rows:
        (tmp_path / name).write_bytes(b"no image")
    line = [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "pipeline.cli",
        "plan",
        CONFIG,
        f"data.source={write_table(tmp_path, rows)}",
        *PIXELS,
    ]
    done = subprocess.run(line, capture_output=True, text=True, cwd=PROJECT, env={**os.environ, "CARABID_ROOT": str(root)})
    imported = {part.rpartition("|")[2].strip().partition(".")[0] for part in done.stderr.splitlines() if "|" in part}
    assert done.returncode == 0 and "pandas" in imported, done.stderr[-2000:]
    assert not imported & {"torch", "sklearn", "datasets"}


# ---------------------------------------------------------------- other sources
def test_images_of_a_saved_data_set_that_are_paths_are_looked_for(root: Path, tmp_path: Path) -> None:
    import datasets

    names = write_images(tmp_path, 20)
    datasets.Dataset.from_dict({"filename": [*names[:-1], "images/gone.png"], "label": list(AB)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"row 19 \(counted from 0\): column filename: there is no file .*gone\.png"):
        preflight([lab_config(tmp_path / "saved", f"data.images={tmp_path}")])


def test_images_inside_a_table_need_no_files(root: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": (tmp_path / name).read_bytes(), "path": f"gone/{name}"} for name in write_images(tmp_path, 20)]
    pq.write_table(pa.table({"filename": images, "label": list(AB)}), tmp_path / "t.parquet")
    assert preflight([lab_config(tmp_path / "t.parquet")]) == []


def test_images_that_are_still_to_be_downloaded_are_fetched_first(root: Path, tmp_path: Path) -> None:
    rows = [(f"images/{i}.png", label, f"https://example.org/{i}.png") for i, label in enumerate(AB)]
    table = write_table(tmp_path, rows, ("filename", "label", "file_url"))
    with pytest.raises(NotFetched, match=r"its images are not all here\. .*`carabid fetch"):
        preflight([lab_config(table, "data.download={md5: null}")])


def test_data_of_the_hub_that_are_not_here_are_not_looked_at(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    config: Config = lab_config(good(tmp_path))
    elsewhere = config.model_copy(update={"data": config.data.model_copy(update={"source": "owner/name"})})
    (warning,) = preflight([elsewhere])
    assert warning.startswith("data owner/name are not on this machine")


def test_what_is_done_or_queued_needs_no_table(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = lab_config(good(tmp_path))
    gone = config.model_copy(update={"data": config.data.model_copy(update={"source": str(tmp_path / "gone.csv")})})
    experiment = Experiment(tmp_path, (), [Trial("x", gone)])
    for state, is_refused in (("done", False), ("queued", False), ("running", False), ("missing", True), ("stale", True)):
        states = [TrialState(state)]  # type: ignore[arg-type]
        monkeypatch.setattr(plan, "plan", lambda _, states=states: (states, states))
        with pytest.raises(UserError) if is_refused else nullcontext():
            assert list(plan.lines(experiment))
