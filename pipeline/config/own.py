"""A lab's own Python file, named by its path in a configuration: its task, and the kinds that it defines."""

import hashlib
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from pipeline.errors import UserError

COPIES = Path(__file__).resolve().parents[2] / "own"
"""Where a snapshot of the code has the files as they were when a submission was made (`launch/manifest/snapshot.py`)."""


def copy_name(path: str) -> str:
    """What a file is called in COPIES: its own name, and what tells it from others of that name."""
    return f"{Path(path).stem}-{hashlib.sha256(path.encode()).hexdigest()[:8]}.py"


def content(path: str) -> bytes:
    """The file, in a snapshot as it was then. Raises UserError if it is not there."""
    copy = COPIES / copy_name(path)
    try:
        return (copy if copy.exists() else Path(path)).read_bytes()
    except OSError as error:
        raise UserError(f"`task`: there is no file {path} beside its YAML or from here ({error.strerror})") from error


def content_hash(name: str) -> str | None:
    """sha256 of the file that a task is; None for a task of the package, which its code's version tells."""
    return hashlib.sha256(content(name)).hexdigest() if name.endswith(".py") else None


def load_file(path: str, place: str = "") -> ModuleType:
    """The file as a module, run again where it has changed. Raises UserError with what it raised, where it cannot be run.

    `place` is where the configuration names it.
    """
    try:
        return _load(path, content(path))
    except UserError as error:
        raise UserError(f"{place}: {error}" if place else str(error)) from error


@lru_cache(64)
def _load(path: str, code: bytes) -> ModuleType:
    name = f"carabid_own_{Path(path).stem}_{hashlib.sha256(path.encode() + code).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module  # dataclasses and pydantic look modules up by name
    try:
        exec(compile(code, path, "exec"), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"`task`: {path} cannot be run: {type(error).__name__}: {error}") from error
    return module
