"""What jobs asked Slurm for beside what trials used of it, by the records that trials keep. Loads no torch.

A job task may train several trials, one after another or side by side. What was asked for is known of jobs
of Slurm alone, as Slurm has told it to them (the walltime where it is new enough); what its own accounting (`seff`) counts is the
whole job, Python's start included.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields
from typing import Any

from pipeline.disk.attempts import read_attempts
from pipeline.disk.layout import ExperimentDir
from pipeline.disk.writing import read_record
from pipeline.reporting.results import cells_to_markdown
from pipeline.reporting.terminal import print_cells

HEADER = ("experiment", "job", "stage", "trials", "hours asked", "used", "GiB asked", "used", "GPUs", "GiB of GPU used")
MIB_IN_GIB, HOUR = 1024, 3600


@dataclass(frozen=True)
class Used:
    """What one job task asked for and used. None: nobody has told."""

    experiment: str
    job: str
    stage: str
    trials: int
    hours_asked: float | None
    hours: float
    memory_asked: float | None
    """GiB, as what follows."""
    memory: float
    gpus: int
    gpu_memory: float | None


def collect(experiments: Iterable[ExperimentDir]) -> list[Used]:
    """A row for each job task that has trained or evaluated trials, in the order of their names."""
    found: dict[tuple[str, str, str], list[_Trial]] = {}
    for experiment in experiments:
        for stage, record in _records(experiment):
            with suppress(KeyError, TypeError, ValueError, AttributeError):  # one that is damaged is not counted
                one = _trial(record)
                found.setdefault((experiment.path.name, one.job, stage), []).append(one)
    return [_used(*key, trials) for key, trials in found.items()]


def _records(experiment: ExperimentDir) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Of trials that were worked on in jobs of Slurm."""
    for trial in experiment.trials():
        for stage, record in read_record(trial.provenance).items():
            if isinstance(record, dict) and isinstance(slurm := record.get("slurm"), dict) and slurm.get("job_id"):
                yield stage, record


@dataclass(frozen=True)
class _Trial:
    """What one trial used of a job task."""

    job: str
    hours: float
    """Of the job's, which trials side by side share."""
    side_by_side: int
    memory: float
    gpu_memory: float | None
    slurm: Mapping[str, Any]


def _trial(record: Mapping[str, Any]) -> _Trial:
    """Raises whatever reading a damaged record does."""
    slurm, peak = record["slurm"], record["peak_memory_gib"]
    array = slurm.get("array_job_id")
    job = f"{array}_{slurm['array_task_id']}" if array else str(slurm["job_id"])
    restart = int(slurm.get("restart_count") or 0)
    attempts = [each for each in read_attempts(record) if each.job == job and each.restart == restart]
    hours = sum(each.seconds / each.shared_by for each in attempts) / HOUR
    return _Trial(job, hours, max((each.shared_by for each in attempts), default=1), float(peak["host"]), peak.get("gpu"), slurm)


def _used(experiment: str, job: str, stage: str, trials: Sequence[_Trial]) -> Used:
    """Of a job task. Of trials side by side memory adds up, of those after one another the most counts."""
    slurm, at_once = trials[0].slurm, max(trial.side_by_side for trial in trials)
    told = "job_end_time" in slurm
    asked = (int(slurm["job_end_time"]) - int(slurm["job_start_time"])) / HOUR if told else None
    memory = sum(sorted((trial.memory for trial in trials), reverse=True)[:at_once])
    gpu = sorted((trial.gpu_memory for trial in trials if trial.gpu_memory is not None), reverse=True)[:at_once]
    hours, gpus = sum(trial.hours for trial in trials), int(slurm.get("gpus_on_node") or 0)
    return Used(experiment, job, stage, len(trials), asked, hours, _memory(slurm), memory, gpus, sum(gpu) if gpu else None)


def _memory(slurm: Mapping[str, Any]) -> float | None:
    """GiB; Slurm tells MiB of the node, or of each core or GPU."""
    times = {"mem_per_node": 1, "mem_per_cpu": slurm.get("cpus_per_task") or 1, "mem_per_gpu": slurm.get("gpus_on_node") or 1}
    return next((int(slurm[key]) * int(n) / MIB_IN_GIB for key, n in times.items() if key in slurm), None)


def shares(used: Iterable[Used]) -> str:
    """How much of what was asked for was used, over all jobs, in words; empty where nobody has told."""
    timed, sized = [], []
    for each in used:
        timed += [(each.hours, each.hours_asked)] if each.hours_asked else []
        sized += [each.memory / each.memory_asked] if each.memory_asked else []
    told = []
    if timed:
        hours, asked = (sum(column) for column in zip(*timed, strict=True))
        told.append(f"Of the walltime that {_tasks(timed)} asked for they used {100 * hours / asked:.0f} %.")
    if sized:
        half = sorted(sized)[len(sized) // 2]
        told.append(f"Of the memory that {_tasks(sized)} asked for half of them used at most {100 * half:.0f} %.")
    return " ".join([*told, "Who asks for less waits less."]) if told else ""


def _tasks(some: Sequence[object]) -> str:
    return f"{len(some)} job task{'s' * (len(some) > 1)}"


# ---------------------------------------------------------------- formats
def print_table(used: Sequence[Used]) -> None:
    """The table for a terminal, and what it comes to."""
    if not used:
        print("No trial has been worked on in a job of Slurm that left a record.")
        return
    print_cells(HEADER, [cells(each) for each in used])
    print(shares(used))


def to_markdown(used: Sequence[Used]) -> str:
    """The same in Markdown."""
    return cells_to_markdown(HEADER, [cells(each) for each in used])


def to_csv(used: Sequence[Used]) -> str:
    """A line for each job task."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([[field.name for field in fields(Used)], *map(astuple, used)])
    return buffer.getvalue()


def to_json(used: Sequence[Used]) -> str:
    """A list of objects."""
    return json.dumps([asdict(each) for each in used], indent=1, allow_nan=False)


def cells(used: Used) -> tuple[str, ...]:
    """As tables show it."""
    return tuple(f"{value:.3g}" if isinstance(value, float) else "–" if value is None else str(value) for value in astuple(used))
