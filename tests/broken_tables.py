"""Tables that no job could train on, as labs have them: what is wrong with each, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import HEADER, PIXELS, labelled, write_table

AB = ("a", "b") * 10
SPLIT = ("filename", "label", "split")
BY_COLUMN = "data.split.kind=source"


@dataclass(frozen=True)
class Broken:
    """One of them."""

    says: str
    """A regular expression: place, column, what is wrong."""
    rows: Any
    """From rows that are well [(name, label)] to those of the table."""
    header: Sequence[str] = HEADER
    overrides: tuple[str, ...] = ()
    separator: str = ","

    def write(self, folder: Path) -> Path:
        return write_table(folder, self.rows(labelled(folder, AB)), self.header, self.separator)

    def arguments(self, folder: Path) -> list[str]:
        """Of `carabid plan` or `submit`."""
        return ["configs/generic/classify.yaml", f"data.source={self.write(folder)}", *PIXELS, *self.overrides]


def _split(rows: Sequence[tuple[str, str]], names: Sequence[str]) -> list[tuple[str, ...]]:
    return [(*row, names[0] if i < 10 else names[1] if i < 16 else names[2]) for i, row in enumerate(rows)]


BROKEN = {
    "an empty label": Broken(
        r"labels\.csv, line 4: column label \(data\.label\) is empty", lambda rows: [*rows[:2], (rows[2][0], ""), *rows[3:]]
    ),
    "a label NA": Broken(
        r"labels\.csv, line 4, line 6: column label .* holds 'NA'",
        lambda rows: [(name, "NA" if i in (2, 4) else label) for i, (name, label) in enumerate(rows)],
    ),
    "no column of labels": Broken(r"no column 'label' \(data\.label\); .*species", lambda rows: rows, ("filename", "species")),
    "no image is there": Broken(
        r"labels\.csv, line 2: column filename: there is no file .*img/0\.png\. Neither are 19 more of 20",
        lambda rows: [(f"img/{i}.png", label) for i, (_, label) in enumerate(rows)],
    ),
    "one image is not there": Broken(
        r"labels\.csv, line 9: column filename: there is no file .*gone\.png\. Correct",
        lambda rows: [*rows[:7], ("images/gone.png", "b"), *rows[8:]],
    ),
    "paths of Windows": Broken(
        r"labels\.csv, line 2: .*did you mean .*images/0\.png\?",
        lambda rows: [("D:\\pictures\\" + name.replace("/", "\\"), label) for name, label in rows],
    ),
    "splits of other names": Broken(
        r"no split 'train'; it has: Train, val, Test.*data\.split\.train=",
        lambda rows: _split(rows, ("Train", "val", "Test")), SPLIT, (BY_COLUMN,),
    ),
    "a validation of one class": Broken(
        r"labels\.csv: the 3 validation groups are too much alike for .*select\.metric=",
        lambda rows: [
            row for row in _split(rows, ("train", "validation", "test")) if not (row[1] == "b" and row[2] == "validation")
        ],
        SPLIT, (BY_COLUMN,),
    ),
    "a training of one class": Broken(
        r"labels\.csv: all training images are of the class a",
        lambda rows: [row for row in _split(rows, ("train", "validation", "test")) if not (row[1] == "b" and row[2] == "train")],
        SPLIT, (BY_COLUMN,),
    ),
    "no columns of parents": Broken(
        r"no column 'mother' \(data\.columns\.auxiliary\)", lambda rows: rows,
        overrides=("data.columns.auxiliary=[mother,father]", "model.head={kind: mlp}"),
    ),
    "fewer groups than folds": Broken(
        r"data\.split\.n = 5, but there are 4 groups",
        lambda rows: [(*row, f"p{'ab'.index(row[1])}{i // 2 % 2}") for i, row in enumerate(rows)],
        ("filename", "label", "plant"), ("data.columns.group=plant",),
    ),
    "semicolons in cells": Broken(
        r"labels\.csv, line 2: 3 cells, but the header names 2 columns\. Quote cells that hold ';'",
        lambda rows: [(name, label, "x") for name, label in rows], separator=";",
    ),
    "too few images for k": Broken(
        r"labels\.csv: model\.head\.kind knn has k 40, more than the 12 images", lambda rows: rows,
        overrides=("model.head={kind: knn, k: 40}",),
    ),
    "no test images": Broken(
        r"labels\.csv: evaluate\.split is test, but the data have no such images",
        lambda rows: _split(rows, ("train", "validation", "validation")), SPLIT, (BY_COLUMN, "evaluate.split=test"),
    ),
}  # fmt: skip
