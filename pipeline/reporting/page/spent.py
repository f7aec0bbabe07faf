"""What failed and why, what it has cost, and where it comes from: code, weights, versions, the command. Loads no torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from pipeline.disk.layout import ExperimentDir
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
        f"{sums['trials']} trials, {sums['with_record']} of them with a record: {sums['hours']:.3g} hours, of these "
        f"{sums['gpu_hours']:.3g} GPU-hours; {sums['restarts']} restarts. Without extraction, which trials share."
    ]
    known = [each for each in found if each.hours is not None]
    return Section(
        "costs",
        "What it has cost",
        words if known else [],
        [Table.of_first("By trial", cost.HEADER, [_cost(each) for each in known], "`carabid results --cost`")] if known else [],
    )


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
        number(of.hours, ".3g"),
        number(of.gpu_hours, ".3g"),
        text(of.gpu or ""),
        number(of.restarts, "d"),
        text(of.nodes or ""),
        text(of.jobs or ""),
    ]


def origin(experiments: Sequence[ExperimentDir]) -> Section:
    """Of each experiment its last trial's record: who wants to know of another one finds it in its provenance.json."""
    tables = []
    for experiment in experiments:
        records = [record for trial in experiment.trials() if (record := read_record(trial.provenance))]
        if records:
            last = max((record.get("train") or {} for record in records), key=lambda record: str(record.get("written", "")))
            tables.append(
                Table(experiment.path.name, ("what", "is"), [[text(name), text(value)] for name, value in _told(last).items()])
            )
    return Section("origin", "Where it comes from", tables=tables)


def _told(record: Mapping[str, Any]) -> dict[str, str]:
    code, device = record.get("code") or {}, record.get("device") or {}
    changed = ", with changes that were not committed" if code.get("dirty") else ""
    weights = ", ".join(" ".join(map(str, each.values())) for each in record.get("weights") or [])
    packages = record.get("packages") or {}
    found = {
        "made": record.get("written", ""),
        "code": f"{str(code.get('commit') or 'not in git')[:12]}{changed}, carabid {record.get('carabid', '')}",
        "again": "carabid " + " ".join(map(shlex.quote, map(str, (record.get("argv") or [""])[1:]))),
        "weights": weights,
        "device": f"{device.get('gpu') or device.get('cpu') or ''}, {device.get('threads')} threads, on {record.get('host')}",
        "python": record.get("python", ""),
        "packages": ", ".join(f"{name} {version}" for name, version in packages.items()),
    }
    return {name: str(value) for name, value in found.items() if value}
