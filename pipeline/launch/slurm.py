"""Talking to Slurm: through submitit for a whole submission, through sbatch for a job's own dependent evaluation.

Loads no torch.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor

from pipeline.config import Job
from pipeline.errors import WorkError
from pipeline.experiment import Experiment
from pipeline.launch import jobs
from pipeline.launch.manifest import Manifest
from pipeline.layout import PROJECT
from pipeline.lease import Lease

WARNING_SECONDS = 120
LEASE_SECONDS = 60
OFFLINE = 'export HF_HUB_OFFLINE="${HF_HUB_OFFLINE:-1}"  # nodes have no internet: use what `carabid fetch` brought'
Entry = Callable[[str, int], None]


@dataclass(frozen=True)
class Stage:
    """One job or array of the chain: `indices` of `entry`, after `dependency` (afterok, aftercorr, afterany) on `after`."""

    name: str
    entry: Entry
    n: int
    dependency: str = ""
    after: str = ""


def chain(manifest: Manifest, extract: bool = True) -> list[Stage]:
    """Extract → train → evaluate (each after its own training) → collect (whatever became of the others)."""
    n = len(manifest.trials)
    # afterany: features that could not be made fail the trials that need them (`jobs.extract`), and no others.
    train_after = {"dependency": "afterany", "after": "extract"} if extract else {}
    # Between two plain jobs Slurm has nothing to correspond: a grid of one depends on its training as a whole.
    corresponding = "aftercorr" if n > 1 else "afterok"
    stages = [Stage("extract", jobs.extract, len(manifest.extractions))] if extract else []
    return [
        *stages,
        Stage("train", jobs.train, n, **train_after),
        Stage("evaluate", jobs.evaluate, n, corresponding, "train"),
        Stage("collect", jobs.collect, 1, "afterany", "evaluate"),
    ]


def submit(manifest: Manifest, stages: Sequence[Stage]) -> dict[str, str]:
    """Queue the chain; returns stage → Slurm job id."""
    ids: dict[str, str] = {}
    with scrubbed_environment():
        for stage in stages:
            ids[stage.name] = _queue(manifest, stage, ids)
    return ids


def scripts(manifest: Manifest, stages: Sequence[Stage]) -> Iterator[tuple[str, str]]:
    """Stage → the sbatch script that `submit` would queue; dependencies show the stage's name where its id will stand."""
    for stage in stages:
        executor = _executor(manifest, stage, {name: f"<{name}>" for name in ("extract", "train", "evaluate")})
        if stage.n > 1:
            executor.parameters["map_count"] = stage.n
        yield stage.name, executor._make_submission_file_text(executor._submitit_command_str, "dry-run")


def job_name(manifest: Manifest, stage: str) -> str:
    """Unique and readable: experiment, submission, stage."""
    return f"carabid-{manifest.experiment.path.name}-{manifest.number}-{stage}"


@contextmanager
def scrubbed_environment() -> Iterator[None]:
    """Without the SLURM_* and SBATCH_* variables of a job that we may be in: a nested sbatch would inherit its limits."""
    inherited = {k: v for k, v in os.environ.items() if k.startswith(("SLURM_", "SBATCH_")) and k != "SLURM_CONF"}
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)


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


def own_job() -> str | None:
    """Id of the Slurm job or array that this process is part of."""
    return os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")


def queue_evaluation(experiment: Experiment, arguments: Sequence[str]) -> str:
    """From inside a training job: queue jobs/evaluate.sh for the whole job or array, once; returns its job id.

    Each task of the evaluation's array waits for the same task of the training's (aftercorr). A task that comes later,
    or again after a requeue, finds the evaluation by its name; tasks that come together take turns. Raises WorkError
    where this node may not call sbatch.
    """
    job = own_job()
    if job is None:
        raise WorkError("there is no Slurm job here whose evaluation could wait for it")
    name = f"carabid-evaluate-{job}"
    script = str(PROJECT / "jobs" / "evaluate.sh")
    with Lease(experiment.dir.evaluation_lease(job), LEASE_SECONDS).hold():
        found = find_job(name)
        if found and found[1] & {os.environ.get("SLURM_ARRAY_TASK_ID", "N/A"), "N/A"}:
            return found[0]
        return _sbatch([*_evaluation_options(job, name), script, *arguments])


def _evaluation_options(job: str, name: str) -> list[str]:
    options = [f"--job-name={name}", "--kill-on-invalid-dep=yes", *_like_this_job()]
    if "SLURM_ARRAY_JOB_ID" not in os.environ:
        return [*options, f"--dependency=afterok:{job}"]
    low, high, step = (os.environ[f"SLURM_ARRAY_TASK_{part}"] for part in ("MIN", "MAX", "STEP"))
    return [*options, f"--dependency=aftercorr:{job}", f"--array={low}-{high}:{step}"]


def _like_this_job() -> list[str]:
    """What this job was given, as options: a command line's `--partition` or `--gpus-per-node=0` holds for both."""
    given = {"partition": "JOB_PARTITION", "account": "JOB_ACCOUNT", "qos": "JOB_QOS"}
    options = [
        f"--{option}={os.environ[f'SLURM_{name}']}" for option, name in given.items() if os.environ.get(f"SLURM_{name}")
    ]
    return [*options, f"--gpus-per-node={os.environ.get('SLURM_GPUS_ON_NODE', '0')}"]


def _sbatch(arguments: Sequence[str]) -> str:
    with scrubbed_environment():
        try:
            done = subprocess.run(["sbatch", "--parsable", *arguments], capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WorkError(f"sbatch cannot be called on this node: {error}") from error
    if done.returncode != 0:
        raise WorkError(f"sbatch refused on this node: {done.stderr.strip()}")
    return done.stdout.strip().partition(";")[0]


class _Executor(SlurmExecutor):  # type: ignore[misc]
    @classmethod
    def affinity(cls) -> int:
        """submitit refuses to begin without srun; a dry run needs none, and a real one says what sbatch says."""
        return 2


def _queue(manifest: Manifest, stage: Stage, ids: dict[str, str]) -> str:
    executor = _executor(manifest, stage, ids)
    path = str(manifest.path)
    try:
        queued = executor.map_array(stage.entry, [path] * stage.n, range(stage.n))
    except (FailedJobError, OSError) as error:
        if ids:
            subprocess.run(["scancel", *ids.values()], check=False, timeout=60)
        before = f" Jobs {', '.join(ids.values())}, queued before it, are cancelled." if ids else ""
        raise WorkError(f"sbatch did not take the {stage.name} job: {str(error).strip()}.{before}") from error
    return str(queued[0].job_id).partition("_")[0]


def _executor(manifest: Manifest, stage: Stage, ids: dict[str, str]) -> SlurmExecutor:
    executor = _Executor(folder=manifest.experiment.stage_logs(manifest.number, stage.name))
    resources = manifest.trials[0].config.resources
    job: Job = getattr(resources, stage.name)
    executor.update_parameters(
        job_name=job_name(manifest, stage.name),
        signal_delay_s=WARNING_SECONDS,
        stderr_to_stdout=True,
        array_parallelism=stage.n,
        wckey=None,  # submitit's own; sites that check such keys would refuse it
        srun_args=[f"--cpus-per-task={job.cpus_per_task}"],  # since Slurm 22.05 srun does not inherit it
        setup=[f"cd {shlex.quote(str(PROJECT))}", OFFLINE],
        additional_parameters=_more_options(stage, ids),
        **{key: value for key, value in job.model_dump().items() if value not in (None, 0) and key != "mem"},
    )
    executor.parameters["mem"] = job.mem
    return executor


def _more_options(stage: Stage, ids: dict[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {"requeue": True, "export": "ALL"}
    if stage.after:
        options |= {"dependency": f"{stage.dependency}:{ids[stage.after]}", "kill-on-invalid-dep": "yes"}
    return options
