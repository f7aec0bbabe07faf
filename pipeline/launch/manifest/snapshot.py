"""The code that ran is the code that was submitted: a copy of the package, which a submission's jobs run. Loads no torch.

Snapshots lie under the experiment by the hash of their files and of where these came from (commit, changes), so that
submissions of the same code share one, and each says rightly which commit it is of.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pipeline.disk.layout import PROJECT, ExperimentDir
from pipeline.disk.provenance import CODE_RECORD, code_version
from pipeline.disk.writing import atomic_folder


def take_snapshot(experiment: ExperimentDir) -> Path:
    """The folder of the snapshot of the running code, made if it is not there."""
    record = (json.dumps(code_version(), indent=1) + "\n").encode()
    files = {CODE_RECORD: record} | {str(path.relative_to(PROJECT)): path.read_bytes() for path in _sources()}
    folder = experiment.code(_hash(files))
    if not folder.exists():
        try:
            _write(folder, files)
        except OSError:
            if not folder.exists():  # (another submission may have made it meanwhile)
                raise
    return folder


def _sources() -> list[Path]:
    return sorted((PROJECT / "pipeline").rglob("*.py"))


def _hash(files: dict[str, bytes]) -> str:
    parts = [f"{name} {hashlib.sha256(content).hexdigest()}" for name, content in files.items()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _write(folder: Path, files: dict[str, bytes]) -> None:
    with atomic_folder(folder) as temporary:
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
