"""A submission's manifest: which index is which trial, frozen when it is submitted. Loads no torch.

Jobs get the manifest's path and an index, never a closure: what a queued job will do can be read, and does not change
when the YAML does. What trials share is written once, so that a job of ten thousand trials reads a short file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config.identity import digest, features_of, image_features_of, images_of, in_json, texts_from
from pipeline.config.own import load_file
from pipeline.config.per_block import PerBlock, distinct, sharing
from pipeline.config.resources import Job, Resources
from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, folder_name
from pipeline.disk.provenance import now
from pipeline.disk.reading import reading
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.errors import UserError
from pipeline.experiments.cluster import Profile
from pipeline.experiments.reading import Experiment, Trial
from pipeline.experiments.trees import Tree
from pipeline.launch.manifest.snapshot import take_snapshot

SCHEMA_VERSION = 2
TYPED = "job-"
"""What the record of a job typed by hand is called by, before the job's id."""
MANY = 10**9
"""No submission has so many trials."""
READ = ("data", "texts", "backbone", "features", "extract", "model")
"""The fields of a configuration that say which features a trial reads."""
REFUSED = ".refused"
"""Ending of a manifest whose jobs Slurm did not take: it plans nothing, and keeps its number from being used again."""


@dataclass(frozen=True)
class Terms:
    """How a submission is queued: by which profile, how many job tasks an array may have, how many trials share one."""

    profile: Profile = field(default_factory=Profile)
    array_size: int | None = None
    """Longer arrays are queued in chunks of so many job tasks, each counting from 0; None: one array holds all."""
    pack: int | None = 1
    """Trials of a job task, one after another; None: as the forecast says."""
    sizes: tuple[tuple[int, int], ...] = ()
    """How many trials that came to, and of how many job tasks in turn."""
    max_parallel: int | None = None
    """Tasks of each array that may run at once; None: all."""
    argv: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One trial in a manifest: its name, which features it reads (trials of one number share them), its own sections."""

    name: str
    features: int
    differs: Tree


@dataclass(frozen=True)
class Manifest:
    """The trials of one submission, and the extractions that they need."""

    path: Path
    common: Tree
    """The first trial's configuration; an entry says in which sections its own differs."""
    entries: list[Entry]
    extractions: list[tuple[int, int, int]]
    """For each job task of extraction: the number of the features that it makes, which part of them, and of how many."""
    terms: Terms
    code: Path
    """The snapshot of the code that its jobs run."""
    source: Path
    """The YAML that it was made from, and the overrides."""
    overrides: tuple[str, ...]
    written: str

    @property
    def experiment(self) -> ExperimentDir:
        return ExperimentDir(self.path.parent.parent)

    @property
    def number(self) -> str:
        return self.path.stem

    @property
    def array_size(self) -> int:
        return self.terms.array_size or max(len(self.entries), len(self.extractions))

    @cached_property
    def job_tasks(self) -> list[range]:
        """For each job task of training and of evaluation: the indices of its trials."""
        n, sizes = len(self.entries), self.terms.sizes
        if not sizes:
            size = self.terms.pack or 1
            return [range(first, min(first + size, n)) for first in range(0, n, size)]
        ends = list(accumulate(size for size, times in sizes for _ in range(times)))
        return [range(first, end) for first, end in zip([0, *ends], ends, strict=False)]

    @cached_property
    def job_task_of(self) -> dict[int, int]:
        """Index of a trial → its job task's place in `job_tasks`."""
        return {index: place for place, indices in enumerate(self.job_tasks) for index in indices}

    def section(self, entry: Entry, name: str) -> Any:
        """One section of a trial's configuration, as plain JSON values."""
        return entry.differs.get(name, self.common[name])

    def trial(self, index: int) -> Trial:
        """Trial `index`, with its whole configuration."""
        entry = self.entries[index]
        values = self.common | entry.differs
        if values["task"].endswith(".py"):
            load_file(values["task"])  # it may define kinds
        try:
            config = Config.model_validate(values)
        except ValidationError as error:
            raise UserError(
                f"{self.path}: {entry.name} was submitted with another version of carabid: `carabid submit` with its YAML "
                "makes a new submission"
            ) from error
        return Trial(entry.name, config)

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    @property
    def resources(self) -> Resources:
        """What its jobs ask for: all trials of a submission ask for the same."""
        return Resources.model_validate(self.common["resources"])

    def job(self, stage: str) -> Job:
        """What a job of this stage asks for: training for each of the processes of a trial."""
        job: Job = getattr(self.resources, stage)
        return job.times(self.common["train"].get("processes", 1)) if stage == "train" else job

    def reading(self, features: int) -> list[Trial]:
        """The trials that read these features."""
        return [self.trial(i) for i, entry in enumerate(self.entries) if entry.features == features]


def make_manifest(experiment: Experiment, trials: Sequence[Trial], terms: Terms | None = None) -> Manifest:
    """Write the manifest of a new submission, a snapshot of the code, and the experiment's record beside it."""
    directory = experiment.dir
    values = _values(experiment, trials, terms or Terms())
    path = _write_numbered(directory, values | {"code": take_snapshot(directory, [t.config.task for t in trials]).name})
    with suppress(OSError):  # a YAML that is gone: its record of the first submission stays
        write_text(directory.record, experiment.source.read_text(encoding="utf-8"))
    directory.logs.mkdir(parents=True, exist_ok=True)
    return load_manifest(path)


def record_plan(experiment: Experiment, job: str, array: Sequence[int]) -> None:
    """Leave a record of a job that was submitted by hand: its trials, and how the job tasks of its array share them out.

    `array` is the first index, the step and the number of job tasks. Trials that never start are known as missing by it.
    """
    values = _values(experiment, experiment.trials, Terms(argv=tuple(sys.argv)))
    write_json(experiment.dir.submission(f"{TYPED}{job}"), values | {"array": list(array), "code": ""})


def preview_manifest(experiment: Experiment, trials: Sequence[Trial], terms: Terms) -> Manifest:
    """What `make_manifest` would make next, for a dry run. Nothing is written."""
    directory = experiment.dir
    path = directory.submission(_next_number(directory.submissions))
    return _manifest(path, _values(experiment, trials, terms) | {"code": "<code>"})


def load_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises FileNotFoundError or Damaged."""
    with reading(path, "`carabid submit` makes another submission."):
        return _manifest(path, read_json(path))


def _manifest(path: Path, values: Tree) -> Manifest:
    _check(values)
    if path.stem.startswith(TYPED) and not _are_counts(values["array"], 3, lowest=(0, 1, 1)):
        raise ValueError("its array is not a first index, a step and a number of job tasks.")
    return Manifest(
        path=path,
        common=values["common"],
        entries=[Entry(trial["name"], trial["features"], trial["differs"]) for trial in values["trials"]],
        extractions=[(features, part, n) for features, part, n in values["extractions"]],
        terms=_terms(values),
        code=ExperimentDir(path.parent.parent).code(values["code"]),
        source=Path(values["source"]),
        overrides=tuple(values["overrides"]),
        written=values["written"],
    )


def _terms(values: Tree) -> Terms:
    profile, sizes = Profile.model_validate(values["cluster"]), tuple((size, n) for size, n in values.get("sizes", ()))
    return Terms(profile, values["array_size"], values["pack"], sizes, values["max_parallel"], tuple(values["argv"]))


def _check(values: Tree) -> None:
    """Raises ValueError, TypeError or LookupError for what `_values` cannot have written."""
    texts = [values["written"], values["code"], values["source"], *values["overrides"], *values["argv"]]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("its time, code, source, overrides or argv are no texts.")
    if values["code"]:
        folder_name(values["code"])
    counts = [n for n in (values["pack"], values["array_size"], values["max_parallel"]) if n is not None]
    if not _are_counts(counts, len(counts), lowest=(1,) * len(counts)):
        raise ValueError("its pack, array_size or max_parallel is no number of trials or job tasks.")
    sizes = values.get("sizes", ())
    if not all(_are_counts(each, 2, lowest=(1, 1)) for each in sizes):
        raise ValueError("its sizes are not numbers of trials and of job tasks.")
    if (sizes or values["pack"] is None) and sum(size * n for size, n in sizes) != len(values["trials"]):
        raise ValueError("its sizes are not those of its trials.")
    if not all(_are_counts(each, 3, lowest=(0, 0, 1)) for each in values["extractions"]):
        raise ValueError("its extractions are not numbers of features and parts.")
    made = {features for features, *_ in values["extractions"]}
    for trial in values["trials"]:
        folder_name(trial["name"])
        if trial["features"] not in made or not isinstance(trial["differs"], dict):
            raise ValueError(f"{trial['name']} reads features that nothing makes, or differs in what is no section.")
    if not values["trials"] or not isinstance(values["common"]["task"], str):
        raise ValueError("it names no trial, or no task.")


def _are_counts(values: Any, n: int, lowest: tuple[int, ...]) -> bool:
    """Whether these are `n` whole numbers, each as large as its lowest."""
    are_whole = isinstance(values, list | tuple) and len(values) == n and all(type(value) is int for value in values)
    return are_whole and all(low <= value < MANY for value, low in zip(values, lowest, strict=True))


def sharing_features(trials: Iterable[Trial]) -> list[list[Trial]]:
    """Trials grouped by the features they read, of images and of texts, in order."""
    groups: dict[str, list[Trial]] = {}
    known: dict[tuple[Any, ...], str] = {}
    for config, trial in ((trial.config, trial) for trial in trials):
        blocks = sharing(config, READ)
        if blocks not in known:
            known[blocks] = digest([*images_of(config.data), *features_of(config), *texts_from(config)])
        groups.setdefault(known[blocks], []).append(trial)
    return list(groups.values())


def alike_together(trials: Iterable[Trial]) -> list[Trial]:
    """Trials that read the same table and features behind one another, else in their order: in one process they load it once."""
    seen: dict[Hashable, int] = {}
    known: dict[Hashable, int] = {}

    def place(trial: Trial) -> int:
        config = trial.config
        blocks = sharing(config, READ)
        if blocks not in known:
            reads = image_features_of(config), config.data
            known[blocks] = seen.setdefault(reads, len(seen))
        return known[blocks]

    return sorted(trials, key=place)


def _values(experiment: Experiment, trials: Sequence[Trial], terms: Terms) -> Tree:
    groups = sharing_features(trials)
    numbers = {id(trial): number for number, group in enumerate(groups) for trial in group}
    common = trials[0].config.model_dump(mode="json")
    dumped = PerBlock(in_json)
    varying = [name for name, blocks in distinct([trial.config for trial in trials]).items() if len(blocks) > 1]
    counts = [group[0].config.resources.extract_tasks for group in groups]
    return {
        "schema_version": SCHEMA_VERSION,
        "written": now(),
        "argv": list(terms.argv),
        "source": str(experiment.source),
        "overrides": list(experiment.overrides),
        "cluster": terms.profile.model_dump(mode="json"),
        "array_size": terms.array_size,
        "pack": terms.pack,
        "sizes": terms.sizes,
        "max_parallel": terms.max_parallel,
        "extractions": [(number, part, n) for number, n in enumerate(counts) for part in range(n)],
        "common": common,
        "trials": [
            {
                "name": trial.name,
                "features": numbers[id(trial)],
                "differs": {k: v for k in varying if (v := dumped(k, getattr(trial.config, k))) != common[k]},
            }
            for trial in trials
        ],
    }


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
