"""A trial's state while other jobs work in its folder: files and leases that vanish between two looks are no error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import state
from pipeline.experiment import load_experiment
from pipeline.layout import PROJECT, ExperimentDir, TrialDir, write_json, write_text
from pipeline.lease import Lease
from pipeline.state import planned_trials, trial_state, trial_states

FROZEN = PROJECT / "configs" / "beetles" / "frozen.yaml"


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
    script = "import sys; from pathlib import Path; from pipeline.lease import Lease; "
    script += "lease = Lease(Path(sys.argv[1]), 600).hold(); lease.__enter__(); import os; os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", script, str(trial.lease)], check=False)
    assert list(trial.lease.iterdir()) and trial_state(trial).state == "missing"


def test_an_empty_lease_is_held_by_nobody(trial: TrialDir) -> None:
    trial.lease.mkdir()
    assert trial_state(trial).state == "missing"


@pytest.mark.parametrize("content", [b"", b'{"stage": "tr', b"\xff\xfe\x00", b"[]", b"{}", b"null"])
@pytest.mark.parametrize("name", ["results.json", "failure.json", "trained.json"])
def test_a_damaged_file_is_a_failure_that_names_the_file_and_the_remedy(
    trial: TrialDir, name: str, content: bytes
) -> None:
    (trial.path / name).write_bytes(content)
    found = trial_state(trial)
    assert found.state == "failed"
    assert found.reason == f"{name} is damaged: delete {trial.path / name} and submit the trial again"


def test_a_failure_without_a_message_is_a_failure(trial: TrialDir) -> None:
    write_json(trial.failure, {"stage": "train", "message": ""})
    assert trial_state(trial).reason == "train: no reason given; not evaluated"


def test_a_damaged_submission_hides_no_other_trial(
    tmp_path: Path, trial: TrialDir, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = ExperimentDir(tmp_path)
    write_text(trial.config, "")
    write_json(experiment.submissions / "1.json", {"trials": [{"name": "planned"}]})
    for number, content in enumerate(("", "{", "[]", '{"trials": [1]}'), start=2):
        write_text(experiment.submissions / f"{number}.json", content)
    assert planned_trials(experiment) == ["planned", "seed=0"]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and str(experiment.submissions / "2.json") in said[0]


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
