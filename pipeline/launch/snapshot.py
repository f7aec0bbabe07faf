"""The code that ran is the code that was submitted: a copy of the package, which a submission's jobs run. Loads no torch.

Snapshots lie under the experiment by the hash of their files, so that submissions of the same code share one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.layout import PROJECT, ExperimentDir, atomic_folder, write_json
from pipeline.provenance import CODE_RECORD, code_version


def take_snapshot(experiment: ExperimentDir) -> Path:
    """The folder of the snapshot of the running code, made if it is not there."""
    files = {str(path.relative_to(PROJECT)): path.read_bytes() for path in _sources()}
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
        write_json(temporary / CODE_RECORD, code_version())
