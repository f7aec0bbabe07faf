"""What a trained model is made of, by hash: noted in trained.json, checked wherever a file of it is read. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.disk.layout import TrialDir
from pipeline.disk.reading import Damaged, reading, sha256_of_file
from pipeline.disk.writing import read_hashed

AGAIN = "`carabid train` with this trial's configuration makes it again"


def hash_files(trial: TrialDir) -> dict[str, str]:
    """sha256 of each file that a trained model is made of, and of what calibrates ensembles and exports, by its path in the
    trial's folder."""
    adapters = (path for folder in (trial.adapter, trial.text_adapter) for path in sorted(folder.glob("adapter_*")))
    files = (trial.model, trial.classifier, trial.validation, *adapters)
    return {path.relative_to(trial.path).as_posix(): sha256_of_file(path) for path in files if path.is_file()}


def read_record(trial: TrialDir, again: str = AGAIN) -> tuple[dict[str, Any], dict[str, str]]:
    """trained.json, once it is known to be what was written, and the hashes that it holds. Raises OSError or Damaged."""
    with reading(trial.trained, again):
        record = read_hashed(trial.trained)
        return {**record, "config_hash": record["config_hash"]}, dict(record.get("content", {}))


def check_files(trial: TrialDir, hashes: Mapping[str, str], only: Iterable[Path] | None = None, again: str = AGAIN) -> None:
    """Damaged, if one of these files (by default of all) is not what it was. One without a hash is older than hashes of it."""
    wanted = {path.relative_to(trial.path).as_posix() for path in only} if only is not None else set(hashes)
    for name in sorted(wanted & set(hashes)):
        path = trial.path / name
        if not path.is_file():
            raise Damaged(f"damaged: {path}: it is gone. {again}")
        if sha256_of_file(path) != hashes[name]:
            raise Damaged(f"damaged: {path}: its content is not what was written. {again}")
