"""Scientific problems, a file each: what it loads, predicts, is scored by, and generates. A lab's own file is one as well.

A module of this folder, or a file that a configuration names by its path, has one `TASK`, an object of `base.Task`.
"""

import importlib
from collections.abc import Callable
from typing import Any

from pipeline.config.own import load_file
from pipeline.config.trial import TASKS, Config
from pipeline.errors import UserError
from pipeline.tasks.base import Task


def available() -> list[str]:
    """Names of the tasks there are: the modules in this folder. Imports none of them."""
    return list(TASKS)


def load_task(name: str) -> Task[Any]:
    """A task by its name, or by the path of a lab's own file. Raises UserError for a name that is none, or a file without one."""
    if name.endswith(".py"):
        found = getattr(load_file(name), "TASK", None)
        if not isinstance(found, Task):
            raise UserError(f"{name}: a task's file has one `TASK = …`, an object of a subclass of pipeline.tasks.base.Task")
        return found
    if name not in available():
        raise UserError(f"There is no task {name!r}. There are: {', '.join(available())}.")
    return importlib.import_module(f"{__name__}.{name}").TASK


def check(config: Config) -> None:
    """What the task can say of a configuration before any data are read. Raises UserError."""
    task = load_task(config.task)
    task.check()
    task.metric(config.select.metric)


def generator(name: str) -> Callable[..., dict[str, int]]:
    """What writes a task's made-up data. Raises UserError, listing the tasks that have one, for a task that has none."""
    if _generates(task := load_task(name)):
        return task.generate
    able = [other for other in available() if _generates(load_task(other))]
    raise UserError(f"The task {name} takes your own images, and none are made up. Made up are: {', '.join(able)}.")


def _generates(task: Task[Any]) -> bool:
    return type(task).generate is not Task.generate
