"""What is known of the classes of a data set of species: their ranks, scientific and common names, checked. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int64

from pipeline.data.dataset import Dataset
from pipeline.data.truth import LABEL, RANK, class_name
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

NAME = re.compile(
    r"(?P<genus>[A-Z][a-zë-]+)(?: \([A-Z][a-zë-]+\))?"
    r"(?P<epithets>(?: (?:(?:subsp|ssp|var|f)\. )?[a-zë-]{3,}){1,3})(?P<rest> .*)?$"
)
"""Genus, subgenus, one to three epithets, and what follows: the author and the year."""
AUTHOR = re.compile(r"[A-ZÀ-Þ]|\d{4}")
PARTICLES = frozenset({"von", "van", "der", "den", "del", "des", "dos", "and"})
"""Words of authors' names that could be epithets by their letters."""
NAMED = 3
"""Names that a warning gives."""


@dataclass(frozen=True)
class Taxonomy:
    """The classes of a data set and the taxa that they are of."""

    species: tuple[str, ...]
    """The classes as data.label names them, in their order."""
    ranks: tuple[str, ...]
    """Names of the ranks above the species, from the most general one."""
    taxa: tuple[tuple[str | None, ...], ...]
    """For each class the names of its taxa at these ranks; None where the data do not tell."""
    common: tuple[str | None, ...]
    """Common names."""

    @cached_property
    def scientific(self) -> tuple[str, ...]:
        """Scientific names without author and year, for texts and trees."""
        return tuple(map(scientific_name, self.species))

    @cached_property
    def codes(self) -> Int64[np.ndarray, "classes ranks_and_species"]:
        """Every class as whole numbers, one a rank from the most general, and last its own: equal where taxa are, -1 where the
        taxon is not known. Two unknown taxa are not one: whoever compares codes lets -1 match nothing."""
        columns = []
        for names in zip(*self.taxa, strict=True) if self.ranks else ():
            place = {name: i for i, name in enumerate(sorted({name for name in names if name}))}
            columns.append([-1 if name is None else place[name] for name in names])
        return np.array([*columns, range(len(self.species))], "int64").T


def taxonomy_of(dataset: Dataset) -> tuple[Taxonomy, list[str]]:
    """The taxonomy of a data set's classes, from the ranks and common names of its rows; and what seems odd of it. A row without
    a rank says nothing of it. Raises UserError, naming two rows, for a species of two genera, or two taxa at another rank."""
    table, names = dataset.table, dataset.source.data.columns.ranks
    species = tuple(class_name(target) for target in dataset.targets)
    columns = [_taxa(dataset, f"{RANK}{i}", name, species) for i, name in enumerate(names)]
    taxa = tuple(zip(*columns, strict=True)) if columns else ((),) * len(species)
    found = Taxonomy(species, names, taxa, _common(table, len(species)))
    return found, [*_split_taxa(found), *_same_names(found)]


def _taxa(dataset: Dataset, column: str, name: str, species: Sequence[str]) -> list[str | None]:
    """The taxon of each class at one rank."""
    known = dataset.table[[LABEL, column]].dropna().drop_duplicates()
    if len(twice := known.index[known[LABEL].duplicated()]):
        labels, taxa = dataset.table[LABEL].tolist(), dataset.table[column].tolist()
        row = int(twice[0])
        first = next(int(i) for i in known.index if labels[i] == labels[row])
        one, other = (f"{taxa[i]} at {dataset.where(i)}" for i in (first, row))
        label = species[labels[row]]
        hint = "" if " " in label else " (Where the label is an epithet alone, name the genus as data.columns.ranks too.)"
        raise UserError(f"{label} is of the {name} {one}, and of {other}: a species has one. Correct the table.{hint}")
    found: dict[int, str] = dict(zip(known[LABEL], known[column], strict=True))
    return [found.get(i) for i in range(len(species))]


def _common(table: pd.DataFrame, n: int) -> tuple[str | None, ...]:
    """The common name of each class that most of its rows have, of several the first by the alphabet."""
    if "common" not in table:
        return (None,) * n
    counts = table.dropna(subset=["common"]).groupby([LABEL, "common"]).size().reset_index(name="n")
    best = counts.sort_values([LABEL, "n", "common"], ascending=[True, False, True]).drop_duplicates(LABEL)
    found: dict[int, str] = dict(zip(best[LABEL], best["common"], strict=True))
    return tuple(found.get(i) for i in range(n))


def _split_taxa(found: Taxonomy) -> Iterator[str]:
    """A warning for taxa that stand in two of the rank above: mostly a typing error, sometimes homonyms."""
    for i in range(1, len(found.ranks)):
        above: dict[str, set[str]] = {}
        for taxa in found.taxa:
            if (name := taxa[i]) and (parent := taxa[i - 1]):
                above.setdefault(name, set()).add(parent)
        if odd := sorted(name for name, parents in above.items() if len(parents) > 1):
            which = f"{odd[0]} (in {' and '.join(sorted(above[odd[0]]))})"
            yield f"{len(odd)} taxa at the rank {found.ranks[i]} stand in two of the rank above: {which}"


def _same_names(found: Taxonomy) -> Iterator[str]:
    """A warning for classes whose scientific names differ by the author alone: no text could tell them apart."""
    of: dict[str, list[str]] = {}
    for label, name in zip(found.species, found.scientific, strict=True):
        of.setdefault(name, []).append(label)
    if twice := [labels for labels in of.values() if len(labels) > 1]:
        some = "; ".join(" and ".join(labels) for labels in twice[:NAMED])
        yield f"{len(twice)} scientific names are of several classes, which no text tells apart: {some}"


def scientific_name(label: str) -> str:
    """A scientific name without its author and year: `Carabus nemoralis Müller, 1764` → `Carabus nemoralis`. What does not look
    like one (a hybrid, `sp.`, an epithet alone) stays as it is; underscores are blanks."""
    text = " ".join(label.replace("_", " ").split())
    if not (found := NAME.match(text)):
        return text
    words = found["epithets"].split()
    kept = next((i for i, word in enumerate(words) if word in PARTICLES), len(words))
    rest = " ".join([*words[kept:], (found["rest"] or "").strip()]).strip()
    if not kept or (rest and not AUTHOR.search(rest)) or re.search(r"(^| )[x×] ", rest):
        return text
    return " ".join([found["genus"], *words[:kept]])
