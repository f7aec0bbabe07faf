"""Trials taken together: those that differ in the seed alone, and those that differ in the fold alone. Results of their own, made
when results are collected. Loads no torch.

What seeds say of each group is combined (`metrics/ensembles.py`) and calibrated anew, on the validation groups that calibrated
them. Of folds each says what it has not learnt from, and figures are of all that together. Both predict new images as one model,
the mean of theirs. An ensemble's folder is replaced as a whole. Its results.json says of which results of its members it was
made: where these are others now, or there are other members, it is made again, and in no other case.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, cached_property
from typing import Any

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


class _Way(StrEnum):
    """In what trials differ that are taken together."""

    SEEDS = "seeds"
    FOLDS = "folds"

    def shared(self, science: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration without that."""
        if self is _Way.SEEDS:
            return {key: value for key, value in science.items() if key != "seed"}
        split = {key: value for key, value in science["data"]["split"].items() if key != "fold"}
        return {**science, "data": {**science["data"], "split": split}}

    def are_all(self, members: Sequence[_Member]) -> bool:
        """Whether these are enough: two seeds, or every fold once."""
        if self is _Way.SEEDS:
            return len(members) > 1
        folds = [member.science["data"]["split"].get("fold") for member in members]
        return None not in folds and sorted(folds) == list(range(members[0].science["data"]["split"]["n"]))


@dataclass(frozen=True)
class _Member:
    """A trial with results."""

    trial: TrialDir
    science: dict[str, Any]
    """Its configuration."""
    results: dict[str, Any]
    results_hash: str

    @property
    def name(self) -> str:
        return self.trial.path.name

    @cached_property
    def task(self) -> Task[Any]:
        return load_task(self.science["task"])

    def kind(self, way: _Way) -> str:
        """Equal for trials that are taken together in this way."""
        own = [self.results["task_hash"]] if "task_hash" in self.results else []  # (of a lab's own file)
        return digest([way.shared(self.science), *(self.results.get(key) for key in SHARED), *own])


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
    found: dict[TrialDir, tuple[_Way, list[_Member]]] = {}
    for way, members in _find(experiment, log):
        short = members[0].kind(way)[:HASH_DIGITS]  # its folder is found again by this, whatever its members' names share
        named = existing.get(short) or experiment.ensemble(f"{common_name(_names(members))}-{short}")
        found[named] = way, members
    changed = [_make_or_keep(folder, way, members, log) for folder, (way, members) in found.items()]
    removed = [_remove(folder) for folder in experiment.ensembles() if folder not in found]
    return any([*changed, *removed])


# ---------------------------------------------------------------- who belongs together
def _find(experiment: ExperimentDir, log: Log) -> list[tuple[_Way, list[_Member]]]:
    """The sets of trials that are taken together, each by name."""
    members = [member for trial in experiment.trials() if (member := _read_member(trial))]
    found: dict[tuple[_Way, str], list[_Member]] = {}
    for member in members:
        split = member.science["data"]["split"]
        # (Where some of what trains is held out to test too, folds share what they test: they are no parts of one whole.)
        for way in _Way if "fold" in split and not split.get("held_out") else (_Way.SEEDS,):
            found.setdefault((way, member.kind(way)), []).append(member)
    several = [(way, some) for (way, _), some in found.items() if way.are_all(some)]
    if old := [member for member in members if _lacks_validation(member) and any(member in some for _, some in several)]:
        how = "to have them in it, delete their folders and submit them again"
        log(f"carabid: in no ensemble: {_some(old)}, trained before validation.parquet was kept for that; {how}")
    usable = [(way, [member for member in some if not _lacks_validation(member)]) for way, some in several]
    return [(way, some) for way, some in usable if way.are_all(some)]


def _lacks_validation(member: _Member) -> bool:
    return not member.trial.validation.exists()


def _read_member(trial: TrialDir) -> _Member | None:
    """A trial with results of the configuration that stands beside them; None if it has none."""
    with suppress(UserError, OSError, ValueError, KeyError, TypeError):  # where they are damaged, the trial's own row says so
        science, results = saved_science(trial.config), read_json(trial.results)
        if not science or results["config_hash"] != digest(science) or not load_task(science["task"]).ensembles:
            return None
        return _Member(trial, science, results, hash_results(trial))
    return None


def _names(members: Sequence[_Member]) -> list[str]:
    return [member.name for member in members]


def _some(members: Sequence[_Member]) -> str:
    """Their names; of many the first ones."""
    rest = f" and {len(members) - 3} others" if len(members) > 3 else ""
    return ", ".join(_names(members[:3])) + rest


# ---------------------------------------------------------------- one ensemble
def _make_or_keep(folder: TrialDir, way: _Way, members: Sequence[_Member], log: Log) -> bool:
    """Whether the folder is another than before."""
    made_from = _made_from(folder)
    if made_from == _hashes(members):
        return False
    read = [(member, said) for member in members if (said := _read(member, log))]
    usable = [member for member, _ in read]
    if not way.are_all(usable):
        return _remove(folder)
    if made_from == _hashes(usable):
        return False
    try:
        _write(folder, way, usable, *_evaluate(way, usable, *zip(*(said for _, said in read), strict=True)))
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
    way: _Way, members: Sequence[_Member], records: Sequence[dict[str, Any]], kept: Sequence[Kept]
) -> tuple[dict[str, Any], Any, Task[Any]]:
    """Their results together with the calibration, and the task's predictions. Raises WorkError if members differ."""
    science, task = members[0].science, members[0].task
    trainings = [Training.of(record) for record in records]
    if way is _Way.SEEDS and any(record != records[0] for record in records):
        raise WorkError("they were trained on different targets, groups or splits")
    kind = science["calibrate"]["kind"]
    together, train = task.combine(kept, trainings[0], kind) if way is _Way.SEEDS else task.out_of_fold(kept, trainings, kind)
    blocks = task.report(together, train)
    summaries = [member.results["summary"] for member in members]
    warnings = dict.fromkeys(line for summary in (blocks["summary"], *summaries) for line in summary["warnings"])
    blocks["summary"] |= {key: summaries[0][key] for key in SHARED_IN_SUMMARY} | {"warnings": list(warnings)}
    counts = {"n_images": len(together.images), "n_events": int(together.images["group"].nunique())}
    return blocks | task.describe(blocks) | counts | {"calibration": train.calibration}, together, task


def _write(
    folder: TrialDir, way: _Way, members: Sequence[_Member], figures: dict[str, Any], together: Any, task: Task[Any]
) -> None:
    science = way.shared(members[0].science)
    shared = [*SHARED, *(["task_hash"] if "task_hash" in members[0].results else [])]
    facts = {key: members[0].results[key] for key in shared} | {"config_hash": digest(science)}
    facts |= {"of": way.value} if way is _Way.FOLDS else {}  # (those of seeds were there first)
    results = figures | facts | {"members": _names(members), "made_from": _hashes(members)}
    images, groups = task.tables(together)
    with atomic_folder(folder.path, replace=True) as new:
        if way is _Way.FOLDS:
            write_table(TrialDir(new).predictions, images)
        write_table(TrialDir(new).groups, groups)
        write_hashed(TrialDir(new).results, results)


def _remove(folder: TrialDir) -> bool:
    """Whether it was there, and is no longer."""
    existed = folder.path.exists()
    shutil.rmtree(folder.path, ignore_errors=True)
    return existed and not folder.path.exists()
