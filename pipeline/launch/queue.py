"""What Slurm says of its queue and its limits: one call each, never repeated while anything waits. Loads no torch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import WorkError
from pipeline.launch.manifest import Manifest, load_manifest
from pipeline.layout import ExperimentDir

MAX_ARRAY_SIZE = 1001
"""Slurm's default, where it cannot be asked."""
TIMEOUT = 60


@dataclass(frozen=True)
class Queued:
    """A task of a submission that waits or runs: its stage, its job (`41_3`), and Slurm's word for its state."""

    stage: str
    job: str
    state: str


def job_name(manifest: Manifest, stage: str) -> str:
    """Unique and readable: experiment, submission, stage (and chunk, from the second on)."""
    return f"carabid-{manifest.experiment.path.name}-{manifest.number}-{stage}"


def queued_trials(experiment: ExperimentDir) -> dict[str, Queued]:
    """Trials of an experiment whose training or evaluation waits or runs, by name: from job names, indices and manifests.

    Empty where there is no Slurm. Raises WorkError if it does not answer.
    """
    pattern = re.compile(rf"carabid-{re.escape(experiment.path.name)}-(\d+)-(train|evaluate)(?:-(\d+))?")
    manifests: dict[str, Manifest] = {}
    found: dict[str, Queued] = {}
    for name, job, index, state in _my_tasks():
        if (match := pattern.fullmatch(name)) and (path := experiment.submission(match[1])).exists():
            manifest = manifests.setdefault(match[1], load_manifest(path))
            number = (int(match[3] or 1) - 1) * manifest.array_size + (int(index) if index.isdecimal() else 0)
            where = f"{job}_{index}" if index.isdecimal() else job
            trial = manifest.trials[number].name
            if match[2] == "train" or trial not in found:  # its evaluation waits behind it
                found[trial] = Queued(match[2], where, state.lower())
    return found


def _my_tasks() -> list[list[str]]:
    """Name, job id, index in its array (or N/A) and state of each of my tasks that waits or runs."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%j|%F|%K|%T"]
    try:
        done = _ask(command)
    except FileNotFoundError:
        return []
    return [fields for line in done.splitlines() if len(fields := line.strip().split("|")) == 4]


def max_array_size() -> int:
    """How many tasks an array may have here: their indices count from 0, and this is above the highest."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]), re.M)
    except (FileNotFoundError, WorkError):
        found = None
    return int(found[1]) if found else MAX_ARRAY_SIZE


def _ask(command: Sequence[str]) -> str:
    """What a command of Slurm prints. Raises FileNotFoundError if there is none, WorkError if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise WorkError(f"{command[0]} did not answer within {TIMEOUT} s") from error
    if done.returncode != 0:
        raise WorkError(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout


def find_job(name: str) -> tuple[str, set[str]] | None:
    """A job or array of mine with this name that still waits or runs: its id and the indices of its tasks ("" if none).

    One that has ended, or was cancelled because its training failed, does not count: nothing will come of it.
    """
    command = ["squeue", "--me", "--noheader", "--array", f"--name={name}", "--format=%F %K"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkError(f"squeue cannot be called on this node: {error}") from error
    if found.returncode != 0:
        raise WorkError(f"squeue failed on this node: {found.stderr.strip()}")
    tasks = [line.split() for line in found.stdout.splitlines() if line.strip()]
    return (tasks[-1][0], {index for job, index in tasks if job == tasks[-1][0]}) if tasks else None


def is_queued(job: str) -> bool:
    """Whether a job or array still waits or runs. A squeue that does not answer says nothing: then it is taken to."""
    found = subprocess.run(
        ["squeue", "--noheader", f"--jobs={job}", "--format=%T"], capture_output=True, text=True, timeout=60
    )
    gone = "Invalid job id" in found.stderr
    return not gone and (found.returncode != 0 or bool(found.stdout.strip()))
