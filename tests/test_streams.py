"""Beginnings and ends of commands: Ctrl-C while they load, pipes that nobody reads, streams that are closed, full or in ASCII."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import WORD
from pipeline.disk.layout import PROJECT
from tests.conftest import hear_ctrl_c

pytestmark = pytest.mark.jobs

LORA = str(PROJECT / "configs" / "beetles" / "lora.yaml")
PLAN = ("plan", LORA, "seed=0,1,2")
COMMAND = [sys.executable, "-m", "pipeline.cli"]
SIGNAL_AT = """
import os, sys
at, number, *arguments = sys.argv[1:]
class Finder:
    def find_spec(self, name, *more):
        if name == at:
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Finder())
sys.argv[1:] = arguments
from pipeline.cli import main
main()
"""


def start(command: list[str], root: Path, before: Callable[[], object] = hear_ctrl_c, **more: Any) -> subprocess.Popen[str]:
    environ = {**os.environ, "CARABID_ROOT": str(root), **more.pop("env", {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more
    return subprocess.Popen(command, env=environ, text=True, errors="replace", preexec_fn=before, **pipes)


# ---------------------------------------------------------------- signals
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("pipeline.cli.commands", PLAN),
        ("typer", PLAN),
        ("pydantic", ("--version",)),
        ("yaml", PLAN),
        ("numpy", PLAN),
        ("pipeline.launch.watching.plan", PLAN),
        ("pipeline.reporting.results", ("results",)),
        ("torch", ("embed", ".", "--backbone", "pixels:8", "--out", "x.parquet")),
    ],
)
def test_ctrl_c_while_a_command_loads_is_a_word_and_130(root: Path, module: str, arguments: tuple[str, ...]) -> None:
    with start([sys.executable, "-c", SIGNAL_AT, module, str(int(signal.SIGINT)), *arguments], root) as process:
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", WORD)


def test_a_command_in_the_background_of_a_script_does_not_hear_ctrl_c(root: Path) -> None:
    def deaf() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with start([sys.executable, "-c", SIGNAL_AT, "typer", str(int(signal.SIGINT)), "--version"], root, deaf) as process:
        assert process.communicate(timeout=60)[1] == "" and process.returncode == 0


def test_sigterm_while_a_command_loads_ends_it_without_a_word(root: Path) -> None:
    with start([sys.executable, "-c", SIGNAL_AT, "typer", str(int(signal.SIGTERM)), *PLAN], root) as process:
        assert process.communicate(timeout=60) == ("", "") and process.returncode == -signal.SIGTERM


# ---------------------------------------------------------------- streams that are closed or full
@pytest.mark.parametrize("arguments", [PLAN, ("--help",), ("results",)])
def test_a_pipe_that_nobody_reads_ends_a_command_as_sigpipe_does(root: Path, arguments: tuple[str, ...]) -> None:
    with start([*COMMAND, *arguments], root) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141 and "Traceback" not in err and "BrokenPipe" not in err


def test_a_pipe_of_which_a_few_lines_are_read_ends_a_long_output(root: Path) -> None:
    with start([*COMMAND, "plan", LORA, f"seed={','.join(map(str, range(3000)))}"], root) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith("missing")
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert process.returncode == 141


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2), (0, 1, 2)])
@pytest.mark.parametrize(("arguments", "status"), [(PLAN, 0), (("plan", "nosuch.yaml"), 2)])
def test_closed_streams_are_as_dev_null(root: Path, closed: tuple[int, ...], arguments: tuple[str, ...], status: int) -> None:
    def close() -> None:
        for number in closed:
            os.close(number)

    with start([*COMMAND, *arguments], root, close) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in out + err and "carabid:" not in out
    assert ("3 trials" in out) == (1 not in closed and status == 0)
    assert ("there is no config" in err) == (2 not in closed and status == 2)


def test_a_full_disk_behind_stdout_is_said(root: Path) -> None:
    with open("/dev/full", "w") as full, start([*COMMAND, *PLAN], root, stdout=full) as process:
        assert process.communicate(timeout=60)[1].endswith("carabid: input or output: No space left on device\n")
    assert process.returncode == 1


# ---------------------------------------------------------------- characters
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("env", [ASCII, C, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii:strict"}])
def test_a_character_that_a_terminal_cannot_show_is_replaced(tmp_path: Path, env: dict[str, str]) -> None:
    root = tmp_path / "甲虫 – ─"
    root.mkdir()
    for arguments, status, words in (
        (PLAN, 0, "3 trials"),
        (("--help",), 0, "Usage"),
        (("plan", "甲虫.yaml"), 2, "there is no config"),
    ):
        with start([*COMMAND, *arguments], root, env=env) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == status and words in out + err and "Traceback" not in err, err


def test_the_first_line_of_a_job_is_replaced_too(root: Path) -> None:
    code = "from pipeline.launch.jobs.trials import log_attempt; log_attempt('train', '甲虫')"
    with start([sys.executable, "-c", code], root, env=ASCII) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "carabid train: ??" in out and err == ""
