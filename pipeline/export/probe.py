"""A look at an environment from inside: versions, what can be imported, which weights load. Stands alone.

    python -I probe.py < question.json > answer.json

The question has `packages` (distributions), `modules` (names of imports) and `weights` (files of torch).
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import zipfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def unreadable(weights: Iterable[str]) -> dict[str, str]:
    """Why files cannot be loaded with weights_only=True, for those that cannot."""
    found: dict[str, str] = {}
    for path in weights:
        try:
            import torch

            # A zip archive is mapped: looking at two gigabytes takes no memory.
            torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:
            found[path] = reason(error)
    return found


def reason(error: Exception) -> str:
    """An error in one line: of what torch says, the one that names the class which stands in the way."""
    lines = f"{error}".strip().splitlines() or [type(error).__name__]
    return next((line.strip() for line in lines if "WeightsUnpickler error" in line), lines[0])


def main() -> None:
    """Answer the question on stdin."""
    question: dict[str, list[str]] = json.load(sys.stdin)
    answer: dict[str, Any] = {
        "python": platform.python_version(),
        "packages": versions(question["packages"]),
        "modules": [name for name in question["modules"] if importlib.util.find_spec(name)],
        "unreadable": unreadable(question["weights"]),
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
