"""Python's collector of cycles is kept from what libraries leave, and from nothing else."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from pipeline.disk.layout import PROJECT
from pipeline.sweeps import FULL, sweep_seldom

AT_THE_END = """import atexit, gc
from pipeline.sweeps import sweep_seldom
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # (what is registered first runs last)
sweep_seldom()
"""


@pytest.fixture(autouse=True)
def by_default() -> Iterator[None]:
    """Python's thresholds before, and those of this process afterwards."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


class Batch:
    """Something large that is in a cycle."""

    def __init__(self) -> None:
        self.me = self


def test_a_cycle_that_dies_young_is_freed_with_the_next_thousand_objects() -> None:
    sweep_seldom()
    seen = weakref.ref(Batch())
    kept = [[number] for number in range(1000)]
    assert seen() is None and len(kept) == 1000


def test_all_objects_are_looked_at_seldom_and_young_ones_as_often_as_before() -> None:
    sweep_seldom()
    assert gc.get_threshold() == (700, 10, FULL) and gc.isenabled()


def test_the_end_of_a_process_looks_at_none() -> None:
    done = subprocess.run([sys.executable, "-c", AT_THE_END], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n", done.stderr


def test_a_command_does_so() -> None:
    code = "import gc, pipeline.cli as cli, sys; sys.argv = ['carabid', '--help']; print(gc.get_threshold()[2])\n"
    code += "try: cli.main()\nexcept SystemExit: print(gc.get_threshold()[2])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("10", str(FULL))
