"""What Slurm says of its partitions and of a user's limits, and whether a job fits them. Loads no torch."""

from __future__ import annotations

import getpass
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeline.amounts import format_memory, format_time, parse_time
from pipeline.config.resources import MEMORY_KEYS, Job
from pipeline.errors import WorkError
from pipeline.launch.scheduler.queue import ask, own_settings

FORMAT = "%P|%a|%l|%m|%c|%D|%t|%G"
UNUSABLE = ("down", "drain", "drng", "fail", "maint", "unk", "inval", "futr")
GPU = re.compile(r"\bgpu:(?:([^:,()|]+):)?(\d+)(?=[(,]|$)")


@dataclass(frozen=True)
class Nodes:
    """Nodes of a partition that are alike."""

    partition: str
    default: bool
    up: bool
    seconds: int | None
    """Longest walltime; None: no limit."""
    memory: int
    """MiB of each."""
    cpus: int
    n: int
    usable: bool
    gpus: dict[str, int]
    """Type → how many a node has; "" where Slurm knows no types."""


def partitions() -> list[Nodes]:
    """All nodes of all partitions that I may see. Raises WorkError if Slurm does not say."""
    lines = [line.split("|", 7) for line in ask(["sinfo", "--noheader", "--exact", f"--format={FORMAT}"]).splitlines()]
    return [_nodes(fields) for fields in lines if len(fields) == 8]


def _nodes(fields: Sequence[str]) -> Nodes:
    name, up, limit, memory, cpus, n, state, gres = (field.strip() for field in fields)
    gpus: dict[str, int] = {}
    for kind, count in GPU.findall(gres):
        gpus[kind.lower()] = gpus.get(kind.lower(), 0) + int(count)
    return Nodes(
        partition=name.rstrip("*"),
        default=name.endswith("*"),
        up=up == "up",
        seconds=_seconds(limit),
        memory=_number(memory),
        cpus=_number(cpus),
        n=_number(n),
        usable=not state.startswith(UNUSABLE) and not state.endswith("*"),
        gpus=gpus,
    )


def _seconds(limit: str) -> int | None:
    with suppress(ValueError):  # infinite
        return parse_time(limit)
    return None


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def nodes_for(job: Job, site: Sequence[Nodes]) -> list[Nodes]:
    """The nodes of the partitions that a job names, or else the shell, else of the default one."""
    named = job.partition or own_settings().get("SBATCH_PARTITION")
    wanted = named.split(",") if named else []
    return [nodes for nodes in site if (nodes.partition in wanted if wanted else nodes.default)]


def misfit(job: Job, site: Sequence[Nodes]) -> tuple[str, str] | None:
    """The key of the job's resources that none of its partitions can meet, and why; None if nothing stands against it."""
    nodes = nodes_for(job, site)
    here = ", ".join(dict.fromkeys(n.partition for n in nodes))
    if not nodes:
        known = ", ".join(dict.fromkeys(n.partition for n in site)) or "none that you may use"
        missing = f"there is no partition {job.partition}" if job.partition else "no partition is the default: name one"
        return "partition", f"{missing}; there are: {known}"
    if not any(n.up for n in nodes):
        return "partition", f"{here} takes no jobs now (`sinfo -s`)"
    limits = [n.seconds for n in nodes if n.seconds is not None]
    if len(limits) == len(nodes) and parse_time(job.time) > max(limits):
        return "time", f"{here} allows at most {format_time(max(limits))}"
    return _lacking_gpus(job, nodes, here) or _lacking_rest(job, nodes, here)


def _lacking_gpus(job: Job, nodes: Sequence[Nodes], here: str) -> tuple[str, str] | None:
    if not job.gpus_per_node:
        return None
    kind = (job.gpu_type or "").lower()
    counts = [n.gpus.get(kind, 0) if kind else sum(n.gpus.values()) for n in nodes]
    if max(counts) >= job.gpus_per_node:
        return None
    found = {name: max(n.gpus.get(name, 0) for n in nodes) for n in nodes for name in n.gpus}
    words = ", ".join(f"{name or 'GPUs of no type'} ({count} a node)" for name, count in sorted(found.items()))
    has = f"the nodes of {here} have: {words or 'no GPU'}"
    return ("gpus_per_node" if max(counts) or not words else "gpu_type"), has


def _lacking_rest(job: Job, nodes: Sequence[Nodes], here: str) -> tuple[str, str] | None:
    memory, cpus = max(n.memory for n in nodes), max(n.cpus for n in nodes)
    if (job.memory or 0) > memory:
        return next(key for key in MEMORY_KEYS if getattr(job, key)), f"the largest node of {here} has {format_memory(memory)}"
    if job.cpus_per_task > cpus:
        return "cpus_per_task", f"the largest node of {here} has {cpus}"
    return None


def max_submitted() -> int | None:
    """How many jobs I may have queued at once, by my accounts; None where that is not limited, or nobody says."""
    options = ["--noheader", "--parsable2", "show", "associations", f"user={getpass.getuser()}", "format=MaxSubmitJobs"]
    try:
        limits = ask(["sacctmgr", *options]).split("\n")[:-1]
    except (OSError, WorkError):  # no accounting
        return None
    return max(map(int, limits)) if limits and all(limit.isdecimal() for limit in limits) else None
