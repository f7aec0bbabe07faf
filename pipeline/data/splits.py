"""Which rows train, validate and test: groups dealt to folds (of each class alike), or whole domains, sites or years left out.
Everything here depends on the set of groups, never on the order of rows, and on a seed through hashes: the same on every platform
and with every numpy. Loads no torch."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.config.split import Folded, Split
from pipeline.data.truth import SPLIT_BY
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

NAMED = 5
"""How many rare classes a warning names."""


def assign(table: pd.DataFrame, split: Folded, strata: Sequence[str] | None = None) -> list[str]:
    """The split of each row: fold k tests, fold (k + 1) mod n validates, the others train.

    `table` has the columns group, domain, site and date, and those that the split reads. What is dealt to folds are groups
    (`folds`), or domains, sites, years or what has equal values in the columns of `by`, with all that hangs on them: rows that
    share a group are never parted. With `domains`, a share of the training domains' site-dates tests too, and an equal share
    validates, so that both known and new domains do. Where the split does not test, fold k validates instead.

    `strata` names each row's stratum (its class), which what is stratified deals out evenly; a stratum of one group always
    trains, unless several groups are dealt out together. Other kinds make no use of it.
    Raises UserError if there are fewer of them than folds, too few site-dates to hold some out, or a group of two strata.
    """
    units = together(table, split)
    folds = _deal(table, units, split, strata if split.is_stratified else None)
    roles = {split.fold: "test", (split.fold + 1) % split.n: "validation"} if split.tests else {split.fold: "validation"}
    chosen = [roles.get(folds[unit], "train") for unit in units]
    if split.is_stratified and strata is not None and not split.columns:
        alone = _single_strata(table["group"], strata)
        chosen = ["train" if stratum in alone else role for stratum, role in zip(strata, chosen, strict=True)]
    return _hold_out(table, chosen, split) if split.share_held_out else chosen


def together(table: pd.DataFrame, split: Split) -> list[str]:
    """A name for each row, equal where the split never parts rows."""
    return joined(table["group"], _labels(table, split)) if isinstance(split, Folded) else list(table["group"])


def _labels(table: pd.DataFrame, split: Folded) -> Iterable[str]:
    """What the rows of a table are dealt out by."""
    if split.columns:
        columns = (table[f"{SPLIT_BY}{i}"] for i in range(len(split.columns)))
        return ["\0".join(map(str, values)) for values in zip(*columns, strict=True)]
    if split.leaves_out is None:
        return list(table["group"])
    return [split.part_of(str(value)) for value in table[split.leaves_out]]


def _deal(table: pd.DataFrame, units: Sequence[str], split: Folded, strata: Sequence[str] | None) -> dict[str, int]:
    """The fold of each unit."""
    if split.columns:
        return deal_units(Counter(units), split) if strata is None else deal_evenly(units, split, strata)
    if split.leaves_out is None:
        return deal_groups(units, split, strata)
    return deal_units({str(unit): int(n) for unit, n in table["group"].groupby(list(units)).nunique().items()}, split)


def deal_evenly(units: Sequence[str], split: Folded, strata: Sequence[str]) -> dict[str, int]:
    """The fold of each unit, of which rows may be of several strata, so that strata are about as frequent in all folds: by
    scikit-learn's StratifiedGroupKFold, which takes those first whose rows are of few strata; those alike come in an order drawn
    by the seed. Raises UserError for fewer units than folds, or fewer rows of every stratum."""
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import, and most splits need none

    order = {unit: place for place, unit in enumerate(shuffled(units, split.seed))}
    _check_number(len(order), split)
    if (most := max(Counter(strata).values())) < split.n:
        what = "class" if split.stratum is None else f"range of {split.stratum[0]}"
        raise UserError(f"data.split.n = {split.n}, but no {what} has more than {most} images. Choose at most that many folds.")
    places = [order[unit] for unit in units]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a stratum with fewer rows than folds, which `rare_strata` says in our words
        parts = StratifiedGroupKFold(split.n).split(places, strata, places)
        return {units[row]: fold for fold, (_, tested) in enumerate(parts) for row in tested.tolist()}


def joined(groups: Iterable[str], labels: Iterable[str]) -> list[str]:
    """A name for each row, equal where rows share a group or a label, or are linked by rows that do (the least label)."""
    leader: dict[tuple[str, str], tuple[str, str]] = {}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        while (up := leader.setdefault(node, node)) != node:
            leader[node] = leader[up]
            node = up
        return node

    pairs = [(("group", group), ("label", label)) for group, label in zip(groups, labels, strict=True)]
    for group, label in dict.fromkeys(pairs):
        ends = sorted((find(group), find(label)), key=lambda node: (node[0] != "label", node[1]))
        leader[ends[1]] = ends[0]
    return [find(label)[1] for _, label in pairs]


def deal_groups(groups: Sequence[str], split: Folded, strata: Sequence[str] | None = None) -> dict[str, int]:
    """The fold of each group: shuffled by the seed, then dealt out, so that folds differ by one group at most.

    With `strata`, a name beside each of the groups, one stratum is dealt out after another, each from where the one before
    it has ended: so folds differ by one group at most in each of them as well.
    Raises UserError for fewer groups than folds, or a group of two strata.
    """
    order = shuffled(groups, split.seed)
    _check_number(len(order), split)
    if strata is not None:
        order = sorted(order, key=stratum_of(groups, strata).__getitem__)
    return {group: i % split.n for i, group in enumerate(order)}


def stratum_of(groups: Sequence[str], strata: Sequence[str]) -> dict[str, str]:
    """The stratum of each group. Raises UserError if rows of one group are of two."""
    found: dict[str, str] = {}
    for group, stratum in zip(groups, strata, strict=True):
        if found.setdefault(group, stratum) != stratum:
            both = f"group {group} is of both {found[group]} and {stratum}"
            raise UserError(f"{both}: the images of a group share its class. Correct the data, or data.columns.group.")
    return found


def _single_strata(groups: Iterable[str], strata: Sequence[str]) -> set[str]:
    """Strata of one group: where that was tested, nothing of its kind could have been trained on."""
    counts = Counter(stratum for stratum, _ in set(zip(strata, groups, strict=True)))
    return {stratum for stratum, n in counts.items() if n == 1}


def rare_strata(groups: Sequence[str], split: Folded, strata: Sequence[str]) -> list[str]:
    """A warning if some strata have fewer groups than there are folds, naming the rarest; else none."""
    counts = Counter(stratum_of(groups, strata).values())
    rare = sorted((n, stratum) for stratum, n in counts.items() if n < split.n)
    names = ", ".join(f"{stratum} ({n})" for n, stratum in rare[:NAMED]) + (", …" if len(rare) > NAMED else "")
    some = f"{len(rare)} of {len(counts)} classes have fewer groups than data.split.n = {split.n}: {names}"
    rest = "In some folds these are not tested, not validated or not trained on; those with one group train in all"
    return [f"{some}. {rest}."] if rare else []


def deal_units(sizes: Mapping[str, int], split: Folded) -> dict[str, int]:
    """The fold of each unit, of so many groups or images: the largest first, each to the fold that has the fewest yet, as
    scikit-learn's GroupKFold does. Units of one size come in an order drawn by the seed. Raises UserError for fewer of them than
    folds."""
    _check_number(len(sizes), split)
    load, folds = [0] * split.n, {}
    for group in sorted(shuffled(sizes, split.seed), key=lambda group: -sizes[group]):
        folds[group] = load.index(min(load))
        load[folds[group]] += sizes[group]
    return folds


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """The distinct names in an order drawn by the seed: by their hashes, not by a generator's permutation."""
    return sorted(set(names), key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())


def _check_number(n: int, split: Folded) -> None:
    if n < split.n:
        what = f"values of {', '.join(split.columns)}" if split.columns else "groups" if split.leaves_out is None else split.kind
        raise UserError(f"data.split.n = {split.n}, but there are {n} {what}. Choose at most that many folds.")


def _hold_out(table: pd.DataFrame, chosen: list[str], split: Folded) -> list[str]:
    """Some site-dates of the training domains go to test, as many to validation: whole ones, with all their groups. One of each
    domain stays: a domain of which nothing is trained on would be a new one, on both sides."""
    units = joined(table["group"], site_dates(table))
    domain_of = {u: d for u, d, role in zip(units, table["domain"], chosen, strict=True) if role == "train"}
    order = shuffled(domain_of, split.seed)
    staying = {domain_of[unit]: unit for unit in order}  # the last one of each domain
    free = [unit for unit in order if unit != staying[domain_of[unit]]]
    n = math.ceil(split.share_held_out * len(order))
    if 2 * n > len(free):
        raise UserError(
            f"data.split.held_out = {split.share_held_out}: of {len(order)} site-dates in the training domains {2 * n} "
            f"would be held out, and one of each domain must stay. Choose a smaller share, or 0."
        )
    held = dict.fromkeys(free[:n], "test") | dict.fromkeys(free[n : 2 * n], "validation")
    return [held.get(unit, role) if role == "train" else role for unit, role in zip(units, chosen, strict=True)]


def site_dates(table: pd.DataFrame) -> list[str]:
    """`SITE 2017-07-11` for each row, or its group where site or date is not known, as `event`: what is drawn hangs on it."""
    cells = zip(table["site"], table["date"], table["group"], strict=True)
    return [f"{site} {date}" if site and date else f"event {group}" for site, date, group in cells]
