"""What splits must keep: nothing that belongs together is parted, every fold has its turn, and rows may come in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline.config.split import DomainSplit, FoldSplit, SiteSplit, Split, YearSplit
from pipeline.config.trial import Config
from pipeline.data.splits import Folded, assign, deal_groups, deal_units, joined, rare_strata, site_dates
from pipeline.data.truth import SPLIT_BY
from pipeline.errors import UserError

Sides = dict[str, set[Any]]


def folds(n: int, fold: int = 0, seed: int = 0) -> FoldSplit:
    return FoldSplit(kind="folds", n=n, fold=fold, seed=seed)


def sides(table: pd.DataFrame, roles: list[str], column: str) -> Sides:
    """Which values of a column stand in each split."""
    return {role: set(table[column][[of == role for of in roles]]) for role in ("train", "validation", "test")}


def are_apart(them: Sides) -> bool:
    return sum(map(len, them.values())) == len(set.union(*them.values()))


# ---------------------------------------------------------------- tables
@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    """Specimens of groups at sites of domains on days of years; some groups are seen at two sites of their domain."""
    n_domains = draw(st.integers(3, 7))
    groups = draw(
        st.lists(st.tuples(st.integers(0, n_domains - 1), st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=40)
    )
    # Enough of everything for three folds, whatever else was drawn.
    groups += [(domain, site, day) for domain in range(n_domains) for site in (0, 1) for day in range(4)]
    rows = [
        {"group": f"e{i}", "domain": f"D{domain}", "site": f"D{domain}-S{site}", "date": f"20{10 + day}-05-0{1 + day}"}
        for i, (domain, site, day) in enumerate(groups)
        for _ in range(draw(st.integers(1, 3)))
    ]
    twin, day = draw(st.integers(0, len(groups) - 1)), rows[-1]["date"]
    domain = f"D{groups[twin][0]}"
    rows.append({"group": f"e{twin}", "domain": domain, "site": f"{domain}-S0", "date": day})
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- folds over groups
EVENTS = st.lists(st.text("abcdef0123456789", min_size=1, max_size=4), min_size=1, max_size=60)


@given(EVENTS, st.integers(3, 8), st.integers(0, 10))
def test_folds_test_each_group_once_and_never_share_one(groups: list[str], n: int, seed: int) -> None:
    groups += [f"more {i}" for i in range(n)]
    table = pd.DataFrame({"group": groups})
    tested: list[str] = []
    for fold in range(n):
        them = sides(table, assign(table, folds(n, fold, seed)), "group")
        assert are_apart(them) and all(them.values())
        tested += them["test"]
    assert sorted(tested) == sorted(set(groups))


@given(EVENTS, st.integers(3, 8), st.randoms(use_true_random=False))
def test_folds_are_balanced_and_independent_of_the_order_of_rows(groups: list[str], n: int, random: Any) -> None:
    groups += [f"more {i}" for i in range(n)]
    dealt = deal_groups(groups, folds(n))
    sizes = np.bincount(list(dealt.values()), minlength=n)
    assert sizes.max() - sizes.min() <= 1
    random.shuffle(groups)
    assert deal_groups(groups, folds(n)) == dealt


def test_the_seed_changes_the_folds_and_too_few_groups_are_refused() -> None:
    groups = [str(i) for i in range(30)]
    assert deal_groups(groups, folds(5)) != deal_groups(groups, folds(5, seed=1))
    with pytest.raises(UserError, match="there are 2 groups"):
        deal_groups(["a", "b", "a"], folds(3))


# ---------------------------------------------------------------- folds of each class alike
def of_classes(sizes: list[int], photographs: int) -> tuple[pd.DataFrame, list[str]]:
    """Rows of so many groups of each class, some with several photographs; the class of each row."""
    classes = [f"class {c}" for c, n in enumerate(sizes) for _ in range(n)]
    groups = [f"e{i}" for i in range(len(classes)) for _ in range(1 + i % photographs)]
    return pd.DataFrame({"group": groups}), [classes[int(group[1:])] for group in groups]


CLASS_SIZES = st.lists(st.integers(1, 25), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) >= 8)


@given(CLASS_SIZES, st.integers(3, 8), st.integers(0, 3), st.integers(1, 3))
def test_stratified_folds_are_balanced_in_each_class_and_in_all(sizes: list[int], n: int, seed: int, photographs: int) -> None:
    table, classes = of_classes(sizes, photographs)
    dealt, of = (
        deal_groups(table["group"].tolist(), folds(n, seed=seed), classes),
        dict(zip(table["group"], classes, strict=True)),
    )
    for chosen in [set(of), *({group for group in of if of[group] == name} for name in set(classes))]:
        counts = np.bincount([dealt[group] for group in chosen], minlength=n)
        assert counts.max() - counts.min() <= 1
    for fold in range(n):
        assert are_apart(sides(table, assign(table, folds(n, fold, seed), classes), "group"))


@given(CLASS_SIZES, st.randoms(use_true_random=False))
def test_stratified_folds_do_not_depend_on_the_order_of_rows(sizes: list[int], random: Any) -> None:
    table, classes = of_classes(sizes, 2)
    order = list(range(len(table)))
    roles = assign(table, folds(4), classes)
    random.shuffle(order)
    again = assign(table.iloc[order].reset_index(drop=True), folds(4), [classes[i] for i in order])
    assert again == [roles[i] for i in order]


def test_folds_of_one_stratum_are_those_without_strata_which_stay_as_they_were() -> None:
    groups = [f"e{i}" for i in range(12)]
    dealt = {f"e{e}": i % 3 for i, e in enumerate([11, 2, 0, 6, 7, 4, 3, 8, 10, 1, 5, 9])}
    assert deal_groups(groups, folds(3)) == deal_groups(groups, folds(3), ["all"] * 12) == dealt
    assert deal_groups(groups, folds(3), ["a", "b"] * 6) != dealt


def test_strata_are_nothing_to_a_split_by_domains() -> None:
    table = pd.DataFrame({"group": list("abcdef"), "domain": list("xxyyzz"), "site": list("abcdef"), "date": ["2020"] * 6})
    split = DomainSplit(kind="domains", n=3, held_out=0)
    assert assign(table, split, list("ststst")) == assign(table, split)


def test_a_group_of_two_classes_is_refused_and_a_rare_class_is_warned_of() -> None:
    with pytest.raises(UserError, match="group b is of both moth and fly"):
        deal_groups(list("abbc"), folds(3), ["moth", "moth", "fly", "fly"])
    groups, classes = list("abcdefgg"), ["moth"] * 4 + ["fly"] * 2 + ["bee"] * 2
    assert rare_strata(groups, folds(7), ["moth"] * 8) == []
    assert rare_strata(groups, folds(3), classes) == [
        "2 of 3 classes have fewer groups than data.split.n = 3: bee (1), fly (2). In some folds these are not tested, not "
        "validated or not trained on; those with one group train in all."
    ]
    many = rare_strata(groups, folds(3), list("abcdefgg"))
    assert many[0].startswith("7 of 7 classes") and "e (1), …. In" in many[0]
    assert set(assign(pd.DataFrame({"group": groups}), folds(3), classes)) == {"train", "validation", "test"}


# ---------------------------------------------------------------- whole domains, sites and years left out
@given(tables(), st.integers(0, 2), st.integers(0, 5))
def test_no_domain_that_is_left_out_is_trained_on_and_no_site_date_is_on_two_sides(
    table: pd.DataFrame, fold: int, seed: int
) -> None:
    roles = assign(table, DomainSplit(kind="domains", n=3, fold=fold, seed=seed))
    domains = sides(table, roles, "domain")
    assert are_apart(sides(table, roles, "group"))
    assert are_apart(sides(table.assign(place=site_dates(table)), roles, "place"))
    for role in ("validation", "test"):
        assert domains[role] - domains["train"], "there are new domains"
        assert domains[role] & domains["train"], "there are known domains"
    assert not (domains["test"] - domains["train"]) & (domains["validation"] - domains["train"])


@given(tables(), st.integers(0, 5))
def test_every_domain_is_new_in_one_fold(table: pd.DataFrame, seed: int) -> None:
    new: list[str] = []
    for fold in range(3):
        domains = sides(table, assign(table, DomainSplit(kind="domains", n=3, fold=fold, seed=seed)), "domain")
        new += domains["test"] - domains["train"]
    assert sorted(new) == sorted(set(table["domain"]))


@given(tables(), st.sampled_from(["sites", "years"]), st.integers(0, 2), st.integers(0, 5))
def test_no_site_and_no_date_is_on_two_sides(table: pd.DataFrame, kind: Any, fold: int, seed: int) -> None:
    split = Split.parse({"kind": kind, "n": 3, "fold": fold, "seed": seed})
    units = joined(table["group"], table["site"] if kind == "sites" else [date[:4] for date in table["date"]])
    assume(len(set(units)) >= 3)
    roles = assign(table, split)
    assert are_apart(sides(table, roles, "group"))
    assert are_apart(sides(table, roles, "site" if kind == "sites" else "date"))
    assert set(roles) == {"train", "validation", "test"}


SPLITS: list[Folded] = [
    folds(3), SiteSplit(kind="sites", n=3), YearSplit(kind="years", n=3), DomainSplit(kind="domains", n=3),
]  # fmt: skip


@given(tables(), st.sampled_from(SPLITS), st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_the_order_of_rows(table: pd.DataFrame, split: Folded, random: Any) -> None:
    order = list(range(len(table)))
    random.shuffle(order)
    try:
        roles = assign(table, split)
    except UserError:
        assume(False)
    shuffled = assign(table.iloc[order].reset_index(drop=True), split)
    assert shuffled == [roles[i] for i in order]


@pytest.mark.parametrize(
    ("kind", "drawn"),
    [
        (FoldSplit(kind="folds", n=4, seed=3), "t.tvv..ttv...vvt.vt.t.v.v....v..t.vtt..."),
        (DomainSplit(kind="domains", n=4, seed=3), "v...tv..ttttttttvvvvvvvv..t.....tttttttt"),
        (YearSplit(kind="years", n=4, seed=3), "vt....vtvt....vtvt....vtvt....vtvt....vt"),
        (SiteSplit(kind="sites", n=4, seed=3), "t..t..t.tv.t.vtvt..t..t.tv.t.vtvt.vtv.t."),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_draw_never_changes_since_trials_of_a_year_ago_were_tested_on_it(kind: Folded, drawn: str) -> None:
    rows = [
        (f"e{d}-{i}", f"D{d}", f"S{d}-{i % 2}" if i % 3 else "", f"{2012 + i % 6}-01-0{1 + i // 2}")
        for d in range(5)
        for i in range(8)
    ]
    roles = assign(pd.DataFrame(rows, columns=["group", "domain", "site", "date"]), kind)
    assert "".join({"train": ".", "test": "t", "validation": "v"}[role] for role in roles) == drawn


def test_a_share_of_the_training_domains_site_dates_is_held_out_for_each_of_test_and_validation() -> None:
    rows = [(f"e{d}-{i}", f"D{d}", f"S{d}", f"2015-01-{1 + i // 2:02d}") for d in range(4) for i in range(40)]
    table = pd.DataFrame(rows, columns=["group", "domain", "site", "date"])  # two groups a site-date
    for held_out, n in ((0.1, 4), (0.25, 10), (0.0, 0)):
        roles = assign(table, DomainSplit(kind="domains", n=4, held_out=held_out))
        known = table["domain"].isin(sides(table, roles, "domain")["train"])
        places = sides(table[known].assign(p=site_dates(table[known])), [r for r, k in zip(roles, known, strict=True) if k], "p")
        assert {role: len(them) for role, them in places.items()} == {"train": 40 - 2 * n, "validation": n, "test": n}


@given(tables(), st.integers(0, 2), st.integers(0, 50), st.sampled_from([0.1, 0.3]))
def test_a_domain_is_trained_on_or_new_on_one_side_alone(table: pd.DataFrame, fold: int, seed: int, held_out: float) -> None:
    small = pd.DataFrame([("x", "D0", "D0-only", "2010-01-01")], columns=["group", "domain", "site", "date"])
    table = pd.concat([table[table["domain"] != "D0"], small], ignore_index=True)
    try:
        roles = assign(table, DomainSplit(kind="domains", n=3, fold=fold, seed=seed, held_out=held_out))
    except UserError:
        assume(False)
    domains = sides(table, roles, "domain")
    assert not (domains["test"] & domains["validation"]) - domains["train"]


def test_holding_out_so_much_that_nothing_is_left_is_refused() -> None:
    table = pd.DataFrame(
        [(f"e{d}", f"D{d}", None, None) for d in range(4)], columns=["group", "domain", "site", "date"], dtype=object
    )
    with pytest.raises(UserError, match=r"held_out = 0\.1: of 2 site-dates in the training domains 2 would be held out"):
        assign(table, DomainSplit(kind="domains", n=4))


@given(st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 50), min_size=3), st.integers(0, 3))
def test_groups_are_dealt_so_that_no_fold_exceeds_another_by_more_than_its_largest_group(
    sizes: dict[str, int], seed: int
) -> None:
    dealt = deal_units(sizes, SiteSplit(kind="sites", n=3, seed=seed))
    load = [sum(n for group, n in sizes.items() if dealt[group] == fold) for fold in range(3)]
    assert max(load) - min(load) <= max(sizes.values()) and set(dealt.values()) == {0, 1, 2}


def test_too_few_domains_are_refused_with_their_number() -> None:
    table = pd.DataFrame({"group": ["1", "2"], "domain": ["a", "b"], "site": [None, None], "date": [None, None]})
    with pytest.raises(UserError, match=r"data\.split\.n = 5, but there are 2 domains"):
        assign(table, DomainSplit(kind="domains"))


@pytest.mark.parametrize(("kind", "column"), [("domains", "domain"), ("sites", "site"), ("years", "date")])
def test_a_split_whose_column_is_not_named_is_refused_by_the_configuration(kind: str, column: str) -> None:
    data = {"source": "x", "targets": ["y"], "columns": {"image": "img"}, "split": {"kind": kind}}
    base = {"task": "regress", "experiment": "x", "data": data}
    with pytest.raises(ValueError, match=rf"data\.split\.kind {kind} leaves .* out: set data\.columns\.{column} to the column"):
        Config.model_validate(base)
    Config.model_validate(base | {"data": data | {"columns": {"image": "img", column: "x"}}})


# ---------------------------------------------------------------- what belongs together
@pytest.mark.jobs
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_rows_are_joined_as_a_graph_of_groups_and_labels_is_connected(pairs: list[tuple[int, int]]) -> None:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    groups, labels = zip(*pairs, strict=True)
    graph = coo_array((np.ones(len(pairs)), (groups, [10 + label for label in labels])), shape=(20, 20))
    expected = connected_components(graph, directed=False)[1][list(groups)]
    found = pd.factorize(np.array(joined([f"e{e}" for e in groups], [f"l{label}" for label in labels])))[0]
    assert (found == pd.factorize(expected)[0]).all()


# ---------------------------------------------------------------- folds by columns
@st.composite
def sampled(draw: st.DrawFn) -> tuple[pd.DataFrame, list[str]]:
    """Images of groups, with two columns that folds may be dealt by, and a stratum of each."""
    n = draw(st.integers(1, 40))
    cells = st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(0, 4), st.integers(0, 2))
    rows = draw(st.lists(cells, min_size=n, max_size=n)) + [(100 + i, i % 4, 50 + i, i % 3) for i in range(9)]
    named = [{"group": f"g{g}", f"{SPLIT_BY}0": f"s{a}", f"{SPLIT_BY}1": f"d{b}"} for g, a, b, _ in rows]
    return pd.DataFrame(named), [str(stratum) for *_, stratum in rows]


@given(sampled(), st.integers(3, 5), st.booleans(), st.booleans(), st.integers(0, 5))
def test_nothing_that_shares_a_group_or_the_columns_is_in_two_folds(
    made: tuple[pd.DataFrame, list[str]], n: int, stratified: bool, tests: bool, seed: int
) -> None:
    """And every image has its turn once, whatever the strata."""
    table, strata = made
    turns = np.zeros(len(table), int)
    for fold in range(n):
        split = FoldSplit(kind="folds", n=n, fold=fold, seed=seed, by=("State", "Day"), tests=tests)
        try:
            roles = assign(table, split, strata if stratified else None)
        except UserError as error:
            assert f"data.split.n = {n}" in str(error)
            return
        for columns in (["group"], [f"{SPLIT_BY}0", f"{SPLIT_BY}1"]):
            assert table.assign(role=roles).groupby(columns)["role"].nunique().max() == 1
        turns += [role == ("test" if tests else "validation") for role in roles]
        assert set(roles) <= ({"train", "validation", "test"} if tests else {"train", "validation"})
    assert (turns == 1).all()


@given(sampled(), st.randoms(use_true_random=False))
def test_folds_by_columns_do_not_hang_on_the_order_of_rows(made: tuple[pd.DataFrame, list[str]], random: Any) -> None:
    table, strata = made
    split, order = FoldSplit(kind="folds", n=3, by=("State", "Day"), stratify="x"), list(range(len(table)))
    random.shuffle(order)
    for given_strata in (None, strata):
        one = assign(table, split, given_strata)
        other = assign(table.iloc[order].reset_index(drop=True), split, given_strata and [given_strata[i] for i in order])
        assert [one[i] for i in order] == other
