"""Ensembles of trials that differ in the seed alone: results of their own, made when results are collected. Loads no torch.

What members say of each group is combined (`metrics/ensembles.py`) and calibrated anew, on the validation groups that
calibrated them. An ensemble's folder is replaced as a whole. Its results.json says of which results of its members it was made:
where these are others now, or there are other members, it is made again, and in no other case.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import pandas as pd

from pipeline.config.identity import digest
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.reading import reading
from pipeline.disk.writing import atomic_folder, read_hashed, read_json, write_hashed, write_table
from pipeline.errors import UserError, WorkError
from pipeline.experiments.names import HASH_DIGITS
from pipeline.experiments.reading import saved_science
from pipeline.metrics.figures import Training
from pipeline.models import content
from pipeline.progress import log
from pipeline.reporting.results import common_name, hash_results
from pipeline.tasks import load_task
from pipeline.tasks.base import Kept, Task

Log = Callable[[str], None]
SHARED = ("evaluation", "split", "selected_on", "feature_key", "data_signature", "schema_version")
"""What the results of members must share, and the ensemble's have too."""
SHARED_IN_SUMMARY = ("inputs", "features_dtype", "n_bad_images", "bad_images", "permuted_targets")
OF_TRAINING = ("table_hash", "train_domains", "train_means", "train_sds")
"""What is read of trained.json."""


@dataclass(frozen=True)
class _Member:
    """A trial with results."""

    trial: TrialDir
    science: dict[str, Any]
    """Its configuration but for the seed."""
    results: dict[str, Any]
    results_hash: str

    @property
    def name(self) -> str:
        return self.trial.path.name

    @cached_property
    def task(self) -> Task[Any]:
        return load_task(self.science["task"])

    @cached_property
    def kind(self) -> str:
        """Equal for trials that are one ensemble."""
        own = [self.results["task_hash"]] if "task_hash" in self.results else []  # (of a lab's own file)
        return digest([self.science, *(self.results.get(key) for key in SHARED), *own])


def update_ensembles(experiment: ExperimentDir) -> bool:
    """Make the ensembles that are missing or outdated, remove those that are no more; whether anything has changed.

    Several jobs may do this at once. Each looks again after a change, so that the last one leaves what is right. What
    cannot be made is said on stderr, once, and is no error: trials have their results without it.
    """
    changed, log_once = False, cache(log)
    while _update(experiment, log_once):
        changed = True
    return changed


def _update(experiment: ExperimentDir, log: Log) -> bool:
    existing = {folder.path.name.rpartition("-")[2]: folder for folder in experiment.ensembles()}
    sets: dict[TrialDir, list[_Member]] = {}
    for members in _find(experiment, log):
        short = members[0].kind[:HASH_DIGITS]  # its folder is found again by this, whatever its members' names share
        sets[existing.get(short) or experiment.ensemble(f"{common_name(_names(members))}-{short}")] = members
    changed = [_make_or_keep(folder, members, log) for folder, members in sets.items()]
    removed = [_remove(folder) for folder in experiment.ensembles() if folder not in sets]
    return any([*changed, *removed])


# ---------------------------------------------------------------- who belongs together
def _find(experiment: ExperimentDir, log: Log) -> list[list[_Member]]:
    """The sets of two or more trials that differ in the seed alone, each by name."""
    found: dict[str, list[_Member]] = {}
    for trial in experiment.trials():
        if member := _read_member(trial):
            found.setdefault(member.kind, []).append(member)
    several = [members for members in found.values() if len(members) > 1]
    if old := [member for members in several for member in members if not member.trial.validation.exists()]:
        how = "to have them in it, delete their folders and submit them again"
        log(f"carabid: in no ensemble: {_some(old)}, trained before validation.parquet was kept for that; {how}")
    usable = [[member for member in members if member not in old] for members in several]
    return [members for members in usable if len(members) > 1]


def _read_member(trial: TrialDir) -> _Member | None:
    """A trial with results of the configuration that stands beside them; None if it has none."""
    with suppress(UserError, OSError, ValueError, KeyError, TypeError):  # where they are damaged, the trial's own row says so
        science, results = saved_science(trial.config), read_json(trial.results)
        if not science or results["config_hash"] != digest(science) or not load_task(science["task"]).ensembles:
            return None
        return _Member(trial, {k: v for k, v in science.items() if k != "seed"}, results, hash_results(trial))
    return None


def _names(members: Sequence[_Member]) -> list[str]:
    return [member.name for member in members]


def _some(members: Sequence[_Member]) -> str:
    """Their names; of many the first ones."""
    rest = f" and {len(members) - 3} others" if len(members) > 3 else ""
    return ", ".join(_names(members[:3])) + rest


# ---------------------------------------------------------------- one ensemble
def _make_or_keep(folder: TrialDir, members: Sequence[_Member], log: Log) -> bool:
    """Whether the folder is another than before."""
    made_from = _made_from(folder)
    if made_from == _hashes(members):
        return False
    read = [(member, said) for member in members if (said := _read(member, log))]
    usable = [member for member, _ in read]
    if len(read) < 2:
        return _remove(folder)
    if made_from == _hashes(usable):
        return False
    try:
        _write(folder, usable, *_evaluate(usable, *zip(*(said for _, said in read), strict=True)))
        return True
    except Exception as error:  # of whatever kind: the table of the trials' results must be written
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return True  # another job has put its own there just now: look again
        log(f"carabid: no ensemble of {_some(usable)}: {error or type(error).__name__}")
        return _remove(folder)


def _made_from(folder: TrialDir) -> Any:
    """Of which results of its members an ensemble was made; None of one that is not what was written: it is made again."""
    with suppress(OSError, ValueError, TypeError):
        return read_hashed(folder.results).get("made_from")
    return None


def _hashes(members: Sequence[_Member]) -> dict[str, str]:
    return {member.name: member.results_hash for member in members}


def _read(member: _Member, log: Log) -> tuple[dict[str, Any], Kept] | None:
    """OF_TRAINING and what a member says; None, and a word on stderr, if a file of it cannot be used."""
    again = "Delete the trial's folder and submit it again."
    try:
        record, hashes = content.read_record(member.trial, again)
        with reading(member.trial.trained, again):
            training = {key: record[key] for key in OF_TRAINING}
        content.check_files(member.trial, hashes, [member.trial.validation], again)
        with reading(member.trial.path, again):
            return training, member.task.kept(member.trial)
    except (OSError, WorkError) as error:
        log(f"carabid: in no ensemble: {member.name}: {error}")
        return None


def _evaluate(
    members: Sequence[_Member], trainings: Sequence[dict[str, Any]], kept: Sequence[Kept]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """An ensemble's results with its calibration, and the content of its groups.parquet. Raises WorkError if members differ."""
    science, task = members[0].science, members[0].task
    if any(training != trainings[0] for training in trainings):
        raise WorkError("they were trained on different targets, groups or splits")
    together, train = task.combine(kept, Training.of(trainings[0]), science["calibrate"]["kind"])
    blocks = task.report(together, train)
    summaries = [member.results["summary"] for member in members]
    warnings = dict.fromkeys(line for summary in (blocks["summary"], *summaries) for line in summary["warnings"])
    blocks["summary"] |= {key: summaries[0][key] for key in SHARED_IN_SUMMARY} | {"warnings": list(warnings)}
    counts = {"n_images": len(together.images), "n_events": int(together.images["group"].nunique())}
    results = blocks | task.describe(blocks) | counts | {"calibration": train.calibration}
    return results, task.tables(together)[1]


def _write(folder: TrialDir, members: Sequence[_Member], figures: dict[str, Any], groups: pd.DataFrame) -> None:
    science = members[0].science
    shared = [*SHARED, *(["task_hash"] if "task_hash" in members[0].results else [])]
    facts = {key: members[0].results[key] for key in shared} | {"config_hash": digest(science)}
    results = figures | facts | {"members": _names(members), "made_from": _hashes(members)}
    with atomic_folder(folder.path, replace=True) as new:
        write_table(TrialDir(new).groups, groups)
        write_hashed(TrialDir(new).results, results)


def _remove(folder: TrialDir) -> bool:
    """Whether it was there, and is no longer."""
    existed = folder.path.exists()
    shutil.rmtree(folder.path, ignore_errors=True)
    return existed and not folder.path.exists()
