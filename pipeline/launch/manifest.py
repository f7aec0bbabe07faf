"""A submission's manifest: which index is which trial, frozen when it is submitted. Loads no torch.

Jobs get the manifest's path and an index, never a closure: what a queued job will do can be read, and does not change
when the YAML does.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, digest, features_of, images_of
from pipeline.experiment import Experiment, Trial
from pipeline.layout import ExperimentDir, experiment_dir, read_json, write_json, write_text
from pipeline.provenance import now

SCHEMA_VERSION = 1
REFUSED = ".refused"
"""Ending of a manifest whose jobs Slurm did not take: it plans nothing, and keeps its number from being used again."""


@dataclass(frozen=True)
class Manifest:
    """The trials of one submission, and the extractions that they need."""

    path: Path
    trials: list[Trial]
    extractions: list[tuple[int, int, int]]
    """For each task of the extraction's array: index of a trial whose features it makes, task, number of tasks."""
    array_size: int
    """Tasks an array may have: longer ones are queued in chunks of so many, each counting from 0."""

    @property
    def experiment(self) -> ExperimentDir:
        return experiment_dir(self.trials[0].config)

    @property
    def number(self) -> str:
        return self.path.stem


def make_manifest(
    experiment: Experiment, trials: list[Trial], argv: list[str], array_size: int | None = None
) -> Manifest:
    """Write the manifest of a new submission, and the experiment's record beside it; no `array_size`: one array holds all."""
    directory = experiment.dir
    path = _write_numbered(directory, _values(experiment, trials, argv, array_size))
    write_text(directory.record, experiment.source.read_text(encoding="utf-8"))
    directory.logs.mkdir(parents=True, exist_ok=True)
    return load_manifest(path)


def record_plan(experiment: Experiment, job: str) -> None:
    """Leave the same record for a job that was submitted by hand, so that trials which never start are known as missing."""
    write_json(experiment.dir.submission(f"job-{job}"), _values(experiment, experiment.trials, sys.argv, None))


def preview_manifest(experiment: Experiment, trials: list[Trial], array_size: int) -> Manifest:
    """What `make_manifest` would make next, for a dry run. Nothing is written."""
    number = _next_number(experiment.dir.submissions)
    return Manifest(experiment.dir.submission(number), trials, plan_extractions(trials), array_size)


def load_manifest(path: Path) -> Manifest:
    """Read a manifest that a job was given."""
    values = read_json(path)
    trials = [Trial(trial["name"], Config.model_validate(trial["config"])) for trial in values["trials"]]
    extractions = [(i, task, n) for i, task, n in values["extractions"]]
    return Manifest(path, trials, extractions, values["array_size"])


def plan_extractions(trials: list[Trial]) -> list[tuple[int, int, int]]:
    """One array task per feature store and shard group: trials that read the same features share them."""
    firsts = [trials.index(sharing[0]) for sharing in sharing_features(trials)]
    counts = {index: trials[index].config.resources.extract_tasks for index in firsts}
    return [(index, task, n) for index, n in counts.items() for task in range(n)]


def sharing_features(trials: list[Trial]) -> list[list[Trial]]:
    """Trials grouped by the features they read, in order."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(_features_identity(trial.config), []).append(trial)
    return list(groups.values())


def _values(experiment: Experiment, trials: list[Trial], argv: list[str], array_size: int | None) -> dict[str, Any]:
    extractions = plan_extractions(trials)
    return {
        "schema_version": SCHEMA_VERSION,
        "written": now(),
        "argv": argv,
        "source": str(experiment.source),
        "overrides": list(experiment.overrides),
        "trials": [{"name": trial.name, "config": trial.config.model_dump(mode="json")} for trial in trials],
        "extractions": extractions,
        "array_size": array_size or max(len(trials), len(extractions)),
    }


def _features_identity(config: Config) -> str:
    return digest([*images_of(config.data), *features_of(config)])


def _next_number(folder: Path) -> int:
    taken = (path.stem for path in folder.glob("*") if path.suffix in (".json", REFUSED))
    return max((int(stem) for stem in taken if stem.isdecimal()), default=0) + 1


def _write_numbered(directory: ExperimentDir, values: dict[str, Any]) -> Path:
    """Take the next free number; two submissions at once get different ones."""
    directory.submissions.mkdir(parents=True, exist_ok=True)
    number = _next_number(directory.submissions)
    while True:
        path = directory.submission(number)
        number += 1
        try:
            os.close(os.open(path.with_suffix(".claim"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        # The claim is ours, but its former owner may have written the file and gone since we looked.
        if is_mine := not path.exists():
            write_json(path, values)
        path.with_suffix(".claim").unlink()
        if is_mine:
            return path
