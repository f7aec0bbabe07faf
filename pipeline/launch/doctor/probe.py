"""A look at a compute node before anything is queued: a small job there writes what it sees into a file.

The job is the training's own script (partition, account, GPUs, modules, environment) with little time and memory, and
with this module for its command. It works in a folder of its own under trained/, which is removed afterwards.
`python -m pipeline.launch.doctor.probe REQUEST` is what runs on the node.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.amounts import format_memory, parse_memory
from pipeline.config.own import load_file
from pipeline.config.resources import MEMORY_KEYS, Job
from pipeline.config.trial import Config
from pipeline.data.dataset import known_signature
from pipeline.disk.layout import PROJECT, ExperimentDir, features_root
from pipeline.disk.provenance import PACKAGES, installed_version
from pipeline.disk.writing import read_json, write_bytes, write_json
from pipeline.errors import UserError, WorkError
from pipeline.features.hashes import weights_signature
from pipeline.features.memory import free_host_memory
from pipeline.features.staging import node_folder
from pipeline.launch.manifest.manifest import Manifest
from pipeline.launch.manifest.snapshot import take_snapshot
from pipeline.launch.scheduler.queue import cancel, my_job_tasks
from pipeline.launch.submitting import sbatch

TIME, MEMORY = "00:05:00", "8G"
POLL_SECONDS = 1.0
LOOKS = 5
"""How often a result is looked for once its job has ended: a network's disk may show it late."""
MODULE, RESULT = "pipeline.launch.doctor.probe", "seen.json"


@dataclass(frozen=True)
class Seen:
    """What this package finds where it runs."""

    host: str
    python: str
    versions: dict[str, str | None]
    device: str
    """What training would compute on; or else `device_error`."""
    device_error: str
    gpu_memory: int | None
    """Bytes of its GPU; None without one."""
    memory: int
    """Bytes of the machine that are free."""
    unwritable: str
    """Why the features' folder cannot be written to; empty if it can."""
    missing: list[str]
    """Which of data and weights are not seen from there."""
    stage: str
    """The folder that `paths.stage` means there; empty where features are not copied."""
    stage_error: str
    """Why nothing can be copied there; empty if it can."""
    stage_free: int
    temporary: str
    temporary_free: int
    time: float
    """By its own clock, at the end."""


class NotStarted(WorkError):
    """The job did not begin in the time that it was given."""


# ---------------------------------------------------------------- where the look is taken
def main(request: Path) -> None:
    """Look around, and write it beside the request."""
    values = read_json(request)
    if values["task"].endswith(".py"):
        load_file(values["task"])  # it may define kinds
    config = Config.model_validate(values)
    device, error, memory = _device(config.device)
    stage, stage_error = _stage(config)
    temporary = tempfile.gettempdir()
    seen = Seen(
        host=socket.gethostname(),
        python=platform.python_version(),
        versions={name: installed_version(name) for name in PACKAGES},
        device=device,
        device_error=error,
        gpu_memory=memory,
        memory=free_host_memory(),
        unwritable=try_folder(features_root(config)),
        missing=[
            *(["data"] if not known_signature(config.data) else []),
            *(["weights"] if not weights_signature(config.backbone) else []),
        ],
        stage=stage,
        stage_error=stage_error,
        stage_free=shutil.disk_usage(stage).free if stage and not stage_error else 0,
        temporary=temporary,
        temporary_free=shutil.disk_usage(temporary).free,
        time=time.time(),
    )
    write_json(request.with_name(RESULT), asdict(seen))


def try_folder(folder: Path) -> str:
    """Why a file cannot be written in this folder (made if missing) and read back; empty if it can."""
    path, content = folder / f".doctor-{uuid.uuid4().hex[:12]}", os.urandom(4096)
    try:
        write_bytes(path, content)
        return "" if path.read_bytes() == content else "what is read is not what was written"
    except OSError as error:
        return f"{error.strerror or error}"
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _stage(config: Config) -> tuple[str, str]:
    """The folder for copies of features, and why nothing can be written there; empty where there is none."""
    if config.paths.stage is None:
        return "", ""
    try:
        folder = node_folder(config.paths.stage)
    except UserError as error:
        return config.paths.stage, str(error)
    return str(folder), try_folder(folder)


def _device(wanted: str) -> tuple[str, str, int | None]:
    """What training would compute on, or why it cannot; and a GPU's memory."""
    try:
        import torch

        from pipeline.device import choose_device, device_name

        device = choose_device(wanted)
        torch.ones(8, device=device).sum().item()  # a GPU too old or too new for this torch is refused here
    except (ImportError, OSError, RuntimeError, UserError, WorkError) as error:
        return "", str(error).splitlines()[0], None
    return device_name(device), "", torch.cuda.mem_get_info()[1] if device.type == "cuda" else None


# ---------------------------------------------------------------- who asks for it
def look_here(config: Config, trained: Path) -> Seen:
    """What this machine is like. Raises WorkError if Python ends badly."""
    with _request(config, trained) as (_, request):
        command = [sys.executable, "-m", MODULE, str(request)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise WorkError(f"{' '.join(command[:3])} ended with status {done.returncode}: {sbatch.last_line(done.stderr)}")
        return Seen(**read_json(request.with_name(RESULT)))


def look_there(manifest: Manifest, trained: Path, patience: float) -> tuple[Seen, float]:
    """What a node of the training's is like, and when, by this machine's clock, its job was last seen at work.

    Raises NotStarted if no node was free in `patience` seconds, WorkError if the job came to nothing.
    """
    with _request(manifest.trial(0).config, trained) as (folder, request):
        small = _small(replace(manifest, path=folder.submission("probe"), code=take_snapshot(folder, [manifest.common["task"]])))
        stage = sbatch.Stage("train", "train", range(1))
        logs = small.experiment.stage_logs(small.number, stage.name)
        logs.mkdir(parents=True)
        job = sbatch.queue_module(small, stage, MODULE, request)
        try:
            at_work = _wait(job, patience)
        finally:
            with suppress(WorkError):
                cancel([job])
        return _read(request.with_name(RESULT), logs, job), at_work


@contextmanager
def _request(config: Config, trained: Path) -> Iterator[tuple[ExperimentDir, Path]]:
    folder = ExperimentDir(trained / f".doctor-{uuid.uuid4().hex[:8]}")
    request = folder.path / "request.json"
    try:
        write_json(request, config.model_dump(mode="json"))
        yield folder, request
    finally:
        shutil.rmtree(folder.path, ignore_errors=True)


def _small(manifest: Manifest) -> Manifest:
    """The same submission, whose training asks for little beside its GPUs."""
    job: Job = manifest.resources.train
    memory = min(job.memory or parse_memory(MEMORY), parse_memory(MEMORY))
    little = {**dict.fromkeys(MEMORY_KEYS), "cpus_per_task": 1, "mem": format_memory(memory), "time": TIME, "mail_type": None}
    resources = manifest.common["resources"]
    return replace(manifest, common={**manifest.common, "resources": {**resources, "train": {**resources["train"], **little}}})


def _wait(job: str, patience: float) -> float:
    """Until the job has ended; returns the time before it was last seen in the queue."""
    begun, at_work = time.monotonic(), time.time()
    while True:
        now = time.time()
        job_task = next((job_task for job_task in my_job_tasks() if job_task.array == job), None)
        if job_task is None:
            return at_work
        if job_task.state == "PENDING" and time.monotonic() - begun > patience:
            raise NotStarted(f"job {job} waited for more than {patience:g} s ({job_task.reason})")
        at_work = now
        time.sleep(POLL_SECONDS)


def _read(result: Path, logs: Path, job: str) -> Seen:
    for _ in range(LOOKS):
        with suppress(OSError, ValueError):
            os.listdir(result.parent)  # a network's disk asks its server again
            return Seen(**read_json(result))
        time.sleep(POLL_SECONDS)
    said = [sbatch.last_line(path.read_text(errors="replace")) for path in logs.glob("*.out")]
    if not said:
        raise WorkError(
            f"job {job} has ended, and nothing of it is seen in {result.parent.parent}: do nodes share that folder with this "
            "machine, and may they write there? Else set CARABID_ROOT (or `root` in the cluster profile, or paths.trained)"
        )
    raise WorkError(
        f"job {job} came to nothing; its log ends: {said[0] or '(empty)'}. Check `modules`, `environment` and `before` in the "
        "cluster profile"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
