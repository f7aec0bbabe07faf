"""What generated species must be: a long tail with ranks, sexes and two views, known by the usual names, and alike where they
split late."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import spearmanr
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.species import load_species
from pipeline.data.taxonomy import taxonomy_of
from pipeline.data.tree import read_tree, shared_depths
from pipeline.errors import UserError
from pipeline.synthetic.species import COLUMNS, FAMILIES, make_species, make_specimens, write


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "species"
    write(folder, scale=0.25)
    return folder


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metadata.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def load(folder: Path, image: str = "filename") -> Dataset:
    values = {"source": str(folder), "label": "auto", "columns": {"image": image}, "split": {"kind": "species"}}
    return load_species(Data.model_validate(values))


def test_columns_are_those_of_darwin_core_and_images_are_there(made: Path) -> None:
    rows = rows_of(made)
    assert tuple(rows[0]) == COLUMNS and {row["view"] for row in rows} == {"dorsal", "ventral"}
    assert {row["sex"] for row in rows} == {"female", "male", ""}
    assert {str(path.relative_to(made)) for path in made.rglob("*.jpg")} == {row["filename"] for row in rows}
    assert Image.open(made / rows[0]["filename"]).format == "JPEG"


def test_numbers_fall_in_a_long_tail_and_every_species_is_there_at_any_scale() -> None:
    for scale in (0.01, 0.25, 1.0):
        specimens = make_specimens(0, scale)
        counts = Counter(one.species.name for one in specimens)
        assert len(counts) == len(make_species(0)) and min(counts.values()) == (4 if scale == 1.0 else 1)
        assert len({one.id for one in specimens}) == len(specimens)
    sizes = sorted(counts.values(), reverse=True)
    assert sizes[0] > 100 and sizes[len(sizes) // 2] < 12


def test_both_views_of_a_specimen_agree_on_all_but_the_view(made: Path) -> None:
    own = ("specimenID", "family", "genus", "scientificName", "vernacularName", "sex")
    rows = rows_of(made)
    counts = Counter(row["specimenID"] for row in rows)
    assert set(counts.values()) == {1, 2} and 0.6 < np.mean([n == 2 for n in counts.values()]) < 0.95
    assert len({tuple(row[name] for name in own) for row in rows}) == len(counts)


def test_columns_are_known_by_their_names_and_every_species_is_in_the_tree(made: Path) -> None:
    dataset = load(made)
    columns, (taxonomy, doubts) = dataset.source.data.columns, taxonomy_of(dataset)
    assert dataset.source.data.label == "scientificName" and columns.ranks == ("family", "genus") and doubts == []
    assert (columns.common, columns.sex, columns.view, columns.group) == ("vernacularName", "sex", "view", "specimenID")
    assert {taxa[0] for taxa in taxonomy.taxa} == set(FAMILIES) and None not in taxonomy.common
    shared = shared_depths(read_tree(made / "tree.nwk"), taxonomy)
    assert shared.known.all() and set(np.unique(shared.depths)) == {0, 40, 70, 100}
    same = [(shared.depths == depth) for depth in (40, 70)]
    of_family, of_genus = (taxonomy.codes[:, None, i] == taxonomy.codes[None, :, i] for i in (0, 1))
    assert (same[1] == (of_genus & ~np.eye(len(of_genus), dtype=bool))).all() and (same[0] == (of_family & ~of_genus)).all()


def test_folders_hold_the_same_species_and_images(made: Path, tmp_path: Path) -> None:
    write(tmp_path / "folders", scale=0.02, form="folder")
    write(tmp_path / "table", scale=0.02)
    folders, table = load(tmp_path / "folders"), load(tmp_path / "table")
    assert taxonomy_of(folders)[0].scientific == taxonomy_of(table)[0].scientific
    assert taxonomy_of(folders)[0].taxa == taxonomy_of(table)[0].taxa
    images = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.jpg")} for name in ("folders", "table")]
    assert images[0] == images[1]


def test_equal_seeds_draw_equal_files_and_what_cannot_be_generated_is_refused(made: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        write(tmp_path / name, seed=seed, scale=0.005)
    one, same, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("one", "same", "other")
    )
    assert one == same and one["metadata.csv"] != other["metadata.csv"] and one["tree.nwk"] != other["tree.nwk"]
    for request, why in (({"form": "disk"}, "one of: csv, folder"), ({"seed": -1}, "seed -1"), ({"scale": 0.0}, "scale 0")):
        with pytest.raises(UserError, match=why):
            write(tmp_path / "new", **request)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="generated otherwise"):
        write(made, scale=0.5)


# ---------------------------------------------------------------- the signal
def pixels(folder: Path, rows: list[dict[str, str]], side: int = 16) -> np.ndarray:
    images = (Image.open(folder / row["filename"]).resize((side, side), Image.Resampling.BOX) for row in rows)
    return np.stack([np.asarray(image, float).ravel() for image in images])


def test_species_that_split_late_look_alike(made: Path) -> None:
    rows = [row for row in rows_of(made) if row["view"] == "dorsal"]
    dataset = load(made)
    taxonomy, _ = taxonomy_of(dataset)
    x, labels = pixels(made, rows), np.array([taxonomy.species.index(row["scientificName"]) for row in rows])
    means = np.stack([x[labels == i].mean(0) for i in range(len(taxonomy.species))])
    apart = np.linalg.norm(means[:, None] - means[None], axis=2)
    depths = shared_depths(read_tree(made / "tree.nwk"), taxonomy).depths
    pairs = np.triu_indices(len(means), 1)
    assert spearmanr(depths[pairs], apart[pairs]).statistic < -0.2
    of = [apart[pairs][depths[pairs] == depth].mean() for depth in (0, 40, 70)]
    assert of[0] > of[1] > of[2]


def test_species_can_be_told_from_pixels_but_not_from_mean_colours_alone(made: Path) -> None:
    rows = [row for row in rows_of(made) if row["view"] == "dorsal"]
    labels = np.array([row["scientificName"] for row in rows])
    counts = Counter(labels.tolist())
    common = np.array([counts[label] >= 6 for label in labels])
    train = np.arange(common.sum()) % 2 == 0

    def accuracy(side: int) -> float:
        x, y = pixels(made, [row for row, is_common in zip(rows, common, strict=True) if is_common], side), labels[common]
        return float(
            LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x[train], y[train]).score(x[~train], y[~train])
        )

    assert accuracy(1) < accuracy(12) - 0.1 and 0.5 < accuracy(12) < 0.999
