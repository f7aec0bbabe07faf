"""What is told of images as they are decoded, by kind: of how many images, and of which one first. A line for each kind, however
many images there are. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Note(NamedTuple):
    """Of how many images something is told, and where the first of them lies."""

    n: int
    first: str


Notes = dict[str, Note]
"""What is told → of which images."""


def count(told: Iterable[tuple[str, Iterable[str]]]) -> Notes:
    """From where each image lies, and what is told of it."""
    found: Notes = {}
    for where, sentences in told:
        for sentence in sentences:
            before = found.get(sentence, Note(0, where))
            found[sentence] = Note(before.n + 1, before.first)
    return found


def together(parts: Iterable[Mapping[str, Iterable[int | str]]]) -> Notes:
    """Those of several parts, in their order; a note may be a list, as it comes from JSON."""
    found: Notes = {}
    for part in parts:
        for sentence, values in part.items():
            n, first = values
            before = found.get(sentence, Note(0, str(first)))
            found[sentence] = Note(before.n + int(n), before.first)
    return found


def lines(notes: Notes, of: str = "image") -> list[str]:
    """As people read them."""
    return [f"{note.n} {of}{'s' * (note.n > 1)} (the first: {note.first}): {sentence}" for sentence, note in notes.items()]
