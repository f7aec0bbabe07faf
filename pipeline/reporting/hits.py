"""The images that a search has found: a table for people, or CSV and JSON. Loads no torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from pipeline.errors import UserError
from pipeline.reporting.terminal import print_cells

COLUMNS = ("rank", "score", "species", "file")
FORMS = ("table", "csv", "json")

Row = tuple[int, float, str | None, str]
"""As COLUMNS; the score is a cosine."""


def check(form: str) -> None:
    """UserError for a form that there is not."""
    if form not in FORMS:
        raise UserError(f"--format {form}: choose {', '.join(FORMS[:-1])} or {FORMS[-1]}")


def show(form: str, rows: Sequence[Row]) -> None:
    """Print them in a form that there is."""
    if form == "table":
        print_cells(COLUMNS, [(str(rank), f"{score:.3f}", species or "–", file) for rank, score, species, file in rows])
    else:
        print((to_csv if form == "csv" else to_json)(rows))


def to_csv(rows: Sequence[Row]) -> str:
    """An empty cell where the species is not known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return stream.getvalue().removesuffix("\n")


def to_json(rows: Sequence[Row]) -> str:
    """A list of objects; null where the species is not known."""
    return json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows], indent=1)
