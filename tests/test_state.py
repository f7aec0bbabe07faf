"""A trial's state, with the reason: while other jobs work in its folder, and after its data or configuration changed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.backbones import load_backbone
from pipeline.config.identity import config_hash, plain
from pipeline.config.resources import Paths, Resources
from pipeline.data.dataset import known_signature
from pipeline.disk.layout import PROJECT, ExperimentDir, TrialDir
from pipeline.disk.lease import Lease
from pipeline.disk.reading import Damaged
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.experiments.mistakes import field_names
from pipeline.experiments.reading import Experiment, dump_config
from pipeline.features.hashes import data_record, known_feature_key, weights_record
from pipeline.launch.manifest.manifest import load_manifest, make_manifest
from pipeline.launch.watching import plan as plan_module
from pipeline.launch.watching.history import History
from pipeline.launch.watching.plan import lines, missing_trials, plan
from pipeline.reporting import state
from pipeline.reporting.state import Sources, TrialState, planned_trials, trial_state, trial_states
from pipeline.tasks import load_task
from tests.small import load_named as load_experiment

FROZEN = PROJECT / "configs" / "beetles" / "frozen.yaml"


def planned(experiment: Experiment) -> list[TrialState]:
    """The states that `carabid plan` shows."""
    return plan(experiment)[1]


@pytest.fixture
def trial(tmp_path: Path) -> TrialDir:
    (tmp_path / "seed=0").mkdir()
    return TrialDir(tmp_path / "seed=0")


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_lease_that_its_holder_removes_meanwhile_is_not_held(
    trial: TrialDir, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    look = state.owner

    def look_then_lose(path: Path) -> dict[str, Any] | None:
        found = look(path)
        shutil.rmtree(path)
        if left != "nothing":
            path.mkdir()
        return found

    with Lease(trial.lease, 60).hold():
        assert trial_state(trial).state == "running"
        monkeypatch.setattr(state, "owner", look_then_lose)
        assert trial_state(trial).state == "missing"


def test_a_holder_that_was_killed_on_this_machine_is_not_running(trial: TrialDir) -> None:
    script = "import sys; from pathlib import Path; from pipeline.disk.lease import Lease; "
    script += "lease = Lease(Path(sys.argv[1]), 600).hold(); lease.__enter__(); import os; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(trial.lease)], check=False)
    assert list(trial.lease.iterdir()) and trial_state(trial).state == "missing"


def test_an_empty_lease_is_held_by_nobody(trial: TrialDir) -> None:
    trial.lease.mkdir()
    assert trial_state(trial).state == "missing"


@pytest.mark.parametrize("content", [b"", b'{"stage": "tr', b"\xff\xfe\x00", b"[]", b"{}", b"null"])
@pytest.mark.parametrize("name", ["results.json", "failure.json", "trained.json"])
def test_a_damaged_file_is_a_failure_that_names_the_file_and_the_remedy(trial: TrialDir, name: str, content: bytes) -> None:
    (trial.path / name).write_bytes(content)
    found = trial_state(trial)
    assert found.state == "failed"
    assert found.reason.startswith(f"damaged: {trial.path / name}: ")
    assert found.reason.endswith("Delete it and submit the trial again.")


def test_a_failure_without_a_message_is_a_failure(trial: TrialDir) -> None:
    write_json(trial.failure, {"stage": "train", "message": ""})
    assert trial_state(trial).reason == "train: no reason given; not evaluated"


def test_a_damaged_submission_hides_no_other_trial(tmp_path: Path, trial: TrialDir, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = ExperimentDir(tmp_path)
    write_text(trial.config, "")
    write_json(experiment.submissions / "1.json", {"trials": [{"name": "planned"}]})
    for number, content in enumerate(("", "{", "[]", '{"trials": [1]}'), start=2):
        write_text(experiment.submissions / f"{number}.json", content)
    assert planned_trials(experiment) == ["planned", "seed=0"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and str(experiment.submissions / "2.json") in said[0]


@pytest.mark.parametrize("name", [{}, None, 5, "", ".", "..", "../x", "a\0b", "a" * 300, "é" * 200, "\ud800"])
def test_a_submission_of_what_is_no_folders_name_hides_no_other_trial(
    tmp_path: Path, trial: TrialDir, name: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = ExperimentDir(tmp_path)
    write_text(trial.config, "")
    write_json(experiment.submissions / "1.json", {"trials": [{"name": "planned"}]})
    (experiment.submissions / "2.json").write_text(json.dumps({"trials": [{"name": name}]}))
    assert planned_trials(experiment) == ["planned", "seed=0"]
    assert f"damaged: {experiment.submissions / '2.json'}: " in capsys.readouterr().err


@pytest.mark.parametrize("copy", ["1 (copy)", "1-old", "._1", "job-x", "x"])
def test_a_copy_of_a_submission_that_a_person_has_kept_is_none(tmp_path: Path, copy: str) -> None:
    experiment = load_experiment(FROZEN, [f"paths.trained={tmp_path / 'trained'}"])
    record = make_manifest(experiment, experiment.trials).path
    shutil.copy(record, record.with_name(f"{copy}.json"))
    assert [m.path for m in History(experiment.dir).submissions] == [record]


@pytest.mark.parametrize(
    "odd",
    [
        {"written": None},
        {"pack": 0},
        {"pack": "x"},
        {"pack": None},
        {"pack": None, "sizes": [[9, 9]]},
        {"sizes": [[0, 1]]},
        {"sizes": 5},
        {"array_size": -1},
        {"max_parallel": [1]},
        {"code": "\0"},
        {"argv": [1]},
        {"trials": []},
        {"trials": [{"name": {}, "features": 0, "differs": {}}]},
        {"trials": [{"name": "x", "features": [], "differs": {}}]},
        {"trials": [{"name": "x", "features": 7, "differs": {}}]},
        {"trials": [{"name": "x", "features": 0, "differs": 5}]},
        {"extractions": [["a", "b", "c"]]},
        {"extractions": [[0, 0, 10**300]]},
        {"common": 5},
        {"common": {"task": []}},
    ],
)
def test_a_submission_that_was_not_written_so_is_damaged_and_the_others_are_known(tmp_path: Path, odd: dict[str, Any]) -> None:
    experiment = load_experiment(FROZEN, [f"paths.trained={tmp_path / 'trained'}"])
    good, bad = (make_manifest(experiment, experiment.trials).path for _ in range(2))
    bad.write_text(json.dumps(read_json(bad) | odd))
    with pytest.raises(Damaged, match=re.escape(f"damaged: {bad}: ")):
        load_manifest(bad)
    history = History(experiment.dir)
    assert [m.path for m in history.submissions] == [good] and history.last


def test_a_failure_that_the_next_attempt_removes_meanwhile_is_no_failure(
    trial: TrialDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(trial.failure, {"stage": "train", "message": "why"})
    assert trial_state(trial).state == "failed"
    read = state.read_json

    def lose_then_read(path: Path) -> Any:
        path.unlink(missing_ok=True)
        return read(path)

    monkeypatch.setattr(state, "read_json", lose_then_read)
    assert trial_state(trial).state == "missing"


def test_only_trials_that_have_a_folder_are_looked_into(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten thousand trials most have none: one listing tells."""
    experiment = load_experiment(FROZEN, ["seed=0,1,2,3"])
    folder = experiment.dir.trial(experiment.trials[2].name)
    write_json(folder.failure, {"stage": "train", "message": "why"})
    looked: list[str] = []
    look = state.trial_state
    monkeypatch.setattr(state, "trial_state", lambda trial, *rest: looked.append(trial.path.name) or look(trial, *rest))
    assert [found.state for found in trial_states(experiment)] == ["missing", "missing", "failed", "missing"]
    assert looked == [folder.path.name]


# ---------------------------------------------------------------- what never makes a result stale
STAGES = ("extract", "train", "evaluate", "collect")
OTHER_JOB = {
    "partition": "gpu",
    "account": "lab",
    "qos": "long",
    "constraint": "a100",
    "gpus_per_node": 2,
    "gpu_type": "a100",
    "cpus_per_task": 9,
    "mem": "9G",
    "time": "09:00:00",
    "mem_per_cpu": "9G",
    "mem_per_gpu": "9G",
    "reservation": "course",
    "exclude": "n1",
    "nodelist": "n2",
    "licenses": "matlab",
    "tmp": "9G",
    "nice": 9,
    "gpu_bind": "closest",
    "comment": "why",
    "mail_type": "END",
    "mail_user": "me",
    "sbatch": {"exclusive": True},
}
OTHER_RESOURCES = {
    "gradient_checkpointing": True,
    "extract_tasks": 9,
    "extract_batch": 9,
    "decode_threads": 9,
    "residence": "mmap",
    "checkpoint_epochs": 9,
    "checkpoint_seconds": 9,
    "lease_seconds": 9,
}
NOT_SCIENCE = {
    **{f"resources.{stage}.{key}": value for stage in STAGES for key, value in OTHER_JOB.items()},
    **{f"resources.{key}": value for key, value in OTHER_RESOURCES.items()},
    **{f"paths.{key}": "elsewhere" for key in ("features", "trained", "stage")},
    "device": "cuda",
}
"""Each key of where and with what a job runs, and a value that is none of its defaults."""


def test_every_key_of_where_and_with_what_a_job_runs_is_tried() -> None:
    names = [*field_names(Resources, "resources."), *field_names(Paths, "paths."), "device"]
    assert sorted(names) == sorted(NOT_SCIENCE)


@pytest.fixture
def on_these_data(table: Path, root: Path) -> tuple[str, ...]:
    """Overrides for forty beetles and the plainest backbone, whose content is on record."""
    overrides = (f"data.source={table}", "backbone={kind: pixels, size: 2}", "device=cpu")
    config = load_experiment(FROZEN, overrides).config
    data_record(config, load_task("beetles").load(config.data))
    weights_record(config, lambda: load_backbone(config.backbone))
    return overrides


def done_trial(experiment: Experiment, index: int = 0) -> TrialDir:
    """The folder of a trial with results of what data and features look like now."""
    trial = experiment.trials[index]
    folder = experiment.dir.trial(trial.name)
    write_text(folder.config, dump_config(trial.config))
    results = {
        "config_hash": config_hash(trial.config),
        "evaluation": plain(trial.config.evaluate),
        "data_signature": known_signature(trial.config.data),
        "feature_key": known_feature_key(trial.config),
    }
    write_json(folder.results, results)
    return folder


def test_no_key_of_where_and_with_what_a_job_runs_makes_a_result_stale(on_these_data: tuple[str, ...]) -> None:
    folder = done_trial(load_experiment(FROZEN, on_these_data))
    for key, value in NOT_SCIENCE.items():
        overrides = [text for text in on_these_data if not text.startswith(f"{key}=")]
        config = load_experiment(FROZEN, [*overrides, f"{key}={value}"]).config
        assert trial_state(folder, config, Sources()) == TrialState("done"), key
    other = load_experiment(FROZEN, [*on_these_data, "features.dtype=fp32"]).config
    assert trial_state(folder, other, Sources()).state == "missing"


# ---------------------------------------------------------------- a configuration that has changed
@pytest.fixture
def edited(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A YAML of one's own to edit; there is no Slurm."""
    monkeypatch.setenv("PATH", str(tmp_path))
    write_text(tmp_path / "mine.yaml", "optim: {lr: 1e-4}\ntrain: {epochs: 9}\n")
    return tmp_path / "mine.yaml"


NOT_RUN = ("missing", "not run")


def reasons(experiment: Experiment) -> list[tuple[str, str]]:
    return [(found.state, found.reason) for found in planned(experiment)]


def test_a_trial_whose_configuration_was_edited_is_stale_and_says_what_was(edited: Path) -> None:
    old = done_trial(load_experiment(edited))
    files = {path: path.read_bytes() for path in old.path.iterdir()}
    write_text(edited, "optim: {lr: 3e-4, kind: adamw}\ntrain: {epochs: 9, patience: 3}\n")
    changed = "optim.kind adam → adamw, optim.lr 1e-4 → 3e-4, train.patience null → 3"
    assert reasons(load_experiment(edited)) == [("stale", f"config changed: {changed}")]
    assert {path: path.read_bytes() for path in old.path.iterdir()} == files
    assert missing_trials(load_experiment(edited)) == load_experiment(edited).trials


def test_an_override_that_differs_is_a_change_too_for_each_seed_that_was_done_before(edited: Path) -> None:
    before = load_experiment(edited, ["seed=0,1"])
    for index in range(2):
        done_trial(before, index)
    changed = ("stale", "config changed: train.epochs 9 → 8")
    assert reasons(load_experiment(edited, ["seed=0,1,2", "train.epochs=8"])) == [changed, changed, NOT_RUN]


@pytest.mark.parametrize(
    ("before", "now", "change"),
    [
        ("seed=1", "seed=2", ""),
        ("data.split={kind: folds, fold: 1}", "data.split={kind: folds, fold: 2}", ""),
        ("model.encoder={kind: lora, r: 4}", "model.encoder={kind: finetuned}", "model.encoder.kind lora → finetuned"),
        ("model.head.hidden=[8]", "model.head.hidden=[8, 4]", "model.head.hidden [8] → [8, 4]"),
        ("model.normalize=true", "model.normalize=false", "model.normalize true → false"),
        ("augment.noise=0.1", "augment.noise=0.1000001", "augment.noise 0.1 → 0.1000001"),
        ("augment={noise: 0.1, warmup: 0.1}", "augment={mixup_alpha: 0.1, image_dropout: 0.1}", ""),
    ],
    ids=["seed", "fold", "kind", "list", "switch", "digits", "four keys"],
)
def test_a_further_repetition_and_another_trial_altogether_are_no_change(
    edited: Path, before: str, now: str, change: str
) -> None:
    done_trial(load_experiment(edited, [before]))
    expected = ("stale", f"config changed: {change}") if change else NOT_RUN
    assert reasons(load_experiment(edited, [now])) == [expected]


def test_the_nearest_older_trial_tells_what_changed_and_of_equals_the_latest(edited: Path) -> None:
    def done(*overrides: str, seconds: float) -> TrialDir:
        folder = done_trial(load_experiment(edited, overrides))
        os.utime(folder.config, (seconds, seconds))
        return folder

    nearest = done("optim.lr=1", seconds=1e9)
    done("optim.lr=1", "seed=0", "train.epochs=8", seconds=3e9)
    now = load_experiment(edited, ["optim.lr=2"])
    assert reasons(now) == [("stale", "config changed: optim.lr 1 → 2")]
    later = done("optim.lr=3", seconds=2e9)
    assert reasons(now) == [("stale", "config changed: optim.lr 3 → 2")]
    os.utime(nearest.config, (4e9, 4e9))
    assert later.results.exists() and reasons(now) == [("stale", "config changed: optim.lr 1 → 2")]


def test_trials_of_the_same_plan_are_no_earlier_forms_of_each_other(edited: Path) -> None:
    grid = load_experiment(edited, ["optim.lr=1,2,3"])
    done_trial(grid, 1)
    assert [found for found in reasons(grid) if found != ("done", "")] == [NOT_RUN, NOT_RUN]


def test_an_older_trial_without_results_leaves_nothing_stale(edited: Path) -> None:
    done_trial(load_experiment(edited, ["optim.lr=1"])).results.unlink()
    assert reasons(load_experiment(edited, ["optim.lr=2"])) == [("missing", "config changed: optim.lr 1 → 2")]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"seed", b"- 1\n", b"data: 3\nseed: [1]\n"])
def test_an_older_trial_that_cannot_be_read_is_no_obstacle(edited: Path, content: bytes) -> None:
    done_trial(load_experiment(edited, ["optim.lr=1"])).config.write_bytes(content)
    assert reasons(load_experiment(edited, ["optim.lr=2"])) == [NOT_RUN]


@pytest.mark.parametrize(("most", "expected"), [(4, "stale"), (3, "missing"), (1, "missing")])
def test_where_more_older_trials_lie_than_can_be_compared_quickly_none_is(
    edited: Path, monkeypatch: pytest.MonkeyPatch, most: int, expected: str
) -> None:
    for lr in (1, 2):
        done_trial(load_experiment(edited, [f"optim.lr={lr}"]))
    read: list[Path] = []
    real = plan_module.saved_science
    monkeypatch.setattr(plan_module, "saved_science", lambda path: read.append(path) or real(path))
    monkeypatch.setattr(plan_module, "MAX_COMPARED", most)
    assert [found.state for found in planned(load_experiment(edited, ["optim.lr=3,4"]))] == [expected] * 2
    assert len(read) == (2 if most > 1 else 0)


def test_a_plan_ends_with_how_many_trials_are_in_each_state_and_the_forecast(edited: Path) -> None:
    experiment = load_experiment(edited, ["seed=0,1,2"])
    done_trial(experiment)
    first, *_, summary, forecast, unseen = lines(experiment)
    assert first == f"done        {experiment.trials[0].name}"
    assert summary == f"3 trials: 2 missing, 1 done (in {experiment.dir.path})"
    assert forecast == "forecast: no past trial to tell from"
    assert unseen.startswith("warning: data imageomics/sentinel-beetles are not on this machine, and were not looked at")
    for index in (1, 2):
        done_trial(experiment, index)
    assert list(lines(experiment))[3:] == [f"3 trials: 3 done (in {experiment.dir.path})"]
