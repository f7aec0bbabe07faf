"""Draws of species and of few shots from real files: they are of the names of images, so neither another order of rows nor a row
more or less deals the others anew."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.species import load_species
from tests.lab import write_images

SPECIES = {"split": {"kind": "species", "name": "S40-1"}}
SHOTS = {"shots": 2}
SIZES = (9, 7, 5, 4, 3, 3, 2, 2)
HOW = pytest.mark.parametrize("how", [SPECIES, SHOTS, SPECIES | SHOTS], ids=["species", "shots", "both"])


def load(source: Path, how: dict[str, object]) -> Dataset:
    columns = {"image": "file"}
    return load_species(Data.model_validate({"source": str(source), "columns": columns, "label": "species", **how}))


def drawn(dataset: Dataset) -> dict[str, list[str]]:
    """The splits of each image's rows, by its path."""
    found: dict[str, list[str]] = {}
    for file, split in sorted(zip(map(str, dataset.image_names()), dataset.table["split"], strict=True)):
        found.setdefault(file, []).append(split)
    return found


def rows(folder: Path, taken: int = 1) -> pd.DataFrame:
    """A species for each of SIZES, no groups, some rows to validate; of the first `taken` images, one has two rows."""
    files = write_images(folder, sum(SIZES))
    names = [f"Genus{i % 3} sp{i}" for i, n in enumerate(SIZES) for _ in range(n)]
    table = pd.DataFrame({"file": files, "species": names})
    table["split"] = ["validation" if i % 9 == 8 else "train" for i in range(len(table))]
    return pd.concat([table, table.iloc[: taken - 1]], ignore_index=True)


def written(table: pd.DataFrame, folder: Path) -> Path:
    path = folder / "metadata.csv"
    table.to_csv(path, index=False)
    return path


@HOW
@pytest.mark.parametrize("taken", [1, 2], ids=["each image once", "an image twice"])
def test_rows_of_a_file_may_come_in_any_order(tmp_path: Path, how: dict[str, object], taken: int) -> None:
    table = rows(tmp_path, taken)
    before = drawn(load(written(table, tmp_path), how))
    for seed in range(3):
        assert drawn(load(written(table.sample(frac=1, random_state=seed), tmp_path), how)) == before


def test_a_row_less_leaves_the_shots_of_other_species_as_they_were(tmp_path: Path) -> None:
    table = rows(tmp_path)
    before = drawn(load(written(table, tmp_path), SHOTS))
    after = drawn(load(written(table.drop(index=0), tmp_path), SHOTS))
    first = set(table["file"][table["species"] == table["species"][0]])
    assert {file: before[file] for file in before.keys() - first} == {file: after[file] for file in after.keys() - first}
    assert sum(before[file] != after.get(file, before[file]) for file in first) <= 1


@HOW
def test_an_image_more_in_a_folder_deals_next_to_none_anew(tmp_path: Path, how: dict[str, object]) -> None:
    table = rows(tmp_path / "all")
    for file, name, split in table.itertuples(index=False):
        place = tmp_path / "photos" / split / name.replace(" ", "_") / Path(file).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((tmp_path / "all" / file).read_bytes())
    before = drawn(load(tmp_path / "photos", how))
    first = min((tmp_path / "photos").rglob("*.png"))
    first.with_name("-.png").write_bytes(first.read_bytes())
    after = drawn(load(tmp_path / "photos", how))
    assert sum(before[file] != after[file] for file in before) <= 3
