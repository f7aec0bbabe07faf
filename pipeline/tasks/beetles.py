"""Beetles: drought at a sampling event from photographs of its specimens.

The targets are SPEI over the last 30 days, 1 year and 2 years: standard deviations from the usual, negative is dry. The schema is
that of the HDR Scientific Mood challenge (Hub data set `imageomics/sentinel-beetles`), whose score, `rms`, all numbers have.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pipeline.tasks.numbers import Numbers


class Beetles(Numbers):
    """Numbers, and the challenge's data."""

    def generate(
        self, out: Path, seed: int = 0, scale: float = 1.0, form: Literal["parquet", "csv", "disk"] = "parquet"
    ) -> dict[str, int]:
        """Write generated beetles to the folder `out`; `scale` multiplies the number of events.

        Raises UserError if `out` holds anything else than generated beetles, and for a form, a seed or a scale that there is not.
        """
        from pipeline.synthetic.beetles import Size, write  # drawing needs Pillow, which nothing else here does

        return write(out, seed, Size().scaled(scale), form)


TASK = Beetles()
