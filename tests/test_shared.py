"""What trials of one process share is loaded once, and changes nothing of what each of them becomes."""

from __future__ import annotations

import gc
import os
import signal
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.data.dataset import known_signature
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import Interrupted, WorkError
from pipeline.experiments.reading import Trial, load_experiment
from pipeline.launch.jobs.trials import Trainings, evaluate_trial, train_trial, train_trials, trial_dir
from pipeline.launch.manifest.manifest import alike_together
from pipeline.reporting.state import Sources, trial_state
from pipeline.signals import StopFlag
from pipeline.stages import extract, inputs, train
from pipeline.stages.shared import Shared
from pipeline.tasks import load_task
from tests.conftest import Assets


class Heavy:
    """What two of may not fit into memory."""


def test_the_one_before_is_let_go_before_the_next_is_made() -> None:
    shared, alive = Shared(), list[bool]()
    first = weakref.ref(shared.get("bank", 1, Heavy))

    def make() -> Heavy:
        gc.collect()
        alive.append(first() is not None)
        return Heavy()

    second = shared.get("bank", 2, make)
    assert alive == [False] and shared.get("bank", 2, Heavy) is second and shared.get("store", 2, Heavy) is not second


def test_what_could_not_be_made_is_made_again() -> None:
    shared = Shared()
    with pytest.raises(ZeroDivisionError):
        shared.get("bank", 1, lambda: 1 // 0)
    assert shared.get("bank", 1, lambda: 2) == 2


def test_trials_that_read_the_same_follow_one_another_else_in_their_order(assets: Assets) -> None:
    overrides = assets.overrides("frozen")
    trials = load_experiment("configs/beetles/frozen.yaml", (*overrides, "seed=0,1", "data.permute_targets=false,true")).trials
    assert [trial.config.data.permute_targets for trial in trials] == [False, True] * 2
    together = alike_together(trials)
    assert [trial.config.data.permute_targets for trial in together] == [False, False, True, True]
    assert [trial.config.seed for trial in together] == [0, 1] * 2


# ---------------------------------------------------------------- real trainings
FILES = ("model.safetensors", "predictions.parquet", "groups.parquet", "metrics.jsonl")


def trials_of(assets: Assets, name: str, *overrides: str) -> list[Trial]:
    return load_experiment(f"configs/beetles/{name}.yaml", (*assets.overrides(name), *overrides)).trials


def content(folder: TrialDir) -> dict[str, bytes]:
    """What a trial has become, but for times."""
    files = {name: (folder.path / name).read_bytes() for name in FILES if name != "metrics.jsonl"}
    lines = [line.partition('"seconds"')[0] for line in folder.metrics.read_text().splitlines()]
    adapter = {path.name: path.read_bytes() for path in folder.adapter.glob("*")} if folder.adapter.exists() else {}
    return files | adapter | {"metrics": "\n".join(lines).encode()}


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("name", "grid"),
    [
        ("frozen", ("seed=0,1", "augment.noise=0,0.1")),
        ("lora", ("optim.lr=1e-3,1e-4",)),
        ("combined", ("data.permute_targets=false,true",)),
    ],
)
def test_trials_one_after_another_become_what_they_are_alone_to_the_bit(
    name: str, grid: tuple[str, ...], assets: Assets, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for place in ("together", "alone"):
        monkeypatch.setenv("CARABID_ROOT", str(tmp_path / place))
        trials = trials_of(assets, name, "train.epochs=2", *grid)
        extract.ensure(trials[0].config)
        trainings, shared = Trainings(StopFlag()), Shared()
        for trial in trials:
            if place == "together":
                assert trainings.train([trial]) == [None]
                evaluate_trial(trial, shared)
            else:
                train_trial(trial, StopFlag())
                evaluate_trial(trial)
        made.append([content(trial_dir(trial)) for trial in trials])
    assert made[0] == made[1] and all(a != b for a, b in zip(made[0], made[0][1:], strict=False))


@pytest.mark.jobs
def test_table_features_and_backbone_are_loaded_once_for_trials_that_share_them(
    assets: Assets, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = trials_of(assets, "lora", "train.epochs=1", "seed=0,1,2")
    extract.ensure(trials[0].config)
    loads: dict[str, int] = {}

    def counted(module: Any, name: str) -> None:
        plain = getattr(module, name)

        def work(*args: Any, **more: Any) -> Any:
            loads[name] = loads.get(name, 0) + 1
            return plain(*args, **more)

        monkeypatch.setattr(module, name, work)

    for name in ("load_backbone", "make_bank", "open_key", "left_out"):
        counted(inputs, name)
    trainings = Trainings(StopFlag())
    for trial in trials:
        assert trainings.train([trial]) == [None]
    assert loads == {"load_backbone": 1, "make_bank": 2, "open_key": 1, "left_out": 1}
    (shard,) = (root / "features").glob("*/shard-*.safetensors")
    shard.touch()  # written anew: what lies in memory may be something else
    assert trainings.train(trials_of(assets, "lora", "train.epochs=1", "seed=3")) == [None]
    assert loads["make_bank"] == 4


@pytest.mark.jobs
def test_narrow_heads_of_one_shape_are_trained_together_and_become_what_they_are_alone(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of them fails, and one is trained already."""
    sizes, fit = list[int](), train.fit_together
    monkeypatch.setattr(train, "fit_together", lambda trials, ended: (sizes.append(len(trials)), fit(trials, ended)))
    states: list[list[Any]] = []
    for place in ("together", "alone"):
        monkeypatch.setenv("CARABID_ROOT", str(tmp_path / place))
        grid = ("model.head.hidden=[4]", "model.domain_embedding=false", "train.epochs=3", "optim.lr=1e-3,1e30", "seed=0,1,2")
        trials = trials_of(assets, "frozen", *grid)
        extract.ensure(trials[0].config)
        first, *others = (trial for trial in trials if trial.config.optim.lr < 1)
        train_trial(first, StopFlag())
        if place == "together":
            train_trials(trials)
        else:
            for trial in others:
                train_trial(trial, StopFlag())
        states.append([load_file(trial_dir(trial).model) for trial in (first, *others)])
    assert sizes == [5] and not trial_dir(trials[-1]).trained.exists()
    for one, other in zip(*states, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in one)
    said = capsys.readouterr()
    assert said.err.count("the training loss became") == 3 and said.out.count(": done in") == 3


@pytest.mark.jobs
def test_a_stack_that_is_told_to_stop_is_gone_on_with_trial_by_trial(
    assets: Assets, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = ("model.head.hidden=[4]", "model.domain_embedding=false", "train.epochs=3", "seed=0,1,2,3")
    trials = trials_of(assets, "frozen", *grid)
    extract.ensure(trials[0].config)
    flag, fit = StopFlag(), train.fit_together
    monkeypatch.setattr(train, "fit_together", lambda *given: (flag._note(signal.SIGTERM, None), fit(*given)))
    errors = Trainings(flag).train(trials)
    assert {type(error) for error in errors} == {Interrupted}
    assert all(trial_dir(trial).resume_state.exists() for trial in trials)
    monkeypatch.undo()
    monkeypatch.setenv("CARABID_ROOT", str(root))
    for trial in trials:
        train_trial(trial, StopFlag())
        assert trial_dir(trial).trained.exists() and not trial_dir(trial).checkpoint.exists()


@pytest.mark.jobs
def test_what_trials_that_are_trained_at_once_have_cost_adds_up_to_the_time_that_it_took(assets: Assets, root: Path) -> None:
    """One of them goes on for long when the others have ended."""
    narrow = ("model.head.hidden=[4]", "model.domain_embedding=false", "seed=0,1,2,3,4")
    trials = trials_of(assets, "frozen", *narrow, "train.epochs=2")
    (long,) = (trial for trial in trials_of(assets, "frozen", *narrow, "train.epochs=60") if trial.config.seed == 0)
    extract.ensure(trials[0].config)
    started = time.monotonic()
    assert Trainings(StopFlag()).train([long, *trials]) == [None] * 6
    wall = time.monotonic() - started
    records = [read_json(trial_dir(trial).trained)["provenance"] for trial in (long, *trials)]
    assert sum(record["seconds"] for record in records) == pytest.approx(wall, rel=0.25)
    assert all(record["seconds"] >= record["training_seconds"] for record in records)
    assert "6 trials together" in records[0]["computed_on"][0]


@pytest.mark.jobs
def test_where_a_gpu_has_no_memory_for_all_at_once_each_is_trained_by_itself(
    assets: Assets, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = trials_of(assets, "frozen", "model.head.hidden=[4]", "train.epochs=1", "seed=0,1,2,3")
    extract.ensure(trials[0].config)

    def lacks(trials: Any, ended: Any) -> None:
        for place in range(len(trials)):
            ended(place, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), 0.0)

    monkeypatch.setattr(train, "fit_together", lacks)
    assert Trainings(StopFlag()).train(trials) == [None] * 4
    assert all(trial_dir(trial).trained.exists() and not trial_dir(trial).failure.exists() for trial in trials)


@pytest.mark.jobs
def test_a_table_that_was_corrected_meanwhile_is_read_again(root: Path, tmp_path: Path) -> None:
    """A process may train for hours, and a worker of this machine lives as long as the submission."""
    load_task("butterflies").generate(tmp_path / "data", seed=0, scale=0.1)
    table = tmp_path / "data" / "butterflies.csv"
    grid = ("data.split.fold=0,1", "backbone={kind: pixels, size: 8}", "model.head.kind=lda", "device=cpu")
    images = f"data.images={table.parent / 'images'}"
    first, second = load_experiment("configs/butterflies/logistic.yaml", (f"data.source={table}", images, *grid)).trials
    extract.ensure(first.config)
    trainings = Trainings(StopFlag())
    assert trainings.train([first]) == [None]
    evaluate_trial(first, trainings.shared)
    swapped = {"hybrid": "non-hybrid", "non-hybrid": "hybrid"}
    rows = [row.split(",") for row in table.read_text().splitlines()]
    label = rows[0].index("hybrid_stat")
    table.write_text("\n".join(",".join([*row[:label], swapped.get(row[label], row[label]), *row[label + 1 :]]) for row in rows))
    assert trainings.train([second]) == [None]
    assert read_json(trial_dir(second).trained)["table_hash"] != read_json(trial_dir(first).trained)["table_hash"]
    with pytest.raises(WorkError, match="targets, groups or splits changed since it was trained"):
        evaluate_trial(first, trainings.shared)
    evaluate_trial(second, trainings.shared)
    assert trial_state(trial_dir(second), second.config, Sources()).state == "done"
    assert trial_state(trial_dir(first), first.config, Sources()).state == "stale"


@pytest.mark.jobs
def test_results_are_of_the_data_as_they_were_read(assets: Assets, root: Path) -> None:
    """Data that change while it is evaluated make them stale, and not current."""
    (trial,) = trials_of(assets, "frozen", "train.epochs=1")
    extract.ensure(trial.config)
    trainings = Trainings(StopFlag())
    assert trainings.train([trial]) == [None]
    loaded = inputs.load_inputs(trial.config, trainings.shared)
    for file in loaded.dataset.source.table_files():
        os.utime(file, (1, 1))
    assert loaded.looks != known_signature(trial.config.data)


@pytest.mark.jobs
@pytest.mark.parametrize("rate", ["1e-3", "1e30"])
def test_what_a_trial_has_held_is_free_when_the_next_begins(
    assets: Assets, root: Path, monkeypatch: pytest.MonkeyPatch, rate: str
) -> None:
    """Of one that failed too, whose error is still known; without waiting for a sweep, which comes seldom."""
    trials = trials_of(assets, "lora", "train.epochs=1", f"optim.lr={rate}", "seed=0,1")
    extract.ensure(trials[0].config)
    held, alive, make = list[weakref.ref[Any]](), list[bool](), train.make_model

    def made(*given: Any) -> Any:
        alive.extend(each() is not None for each in held)
        model = make(*given)
        held.append(weakref.ref(model))
        return model

    monkeypatch.setattr(train, "make_model", made)
    trainings, errors = Trainings(StopFlag()), list[Exception | None]()
    gc.collect()
    gc.disable()
    try:
        for trial in trials:
            errors += trainings.train([trial])
    finally:
        gc.enable()
    assert alive == [False] and [error is None for error in errors] == [rate == "1e-3"] * 2


@pytest.mark.jobs
def test_lines_of_several_at_once_say_whose_they_are(assets: Assets, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = trials_of(assets, "frozen", "model.head.hidden=[4]", "train.epochs=1", "seed=0,1,2,3")
    extract.ensure(trials[0].config)
    capsys.readouterr()
    assert Trainings(StopFlag()).train(trials) == [None] * 4
    said = [line for line in capsys.readouterr().out.splitlines() if "epoch 0" in line]
    assert [line.partition(": ")[0] for line in said] == sorted(trial.name for trial in trials)
