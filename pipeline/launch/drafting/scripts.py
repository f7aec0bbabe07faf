"""The sbatch scripts of jobs/, copied to be edited. Loads no torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.disk.layout import SHIPPED
from pipeline.disk.writing import atomic_path
from pipeline.errors import UserError


def copy_scripts(folder: Path) -> list[str]:
    """Copies those that are not there; what is to be said. Raises UserError for what is no folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name a folder for the job scripts")
    scripts = sorted((SHIPPED / "jobs").glob("*.sh"))
    kept = [script.name for script in scripts if (folder / script.name).exists()]
    new = [script for script in scripts if script.name not in kept]
    for script in new:
        with atomic_path(folder / script.name) as temporary:
            shutil.copyfile(script, temporary)
    lines = [f"wrote {folder / script.name}" for script in new]
    return lines + ([f"left as they are in {folder}: {', '.join(kept)}"] if kept else [])
