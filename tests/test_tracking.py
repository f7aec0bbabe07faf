"""The course of a training: in metrics.jsonl always, and in each tracker, where a reader of its own finds it again."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.identity import config_hash
from pipeline.config.tracking import Tracking
from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.errors import Interrupted, UserError
from pipeline.stages import extract, track, train
from pipeline.training import tracking
from tests.small import small_config
from tests.test_training import StopAfter

pytestmark = pytest.mark.jobs


@pytest.fixture
def make(table: Path, clip: Path, root: Path) -> Callable[..., Config]:
    def config(kind: str, **sections: Any) -> Config:
        plain: dict[str, Any] = {"train": {"epochs": 4, "batch_size": 8}, "select": {"metric": "MAE"}, "loss": {"kind": "mse"}}
        return small_config(table, clip, root, **{**plain, "tracking": {"kind": kind}, **sections})

    return config


def learn(config: Config, folder: Path, stop: int | None = None) -> TrialDir:
    """Train it, interrupted after so many epochs, and go on."""
    trial = TrialDir(folder)
    folder.mkdir(parents=True)
    extract.ensure(config)
    if stop:
        with pytest.raises(Interrupted):
            train.run(config, trial, StopAfter(stop))
    train.run(config, trial)
    return trial


def course(trial: TrialDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in trial.metrics.read_text().splitlines()]


# ---------------------------------------------------------------- metrics.jsonl
def test_every_epoch_has_a_line_with_the_usual_keys(make: Callable[..., Config], tmp_path: Path) -> None:
    config = make("none", model={"head": {"kind": "mlp", "hidden": [4]}})
    lines = course(learn(config, tmp_path / "small" / "one"))
    targets = config.data.targets
    known = {"epoch", "phase", "train/loss", "train/lr", "val/loss", "val/MAE", "seconds"}
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3] and {line["phase"] for line in lines} == {"all"}
    for line in lines:
        assert known | {f"train/loss_{target}" for target in targets} <= set(line)
        assert line["train/loss"] == pytest.approx(sum(line[f"train/loss_{target}"] for target in targets) / 3, abs=1e-5)
        assert line["train/lr"] == config.optim.lr
        assert all(math.isfinite(value) for key, value in line.items() if key != "phase")
    assert not ExperimentDir(tmp_path / "small").tracking.exists()


def test_each_batch_of_a_network_that_learns_has_its_loss(make: Callable[..., Config], tmp_path: Path) -> None:
    convs = {"encoder": {"kind": "patch_convs", "channels": 4, "kernel": 3}}
    config = make("tensorboard", model=convs, train={"epochs": 2, "batch_size": 4})
    lines = course(learn(config, tmp_path / "small" / "one"))
    for line in lines:
        assert len(line["train/loss_batches"]) == 5  # of 20 images
        assert line["train/loss"] == pytest.approx(np.mean(line["train/loss_batches"]), abs=1e-5)
    assert "train/loss_batches" not in read_tensorboard(ExperimentDir(tmp_path / "small"), "one")
    assert "train/loss_batches" not in course(learn(make("none"), tmp_path / "small" / "two"))[0]


def test_a_rate_of_a_millionth_is_written_as_one(make: Callable[..., Config], tmp_path: Path) -> None:
    lines = course(learn(make("none", optim={"lr": 1.23456e-9}), tmp_path / "small" / "one"))
    assert lines[0]["train/lr"] == 1.23456e-9


def test_where_it_is_shown_makes_no_other_trial(make: Callable[..., Config]) -> None:
    assert len({config_hash(make(kind)) for kind in ("none", "wandb", "mlflow")}) == 1


# ---------------------------------------------------------------- trackers, read by libraries of their own
def read_tensorboard(experiment: ExperimentDir, trial: str) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    (folder,) = experiment.tracking.glob(f"tensorboard/{trial}")
    reader = EventAccumulator(str(folder))
    reader.Reload()
    for name in reader.Tags()["scalars"]:
        found[name] = {event.step: event.value for event in reader.Scalars(name)}
    return {name: [steps[i] for i in sorted(steps)] for name, steps in found.items()}


def records_of(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, whose own reader is no longer in Python: seven bytes that say what it is, then LevelDB's log
    format, blocks of 32 KiB of pieces, each with checksum, length and place in its record."""
    data, at, parts = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, place = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if place in (1, 4):  # a whole one, or the last piece
            yield parts
            parts = b""


def read_wandb(experiment: ExperimentDir, trial: str) -> dict[str, list[float]]:
    from wandb.proto import wandb_internal_pb2

    found: dict[str, dict[int, float]] = {}
    for file in sorted(experiment.tracking.glob("wandb/offline-run-*/*.wandb")):
        named = False
        for data in records_of(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "run":
                named = record.run.display_name == trial and record.run.run_group == "small"
            if named and record.WhichOneof("record_type") == "history":
                values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                for name, value in values.items():
                    found.setdefault(name, {})[values["_step"]] = value
    return {name: [steps[i] for i in sorted(steps)] for name, steps in found.items()}


def read_mlflow(experiment: ExperimentDir, trial: str) -> dict[str, list[float]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient((experiment.tracking / "mlruns").as_uri())
    of = client.get_experiment_by_name(experiment.path.name)
    assert of is not None
    (run,) = [run for run in client.search_runs([of.experiment_id]) if run.info.run_name == trial]
    assert run.data.params["optim.lr"] == "0.0001"
    steps = {name: {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)} for name in run.data.metrics}
    return {name: [values[i] for i in sorted(values)] for name, values in steps.items()}


def read_trackio(experiment: ExperimentDir, trial: str) -> dict[str, list[float]]:
    """(Its own reader looks where a variable pointed when it was imported: a test reads the database that it writes.)"""
    found: dict[str, dict[int, float]] = {}
    (path,) = (experiment.tracking / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        for step, text in database.execute("select step, metrics from metrics where run_name = ? order by step", (trial,)):
            for name, value in json.loads(text).items():
                found.setdefault(name, {})[step] = value
    return {name: [steps[i] for i in sorted(steps)] for name, steps in found.items()}


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow, "trackio": read_trackio}


@pytest.mark.parametrize("kind", READERS)
def test_what_a_tracker_has_is_what_metrics_jsonl_has_also_where_training_went_on(
    kind: str, make: Callable[..., Config], tmp_path: Path
) -> None:
    """Two trials of one group, the second one interrupted; nobody asks for a network or a token."""
    experiment = ExperimentDir(tmp_path / "small")
    trials = [learn(make(kind, seed=seed), experiment.path / f"seed={seed}", stop) for seed, stop in ((0, None), (1, 2))]
    for trial in trials:
        found, lines = READERS[kind](experiment, trial.path.name), course(trial)
        for name in ("train/loss", "val/loss", "val/MAE", "train/lr", f"train/loss_{make(kind).data.targets[0]}"):
            assert found[name] == pytest.approx([line[name] for line in lines], rel=1e-5), name


def test_a_tracker_that_is_not_installed_is_said_before_training(
    make: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'the package wandb is not installed: pip install "carabid\[tracking\]"'):
        learn(make("wandb"), tmp_path / "small" / "one")


def test_metrics_are_called_as_the_strictest_of_trackers_takes_them() -> None:
    """mlflow refuses brackets, and targets are called as a lab calls them."""
    assert tracking._numbers({"val/r2_Dry weight (g)": 0.5, "phase": "head", "val/r2_Größe": 1}) == {
        "val/r2_Dry weight _g_": 0.5,
        "val/r2_Größe": 1,
    }


def test_the_kinds_are_those_that_there_is_code_for() -> None:
    (kinds,) = (info.annotation for name, info in Tracking.model_fields.items() if name == "kind")
    assert set(READERS) | {"none"} == set(getattr(kinds, "__args__", ()))


# ---------------------------------------------------------------- sending
def test_runs_of_a_file_store_are_sent_once_to_a_server_of_mlflow(make: Callable[..., Config], tmp_path: Path) -> None:
    experiment = ExperimentDir(tmp_path / "small")
    trial = learn(make("mlflow"), experiment.path / "one")
    server = tmp_path / "server"
    for n in (1, 0):
        assert track.sync(experiment, {"MLFLOW_TRACKING_URI": server.as_uri()}) == [
            f"mlflow: {n} of 1 runs sent to {server.as_uri()}"
        ]
    (server.parent / "moved").mkdir()
    sent = ExperimentDir(tmp_path / "moved" / "small")
    sent.tracking.mkdir(parents=True)
    (sent.tracking / "mlruns").symlink_to(server)
    assert read_mlflow(sent, "one") == read_mlflow(experiment, trial.path.name)


def test_epochs_since_the_last_sending_are_sent_too(make: Callable[..., Config], tmp_path: Path) -> None:
    """Of a training that was interrupted, whose run had ended for mlflow, and went on."""
    experiment, server = ExperimentDir(tmp_path / "small"), tmp_path / "server"
    uri, config, trial = server.as_uri(), make("mlflow"), TrialDir(tmp_path / "small" / "one")
    trial.path.mkdir(parents=True)
    extract.ensure(config)
    with pytest.raises(Interrupted):
        train.run(config, trial, StopAfter(2))
    assert track.sync(experiment, {"MLFLOW_TRACKING_URI": uri}) == [f"mlflow: 1 of 1 runs sent to {uri}"]
    train.run(config, trial)
    for n in (1, 0):
        assert track.sync(experiment, {"MLFLOW_TRACKING_URI": uri}) == [f"mlflow: {n} of 1 runs sent to {uri}"]
    there = ExperimentDir(tmp_path / "moved" / "small")
    there.tracking.mkdir(parents=True)
    (there.tracking / "mlruns").symlink_to(server)
    assert read_mlflow(there, "one") == read_mlflow(experiment, "one")
    assert len(read_mlflow(there, "one")["train/loss"]) == len(course(trial)) > 2


def test_what_cannot_be_sent_is_said_with_what_to_do(make: Callable[..., Config], tmp_path: Path) -> None:
    experiment = ExperimentDir(tmp_path / "small")
    with pytest.raises(UserError, match="no tracker's files"):
        track.sync(experiment, {})
    learn(make("mlflow"), experiment.path / "one")
    learn(make("tensorboard"), experiment.path / "two")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        track.sync(experiment, {})
    (line,) = [
        line for line in track.sync(experiment, {"MLFLOW_TRACKING_URI": (tmp_path / "s").as_uri()}) if "tensorboard" in line
    ]
    assert f"tensorboard --logdir {experiment.tracking / 'tensorboard'}" in line
