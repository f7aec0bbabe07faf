"""Which of several processes this one is, where `torchrun`, `accelerate launch` or `srun` has started them. Loads no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import UserError

FIRST_PORT, PORTS = 20_000, 10_000
"""Where the processes of a job step of Slurm meet: a port by the step's number, unless MASTER_PORT names one."""


@dataclass(frozen=True)
class Rank:
    """One of `size` processes that train one trial together; the first, 0, is the main one: it alone writes."""

    number: int
    size: int
    local: int
    """Its place among those on its node."""
    address: tuple[str, int]
    """Where they meet: host and port."""

    @property
    def is_main(self) -> bool:
        return self.number == 0


def launched(processes: int, environ: Mapping[str, str] = os.environ) -> Rank | None:
    """This process's rank among those that a launcher has started for a trial of so many; None where it has started just one,
    which starts the others itself.

    Raises UserError for another number of them than the trial has.
    """
    found = _by_torchrun(environ) or _by_srun(environ) if processes > 1 else None
    if found and found.size != processes:
        raise UserError(
            f"{found.size} processes were started, and train.processes is {processes}: set train.processes={found.size}, or "
            "start one, which starts the others"
        )
    return found


def _by_torchrun(environ: Mapping[str, str]) -> Rank | None:
    """By the variables of torchrun, which `accelerate launch` sets too."""
    if (size := int(environ.get("WORLD_SIZE", "1"))) == 1:
        return None
    address = environ.get("MASTER_ADDR", "127.0.0.1"), int(environ.get("MASTER_PORT", FIRST_PORT))
    return Rank(int(environ["RANK"]), size, int(environ.get("LOCAL_RANK", environ["RANK"])), address)


def _by_srun(environ: Mapping[str, str]) -> Rank | None:
    """By the variables of a job step of Slurm."""
    if (size := int(environ.get("SLURM_STEP_NUM_TASKS", "1"))) == 1:
        return None
    step = int(environ.get("SLURM_JOB_ID", "0")) * 16 + int(environ.get("SLURM_STEP_ID", "0"))
    host = environ.get("MASTER_ADDR") or first_host(environ.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    port = int(environ.get("MASTER_PORT", FIRST_PORT + step % PORTS))
    return Rank(int(environ["SLURM_PROCID"]), size, int(environ["SLURM_LOCALID"]), (host, port))


def first_host(nodes: str) -> str:
    """The first of nodes as Slurm lists them: `gpu[03-07,9],other` → gpu03."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(filter(None, found.groups())) if found else nodes
