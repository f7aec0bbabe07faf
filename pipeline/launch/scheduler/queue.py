"""What Slurm says of its queue and its limits: one call each, never repeated while anything waits. Loads no torch."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.evaluation import Evaluate
from pipeline.config.identity import plain, without_later
from pipeline.disk.layout import ExperimentDir
from pipeline.errors import WorkError
from pipeline.experiments.reading import Trial
from pipeline.experiments.trees import Tree
from pipeline.launch.manifest.job_names import Parts

MAX_ARRAY_SIZE = 1001
"""Slurm's default, where it cannot be asked."""
TIMEOUT = 60
STUCK = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class JobTask:
    """A job task of mine, or a job without an array, that waits or runs."""

    name: str
    array: str
    """Id of the job, or of the array."""
    index: int | None
    state: str
    reason: str

    @property
    def id(self) -> str:
        return self.array if self.index is None else f"{self.array}_{self.index}"

    @property
    def stuck(self) -> bool:
        """Whether it will never begin, because what it depends on has failed."""
        return self.reason == STUCK


@dataclass(frozen=True)
class Queued:
    """What waits or runs of a trial: stage, job (`41_3`) and Slurm's word for its state; `evaluate` is how it evaluates."""

    name: str
    evaluate: Tree
    stage: str
    job: str
    state: str

    def will_do(self, trial: Trial) -> bool:
        """Whether it ends with the results asked for: the name tells the model, not how that is evaluated."""
        return self.name == trial.name and self.evaluate == plain(trial.config.evaluate)


def queued_trials(parts: Parts, job_tasks: Sequence[JobTask]) -> dict[str, Queued]:
    """Trials of an experiment whose training or evaluation waits or runs, by name: from job names, indices and manifests.

    Jobs that are stuck do not count.
    """
    found: dict[str, Queued] = {}
    for job_task in job_tasks:
        part = None if job_task.stuck else parts.of(job_task.name, job_task.array, job_task.index)
        if part and part.stage in ("train", "evaluate"):
            for entry in part.entries():
                if part.stage == "train" or entry.name not in found:  # its evaluation waits behind it
                    evaluate = without_later(part.manifest.section(entry, "evaluate"), [Evaluate])
                    found[entry.name] = Queued(entry.name, evaluate, part.stage, job_task.id, job_task.state.lower())
    return found


def my_job_tasks() -> list[JobTask]:
    """Each of my job tasks that waits or runs; what completes has ended. None where there is no Slurm.

    Raises WorkError if it does not answer.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%j|%F|%K|%T|%r"]
    try:
        lines = [fields for line in ask(command).splitlines() if len(fields := line.strip().split("|")) == 5]
    except FileNotFoundError:
        return []
    return [
        JobTask(name, job, int(index) if index.isdecimal() else None, state, reason)
        for name, job, index, state, reason in lines
        if state != "COMPLETING"
    ]


def max_array_size() -> int:
    """How many job tasks an array may have here: their indices count from 0, and this is above the highest."""
    try:
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask(["scontrol", "show", "config"]), re.M)
    except (FileNotFoundError, WorkError):
        found = None
    return max(1, int(found[1])) if found else MAX_ARRAY_SIZE


def ask(command: Sequence[str], told: Mapping[str, str] | None = None, seconds: float = TIMEOUT) -> str:
    """What a command of Slurm prints; `told` stands in its environment too.

    Raises FileNotFoundError if there is none, WorkError if it fails.
    """
    environ = outside_environment() | dict(told or {})
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds, env=environ)
    except subprocess.TimeoutExpired as error:
        raise WorkError(f"{command[0]} did not answer within {seconds} s") from error
    if done.returncode != 0:
        raise WorkError(f"{command[0]} failed: {' '.join(done.stderr.split())}")
    return done.stdout


def outside_environment() -> dict[str, str]:
    """The environment without the variables of a job that we may be in, and without those that Slurm's commands read.

    A nested sbatch would inherit the job's limits; SQUEUE_FORMAT and the like would change what is read here. Which cluster is
    meant, a person says.
    """
    prefixes = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_", "SRUN_")
    kept = {"SLURM_CONF"} if is_in_job() else {"SLURM_CONF", "SLURM_CLUSTERS"}
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(prefixes)}


def is_in_job() -> bool:
    """Whether this process is in an allocation of Slurm's, which has set variables of its own."""
    return "SLURM_JOB_ID" in os.environ


def own_settings() -> dict[str, str]:
    """What a person has set for sbatch in the shell, `SBATCH_ACCOUNT` and the like; nothing in a job, which inherits its own."""
    return {} if is_in_job() else {name: value for name, value in os.environ.items() if name.startswith("SBATCH_")}


def find_job(name: str) -> tuple[str, set[str]] | None:
    """A job or array of mine with this name that still waits or runs: its id and the indices of its job tasks ("" if none).

    One that has ended, or was cancelled because its training failed, does not count: nothing will come of it.
    """
    command = ["squeue", "--me", "--noheader", "--array", f"--name={name}", "--format=%F %K"]
    try:
        job_tasks = [line.split() for line in ask(command).splitlines() if line.strip()]
    except (OSError, WorkError) as error:
        raise WorkError(f"squeue cannot be called on this node: {error}") from error
    return (job_tasks[-1][0], {index for job, index in job_tasks if job == job_tasks[-1][0]}) if job_tasks else None


def is_queued(job: str) -> bool:
    """Whether a job or array still waits or runs. A squeue that does not answer says nothing: then it is taken to."""
    try:
        return bool(ask(["squeue", "--noheader", f"--jobs={job}", "--format=%T"]).strip())
    except (OSError, WorkError) as error:
        return "Invalid job id" not in str(error)


def cancel_stuck(experiment: ExperimentDir) -> list[str]:
    """Cancel the experiment's jobs that will never begin, because what they depend on has failed; their ids.

    (Jobs are queued with --kill-on-invalid-dep; some sites overrule it, and Slurm itself can miss one.)
    """
    parts = Parts(experiment)
    stuck = [task.id for task in my_job_tasks() if task.stuck and parts.of(task.name, task.array, task.index)]
    cancel(stuck)
    return stuck


def cancel(ids: Sequence[str]) -> None:
    """scancel jobs or job tasks, if there are any. Raises WorkError if Slurm refuses."""
    try:
        for begin in range(0, len(ids), 500):  # a command line has its limits
            ask(["scancel", *ids[begin : begin + 500]])
    except FileNotFoundError:
        raise WorkError("there is no scancel here: cancel on the cluster's login node") from None
