"""A training job's own dependent evaluation: queued from inside it, and given what it was given. Loads no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import ceil
from pathlib import Path

from pipeline.amounts import parse_time
from pipeline.disk.layout import SHIPPED
from pipeline.disk.lease import Lease
from pipeline.errors import WorkError
from pipeline.experiments.reading import Experiment
from pipeline.launch.scheduler.queue import ask, find_job
from pipeline.launch.submitting.sbatch import call_sbatch

LEASE_SECONDS = 60
ALIKE = {"partition": "%P", "account": "%a", "qos": "%q", "reservation": "%v", "constraint": "%f", "exclude": "%x",
         "nodelist": "%n", "licenses": "%W", "tmp": "%d"}  # fmt: skip
"""Options of sbatch → squeue's word for what a job was given."""
NOTHING = ("", "0", "(null)", "N/A")


def own_job() -> str | None:
    """Id of the Slurm job or array that this process is part of."""
    return os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")


def script() -> Path:
    """evaluate.sh beside the script of the job that this process is part of, else the one that came with the package."""
    own = Path(os.environ.get("CARABID_JOBS") or SHIPPED / "jobs") / "evaluate.sh"
    return own if own.is_file() else SHIPPED / "jobs" / "evaluate.sh"


def queue_evaluation(experiment: Experiment, arguments: Sequence[str]) -> str:
    """From inside a training job: queue evaluate.sh for the whole job or array, once; returns its job id.

    Each job task of the evaluation waits for the same one of the training (aftercorr). A job task that comes later,
    or again after a requeue, finds the evaluation by its name; job tasks that come together take turns. Raises WorkError
    with sbatch's reason where it is not queued.
    """
    job = own_job()
    if job is None:
        raise WorkError("there is no Slurm job here whose evaluation could wait for it")
    name = f"carabid-evaluate-{job}"
    with Lease(experiment.dir.evaluation_lease(job), LEASE_SECONDS).hold():
        found = find_job(name)
        if found and found[1] & {os.environ.get("SLURM_ARRAY_TASK_ID", "N/A"), "N/A"}:
            return found[0]
        options = [f"--job-name={name}", "--kill-on-invalid-dep=yes", *_after(job), *_alike(script().read_text())]
        return call_sbatch(["--parsable", *options, str(script()), *arguments]).partition(";")[0]


def _after(job: str) -> list[str]:
    if "SLURM_ARRAY_JOB_ID" not in os.environ:
        return [f"--dependency=afterok:{job}"]
    low, high, step = (os.environ[f"SLURM_ARRAY_TASK_{part}"] for part in ("MIN", "MAX", "STEP"))
    return [f"--dependency=aftercorr:{job}", f"--array={low}-{high}:{step}"]


def _alike(script: str) -> Iterator[str]:
    """What this job was given, as options: what a command line says (`--mem=2G`, `--gpus-per-node=0`) holds for both."""
    given = _given()
    for option in ALIKE:
        if (value := given.get(option, "")) not in NOTHING:
            yield f"--{option}={value}"
    kind = re.search(r"\bgpu:([A-Za-z][^:,()]*):\d", given.get("gpus", ""))
    yield f"--gpus-per-node={f'{kind[1]}:' if kind else ''}{_number('GPUS_ON_NODE')}"
    yield f"--cpus-per-task={_number('CPUS_PER_TASK') or 1}"
    yield from _memory(script)
    own = re.search(r"^#SBATCH +--time=(\S+)", script, re.M)
    with suppress(ValueError):  # a limit that is none
        if own and parse_time(given.get("time", "")) < parse_time(own[1]):
            yield f"--time={given['time']}"


def _given() -> dict[str, str]:
    """What Slurm's queue says of this very job, by option."""
    words = ALIKE | {"gpus": "%b", "time": "%l"}
    command = ["squeue", "--noheader", f"--jobs={os.environ.get('SLURM_JOB_ID', '')}", "--format=" + "\t".join(words.values())]
    lines = [fields for line in ask(command).splitlines() if len(fields := line.split("\t")) == len(words)]
    return dict(zip(words, map(str.strip, lines[-1]), strict=True)) if lines else {}


def _memory(script: str) -> Iterator[str]:
    """As much memory as this job has, asked for as the script does: sbatch takes no two of these options."""
    cpus, gpus = _number("CPUS_PER_TASK") or 1, _number("GPUS_ON_NODE")
    given = {"NODE": 1, "CPU": cpus, "GPU": gpus}
    total = next((amount * n for unit, n in given.items() if (amount := _number(f"MEM_PER_{unit}"))), 0)
    per = re.search(r"^#SBATCH +--mem-per-(cpu|gpu)\b", script, re.M)
    if per is None:
        yield f"--mem={total}M" if total else "--mem=0"  # (Slurm says nothing where a job has all of its node's)
    elif total and (n := {"cpu": cpus, "gpu": gpus}[per[1]]):
        yield f"--mem-per-{per[1]}={ceil(total / n)}M"


def _number(name: str) -> int:
    """A number that Slurm tells this job; 0 where it does not."""
    value = os.environ.get(f"SLURM_{name}", "")
    return int(value) if value.isdecimal() else 0
