"""What figures are worth: how sure they are, and what who knows nothing but the training set would get. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.reporting.page.section import Cell, Table, number, text
from pipeline.reporting.results import Row

KNOWING_NOTHING = {
    "majority": "always saying how frequent each class is",
    "mean_predictor": "always saying the training groups' mean",
    "random": "chance",
}
"""Blocks of results.json, in its summary or beside it, of what no image is needed for."""


def known(results: Sequence[Mapping[str, Any]], row: Row) -> Iterator[Table]:
    """Each headline figure beside its interval, where there is one, and what knowing nothing gets; of several trials (folds) the
    means."""
    block = next((name for name in KNOWING_NOTHING if _nothing(results[0], name)), "")
    intervals = (results[0]["summary"].get("intervals") or {}) if len(results) == 1 else {}
    lines = []
    for name, title in row.headline.items():
        value = _mean([each["figures"].get(name) for each in results])
        nothing = _mean([_value(_nothing(each, block), name) for each in results])
        if value is not None and (nothing is not None or intervals.get(name)):
            lines.append([text(title), number(value), _interval(intervals.get(name)), number(nothing)])
    if lines:
        header = ("figure", "value", "95 % interval", KNOWING_NOTHING.get(block, "knowing nothing"))
        yield Table("What its figures are worth", header, lines).without_empty()


def _nothing(results: Mapping[str, Any], block: str) -> Mapping[str, Any]:
    found = results["summary"].get(block) or results.get(block)
    return found if isinstance(found, dict) else {}


def _value(block: Mapping[str, Any], name: str) -> float | None:
    """Of `in_domain.r2` what stands in the block's own `in_domain`."""
    found: Any = block
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _interval(found: Any) -> Cell:
    return Cell(f"{found[0]:.3f} to {found[1]:.3f}", float(found[0])) if found else number(None)
