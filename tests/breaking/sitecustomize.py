"""Makes the training of a job fail in the way that BREAK names; for an array, the task's of a list with commas.

Python imports this module by itself where its folder is on PYTHONPATH, as test_failure_classes.py puts it.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from typing import Any, NoReturn

TRAINING = "pipeline.stages.train"


def __getattr__(name: str) -> Any:
    """What is asked of the training's own module, in whose place this one stands: spoils something and hands it over."""
    if name.startswith("__"):
        raise AttributeError(name)
    del sys.modules[TRAINING]
    place = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    WAYS[os.environ["BREAK"].split(",")[place]]()
    return getattr(importlib.import_module(TRAINING), name)


def use_memory() -> None:
    held = b"\1" * 3_000_000_000
    time.sleep(600)
    del held


def use_a_gpus_memory() -> None:
    import torch

    spoil_the_forward_pass(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))


def divide_by_zero() -> None:
    spoil_the_forward_pass(ZeroDivisionError("division by zero"))


def spoil_the_forward_pass(error: Exception) -> None:
    def forward(*arguments: Any, **more: Any) -> NoReturn:
        raise error

    importlib.import_module("pipeline.models.learner").Learner.forward = forward


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def heed_no_signal() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(600)


WAYS = {
    "": lambda: None,
    "oom": use_memory,
    "gpu-oom": use_a_gpus_memory,
    "error": divide_by_zero,
    "killed": die,
    "time": heed_no_signal,
    "cancelled": lambda: time.sleep(600),
}

if "BREAK" in os.environ:
    sys.modules[TRAINING] = sys.modules[__name__]
