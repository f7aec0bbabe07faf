"""The beetles' protocol: events that are hard, run twice, the second time with specimens and events in another order, which must
not matter."""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from pipeline.errors import WorkError
from pipeline.export.inputs import Row, make_inputs, modes, shuffled, write_table
from pipeline.progress import log

SCRIPT = "beetles_ingestion.py"
SAME = 1e-4
"""How far predictions may differ with the order: one step of what is written down."""
LARGEST = 500
"""Specimens of the largest event."""

Predictions = dict[tuple[str, str, str], float]
Run = Callable[[Path, str], Path]
"""Run a submission on `folder/input`, under a name; where its output lies. Raises WorkError if it fails."""


def run_protocol(run: Run, largest: int) -> list[str]:
    """Run a submission on hard events, in two orders. Raises WorkError if it fails or the order matters."""
    with tempfile.TemporaryDirectory(prefix="carabid-check-") as place:
        work = Path(place)
        rows = make_inputs(work / "input", largest)
        events = len({row[-1] for row in rows})
        log(f"predicting {events} events with {len(rows)} specimens, in two orders")
        began = monotonic()
        first = _read(run(work, "first"))
        seconds = monotonic() - began
        write_table(work / "input", shuffled(rows))
        second = _read(run(work, "second"))
        if _differing(first, second):
            write_table(work / "input", rows)
            _explain_difference(rows, first, second, _read(run(work, "third")))
        seen = ", ".join(modes(work / "input"))
    return [
        f"protocol: {events} events, {len(rows)} specimens (the largest event has {largest}), {seconds:.1f} s; "
        f"images of modes {seen}, and some that open and do not decode; names and domains known, unseen, and no name",
        "the same predictions with specimens and events in another order",
    ]


def _read(output: Path) -> Predictions:
    """What a submission said. Raises WorkError where it left nothing."""
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    return {(each["eventID"], each["variable"], each["parameter"]): float(each["prediction"]) for each in lines}


def _differing(one: Predictions, other: Predictions) -> list[tuple[str, str, str]]:
    """Where two predictions differ, the farthest apart first. (A hair above one step: they are decimals.)"""
    apart = {key: abs(one[key] - other[key]) for key in one}
    return sorted((key for key in one if apart[key] > SAME * 1.001), key=lambda key: -apart[key])


def _explain_difference(rows: Sequence[Row], first: Predictions, second: Predictions, again: Predictions) -> None:
    """Raise WorkError that says whether chance or the order made a difference."""
    by_chance = _differing(first, again)
    key = (by_chance or _differing(first, second))[0]
    event, target, parameter = key
    many = Counter(str(row[-1]) for row in rows)[event]
    what = f"event {event} ({many} specimens): its {parameter} of {target} is {first[key]:.4f}"
    if by_chance:
        raise WorkError(
            f"{what} and, of the same input again, {again[key]:.4f}: draw nothing at random in predict, "
            "and put the model into eval mode"
        )
    raise WorkError(
        f"{what} and, with specimens and events in another order, {second[key]:.4f}: an event's prediction must depend on neither"
    )
