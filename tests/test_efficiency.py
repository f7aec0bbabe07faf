"""What jobs asked for and used: time adds up over the trials of a job task, memory does not; what nobody told is not made up."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.disk.attempts import Attempt
from pipeline.disk.layout import ExperimentDir
from pipeline.disk.writing import write_json, write_text
from pipeline.reporting import efficiency

HOUR = 3600


def record(task: int, seconds: float, host: float, shared_by: int = 1, **slurm: Any) -> dict[str, Any]:
    job = {"job_id": str(100 + task), "array_job_id": "100", "array_task_id": str(task)}
    killed = asdict(Attempt(f"100_{task}", 0, "n1", None, 0, 1, 7 * HOUR))
    last = killed | {"restart": 1, "shared_by": shared_by, "seconds": seconds}
    attempts = {"attempts": [killed, last]} if slurm.pop("restarted", False) else {"attempts": [last | {"restart": 0}]}
    return {"seconds": seconds, "peak_memory_gib": {"host": host}, "slurm": job | slurm, **attempts}


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentDir:
    """Two trials of one job task, one of another that did not tell what it asked for, one of no job, a damaged record."""
    asked = {"job_start_time": "1000", "job_end_time": str(1000 + 4 * HOUR), "mem_per_node": "8192", "gpus_on_node": "1"}
    records: list[Any] = [
        record(0, HOUR, 2.0, **asked),
        record(0, HOUR / 2, 3.0, **asked),
        record(1, HOUR, 1.0),
        {"seconds": 5, "peak_memory_gib": {"host": 1.0}, "slurm": {}},
        record(2, HOUR, 1.0) | {"peak_memory_gib": "much"},
    ]
    for i, each in enumerate(records):
        write_text(tmp_path / "e" / f"t{i}" / "config.yaml", "")
        write_json(tmp_path / "e" / f"t{i}" / "provenance.json", {"train": each})
    return ExperimentDir(tmp_path / "e")


def test_time_adds_up_over_the_trials_of_a_job_task_and_of_memory_the_most_counts(experiment: ExperimentDir) -> None:
    first, second = efficiency.collect([experiment])
    assert (first.job, first.trials, first.hours_asked, first.hours) == ("100_0", 2, 4, 1.5)
    assert (first.memory_asked, first.memory, first.gpus, first.gpu_memory) == (8, 3, 1, None)
    assert (second.job, second.hours_asked, second.memory_asked) == ("100_1", None, None)
    said = efficiency.shares([first, second])
    assert "the walltime that 1 job task asked for they used 38 %. Of the memory that 1 job task asked for half of them" in said
    assert efficiency.shares([second]) == ""


def test_of_trials_side_by_side_memory_adds_up_and_time_is_shared_and_an_attempt_that_was_killed_is_of_another_run(
    tmp_path: Path,
) -> None:
    asked = {"job_start_time": "0", "job_end_time": str(3 * HOUR // 2), "mem_per_node": "8192"}
    for i in range(4):
        write_text(tmp_path / "e" / f"t{i}" / "config.yaml", "")
        write_json(tmp_path / "e" / f"t{i}" / "provenance.json", {"train": record(0, HOUR, 1.9, 4, **asked)})
    (used,) = efficiency.collect([ExperimentDir(tmp_path / "e")])
    assert (used.hours, used.hours_asked, used.memory) == (1, 1.5, pytest.approx(7.6))
    again = record(0, HOUR, 1.0, restarted=True, restart_count="1", **asked)
    write_text(tmp_path / "f" / "t" / "config.yaml", "")
    write_json(tmp_path / "f" / "t" / "provenance.json", {"train": again})
    assert efficiency.collect([ExperimentDir(tmp_path / "f")])[0].hours == 1


@pytest.mark.parametrize(
    ("slurm", "gib"),
    [
        ({"mem_per_node": "512"}, 0.5),
        ({"mem_per_cpu": "1024", "cpus_per_task": "3"}, 3),
        ({"mem_per_gpu": "2048", "gpus_on_node": "2"}, 4),
        ({}, None),
    ],
)
def test_memory_is_told_of_a_node_a_core_or_a_gpu(slurm: dict[str, str], gib: float | None) -> None:
    assert efficiency._memory(slurm) == gib


def test_each_form_has_a_line_for_each_job_task(experiment: ExperimentDir, capsys: pytest.CaptureFixture[str]) -> None:
    used = efficiency.collect([experiment])
    efficiency.print_table(used)
    assert "100_0" in capsys.readouterr().out
    assert efficiency.to_csv(used).count("\n") == 3 and efficiency.to_json(used).count('"job"') == 2
    assert efficiency.to_markdown(used).count("100_") == 2
    efficiency.print_table([])
    assert capsys.readouterr().out == "No trial has been worked on in a job of Slurm that left a record.\n"
