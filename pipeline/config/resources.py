"""The blocks `resources` and `paths`: where and with what jobs run. They are no science: they change no result."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.amounts import format_memory, format_time, parse_memory, parse_time
from pipeline.config.section import NAME_PATTERN, Positive, Section

# What stands in a line of an sbatch script: one word of visible characters, so that it cannot begin another line.
SlurmWord = Annotated[str, Field(pattern=r"^[!-~]+$")]
Memory = Annotated[str, AfterValidator(lambda text: format_memory(parse_memory(text)))]
Walltime = Annotated[str, AfterValidator(lambda text: format_time(parse_time(text)))]


class Job(Section):
    """What one stage asks Slurm for; names are Slurm's."""

    partition: SlurmWord | None = None
    """Nodes to choose from; null: the cluster's default."""
    account: SlurmWord | None = None
    """Whose allocation pays; null: the user's default."""
    qos: SlurmWord | None = None
    """Quality of service: its limits and its priority."""
    constraint: SlurmWord | None = None
    """Features that a node must have."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 1
    """GPUs of the node."""
    gpu_type: Annotated[str, Field(pattern=NAME_PATTERN)] | None = None
    """Kind of GPU by Slurm's name for it (`sinfo -o %G` shows them): a100."""
    cpus_per_task: Positive = 4
    """CPU cores."""
    mem: Memory = "32G"
    """Memory of the node, as Slurm writes it."""
    time: Walltime = "04:00:00"
    """Walltime: minutes, HH:MM:SS or D-HH:MM:SS."""


class EvaluateJob(Job):
    """What evaluation asks Slurm for."""

    time: Walltime = "01:00:00"


class CollectJob(Job):
    """What collection asks Slurm for."""

    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    cpus_per_task: Positive = 1
    mem: Memory = "4G"
    time: Walltime = "00:30:00"


class Resources(Section):
    """What jobs ask for and how they use it; never makes a result stale."""

    extract: Job = Job()
    train: Job = Job()
    evaluate: EvaluateJob = EvaluateJob()
    collect: CollectJob = CollectJob()
    extract_tasks: Positive = 1
    """Job tasks of the extraction's array."""
    extract_batch: Positive = 64
    """Images a forward pass in extraction and in evaluation from images."""
    decode_threads: Positive = 4
    """Threads that decode images."""
    residence: Literal["auto", "device", "host", "mmap"] = "auto"
    """Where features stay while training: on the device, in pinned host memory, or memory-mapped."""
    checkpoint_epochs: Positive | None = None
    """Write a checkpoint each so many epochs."""
    checkpoint_seconds: float = Field(300, ge=0)
    """Write a checkpoint at the end of an epoch when the last one is this old."""
    lease_seconds: float = Field(120, gt=0)
    """A job that extracts renews its lease; one not renewed for this long has died, and another job takes over."""


class Paths(Section):
    """Where things go; null: `$CARABID_ROOT`, else the project's folder."""

    features: str | None = None
    """Folder of the feature stores."""
    trained: str | None = None
    """Folder of the experiments."""
    stage: str | None = None
    """Node-local folder that features are copied to before training reads them; variables such as $TMPDIR are expanded on
    the node. null: they are read where they are."""
