"""Commands in processes of their own, forked from one that has loaded torch: a Python that loads it takes some four seconds
of CPU, the backbones' libraries as many again, and the tests start hundreds. The Hub's libraries read the environment as they are
imported: a command that is told something else of the Hub is a Python of its own."""

from __future__ import annotations

import multiprocessing
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

WARM = ["torch", "torch._dynamo", "open_clip", "transformers", "peft", "pandas", "pyarrow.parquet", "scipy.special"]
WARM += ["sklearn.linear_model", "pipeline.cli.commands", "pipeline.launch.submitting.submit", "pipeline.reporting.results"]
WARM += [f"pipeline.stages.{stage}" for stage in ("extract", "train", "evaluate", "collect", "predict")] + ["tests.frozen"]
HUB = ("HF_", "HUGGING", "TRANSFORMERS_", "XDG_CACHE_HOME")
"""How variables begin that the Hub's libraries read as they are imported."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(WARM)
ENVIRON = dict(os.environ)
"""As it was before any test changed it: what the process that others are forked from begins with."""


def process(function: Callable[..., None], *arguments: Any, daemon: bool = False) -> ForkServerProcess:
    """A process of its own that will run a module-level function."""
    with mock.patch.dict(os.environ, ENVIRON, clear=True):
        forkserver.ensure_running()
    return SERVER.Process(target=function, args=arguments, daemon=daemon)


def run(arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[str]:
    """`carabid …` with these arguments. Raises TimeoutExpired."""
    if _of_hub(environ) != _of_hub(ENVIRON):
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=seconds)
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        started = process(_command, list(arguments), str(cwd), dict(environ), str(out), str(err))
        started.start()
        started.join(seconds)
        if started.exitcode is None:
            started.kill()
            raise subprocess.TimeoutExpired(list(arguments), seconds)
        texts = [path.read_text() if path.exists() else "" for path in (out, err)]
        return subprocess.CompletedProcess(["carabid", *arguments], started.exitcode, *texts)


def _of_hub(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(HUB)}


def _command(arguments: list[str], cwd: str, environ: dict[str, str], out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(cwd)
    sys.path[:0] = [cwd, *filter(None, environ.get("PYTHONPATH", "").split(os.pathsep))]  # as `python -m` has them
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.argv = ["carabid", *arguments]
    forkserver._forkserver.ensure_running = lambda: None  # workers of its own are forked where it was
    from pipeline.cli import main

    main()
