"""The one owner of every path under features/ and trained/, and of how files come into being there.

Files are written under a temporary name in their own folder, synced, and renamed: a reader sees the old file or the new
one, never a part of either, whatever is killed when. So are folders whose files belong together. This module loads no torch.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.trial import Config
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

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
        """The log of one trial that is not that of a Slurm task: of a packed one, or of a stage on this machine."""
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


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in `path`'s folder (made if missing); on success it is synced and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _open_to_others([temporary])
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(
    path: Path, replace: bool = False, to_sync: Callable[[Path], bool] = lambda _: True
) -> Iterator[Path]:
    """A new folder beside `path` (whose parents are made); on success it is synced and renamed to `path`, else removed.

    `to_sync` chooses the files that are synced. What is at `path` already is kept, with an OSError, unless it is an empty
    folder, or `replace` is set: then it goes once the new folder is ready.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        _open_to_others(temporary.rglob("*"))
        for file in (*filter(to_sync, temporary.rglob("*")), temporary):
            sync(file)
        if replace:
            _replace_folder(path, temporary)
        else:
            os.rename(temporary, path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(path: Path, new: Path) -> None:
    """Rename `new` to `path`; the old folder steps aside, comes back if that fails, and is deleted last.

    No system call does this in one step everywhere: who is killed between two renames leaves nothing at `path`, never a
    mixture of both.
    """
    old = _temporary(path)
    with suppress(FileNotFoundError):
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` have left under temporary names; nobody else may be writing it now."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _open_to_others(files: Iterable[Path]) -> None:
    """Give private files the mode of ordinary ones: safetensors writes 0600, which a lab's other members cannot read.

    What is ordinary here (umask, the folder's default ACL) a new file shows: os.umask tells it only by changing it, for
    all threads.
    """
    private = [file for file in files if stat.S_IMODE(mode := file.lstat().st_mode) & 0o077 == 0 and stat.S_ISREG(mode)]
    if not private:
        return
    probe = _temporary(private[0])
    try:
        probe.touch()
        ordinary = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for file in private:
        file.chmod(ordinary)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically; NaN and infinity are refused because they are not JSON."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_table(path: Path, table: DataFrame) -> None:
    """Write a table without its index as Parquet, atomically."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically. Raises OSError naming it, where the library's own error is none."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(errno.EIO, f"could not be written: {error}", str(path)) from error


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
