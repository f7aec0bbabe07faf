"""What a person has set for sbatch in the shell (`SBATCH_ACCOUNT`, `SBATCH_RESERVATION`), and what of it counts. Loads no torch.

For sbatch such a variable wins over a script's line. Here the script wins, which `--dry-run` shows and a manifest freezes;
what it does not say, the shell may. In a job nothing counts: it inherits such variables, and they are its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config.resources import MEMORY_KEYS, OWN_OPTIONS
from pipeline.launch.scheduler.queue import is_in_job, outside_environment, own_settings

SAID = re.compile(r"^#SBATCH --([a-z0-9-]+)", re.M)
NAMED_OTHERWISE = {"ARRAY_INX": "array", "MEM_PER_NODE": "mem", "TIMELIMIT": "time"}
"""Variables, without SBATCH_, that are not called like their option."""
MEMORY = {key.replace("_", "-") for key in MEMORY_KEYS}
ALWAYS = {*OWN_OPTIONS, "time", "cpus-per-task", "cpus-per-gpu", "gpus-per-node"}
"""Options that `resources` and carabid itself settle, also where a script has no line of them (it asks for no GPU then)."""


def overruled(script: str) -> list[str]:
    """The variables of the shell that do not count for this script: it says itself what they are about."""
    said = {*SAID.findall(script), *ALWAYS}
    said |= MEMORY if said & MEMORY else set()
    return [name for name, value in own_settings().items() if _option(name) in said or _asks_for_gpus(name, value)]


def environment_for(script: str) -> dict[str, str]:
    """The environment in which sbatch is called with this script."""
    if is_in_job():
        return outside_environment()
    left = set(overruled(script))
    return {name: value for name, value in os.environ.items() if name not in left}


@contextmanager
def only_what_counts(script: str) -> Iterator[None]:
    """That environment, for a library which calls sbatch in this process's own."""
    left = {name: os.environ.pop(name) for name in os.environ.keys() - environment_for(script).keys()}
    try:
        yield
    finally:
        os.environ.update(left)


def _option(variable: str) -> str:
    name = variable.removeprefix("SBATCH_")
    return NAMED_OTHERWISE.get(name, name.lower().replace("_", "-"))


def _asks_for_gpus(variable: str, value: str) -> bool:
    return variable == "SBATCH_GRES" and "gpu" in value
