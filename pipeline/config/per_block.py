"""What is made of a block once, for all configurations that share it: the cells of a grid share most of their blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Generic, TypeVar

from pipeline.config.section import Section

T = TypeVar("T")
MOST = 50_000
"""Blocks that are remembered at once: beyond, all are forgotten, and asked for again."""


class PerBlock(Generic[T]):
    """A function of a field of the configuration, its name and value, that is called once for each block.

    Blocks are immutable, so one and the same object has one answer; equal ones are not compared. What it gives is shared: no
    caller may change it.
    """

    def __init__(self, of: Callable[[str, Any], T]) -> None:
        self._of = of
        self._known: dict[tuple[str, Any], tuple[Any, T]] = {}

    def __call__(self, name: str, value: Any) -> T:
        key = name, (id(value) if isinstance(value, Section) else value)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= MOST:
                self._known.clear()
            found = self._known[key] = (value, self._of(name, value))  # (while it is kept, its id is its own)
        return found[1]


def sharing(config: Any, names: Sequence[str]) -> tuple[int, ...]:
    """What configurations have in common that share these fields, two or more, as one and the same objects; good while one of
    them is alive. Where it differs, the fields may still be equal."""
    return tuple(map(id, attrgetter(*names)(config)))


def distinct(configs: Sequence[Any]) -> dict[str, list[Any]]:
    """By field, the objects that configurations, one at least, have in it, each once, in order."""
    names = type(configs[0]).model_fields
    return {name: list({id(value): value for value in map(attrgetter(name), configs)}.values()) for name in names}
