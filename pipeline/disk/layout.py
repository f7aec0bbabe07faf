"""The one owner of every path under features/ and trained/. Loads no torch."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config.trial import Config  # (slow to load, and whoever asks for a path of one has it)

PROJECT = Path(__file__).resolve().parents[2]
"""What the package lies in: a checkout, a snapshot of the code, or where packages are installed."""
SHIPPED = package if ((package := PROJECT / "pipeline") / "configs").is_dir() else PROJECT
"""What configs/ and jobs/ lie in: beside the package, or where it is installed, within it."""
HOME = "~/carabid"
ENSEMBLES = "ensembles"
LONGEST_NAME = 255
"""Bytes of a file's name."""
RECORD = re.compile(r"(job-)?[0-9]+")
"""What the record of a submission is called."""


def root() -> Path:
    """Where features/ and trained/ lie: `$CARABID_ROOT`, else the checkout, or ~/carabid where the package is installed; never
    the current folder by accident.

    Raises UserError if it is relative: a job that starts in another folder would look elsewhere.
    """
    chosen = os.environ.get("CARABID_ROOT") or (HOME if SHIPPED != PROJECT else str(PROJECT))
    path = Path(os.path.expanduser(chosen))  # (Path's own raises for a user that does not exist)
    if not path.is_absolute():
        raise UserError(f"CARABID_ROOT must be an absolute path (it is {chosen}): jobs start in other folders.")
    return path.resolve()


def features_root(config: Config | None = None) -> Path:
    """The feature stores' folder."""
    chosen = config.paths.features if config else None
    return root() / (Path(chosen).expanduser() if chosen else "features")


def record_path(config: Config, kind: str, name: str) -> Path:
    """A record of content hashes, features/records/<kind>-<name>.json."""
    return features_root(config) / "records" / f"{kind}-{name}.json"


def trained_root(config: Config | None = None) -> Path:
    """The experiments' folder."""
    chosen = config.paths.trained if config else None
    return (root() / (Path(chosen).expanduser() if chosen else "trained")).resolve()


@dataclass(frozen=True)
class _Folder:
    path: Path


class _In:
    """What lies under a name in a folder: a path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: _Folder, owner: type[_Folder]) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class StoreDir(_Folder):
    """Paths of one feature store, features/<key>/."""

    manifest = _In("manifest.json")
    index = _In("index.parquet")
    lease = _In("extract.lease")

    def shard(self, number: int, n_shards: int) -> Path:
        return self.path / f"shard-{number:05d}-of-{n_shards:05d}.safetensors"

    def shard_record(self, number: int, n_shards: int) -> Path:
        return self.shard(number, n_shards).with_suffix(".json")


@dataclass(frozen=True)
class ExperimentDir(_Folder):
    """Paths of one experiment, trained/<experiment>/."""

    record = _In("experiment.yaml")
    submissions = _In("submissions")
    logs = _In("logs")
    submitting = _In("submitting.lease")
    """Lease of who is looking what to submit, and queues it."""
    results_csv = _In("results.csv")
    report_html = _In("report.html")
    comparison_json = _In("comparison.json")
    """Methods on the same images; there if trials of several have results."""
    comparison_md = _In("comparison.md")
    tracking = _In("tracking")
    """What experiment trackers keep of its trials."""

    def submission(self, name: str | int) -> Path:
        """The record of a submission: its number, or `job-<id>` for one made by hand."""
        return self.submissions / f"{name}.json"

    def submission_records(self) -> list[Path]:
        """The records of its submissions, in the order of their numbers: not a copy of one that a person has put beside it."""
        found = [path for path in self.submissions.glob("*.json") if RECORD.fullmatch(path.stem)]
        return sorted(found, key=lambda path: (len(path.stem), path.stem))

    def evaluation_lease(self, job: str) -> Path:
        """Held while the evaluation of a job that was submitted by hand is queued."""
        return self.submissions / f"evaluation-of-{job}.lease"

    def stage_logs(self, submission: str, stage: str) -> Path:
        return self.logs / f"{submission}-{stage}"

    def own_log(self, submission: str, stage: str, index: int) -> Path:
        """The log of one trial that is not that of its job task: of a packed one, or of a stage on this machine."""
        return self.stage_logs(submission, stage) / f"{index}.log"

    def code(self, name: str) -> Path:
        """A snapshot of the code, by its hash: what the jobs of a submission run."""
        return self.path / "code" / name

    def trial(self, name: str) -> TrialDir:
        return TrialDir(self.path / name)

    def folders(self) -> set[str]:
        """Names of the folders in it, its trials' among them: one look, where thousands of trials would be asked for."""
        return folders_in(self.path)

    def trials(self) -> list[TrialDir]:
        """Every trial folder there is, by name."""
        return [TrialDir(p.parent) for p in sorted(self.path.glob("*/config.yaml"))]

    def ensemble(self, name: str) -> TrialDir:
        """The folder of an ensemble of trials: it has `results.json` and `groups.parquet`, as theirs do, and nothing else."""
        return TrialDir(self.path / ENSEMBLES / name)

    def ensembles(self) -> list[TrialDir]:
        """Every ensemble's folder there is, by name; not those that are just being written."""
        names = folders_in(self.path / ENSEMBLES)
        return [self.ensemble(name) for name in sorted(names) if not name.startswith(".")]


@dataclass(frozen=True)
class TrialDir(_Folder):
    """Paths of one trial, trained/<experiment>/<trial>/."""

    config = _In("config.yaml")
    model = _In("model.safetensors")
    classifier = _In("classifier.skops")
    """A head that is a classifier of scikit-learn, in skops' format."""
    adapter = _In("adapter")
    text_adapter = _In("text_adapter")
    checkpoint = _In("checkpoint")
    resume_state = _In("checkpoint/state.pt")
    attempts = _In("attempts.json")
    """What the attempts at training have cost so far; removed when it is done, and has them in its record."""
    metrics = _In("metrics.jsonl")
    trained = _In("trained.json")
    """Written last by training: the record that the model beside it is complete."""
    validation = _In("validation.parquet")
    """What training says of the validation groups, for an ensemble to calibrate itself on."""
    failure = _In("failure.json")
    """Why the last attempt failed; removed by the next one."""
    lease = _In("train.lease")
    interpolation = _In("interpolation.json")
    """Figures between the released model and this one, and a picture of them."""
    frontier = _In("interpolation.svg")
    explained = _In("explained")
    """Where in images its predictions come from: pictures, and their numbers."""
    predictions = _In("predictions.parquet")
    groups = _In("groups.parquet")
    results = _In("results.json")
    provenance = _In("provenance.json")
    card = _In("README.md")


@dataclass(frozen=True)
class ArchiveDir(_Folder):
    """Paths of archived images, features/archives/<data>/."""

    record = _In("archive.json")
    content = _In("images.bin")
    index = _In("index.parquet")


def archives_root(config: Config) -> Path:
    return features_root(config) / "archives"


def archive_dir(config: Config, name: str) -> ArchiveDir:
    return ArchiveDir(archives_root(config) / name)


def store_dir(config: Config, key: str) -> StoreDir:
    return StoreDir(features_root(config) / key)


def experiment_dir(config: Config) -> ExperimentDir:
    return ExperimentDir(trained_root(config) / config.experiment)


def folder_name(value: Any) -> str:
    """A name that a folder within another can have. Raises ValueError for what is none, as a damaged record may hold it."""
    if not isinstance(value, str) or value in ("", ".", "..") or {"/", "\0"} & set(value) or len(value.encode()) > LONGEST_NAME:
        raise ValueError(f"{shorten(repr(value), 80)} is no name of a folder.")
    return value


def folders_in(path: Path) -> set[str]:
    """Names of the folders in a folder; none if that is not there."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
        return {entry.name for entry in entries if entry.is_dir()}
    return set()


def all_experiments(trained: Path | None = None) -> list[ExperimentDir]:
    """Every experiment under `trained` (default: the root's), by name."""
    folder = trained.resolve() if trained else trained_root()
    found = {p.parent for p in folder.glob("*/submissions")} | {p.parent.parent for p in folder.glob("*/*/config.yaml")}
    return [ExperimentDir(path) for path in sorted(found)]
