"""All benchmarks beside their goals: `make bench`, `make bench-gpu`.

    python -m benchmarks.bench [--gpu] [--short] [NAME …]

Each script runs in a process of its own, with as many threads as its `THREADS` says. All of them write benchmarks/results.md
(results-gpu.md with --gpu); some, which are named, or short forms are shown alone. The exit status is 1 where a goal is missed
by more than noise, `MARGIN`, twice, or a script fails.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path

from benchmarks.figure import Figure, goal_of, seconds, show
from pipeline.disk.layout import PROJECT
from pipeline.disk.provenance import code_version, installed_version, now
from pipeline.disk.writing import write_text

SCRIPTS = (
    "decoding",
    "extraction",
    "tails",
    "adapters",
    "head_training",
    "heads_together",
    "grid16",
    "many_trials",
    "warm_start",
    "growth",
    "ridge",
    "ridge_stack",
    "start",
    "report",
    "archived",
)
GPU_SCRIPTS = ("gpu", "gpu_heads")
MARGIN = 0.05
"""Share of a goal that is noise of the machine."""
LONGEST_S = 900
"""A script that takes longer has failed."""
HERE = PROJECT / "benchmarks"
COLUMNS = ("what", "figure", "goal", "met", "about", "command")


@dataclass(frozen=True)
class Row:
    """A line of the table: a figure of a script; None where it failed."""

    script: str
    figure: Figure | None
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the script ran and its goal, if it has one, is reached but for noise."""
        return self.figure is not None and self.figure.is_met(MARGIN)


def existing(names: Sequence[str]) -> list[str]:
    """Those of the names that are scripts here with a `measure`."""
    files = {name: HERE / f"{name}.py" for name in names}
    return [name for name, file in files.items() if file.is_file() and "\ndef measure(" in file.read_text()]


def threads(name: str) -> int:
    """The `THREADS` of a script, read without importing it: a library counts threads when it is loaded."""
    found = re.search(r"^THREADS = (\d+)$", (HERE / f"{name}.py").read_text(), re.MULTILINE)
    return int(found[1]) if found else 1


def run(name: str, short: bool = False) -> list[Figure] | None:
    """A script's figures, from a process of its own, which shows them; None if it failed."""
    print(f"\n{name}, {threads(name)} thread(s)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        code = f"from benchmarks.bench import measure_here; measure_here({name!r}, {short}, {str(out)!r})"
        environment = os.environ | {"OMP_NUM_THREADS": str(threads(name)), "PYTHONPATH": str(PROJECT)}
        try:
            took = seconds(
                partial(subprocess.run, [sys.executable, "-c", code], cwd=PROJECT, env=environment, check=True, timeout=LONGEST_S)
            )
            print(f"{name} took {took:.0f} s", flush=True)
            return [Figure(**figure) for figure in json.loads(out.read_text())]
        except subprocess.SubprocessError as error:
            print(f"{name} failed: {type(error).__name__}", flush=True)
            return None


def measure_here(name: str, short: bool, out: str) -> None:
    """Measure a script in this process, show its figures and leave them in a file for the one that started this."""
    figures = import_module(f"benchmarks.{name}").measure(short)
    show(figures)
    sys.stdout.flush()
    Path(out).write_text(json.dumps([asdict(figure) for figure in figures]))


def rows_of(name: str, measured: Callable[[str], list[Figure] | None]) -> list[Row]:
    """A script's lines. Before a figure counts as missed all are measured once more, and the better one stands."""
    figures = measured(name)
    if figures is None:
        return [Row(name, None, "failed")]
    if all(figure.is_met(MARGIN) for figure in figures):
        return [Row(name, figure) for figure in figures]
    print(f"{name} missed a goal: once more", flush=True)
    again = {figure.what: figure for figure in measured(name) or ()}
    return [_better(name, figure, again.get(figure.what)) for figure in figures]


def _better(name: str, first: Figure, second: Figure | None) -> Row:
    if first.is_met(MARGIN) or second is None:
        return Row(name, first)
    greater, smaller = sorted((first, second), key=lambda figure: figure.value, reverse=True)
    return Row(name, greater if first.at_least is not None else smaller, "the better of two runs")


def table(rows: Sequence[Row], origin: str) -> str:
    """The page of results, as Markdown."""
    lines = [dict(zip(COLUMNS, _cells(row), strict=True)) for row in rows]
    head = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    body = [" | ".join(line[column].replace("|", "/") for column in COLUMNS) for line in lines]
    missed = sum(not row.is_met for row in rows)
    told = f"{len(rows)} figures, {missed} missed (margin for noise: {MARGIN:.0%})."
    return f"# Benchmarks\n\n{origin}\n\n{told}\n\n" + "".join(f"| {line} |\n" for line in (*head, *body))


def _cells(row: Row) -> tuple[str, ...]:
    command = f"`python -m benchmarks.{row.script}`"
    if row.figure is None:
        return row.script, "none", "", "no", row.note, command
    figure = replace(row.figure, about="; ".join(filter(None, (row.figure.about, row.note))))
    goal = goal_of(figure)
    met = "" if not goal else "yes" if figure.is_met() else "within noise" if row.is_met else "no"
    return figure.what, f"{figure.value:.3g} {figure.unit}", goal, met, figure.about, command


def origin(gpu: str | None) -> str:
    """Where and of what the figures are: machine, commit, versions; no name of a host and no path."""
    code = code_version()
    commit = f"commit {code['commit'][:10]}{' with changes' if code['dirty'] else ''}" if code["commit"] else "no commit"
    versions = ", ".join(f"{name} {installed_version(name)}" for name in ("torch", "numpy"))
    cores = f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores"
    return "; ".join(filter(None, (gpu, f"{_cpu()}, {cores}", now(), commit, versions)))


def _cpu() -> str:
    """The model of the CPU, as Linux tells it."""
    told = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.+)$", told.read_text(), re.MULTILINE) if told.is_file() else None
    return found[1].strip() if found else platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description="All benchmarks beside their goals.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="scripts of benchmarks/; all by default")
    parser.add_argument("--gpu", action="store_true", help="those for a GPU")
    parser.add_argument("--short", action="store_true", help="on next to nothing, as tests do: whether they run")
    given = parser.parse_args(arguments)
    known = existing(GPU_SCRIPTS if given.gpu else SCRIPTS)
    if unknown := [name for name in given.names if name not in known]:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(known) or 'none'}")
    gpu = _gpu() if given.gpu else None
    if given.gpu and gpu is None:
        print("There is no GPU here that torch can use: nothing was measured, and nothing is written.", file=sys.stderr)
        return 1
    rows = [row for name in given.names or known for row in rows_of(name, partial(run, short=given.short))]
    if not given.names and not given.short:
        out = HERE / ("results-gpu.md" if given.gpu else "results.md")
        write_text(out, table(rows, origin(gpu)))
        print(f"\nwritten: benchmarks/{out.name}")
    return conclude(rows)


def conclude(rows: Sequence[Row]) -> int:
    """Say what was missed; the exit status."""
    missed = [row for row in rows if not row.is_met]
    print(f"\n{len(rows)} figures, {len(missed)} missed")
    for row in missed:
        if row.figure is None:
            print(f"missed: {row.script} failed")
        else:
            show([replace(row.figure, what=f"missed: {row.figure.what}")])
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
