"""Where a result comes from: code, versions, machine, Slurm job, and how long it took. Loads no torch by itself."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline import __version__
from pipeline.layout import PROJECT
from pipeline.secrets import hide

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "peft",
    "datasets",
    "scikit-learn",
    "numpy",
    "submitit",
)
SLURM_FIELDS = (
    "JOB_ID",
    "ARRAY_JOB_ID",
    "ARRAY_TASK_ID",
    "RESTART_COUNT",
    "JOB_PARTITION",
    "JOB_NAME",
    "CPUS_PER_TASK",
    "CLUSTER_NAME",
)
MAX_DIFF = 100_000
CODE_RECORD = "code.json"
"""Beside a snapshot's package: where its code came from."""


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(**more: Any) -> dict[str, Any]:
    """Everything known about this process, and `more` beside it, as JSON values."""
    return {
        "written": now(),
        "carabid": __version__,
        "code": code_version(),
        "argv": [hide(argument) for argument in sys.argv],
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "device": _device(),
        "slurm": {name.lower(): os.environ[f"SLURM_{name}"] for name in SLURM_FIELDS if f"SLURM_{name}" in os.environ},
        **more,
    }


def code_version() -> dict[str, Any]:
    """Commit and uncommitted changes of the code that runs: as a snapshot recorded them, else of the git checkout.

    A site edits jobs/setup.sh: a token or a proxy's password that is put there must not go from here into results.
    """
    with suppress(OSError):
        recorded: dict[str, Any] = json.loads((PROJECT / CODE_RECORD).read_text())
        return recorded
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    diff = _git("diff", "HEAD", "--", "pipeline", "configs", "jobs") or ""
    return {"commit": commit.strip(), "dirty": bool(diff), "diff": hide(diff)[:MAX_DIFF]}


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def installed_version(package: str) -> str | None:
    """A package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _device() -> dict[str, Any]:
    """GPU and threads as torch sees them; only where torch is loaded already."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    cuda = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "threads": torch.get_num_threads(),
        "cpu": platform.machine(),
    }
