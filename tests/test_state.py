"""A trial's state while other jobs work in its folder: files and leases that vanish between two looks are no error."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline import state
from pipeline.layout import TrialDir, write_json
from pipeline.lease import Lease
from pipeline.state import trial_state


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


def test_an_empty_lease_is_held_by_nobody(trial: TrialDir) -> None:
    trial.lease.mkdir()
    assert trial_state(trial).state == "missing"


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
