"""Where a process says what it says: stdout and stderr that are there, and take any character; and who reads that."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


def open_streams() -> None:
    """What was closed (`>&-`) leads nowhere, as if it were /dev/null: else a file that is opened next would take its place, and
    what is printed. A character that a terminal or a log in ASCII or Latin-1 cannot show becomes a question mark."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # (the lowest number that is free)
    sys.stdout, sys.stderr = sys.stdout or os.fdopen(1, "w"), sys.stderr or os.fdopen(2, "w")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def is_watched(stream: TextIO) -> bool:
    """Whether a person looks at a stream that can be drawn over: a terminal, and not one that only prints (TERM=dumb). Whoever
    asks for colours in a file (FORCE_COLOR) asks for no bars there."""
    return stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


def print_line(line: str) -> None:
    """On stdout, at once: it is often a log."""
    print(line, flush=True)


def append_line(path: Path, line: str) -> None:
    """To a log that others write to as well."""
    with path.open("a") as log:
        log.write(f"{line}\n")


def flush_stdout() -> None:
    """Write what is left in it; raises OSError if it is closed at its other end or full, and then forgets what is left."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Everything this process writes to its standard streams, by libraries too, appended to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    before = os.dup(1), os.dup(2)
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in enumerate(before, 1):
            os.dup2(old, number)
            os.close(old)
