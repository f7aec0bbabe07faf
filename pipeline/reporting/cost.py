"""What trials have cost, for `carabid results --cost`: time, GPUs, jobs and nodes of training and evaluation. Loads no torch.

Extraction is left out: trials share their features, and a store's manifest tells how long they took. What attempts left
no record of (before the training began, or after a killed one's last checkpoint), Slurm's own accounting knows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Any

from pipeline.disk.attempts import read_attempts, restarts, spent
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.writing import read_record
from pipeline.reporting.results import Row, cells_to_markdown, no_trials
from pipeline.reporting.terminal import print_cells

HEADER = ("experiment", "trial", "state", "hours", "GPU-hours", "GPU", "restarts", "nodes", "jobs")
UNKNOWN = "–"


@dataclass(frozen=True)
class Cost:
    """What one trial has cost until now. None: it has left no record of that."""

    experiment: str
    trial: str
    state: str
    hours: float | None = None
    """Of training, all attempts together, and of the evaluation that made its results."""
    gpu_hours: float | None = None
    gpu: str | None = None
    """Names of the GPUs that were computed on; `none` on CPUs."""
    restarts: int | None = None
    nodes: str | None = None
    jobs: str | None = None


def collect(experiments: Iterable[ExperimentDir], rows: Iterable[Row]) -> list[Cost]:
    """What the trials of these rows have cost, in their order; an ensemble of them costs nothing more."""
    folders = {experiment.path.name: experiment for experiment in experiments}
    return [_cost(row, folders[row.experiment].trial(row.trial)) for row in rows if not row.members]


def total(costs: Sequence[Cost]) -> dict[str, float]:
    """The sums: how many trials there are, how many of them have a record, hours and GPU-hours of those."""
    return {
        "trials": len(costs),
        "with_record": sum(cost.hours is not None for cost in costs),
        "hours": round(sum(cost.hours or 0 for cost in costs), 8),
        "gpu_hours": round(sum(cost.gpu_hours or 0 for cost in costs), 8),
        "restarts": sum(cost.restarts or 0 for cost in costs),
    }


def _cost(row: Row, trial: TrialDir) -> Cost:
    stages = [attempts for record in _records(trial) if (attempts := read_attempts(record))]
    if not stages:
        return Cost(row.experiment, row.trial, row.state)
    every = [attempt for attempts in stages for attempt in attempts]
    sums = [spent(attempts) for attempts in stages]
    return Cost(
        row.experiment,
        row.trial,
        row.state,
        hours=round(sum(values["seconds"] for values in sums) / 3600, 8),
        gpu_hours=round(sum(values["gpu_hours"] for values in sums), 8),
        gpu=_names(attempt.gpu for attempt in every) or "none",
        restarts=sum(map(restarts, stages)),
        nodes=_names(attempt.node for attempt in every),
        jobs=_names(attempt.job for attempt in every),
    )


def _records(trial: TrialDir) -> list[Any]:
    """The records of training and evaluation that hold attempts: of what is done, else of what has been tried so far."""
    if origin := read_record(trial.provenance):
        return [origin.get("train"), origin.get("evaluate")]
    trained = read_record(trial.trained)
    return [trained.get("provenance") if trained else read_record(trial.attempts)]


def _names(names: Iterable[str | None]) -> str:
    return ", ".join(dict.fromkeys(name for name in names if name))


# ---------------------------------------------------------------- formats
def print_table(costs: Sequence[Cost], trained: Path | None = None) -> None:
    """The table for a terminal, the sums last."""
    if costs:
        print_cells(HEADER, _lines(costs))
    else:
        print(no_trials(trained))


def to_markdown(costs: Sequence[Cost]) -> str:
    """The same in Markdown."""
    return cells_to_markdown(HEADER, _lines(costs))


def to_csv(costs: Sequence[Cost]) -> str:
    """A line for each trial and none for the sums: whoever reads it adds up."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([[field.name for field in fields(Cost)], *map(astuple, costs)])
    return buffer.getvalue()


def to_json(costs: Sequence[Cost]) -> str:
    """The trials as a list of objects, and the sums."""
    return json.dumps({"trials": [asdict(cost) for cost in costs], "total": total(costs)}, indent=1, allow_nan=False)


def _lines(costs: Sequence[Cost]) -> list[tuple[str, ...]]:
    sums = total(costs)
    known = "" if sums["with_record"] == len(costs) else f", {sums['with_record']} of them with a record"
    last = Cost("total", f"{len(costs)} trial{'s' * (len(costs) > 1)}{known}", "", sums["hours"], sums["gpu_hours"])
    return [*map(_cells, costs), (*_cells(last)[:5], "", f"{sums['restarts']:g}", "", "")]


def _cells(cost: Cost) -> tuple[str, ...]:
    return tuple(_cell(value) for value in astuple(cost))


def _cell(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return UNKNOWN if value is None else str(value)
