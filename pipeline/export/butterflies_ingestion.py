"""The platform's side of a butterflies' submission, as the challenge's rules write it down: images in, predictions.txt out.

    python butterflies_ingestion.py INPUT OUTPUT PROGRAM SUBMISSION

It stands alone, beside `platform_side.py`. Folders and what PIL cannot open are passed over; what predict raises ends the run.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from platform_side import DECIMALS, Refused, attempt, not_a_number, run  # beside this file


def predict(model: Any, source: Path, output: Path, submission: Path) -> None:
    """Write a line `filename,score` for each image. Raises Refused."""
    with (output / "predictions.txt").open("w") as file:
        for name in os.listdir(source):
            image = opened(source / name)
            if image is None:
                continue
            where = f"{name} ({image.mode} {image.width}×{image.height})"  # (before a submission changes what it is given)
            score = attempt(f"{where}: predict", submission, partial(model.predict, image))
            if fault := not_a_number(score):
                raise Refused(f"{where}: predict answered what {fault}")
            file.write(f"{name},{round(score, DECIMALS)}\n")


def opened(path: Path) -> Image.Image | None:
    """The image as PIL opens it, not decoded; None for a folder and for what is none."""
    if path.is_dir():
        return None
    try:
        return Image.open(path)
    except Exception:  # (as the platform's: whatever it is)
        return None


if __name__ == "__main__":
    run(sys.argv[1:], predict)
