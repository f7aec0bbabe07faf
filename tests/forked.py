"""Commands in processes of their own, forked from one that has loaded the package and torch: a Python that loads them takes four
seconds of CPU, the backbones' libraries as many again, and the tests start hundreds. The Hub's libraries read the environment as
they are imported: a command that is told something else of the Hub is forked from a process that has not loaded them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from unittest import mock

LIBRARIES = ["torch", "torchvision", "pandas", "pyarrow.parquet", "scipy.special", "sklearn.linear_model"]
PACKAGE = ["pipeline.cli.commands", "pipeline.launch.submitting.submit", "pipeline.reporting.results"]
PACKAGE += [f"pipeline.stages.{stage}" for stage in ("extract", "train", "evaluate", "collect", "predict", "fetch")]
OF_HUB = ["open_clip", "transformers", "peft"]
HUB = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE_HOME")
"""How variables begin that the Hub's libraries read as they are imported."""
WARM, WITHOUT_HUB = forkserver.ForkServer(), forkserver.ForkServer()
WARM.set_forkserver_preload([*LIBRARIES, *PACKAGE, *OF_HUB, "tests.frozen"])
WITHOUT_HUB.set_forkserver_preload([*LIBRARIES, *PACKAGE, "tests.frozen"])
ENVIRON = dict(os.environ)
"""As it was before any test changed it: what the processes that others are forked from begin with."""


class Forked(ForkServerProcess):
    """A process that is forked from the one that a server keeps."""

    server = WARM

    def start(self) -> None:
        with mock.patch.dict(os.environ, ENVIRON, clear=True):
            self.server.ensure_running()
        with mock.patch.object(forkserver, "connect_to_new_process", self.server.connect_to_new_process):
            super().start()


class ForkedWithoutHub(Forked):
    """One that has not loaded the Hub's libraries."""

    server = WITHOUT_HUB


def process(function: Callable[..., None], *arguments: Any, daemon: bool = False) -> ForkServerProcess:
    """A process of its own that will run a module-level function."""
    return Forked(target=function, args=arguments, daemon=daemon)


def run(arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """`carabid …` with these arguments. Raises TimeoutExpired."""
    kind = Forked if _of_hub(environ) == _of_hub(ENVIRON) else ForkedWithoutHub
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        started = kind(target=_command, args=(list(arguments), str(cwd), dict(environ), str(out), str(err)))
        started.start()
        started.join(seconds)
        if started.exitcode is None:
            started.kill()
            raise subprocess.TimeoutExpired(list(arguments), seconds)
        texts = [path.read_text() if path.exists() else "" for path in (out, err)]
        return subprocess.CompletedProcess(["carabid", *arguments], started.exitcode, *texts)


def _of_hub(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(HUB)}


def settle(environ: Mapping[str, str], out: str, err: str) -> None:
    """What a forked process begins with: an environment, and files that all goes to that it prints."""
    os.environ.clear()
    os.environ.update(environ)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)


def _command(arguments: list[str], cwd: str, environ: dict[str, str], out: str, err: str) -> None:
    settle(environ, out, err)
    os.chdir(cwd)
    sys.path[:0] = [cwd, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]  # as `python -m` has them
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.argv = ["carabid", *arguments]
    forkserver._forkserver.ensure_running = lambda: None  # workers of its own are forked where it was
    from pipeline.cli import main

    main()
