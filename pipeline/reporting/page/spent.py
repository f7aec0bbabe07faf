"""What failed and why, what it has cost, and where it comes from: code, weights, versions, the command. Loads no torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.secrets import hide
from pipeline.disk.writing import read_record
from pipeline.reporting import cost
from pipeline.reporting import efficiency as asked
from pipeline.reporting.page.section import Cell, Section, Table, number, text
from pipeline.reporting.results import Row


def failed(rows: Sequence[Row]) -> Section:
    """Trials without results."""
    lacking = [row for row in rows if row.state != "done"]
    cells = [[text(row.experiment), text(row.trial), text(row.state), text(row.reason)] for row in lacking]
    tables = (
        [Table.of_first("Trials without results", ("experiment", "trial", "state", "why"), cells, "results.csv")] if cells else []
    )
    return Section("failed", "What has no results", tables=tables)


def costs(experiments: Sequence[ExperimentDir], rows: Sequence[Row]) -> Section:
    """Hours and GPU-hours of each trial, and their sums."""
    found = cost.collect(experiments, rows)
    sums = cost.total(found)
    words = [
        f"{sums['with_record']} of {sums['trials']} trials have a record: {_hours(sums['hours']).text}, of these "
        f"{_hours(sums['gpu_hours']).text} on GPUs; {sums['restarts']} restarts. Without extraction, which trials share."
    ]
    known = [_cost(each) for each in found if each.hours is not None]
    header = ["time" if name == "hours" else "time on GPUs" if name == "GPU-hours" else name for name in cost.HEADER]
    tables = [Table.of_first("By trial", header, known, "`carabid results --cost`").without_empty()] if known else []
    return Section("costs", "What it has cost", words if known else [], tables)


def efficiency(experiments: Sequence[ExperimentDir]) -> Section:
    """What jobs of Slurm asked for, and used."""
    used = asked.collect(experiments)
    rows = [[text(value) if isinstance(value, str) else number(value, ".3g") for value in astuple(each)] for each in used]
    words = [asked.shares(used) or "Nobody has told what they asked for."]
    return Section(
        "efficiency",
        "What jobs asked for, and used",
        words if rows else [],
        [Table.of_first("By job task", asked.HEADER, rows, "`carabid results --efficiency`")] if rows else [],
    )


def _cost(of: cost.Cost) -> list[Cell]:
    names = (text(of.experiment), text(of.trial), text(of.state))
    return [
        *names,
        _hours(of.hours),
        _hours(of.gpu_hours),
        text(of.gpu or ""),
        number(of.restarts, "d"),
        text(of.nodes or ""),
        text(of.jobs or ""),
    ]


def _hours(hours: float | None) -> Cell:
    """In the unit that people would say it in."""
    if hours is None or hours >= 1:
        return number(hours, ".3g", " h")
    return Cell(f"{3600 * hours:.3g} s" if hours < 1 / 60 else f"{60 * hours:.3g} min", hours)


def origin(experiments: Sequence[ExperimentDir]) -> Section:
    """Of each experiment its last trial's record: who wants to know of another one finds it in its provenance.json."""
    tables = []
    for experiment in experiments:
        records = [(trial, record) for trial in experiment.trials() if (record := read_record(trial.provenance))]
        trained = [(trial, record.get("train") or {}) for trial, record in records]
        if trained:
            trial, last = max(trained, key=lambda pair: str(pair[1].get("written", "")))
            told = _told(last) | _again(experiment, trial)
            lines = [[text(name), text(value)] for name, value in told.items()]
            tables.append(Table(experiment.path.name, ("what", "is"), lines))
    return Section("origin", "Where it comes from", tables=tables)


def _again(experiment: ExperimentDir, trial: TrialDir) -> dict[str, str]:
    """How it was submitted, the last time, and how one trial is made again. (In a job the command line is another program's.)"""
    submitted = [record for path in experiment.submission_records() if (record := read_record(path)).get("argv")]
    argv = [*map(str, submitted[-1]["argv"])] if submitted else []
    by = {"submitted by": hide(shlex.join(["carabid", *argv[1:]]))} if argv and Path(argv[0]).name == "carabid" else {}
    return by | {"a trial again": shlex.join(["carabid", "submit", str(trial.config)])}


def _told(record: Mapping[str, Any]) -> dict[str, str]:
    code, device = record.get("code") or {}, record.get("device") or {}
    changed = ", with changes that were not committed" if code.get("dirty") else ""
    weights = ", ".join(" ".join(map(str, each.values())) for each in record.get("weights") or [])
    packages = record.get("packages") or {}
    found = {
        "made": record.get("written", ""),
        "code": f"{str(code.get('commit') or 'not in git')[:12]}{changed}, carabid {record.get('carabid', '')}",
        "weights": weights,
        "device": f"{device.get('gpu') or device.get('cpu') or ''}, {device.get('threads')} threads, on {record.get('host')}",
        "python": record.get("python", ""),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
    return {name: str(value) for name, value in found.items() if value}
