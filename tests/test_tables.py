"""Tables as labs, R, Excel and databases write them: read as they are meant, or refused by file, line and column."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.dataset import BadImage
from pipeline.data.suspects import duplicate_warnings, find_duplicates, left_out
from pipeline.data.truth import class_name
from pipeline.errors import UserError
from tests.lab import lab_config, labelled, load_lab, write_images, write_table

AB = ("a", "b") * 5
SOURCE = "data.split.kind=source"
SPLITS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2


def classes(dataset: Any) -> list[str]:
    return [class_name(name) for name in dataset.targets]


# ---------------------------------------------------------------- what stands for nothing
@pytest.mark.parametrize("cell", ["NA", "nan", "NULL", "N/A", "-", " na ", "#N/A", "None", "", "?"])
def test_a_label_that_stands_for_nothing_is_refused_with_its_lines(tmp_path: Path, cell: str) -> None:
    table = write_table(tmp_path, labelled(tmp_path, (*AB, cell, "a", cell)))
    with pytest.raises(
        UserError, match=r"labels\.csv, line 12, line 14: column label \(data\.label\) (is empty|holds '.+', which)"
    ):
        load_lab(table)


def test_what_stands_for_nothing_may_be_a_class_where_the_configuration_says_so(tmp_path: Path) -> None:
    table = write_table(tmp_path, labelled(tmp_path, ("NA", "EU") * 5))  # continents
    assert classes(load_lab(table, "data.missing=[]")) == ["EU", "NA"]
    with pytest.raises(UserError, match="holds 'EU', which stands for nothing"):
        load_lab(table, "data.missing=[eu]")


@pytest.mark.parametrize("cell", ["NA", "nan", "-9999", "-9999.0"])
def test_a_number_that_stands_for_nothing_is_refused_with_its_line(tmp_path: Path, cell: str) -> None:
    rows = labelled(tmp_path, [0.5 * i for i in range(9)] + [cell])
    table = write_table(tmp_path, rows, ("filename", "target"))
    with pytest.raises(UserError, match=r"line 11: column target \(data\.targets\) holds '.+', which stands for nothing"):
        load_lab(table, "data.missing=[NA,nan,-9999]", method="regress")


def test_a_parquet_column_of_numbers_may_hold_what_stands_for_nothing(tmp_path: Path) -> None:
    names = write_images(tmp_path, 10)
    values = [-9999.0 if i == 3 else i for i in range(10)]
    pq.write_table(pa.table({"filename": names, "target": values}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"row 3 \(counted from 0\): column target .* holds '-9999'"):
        load_lab(tmp_path / "t.parquet", "data.missing=[-9999]", method="regress")


@pytest.mark.parametrize("cell", ["NA", "", "-"])
def test_unidentified_animals_are_no_individual(tmp_path: Path, cell: str) -> None:
    """All of them as one would stand in one split, with several labels."""
    groups = [f"i{i // 2}" if i % 5 else cell for i in range(20)]
    rows = [(*row, group) for row, group in zip(labelled(tmp_path, AB * 2), groups, strict=True)]
    table = write_table(tmp_path, [(a, "ab"[i // 2 % 2], g) for i, (a, _, g) in enumerate(rows)], ("filename", "label", "animal"))
    dataset = load_lab(table, "data.columns.group=animal")
    alone = [group for group, said in zip(dataset.table["group"], groups, strict=True) if said == cell]
    assert len(set(alone)) == len(alone) == 4
    assert [w for w in dataset.warnings if w.startswith("4 of 20 images have no group (column animal)")]


@pytest.mark.parametrize("name", ["domain", "site", "species"])
def test_a_name_that_stands_for_nothing_is_unknown(tmp_path: Path, name: str) -> None:
    rows = [(*row, "NA" if i % 3 else "X") for i, row in enumerate(labelled(tmp_path, AB))]
    dataset = load_lab(write_table(tmp_path, rows, ("filename", "label", "where")), f"data.columns.{name}=where")
    assert dataset.table[name].tolist() == [None if i % 3 else "X" for i in range(10)]


# ---------------------------------------------------------------- rare classes
def test_a_class_of_one_group_trains_in_every_fold(tmp_path: Path) -> None:
    labels = ["a"] * 12 + ["b"] * 10 + ["c"] * 6 + ["d", "e"]
    table = write_table(tmp_path, labelled(tmp_path, labels))
    for fold in range(5):
        dataset = load_lab(table, f"data.split.fold={fold}")
        of = dict(zip(dataset.table["label"], dataset.table["split"], strict=False))
        assert of["d"] == of["e"] == "train"
        assert {"a", "b"} <= set(dataset.table["label"][dataset.table["split"] == "test"])
    assert "d (1), e (1)" in dataset.warnings[0] and "those with one group train in all" in dataset.warnings[0]


# ---------------------------------------------------------------- names of classes that `datasets` keeps as numbers
def of_datasets(folder: Path) -> Any:
    import datasets

    features = datasets.Features(
        {"filename": datasets.Value("string"), "label": datasets.ClassLabel(names=["ant", "bee"]), "n": datasets.Value("int64")}
    )
    rows = {"filename": write_images(folder, 10), "label": [0, 1] * 5, "n": list(range(10))}
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("form", ["parquet", "disk"])
def test_a_class_label_of_datasets_is_called_by_its_name(tmp_path: Path, form: str) -> None:
    made = of_datasets(tmp_path)
    place = tmp_path / "saved"
    if form == "parquet":
        place.mkdir()
        made.to_parquet(place / "train.parquet")
    else:
        made.save_to_disk(place)
    dataset = load_lab(place, f"data.images={tmp_path}")
    assert classes(dataset) == ["ant", "bee"] and dataset.table["label"].tolist() == ["ant", "bee"] * 5


def test_a_class_label_that_lacks_is_an_empty_one(tmp_path: Path) -> None:
    made = of_datasets(tmp_path).to_pandas().assign(label=[-1, *[0, 1] * 4, 0])
    import datasets

    datasets.Dataset.from_dict(made.to_dict("list"), features=of_datasets(tmp_path).features).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"row 0 \(counted from 0\): column label \(data\.label\) is empty"):
        load_lab(tmp_path / "t.parquet")


def test_numbers_that_are_no_class_labels_stay_numbers(tmp_path: Path) -> None:
    """Metadata of another program, and of `datasets` for columns that are not there."""
    columns = pa.table({"filename": write_images(tmp_path, 10), "label": [0, 1] * 5})
    odd = [
        b"{}",
        b"no json",
        b'{"info": {"features": {"gone": {"_type": "ClassLabel", "names": ["x"]}, "label": {"_type": "Value"}}}}',
    ]
    for metadata in odd:
        pq.write_table(columns.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "t.parquet")
        assert classes(load_lab(tmp_path / "t.parquet")) == ["0", "1"]


# ---------------------------------------------------------------- files
@pytest.mark.parametrize(("separator", "said"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "labels.txt", "LABELS.CSV"])
def test_columns_may_be_parted_by_other_signs_which_is_said(tmp_path: Path, separator: str, said: str, name: str) -> None:
    rows = [(*row, "1,5") for row in labelled(tmp_path, AB)]
    dataset = load_lab(write_table(tmp_path, rows, ("filename", "label", "mm"), separator, name))
    assert len(dataset) == 10 and dataset.warnings == (f"{tmp_path / name}: columns are parted by {said}",)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("name", ["Labels.CSV", "LABELS.TSV", "Labels.Parquet"])
def test_the_end_of_a_name_may_be_in_any_case(tmp_path: Path, name: str, folder: bool) -> None:
    rows = labelled(tmp_path, AB)
    path = write_table(tmp_path, rows, name=name)
    if name.endswith("Parquet"):
        pq.write_table(pa.table({"filename": [row[0] for row in rows], "label": AB}), path)
    assert len(load_lab(tmp_path if folder else path)) == 10


def test_empty_columns_at_the_end_are_no_columns(tmp_path: Path) -> None:
    """As Excel leaves them where a cell was once filled."""
    rows = [(*row, "", "", "") for row in labelled(tmp_path, AB)]
    path = write_table(tmp_path, rows, ("filename", "label", "", "", ""))
    assert load_lab(path).source.columns("train") == ["filename", "label"]
    padded = write_table(tmp_path, [(*row, "", " ") for row in labelled(tmp_path, AB)])
    assert len(load_lab(padded)) == 10
    filled = write_table(tmp_path, [*rows[:3], (*rows[3][:4], "seen twice"), *rows[4:]], ("filename", "label", "", "", ""))
    with pytest.raises(UserError, match=r"line 5: 5 cells, but the header names 2 columns"):
        load_lab(filled)


def test_a_cell_may_be_as_long_as_the_outline_of_a_country(tmp_path: Path) -> None:
    outline = f"POLYGON (({', '.join('12.345678 45.678901' for _ in range(20_000))}))"
    rows = [(*row, outline if i == 3 else "") for i, row in enumerate(labelled(tmp_path, AB))]
    assert len(outline) > 131_072 and len(load_lab(write_table(tmp_path, rows, ("filename", "label", "wkt")))) == 10


def test_a_header_without_rows_is_refused_by_its_file(tmp_path: Path) -> None:
    for header in (("filename", "label", "split"), ("filename", "label")):
        with pytest.raises(UserError, match=r"labels\.csv.*no rows|split 'train' has no rows"):
            load_lab(write_table(tmp_path, [], header))


def test_a_column_that_stands_twice_is_refused_by_its_name(tmp_path: Path) -> None:
    rows = labelled(tmp_path, AB)
    twice = pa.Table.from_arrays([pa.array([r[0] for r in rows]), pa.array(AB), pa.array(AB)], ["filename", "label", "label"])
    pq.write_table(twice, tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet.*the column 'label' stands there twice"):
        load_lab(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"labels\.csv, line 1: the column 'label' stands there twice"):
        load_lab(write_table(tmp_path, [(*row, "x") for row in rows], ("filename", "label", "label")))


def test_text_that_is_not_utf_8_is_refused_by_its_file(tmp_path: Path) -> None:
    rows = labelled(tmp_path, AB)
    path = write_table(tmp_path, rows)
    path.write_bytes(path.read_bytes().replace(b",b\n", "\u2014,K\u00e4fer\n".encode("cp1252"), 1))
    with pytest.raises(UserError, match=r"labels\.csv, line 3: this is not UTF-8"):
        load_lab(path)
    damaged = pa.array([b"a", b"K\xe4fer"] * 5).view(pa.binary()).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 10, damaged.buffers())
    pq.write_table(pa.table({"filename": [row[0] for row in rows], "label": text}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet"):
        load_lab(tmp_path / "t.parquet")


@pytest.mark.parametrize("cell", ["images/\0.png", "images/" + "x" * 300 + ".png", "\0"])
def test_a_path_that_no_file_can_have_is_a_bad_image_with_its_line(tmp_path: Path, cell: str) -> None:
    rows = labelled(tmp_path, AB)
    dataset = load_lab(write_table(tmp_path, [(cell, "a"), *rows[1:]]))
    with pytest.raises(BadImage, match=r"labels\.csv, line 2: the image in column filename cannot be read"):
        dataset.image_bytes(0)
    assert dataset.signature()


# ---------------------------------------------------------------- numbers
def numbers(folder: Path, values: Sequence[Any]) -> Any:
    return load_lab(write_table(folder, labelled(folder, values), ("filename", "target")), method="regress")


@pytest.mark.parametrize("value", [-9999, -999, 9999, "-9999.0", 99999])
def test_a_value_that_repeats_far_from_all_others_is_warned_of(tmp_path: Path, value: Any) -> None:
    (warning,) = numbers(tmp_path, [*np.linspace(-2, 3, 10), value, value]).warnings
    assert warning.startswith(f"target is {float(value):g} in 2 of 12 rows, far from all others (-2 to 3)")


def test_a_value_among_others_or_alone_is_no_sentinel(tmp_path: Path) -> None:
    assert numbers(tmp_path, [*np.linspace(-2, 3, 10), 9999]).warnings == ()
    assert numbers(tmp_path, [*np.linspace(5000, 15000, 10), 9999, 9999]).warnings == ()  # metres, say


@pytest.mark.parametrize("value", ["1e308", "-1e308", "3.5e38"])
def test_a_number_that_single_precision_cannot_hold_is_refused(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=rf"line 12: column target \(data\.targets\) holds '{value}', which is beyond ±3\.4e\+38"):
        numbers(tmp_path, [*range(10), value])


def test_a_decimal_comma_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 12: column target .* holds '0,5': write decimal points, 0\.5"):
        numbers(tmp_path, [*range(10), "0,5"])


# ---------------------------------------------------------------- an image that is not there, and one that is near
NFC, NFD = (unicodedata.normalize(form, "Käfer.png") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("cell", "there"),
    [
        (f"images/{NFC}", f"images/{NFD}"),
        (f"images/{NFD}", f"images/{NFC}"),
        ("images/7a.jpg", "images/7a.JPG"),
        ("Images/7a.jpg", "images/7a.jpg"),
        ("images/7a", "images/7a.jpeg"),
        ("images/7a.jpg", "images/7a.png"),
        ("images\\7a.jpg", "images/7a.jpg"),
        ("C:\\Users\\me\\images\\7a.jpg", "images/7a.jpg"),
        ("..\\images\\7A.JPG", "images/7a.jpg"),
    ],
)
def test_the_file_that_is_near_is_named(tmp_path: Path, cell: str, there: str) -> None:
    rows = labelled(tmp_path, AB)
    (tmp_path / rows[4][0]).rename(tmp_path / there)
    dataset = load_lab(write_table(tmp_path, [*rows[:4], (cell, "a"), *rows[5:]]))
    with pytest.raises(BadImage, match="line 6: ") as error:
        dataset.image_bytes(4)
    assert f"did you mean {tmp_path / there}" in str(error.value)
    assert ("composed otherwise" in str(error.value)) == (
        unicodedata.normalize("NFC", cell) == unicodedata.normalize("NFC", there)
    )


def test_an_address_leads_to_the_downloads(tmp_path: Path) -> None:
    rows = labelled(tmp_path, AB)
    dataset = load_lab(write_table(tmp_path, [("https://example.org/7a.jpg", "a"), *rows[1:]]))
    with pytest.raises(BadImage, match=r"line 2: .* is an address, and with data\.download `carabid fetch` brings"):
        dataset.image_bytes(0)


def test_where_nothing_is_near_nothing_is_named(tmp_path: Path) -> None:
    rows = labelled(tmp_path, AB)
    dataset = load_lab(write_table(tmp_path, [("images/elsewhere.png", "a"), ("a\\b.png", "b"), *rows[2:]]))
    for row, words in enumerate(("there is no file .*elsewhere.png", r"folders are parted by /, not by \\")):
        with pytest.raises(BadImage, match=words) as error:
            dataset.image_bytes(row)
        assert "did you mean" not in str(error.value)


# ---------------------------------------------------------------- the same image twice
def with_hashes(folder: Path, rows: Sequence[tuple[str, str, str]]) -> tuple[Any, list[str]]:
    """A data set of rows of content, label and split; equal content is the same image."""
    names = write_images(folder, len(rows))
    cells = [(name, label, split) for name, (_, label, split) in zip(names, rows, strict=True)]
    dataset = load_lab(write_table(folder, cells, ("filename", "label", "split")), SOURCE)
    content = dict(zip(names, (each for each, _, _ in rows), strict=True))
    return dataset, [content[name] for name in dataset.table["id"]]


PLAIN = [(f"{i}", "ab"[i % 2], split) for i, split in enumerate(SPLITS)]


def test_copies_over_splits_are_counted_and_named(tmp_path: Path) -> None:
    copies = [("x", "a", split) for split, n in (("train", 9), ("validation", 3), ("test", 3)) for _ in range(n)]
    dataset, hashes = with_hashes(tmp_path, [*PLAIN, *copies])
    found = find_duplicates(dataset, hashes)
    (line,) = duplicate_warnings(dataset, found)
    assert line.startswith("15 images are copies of one, byte for byte, in several splits, 1 in train and validation and test (")
    assert "labels.csv, line 12;" in line
    gone = found.dropped(dataset.table["split"].tolist())
    assert len(gone) == 12 and set(dataset.table["split"].iloc[gone]) == {"train", "validation"}


def test_copies_with_different_labels_contradict_one_another(tmp_path: Path) -> None:
    dataset, hashes = with_hashes(
        tmp_path, [*PLAIN, ("x", "a", "train"), ("x", "b", "train"), ("y", "a", "train"), ("y", "b", "test")]
    )
    found = find_duplicates(dataset, hashes)
    assert len(found.contradicting) == 2 and found.spread == []
    (line,) = duplicate_warnings(dataset, found)
    assert line.startswith("4 images are copies of 2 images, byte for byte, with different truths (")
    assert len(found.dropped(dataset.table["split"].tolist())) == 4


def test_copies_of_one_truth_in_one_split_and_images_that_are_not_there_are_no_matter(tmp_path: Path) -> None:
    dataset, hashes = with_hashes(
        tmp_path, [*PLAIN, ("x", "a", "train"), ("x", "a", "train"), ("", "a", "train"), ("", "b", "test")]
    )
    assert left_out(dataset, lab_config(tmp_path / "labels.csv", SOURCE).data, hashes) == ([], [])


@pytest.mark.parametrize("policy", ["warn", "error", "drop"])
def test_the_configuration_says_what_becomes_of_copies(tmp_path: Path, policy: str) -> None:
    dataset, hashes = with_hashes(tmp_path, [*PLAIN, ("x", "a", "train"), ("x", "a", "test")])
    data = lab_config(tmp_path / "labels.csv", SOURCE, f"data.on_duplicate={policy}").data
    if policy == "error":
        with pytest.raises(UserError, match=r"2 images are copies .* set data\.on_duplicate to drop or warn"):
            left_out(dataset, data, hashes)
        return
    gone, lines = left_out(dataset, data, hashes)
    assert (len(gone), len(lines)) == ((0, 1) if policy == "warn" else (1, 2))
    assert not gone or dataset.table.loc[gone[0], "split"] == "train"


def test_a_table_of_numbers_has_copies_with_different_numbers(tmp_path: Path) -> None:
    dataset = numbers(tmp_path, [float(i // 2) for i in range(10)])
    assert len(find_duplicates(dataset, ["x", "x", "y", *"1234", "y", "5", "6"]).contradicting) == 1


def test_pandas_is_not_asked_what_it_takes_for_nothing(tmp_path: Path) -> None:
    """Its own reader would make NaN of Namibia's country code."""
    assert pd.isna(pd.read_csv(write_table(tmp_path, [("x.png", "NA")])).iloc[0, 1])
    table = write_table(tmp_path, labelled(tmp_path, ("NA", "ZA") * 5))
    assert classes(load_lab(table, "data.missing=[]")) == ["NA", "ZA"]
