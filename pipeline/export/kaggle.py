"""The export of trained trials as a submission to a Kaggle challenge with a long table (`data.long`): submission.csv, a number
for each row of its test.csv, in that order; and its check.

Every trial says its targets of an image, with those that follow from them; of several trials the weighted mean counts. Beside the
table stands submission.json: which trials, which test.csv, and the hash of the table.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config.data import Long
from pipeline.config.trial import Config
from pipeline.data.sources.csv_files import read_csv
from pipeline.disk.reading import sha256_of_file
from pipeline.disk.writing import atomic_folder
from pipeline.errors import UserError, WorkError
from pipeline.export import seal
from pipeline.stages.predict import Origin, ensemble_at, members_of, predict_files, trained_config, trial_at
from pipeline.tasks import load_task

TABLE = "submission.csv"
HEADER = ("sample_id", "target")


@dataclass(frozen=True)
class Asked:
    """A row of test.csv: what it is called, its image and its target."""

    name: str
    image: Path
    target: str


def export(trials: Sequence[Path], test: Path, out: Path, weights: Sequence[float] = (), device: str | None = None) -> Path:
    """Write the submission of one trial, of several, or of an ensemble (a folder of `ensembles/`) to `out`; returns its
    submission.csv. Raises UserError for what is no trained trial, for a test.csv that it does not fit, an image that
    cannot be read, and a folder that exists; WorkError for what is not finite."""
    members = [member.path for trial in trials for member in (members_of(trial)[0] if ensemble_at(trial) else [trial_at(trial)])]
    out = out.expanduser().absolute()
    if not members:
        raise UserError("name the trials to export, one or more: `carabid status` lists them")
    if out.exists():
        raise UserError(f"{out} exists: name another --out, or remove it")
    if weights and (len(weights) != len(members) or min(weights) < 0 or not sum(weights)):
        raise UserError(
            f"--weights: {len(members)} numbers, one for each of {', '.join(each.name for each in members)}, not all 0"
        )
    configs = [trained_config(trial_at(member)) for member in members]
    asked = read_test(test, configs[0])
    said = [_predict(member, config, asked, device) for member, config in zip(members, configs, strict=True)]
    mean = np.average(said, axis=0, weights=weights or None)
    rows = [(row.name, float(value)) for row, value in zip(asked, mean, strict=True)]
    header = [long.id, long.value] if (long := configs[0].data.long) else list(HEADER)
    with atomic_folder(out) as folder:
        write_table(folder / TABLE, header, rows)
        of = {"challenge": "kaggle", "trials": [f"{each.parent.name}/{each.name}" for each in members], "weights": list(weights)}
        seal.seal(folder, of | {"test_sha256": sha256_of_file(test), "n": len(rows), "columns": header})
        check(folder, test)
    return out / TABLE


def read_test(test: Path, config: Config) -> list[Asked]:
    """The rows of a test.csv, in its order. Raises UserError naming the line that cannot be right."""
    if (long := config.data.long) is None:
        raise UserError("--to kaggle answers a long table, a row for each image and target: these trials were not trained on one")
    table, image = read_csv(test.expanduser(), config.data.columns.image), config.data.columns.image
    for column, key in ((long.id, "data.long.id"), (long.name, "data.long.name"), (image, "data.columns.image")):
        if column not in table.header:
            raise UserError(f"{test}: there is no column {column!r} ({key}); it has {', '.join(table.header)}")
    places = [table.header.index(column) for column in (long.id, image, long.name)]
    asked: dict[str, Asked] = {}
    for record in table.records:
        name, path, target = (record.cells[place].strip() for place in places)
        _check_name(f"{test}, line {record.line}", name, target, long)
        if name in asked:
            raise UserError(f"{test}, line {record.line}: {name} stands there twice")
        asked[name] = Asked(name, test.expanduser().parent / path, target)
    if not asked:
        raise UserError(f"{test}: the table has a header and no rows")
    return list(asked.values())


def _check_name(where: str, name: str, target: str, long: Long) -> None:
    if not name or not target or name.rpartition(long.separator)[2] != target:
        raise UserError(f"{where}: column {long.id} holds {name!r}, which should end in {long.separator}{target}")


def _predict(trial: Path, config: Config, asked: Sequence[Asked], device: str | None) -> list[float]:
    """What a trial says of each row: of every image once."""
    files = list(dict.fromkeys(row.image for row in asked))
    said = pd.DataFrame(predict_files(trial, files, Origin(), device))
    complete: Any = load_task(config.task).completed(said)
    if lacking := sorted({row.target for row in asked} - set(complete)):
        raise UserError(f"{trial}: it does not say {', '.join(lacking)}, which test.csv asks for; it says {', '.join(complete)}")
    place = {file: row for row, file in enumerate(files)}
    return [float(complete[row.target][place[row.image]]) for row in asked]


def write_table(path: Path, header: Sequence[str], rows: Sequence[tuple[str, float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([header, *((name, repr(value)) for name, value in rows)])


def check(folder: Path, test: Path | None = None) -> list[str]:
    """Check a submission; lines that say what was found. With its `test.csv` its rows are those, in that order. Raises WorkError
    that says what is wrong with it."""
    try:
        spec = seal.opened(folder) if (folder / seal.FILE).is_file() else {}
    except ValueError as error:
        raise WorkError(str(error)) from error
    table = read_csv(folder / TABLE)
    if table.header != (header := list(spec.get("columns", HEADER))):
        raise WorkError(f"{folder / TABLE}: its columns are {', '.join(table.header)}, and should be {', '.join(header)}")
    names = [record.cells[0] for record in table.records]
    if not names:
        raise WorkError(f"{folder / TABLE}: it has a header and no rows")
    for record in table.records:
        if not _is_finite(record.cells[1]):
            raise WorkError(f"{folder / TABLE}, line {record.line}: {record.cells[0]} is {record.cells[1]!r}, no finite number")
    if twice := next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None:
        raise WorkError(f"{folder / TABLE}: {twice} stands there twice")
    if test is not None:
        wanted = read_csv(test.expanduser())
        if header[0] not in wanted.header:
            raise UserError(f"{test}: there is no column {header[0]!r}; it has {', '.join(wanted.header)}")
        rows = [record.cells[wanted.header.index(header[0])] for record in wanted.records]
        if names != rows:
            at = next((i for i, (a, b) in enumerate(zip(names, rows, strict=False)) if a != b), min(len(names), len(rows)))
            raise WorkError(
                f"{folder / TABLE}: {len(names)} rows instead of {len(rows)}, or in another order, from row {at + 1} on"
            )
    of = f" of {', '.join(spec['trials'])}" if spec.get("trials") else ""
    return [f"{folder / TABLE}: {len(names)} rows{of}, all finite" + (", in the order of the test's" if test else "")]


def _is_finite(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
