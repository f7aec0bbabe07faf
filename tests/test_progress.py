"""Progress: lines in a log, a bar on a terminal; what a terminal is given, and what asks for no colours."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import cli
from pipeline import progress as module
from pipeline.disk.layout import PROJECT, ExperimentDir
from pipeline.launch.watching import show
from pipeline.launch.watching.history import View
from pipeline.progress import epochs, progress
from pipeline.reporting.state import TrialState
from pipeline.reporting.terminal import cut
from tests.test_cli import COMMANDS, finished

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9\d|10\d)(?:;\d+)*m")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Terminal(io.StringIO):
    """What a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Terminal]:
    """Makes stdout and stderr a terminal, in an environment that says nothing of colours."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def look() -> Terminal:  # (pytest takes the streams for itself when a test begins)
        made = Terminal()
        monkeypatch.setattr(sys, "stdout", made)
        monkeypatch.setattr(sys, "stderr", made)
        return made

    return look


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass."""
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(module, "monotonic", lambda: now)
    return wait


# ---------------------------------------------------------------- nobody watches
def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]) -> None:
    with progress("work", 100) as advance:
        for _ in range(10):
            clock(7)
            advance(10)
    told = capsys.readouterr().err.splitlines()
    assert told == ["work: 50 of 100 images, 1.4 images/s, 0:00:35 left", "work: 100 of 100 images, 1.4 images/s"]


@pytest.mark.parametrize("variables", [{"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {}], ids=str)
def test_no_environment_puts_control_characters_into_a_log(
    variables: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    root: Path,
    clock: Callable[[float], None],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    finished(root)
    show.watch([ExperimentDir(root / "trained" / "beetles-lora")], 1)
    with progress("work", 2) as advance, epochs(3, 0) as bar:
        clock(40)
        advance(1)
    said = capsys.readouterr()
    assert bar is None and "work: 1 of 2" in said.err and "1 done" in said.out and not CONTROL.search(said.out + said.err)


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": "dumb", "FORCE_COLOR": "1"}], ids=str)
def test_a_terminal_that_only_prints_gets_lines(
    watched: Callable[[], Terminal], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, clock: Callable[[float], None]
) -> None:
    terminal = watched()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with progress("work", 2) as advance, epochs(3, 0) as bar:
        clock(40)
        advance(1)
    assert bar is None and terminal.getvalue() == "work: 1 of 2 images, 0.025 images/s, 0:00:40 left\n"


# ---------------------------------------------------------------- a person watches
def last_drawn(terminal: Terminal) -> str:
    """What stands on the terminal in the end, without colours."""
    drawn = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", terminal.getvalue())
    return re.split(r"[\r\n]+", drawn.strip())[-1]


def test_a_terminal_gets_a_bar(watched: Callable[[], Terminal]) -> None:
    terminal = watched()
    with progress("work", 100, "rows") as advance:
        advance(100)
    assert re.fullmatch(r"work ━+ 100/100 [\d.e+]+ rows/s 0:00:00", last_drawn(terminal))


@pytest.mark.parametrize("width", [80, 100])
def test_a_bar_of_epochs_says_the_figure_and_fits(
    watched: Callable[[], Terminal], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = watched()
    monkeypatch.setenv("COLUMNS", str(width))
    with epochs(20, 3) as bar:
        assert bar
        bar(3.5, "")
        bar(4, "in_domain.r2 0.412, best 0.431 in epoch 1")
    drawn = last_drawn(terminal)
    assert re.search(r"^train ━+.* 4/20 in_domain.r2 0.412, best 0.431 in epoch 1 ", drawn) and len(drawn) <= width


def test_what_is_printed_beside_a_bar_into_a_file_goes_there(
    watched: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = watched()
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    with progress("work", 1) as advance:
        print("a row")
        advance(1)
    assert file.getvalue() == "a row\n" and "a row" not in terminal.getvalue()


# ---------------------------------------------------------------- status --watch
def long_names() -> list[str]:
    axes = product((4, 8), (0.0003, 0.00031), ("cosine", "constant"), (0, 1))
    names = ("backbone.views.crops=0.5,model.encoder.r={},optim.lr={},schedule.kind={},seed={}-{:08x}",)
    return [names[0].format(*cell, place * 0x1234567 + 1) for place, cell in enumerate(axes)]


def looked_at(experiments: Sequence[str], width: int) -> str:
    whys = ("", "out of memory (OUT_OF_MEMORY), node n0123.cluster.university.edu", "epoch 3 of 20", "waits for Resources")
    states = ("done", "failed", "running", "queued")
    views = [View(name, TrialState(states[i % 4], whys[i % 4]), None) for i, name in enumerate(long_names())]
    console = Console(width=width, file=io.StringIO())
    console.print(show._table([(ExperimentDir(Path("/trained", name)), views) for name in experiments], width))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("n", [1, 2])
def test_the_watched_status_fits_the_terminal_with_names_that_differ(n: int, width: int) -> None:
    experiments = ["beetles-lora-of-all-sites-and-years", "beetles-lora-of-all-sites-and-months"][:n]
    told = looked_at(experiments, width)
    assert max(map(len, told.splitlines())) <= width
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]
    named = [row[-2] for row in cells if row[-2]]
    assert len(named) == n * len(long_names()) and len(set(named)) == len(long_names())
    assert sorted(name[-8:] for name in set(named)) == [name[-8:] for name in long_names()]
    if n == 1:
        assert all(re.match(r"r=[48],lr=0", name) for name in named)


def test_a_name_that_is_cut_keeps_its_hash() -> None:
    assert cut("optim.lr=0.1-12345678", 40) == "optim.lr=0.1-12345678"
    assert cut("optim.lr=0.1-12345678", 15) == "lr=0.1-12345678"
    assert cut("optim.lr=0.1,seed=3-12345678", 15) == "lr=0.…-12345678"


# ---------------------------------------------------------------- NO_COLOR
ERRORS = (("trian",), ("plan", "nosuch.yaml"), ("submit", "configs/beetles/lora.yaml", "--workers", "0"), ("results", "nosuch"))
SAID = [*((command, "--help") for command in COMMANDS), ("--help",), ("results",), ("status",), ("status", "--watch"), *ERRORS]


def typed(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str]) -> str:
    monkeypatch.setattr(sys, "argv", ["carabid", *arguments])
    terminal.seek(terminal.truncate(0))
    with pytest.raises(SystemExit):
        cli.main()
        raise SystemExit(0)
    return terminal.getvalue()


def test_no_color_is_honoured_in_help_tables_errors_and_bars(
    watched: Callable[[], Terminal], monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    terminal = watched()
    finished(root)
    monkeypatch.chdir(PROJECT)
    assert COLOUR.search(typed(terminal, monkeypatch, ("--help",)))
    monkeypatch.setenv("NO_COLOR", "1")
    for arguments in SAID:
        said = typed(terminal, monkeypatch, arguments)
        assert said and not COLOUR.search(said), arguments
    with progress("work", 1) as advance:
        advance(1)
    assert "work" in terminal.getvalue() and not COLOUR.search(terminal.getvalue())
