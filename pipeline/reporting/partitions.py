"""How a split parts images and classes, for `carabid split`: sizes of partitions and of n-shot buckets as a table, every row as
Parquet, and a picture of class sizes. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pipeline.config.trial import Config
from pipeline.data.truth import SPLITS
from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

COLOURS = {"trained on": "#4477aa", "OOD validation": "#ccbb44", "OOD test": "#ee6677", "OOD": "#aa3377"}
"""Tol's bright scheme, which colour-blind people can tell apart."""
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 960, 420, 60, 50, 40
"""Of the picture, and its margins, in pixels."""


class Partitions(NamedTuple):
    """A table of all images, what was said when it was made, and where buckets part."""

    images: pd.DataFrame
    """A row each: id, group, label, split, partition (`id` where its class is trained on, else `ood`), n_train (images of its
    class that are trained on)."""
    warnings: tuple[str, ...]
    cuts: tuple[int, int]


def partitions(config: Config) -> Partitions:
    """The partitions of a trial's data. Raises UserError where these have no classes."""
    from pipeline.tasks import load_task

    dataset = load_task(config.task).load(config.data)
    table = dataset.table
    if "label" not in table:
        raise UserError(f"{config.data.source}: a split is shown by classes, and the task {config.task} predicts numbers")
    trained = table["split"].isin(config.data.split.trained)
    n_train = table["label"].map(table.loc[trained, "label"].value_counts()).fillna(0).astype("int64")
    images = table[["id", "group", "label", "split"]].assign(partition=["id" if n else "ood" for n in n_train], n_train=n_train)
    return Partitions(images, (*dataset.notes, *dataset.warnings), config.evaluate.buckets)


# ---------------------------------------------------------------- tables
def rows(found: Partitions) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each partition that has images, with their number, groups, classes and share."""
    images, lines = found.images, list[list[str]]()
    for split in SPLITS:
        for partition in ("id", "ood"):
            some = images[(images["split"] == split) & (images["partition"] == partition)]
            name = split if split in ("train", "unused") else f"{partition.upper()} {split}"
            if len(some):
                share = f"{len(some) / len(images):.1%}"
                lines.append([name, *map(str, (len(some), some["group"].nunique(), some["label"].nunique())), share])
    total = (len(images), images["group"].nunique(), images["label"].nunique())
    return ["partition", "images", "groups", "classes", "share"], [*lines, ["all", *map(str, total), "100.0%"]]


def bucket_rows(found: Partitions) -> tuple[list[str], list[list[str]]]:
    """The header, and a row for each n-shot bucket: what it is, its classes, and its images in training, validation and test."""
    from pipeline.metrics.buckets import BUCKETS, bucket_of

    images, (low, high) = found.images, found.cuts
    number = bucket_of(images["n_train"].to_numpy("int64"), found.cuts)
    said = (f"1 to {low}", f"{low + 1} to {high}", f"more than {high}")
    lines = []
    for place, (name, what) in enumerate(zip((*BUCKETS, "held out"), (*said, "none"), strict=True)):
        some = images[number == (place if place < len(BUCKETS) else -1)]
        counts = [int((some["split"] == split).sum()) for split in SPLITS[:3]]
        lines.append([name, what, str(some["label"].nunique()), *map(str, counts)])
    return ["bucket", "training images of a class", "classes", *SPLITS[:3]], lines


def show(found: Partitions) -> None:
    """Print warnings and both tables."""
    from pipeline.reporting.terminal import print_cells

    for warning in found.warnings:
        print(warning)
    for header, lines in (rows(found), bucket_rows(found)):
        widths = [max(len(row[i]) for row in (header, *lines)) for i in range(len(header))]
        print_cells(header, lines, widths)


def write(found: Partitions, out: Path) -> list[Path]:
    """Write every image's partition as Parquet, and the picture beside it as SVG; the paths of both. Raises UserError where the
    name does not end in .parquet."""
    from pipeline.disk.writing import write_table, write_text

    if out.suffix != ".parquet":
        raise UserError(f"--out {out}: name a file that ends in .parquet; a picture, .svg, is written beside it")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_table(out, found.images)
    picture = out.with_suffix(".svg")
    write_text(picture, draw(found))
    return [out, picture]


# ---------------------------------------------------------------- picture
def draw(found: Partitions) -> str:
    """An SVG: a bar for each class from the largest to the smallest, its height the logarithm of its images; coloured by whether
    it is trained on, or in which split it is held out. Lines stand where buckets part, dots where a class's training images
    end."""
    import numpy as np

    sizes, trained, kinds = _classes(found.images)
    step, top = (WIDTH - LEFT - 20) / len(sizes), math.log10(1 + max(int(sizes.max()), found.cuts[1]))
    heights, dots = ((HEIGHT - TOP - BOTTOM) * np.log10(1 + values) / top for values in (sizes, trained))
    xs, ground = LEFT + step * (np.arange(len(sizes)) + 0.5), HEIGHT - BOTTOM
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for kind, colour in COLOURS.items():
        bars = " ".join(f"M{x:.2f} {ground}v{-h:.1f}" for x, h, k in zip(xs, heights, kinds, strict=True) if k == kind)
        parts.append(f'<path d="{bars}" stroke="{colour}" stroke-width="{max(0.8 * step, 0.3):.2f}"/>' if bars else "")
    marks = " ".join(f"M{x - step / 2:.2f} {ground - y:.1f}h{step:.2f}" for x, y in zip(xs, dots, strict=True) if y)
    parts.append(f'<path d="{marks}" stroke="black" stroke-width="1.5"/>' if marks else "")
    ticks = [10**k for k in range(1 + int(top))]
    parts += _axis(ticks, found.cuts, top)
    parts += _legend(kinds)
    return "\n".join(filter(None, [*parts, "</svg>"])) + "\n"


def _classes(images: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Of each class, the largest first, its images, those trained on, and which kind of COLOURS it is."""
    of = images.groupby("label").agg(n=("id", "size"), n_train=("n_train", "first"), splits=("split", lambda s: frozenset(s)))
    of = of.sort_values(["n", "n_train"], ascending=False, kind="stable")

    def kind(n_train: int, splits: frozenset[str]) -> str:
        (only, *more) = sorted(splits)
        return "trained on" if n_train else f"OOD {only}" if not more and f"OOD {only}" in COLOURS else "OOD"

    kinds = [kind(n, splits) for n, splits in zip(of["n_train"], of["splits"], strict=True)]
    return of["n"].to_numpy(), of["n_train"].to_numpy(), kinds


def _axis(ticks: Sequence[int], cuts: Sequence[int], top: float) -> Iterator[str]:
    ground = HEIGHT - BOTTOM
    for value in ticks:
        y = ground - (ground - TOP) * math.log10(1 + value) / top
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
    for value in cuts:
        y = ground - (ground - TOP) * math.log10(1 + value) / top
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - 20}" stroke="#888" stroke-dasharray="4 3"/>'
        yield f'<text x="{WIDTH - 18}" y="{y - 4:.1f}" text-anchor="end" fill="#555">{value}</text>'
    yield f'<path d="M{LEFT} {TOP}V{ground}H{WIDTH - 20}" stroke="black" fill="none"/>'
    yield f'<text x="{WIDTH / 2}" y="{HEIGHT - 20}" text-anchor="middle">classes, from the most images to the fewest</text>'
    yield f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">images (black: trained on)</text>'


def _legend(kinds: Sequence[str]) -> Iterator[str]:
    x = LEFT + 10
    for kind, colour in COLOURS.items():
        if n := kinds.count(kind):
            text = f"{kind}: {n} classes"
            yield f'<rect x="{x}" y="14" width="12" height="12" fill="{colour}"/><text x="{x + 18}" y="24">{escape(text)}</text>'
            x += 40 + 7 * len(text)
