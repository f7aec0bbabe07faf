"""How alike images and texts should be: each target against loops over pairs, and what must hold of all of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.pairs.targets import TARGETS, ClassFacts, Codes, depth_shares, hierarchical, same, shuffled


@st.composite
def taxonomies(draw: Any) -> Tensor:
    """Ranks of a few classes, of which some are unknown."""
    n_ranks = draw(st.integers(1, 4))
    row = st.lists(st.integers(-1, 2), min_size=n_ranks, max_size=n_ranks)
    return torch.tensor(draw(st.lists(row, min_size=1, max_size=6)))


@st.composite
def trees(draw: Any) -> tuple[list[int], list[float], list[int]]:
    """The parent of each node (of the root itself), the depth of each, and the nodes that are species: with unlike depths, and of
    any number of children."""
    n = draw(st.integers(3, 10))
    parents = [0] + [draw(st.integers(0, node - 1)) for node in range(1, n)]
    depths = [0.0]
    for node in range(1, n):
        depths.append(depths[parents[node]] + draw(st.floats(0.1, 5)))
    inner = set(parents)
    return parents, depths, [node for node in range(n) if node not in inner]


def ancestors(parents: list[int], node: int) -> list[int]:
    """The node, its parent, … the root."""
    found = [node]
    while found[-1]:
        found.append(parents[found[-1]])
    return found


def depths_of_common_ancestors(parents: list[int], depths: list[float], species: list[int]) -> list[list[float]]:
    """V: by walking from both species to the root."""
    lines = [ancestors(parents, node) for node in species]
    return [[max(depths[node] for node in a if node in b) for b in lines] for a in lines]


def drawn(n_classes: int, n: int, seed: int) -> Codes:
    generator = torch.Generator().manual_seed(seed)
    return Codes(torch.randint(n_classes, (n,), generator=generator), torch.arange(n), torch.arange(n))


# ---------------------------------------------------------------- each against loops
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_same_is_equality_pair_by_pair(rows: list[int], columns: list[int]) -> None:
    assert same(torch.tensor(rows), torch.tensor(columns)).tolist() == [[a == b for b in columns] for a in rows]


@given(taxonomies())
def test_hierarchical_targets_are_one_less_the_share_of_ranks_from_the_first_that_differs(ranks: Tensor) -> None:
    n_ranks = ranks.shape[1]
    found = hierarchical(ranks, ranks)
    for i, a in enumerate(ranks.tolist()):
        for j, b in enumerate(ranks.tolist()):
            differing = [r for r in range(n_ranks) if a[r] != b[r] or a[r] == -1]
            distance = n_ranks - differing[0] if differing else 0
            assert float(found[i, j]) == pytest.approx(1 - distance / n_ranks)


def test_taxa_that_are_not_known_match_nothing_not_even_each_other() -> None:
    unknown = torch.full((2, 3), -1)
    assert hierarchical(unknown, unknown).tolist() == [[0, 0], [0, 0]]
    tree = torch.tensor([[2.0, 1.0, math.nan, math.nan], [1.0, 2.0, math.nan, math.nan]] + [[math.nan] * 4] * 2)
    assert depth_shares(tree).tolist() == [[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


@given(trees())
def test_phylogenetic_targets_are_depths_of_common_ancestors_by_the_greatest_depth(tree: Any) -> None:
    parents, depths, species = tree
    v = depths_of_common_ancestors(parents, depths, species)
    found = TARGETS["phylogenetic"](ClassFacts(torch.ones(len(v)), tree=torch.tensor(v))).block(
        *[Codes(torch.arange(len(v)), torch.arange(len(v)) + k * 100, torch.arange(len(v)) + k * 100) for k in (0, 1)]
    )
    for i in range(len(v)):
        for j in range(len(v)):
            expected = 1 if i == j else v[i][j] / max(v[k][k] for k in range(len(v)))
            assert float(found[i, j]) == pytest.approx(expected, rel=1e-5)


def test_a_tree_without_depth_is_refused() -> None:
    for tree in (torch.zeros(2, 2), torch.full((2, 2), math.nan)):
        with pytest.raises(UserError, match="the tree has no depth"):
            depth_shares(tree)


# ---------------------------------------------------------------- all
def facts(n_classes: int, seed: int) -> ClassFacts:
    """Ranks and a tree of so many classes, some unknown to either."""
    generator = torch.Generator().manual_seed(seed)
    tree = torch.rand(n_classes, n_classes, generator=generator) + 2 * torch.eye(n_classes)
    tree = (tree + tree.T) / 2
    tree[1], tree[:, 1] = math.nan, math.nan
    return ClassFacts(torch.ones(n_classes), torch.randint(-1, 3, (n_classes, 3), generator=generator), tree)


@pytest.mark.parametrize("kind", TARGETS)
@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(1, 8), st.integers(0, 99), st.data())
def test_targets_are_symmetric_within_0_and_1_and_a_block_is_a_part_of_the_whole(
    kind: str, n_classes: int, n: int, seed: int, data: Any
) -> None:
    targets, codes = TARGETS[kind](facts(n_classes, seed)), drawn(n_classes, n, seed)
    whole = targets.block(codes, codes)
    assert torch.equal(whole, whole.T) and whole.dtype == torch.float32
    assert (whole.diagonal() == 1).all() and whole.min() >= 0 and whole.max() <= 1
    start, stop = sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))
    assert torch.equal(targets.block(codes[start:stop], codes), whole[start:stop])


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind != "pairwise"])
@settings(max_examples=30)
@given(st.integers(2, 5), st.integers(0, 99))
def test_a_class_is_like_itself_whatever_is_known_of_it(kind: str, n_classes: int, seed: int) -> None:
    codes = drawn(n_classes, 8, seed)
    alike = same(codes.classes, codes.classes)
    found = TARGETS[kind](facts(n_classes, seed)).block(codes, codes)
    assert (found[alike] == 1).all()
    if kind == "multipositive":
        assert (found[~alike] == 0).all()


# ---------------------------------------------------------------- the control
@given(trees(), st.integers(0, 99), st.integers(0, 2))
def test_a_shuffled_tree_is_the_same_tree_of_other_species(tree: Any, seed: int, n_lacking: int) -> None:
    v = torch.tensor(depths_of_common_ancestors(*tree))
    lacking = torch.arange(len(v)) < n_lacking
    v[lacking], v[:, lacking] = math.nan, math.nan
    other = shuffled(v, seed)
    assert torch.equal(other.isnan(), v.isnan()) and torch.equal(other.nan_to_num(), shuffled(v, seed).nan_to_num())
    assert other.flatten().nan_to_num().sort().values.tolist() == v.flatten().nan_to_num().sort().values.tolist()
    assert sorted(other.diagonal().nan_to_num().tolist()) == sorted(v.diagonal().nan_to_num().tolist())


def test_seeds_shuffle_differently_and_each_row_goes_with_its_column() -> None:
    n = 12
    depths = torch.arange(1.0, n + 1)
    v = torch.minimum(depths[:, None], depths)  # each species' diagonal tells which it is
    first, second = shuffled(v, 0), shuffled(v, 1)
    assert not torch.equal(first, v) and not torch.equal(first, second)
    assert torch.equal(first, torch.minimum(first.diagonal()[:, None], first.diagonal()))


@given(st.integers(0, 99))
def test_targets_of_the_control_are_those_of_the_shuffled_tree_and_one_for_the_own_class(seed: int) -> None:
    known, codes = facts(6, 0), Codes(torch.arange(6), torch.arange(6), torch.arange(6))
    assert known.tree is not None
    expected = torch.maximum(torch.eye(6), depth_shares(shuffled(known.tree, seed)))
    found = TARGETS["phylogenetic"](known, seed).block(codes, codes)
    assert torch.equal(found, expected)


def test_the_control_has_other_relatives() -> None:
    known, codes = facts(6, 0), Codes(torch.arange(6), torch.arange(6), torch.arange(6))
    assert not torch.equal(*(TARGETS["phylogenetic"](known, shuffle).block(codes, codes) for shuffle in (None, 0)))
