"""Tables as labs, R, Excel and databases write them: read as they are meant, or refused by file, line and column."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.dataset import BadImage
from pipeline.data.suspects import duplicate_warnings, find_duplicates, left_out, sentinels
from pipeline.data.truth import class_name
from pipeline.errors import UserError
from pipeline.launch.watching.preflight import preflight
from tests.lab import lab_config, labelled, load_lab, write_images, write_table

AB = ("a", "b") * 5
SOURCE = "data.split.kind=source"
SPLITS = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2


def classes(dataset: Any) -> list[str]:
    return [class_name(name) for name in dataset.targets]


# ---------------------------------------------------------------- what stands for nothing
SPELLINGS = (
    "NA",
    "nan",
    "NULL",
    "N/A",
    "-",
    " na ",
    "#N/A",
    "None",
    "",
    "?",
    "#NA",
    "#N/A N/A",
    "-NaN",
    "1.#QNAN",
    "\\N",
    "<null>",
)
OF_EXCEL = ("(null)", "[NULL]", "#VALUE!", "#REF!", "#DIV/0!", "#NUM!", "N.A.", "--", "\u2013", "\u2014", ".")


@pytest.mark.parametrize("cell", [*SPELLINGS, *OF_EXCEL])
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


@pytest.mark.parametrize("name", ["missing", "unknown", "Nana", "N", "0", "n", ".5", "a-b"])
def test_a_class_that_is_called_nearly_so_is_one(tmp_path: Path, name: str) -> None:
    assert classes(load_lab(write_table(tmp_path, labelled(tmp_path, (name, "x") * 5)))) == sorted((name, "x"))


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


@pytest.mark.parametrize(
    ("said", "cell"),
    [("-9999.0", "-9999"), ("-9999.0", "-9999.0"), ("-9999", "-9999.00"), ("-9999.9", "-9999.90"), ("-9.999e3", "-9999"),
     ("1e20", "100000000000000000000"), ("-.5", "-0.5")],
)  # fmt: skip
def test_a_number_that_stands_for_nothing_is_known_however_it_is_written(tmp_path: Path, said: str, cell: str) -> None:
    rows = labelled(tmp_path, [0.5 * i for i in range(9)] + [cell])
    with pytest.raises(UserError, match=r"line 11: .* which stands for nothing"):
        load_lab(write_table(tmp_path, rows, ("filename", "target")), f"data.missing=[{said}]", method="regress")


@pytest.mark.parametrize(("said", "value"), [("-9999.9", -9999.9), ("9.96921e36", 9.969209968386869e36), ("[]", None)])
def test_what_stands_for_nothing_is_known_in_single_precision(tmp_path: Path, said: str, value: float | None) -> None:
    names = write_images(tmp_path, 10)
    values = pa.array([value if i == 3 and value else i for i in range(10)], pa.float32())
    pq.write_table(pa.table({"filename": names, "target": values}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"row 3 \(.* which stands for nothing") if value else nullcontext():
        load_lab(tmp_path / "t.parquet", f"data.missing=[{said}]" if value else "data.missing=[]", method="regress")


def test_codes_that_are_numbers_too_are_not_mixed_up(tmp_path: Path) -> None:
    table = write_table(tmp_path, labelled(tmp_path, ("007", "2147483648") * 5))
    assert classes(load_lab(table, "data.missing=[7,2147483647]")) == ["007", "2147483648"]


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


def test_columns_that_are_categories_of_pandas_hold_what_these_are(tmp_path: Path) -> None:
    rows = {"filename": write_images(tmp_path, 20), "label": AB * 2, "plant": [i // 4 * 2 + i % 2 for i in range(20)]}
    frame = pd.DataFrame({**rows, "site": ["S", "T", None, "S"] * 5})
    frame.astype("category").to_parquet(tmp_path / "t.parquet")
    dataset = load_lab(tmp_path / "t.parquet", "data.columns={image: filename, group: plant, site: site}")
    assert classes(dataset) == ["a", "b"] and preflight([lab_config(tmp_path / "t.parquet")]) == []
    assert dataset.table["group"].nunique() == 10 and dataset.table["site"].tolist() == ["S", "T", None, "S"] * 5
    assert dataset.image(3).size == (8, 8)


@pytest.mark.parametrize("of", ["dictionary", "string_view", "large_string", "large dictionary"])
def test_names_of_images_are_known_however_arrow_keeps_text(tmp_path: Path, of: str) -> None:
    kinds = {
        "string_view": pa.string_view(),
        "large_string": pa.large_string(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
    }
    kind = kinds.get(of, pa.dictionary(pa.int32(), pa.large_string()))
    text = pa.array(write_images(tmp_path, 10)).cast(kind) if "dict" not in of else pa.array(write_images(tmp_path, 10), kind)
    pq.write_table(pa.table({"filename": text, "label": list(AB)}), tmp_path / "t.parquet")
    dataset = load_lab(tmp_path / "t.parquet")
    assert dataset.table["id"].tolist() == write_images(tmp_path, 10) and dataset.image(9).size == (8, 8)
    assert preflight([lab_config(tmp_path / "t.parquet")]) == []


@pytest.mark.parametrize("of", ["binary_view", "dictionary"])
def test_images_inside_a_table_are_known_however_arrow_keeps_bytes(tmp_path: Path, of: str) -> None:
    content = [(tmp_path / name).read_bytes() for name in write_images(tmp_path, 10)]
    column = pa.array(content).cast(pa.binary_view()) if of == "binary_view" else pa.array(content).dictionary_encode()
    pq.write_table(pa.table({"filename": column, "label": list(AB)}), tmp_path / "t.parquet")
    dataset = load_lab(tmp_path / "t.parquet")
    assert dataset.image(9).size == (8, 8) and "filename" not in dataset.source.table("train")


def test_parts_of_a_split_may_keep_the_same_text_otherwise(tmp_path: Path) -> None:
    names = write_images(tmp_path, 20)
    frame = pd.DataFrame({"filename": names, "label": AB * 2, "target": range(20)})
    for part, kind in enumerate((str, "category")):
        frame[part * 10 : part * 10 + 10].astype({"label": kind, "filename": kind}).to_parquet(tmp_path / f"train-{part}.parquet")
    dataset = load_lab(tmp_path, f"data.images={tmp_path}")
    assert dataset.table["id"].tolist() == names and classes(dataset) == ["a", "b"]


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
    assert len(dataset) == 10 and not dataset.warnings
    assert dataset.notes == (f"{tmp_path / name}: columns are parted by {said}",)


WELL = [(f"images/{i}.png", AB[i]) for i in range(10)]


def parted(separator: str, *more: str) -> str:
    return "".join(separator.join((*row, *more)) + "\n" for row in WELL)


@pytest.mark.parametrize(
    ("text", "columns", "line"),
    [
        (f"sep=;\r\nfilename;label\r\n{parted(';')}", ["filename", "label"], 3),
        (f"\ufeffsep=;\nfilename;label;size, mm\n{parted(';', '1,5')}", ["filename", "label", "size, mm"], 3),
        (f'"sep=,"\nfilename,label\n{parted(",")}', ["filename", "label"], 3),
        (f"sep=\t\nfilename\tlabel\n{parted(chr(9))}", ["filename", "label"], 3),
        (f"sep=:\nfilename:label\n{parted(':')}", ["filename", "label"], 3),
        (f"\n\nfilename;label\n{parted(';')}", ["filename", "label"], 4),
        (f";;\n \nfilename;label;\n{parted(';', '')}", ["filename", "label"], 4),
        (f"\n\nfilename,label\n{parted(',')}", ["filename", "label"], 4),
        (f"filename;label;size, mm\n{parted(';', '1,5')}", ["filename", "label", "size, mm"], 2),
        (f'filename;label;"size; mm"\n{parted(";", "1,5")}', ["filename", "label", "size; mm"], 2),
        (f'"the\nplant";filename;label\n{parted(";").replace("images", "p;images")}', ["the\nplant", "filename", "label"], 3),
        (f'filename;label;"weight\n(g)"\n{parted(";", "1")}', ["filename", "label", "weight\n(g)"], 3),
        (f"filename,label,a;b;c;d\n{parted(',', '1')}", ["filename", "label", "a;b;c;d"], 2),
        (f'filename,label,"genus;species;author"\n{parted(",", chr(34) + "g;s;a" + chr(34))}', None, 2),
        (f"filename|label|a,b\n{parted('|', '1,5')}", ["filename", "label", "a,b"], 2),
    ],
)
def test_what_parts_columns_is_told_from_the_first_records(tmp_path: Path, text: str, columns: Any, line: int) -> None:
    write_images(tmp_path, 10)
    (tmp_path / "labels.csv").write_bytes(text.encode())
    dataset = load_lab(tmp_path / "labels.csv")
    assert dataset.source.columns("train") == (columns or ["filename", "label", "genus;species;author"])
    assert classes(dataset) == ["a", "b"] and dataset.where(0).endswith(f"labels.csv, line {line}")


@pytest.mark.parametrize("before", ["", "sep=;\n", "\n\n"])
def test_a_record_that_is_broken_is_named_by_its_line_whatever_stands_before_the_header(tmp_path: Path, before: str) -> None:
    rows = parted(";", "1,5").splitlines()
    write_images(tmp_path, 10)
    text = before + "\n".join(["filename;label;size, mm", *rows[:4], "images/4.png;a", *rows[5:]])
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=rf"labels\.csv, line {6 + before.count(chr(10))}: 2 cells, but .* 3 columns.*';'"):
        load_lab(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text(f"{before}filename;label;label\n")
    with pytest.raises(UserError, match=rf"labels\.csv, line {1 + before.count(chr(10))}: the column 'label' stands there twice"):
        load_lab(tmp_path / "labels.csv")


# ---------------------------------------------------------------- splits
def of_splits(folder: Path, *odd: str) -> Path:
    """A table in which the first rows are of these splits."""
    rows = zip(labelled(folder, AB * 2), (*odd, *SPLITS * 2)[:20], strict=True)
    return write_table(folder, [(*row, split) for row, split in rows], ("filename", "label", "split"))


@pytest.mark.parametrize(
    ("name", "key"), [("Test", "test"), ("Train", "train"), ("VALIDATION", "validation"), (" tesT ", "test")]
)
def test_a_split_that_is_spelled_otherwise_is_refused_with_its_line(tmp_path: Path, name: str, key: str) -> None:
    table = of_splits(tmp_path, "train", name, name)
    said = (
        rf"labels\.csv, line 3: rows of split '{name.strip()}' \(2 in all\) would not be read: .* spells it '{key}' \(data\.split"
    )
    with pytest.raises(UserError, match=said):
        load_lab(table, SOURCE)
    assert len(load_lab(table)) == 20  # folds take all
    of_file = of_splits(tmp_path).read_text().replace(",test\n", f",{name}\n")
    table.write_text(of_file)
    with pytest.raises(UserError, match="would not be read"):  # where the split itself is absent too
        load_lab(table, SOURCE)


def test_splits_that_are_not_read_are_warned_of(tmp_path: Path) -> None:
    table = of_splits(tmp_path, "unlabelled", "unlabelled", "val")
    (warning,) = [line for line in load_lab(table, SOURCE).warnings if "not read" in line]
    assert warning == (
        "2 rows of split 'unlabelled', 1 row of split 'val' are not read: data.split reads train, validation, test"
    )
    many = of_splits(tmp_path, *(f"{i}" * 5000 for i in range(8)))
    (warning,) = [line for line in load_lab(many, SOURCE).warnings if "not read" in line]
    assert "and those of 3 more splits are not read" in warning and len(warning) < 500
    assert load_lab(many).warnings == ()


def test_a_split_that_the_configuration_turns_off_is_not_warned_of(tmp_path: Path) -> None:
    dataset = load_lab(of_splits(tmp_path), SOURCE, "data.split.test=none")
    assert set(dataset.table["split"]) == {"train", "validation"} and dataset.warnings == ()


@pytest.mark.parametrize("form", ["parquet", "disk"])
def test_splits_of_other_sources_are_counted_too(tmp_path: Path, form: str) -> None:
    import datasets

    rows = {"filename": write_images(tmp_path, 10), "label": list(AB)}
    place = tmp_path / "saved"
    made = datasets.DatasetDict({name: datasets.Dataset.from_dict(rows) for name in ("train", "validation", "extra")})
    if form == "disk":
        made.save_to_disk(place)
    else:
        place.mkdir()
        for name, split in made.items():
            split.to_parquet(place / f"{name}.parquet")
    dataset = load_lab(place, SOURCE, f"data.images={tmp_path}", "data.columns.group=null")
    assert [w for w in dataset.warnings if w.startswith("10 rows of split 'extra' are not read: ")]


@pytest.mark.parametrize("cell", ["NA", "#N/A", ""])
def test_a_split_that_stands_for_nothing_is_as_an_empty_one(tmp_path: Path, cell: str) -> None:
    table = of_splits(tmp_path, "train", cell, cell)
    words = f"holds '{cell}', which stands for nothing .*" if cell else "is empty"
    with pytest.raises(UserError, match=rf"labels\.csv, line 3: column split {words}, in line 4 too\. Name the row's split"):
        load_lab(table, SOURCE)
    if cell:
        load_lab(table, SOURCE, "data.missing=[]")
        load_lab(of_splits(tmp_path, *(cell,) * 3), SOURCE, f"data.split.test='{cell}'")


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


OTHERS = (-99, 999, -999.25, -9999.9, -32768, 1e20, "9.96921e36", -3.4e38, -888, 2147483647, 1e38, "-9.9e9")


@pytest.mark.parametrize("value", OTHERS)
def test_a_value_that_repeats_many_ranges_away_is_warned_of_as_data_missing_knows_it(tmp_path: Path, value: Any) -> None:
    (warning,) = numbers(tmp_path, [*np.linspace(-2, 3, 10), value, value]).warnings
    said = warning.removeprefix("target is ").partition(" in 2 of 12 rows, far from all others (-2 to 3)")[0]
    with pytest.raises(UserError, match=r"line 12: .* which stands for nothing"):
        load_lab(tmp_path / "labels.csv", f"data.missing=[{said}]", method="regress")


@pytest.mark.parametrize("values", [(-9999, 9999), (-9999, -999), (1e20, -1e20), (-9999, 8e9, 1e20, -7e12), (9999, -99)])
def test_one_sentinel_does_not_hide_another(tmp_path: Path, values: Sequence[float]) -> None:
    warnings = numbers(tmp_path, [*np.linspace(-2, 3, 10), *values, *values]).warnings
    assert {warning.split()[2] for warning in warnings} == {f"{value:g}" for value in values}
    assert all("far from all others (-2 to 3)" in warning for warning in warnings)


def rounded(values: Any, digits: int) -> Any:
    """As people write numbers of animals: 12, 350, 8000."""
    step = 10.0 ** (np.floor(np.log10(np.maximum(values, 1e-9))) - digits + 1)
    return np.round(values / step) * step


COUNTS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "many zeros": lambda draw, n: draw.poisson(draw.uniform(0.1, 8), n) * (draw.random(n) < draw.uniform(0.02, 0.6)),
    "overdispersed": lambda draw, n: draw.negative_binomial(draw.uniform(0.05, 1), draw.uniform(0.002, 0.3), n),
    "Zipf's": lambda draw, n: np.minimum(draw.zipf(draw.uniform(1.3, 3), n), 10**9) - 1,
    "flocks": lambda draw, n: rounded(draw.lognormal(2, draw.uniform(1, 3.5), n), 1) * (draw.random(n) < 0.3),
    "Pareto's": lambda draw, n: rounded(draw.pareto(draw.uniform(0.5, 3), n) + 0.1, 2),
    "of both signs": lambda draw, n: np.round(draw.standard_t(draw.uniform(1, 3), n), 1),
    "ordinal": lambda draw, n: draw.integers(0, 5, n) * draw.choice([1, 10, 25]),
    "years": lambda draw, n: draw.integers(1990, 2024, n),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_a_long_tail_is_no_sentinel(kind: str) -> None:
    for seed in range(100):
        draw = np.random.default_rng(seed)
        values = COUNTS[kind](draw, int(draw.integers(6, 300))).astype(float)
        for copies in (1, 10):  # the images of a group share its number
            groups = np.repeat(np.arange(len(values)), copies).astype(str)
            table = pd.DataFrame({"target": np.repeat(values, copies), "group": groups})
            assert not list(sentinels(table, ["target"])), (seed, copies)


def test_a_value_among_others_or_alone_is_no_sentinel(tmp_path: Path) -> None:
    assert numbers(tmp_path, [*np.linspace(-2, 3, 10), 9999]).warnings == ()
    assert numbers(tmp_path, [*np.linspace(5000, 15000, 10), 9999, 9999]).warnings == ()  # metres, say
    assert numbers(tmp_path, [-9999] * 5 + [9999] * 5).warnings == ()  # nothing is left to be far from


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
