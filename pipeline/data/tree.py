"""Phylogenetic trees: a Newick file, the species of a data set found in it, and what each two of them share of the way from the
root. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from pipeline.data.taxonomy import Taxonomy
from pipeline.errors import UserError

OTT = re.compile(r"[ _]ott\d+$")
"""What the Open Tree of Life writes behind names."""
NAMED = 5
"""Names that a warning gives."""


@dataclass(frozen=True)
class Tree:
    """A rooted tree; each node stands behind the one that it descends from, with all its descendants right behind it."""

    names: tuple[str | None, ...]
    parents: Int64[np.ndarray, " nodes"]
    """Places of the parents; -1 for the root, which is the first."""
    depths: Float64[np.ndarray, " nodes"]
    """Lengths of the way from the root; nowhere less than the parent's."""
    notes: tuple[str, ...] = ()

    @property
    def ends(self) -> Int64[np.ndarray, " nodes"]:
        """The place behind the last descendant of each node."""
        ends = np.arange(1, len(self.parents) + 1)
        for node in range(len(self.parents) - 1, 0, -1):
            parent = self.parents[node]
            ends[parent] = max(ends[parent], ends[node])
        return ends

    @property
    def is_tip(self) -> Bool[np.ndarray, " nodes"]:
        return ~np.isin(np.arange(len(self.parents)), self.parents)


@dataclass(frozen=True)
class Shared:
    """How far the classes of a data set go together in a tree."""

    depths: Float32[np.ndarray, "classes classes"]
    """V: the depth of the most recent common ancestor, (depth_i + depth_j - distance_ij) / 2; on the diagonal the class's own."""
    known: Bool[np.ndarray, " classes"]
    """Which classes the tree has. Of one that it lacks, V is 0 beside the diagonal, or that of where it was grafted."""
    placed: Bool[np.ndarray, " classes"]
    """Which stand in it: those that it has, and those that were grafted."""
    notes: tuple[str, ...]

    def of_placed(self) -> Float32[np.ndarray, "classes classes"]:
        """V, with NaN for each class that stands nowhere in the tree."""
        return np.where(self.placed[:, None] & self.placed, self.depths, np.float32("nan"))


def normal(name: str) -> str:
    """A name as trees and tables are compared: blanks for underscores, no quotes, no number of the Open Tree, small letters."""
    return " ".join(OTT.sub("", name.strip("'\"")).replace("_", " ").split()).casefold()


# ---------------------------------------------------------------- reading
def read_tree(path: Path) -> Tree:
    """The tree in a Newick file. Branches without a length all have length 1, if none has one.

    Raises UserError naming the file: it is not there, is no Newick, holds several trees, or some branches have no length.
    """
    from Bio.Phylo.NewickIO import NewickError, Parser

    try:
        text = path.read_text(encoding="utf-8-sig")
        trees = list(Parser.from_string(text).parse())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.tree {path}: the file cannot be read: {error}") from error
    except (NewickError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"data.tree {path}: this is no Newick file: {error}") from error
    if len(trees) != 1 or text.lstrip()[:1] not in ("(", "["):
        what = f"it holds {len(trees)} trees" if len(trees) > 1 else "this is no Newick file: one begins with ("
        raise UserError(f"data.tree {path}: {what}. Name a file with one tree.")
    return _tree(path, trees[0].root)


def _tree(path: Path, root: Any) -> Tree:
    names, parents, lengths, waiting = list[str | None](), list[int](), list[float | None](), [(root, -1)]
    while waiting:
        node, parent = waiting.pop()
        names.append(node.name)
        parents.append(parent)
        lengths.append(node.branch_length)
        waiting += [(child, len(names) - 1) for child in reversed(node.clades)]
    branches, notes = _lengths(path, lengths[1:])
    depths = np.zeros(len(names))
    for node, length in enumerate(branches, start=1):
        depths[node] = depths[parents[node]] + length
    _check_names(path, [name for name in names if name])
    return Tree(tuple(names), np.array(parents, "int64"), depths, tuple(notes))


def _lengths(path: Path, lengths: Sequence[float | None]) -> tuple[Float64[np.ndarray, " branches"], list[str]]:
    """The lengths of all branches but the root's own, which is of no account; and what was taken for granted."""
    without = sum(length is None for length in lengths)
    if without == len(lengths):
        return np.ones(len(lengths)), ["the tree has no branch lengths: each is taken as 1"]
    if without:
        raise UserError(f"data.tree {path}: {without} of {len(lengths)} branches have no length. Give all of them one, or none.")
    values = np.array(lengths, "float64")
    if not np.isfinite(values).all():
        raise UserError(f"data.tree {path}: a branch has a length that is no finite number.")
    negative = int((values < 0).sum())
    return np.maximum(values, 0), [f"{negative} branches of the tree have a negative length, taken as 0"] if negative else []


def _check_names(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if " " in name.strip() or "_" in name:  # (numbers and letters of inner nodes may come again)
            if normal(name) in seen:
                raise UserError(f"data.tree {path}: {name} stands there twice. Remove one of them.")
            seen.add(normal(name))


# ---------------------------------------------------------------- classes
def shared_depths(tree: Tree, taxonomy: Taxonomy, not_in_tree: Literal["apart", "graft"] = "apart") -> Shared:
    """V [C, C] of the classes. A class that the tree lacks is apart from all, or with `graft` stands at the most specific of its
    ranks that the tree has, at full depth itself. Raises UserError if the tree has none of them."""
    nodes = find_classes(tree, taxonomy)
    known, tips = nodes >= 0, tree.depths[tree.is_tip]
    if not known.any():
        there = ", ".join([name for name in tree.names if name][:NAMED])
        raise UserError(f"data.tree: none of the {len(nodes)} classes ({taxonomy.species[0]}, …) is in the tree ({there}, …)")
    own = np.where(known, tree.depths[nodes], tips.max())
    if not_in_tree == "graft" and not known.all():
        tree, nodes = graft(tree, nodes, taxonomy)
    depths = _meet(tree, nodes)
    np.fill_diagonal(depths, own)
    return Shared(depths, known, nodes >= 0, (*tree.notes, *_said(taxonomy, known, nodes)))


def _said(taxonomy: Taxonomy, known: Bool[np.ndarray, " classes"], nodes: Int64[np.ndarray, " classes"]) -> Iterator[str]:
    def names(which: Bool[np.ndarray, " classes"]) -> str:
        some = [taxonomy.species[i] for i in np.flatnonzero(which)[:NAMED]]
        return f"{int(which.sum())} of {len(which)} classes ({', '.join(some)}{', …' if which.sum() > NAMED else ''})"

    if (grafted := ~known & (nodes >= 0)).any():
        yield f"{names(grafted)} are not in the tree, and grafted where their genus or the next rank is"
    if (lost := nodes < 0).any():
        yield f"{names(lost)} are not in the tree, and like no other"


def find_classes(tree: Tree, taxonomy: Taxonomy) -> Int64[np.ndarray, " classes"]:
    """The node of each class, by its label or its scientific name; -1 for those that are not there."""
    places = _places(tree)
    pairs = zip(taxonomy.species, taxonomy.scientific, strict=True)
    return np.array([places.get(normal(a), places.get(normal(b), -1)) for a, b in pairs], "int64")


def _places(tree: Tree) -> dict[str, int]:
    """Nodes by their normal name; of inner nodes and tips of one name the tip."""
    tips = tree.is_tip
    order = sorted((i for i, name in enumerate(tree.names) if name), key=lambda i: bool(tips[i]))
    return {normal(str(tree.names[i])): i for i in order}


def _meet(tree: Tree, nodes: Int64[np.ndarray, " classes"]) -> Float32[np.ndarray, "classes classes"]:
    """The depth of the most recent common ancestor of each two classes; 0 where a node is -1.

    Of two nodes in the order of the tree it is the least of the parents' depths of all that follow the first, up to the second:
    so one pass over the tree tells it for neighbours, and running minima for all others. (The root has depth 0.)
    """
    found = np.zeros((len(nodes), len(nodes)), "float32")
    order = np.argsort(nodes, kind="stable")
    order = order[nodes[order] >= 0]
    at = nodes[order]
    above = tree.depths[np.maximum(tree.parents, 0)]
    steps = np.array([above[a + 1 : b + 1].min() if a < b else tree.depths[a] for a, b in pairwise(at)], "float32")
    for i, row in enumerate(order[:-1]):
        least = np.minimum.accumulate(steps[i:])
        found[row, order[i + 1 :]] = found[order[i + 1 :], row] = least
    return found


# ---------------------------------------------------------------- grafting
def graft(tree: Tree, nodes: Int64[np.ndarray, " classes"], taxonomy: Taxonomy) -> tuple[Tree, Int64[np.ndarray, " classes"]]:
    """The tree, and a node of it for each class that it lacks: the taxon's own, where an inner node has its name, else the most
    recent common ancestor of those that are of it, of one alone a node halfway along its branch. -1 where no rank of it is
    there."""
    anchors = _anchors(tree, nodes, taxonomy)
    wanted = [_anchor(taxa, anchors) if node < 0 else None for node, taxa in zip(nodes, taxonomy.taxa, strict=True)]
    alone = sorted({node for node, is_alone in filter(None, wanted) if is_alone})
    grown, moved, stems = _with_stems(tree, np.array(alone, "int64"))
    at = [-1 if each is None else stems[each[0]] if each[1] else int(moved[each[0]]) for each in wanted]
    return grown, np.where(nodes >= 0, moved[nodes], np.array(at, "int64"))


def _anchor(taxa: Sequence[str | None], anchors: Sequence[dict[str, tuple[int, bool]]]) -> tuple[int, bool] | None:
    pairs = zip(reversed(taxa), reversed(anchors), strict=True)
    return next((found[taxon] for taxon, found in pairs if taxon and taxon in found), None)


def _anchors(tree: Tree, nodes: Int64[np.ndarray, " classes"], taxonomy: Taxonomy) -> list[dict[str, tuple[int, bool]]]:
    """For each rank, of each taxon the node that stands for it, and whether that is a tip."""
    places, tips, ends = _places(tree), tree.is_tip, tree.ends
    first_words = [
        (str(name).replace("_", " ").split()[0].strip("'\""), i) for i, name in enumerate(tree.names) if name and tips[i]
    ]
    found = []
    for rank in range(len(taxonomy.ranks)):
        members: dict[str, list[int]] = {taxon: [] for taxa in taxonomy.taxa if (taxon := taxa[rank])}
        for taxa, node in zip(taxonomy.taxa, nodes, strict=True):
            if (taxon := taxa[rank]) and node >= 0:
                members[taxon].append(int(node))
        for word, node in first_words if rank == len(taxonomy.ranks) - 1 else ():
            if word in members:
                members[word].append(node)
        named = {taxon: node for taxon in members if (node := places.get(normal(taxon), -1)) >= 0 and not tips[node]}
        ancestors = {taxon: _ancestor(tree, ends, of) for taxon, of in members.items() if of} | named
        found.append({taxon: (node, bool(tips[node])) for taxon, node in ancestors.items()})
    return found


def _ancestor(tree: Tree, ends: Int64[np.ndarray, " nodes"], nodes: Iterable[int]) -> int:
    """The most recent common ancestor of some nodes."""
    first, last = min(nodes), max(nodes)
    while ends[first] <= last:
        first = int(tree.parents[first])
    return first


def _with_stems(tree: Tree, tips: Int64[np.ndarray, " tips"]) -> tuple[Tree, Int64[np.ndarray, " nodes"], dict[int, int]]:
    """The tree with a node halfway along the branch to each of some tips; where its nodes are now, and of each tip that node."""
    moved = np.arange(len(tree.parents)) + np.searchsorted(tips, np.arange(len(tree.parents)), side="right")
    stems = moved[tips] - 1
    n = len(tree.parents) + len(tips)
    parents, depths, names = np.full(n, -1), np.zeros(n), np.full(n, None, object)
    parents[moved] = np.where(tree.parents >= 0, moved[tree.parents], -1)
    depths[moved], names[moved] = tree.depths, tree.names
    parents[stems], parents[moved[tips]] = parents[moved[tips]], stems
    depths[stems] = (tree.depths[tips] + tree.depths[tree.parents[tips]]) / 2
    return Tree(tuple(names), parents, depths, tree.notes), moved, dict(zip(tips.tolist(), stems.tolist(), strict=True))
