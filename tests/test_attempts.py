"""What a training took: every attempt counts, a killed one up to its last checkpoint, a shared GPU by its share."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.trial import Config
from pipeline.disk.attempts import Attempt, Attempts, read_attempts, restarts, spent, this_attempt
from pipeline.disk.layout import PROJECT, TrialDir, experiment_dir
from pipeline.disk.writing import read_json
from pipeline.errors import Interrupted, WorkError
from pipeline.stages import evaluate, extract, train
from tests.conftest import Assets, carabid
from tests.test_training import StopAfter

pytestmark = pytest.mark.jobs

MakeConfig = Callable[..., Config]
SLURM = ("JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT", "GPUS_ON_NODE")
VARIABLES = (*(f"SLURM_{name}" for name in SLURM), "SLURMD_NODENAME", "CARABID_SHARED_BY")


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def attempt(job: str | None = "7", restart: int = 0, gpus: int = 1, shared_by: int = 1, seconds: float = 0) -> Attempt:
    return Attempt(job, restart, "n1", None, gpus, shared_by, seconds)


# ---------------------------------------------------------------- one attempt
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Attempt(None, 0, platform.node(), None, 0, 1)),
        ({"SLURM_JOB_ID": "41", "SLURMD_NODENAME": "n2"}, Attempt("41", 0, "n2", None, 0, 1)),
        (
            {
                "SLURM_JOB_ID": "44",
                "SLURM_ARRAY_JOB_ID": "41",
                "SLURM_ARRAY_TASK_ID": "3",
                "SLURM_RESTART_COUNT": "2",
                "SLURM_GPUS_ON_NODE": "2",
                "SLURMD_NODENAME": "n2",
                "CARABID_SHARED_BY": "4",
            },
            Attempt("41_3", 2, "n2", None, 2, 4),
        ),
        ({"SLURM_JOB_ID": "41", "SLURMD_NODENAME": "n2", "SLURM_GPUS_ON_NODE": "?"}, Attempt("41", 0, "n2", None, 0, 1)),
    ],
    ids=["no job", "a job", "a packed task of an array", "a site's own word"],
)
def test_an_attempt_is_described_by_the_job_that_it_is(
    environ: dict[str, str], expected: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert this_attempt(None) == expected


def test_the_gpu_that_is_computed_on_counts_where_no_job_says_how_many_there_are() -> None:
    assert this_attempt("NVIDIA A100").gpus == 1


# ---------------------------------------------------------------- sums
def test_a_gpu_that_trials_share_is_counted_once_for_all_of_them() -> None:
    four = [spent([attempt(shared_by=4, seconds=3600)]) for _ in range(4)]
    assert sum(values["gpu_hours"] for values in four) == pytest.approx(1)
    assert spent([attempt(gpus=2, seconds=3600)])["gpu_hours"] == 2
    assert spent([attempt(gpus=0, seconds=3600)])["gpu_hours"] == 0


def test_time_is_that_of_all_attempts() -> None:
    assert spent([attempt(seconds=1.5), attempt(restart=1, seconds=2.25)])["seconds"] == 3.75


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([], 0),
        ([attempt("7")], 0),
        ([attempt("7", 0), attempt("7", 1)], 1),
        ([attempt("7", 0), attempt("7", 3)], 3),  # two in between died before they began to train
        ([attempt("7", 1), attempt("9", 0)], 2),  # submitted again
        ([attempt("7", 2), attempt("9", 2)], 5),
        ([attempt(None), attempt(None), attempt(None)], 2),
        ([attempt("7", 0), attempt(None)], 1),
        ([attempt("7", 0), attempt("7", 0)], 1),  # again within one job
    ],
)
def test_restarts_are_those_of_slurm_and_what_was_submitted_or_typed_again(attempts: list[Attempt], expected: int) -> None:
    assert restarts(attempts) == expected


ATTEMPTS = st.lists(
    st.builds(
        Attempt,
        st.none() | st.sampled_from(["7", "9_1"]),
        st.integers(0, 5),
        st.text(),
        st.none() | st.text(),
        st.integers(0, 8),
        st.integers(1, 8),
        st.floats(0, 1e6).map(lambda seconds: round(seconds, 2)),
    )
)


@given(ATTEMPTS)
def test_attempts_are_read_back_as_they_were_written(attempts: list[Attempt]) -> None:
    values = spent(attempts)
    assert read_attempts(values) == attempts
    assert values["restarts"] >= max(len(attempts) - 1, 0)


@pytest.mark.parametrize(
    "odd",
    [
        {"seconds": "x"},
        {"seconds": None},
        {"seconds": 10**200},
        {"seconds": 1e308},
        {"seconds": -1},
        {"seconds": True},
        {"gpus": None},
        {"gpus": "1"},
        {"shared_by": 0},
        {"shared_by": -1},
        {"restart": "x"},
        {"restart": [1]},
        {"job": 5},
        {"job": []},
        {"node": 5},
        {"node": None},
        {"gpu": {}},
    ],
)
def test_an_attempt_that_was_not_written_so_is_no_cost(odd: dict[str, Any]) -> None:
    one = spent([attempt("7")])["attempts"][0]
    assert read_attempts({"attempts": [one]}) and read_attempts({"attempts": [one | odd]}) == []


@pytest.mark.parametrize("record", [None, [], {}, {"attempts": 3}, {"attempts": [{"job": "7"}]}, {"attempts": ["7"]}])
def test_a_record_without_attempts_has_none(record: object) -> None:
    assert read_attempts(record) == []


# ---------------------------------------------------------------- the file beside the checkpoint
def begin(path: Path, job: str, identity: str = "a") -> Attempts:
    return Attempts(path, identity, attempt(job), time.monotonic() - 10)


def jobs_in(path: Path) -> list[str | None]:
    return [attempt.job for attempt in read_attempts(read_json(path))]


def test_an_attempt_is_known_before_it_has_ended_and_the_next_one_stands_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "attempts.json"
    with begin(path, "7").noted(lambda: True):
        assert jobs_in(path) == ["7"] and read_json(path)["seconds"] >= 10
    with begin(path, "9").noted(lambda: True):
        assert jobs_in(path) == ["7", "9"] and read_json(path)["seconds"] >= 20


def test_attempts_at_something_else_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "attempts.json"
    begin(path, "7", "these data").note()
    begin(path, "9", "other data").note()
    assert jobs_in(path) == ["9"]


@pytest.mark.parametrize("content", ["", "[]", '{"identity": "a"', '{"identity": "a", "attempts": 1}'])
def test_a_damaged_file_is_no_obstacle(tmp_path: Path, content: str) -> None:
    path = tmp_path / "attempts.json"
    path.write_text(content)
    begin(path, "9").note()
    assert jobs_in(path) == ["9"]


def test_one_that_has_lost_the_trial_does_not_write_over_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "attempts.json"
    with begin(path, "7").noted(lambda: False):
        begin(path, "9").note()
    assert jobs_in(path) == ["7", "9"]


def test_a_file_that_cannot_be_written_does_not_end_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    begin(tmp_path / "file" / "attempts.json", "7").note()
    assert (tmp_path / "file").read_text() == ""


# ---------------------------------------------------------------- real trainings
def test_a_training_that_was_stopped_twice_has_the_time_and_the_jobs_of_all_three_attempts(
    config_of: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("frozen", "train.epochs=3", "resources.checkpoint_epochs=1")
    trial, seconds = experiment_dir(config).trial("trial"), []
    extract.ensure(config)
    for number in range(2):
        be_job(monkeypatch, f"{number + 7}", "n1")
        with pytest.raises(Interrupted):
            train.run(config, trial, StopAfter(1))
        seconds.append(read_json(trial.attempts)["seconds"])
    be_job(monkeypatch, "9", "n2")
    train.run(config, trial)
    record = read_json(trial.trained)["provenance"]
    assert [(a.job, a.node) for a in read_attempts(record)] == [("7", "n1"), ("8", "n1"), ("9", "n2")]
    assert record["restarts"] == 2 and 0 < seconds[0] < seconds[1] < record["seconds"]
    assert record["gpu_hours"] == pytest.approx(record["seconds"] / 3600, rel=1e-3)
    assert not trial.attempts.exists()
    evaluate.run(config, trial)
    origin = read_json(trial.provenance)
    assert origin["train"] == record and len(read_attempts(origin["evaluate"])) == 1


def be_job(monkeypatch: pytest.MonkeyPatch, job: str, node: str) -> None:
    """Look like a job with one GPU, which torch computes without."""
    for name, value in {"SLURM_JOB_ID": job, "SLURMD_NODENAME": node, "SLURM_GPUS_ON_NODE": "1"}.items():
        monkeypatch.setenv(name, value)


def test_what_a_failed_attempt_took_is_kept_for_the_next_one(config_of: MakeConfig) -> None:
    config = config_of("frozen", "train.epochs=2", "optim.lr=1e30")
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    for number in (1, 2):
        with pytest.raises(WorkError, match="loss became"):
            train.run(config, trial)
        assert len(read_attempts(read_json(trial.attempts))) == number


def test_a_killed_training_counts_up_to_its_last_checkpoint(assets: Assets, root: Path) -> None:
    overrides = (*assets.overrides("frozen"), "train.epochs=100000", "resources.checkpoint_epochs=1")
    carabid("extract", "configs/beetles/frozen.yaml", *overrides, root=root)
    command = [sys.executable, "-m", "pipeline.cli", "train", "configs/beetles/frozen.yaml", *overrides]
    process = subprocess.Popen(command, cwd=PROJECT, env={**os.environ, "CARABID_ROOT": str(root)})
    folder = wait_for_a_checkpoint(root)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (killed,) = read_attempts(read_json(folder.attempts))
    assert killed.seconds > 0 and folder.resume_state.exists()


def wait_for_a_checkpoint(root: Path) -> TrialDir:
    """Until the time in the one attempts.json under the root has gone on."""
    deadline, first = time.monotonic() + 120, None
    while time.monotonic() < deadline:
        for path in root.glob("trained/*/*/attempts.json"):
            seconds = read_json(path)["seconds"]
            first = seconds if first is None else first
            if seconds > first:
                return TrialDir(path.parent)
        time.sleep(0.05)
    raise AssertionError("its time never went on")
