"""Trees: what two species share of the way from the root, against distances along branches, and species that a tree lacks."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from Bio import Phylo
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.taxonomy import Taxonomy
from pipeline.data.tree import Shared, find_classes, normal, read_tree, shared_depths
from pipeline.errors import UserError


def write(folder: Path, text: str) -> Path:
    (folder / "tree.nwk").write_text(text, encoding="utf-8")
    return folder / "tree.nwk"


def of_species(*species: str, taxa: tuple[tuple[str | None, ...], ...] | None = None) -> Taxonomy:
    ranks = ("family", "genus")[2 - len(taxa[0]) :] if taxa else ()
    return Taxonomy(species, ranks, taxa or ((),) * len(species), (None,) * len(species))


def shared(folder: Path, text: str, taxonomy: Taxonomy, how: str = "apart") -> Shared:
    return shared_depths(read_tree(write(folder, text)), taxonomy, how)  # type: ignore[arg-type]


# ---------------------------------------------------------------- any tree
def newick(seed: int) -> tuple[str, int]:
    """A tree of some tips T_0, T_1, …: branches of any length, nodes with one child or many; and how many tips."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 15))
    parts = [f"T_{i}:{rng.integers(10)}" for i in range(n)]
    while len(parts) > 1:
        k = int(rng.integers(1, min(4, len(parts)) + 1))
        start = int(rng.integers(len(parts) - k + 1))
        parts[start : start + k] = [f"({','.join(parts[start : start + k])}):{rng.choice(['0', '0.5', '2', '1e-1', '3.25'])}"]
    return parts[0].rpartition(":")[0] + ";", n


TREES = st.integers(0, 2**32).map(newick)


@given(TREES, st.permutations(range(14)))
@settings(max_examples=120)
def test_what_two_species_share_is_half_of_their_depths_less_their_distance(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, int], order: list[int]
) -> None:
    text, n = drawn
    path = write(tmp_path_factory.getbasetemp(), text)
    names = [f"T {i}" for i in order if i < n]
    found = shared_depths(read_tree(path), of_species(*names)).depths
    tree = Phylo.read(path, "newick")
    tips = [next(tree.find_clades(name=name.replace(" ", "_"))) for name in names]
    depth = tree.depths()
    for i, a in enumerate(tips):
        for j, b in enumerate(tips):
            expected = (
                depth[a] - depth[tree.root] if i == j else (depth[a] + depth[b] - tree.distance(a, b)) / 2 - depth[tree.root]
            )
            assert found[i, j] == pytest.approx(expected, abs=1e-4)
    assert (found == found.T).all()


@pytest.mark.jobs
def test_ten_thousand_tips_and_a_comb_take_seconds(tmp_path: Path) -> None:
    rng, parts = np.random.default_rng(0), [f"Genus_{i}" for i in range(10_000)]
    while len(parts) > 1:
        i = int(rng.integers(len(parts) - 1))
        parts[i : i + 2] = [f"({parts[i]}:1,{parts[i + 1]}:1)"]
    started = time.process_time()
    found = shared(tmp_path, parts[0] + ";", of_species(*(f"Genus {i}" for i in range(10_000))))
    assert time.process_time() - started < 15 and found.known.all() and found.depths.shape == (10_000, 10_000)
    comb = "(" * 3000 + "A_a:1" + "".join(f",B_{i}:1):1" for i in range(3000)) + ";"
    assert shared(tmp_path, comb, of_species("A a", "B 0", "B 2999")).depths[0].tolist() == [3000, 2999, 0]


# ---------------------------------------------------------------- names
def test_names_are_compared_without_underscores_quotes_case_and_numbers_of_the_open_tree(tmp_path: Path) -> None:
    text = "((Carabus_nemoralis:1,'Carabus auratus':1):1,(Amara_aenea_ott12345:1,BLAPS_GIGAS:1):1);"
    labels = ("Carabus nemoralis Müller, 1764", "Carabus_auratus", "Amara aenea", "Blaps gigas")
    assert (find_classes(read_tree(write(tmp_path, text)), of_species(*labels)) >= 0).all()
    assert normal("'Carabus_nemoralis'") == normal("carabus  Nemoralis")


def test_an_inner_node_stands_for_a_species_with_subspecies(tmp_path: Path) -> None:
    text = "((A_a_one:1,A_a_two:3)A_a:2,B_b:5);"
    found = shared(tmp_path, text, of_species("A a", "A a two", "B b"))
    assert found.depths.tolist() == [[2, 2, 0], [2, 5, 0], [0, 0, 5]]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("((A_a:1,B_b:1);", "this is no Newick file"),
        ("", "this is no Newick file"),
        ("#NEXUS\nbegin trees;", "this is no Newick file"),
        ("<html></html>", "this is no Newick file"),
        ("(A_a:1,B_b:1);\n(A_a:1,B_b:2);", "it holds 2 trees"),
        ("((A_a:1,B_b):1,C_c:1);", "1 of 4 branches have no length"),
        ("((A_a:1,B_b:1):1,A_a:1);", "A_a stands there twice"),
        ("(A_a:1e999,B_b:1);", "no finite number"),
        ("(C_c:1,D_d:1);", "none of the 2 classes"),
    ],
)
def test_a_file_that_is_no_tree_of_these_species_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        shared(tmp_path, text, of_species("A a", "B b"))
    with pytest.raises(UserError, match="cannot be read"):
        read_tree(tmp_path / "nosuch.nwk")


def test_branches_without_lengths_are_one_long_negative_ones_none_and_both_is_said(tmp_path: Path) -> None:
    found = shared(tmp_path, "((A_a,B_b),C_c);", of_species("A a", "B b", "C c"))
    assert found.depths.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 1]] and "each is taken as 1" in found.notes[0]
    found = shared(tmp_path, "((A_a:1,B_b:-1):1,C_c:1);", of_species("A a", "B b", "C c"))
    assert found.depths[1].tolist() == [1, 1, 0] and "1 branches of the tree have a negative length" in found.notes[0]


# ---------------------------------------------------------------- species that it lacks
TREE = "(((A_a:30,A_b:30):30,(B_a:20,B_b:20):40):40,(C_a:100):0)root;"
"""Genera A and B of one family, C of another."""
F, G = "Fidae", "Gidae"


def test_species_that_the_tree_lacks_are_like_no_other_nor_like_each_other(tmp_path: Path) -> None:
    found = shared(tmp_path, TREE, of_species("A a", "X x", "A b", "Y y"))
    assert found.depths.tolist() == [[100, 0, 70, 0], [0, 100, 0, 0], [70, 0, 100, 0], [0, 0, 0, 100]]
    assert found.known.tolist() == [True, False, True, False]
    assert found.notes == ("2 of 4 classes (X x, Y y) are not in the tree, and like no other",)


def test_they_are_grafted_at_the_most_specific_rank_that_the_tree_has(tmp_path: Path) -> None:
    species = ("A a", "A b", "B a", "A new", "A other", "D new", "C new", "Z z", "C a")
    taxa = ((F, "A"), (F, "A"), (F, "B"), (F, "A"), (F, "A"), (F, "D"), (G, "C"), (None, None), (G, "C"))
    found = shared(tmp_path, TREE, of_species(*species, taxa=taxa), "graft")
    v = dict(zip(species, found.depths.tolist(), strict=True))
    assert v["A new"] == [70, 70, 40, 100, 70, 40, 0, 0, 0]  # at the common ancestor of genus A
    assert v["D new"] == [40, 40, 40, 40, 40, 100, 0, 0, 0]  # its genus is not there: at its family's
    assert v["C new"] == [0, 0, 0, 0, 0, 0, 100, 0, 50]  # beside one species: halfway along its branch
    assert v["Z z"] == [0, 0, 0, 0, 0, 0, 0, 100, 0]
    assert v["A a"][1] == 70 and v["C a"][8] == 100, "those that are there stay as they were"
    assert found.notes[0].startswith("4 of 9 classes (A new, A other, D new, C new) are not in the tree, and grafted")
    assert found.notes[1].startswith("1 of 9 classes (Z z) are not in the tree, and like no other")


@pytest.mark.parametrize(("how", "nowhere"), [("apart", ["C new", "Z z"]), ("graft", ["Z z"])])
def test_a_class_that_stands_nowhere_in_the_tree_has_no_depth_and_a_grafted_one_has(
    how: str, nowhere: list[str], tmp_path: Path
) -> None:
    species, taxa = ("A a", "C new", "Z z", "C a"), ((F, "A"), (G, "C"), (None, None), (G, "C"))
    found = shared(tmp_path, TREE, of_species(*species, taxa=taxa), how)
    there = np.array([name not in nowhere for name in species])
    assert found.placed.tolist() == there.tolist()
    pairs = there[:, None] & there
    assert np.isnan(found.of_placed()[~pairs]).all() and (found.of_placed()[pairs] == found.depths[pairs]).all()


def test_a_named_inner_node_is_where_its_taxon_is_grafted_and_tips_of_no_class_tell_a_genus(tmp_path: Path) -> None:
    named = "((A_a:1,A_b:1)A:2,(B_a:2,X_x:2)Bidae:1);"
    found = shared(
        tmp_path, named, of_species("A a", "B new", "E e", taxa=(("Aidae", "A"), ("Bidae", "B"), ("Bidae", "E"))), "graft"
    )
    assert found.depths.tolist() == [[3, 0, 0], [0, 3, 1], [0, 1, 3]]
    two = shared(tmp_path, TREE, of_species("C a", "B new", "B other", taxa=((G, "C"), (F, "B"), (F, "B"))), "graft")
    assert two.depths[1].tolist() == [0, 100, 80]


@given(TREES, st.sets(st.integers(0, 13), min_size=1, max_size=5))
@settings(max_examples=60)
def test_grafting_changes_nothing_between_species_that_are_there(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, int], gone: set[int]
) -> None:
    text, n = drawn
    tree = read_tree(write(tmp_path_factory.getbasetemp(), text))
    labels = [f"T {i}" for i in range(n)] + [f"T new {i}" for i in gone]
    taxa = tuple((f"g{i % 3}",) for i in range(len(labels)))
    apart, grafted = (shared_depths(tree, of_species(*labels, taxa=taxa), how) for how in ("apart", "graft"))  # type: ignore[arg-type]
    assert (apart.depths[:n, :n] == grafted.depths[:n, :n]).all()
    v = grafted.depths
    assert (v == v.T).all() and (v <= np.minimum.outer(np.diag(v), np.diag(v)) + 1e-4).all()
    assert (np.minimum(v[:, :, None], v[None, :, :]) <= v[:, None, :] + 1e-4).all(), "the three-point condition"
