"""What the data set must keep: checks that name the place, and an honest control."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.config.data import Columns, Data
from pipeline.config.split import DomainSplit, FoldSplit, SiteSplit, YearSplit
from pipeline.data.dataset import BadImage, Dataset, signature
from pipeline.data.decoding import How
from pipeline.data.opening import decode
from pipeline.data.table import givers, labels, load_numbers
from pipeline.errors import UserError

HEADER = "img,name,group,domain,y,z,split"
ROWS = [
    "a.png,A,1,7,0.5,1,train",
    "a.png,B,1,7,0.5,1,train",
    "b.png,C,2,,-1,2,train",
    "b.png,D,3,9,2,3,validation",
    "a.png,E,4,7,1,4,test",
]


def load(folder: Path, rows: list[str] | None = None, header: str = HEADER, **more: Any) -> Dataset:
    return load_numbers(write(folder, rows or ROWS, header, **more))


def write(folder: Path, rows: list[str], header: str = HEADER, **more: Any) -> Data:
    (folder / "data.csv").write_text("\n".join([header, *rows]) + "\n")
    for value, name in enumerate(("a.png", "b.png")):
        Image.fromarray(np.full((40, 30), value, np.uint8)).save(folder / name)
    columns = Columns(**{"image": "img", "id": "name", "group": "group", "domain": "domain", **more.pop("columns", {})})
    return Data(**{"source": str(folder / "data.csv"), "columns": columns, "targets": ("y", "z"), **more})


# ---------------------------------------------------------------- the table
def test_the_table_has_the_rows_of_train_validation_and_test_in_this_order(tmp_path: Path) -> None:
    data = load(tmp_path, ROWS[::-1])
    table = data.table
    assert table["split"].tolist() == ["train"] * 3 + ["validation", "test"]
    assert table["id"].tolist() == ["C", "B", "A", "D", "E"]
    assert table["row"].tolist() == [0, 1, 2, 0, 0]
    assert table["group"].tolist() == ["2", "1", "1", "3", "4"]
    assert table["domain"].tolist() == [None, "7", "7", "9", "7"]
    assert table["y"].tolist() == [-1, 0.5, 0.5, 2, 1] and table["z"].dtype == np.float64
    assert np.asarray(data.image(0)).max() == 1 and len(data) == 5


def test_without_group_and_domain_columns_each_image_is_a_group_of_the_unknown_domain(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    unnamed = Data(source=str(tmp_path / "data.csv"), columns=Columns(image="img"), targets=("y", "z"))
    data = load_numbers(unnamed)
    assert data.table["group"].tolist() == ["a.png", "a.png", "train:2", "validation:0", "test:0"]  # rows of one image are one
    assert data.table["domain"].tolist() == [None] * 5


@pytest.mark.parametrize("name", [None, "absent"])
def test_without_an_id_column_the_image_names_the_row_where_it_names_one_row_only(tmp_path: Path, name: str | None) -> None:
    data = load(tmp_path, columns={"id": name})
    assert data.table["id"].tolist() == ["train:0", "train:1", "train:2", "b.png", "a.png"]


def test_the_test_split_may_be_absent(tmp_path: Path) -> None:
    assert set(load(tmp_path, ROWS[:4]).table["split"]) == {"train", "validation"}


def test_a_missing_split_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no split 'validation'; it has: train, test"):
        load(tmp_path, ROWS[:3] + ROWS[4:])


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1, 2], ["1", "2"]),
        ([1.0, None], ["1", None]),
        (["1.0", "Harvard"], ["1", "Harvard"]),
        ([1.5, float("nan")], ["1.5", None]),
        ([" x ", ""], ["x", None]),
        ([True, pd.NA], ["True", None]),
    ],
)
def test_a_label_reads_the_same_however_it_is_stored(values: list[Any], names: list[str | None]) -> None:
    assert labels(pd.Series(values, dtype=object)) == names


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("y", "zz")}, r"no column 'zz' \(data\.targets\)"),
        ({"columns": {"image": "image"}}, r"no column 'image' \(data\.columns\.image\)"),
        ({"columns": {"group": "grup"}}, r"'grup' \(data\.columns\.group\); did you mean group\?"),
        ({"columns": {"domain": "area"}}, r"Set data\.columns\.domain to one of them, or null if"),
        ({"columns": {"species": "nme"}}, r"'nme' \(data\.columns\.species\); did you mean name\?.*if the species is unknown"),
        ({"targets": ("y", "row")}, "'row' is a name Carabid itself uses"),
    ],
)
def test_a_missing_column_is_named_with_its_key_and_those_there_are(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, **change)
    assert "row" in str(error.value) or "there are: img, name, group, domain, y, z, split" in str(error.value)


@pytest.mark.parametrize(
    ("cell", "words"),
    [("", "is empty"), ("nan", "holds 'nan', which stands for nothing"), ("wet", "holds 'wet'"), ("inf", "holds 'inf'")],
)
def test_a_target_that_is_no_number_is_refused_with_file_line_and_column(tmp_path: Path, cell: str, words: str) -> None:
    with pytest.raises(UserError, match=rf"data\.csv, line 4: column z \(data\.targets\) {words}"):
        load(tmp_path, [*ROWS[:2], f"b.png,C,2,,-1,{cell},train", *ROWS[3:]])


def test_two_images_of_one_group_with_different_targets_are_both_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.csv, line 3: group 1 has z 9\.0 here, but 1\.0 at .*data\.csv, line 2"):
        load(tmp_path, [ROWS[0], "a.png,B,1,7,0.5,9,train", *ROWS[2:]])


def test_an_image_without_a_group_is_one_of_its_own_which_is_said(tmp_path: Path) -> None:
    data = load(tmp_path, ["a.png,A,,7,0.5,1,train", *ROWS[1:]])
    assert data.table["group"].tolist() == ["train:0", "1", "2", "3", "4"]
    assert data.warnings == ("1 of 5 images have no group (column group): each is taken as one of its own",)


def test_group_numbers_may_start_again_in_each_split_unless_folds_pool_them(tmp_path: Path) -> None:
    rows = [*ROWS[:4], "a.png,E,1,7,9,9,test"]
    assert len(load(tmp_path, rows)) == 5
    with pytest.raises(UserError, match="group 1 has y"):
        load(tmp_path, rows, split=FoldSplit(kind="folds", n=3))


def test_a_group_that_stands_in_two_splits_is_pointed_out(tmp_path: Path) -> None:
    data = load(tmp_path, [*ROWS[:4], "a.png,E,1,7,0.5,1,test", "a.png,F,3,9,2,3,test", "a.png,G,2,9,2,3,test"])
    first, second = data.warnings
    assert first.startswith("1 group is in train and in test") and "line 2" in first and "line 6" in first
    assert second.startswith("1 group is in validation and in test with the same targets (group 3:")
    assert load(tmp_path, ROWS).warnings == ()
    assert data.table["split"][data.table["group"] == "1"].tolist() == ["train", "train", "test"]


# ---------------------------------------------------------------- images
@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF"])
def test_a_truncated_image_is_bad(format: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 60, 3), np.uint8)).save(stream, format)
    assert decode(stream.getvalue(), How()).size == (60, 60)
    with pytest.raises(OSError):
        decode(stream.getvalue()[: stream.getbuffer().nbytes * 2 // 3], How())


@pytest.mark.parametrize("damage", ["absent", "not an image", "truncated", "empty cell"])
def test_an_unreadable_image_is_named_with_file_line_and_column(tmp_path: Path, damage: str) -> None:
    cell = "" if damage == "empty cell" else "c.png"
    data = load(tmp_path, [*ROWS[:2], f"{cell},C,2,,-1,2,train", *ROWS[3:]])
    whole = (tmp_path / "a.png").read_bytes()
    if damage in ("not an image", "truncated"):
        (tmp_path / "c.png").write_bytes(b"no image" if damage == "not an image" else whole[:-30])
    with pytest.raises(BadImage, match=r"data\.csv, line 4: the image in column img cannot be read"):
        data.image(2)
    assert data.image(1).size == (30, 40)


@pytest.mark.parametrize("name", ["colour_card", "scale_bar"])
@pytest.mark.parametrize("damage", ["absent", "not an image", "empty cell"])
def test_a_card_or_bar_that_cannot_be_read_makes_its_image_bad_and_is_named(tmp_path: Path, name: str, damage: str) -> None:
    cells = ["b.png", "" if damage == "empty cell" else "c.png", "b.png", "b.png", "b.png"]
    rows = [f"{row},{cell}" for row, cell in zip(ROWS, cells, strict=True)]
    if damage == "not an image":
        (tmp_path / "c.png").write_bytes(b"no image")
    data = load(tmp_path, rows, f"{HEADER},beside", columns={name: "beside"}, **{name: True})
    thing = name.replace("_", " ")
    with pytest.raises(BadImage, match=rf"line 3: the {thing} in column beside cannot be read: .*without the image"):
        data.image(1)
    assert data.image(0).mode == "RGB"


def test_a_column_of_cards_that_is_not_there_is_refused_only_where_cards_are_used(tmp_path: Path) -> None:
    assert load(tmp_path, columns={"colour_card": "cards"}).image(0).size == (30, 40)
    with pytest.raises(UserError, match=r"no column 'cards' \(data\.columns\.colour_card\).*or data\.colour_card to false"):
        load(tmp_path, columns={"colour_card": "cards"}, colour_card=True)


# ---------------------------------------------------------------- identity
def test_the_signature_is_the_same_with_and_without_the_table_and_blind_to_the_fold(tmp_path: Path) -> None:
    data = write(tmp_path, ROWS)
    assert load_numbers(data).signature() == signature(data)
    folds = [data.model_copy(update={"split": FoldSplit(kind="folds", n=3, fold=k)}) for k in (0, 1)]
    assert signature(folds[0]) == signature(folds[1]) == load_numbers(folds[0]).signature()


def test_folds_and_permutation_leave_the_order_of_the_rows(tmp_path: Path) -> None:
    tables = [
        load(tmp_path, split=FoldSplit(kind="folds", n=3, fold=fold, seed=fold), permute_targets=fold == 2).table
        for fold in range(3)
    ]
    for table in tables[1:]:
        assert table[["source_split", "row", "id", "group"]].equals(tables[0][["source_split", "row", "id", "group"]])
    assert tables[0]["source_split"].tolist() == ["test", "train", "train", "train", "validation"]


# ---------------------------------------------------------------- the control
@given(st.lists(st.tuples(st.sampled_from(["train", "test"]), st.integers(0, 12)), min_size=1, max_size=60))
def test_permuted_targets_move_between_groups_of_a_split_as_whole_vectors(rows: list[tuple[str, int]]) -> None:
    table = pd.DataFrame(rows, columns=["split", "number"])
    table["group"] = table["number"].astype(str)
    table["y"] = table["number"] + 100.0 * (table["split"] == "test")
    table["z"] = -table["y"]
    permuted = table[["y", "z"]].to_numpy()[givers(table)]
    assert (permuted[:, 0] == -permuted[:, 1]).all()
    table["new"] = permuted[:, 0]
    for _, part in table.groupby("split"):
        given_to = part.groupby("group")["new"].nunique()
        assert (given_to == 1).all()
        assert sorted(part.groupby("group")["new"].first()) == sorted(part.groupby("group")["y"].first())
        assert len(given_to) == 1 or (part["new"] != part["y"]).all()


def test_permuted_targets_do_not_depend_on_the_order_of_rows() -> None:
    table = pd.DataFrame({"split": "train", "group": [str(i) for i in range(20)], "y": np.arange(20.0)})
    back = table[::-1].reset_index(drop=True)
    assert table["y"].to_numpy()[givers(table)].tolist() == back["y"].to_numpy()[givers(back)].tolist()[::-1]


def test_permuted_data_have_the_same_targets_dealt_otherwise(tmp_path: Path) -> None:
    plain, permuted = load(tmp_path).table, load(tmp_path, permute_targets=True).table
    assert permuted["y"].tolist() == [-1, -1, 0.5, 2, 1]
    assert permuted.drop(columns=["y", "z"]).equals(plain.drop(columns=["y", "z"]))


# ---------------------------------------------------------------- sites and dates
DATED = "img,name,group,domain,site,day,y,z,split"
DATES = [
    "a.png,A,1,7,BART,2017-07-11,1,1,train",
    "b.png,B,2,7,BART,2021-04-14 04:00:00,2,2,validation",
    "a.png,C,3,9,HARV,2021-04-14T04:00:00Z,3,3,train",
]
WITH_SITES = {"columns": {"site": "site", "date": "day"}}


def test_dates_become_days_however_they_are_written(tmp_path: Path) -> None:
    table = load(tmp_path, DATES, DATED, **WITH_SITES).table
    assert table["date"].tolist() == ["2017-07-11", "2021-04-14", "2021-04-14"]
    assert table["site"].tolist() == ["BART", "HARV", "BART"]


def test_where_no_column_says_so_species_site_and_date_are_unknown(tmp_path: Path) -> None:
    table = load(tmp_path).table
    assert [table[name].tolist() for name in ("species", "site", "date")] == [[None] * len(ROWS)] * 3


def test_scientific_names_are_read_from_their_column_and_an_empty_one_is_unknown(tmp_path: Path) -> None:
    rows = [f"{row},{name}" for row, name in zip(ROWS, ("Carabus a", "", " Carabus b ", "Carabus a", ""), strict=True)]
    table = load(tmp_path, rows, f"{HEADER},called", columns={"species": "called"}).table
    assert table["species"].tolist() == ["Carabus a", None, "Carabus b", "Carabus a", None]


def test_a_time_of_day_with_an_offset_moves_no_group_into_another_year(tmp_path: Path) -> None:
    rows = [*DATES, "a.png,D,4,9,HARV,2019-12-31T20:00:00-05:00,3,3,train"]
    assert load(tmp_path, rows, DATED, **WITH_SITES).table["date"].tolist()[2] == "2019-12-31"


def test_what_is_no_date_is_unknown_and_named_where_it_is_needed(tmp_path: Path) -> None:
    rows = [*DATES, "a.png,D,4,9,HARV,last summer,3,3,train"]
    assert load(tmp_path, rows, DATED, **WITH_SITES).table["date"].isna().tolist() == [False, False, True, False]
    with pytest.raises(UserError, match=r"line 5: column day \(data\.columns\.date\) is empty or holds no date"):
        load(tmp_path, rows, DATED, split=YearSplit(kind="years", n=3), **WITH_SITES)


def test_groups_without_site_or_date_are_held_out_with_a_warning(tmp_path: Path) -> None:
    rows = [f"a.png,n{i},{i},{i % 4},S,{'' if i < 3 else f'2010-01-{i + 1:02d}'},{i},1,train" for i in range(30)]
    split = DomainSplit(kind="domains", n=4)
    (warning,) = load(tmp_path, rows, DATED, split=split, **WITH_SITES).warnings
    assert warning.startswith("3 groups have no site or no date")


@pytest.mark.parametrize("name", ["date", "species", "n", "group", "y_mean", "y_weight", "y_spread", "y_sigma"])
def test_a_target_named_like_a_column_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    header = HEADER.replace("z", name)
    with pytest.raises(UserError, match=f"data.targets: '{name}' is a name Carabid itself uses"):
        load(tmp_path, ROWS, header, targets=("y", name))


def test_a_row_without_what_it_is_dealt_by_is_named(tmp_path: Path) -> None:
    rows = [*DATES, "a.png,D,4,9,,2021-04-14,3,3,train"]
    with pytest.raises(
        UserError, match=r"line 5: column site \(data\.columns\.site\) is empty or holds no site, in 1 rows in all"
    ):
        load(tmp_path, rows, DATED, split=SiteSplit(kind="sites", n=3), **WITH_SITES)


def test_whole_domains_are_left_out_of_a_loaded_table(tmp_path: Path) -> None:
    rows = [f"a.png,n{i},{i},{i % 4},S{i % 4},20{10 + i}-01-01,{i},1,train" for i in range(40)]
    table = load(tmp_path, rows, DATED, split=DomainSplit(kind="domains", n=4), **WITH_SITES).table
    trained = set(table["domain"][table["split"] == "train"])
    tested = table[table["split"] == "test"]
    assert len(trained) == 2 and set(tested["domain"]) - trained and set(tested["domain"]) & trained
