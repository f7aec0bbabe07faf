"""Where a result comes from: code, versions, machine and Slurm job. Loads no torch by itself.

Of the environment only what is named here is kept, and no token (`secrets.hide`).
"""

import hashlib
import json
import os
import platform
import resource
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline import __version__
from pipeline.disk.layout import PROJECT
from pipeline.disk.secrets import hidden, hide

PACKAGES = (
    "torch", "torchvision", "open_clip_torch", "transformers", "timm", "peft", "datasets", "huggingface_hub", "safetensors",
    "scikit-learn", "skops", "lightgbm", "scipy", "numpy", "pandas", "pyarrow", "pillow", "simplejpeg", "biopython",
    "submitit",
)  # fmt: skip
SLURM_FIELDS = (
    "JOB_ID", "ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT", "JOB_PARTITION", "JOB_NAME", "JOB_NODELIST",
    "CPUS_PER_TASK", "GPUS_ON_NODE", "CLUSTER_NAME", "MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU",
    "JOB_START_TIME", "JOB_END_TIME",
)  # fmt: skip
MAX_DIFF = 100_000
CODE = ("pipeline", "configs", "jobs")
SITE = ("jobs/", "configs/cluster/")
CODE_RECORD = "code.json"
"""Beside a snapshot's package: where its code came from."""


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(**more: Any) -> dict[str, Any]:
    """Everything known about this process, and `more` beside it, as JSON values."""
    known = {
        "written": now(),
        "carabid": __version__,
        "code": loaded_code(),
        "argv": sys.argv,
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "device": _device(),
        "peak_memory_gib": _peak_memory(),
        "slurm": {name.lower(): os.environ[f"SLURM_{name}"] for name in SLURM_FIELDS if f"SLURM_{name}" in os.environ},
        **more,
    }
    return dict(hidden(known))


def code_version() -> dict[str, Any]:
    """Commit and uncommitted changes of the code that runs: as a snapshot recorded them, else of the git checkout.

    Of what a site edits for itself (`SITE`), tokens and proxies among it, a hash of the content is kept and no text.
    """
    with suppress(OSError):
        return json.loads((PROJECT / CODE_RECORD).read_text())
    commit = _git("rev-parse", "HEAD")
    if commit is None or not _git("ls-files", "--", *CODE):  # none, or of something else: an environment may lie in one
        return {"commit": None, "dirty": None}
    diff = hide(_git("diff", "HEAD", "--", *CODE, *(f":(exclude){folder}" for folder in SITE)) or "")
    new = (_git("ls-files", "--others", "--exclude-standard", "--", *CODE) or "").splitlines()
    edited = [*new, *(_git("diff", "HEAD", "--name-only", "--", *CODE) or "").splitlines()]
    site = {"site_sha256": _site_hash()} if any(name.startswith(SITE) for name in edited) else {}
    return {"commit": commit.strip(), "dirty": bool(edited), "diff": diff[:MAX_DIFF], "new_files": hidden(new), **site}


@cache
def loaded_code() -> dict[str, Any]:
    """`code_version` when this was first called: what is edited later does not run in this process."""
    return code_version()


def job_id() -> str | None:
    """Id of the Slurm job that this process is part of: `41`, or `41_3` for a job task."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")


def _site_hash() -> str:
    """sha256 over names and content of the files under `SITE`."""
    found = hashlib.sha256()
    for path in sorted(path for folder in SITE for path in (PROJECT / folder).rglob("*") if path.is_file()):
        with suppress(OSError):  # one that may not be read is known by its name
            found.update(f"{path.relative_to(PROJECT)}\n".encode())
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _git(*arguments: str) -> str | None:
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "-C", str(PROJECT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, timeout=30).stdout
    return None


@cache
def installed_version(package: str) -> str | None:
    """A package's version; None if it is not installed. (To look it up takes milliseconds.)"""
    with suppress(PackageNotFoundError):
        return version(package)
    return None


def _device() -> dict[str, Any]:
    """The GPU that was computed on, and threads, as torch sees them; only where torch is loaded already."""
    if (torch := sys.modules.get("torch")) is None:
        return {}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_initialized() else None
    return {"gpu": gpu, "threads": torch.get_num_threads(), "cpu": platform.machine()}


def _peak_memory() -> dict[str, float]:
    """The most that this process has used until now, and torch on the GPU, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**30
    return {name: round(value, 3) for name, value in peak.items()}
