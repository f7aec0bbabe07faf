"""`carabid split`: what it counts, what it writes, and that it needs neither torch nor a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from pipeline.disk.layout import PROJECT
from pipeline.errors import UserError
from pipeline.experiments.reading import load_experiment
from pipeline.reporting.partitions import Partitions, bucket_rows, draw, partitions, rows, write
from tests.conftest import carabid

CONFIG = "configs/generic/classify.yaml"


FINAL = ("select.epoch=last", "evaluate.split=test", "model.head.kind=mlp")
"""What trainval needs."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty species in a long tail, without a single image."""
    folder = tmp_path_factory.mktemp("table")
    sizes = [max(1, round(200 / (1 + i))) for i in range(60)]
    cells = [(f"{s}-{i}.jpg", f"Genus{s // 5} sp{s}", f"Genus{s // 5}") for s, n in enumerate(sizes) for i in range(n)]
    pd.DataFrame(cells, columns=["filename", "label", "genus"]).to_csv(folder / "labels.csv", index=False)
    return folder / "labels.csv"


def found(table: Path, *overrides: str) -> Partitions:
    how = ("data.columns.ranks=[genus]", "data.split={kind: species, name: S40-1}", *overrides)
    return partitions(load_experiment(CONFIG, (f"data.source={table}", *how)).config)


def test_partitions_and_buckets_count_every_image_and_class_once(table: Path, root: Path) -> None:
    seen = found(table)
    header, lines = rows(seen)
    assert header == ["partition", "images", "groups", "classes", "share"]
    assert [line[0] for line in lines] == ["train", "ID validation", "OOD validation", "ID test", "OOD test", "all"]
    assert sum(int(line[1]) for line in lines[:-1]) == int(lines[-1][1]) == len(seen.images)
    _, buckets = bucket_rows(seen)
    assert sum(int(line[2]) for line in buckets) == 60 and [line[0] for line in buckets] == ["few", "medium", "many", "held out"]
    n_train = seen.images[seen.images["split"] == "train"].groupby("label").size()
    few = n_train.index[n_train <= 20]
    assert buckets[0][2:4] == [str(len(few)), str(n_train[few].sum())]
    assert int(buckets[3][3]) == 0 and int(buckets[3][2]) == 12
    assert (seen.images["n_train"] == seen.images["label"].map(n_train).fillna(0)).all()
    assert ((seen.images["partition"] == "id") == (seen.images["n_train"] > 0)).all()


def test_a_final_fit_and_few_shots_show_as_what_is_trained_on(table: Path, root: Path) -> None:
    plain = found(table)
    final = found(table, "data.split.trainval=true", *FINAL)
    n_train = plain.images["split"].isin(["train", "validation"]).groupby(plain.images["label"]).sum()
    assert (final.images["n_train"] == final.images["label"].map(n_train)).all()
    shots = found(table, "data.shots=3")
    assert shots.images["n_train"].max() == 3
    assert "unused" in [line[0] for line in rows(shots)[1]]


def test_what_is_written_is_every_row_and_a_picture_with_all_classes(table: Path, root: Path, tmp_path: Path) -> None:
    seen = found(table)
    parquet, picture = write(seen, tmp_path / "new" / "parts.parquet")
    again = pd.read_parquet(parquet)
    assert list(again) == ["id", "group", "label", "split", "partition", "n_train"]
    pd.testing.assert_frame_equal(again, seen.images, check_dtype=False)
    tree = ElementTree.fromstring(picture.read_text())
    bars = [
        path.get("d", "").count("M") for path in tree.iter("{http://www.w3.org/2000/svg}path") if path.get("stroke", "")[0] == "#"
    ]
    assert sum(bars) - 2 == 60  # the two lines where buckets part
    legend = [text.text for text in tree.iter("{http://www.w3.org/2000/svg}text") if "classes" in (text.text or "")]
    assert legend[1:] == ["trained on: 48 classes", "OOD validation: 6 classes", "OOD test: 6 classes"]
    with pytest.raises(UserError, match=r"name a file that ends in \.parquet"):
        write(seen, tmp_path / "parts.csv")


def test_one_class_makes_a_picture() -> None:
    images: dict[str, Any] = {
        "id": ["a"],
        "group": ["a"],
        "label": ["<x>"],
        "split": ["test"],
        "partition": ["ood"],
        "n_train": [0],
    }
    ElementTree.fromstring(draw(Partitions(pd.DataFrame(images), (), (20, 100))))


def test_the_command_shows_tables_that_fit_and_writes(table: Path, root: Path, tmp_path: Path) -> None:
    how = (CONFIG, f"data.source={table}", "data.split={kind: species, name: D10}", "data.columns.ranks=[genus]")
    done = carabid("split", *how, "--out", tmp_path / "p.parquet", root=root)
    tables = [line for line in done.stdout.splitlines() if line[:1] in "┏┃┡│└"]
    assert len(tables) > 14 and max(map(len, tables)) <= 100 and "OOD test" in done.stdout
    assert done.stdout.splitlines()[-1] == f"wrote {tmp_path / 'p.svg'}" and (tmp_path / "p.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("data.split.fold=0,1",), "makes trials on several splits: name one"),
        (
            ("task=regress", "data.label=null", "data.targets=[mass]", "model.head.kind=ridge", "loss.kind=mse"),
            "is shown by classes",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path: Path, root: Path, arguments: tuple[str, ...], why: str) -> None:
    cells = [(f"{i}.jpg", "ab"[i % 2], i) for i in range(20)]
    pd.DataFrame(cells, columns=["filename", "label", "mass"]).to_csv(tmp_path / "t.csv", index=False)
    failed = carabid("split", CONFIG, f"data.source={tmp_path / 't.csv'}", *arguments, root=root, check=False)
    assert failed.returncode == 2 and why in failed.stderr


def test_a_split_loads_no_torch(table: Path, root: Path) -> None:
    line = [sys.executable, "-X", "importtime", "-m", "pipeline.cli", "split", CONFIG, f"data.source={table}"]
    environ = {**os.environ, "CARABID_ROOT": str(root)}
    done = subprocess.run(line, capture_output=True, text=True, cwd=PROJECT, env=environ)
    imported = {part.rpartition("|")[2].strip().partition(".")[0] for part in done.stderr.splitlines() if "|" in part}
    assert done.returncode == 0 and not imported & {
        "torch",
        "torchvision",
        "transformers",
        "open_clip",
        "datasets",
        "sklearn",
        "Bio",
    }
