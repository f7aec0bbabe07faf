"""The butterflies' protocol: images of every kind, broken ones among them, run twice, which must give the same scores."""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from pipeline.errors import WorkError
from pipeline.export.inputs import make_files
from pipeline.progress import log

SCRIPT = "butterflies_ingestion.py"
Scores = dict[str, float]
Run = Callable[[Path, str], Path]
"""Run a submission on `folder/input`, under a name; where its output lies. Raises WorkError if it fails."""


def run_protocol(run: Run, largest: int) -> list[str]:
    """Run a submission on hard images, twice. Raises WorkError if it fails, leaves one out, or chance plays a part.

    (`largest` is of events, which the butterflies' platform does not know.)
    """
    with tempfile.TemporaryDirectory(prefix="carabid-check-") as place:
        whole, broken = make_files(Path(place) / "input")
        log(f"scoring {len(whole)} images and {len(broken)} broken ones, twice")
        began = monotonic()
        first = _read(run(Path(place), "first"))
        seconds = monotonic() - began
        second = _read(run(Path(place), "second"))
    _check(first, second, {*whole, *broken})
    images = f"{len(whole)} images of every mode, {len(broken)} that open and do not decode, a text file and a folder"
    return [f"protocol: {images}, {seconds:.1f} s", "the same scores again", *_ties(first, whole)]


def _read(output: Path) -> Scores:
    with (output / "predictions.txt").open(newline="", encoding="utf-8") as stream:
        return {name: float(score) for name, score in csv.reader(stream)}


def _check(first: Scores, second: Scores, names: set[str]) -> None:
    if missing := sorted(names - first.keys()):
        raise WorkError(f"no score for {', '.join(missing)}")
    if differing := [name for name in first if first[name] != second[name]]:
        name = differing[0]
        raise WorkError(
            f"{name} has the score {first[name]} and, of the same image again, {second[name]}: draw nothing at random in "
            "predict, and put the model into eval mode"
        )


def _ties(scores: Scores, images: list[str]) -> list[str]:
    """A note where different images have one score: a recall of 0 threatens, because the scorer asks for more than that."""
    score, n = Counter(scores[name] for name in images).most_common(1)[0]
    if n <= len(images) // 2:
        return []
    return [
        f"note: {n} of {len(images)} images have the score {score} after rounding to 4 decimals: where the threshold is such a "
        "score no hybrid is above it; spread the scores out"
    ]
