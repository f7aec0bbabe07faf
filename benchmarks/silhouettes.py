"""Shape measures of image silhouettes, as a data set for the chain: a CSV whose targets can be checked by hand.

    python benchmarks/silhouettes.py IMAGES OUT.csv

IMAGES is a folder of 1-bit silhouettes (white on black). Each row has the image's path and three measures of the whole,
uncropped silhouette, none of which a label gave away: they test that features of a backbone, which sees the image resized
and cropped, carry shape through extraction, training and evaluation.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TARGETS = ("area_fraction", "width_to_height", "axis_ratio")


def measure(mask: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Of a mask [H, W]: share of pixels inside, width/height of the bounding box, minor/major principal axis."""
    y, x = np.nonzero(mask)
    minor, major = np.linalg.eigvalsh(np.cov(np.stack([x, y])))
    return float(mask.mean()), float((np.ptp(x) + 1) / (np.ptp(y) + 1)), float(np.sqrt(minor / major))


def write_csv(images: Path, out: Path) -> int:
    """One row per PNG in `images`; returns how many."""
    files = sorted(images.glob("*.png"))
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", *TARGETS])
        for path in files:
            with Image.open(path) as image:
                writer.writerow([path.name, *measure(np.asarray(image.convert("L")) > 127)])
    return len(files)


if __name__ == "__main__":
    print(f"{write_csv(Path(sys.argv[1]), Path(sys.argv[2]))} silhouettes")
