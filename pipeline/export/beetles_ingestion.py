"""The platform's side of a beetles' submission, as the challenge's rules write it down: events in, predictions.csv out.

    python beetles_ingestion.py INPUT OUTPUT PROGRAM SUBMISSION

It stands alone, beside `platform_side.py`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from platform_side import DECIMALS, Refused, allow_open_files, attempt, kind, not_a_number, run  # beside this file

TARGETS = ("SPEI_30d", "SPEI_1y", "SPEI_2y")
PARAMETERS = ("mu", "sigma")
IMAGES = {"relative_img": "relative_img_loc", "colorpicker_img": "colorpicker_path", "scalebar_img": "scalebar_path"}
SMALLEST_SIGMA = 1e-3
"""A sigma below 5e-5 would be written as 0, and a score be infinite; so near to it something is wrong."""

Specimen = dict[str, Any]


def predict(model: Any, source: Path, output: Path, submission: Path) -> None:
    """Write predictions.csv. Raises Refused."""
    rows = list(predict_all(model, source, submission))
    table = pd.DataFrame(rows, columns=["eventID", "variable", "parameter", "prediction"])
    table.to_csv(output / "predictions.csv", index=False)


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
            if fault := _no_parameter(answer[target][parameter], parameter):
                return f"a {parameter} of {target} that {fault}"
    return None


def _other_keys(value: Any, keys: tuple[str, ...]) -> str | None:
    wanted = f"a dict with exactly the keys {', '.join(keys)}"
    if not isinstance(value, dict):
        return f"{kind(value)}, not {wanted}"
    return None if set(value) == set(keys) else f"the keys {', '.join(map(str, value)) or '(none)'}, not {wanted}"


def _no_parameter(value: Any, parameter: str) -> str | None:
    fault: str | None = not_a_number(value)
    if fault:
        return fault
    if parameter == "sigma" and value < SMALLEST_SIGMA:
        return f"is {value:g}: it is rounded to {DECIMALS} decimals and scored as a spread, so keep it ≥ {SMALLEST_SIGMA}"
    return None


if __name__ == "__main__":
    run(sys.argv[1:], predict)
