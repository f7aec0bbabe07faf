"""How alike a row and a column of a batch should be, within 0 … 1: the targets T of the losses of pairs.

Each function gives a block of the matrix, of some rows and columns. All are symmetric: T of the texts' side is T transposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from pipeline.errors import UserError
from pipeline.models.pairs.similarity import Matrix

Ranks = Int[Tensor, "classes ranks"]
"""What each class is called at each rank, from the root down, as whole numbers; −1: it is not known."""
Tree = Float[Tensor, "classes classes"]
"""Depth of the most recent common ancestor of each two classes; NaN for a class that the tree lacks."""


def same(rows: Int[Tensor, " rows"], columns: Int[Tensor, " columns"]) -> Bool[Tensor, "rows columns"]:
    """1[code of the row = code of the column]: of positions in the batch the identity (CLIP), of classes all positives (UniCL:
    Yang et al. 2022, arXiv 2204.03610)."""
    return rows[:, None] == columns


def hierarchical(rows: Int[Tensor, "rows ranks"], columns: Int[Tensor, "columns ranks"]) -> Matrix:
    """1 − d/R, d = R − index of the first rank, from the root, at which the two differ; 0 if they are alike at all R.

    The share of ranks that they have in common before they part. An unknown rank (−1) differs from every other.
    """
    n_ranks = rows.shape[1]
    together = torch.ones(len(rows), len(columns), dtype=torch.bool, device=rows.device)
    common = torch.zeros(len(rows), len(columns), device=rows.device)
    for rank in range(n_ranks):
        together = together & same(rows[:, rank], columns[:, rank]) & (rows[:, rank, None] >= 0)
        common += together
    return common / n_ranks


def depth_shares(tree: Tree) -> Tree:
    """V / max(diag V), within 0 … 1: the phylogenetic targets of each two classes, V_ij the depth of their most recent common
    ancestor, (depth_i + depth_j − distance_ij) / 2. A class that the tree lacks (NaN) is like none.

    Raises UserError for a tree without depth.
    """
    known = tree.nan_to_num(0.0)
    deepest = known.diagonal().max()
    if not deepest > 0:
        raise UserError("the tree has no depth: all species that it has stand at its root. Give its branches lengths.")
    return (known / deepest).clamp(0, 1)


def shuffled(tree: Tree, seed: int) -> Tree:
    """The tree with its species permuted, those that it lacks left where they are: a control, in which relatedness says nothing
    of looks while all its values stay."""
    there = torch.nonzero(~tree.diagonal().isnan()).flatten()
    drawn = torch.randperm(len(there), generator=torch.Generator().manual_seed(seed)).to(there.device)
    places = torch.arange(len(tree), device=tree.device)
    places[there] = there[drawn]
    return tree[places][:, places]


@dataclass(frozen=True)
class ClassFacts:
    """What is known of the classes before training, in the order of their codes."""

    counts: Num[Tensor, " classes"]
    """Training images of each; 0 for one that training does not meet."""
    ranks: Ranks | None = None
    tree: Tree | None = None

    def to(self, device: torch.device) -> ClassFacts:
        ranks, tree = (None if each is None else each.to(device) for each in (self.ranks, self.tree))
        return ClassFacts(self.counts.to(device), ranks, tree)


@dataclass(frozen=True)
class Codes:
    """What the targets and weights of some images, or texts, are read from."""

    classes: Int[Tensor, " n"]
    positions: Int[Tensor, " n"]
    """Where they stand in the whole batch: an image and a text at one position are a pair."""
    images: Int[Tensor, " n"]
    """Which images these are: one that was drawn twice has two positions."""

    def __getitem__(self, part: slice) -> Codes:
        return Codes(self.classes[part], self.positions[part], self.images[part])


class Pairwise:
    """1 for an image's own text."""

    def __init__(self, facts: ClassFacts, shuffle: int | None = None) -> None:
        """`shuffle`: the seed of `shuffled`, for targets of a tree."""

    def block(self, rows: Codes, columns: Codes) -> Matrix:
        """T [rows, columns]."""
        return same(rows.positions, columns.positions).float()


class Multipositive(Pairwise):
    """1 for each text of an image's class."""

    def block(self, rows: Codes, columns: Codes) -> Matrix:
        return (same(rows.positions, columns.positions) | same(rows.classes, columns.classes)).float()


class Hierarchical(Multipositive):
    """1 for each text of an image's class, `hierarchical` of the ranks for others."""

    def __init__(self, facts: ClassFacts, shuffle: int | None = None) -> None:
        if facts.ranks is None:
            raise UserError("loss.targets hierarchical reads the ranks of classes, and the data have none")
        self.ranks = facts.ranks

    def block(self, rows: Codes, columns: Codes) -> Matrix:
        return torch.maximum(super().block(rows, columns), hierarchical(self.ranks[rows.classes], self.ranks[columns.classes]))


class Phylogenetic(Multipositive):
    """1 for each text of an image's class, `depth_shares` of the tree for others."""

    def __init__(self, facts: ClassFacts, shuffle: int | None = None) -> None:
        if facts.tree is None:
            raise UserError("loss.targets phylogenetic reads a tree of the classes, and the data have none")
        self.shares = depth_shares(facts.tree if shuffle is None else shuffled(facts.tree, shuffle)).float()

    def block(self, rows: Codes, columns: Codes) -> Matrix:
        return torch.maximum(super().block(rows, columns), self.shares[rows.classes[:, None], columns.classes])


TARGETS: dict[str, type[Pairwise]] = {
    "pairwise": Pairwise, "multipositive": Multipositive, "hierarchical": Hierarchical, "phylogenetic": Phylogenetic,
}  # fmt: skip
"""By the names that a configuration has for them."""
