"""What is known of images beside their images, as the row numbers that a model knows it by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Int64
from torch import Tensor

COLUMNS = ("domain", "species", "site", "date")
"""Of a data set's table."""
UNKNOWN_DAY = -1


@dataclass(frozen=True)
class Metadata:
    """Of images: rows of a model's names, of which the one after the last stands for any other."""

    domain: Int64[Tensor, " images"]
    species: Int64[Tensor, " images"]
    genus: Int64[Tensor, " images"]
    site: Int64[Tensor, " images"]
    day: Int64[Tensor, " images"]
    """Day of the year, 1 to 366; UNKNOWN_DAY where there is no date."""

    def __len__(self) -> int:
        return len(self.domain)

    def __getitem__(self, rows: Tensor | slice) -> Metadata:
        return Metadata(*self._columns[:, rows].unbind())

    @cached_property
    def _columns(self) -> Int64[Tensor, "columns images"]:
        """All in one tensor: every step of training takes some of its rows."""
        return torch.stack([getattr(self, field.name) for field in fields(self)])

    def to(self, device: torch.device | str) -> Metadata:
        return Metadata(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True)
class Names:
    """The names that a model knows from training, in the order of their rows."""

    domains: tuple[str, ...] = ()
    species: tuple[str, ...] = ()
    """Scientific names; their first words are the genera."""
    sites: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: Mapping[str, Iterable[str | None]]) -> Self:
        """The names in these columns."""
        return cls(*(_known(table.get(column, ())) for column in ("domain", "species", "site")))

    @property
    def genera(self) -> tuple[str, ...]:
        return _known(map(genus, self.species))

    def metadata(self, table: Mapping[str, Sequence[str | None]], device: torch.device | str = "cpu") -> Metadata:
        """Columns of images, COLUMNS of them or some, as rows; a name that training had not, or none, is unknown."""
        n = max((len(column) for column in table.values()), default=0)
        domain, species, site, dates = (list(table.get(column, [None] * n)) for column in COLUMNS)
        days = [UNKNOWN_DAY if _is_nothing(day) else date.fromisoformat(str(day)).timetuple().tm_yday for day in dates]
        return Metadata(
            domain=_rows(domain, self.domains),
            species=_rows(species, self.species),
            genus=_rows([genus(name) for name in species], self.genera),
            site=_rows(site, self.sites),
            day=torch.tensor(days, dtype=torch.int64),
        ).to(device)


def genus(name: str | None) -> str | None:
    """The first word of a scientific name."""
    return None if _is_nothing(name) or not str(name).split() else str(name).split()[0]


def _known(names: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(sorted({str(name) for name in names if not _is_nothing(name)}))


def _rows(names: Sequence[str | None], known: Sequence[str]) -> Int64[Tensor, " images"]:
    rows = {name: row for row, name in enumerate(known)}
    return torch.tensor([rows.get(str(name), len(rows)) for name in names], dtype=torch.int64)


def _is_nothing(name: object) -> bool:
    """None, or the NaN that pandas makes of it."""
    return name is None or name != name
