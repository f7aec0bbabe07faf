"""Scientific problems, one module each: its schema and targets, how it loads, how it is scored, how it is generated."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

from pipeline.config.trial import TASKS
from pipeline.errors import UserError


def available() -> list[str]:
    """Names of the tasks there are: the modules in this folder. Imports none of them."""
    return list(TASKS)


def load_task(name: str) -> ModuleType:
    """The module of a task. Raises UserError, listing the tasks, for a name that is none."""
    if name not in available():
        raise UserError(f"There is no task {name!r}. There are: {', '.join(available())}.")
    return importlib.import_module(f"{__name__}.{name}")


def generator(name: str) -> Callable[..., dict[str, int]]:
    """What writes a task's made-up data. Raises UserError, listing the tasks that have one, for a task that has none."""
    if (found := getattr(load_task(name), "generate", None)) is not None:
        made: Callable[..., dict[str, int]] = found
        return made
    able = [task for task in available() if hasattr(load_task(task), "generate")]
    raise UserError(f"The task {name} takes your own images, and none are made up. Made up are: {', '.join(able)}.")
