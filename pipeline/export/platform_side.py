"""What the platform's side of every challenge does alike: load a submission's model, call it, and say what is wrong with it.

Beside `beetles_ingestion.py` or `butterflies_ingestion.py` it stands alone and imports nothing of this package, which the
platform does not have. Unlike the platform's it installs nothing: requirements.txt is looked at before. What is wrong with a
submission is written to OUTPUT/failure.txt, status 1.
"""

from __future__ import annotations

import importlib
import math
import resource
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

DECIMALS = 4
MAX_OWN_FRAMES = 4


class Refused(Exception):
    """The submission breaks the protocol; the message says how."""


def run(arguments: list[str], predict: Callable[[Any, Path, Path, Path], None]) -> None:
    """Run the submission of INPUT OUTPUT PROGRAM SUBMISSION: `predict(model, INPUT, OUTPUT, SUBMISSION)` writes what it says.

    Ends the process with status 1 if it fails.
    """
    source, output, program, submission = (Path(argument).resolve() for argument in arguments)
    sys.path += [str(program), str(submission)]
    try:
        predict(load_model(submission), source, output, submission)
    except Refused as refusal:
        (output / "failure.txt").write_text(f"{refusal}\n", encoding="utf-8")
        sys.exit(f"{refusal}")


def load_model(submission: Path) -> Any:
    """The submission's model, loaded. Raises Refused."""
    module = attempt("importing model.py", submission, lambda: importlib.import_module("model"))
    if not hasattr(module, "Model"):
        raise Refused("model.py has no class Model: the platform runs `from model import Model`")
    model = attempt("Model()", submission, module.Model)
    attempt("Model().load()", submission, lambda: model.load())
    return model


def not_a_number(value: Any) -> str | None:
    """How an answer is not a Python float that can be written down; None if it is."""
    if type(value) is not float:  # (numpy's float64 is a float too, and the platform refuses it)
        return f"is {kind(value)}, not a Python float: write float(…)"
    return None if math.isfinite(value) else f"is {value}"


def kind(value: Any) -> str:
    """The type of a value, in words."""
    of = type(value)
    return of.__name__ if of.__module__ == "builtins" else f"{of.__module__}.{of.__name__}"


def attempt(what: str, submission: Path, call: Callable[[], Any]) -> Any:
    """Call the submission's code. Raises Refused with its own lines of the traceback, which people need."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise Refused(f"{what} raised\n{own_lines(error, submission)}") from None


def own_lines(error: BaseException, submission: Path) -> str:
    """The traceback's last lines in the submission's files, the line that raised, and the error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(submission)]
    kept = own[-MAX_OWN_FRAMES:] + (frames[-1:] if own and frames[-1] != own[-1] else [])
    lines = traceback.format_list(kept) + traceback.format_exception_only(error)
    return "".join(lines).replace(f"{submission}/", "").rstrip()


def allow_open_files() -> None:
    """An event's images stay open until somebody reads them: three files a specimen, which may exceed a shell's limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
