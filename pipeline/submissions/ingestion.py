"""The platform's side of a submission, as the challenge's rules write it down: events in, predictions.csv out.

    python ingestion.py INPUT OUTPUT PROGRAM SUBMISSION

It stands alone and imports nothing of this package, which the platform does not have. Unlike the platform's it installs
nothing: requirements.txt is looked at before. What is wrong with a submission is written to OUTPUT/failure.txt, status 1.
"""

from __future__ import annotations

import importlib
import math
import resource
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

TARGETS = ("SPEI_30d", "SPEI_1y", "SPEI_2y")
PARAMETERS = ("mu", "sigma")
IMAGES = {"relative_img": "relative_img_loc", "colorpicker_img": "colorpicker_path", "scalebar_img": "scalebar_path"}
DECIMALS = 4
SMALLEST_SIGMA = 1e-3
"""A sigma below 5e-5 would be written as 0, and a score be infinite; so near to it something is wrong."""
MAX_OWN_FRAMES = 4

Specimen = dict[str, Any]


class Refused(Exception):
    """The submission breaks the protocol; the message says how."""


def main(arguments: list[str]) -> None:
    """Run a submission; ends the process with status 1 if it fails."""
    source, output, program, submission = (Path(argument).resolve() for argument in arguments)
    sys.path += [str(program), str(submission)]
    try:
        rows = list(predict_all(load_model(submission), source, submission))
    except Refused as refusal:
        (output / "failure.txt").write_text(f"{refusal}\n", encoding="utf-8")
        sys.exit(f"{refusal}")
    table = pd.DataFrame(rows, columns=["eventID", "variable", "parameter", "prediction"])
    table.to_csv(output / "predictions.csv", index=False)


def load_model(submission: Path) -> Any:
    """The submission's model, loaded. Raises Refused."""
    module = attempt("importing model.py", submission, lambda: importlib.import_module("model"))
    if not hasattr(module, "Model"):
        raise Refused("model.py has no class Model: the platform runs `from model import Model`")
    model = attempt("Model()", submission, module.Model)
    attempt("Model().load()", submission, lambda: model.load())
    return model


def predict_all(model: Any, source: Path, submission: Path) -> Iterator[tuple[int, str, str, float]]:
    """The lines of predictions.csv, event by event. Raises Refused."""
    allow_open_files()
    table = pd.read_csv(source / "input.csv")
    for event, rows in table.groupby("eventID", sort=False):
        specimens = [read_specimen(row, source) for row in rows.to_dict("records")]
        where = f"event {event} ({describe(specimens)})"  # (before a submission changes what it is given)
        answer = attempt(f"{where}: predict", submission, partial(model.predict, specimens))
        if fault := find_fault(answer):
            raise Refused(f"{where}: predict answered {fault}")
        for target in TARGETS:
            for parameter in PARAMETERS:
                yield int(str(event)), target, parameter, round(answer[target][parameter], DECIMALS)


def read_specimen(row: dict[Any, Any], source: Path) -> Specimen:
    """What predict is given of a specimen: images as PIL opens them, not converted; an empty name is a NaN."""
    images = {name: Image.open(source / row[column]) for name, column in IMAGES.items()}
    return {**images, "scientificName": row["scientificName"], "domainID": row["domainID"]}


def describe(specimens: list[Specimen]) -> str:
    """An event in words: how many specimens, which images, names and domain."""
    modes = Counter(f"{s['relative_img'].mode} {s['relative_img'].width}×{s['relative_img'].height}" for s in specimens)
    names = sorted({f"{s['scientificName']}" for s in specimens})
    many = "1 specimen" if len(specimens) == 1 else f"{len(specimens)} specimens"
    return f"{many}: {', '.join(modes)}; domain {specimens[0]['domainID']}; {', '.join(names)}"


def find_fault(answer: Any) -> str | None:
    """How an answer is not {target: {"mu": float, "sigma": float}} with numbers that can be written down."""
    if fault := _other_keys(answer, TARGETS):
        return fault
    for target in TARGETS:
        if fault := _other_keys(answer[target], PARAMETERS):
            return f"for {target} {fault}"
        for parameter in PARAMETERS:
            if fault := _not_a_number(answer[target][parameter], parameter):
                return f"a {parameter} of {target} that {fault}"
    return None


def _other_keys(value: Any, keys: tuple[str, ...]) -> str | None:
    wanted = f"a dict with exactly the keys {', '.join(keys)}"
    if not isinstance(value, dict):
        return f"{_kind(value)}, not {wanted}"
    return None if set(value) == set(keys) else f"the keys {', '.join(map(str, value)) or '(none)'}, not {wanted}"


def _not_a_number(value: Any, parameter: str) -> str | None:
    if type(value) is not float:  # (numpy's float64 is a float too, and the platform refuses it)
        return f"is {_kind(value)}, not a Python float: write float(…)"
    if not math.isfinite(value):
        return f"is {value}"
    if parameter == "sigma" and value < SMALLEST_SIGMA:
        return (
            f"is {value:g}: it is rounded to {DECIMALS} decimals and scored as a spread, so keep it ≥ {SMALLEST_SIGMA}"
        )
    return None


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


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


if __name__ == "__main__":
    main(sys.argv[1:])
