"""What a benchmark has measured: a figure beside its goal; and how two ways are set side by side.

A script of `make bench` has `measure(short) -> list[Figure]` (`short`: as tests run it, on next to nothing), prints them with
`show` when it is run itself, and names in `THREADS` how many threads torch has.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of benchmarks/results.md."""

    what: str
    value: float
    unit: str = "×"
    """×: how many times the way of the sample code takes as long; else s, ms, MB, images/s …"""
    at_least: float | None = None
    """The goal, of what is better the greater it is."""
    at_most: float | None = None
    """The goal, of what is better the smaller it is."""
    about: str = ""
    """The two sides of a ratio, or what was measured how."""

    def is_met(self, margin: float = 0.0) -> bool:
        """Whether the goal is reached, but for a share of it that is noise; true where there is none."""
        low = self.at_least is None or self.value >= self.at_least * (1 - margin)
        return low and (self.at_most is None or self.value <= self.at_most * (1 + margin))


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turn(theirs: Callable[[], object], ours: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Both ways in turn, after one round that does not count: the median seconds of each, and the median of the ratios
    theirs / ours, each of two neighbours: what else the machine does meets both."""
    theirs(), ours()
    pairs = [(seconds(theirs), seconds(ours)) for _ in range(rounds)]
    return *(statistics.median(side) for side in zip(*pairs, strict=True)), statistics.median(a / b for a, b in pairs)


def goal_of(figure: Figure) -> str:
    """In words; empty where there is none."""
    low = "" if figure.at_least is None else f"at least {figure.at_least:g}"
    high = "" if figure.at_most is None else f"at most {figure.at_most:g}"
    return ", ".join(filter(None, (low, high)))


def show(figures: Sequence[Figure]) -> None:
    """Each on a line."""
    for figure in figures:
        goal = f" (goal: {goal_of(figure)})" if goal_of(figure) else ""
        print(f"{figure.what}: {figure.value:.3g} {figure.unit}{goal}{'; ' if figure.about else ''}{figure.about}")
