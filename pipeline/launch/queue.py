"""What Slurm says of its queue and its limits: one call each, never repeated while anything waits. Loads no torch."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

from pipeline.config import digest
from pipeline.errors import WorkError
from pipeline.experiment import Trial
from pipeline.launch.manifest import Manifest, load_manifest
from pipeline.layout import ExperimentDir

MAX_ARRAY_SIZE = 1001
"""Slurm's default, where it cannot be asked."""
TIMEOUT = 60


@dataclass(frozen=True)
class Queued:
    """A task of a submission that waits or runs: its trial, stage and job (`41_3`), and Slurm's word for its state."""

    trial: Trial
    stage: str
    job: str
    state: str

    def will_do(self, trial: Trial) -> bool:
        """Whether it ends with the results asked for: the name tells the model, not how that is evaluated."""
        return self.trial.name == trial.name and self.trial.config.evaluate == trial.config.evaluate


def job_name(manifest: Manifest, stage: str) -> str:
    """Readable, and of no other submission: experiment, number, place, stage (and chunk, from the second on)."""
    return f"{_prefix(manifest.experiment)}{manifest.number}-{stage}"


def _prefix(experiment: ExperimentDir) -> str:
    """Job names' beginning. The place is in it: another root or clone has experiments of the same names and numbers."""
    return f"carabid-{experiment.path.name}-{digest(str(experiment.path))[:6]}-"


def queued_trials(experiment: ExperimentDir) -> dict[str, Queued]:
    """Trials of an experiment whose training or evaluation waits or runs, by name: from job names, indices and manifests.

    Empty where there is no Slurm. Raises WorkError if it does not answer.
    """
    pattern = re.compile(rf"{re.escape(_prefix(experiment))}(\d+)-(train|evaluate)(?:-(\d+))?")
    manifest_of = cache(partial(_manifest, experiment))
    found: dict[str, Queued] = {}
    for name, job, index, state in _my_tasks():
        if (match := pattern.fullmatch(name)) and (manifest := manifest_of(match[1])):
            place = int(index) if index.isdecimal() else 0
            trial = manifest.trials[(int(match[3] or 1) - 1) * manifest.array_size + place]
            if match[2] == "train" or trial.name not in found:  # its evaluation waits behind it
                where = f"{job}_{index}" if index.isdecimal() else job
                found[trial.name] = Queued(trial, match[2], where, state.lower())
    return found


def _manifest(experiment: ExperimentDir, number: str) -> Manifest | None:
    """A submission's manifest; None if it is gone or cannot be read: its jobs will do nothing either."""
    try:
        return load_manifest(experiment.submission(number))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _my_tasks() -> list[list[str]]:
    """Name, job id, index in its array (or N/A) and state of each of my tasks that waits or runs; what ends has ended."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%j|%F|%K|%T"]
    try:
        done = _ask(command)
    except FileNotFoundError:
        return []
    tasks = [fields for line in done.splitlines() if len(fields := line.strip().split("|")) == 4]
    return [task for task in tasks if task[3] != "COMPLETING"]


def max_array_size() -> int:
    """How many tasks an array may have here: their indices count from 0, and this is above the highest."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]), re.M)
    except (FileNotFoundError, WorkError):
        found = None
    return max(1, int(found[1])) if found else MAX_ARRAY_SIZE


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
        tasks = [line.split() for line in _ask(command).splitlines() if line.strip()]
    except (OSError, WorkError) as error:
        raise WorkError(f"squeue cannot be called on this node: {error}") from error
    return (tasks[-1][0], {index for job, index in tasks if job == tasks[-1][0]}) if tasks else None


def is_queued(job: str) -> bool:
    """Whether a job or array still waits or runs. A squeue that does not answer says nothing: then it is taken to."""
    try:
        return bool(_ask(["squeue", "--noheader", f"--jobs={job}", "--format=%T"]).strip())
    except (OSError, WorkError) as error:
        return "Invalid job id" not in str(error)
