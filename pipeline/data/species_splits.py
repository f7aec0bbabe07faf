"""Which rows train, validate and test where whole species are held out, and which few images of each class are trained on. What
is drawn depends on names and a seed, by hashes: on no order of rows, no platform and no version of numpy. Loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from pipeline.config.data import Data
from pipeline.config.split import SpeciesSplit
from pipeline.data.dataset import Dataset
from pipeline.data.truth import RANK, UNUSED
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

LEAST_CLASSES = 4
"""One in OOD validation, one in OOD test, and two that are trained on."""
MOST_OF_KNOWN = 1 / 3
"""Of the images that could be drawn, however many validation or test should have."""


@dataclass(frozen=True)
class _Units:
    """Groups, which are never parted, in the order of their names; their classes likewise. `role` is filled as they are drawn."""

    names: list[str]
    of_class: Int64[np.ndarray, " units"]
    images: Int64[np.ndarray, " units"]
    classes: list[str]
    stratum: Int64[np.ndarray, " classes"]
    """The number of the taxon above each class; those without one are in one together."""
    role: list[str]

    def free(self) -> Bool[np.ndarray, " units"]:
        """Which are trained on so far."""
        return np.array([role == "train" for role in self.role])

    def class_sizes(self, chosen: Bool[np.ndarray, " units"]) -> Int64[np.ndarray, " classes"]:
        """Images of each class among the chosen ones."""
        return np.bincount(self.of_class[chosen], self.images[chosen], len(self.classes)).astype("int64")

    def set(self, units: Iterable[int], role: str) -> None:
        for unit in units:
            self.role[unit] = role


def lasting(dataset: Dataset) -> pd.DataFrame:
    """The table of a data set, to draw by: where a group or an id is nothing but its row (`split:row`) it is by the image's name
    (`split:name`), which no other order of rows changes. An image without a name keeps its row."""
    table, names = dataset.table, dataset.image_names()
    places = table["source_split"] + ":" + table["row"].astype(str)
    cells = zip(table["source_split"], names, places, strict=True)
    called = [place if name is None else f"{split}:{name}" for split, name, place in cells]
    return table.assign(**{column: table[column].where(table[column] != places, called) for column in ("group", "id")})


def assign_species(table: pd.DataFrame, split: SpeciesSplit) -> tuple[list[str], list[str]]:
    """The split of each row, and what is to be said of the draw: species that are held out as a whole, and images of the others.

    `table` has the columns group, label and those of ranks, of which the last stratifies the species. A species with one group is
    held out as a whole or trained on; each that is not held out keeps a group to train on.
    Raises UserError for fewer than four classes.
    """
    units = _units(table)
    if (n := len(units.classes)) < LEAST_CLASSES:
        raise UserError(
            f"data.split.kind=species holds whole species out, and there are {n}: with fewer than {LEAST_CLASSES} choose another "
            "split (data.split.kind=folds)"
        )
    notes = list((_quarters if split.recipe == "S" else _tenths)(units, split))
    role = dict(zip(units.names, units.role, strict=True))
    return [role[group] for group in table["group"]], notes


def _units(table: pd.DataFrame) -> _Units:
    """The groups of a table, whose images share a class."""
    above = table.get(f"{RANK}{sum(str(name).startswith(RANK) for name in table) - 1}")
    taxon = {} if above is None else {label: name for label, name in zip(table["label"], above, strict=True) if name}
    classes = sorted(set(table["label"]))
    of = dict(zip(table["group"], table["label"], strict=True))
    sizes, names, place = table["group"].value_counts().to_dict(), sorted(of), {name: i for i, name in enumerate(classes)}
    taxa = {name: i for i, name in enumerate(sorted({taxon.get(label, "") for label in classes}))}
    stratum = np.array([taxa[taxon.get(label, "")] for label in classes], "int64")
    of_class = np.array([place[of[name]] for name in names], "int64")
    return _Units(names, of_class, np.array([sizes[name] for name in names]), classes, stratum, ["train"] * len(names))


# ---------------------------------------------------------------- recipes
def _quarters(units: _Units, split: SpeciesSplit) -> Iterator[str]:
    """OOD test and validation: a quarter of `share` of the species each; then of the images of the others likewise."""
    n, total = max(1, round(split.share / 4 * len(units.classes))), float(units.images.sum())
    order = _stratified(mixed(hashed(units.classes), split.seed), units.stratum, split.seed)
    for part, held in (("test", order[:n]), ("validation", order[n : 2 * n])):
        here = np.isin(units.of_class, held)
        units.set(np.flatnonzero(here), part)
        yield from _missed("OOD", part, float(units.images[here].sum()), split.share / 4, total)
    for part in ("test", "validation"):
        yield from _draw_known(units, part, split.share / 4, split.seed)


def _tenths(units: _Units, split: SpeciesSplit) -> Iterator[str]:
    """OOD test, ID test, OOD validation, ID validation, each drawn from what those before have left to train on."""
    n = max(1, round(split.share * len(units.classes)))
    held = np.zeros(len(units.classes), bool)
    for part in ("test", "validation"):
        sizes = units.class_sizes(units.free())
        classes = np.flatnonzero(~held)
        chosen, reached = _search(units, classes, sizes, min(n, len(classes) - 2), split, part)
        if abs(reached - split.share) > split.tolerance:
            nearest = f"OOD {part}: the nearest of {split.attempts} draws of {len(chosen)} species"
            yield f"{nearest} has {reached:.2%} of the images, not {split.share:.2%} ± {split.tolerance:.2%}"
        held[chosen] = True
        units.set(np.flatnonzero(units.free() & np.isin(units.of_class, chosen)), part)
        yield from _draw_known(units, part, split.share, split.seed)


def _search(
    units: _Units,
    classes: Int64[np.ndarray, " some"],
    sizes: Int64[np.ndarray, " classes"],
    n: int,
    split: SpeciesSplit,
    part: str,
) -> tuple[Int64[np.ndarray, " n"], float]:
    """The n species, stratified, of the first draw that has the share of images, or else is nearest to it; and their share."""
    strata, total = units.stratum[classes], float(units.images.sum())
    keys, best, reached = hashed(f"{part}\0{units.classes[c]}" for c in classes), classes[:n], float("inf")
    for attempt in range(split.attempts):
        chosen = classes[_stratified(mixed(keys, split.seed, attempt), strata, split.seed, attempt)[:n]]
        found = float(sizes[chosen].sum()) / total
        if abs(found - split.share) < abs(reached - split.share):
            best, reached = chosen, found
        if abs(reached - split.share) <= split.tolerance:
            break
    return best, reached


def _draw_known(units: _Units, part: str, share: float, seed: int) -> Iterator[str]:
    """Draw groups of species that are trained on, in proportion from each; species too rare for one of their own are pooled with
    those of as many groups. One group of each stays."""
    total = float(units.images.sum())
    free = np.flatnonzero(units.free())
    counts = np.bincount(units.of_class[free], minlength=len(units.classes))
    free = free[counts[units.of_class[free]] > 1]
    there = float(units.images[free].sum())
    rate = min(share * total / there, MOST_OF_KNOWN) if there else 0.0
    taken, carry = 0.0, 0.0
    for pool in _pools(units, free, counts, rate, f"{part}\0{seed}"):
        staying = len(np.unique(units.of_class[pool]))
        wanted = carry + rate * float(units.images[pool].sum())
        chosen = _up_to(wanted, pool[: len(pool) - staying].tolist(), units.images)
        units.set(chosen, part)
        carry = wanted - float(units.images[chosen].sum())
        taken += float(units.images[chosen].sum())
    yield from _missed("ID", part, taken, share, total)


def _pools(
    units: _Units, free: Int64[np.ndarray, " some"], counts: Int64[np.ndarray, " classes"], rate: float, salt: str
) -> list[Int64[np.ndarray, " pool"]]:
    """The groups of each common species, and those of all rare species with as many groups; each pool in an order in which every
    species comes once before any comes again. The pools come in the order of hashes, the rare ones last."""
    of_class, keys = units.of_class[free], hashed(f"{salt}\0{units.names[unit]}" for unit in free)
    turn = _turns(of_class, keys)
    common = counts * rate >= 1
    first = hashed(f"{salt}\0{name}" for name in units.classes)
    pool_of = np.where(common[of_class], first[of_class] >> np.uint64(1), np.uint64(2**63) + counts[of_class].astype("uint64"))
    order = np.lexsort((keys, turn, pool_of))
    ends = np.flatnonzero(np.diff(pool_of[order])) + 1
    return [free[part] for part in np.split(order, ends)] if len(order) else []


def _turns(of_class: Int64[np.ndarray, " n"], keys: UInt64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The place of each among those of its class, by their keys."""
    order = np.lexsort((keys, of_class))
    sizes = np.bincount(of_class)
    turn = np.empty(len(order), "int64")
    turn[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return turn


def _up_to(target: float, order: Iterable[int], sizes: Int64[np.ndarray, " all"]) -> list[int]:
    """Those in this order that bring the sum of sizes nearer to the target."""
    found, total = list[int](), 0.0
    for each in order:
        if total >= target:
            break
        if total + sizes[each] / 2 <= target:
            found.append(each)
            total += float(sizes[each])
    return found


def _missed(what: str, part: str, images: float, share: float, total: float) -> Iterator[str]:
    """A note where a part has less than half, or more than twice, what it should have."""
    if not share / 2 <= images / total <= 2 * share:
        why = "species and groups are few, or of very different sizes"
        yield f"{what} {part} has {images / total:.1%} of the images, not {share:.1%}: {why}"


# ---------------------------------------------------------------- order
def hashed(names: Iterable[str]) -> UInt64[np.ndarray, " n"]:
    """A number for each name, the first 64 bits of its sha256."""
    return np.frombuffer(b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in names), "<u8").astype("uint64")


def mixed(keys: UInt64[np.ndarray, " n"], *numbers: int) -> UInt64[np.ndarray, " n"]:
    """Other numbers for other `numbers`: the finaliser of splitmix64 (Steele, Lea & Flood 2014) over each of these."""
    for number in numbers:
        keys = keys + np.uint64((0x9E3779B97F4A7C15 * (number + 1)) % 2**64)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys = keys ^ (keys >> np.uint64(31))
    return keys


def _stratified(keys: UInt64[np.ndarray, " n"], strata: Int64[np.ndarray, " n"], *seeds: int) -> Int64[np.ndarray, " n"]:
    """An order, drawn by the keys, whose every beginning has all strata in proportion, to one of each: the k-th of n stands at
    (k + u) / n, with a u in [0, 1) of each stratum's own."""
    sizes = np.bincount(strata)
    own = _shares(mixed(np.arange(len(sizes), dtype="uint64"), *seeds))
    place = (_turns(strata, keys) + own[strata]) / sizes[strata]
    return np.lexsort((keys, place))


def _shares(keys: UInt64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Numbers in [0, 1)."""
    return (keys >> np.uint64(11)).astype("float64") * 2.0**-53


# ---------------------------------------------------------------- few shots
def few_shots(table: pd.DataFrame, data: Data) -> list[str]:
    """The split of each row where of each class `data.shots` training images at most are kept, drawn by the split's seed and
    `data.draw`; the others are of none."""
    roles = table["split"].tolist()
    trained = [i for i, role in enumerate(roles) if role in data.split.trained]
    seed = getattr(data.split, "seed", 0)
    cells = zip(table["id"], table["group"], strict=True)
    salted = [f"{seed}\0{data.draw}\0{name}\0{group}" for name, group in cells]
    keys = hashed(salted[i] for i in trained)
    classes = np.unique(table["label"].iloc[trained], return_inverse=True)[1].astype("int64")
    for i, turn in zip(trained, _turns(classes, keys), strict=True):
        if data.shots is not None and turn >= data.shots:
            roles[i] = UNUSED
    return roles
