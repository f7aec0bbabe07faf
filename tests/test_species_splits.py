"""What splits with whole species held out must keep: what is held out is never trained on, groups are whole, shares are hit, and
rows may come in any order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config.data import Columns, Data
from pipeline.config.split import SpeciesSplit, Split
from pipeline.config.trial import Config
from pipeline.data.species_splits import _stratified, assign_species, few_shots, hashed, mixed
from pipeline.data.truth import UNUSED
from pipeline.disk.layout import PROJECT
from pipeline.errors import UserError
from pipeline.metrics.buckets import BUCKETS, bucket_of

WINGS = PROJECT.parent / "shared" / "data" / "wing-patterns" / "metadata.csv"


def split(name: str = "S29-42", **more: Any) -> SpeciesSplit:
    return SpeciesSplit.model_validate({"kind": "species", "name": name, **more})


def table_of(sizes: list[int], per_genus: int = 4, per_group: int = 1) -> pd.DataFrame:
    """So many images of each species; some groups have several images."""
    rows = [
        (f"sp {s}", f"genus {s // per_genus}", f"{s}-{i // (1 + s % per_group)}") for s, n in enumerate(sizes) for i in range(n)
    ]
    table = pd.DataFrame(rows, columns=["label", "rank 0", "group"])
    return table.assign(id=[f"{i}.jpg" for i in range(len(table))], split="train")


def long_tail(n: int = 200, most: int = 300) -> pd.DataFrame:
    return table_of([max(1, round(most / (1 + r) ** 0.9)) for r in range(n)])


SIZES = st.lists(st.integers(1, 30), min_size=4, max_size=40)
TABLES = st.builds(table_of, SIZES, st.integers(1, 5), st.integers(1, 3))
SPLITS = st.builds(split, st.sampled_from(["S29-42", "S50-1", "D10", "D20-3"]), attempts=st.just(20))


# ---------------------------------------------------------------- properties
@given(TABLES, SPLITS)
@settings(max_examples=50)
def test_every_row_has_a_role_groups_are_whole_and_enough_is_trained_on(table: pd.DataFrame, how: SpeciesSplit) -> None:
    roles, _ = assign_species(table, how)
    table = table.assign(role=roles)
    assert set(roles) <= {"train", "validation", "test"}
    assert (table.groupby("group")["role"].nunique() == 1).all()
    trained = table.loc[table["role"] == "train", "label"].nunique()
    held = 2 * max(1, round(how.share / (4 if how.recipe == "S" else 1) * table["label"].nunique()))
    assert trained >= max(2, table["label"].nunique() - held)


@given(TABLES, SPLITS)
@settings(max_examples=35)
def test_a_species_is_held_out_as_a_whole_or_keeps_a_group_to_train_on(table: pd.DataFrame, how: SpeciesSplit) -> None:
    """Of recipe S in one part; of recipe D a species that validates may have been drawn from for test before."""
    roles, _ = assign_species(table, how)
    of = table.assign(role=roles).groupby("label")["role"].agg(set)
    for parts in of:
        assert "train" in parts or len(parts) == 1 or (how.recipe == "D" and parts == {"validation", "test"})


@given(TABLES, SPLITS)
@settings(max_examples=35)
def test_a_species_with_one_group_is_trained_on_or_one_of_those_held_out(table: pd.DataFrame, how: SpeciesSplit) -> None:
    roles, _ = assign_species(table, how)
    table = table.assign(role=roles)
    groups, n = table.groupby("label")["group"].nunique(), table["label"].nunique()
    lone = groups.index[groups == 1]
    out = {label for label, parts in table.groupby("label")["role"].agg(set).items() if "train" not in parts}
    assert {label for label in lone if set(table.loc[table["label"] == label, "role"]) != {"train"}} <= out
    assert len(out) <= 2 * max(1, round(how.share / (4 if how.recipe == "S" else 1) * n))


@given(TABLES, SPLITS, st.randoms(use_true_random=False))
@settings(max_examples=35)
def test_the_draw_does_not_depend_on_the_order_of_rows(table: pd.DataFrame, how: SpeciesSplit, random: Any) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    roles, notes = assign_species(table, how)
    again = assign_species(table.iloc[order].reset_index(drop=True), how)
    assert again == ([roles[i] for i in order], notes)


# ---------------------------------------------------------------- shares
@pytest.mark.parametrize("name", ["S29-42", "S40-7", "D10", "D5-1"])
def test_a_long_tail_is_parted_in_the_shares_that_the_name_says(name: str) -> None:
    table, how = long_tail(), split(name)
    roles, notes = assign_species(table, how)
    table = table.assign(role=roles)
    share = how.share / 4 if how.recipe == "S" else how.share
    first = {label for label, parts in table.groupby("label")["role"].agg(set).items() if "train" not in parts}
    known = table[~table["label"].isin(first)]
    assert len(first) == 2 * round(share * 200)
    assert (known["role"] == "validation").sum() == pytest.approx(share * len(table), abs=2)
    if how.recipe == "D":
        outside = [label for label in first if "validation" in set(table.loc[table["label"] == label, "role"])]
        tested = table[table["label"].isin(first - set(outside))]
        assert notes == [] and len(tested) / len(table) == pytest.approx(share, abs=how.tolerance)
        assert (table["label"].isin(outside) & (table["role"] == "validation")).mean() == pytest.approx(share, abs=how.tolerance)
        assert (table["role"] == "test").mean() == pytest.approx(2 * share, abs=2 * how.tolerance)
    else:
        assert (known["role"] == "test").sum() == pytest.approx(share * len(table), abs=2)


def test_common_species_are_drawn_from_in_proportion_and_rare_ones_in_a_pool() -> None:
    table = table_of([100] * 30 + [3] * 90)
    roles, _ = assign_species(table, split("S40-1"))
    table = table.assign(role=roles)
    out = {label for label, parts in table.groupby("label")["role"].agg(set).items() if "train" not in parts}
    known = table[~table["label"].isin(out)]
    rate = 0.1 * len(table) / len(known)
    counts = known[known["role"] == "test"].groupby("label").size()
    sizes = known.groupby("label").size()
    assert all(abs(counts[label] - rate * 100) <= 1 for label in sizes.index[sizes == 100])
    rare = sizes.index[sizes == 3]
    assert sum(counts.get(label, 0) for label in rare) == pytest.approx(rate * 3 * len(rare), abs=2)
    assert max(counts.get(label, 0) for label in rare) == 1


def test_species_of_each_genus_are_held_out_in_proportion() -> None:
    table = table_of([5] * 120, per_genus=20)
    roles, _ = assign_species(table, split("S60-3"))
    table = table.assign(role=roles)
    out = table[table["role"] != "train"].groupby("label").filter(lambda rows: len(rows) == 5)
    for part in ("validation", "test"):
        per_genus = out[out["role"] == part].groupby("rank 0")["label"].nunique()
        assert per_genus.sum() == 18 and per_genus.between(2, 4).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.integers(0, 99))
def test_every_beginning_of_the_order_has_all_strata_in_proportion(strata: list[int], seed: int) -> None:
    numbers = np.unique(strata, return_inverse=True)[1].astype("int64")
    order = _stratified(mixed(hashed(map(str, range(len(strata)))), seed), numbers, seed)
    assert sorted(order) == list(range(len(strata)))
    sizes = Counter(numbers.tolist())
    for n in range(len(order)):
        counts = Counter(numbers[order[:n]].tolist())
        spread = [counts[s] / sizes[s] - n / len(order) for s in sizes if sizes[s] >= 8]
        assert all(abs(off) * len(order) <= 2 * len(sizes) + len(order) / 8 for off in spread)


# ---------------------------------------------------------------- draws stay as they are
def test_a_draw_never_changes_since_trials_of_a_year_ago_were_tested_on_it() -> None:
    table = table_of([7, 5, 4, 3, 3, 2, 2, 2, 1, 1], per_genus=3)
    drawn = {
        name: "".join({"train": ".", "validation": "v", "test": "t"}[role] for role in assign_species(table, split(name))[0])
        for name in ("S29-42", "S60-0", "D10", "D20-5")
    }
    assert drawn == DRAWN


DRAWN = {
    "S29-42": "vvvvvvv......t.vt.......tt.v..",
    "S60-0": ".v..tvt..v.tvvvvt.v.t.tt..vv.t",
    "D10": "....v.t..v....t.vvvttt.v.t....",
    "D20-5": "vvtvvvtttttt.tv...tv.t.v.vtvt.",
}


def test_another_seed_draws_other_species() -> None:
    table = long_tail(60)
    assert assign_species(table, split("S29-42"))[0] != assign_species(table, split("S29-43"))[0]
    assert assign_species(table, split("D10"))[0] != assign_species(table, split("D10-1"))[0]


def test_what_cannot_be_hit_is_said_and_too_few_species_are_refused() -> None:
    table = table_of([500, 400, 3, 3, 2, 2, 2, 2, 2, 2])
    _, notes = assign_species(table, split("D10", attempts=50))
    assert any(note.startswith("OOD test: the nearest of 50 draws of 1 species has ") for note in notes)
    with pytest.raises(UserError, match="there are 3: with fewer than 4 choose another"):
        assign_species(table_of([5, 5, 5]), split())


@pytest.mark.skipif(not WINGS.is_file(), reason="the real wing patterns are not beside the project")
@pytest.mark.parametrize("name", ["S29-42", "D10"])
def test_real_subspecies_most_of_them_with_three_images_are_parted(name: str) -> None:
    rows = pd.read_csv(WINGS)
    table = pd.DataFrame({"label": rows["subspecies"], "group": rows["CAMID"]})
    roles, _ = assign_species(table, split(name))
    table = table.assign(role=roles)
    parts = table.groupby("label")["role"].agg(set)
    held = round(121 * (0.29 / 4 if name[0] == "S" else 0.1))
    assert len(parts) == 121 and sum("train" not in each for each in parts) == 2 * held
    assert (table.groupby("group")["role"].nunique() == 1).all()


# ---------------------------------------------------------------- the configuration
def test_names_are_short_for_recipe_share_and_seed_of_which_those_given_win() -> None:
    def of(**values: Any) -> tuple[Any, ...]:
        found = Split.parse({"kind": "species", **values})
        return found.recipe, found.share, found.seed

    assert of() == of(name="S29-42") == ("S", 0.29, 42)
    assert of(name="D10") == ("D", 0.1, 0) and of(name="D10", seed=3) == of(name="D10-3")
    for name in ("S", "X29-1", "S00-1", "D10-"):
        with pytest.raises(ValidationError, match="a split is called as S29-42"):
            of(name=name)
    with pytest.raises(ValidationError, match="leave nothing to train on"):
        of(name="D25")


def test_a_final_fit_chooses_no_epoch_and_is_evaluated_on_test_alone() -> None:
    how = {"kind": "species", "trainval": True}
    data = {"source": "x", "label": "y", "columns": {"image": "i"}, "split": how}
    base = {"task": "classify", "experiment": "x", "data": data, "loss": {"kind": "cross_entropy"}}
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(base)
    assert "data.split.trainval trains on the images that validate: set evaluate.split test" in str(caught.value)
    assert "data.split.trainval leaves no images to choose by: set select.epoch last" in str(caught.value)
    config = Config.model_validate(base | {"select": {"epoch": "last"}, "evaluate": {"split": "test"}})
    assert config.data.split.trained == ("train", "validation") and not config.data.split.opens_test


# ---------------------------------------------------------------- few shots, buckets
@given(SIZES, st.integers(1, 8), st.integers(0, 3), st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_few_shots_keep_so_many_training_images_of_each_class_whatever_the_order(
    sizes: list[int], shots: int, draw: int, random: Any
) -> None:
    table = table_of(sizes)
    table.loc[table.index[::5], "split"] = "test"
    data = Data(source="x", columns=Columns(image="i"), label="y", shots=shots, draw=draw)
    roles = few_shots(table, data)
    before, after = (Counter(table["label"][[r == "train" for r in each]]) for each in (table["split"], roles))
    assert after == Counter({label: min(n, shots) for label, n in before.items()})
    assert {new for old, new in zip(table["split"], roles, strict=True) if old == "train"} <= {"train", UNUSED}
    assert [new for old, new in zip(table["split"], roles, strict=True) if old == "test"] == ["test"] * int(
        (table["split"] == "test").sum()
    )
    order = list(range(len(table)))
    random.shuffle(order)
    assert few_shots(table.iloc[order].reset_index(drop=True), data) == [roles[i] for i in order]


def test_each_draw_keeps_other_images() -> None:
    table = table_of([40, 40, 40, 40])
    kept = {
        tuple(few_shots(table, Data(source="x", columns=Columns(image="i"), label="y", shots=5, draw=draw))) for draw in range(5)
    }
    assert len(kept) == 5


@pytest.mark.parametrize(
    ("n", "cuts", "name"),
    [
        *(
            (n, (20, 100), name)
            for n, name in ((0, None), (1, "few"), (20, "few"), (21, "medium"), (100, "medium"), (101, "many"))
        ),
        *((n, (5, 6), name) for n, name in ((5, "few"), (6, "medium"), (7, "many"))),
    ],
)
def test_a_class_is_in_the_bucket_of_its_training_images(n: int, cuts: tuple[int, int], name: str | None) -> None:
    (place,) = bucket_of(np.array([n]), cuts)
    assert (None if place < 0 else BUCKETS[place]) == name
