"""Talking to Slurm: through submitit for a whole submission, through sbatch itself for what has no pickle. Loads no torch."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote

from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths
from submitit.slurm.slurm import SlurmExecutor

from pipeline import hub
from pipeline.amounts import parse_time, scale_memory
from pipeline.config.resources import MEMORY_KEYS, Job
from pipeline.disk.layout import features_root, root
from pipeline.errors import REQUEUE_STATUS, UserError, WorkError
from pipeline.experiments.cluster import gpu_option, python_command, setup_lines
from pipeline.launch.jobs import jobs
from pipeline.launch.manifest.job_names import chunk_names, job_name
from pipeline.launch.manifest.manifest import Manifest
from pipeline.launch.scheduler.queue import ask, find_job
from pipeline.launch.submitting import settings
from pipeline.signals import warning_seconds

PAUSES = (5.0, 20.0)
TRANSIENT = r"(?i)timed out|unable to contact|connect|temporarily|try again|too many requests|busy"
"""What sbatch says when it is not the request that is wrong."""
REQUEUE = [
    "status=$?",
    f'if [ "$status" -eq {REQUEUE_STATUS} ]; then  # out of time, with a checkpoint',
    '  scontrol requeue "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"',
    "fi",
    'exit "$status"',
    "",
]


@dataclass(frozen=True)
class Stage:
    """One job or array of the chain: `indices`, after `dependency` (afterok, aftercorr, afterany) on `after`.

    `kind` is the function of `jobs` that it runs; from the second chunk of a large array on, `name` has its number too.
    """

    name: str
    kind: str
    indices: range
    dependency: str = ""
    after: tuple[str, ...] = ()


def chain(manifest: Manifest, extract: bool = True) -> list[Stage]:
    """Extract → train → evaluate (each after its own training) → collect (whatever became of the others).

    Arrays longer than Slurm allows become several; what follows waits for all of them, an evaluation for its own.
    """
    extractions = _chunks(manifest, "extract", len(manifest.extractions) if extract else 0)
    trainings = [
        # afterany: features that could not be made fail the trials that need them (`jobs.extract`), and no others.
        replace(stage, dependency="afterany", after=tuple(e.name for e in extractions))
        for stage in _chunks(manifest, "train", len(manifest.job_tasks))
    ]
    evaluations = [
        # Between two plain jobs Slurm has nothing to correspond: a single trial depends on its training as a whole.
        replace(stage, dependency="aftercorr" if len(stage.indices) > 1 else "afterok", after=(training.name,))
        for stage, training in zip(_chunks(manifest, "evaluate", len(manifest.job_tasks)), trainings, strict=True)
    ]
    last = Stage("collect", "collect", range(1), "afterany", tuple(e.name for e in evaluations))
    return [*extractions, *trainings, *evaluations, last]


def _chunks(manifest: Manifest, kind: str, n: int) -> list[Stage]:
    size = manifest.array_size
    parts = [range(begin, min(begin + size, n)) for begin in range(0, n, size)]
    return [Stage(name, kind, part) for name, part in zip(chunk_names(kind, n, size), parts, strict=False)]


def submit(manifest: Manifest, stages: Sequence[Stage]) -> dict[str, str]:
    """Queue the chain; returns stage → Slurm job id. Raises WorkError if Slurm refuses; nothing is queued then."""
    check_paths(manifest)
    ids: dict[str, str] = {}
    _tell_overruled(manifest, stages)
    try:
        for stage in stages:
            ids[stage.name] = _queue(manifest, stage, ids)
    except WorkError as error:
        became = "were cancelled" if _cancel(manifest, stages) else "could not be cancelled: see squeue"
        before = f" Jobs {', '.join(ids.values())}, queued before it, {became}." if ids else ""
        raise WorkError(f"{error}{before}") from error
    except BaseException:  # Ctrl-C between two of them: half a chain is of no use
        _cancel(manifest, stages)
        print("carabid: what was queued of this submission is cancelled", file=sys.stderr, flush=True)
        raise
    return ids


def _tell_overruled(manifest: Manifest, stages: Sequence[Stage]) -> None:
    if left := sorted({name for _, script in scripts(manifest, stages) for name in settings.overruled(script)}):
        why = "does not count where `resources` or carabid itself says it (`--dry-run` shows the scripts)"
        print(f"carabid: {', '.join(left)}: {why}", file=sys.stderr, flush=True)


def _cancel(manifest: Manifest, stages: Sequence[Stage]) -> bool:
    """Take a chain back, by name: an sbatch that failed may have queued its job all the same. False if scancel failed."""
    ended_well = True
    for stage in stages:
        try:
            ask(["scancel", "--me", f"--name={job_name(manifest, stage.name)}"])
        except (OSError, WorkError):
            ended_well = False
    return ended_well


def scripts(manifest: Manifest, stages: Sequence[Stage]) -> Iterator[tuple[str, str]]:
    """Stage → the sbatch script that `submit` would queue; dependencies show the stage's name where its id will stand."""
    check_paths(manifest)
    ids = {stage.name: f"<{stage.name}>" for stage in stages}
    for stage in stages:
        yield stage.name, _script(manifest, stage, ids)


def _script(manifest: Manifest, stage: Stage, ids: dict[str, str]) -> str:
    executor = _executor(manifest, stage, ids)
    if len(stage.indices) > 1:
        executor.parameters["map_count"] = len(stage.indices)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def queue_module(manifest: Manifest, stage: Stage, module: str, argument: Path) -> str:
    """Queue a stage's script with another command, a module that its Python runs, and no pickle; returns its job id.

    Raises WorkError if Slurm refuses.
    """
    executor = _executor(manifest, stage, {})
    script = executor._make_submission_file_text(f"{executor.python} -u -m {module} {quote(str(argument))}", module)
    return call_sbatch(["--parsable"], str(script)).partition(";")[0]


def refusal(script: str) -> str | None:
    """Why Slurm would not queue this script (`sbatch --test-only`); None if it would."""
    try:
        call_sbatch(["--test-only"], script)
    except WorkError as error:
        return str(error)
    return None


def call_sbatch(arguments: Sequence[str], script: str = "") -> str:
    """What sbatch prints; `script` is one that stands in no file. Raises WorkError with sbatch's reason."""
    command, environ = ["sbatch", *arguments], settings.environment_for(script)
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=120, env=environ)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WorkError(f"sbatch cannot be called on this node: {error}") from error
    if done.returncode != 0:
        raise WorkError(f"sbatch refused it: {' '.join(done.stderr.split())}")
    return done.stdout.strip()


class _Executor(SlurmExecutor):  # type: ignore[misc]
    @classmethod
    def affinity(cls) -> int:
        """submitit refuses to begin without srun; a dry run needs none, and a real one says what sbatch says."""
        return 2


def _queue(manifest: Manifest, stage: Stage, ids: dict[str, str]) -> str:
    """Queue one stage; returns its job's id. An sbatch that failed may have queued it all the same: then that job is it.

    A controller that does not answer is asked again; a request that it refuses is not.
    """
    for pause in (*PAUSES, None):
        try:
            executor, entry = _executor(manifest, stage, ids), getattr(jobs, stage.kind)
            with settings.only_what_counts(_script(manifest, stage, ids)):
                queued = executor.map_array(entry, [str(manifest.path)] * len(stage.indices), stage.indices)
            return str(queued[0].job_id).partition("_")[0]
        except (FailedJobError, OSError) as error:
            transient = re.search(TRANSIENT, str(error))
            if transient:  # what it has queued may be seen a little later only
                time.sleep(pause or 0)
            refused = f"sbatch did not take the {stage.name} job: {str(error).strip()}."
            try:
                job = _adopt(manifest, stage)
            except WorkError as blind:
                raise WorkError(f"{refused} Whether it is queued all the same cannot be seen: {blind}.") from error
            if job:
                return job
            if pause is None or not transient:
                raise WorkError(refused) from error
            print(f"carabid: {stage.name}: {last_line(str(error)) or 'sbatch failed'}: trying again", file=sys.stderr, flush=True)
    raise AssertionError  # the last turn returns or raises


def last_line(text: str) -> str:
    """The last line that says something; empty if none does."""
    return ([line.strip() for line in text.splitlines() if line.strip()] or [""])[-1]


def _adopt(manifest: Manifest, stage: Stage) -> str | None:
    """The job that an sbatch queued before it failed, with the pickles that it will look for; None if there is none."""
    found = find_job(job_name(manifest, stage.name))
    if found is None:
        return None
    folder = manifest.experiment.stage_logs(manifest.number, stage.name)
    for place, index in enumerate(stage.indices):
        job = f"{found[0]}_{place}" if len(stage.indices) > 1 else found[0]
        DelayedSubmission(getattr(jobs, stage.kind), str(manifest.path), index).dump(JobPaths(folder, job).submitted_pickle)
    return found[0]


def _executor(manifest: Manifest, stage: Stage, ids: dict[str, str]) -> SlurmExecutor:
    profile, code = manifest.terms.profile, manifest.code
    job = manifest.job(stage.kind)
    after = f"{stage.dependency}:{':'.join(ids[name] for name in stage.after)}"
    options = {"dependency": after, "kill-on-invalid-dep": "yes"} if stage.after else {}
    executor = _Executor(
        folder=manifest.experiment.stage_logs(manifest.number, stage.name),
        python=python_command(profile, code, partial(_folders, manifest)),
    )
    executor.update_parameters(
        job_name=job_name(manifest, stage.name),
        signal_delay_s=warning_seconds(parse_time(job.time)),
        stderr_to_stdout=True,
        array_parallelism=min(len(stage.indices), manifest.terms.max_parallel or len(stage.indices)),
        wckey=None,  # submitit's own; sites that check such keys would refuse it
        cpus_per_task=job.cpus_per_task,
        srun_args=[f"--cpus-per-task={job.cpus_per_task}"],  # since Slurm 22.05 srun does not inherit it
        setup=setup_lines(profile, code, root()),
        teardown=REQUEUE,
        additional_parameters={
            "requeue": True,
            "export": "ALL",
            **job.options,
            **options,
            **gpu_option(profile, job),
            **_memory_option(job),
        },
    )
    executor.parameters |= {"time": job.time}
    return executor


def _memory_option(job: Job) -> dict[str, str]:
    """The sbatch option that asks for memory, by whichever key the job does."""
    return {key.replace("_", "-"): scale_memory(amount, "1x") for key in MEMORY_KEYS if (amount := getattr(job, key)) is not None}


def _folders(manifest: Manifest) -> list[Path]:
    """What a container must see: code, results, features, the Hub's cache, and data and weights in folders."""
    trials = [manifest.trial(index) for index in {entry.features: i for i, entry in enumerate(manifest.entries)}.values()]
    config = trials[0].config
    names = [
        name
        for data, backbone in ((trial.config.data, trial.config.backbone) for trial in trials)
        for name in (data.source, data.images or "", *(weights.path for weights in backbone.weights_from() if weights.path))
    ]
    named = [name for name in names if os.path.isabs(name)]
    return [manifest.code, root(), manifest.experiment.path, features_root(config), hub.cache(), *map(Path, sorted(set(named)))]


def check_paths(manifest: Manifest) -> None:
    """Raises UserError for a path that Slurm cannot take: logs lie there, and Slurm reads %, \\ and line ends its own way."""
    if found := re.search(r"[%\\\x00-\x1f\x7f]", f"{manifest.path}{manifest.code}"):
        raise UserError(
            f"{str(manifest.path)!r}: Slurm cannot write logs into a folder with {found[0]!r} in its name. Set CARABID_ROOT or "
            "paths.trained to another one."
        )
