"""The one owner of every path under features/ and trained/. Loads no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.trial import Config
from pipeline.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]


def root() -> Path:
    """Where features/ and trained/ lie: `$CARABID_ROOT`, else the project's folder; never the current folder by accident.

    Raises UserError if it is relative: a job that starts in another folder would look elsewhere.
    """
    chosen = os.environ.get("CARABID_ROOT")
    if not chosen:
        return PROJECT
    path = Path(os.path.expanduser(chosen))  # (Path's own raises for a user that does not exist)
    if not path.is_absolute():
        raise UserError(f"CARABID_ROOT must be an absolute path (it is {chosen}): jobs start in other folders.")
    return path.resolve()


def features_root(config: Config) -> Path:
    """The feature stores' folder."""
    return root() / (Path(config.paths.features).expanduser() if config.paths.features else "features")


def record_path(config: Config, kind: str, name: str) -> Path:
    """A record of content hashes, features/records/<kind>-<name>.json."""
    return features_root(config) / "records" / f"{kind}-{name}.json"


def trained_root(config: Config | None = None) -> Path:
    """The experiments' folder."""
    chosen = config.paths.trained if config else None
    return (root() / (Path(chosen).expanduser() if chosen else "trained")).resolve()


@dataclass(frozen=True)
class StoreDir:
    """Paths of one feature store, features/<key>/."""

    path: Path

    @property
    def manifest(self) -> Path:
        return self.path / "manifest.json"

    @property
    def index(self) -> Path:
        return self.path / "index.parquet"

    @property
    def lease(self) -> Path:
        return self.path / "extract.lease"

    def shard(self, number: int, n_shards: int) -> Path:
        return self.path / f"shard-{number:05d}-of-{n_shards:05d}.safetensors"

    def shard_record(self, number: int, n_shards: int) -> Path:
        return self.path / f"shard-{number:05d}-of-{n_shards:05d}.json"


@dataclass(frozen=True)
class ExperimentDir:
    """Paths of one experiment, trained/<experiment>/."""

    path: Path

    @property
    def record(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def submissions(self) -> Path:
        return self.path / "submissions"

    def submission(self, name: str | int) -> Path:
        """The record of a submission: its number, or `job-<id>` for one made by hand."""
        return self.submissions / f"{name}.json"

    def evaluation_lease(self, job: str) -> Path:
        """Held while the evaluation of a job that was submitted by hand is queued."""
        return self.submissions / f"evaluation-of-{job}.lease"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def stage_logs(self, submission: str, stage: str) -> Path:
        return self.logs / f"{submission}-{stage}"

    def own_log(self, submission: str, stage: str, index: int) -> Path:
        """The log of one trial that is not that of its job task: of a packed one, or of a stage on this machine."""
        return self.stage_logs(submission, stage) / f"{index}.log"

    @property
    def submitting(self) -> Path:
        """Lease of who is looking what to submit, and queues it."""
        return self.path / "submitting.lease"

    def code(self, name: str) -> Path:
        """A snapshot of the code, by its hash: what the jobs of a submission run."""
        return self.path / "code" / name

    @property
    def results_csv(self) -> Path:
        return self.path / "results.csv"

    @property
    def comparison_json(self) -> Path:
        """Methods on the same images; there if trials of several have results."""
        return self.path / "comparison.json"

    @property
    def comparison_md(self) -> Path:
        return self.path / "comparison.md"

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
        return TrialDir(self.path / "ensembles" / name)

    def ensembles(self) -> list[TrialDir]:
        """Every ensemble's folder there is, by name; not those that are just being written."""
        names = folders_in(self.path / "ensembles")
        return [self.ensemble(name) for name in sorted(names) if not name.startswith(".")]


@dataclass(frozen=True)
class TrialDir:
    """Paths of one trial, trained/<experiment>/<trial>/."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def classifier(self) -> Path:
        """A head that is a classifier of scikit-learn, in skops' format."""
        return self.path / "classifier.skops"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def resume_state(self) -> Path:
        return self.checkpoint / "state.pt"

    @property
    def attempts(self) -> Path:
        """What the attempts at training have cost so far; removed when it is done, and has them in its record."""
        return self.path / "attempts.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def trained(self) -> Path:
        """Written last by training: the record that the model beside it is complete."""
        return self.path / "trained.json"

    @property
    def validation(self) -> Path:
        """What training says of the validation groups, for an ensemble to calibrate itself on."""
        return self.path / "validation.parquet"

    @property
    def failure(self) -> Path:
        """Why the last attempt failed; removed by the next one."""
        return self.path / "failure.json"

    @property
    def lease(self) -> Path:
        return self.path / "train.lease"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.parquet"

    @property
    def groups(self) -> Path:
        return self.path / "groups.parquet"

    @property
    def results(self) -> Path:
        return self.path / "results.json"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance.json"

    @property
    def card(self) -> Path:
        return self.path / "README.md"


def store_dir(config: Config, key: str) -> StoreDir:
    return StoreDir(features_root(config) / key)


def experiment_dir(config: Config) -> ExperimentDir:
    return ExperimentDir(trained_root(config) / config.experiment)


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
