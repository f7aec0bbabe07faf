"""The blocks `resources`, `launch` and `paths`: where and with what jobs run. They are no science: they change no result."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictBool, field_validator, model_validator

from pipeline.amounts import format_memory, format_time, parse_memory, parse_time, scale_memory
from pipeline.config.section import NAME_PATTERN, Positive, Section

# What stands, quoted, in a line of an sbatch script: without a line's end, so that it cannot begin another one, and without a
# backslash, which Slurm takes away. A word has visible characters alone.
SlurmWord = Annotated[str, Field(pattern=r"^[!-\[\]-~]+$")]
SlurmText = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f\\]+$")]
Memory = Annotated[str, AfterValidator(lambda text: format_memory(parse_memory(text)))]
Walltime = Annotated[str, AfterValidator(lambda text: format_time(parse_time(text)))]

MEMORY_KEYS = ("mem", "mem_per_cpu", "mem_per_gpu")
"""The keys that ask for memory: Slurm takes one of them."""
PLAIN = ("partition", "account", "qos", "constraint", "reservation", "exclude", "nodelist", "licenses", "tmp", "nice",
         "gpu_bind", "comment", "mail_type", "mail_user")  # fmt: skip
"""The keys that are options of sbatch as they stand."""
OWN_OPTIONS = {
    **dict.fromkeys(("array", "dependency", "kill-on-invalid-dep"), "it makes the arrays, and what waits for what"),
    "job-name": "it finds its jobs by their names",
    **dict.fromkeys(("output", "error", "open-mode"), "`carabid status` and `carabid logs` look for logs in their place"),
    **dict.fromkeys(("signal", "requeue", "no-requeue"), "a job that nears its walltime queues itself again"),
    **dict.fromkeys(
        ("nodes", "ntasks", "ntasks-per-node"), "a job task is one process on one node, which starts the others of a training"
    ),
    **dict.fromkeys(("gpus", "gpus-per-task", "gpus-per-socket"), "ask for GPUs with gpus_per_node and gpu_type"),
    **dict.fromkeys(("export", "export-file", "get-user-env"), "a cluster profile's `variables` are the jobs' environment"),
    **dict.fromkeys(("wait", "wrap", "parsable", "quiet", "test-only", "help", "usage", "version"), "it reads sbatch's answer"),
    "clusters": "all commands must ask the same cluster: set SLURM_CLUSTERS in your shell",
}
"""Options of sbatch that are not a lab's to set, and why."""


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
    mem: Memory | None = "32G"
    """Memory of the node, as Slurm writes it; null, or another way of asking: none is named."""
    mem_per_cpu: Memory | None = None
    """Memory of each CPU core, in place of `mem`."""
    mem_per_gpu: Memory | None = None
    """Memory of each GPU, in place of `mem`; a stage that asks for no GPU asks for its `mem`."""
    time: Walltime = "04:00:00"
    """Walltime: minutes, HH:MM:SS or D-HH:MM:SS."""
    reservation: SlurmWord | None = None
    """Reservation to run in."""
    exclude: SlurmWord | None = None
    """Nodes never to run on: n1,n[4-7]."""
    nodelist: SlurmWord | None = None
    """Nodes to run on."""
    licenses: SlurmWord | None = None
    """Licences that a job task holds: matlab:2."""
    tmp: Memory | None = None
    """Disk of the node's own for temporary files."""
    nice: int | None = None
    """How much later than by its priority alone it begins."""
    gpu_bind: SlurmWord | None = None
    """Which of a node's GPUs a task may use, in Slurm's words."""
    comment: SlurmText | None = None
    """Words that Slurm keeps with the job."""
    mail_type: SlurmWord | None = None
    """When to send a mail: FAIL,END."""
    mail_user: SlurmWord | None = None
    """Who gets it; null: the user."""
    sbatch: dict[str, SlurmText | StrictBool] = Field(default_factory=dict)
    """Any other option of sbatch by its long name, without dashes: `{switches: 1, exclusive: true}`. false: none."""

    @model_validator(mode="before")
    @classmethod
    def _one_memory(cls, values: Any) -> Any:
        """Where another amount is named, `mem` has no default; where there is no GPU, one for each GPU is none."""
        if not isinstance(values, dict):
            return values
        named = {key for key in MEMORY_KEYS if values.get(key) is not None}
        if named == {"mem_per_gpu"} and values.get("gpus_per_node", cls.model_fields["gpus_per_node"].default) == 0:
            return values | {"mem_per_gpu": None}
        return {"mem": None} | values if named else values

    @model_validator(mode="after")
    def _only_one_memory(self) -> Job:
        if len(named := [key for key in MEMORY_KEYS if getattr(self, key) is not None]) > 1:
            raise ValueError(f"{' and '.join(named)} exclude one another: keep one, and set the others to null")
        return self

    @field_validator("sbatch")
    @classmethod
    def _others(cls, options: dict[str, str | bool]) -> dict[str, str | bool]:
        return {_long_name(name): _other_option(_long_name(name), value) for name, value in options.items()}

    @property
    def memory(self) -> int | None:
        """MiB of a node; 0: all that it has; None: the cluster's default."""
        times = {"mem": 1, "mem_per_cpu": self.cpus_per_task, "mem_per_gpu": self.gpus_per_node}
        return next((parse_memory(amount) * n for key, n in times.items() if (amount := getattr(self, key)) is not None), None)

    def times(self, n: int) -> Job:
        """What so many processes ask for that each ask for this, on one node."""
        many = {"gpus_per_node": self.gpus_per_node * n, "cpus_per_task": self.cpus_per_task * n}
        return self.model_copy(update=many | ({"mem": scale_memory(self.mem, f"{n}x")} if self.mem else {}))

    @property
    def options(self) -> dict[str, str | bool]:
        """Options of sbatch as they stand in a script, by their long names: all but amounts of time, memory, CPUs and GPUs."""
        plain: dict[str, str | bool] = {
            key.replace("_", "-"): str(value) for key in PLAIN if (value := getattr(self, key)) is not None
        }
        return plain | {name: value for name, value in self.sbatch.items() if value is not False}


def _long_name(name: str) -> str:
    return name.removeprefix("--").replace("_", "-")


def _other_option(name: str, value: str | bool) -> str | bool:
    """The value of an option that no key has. Raises ValueError for one that is not to be set, or has a key."""
    if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
        raise ValueError(f"{name!r} is no long name of an option of sbatch: write `exclusive: true` for --exclusive")
    keys = {key.replace("_", "-"): key for key in Job.model_fields if key != "sbatch"}
    if name in keys:
        raise ValueError(f"{name} has a key of its own: set {keys[name]} beside sbatch")
    if name in OWN_OPTIONS:
        raise ValueError(f"{name} is set by carabid: {OWN_OPTIONS[name]}")
    if name == "gres" and "gpu" in str(value):
        raise ValueError(f"gres={value}: {OWN_OPTIONS['gpus']}")
    if meant := [option for option in (*keys, *OWN_OPTIONS) if option.startswith(name)]:
        raise ValueError(f"{name}: write the option's whole name: {' or '.join(meant)}?")  # sbatch takes abbreviations
    return value


def yielding(below: Any, said: Iterable[str]) -> Any:
    """A job's plain values without the amounts of memory, where the keys `said` above them name one: they exclude each other."""
    if not isinstance(below, dict) or not set(MEMORY_KEYS) & set(said):
        return below
    return {key: value for key, value in below.items() if key not in MEMORY_KEYS}


class EvaluateJob(Job):
    """What evaluation asks Slurm for."""

    time: Walltime = "01:00:00"


class CollectJob(Job):
    """What collection asks Slurm for."""

    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    cpus_per_task: Positive = 1
    mem: Memory | None = "4G"
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
    gradient_checkpointing: bool = False
    """Compute what tails and whole networks need for the backward pass again instead of keeping it: less of a GPU's memory, a
    third more time (arXiv 1604.06174)."""
    checkpoint_epochs: Positive | None = None
    """Write a checkpoint each so many epochs."""
    checkpoint_seconds: float = Field(300, ge=0)
    """Write a checkpoint at the end of an epoch when the last one is this old."""
    lease_seconds: float = Field(120, gt=0)
    """A job that extracts renews its lease; one not renewed for this long has died, and another job takes over."""


class Launch(Section):
    """How trials are dealt to job tasks; never makes a result stale."""

    task_minutes: float = Field(20, gt=0)
    """About how long a job task trains: `submit` gives it as many trials, one after another, as the forecast says."""


class Paths(Section):
    """Where things go; null: `$CARABID_ROOT`, else the project's folder."""

    features: str | None = None
    """Folder of the feature stores."""
    trained: str | None = None
    """Folder of the experiments."""
    stage: str | None = None
    """Node-local folder that features are copied to before training reads them, and archives of images (`carabid archive`) before
    extraction does; variables such as $TMPDIR are expanded on the node. null: they are read where they are."""
