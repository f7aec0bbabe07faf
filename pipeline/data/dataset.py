"""The data set of a trial: a table with a row per image, what is true of each, and its images, decoded and corrected. `sources/`
reads files, `table` gives their columns a meaning and makes the data set. Loads no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, TypeVar

from pipeline.config.data import Data
from pipeline.config.identity import image_columns
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source, signature_of
from pipeline.data.truth import Truth
from pipeline.disk.reading import in_short
from pipeline.errors import UserError, WorkError

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from pipeline.data.correction import Gains
    from pipeline.data.decoding import Decoded, How

Read = TypeVar("Read")
MEASURED = 64
"""Cards and bars whose measures are kept: images that were photographed together mostly stand together."""
NAMED, SHOWN = 5, 40
"""Splits that a warning names, and characters of each."""


class BadImage(UserError):
    """An image that cannot be read or decoded; the message names file, row and column."""


@dataclass(frozen=True)
class Dataset:
    """Images and what is known of them.

    Images come corrected by the card and the bar that were photographed with them, where the columns of these are given.

    `table` has one row per image, in the order of the source (position i is position i in the feature store), with the
    columns `split` (train, validation or test), `source_split`, `row` (within the source's split), `id`, `group`,
    `domain`, `species`, `site`, `date` (an ISO day; these four None where unknown), and what `truth` says: a float64 column per
    target, or one with the label (the class' name is in `label`). Folds and permutation never change the order.
    """

    table: pd.DataFrame
    truth: Truth
    source: Source
    image_column: str
    warnings: tuple[str, ...] = ()
    """What is allowed and makes figures mean less than they seem to."""
    card_column: str | None = None
    """Where the image of the colour card is; None: colours stay as they are."""
    bar_column: str | None = None
    """Where the image of the scale bar is; None: images stay of their size."""
    canvas: float = 5.0
    """Side of the canvas in periods of the scale bar."""
    how: How | None = None
    """How images are decoded; None: as by default."""
    archived: Callable[[str, int, str], bytes | None] | None = None
    """Reads an image, by split, row and column, from where they are archived (`features/archives.py`); None: from its file."""

    def __len__(self) -> int:
        return len(self.table)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was taken for granted when its tables were read: nothing that figures mean less by."""
        return tuple(self.source.notes())

    @cached_property
    def learned_from(self) -> str:
        """sha256 of the rows that models are trained and chosen on."""
        rows = self.table[self.table["split"].isin(["train", "validation"])]
        return hashlib.sha256(rows.to_csv(index=False, float_format="%.17g").encode()).hexdigest()

    @property
    def targets(self) -> tuple[str, ...]:
        """What is predicted: targets or classes."""
        return self.truth.names

    def where(self, i: int) -> str:
        """The place of image i in words for people."""
        return self.source.where(*self._place(i))

    def image_names(self) -> list[str | None]:
        """What the data call each image, its path or its file's name; None where there is none."""
        splits, rows = self.table["source_split"].tolist(), self.table["row"].tolist()
        names = {split: self.source.image_names(split, self.image_column) for split in dict.fromkeys(splits)}
        return [names[split][row] for split, row in zip(splits, rows, strict=True)]

    @property
    def image_columns(self) -> tuple[str, ...]:
        """The image's column, then the card's and the bar's where they are used; as `config.image_columns`."""
        return tuple(column for column in (self.image_column, self.card_column, self.bar_column) if column is not None)

    def encoded(self, i: int) -> tuple[bytes, ...]:
        """What image i is made of, as it is encoded, in the order of `image_columns`; safe from several threads. Raises BadImage
        if one of them is not there."""
        return tuple(self.image_bytes(i, column) for column in self.image_columns)

    def image_bytes(self, i: int, column: str | None = None) -> bytes:
        """One image of row i as it is encoded, the image's by default; safe from several threads. Raises BadImage."""
        column = self.image_column if column is None else column
        place = *self._place(i), column
        if self.archived and (encoded := self.archived(*place)) is not None:
            return encoded
        return self._read(i, column, lambda _: self.source.image_bytes(*place), b"")

    def image(self, i: int) -> Image.Image:
        """Image i, RGB, wholly decoded and corrected; safe from several threads. Raises BadImage."""
        return self.decode(i, self.encoded(i)).image

    def decode(self, i: int, encoded: Sequence[bytes]) -> Decoded:
        """`image(i)` for who has `encoded(i)` already, and what is to be told of it."""
        from pipeline.data.correction import multiply, place  # numpy and Pillow: not for plans
        from pipeline.data.decoding import How
        from pipeline.data.opening import decode

        how = self.how or How()
        decoded = self._read(i, self.image_column, partial(decode, how=how), encoded[0])
        if self.card_column is None and self.bar_column is None:
            return decoded
        image = decoded.image
        if self.card_column is not None:
            image = multiply(image, self._read(i, self.card_column, partial(_gains, how=how), encoded[1]))
        if self.bar_column is not None:
            image = place(image, self._read(i, self.bar_column, partial(_period, how=how), encoded[-1]), self.canvas)
        return replace(decoded, picture=image)

    def seen_at(self, enough: int) -> Dataset:
        """The same, its JPEGs decoded at a part of their size that leaves `enough` pixels; 0: as they are."""
        from pipeline.data.decoding import How

        return replace(self, how=replace(self.how or How(), enough=enough)) if enough else self

    def signature(self) -> str:
        """A cheap identity of which images there are, in which order; see `signature`."""
        return _signature(self.source, tuple(dict.fromkeys(self.table["source_split"])), self.image_columns)

    def _place(self, i: int) -> tuple[str, int]:
        splits, rows = self._places
        return splits[i], rows[i]

    @cached_property
    def _places(self) -> tuple[list[str], list[int]]:
        """Splits of the source and rows in them, of all images: asked for image by image, a table is slower than a small file."""
        return self.table["source_split"].astype(str).tolist(), self.table["row"].tolist()

    def _read(self, i: int, column: str, read: Callable[[bytes], Read], encoded: bytes) -> Read:
        """What `read` makes of an encoded image. Raises BadImage where it cannot."""
        try:
            return read(encoded)
        except (UserError, WorkError, MemoryError):
            raise
        except Exception as error:  # PIL's decoders raise errors of many kinds on damaged files
            raise self._bad(i, column, error) from error

    def _bad(self, i: int, column: str, error: Exception) -> BadImage:
        names = {self.card_column: "colour card", self.bar_column: "scale bar", self.image_column: "image"}
        without = "it" if column == self.image_column else "the image that it belongs to"
        return BadImage(
            f"{self.where(i)}: the {names[column]} in column {column} cannot be read: {in_short(error)} "
            f"Replace it, or set data.on_bad_image=skip to go on without {without}."
        )


@lru_cache(MEASURED)
def _gains(encoded: bytes, how: How) -> Gains:
    """What an encoded colour card says to multiply channels by. Raises what decoding raises."""
    from pipeline.data.correction import measure_gains
    from pipeline.data.opening import decode

    return measure_gains(decode(encoded, how).image)


@lru_cache(MEASURED)
def _period(encoded: bytes, how: How) -> float | None:
    """The period of an encoded scale bar in pixels. Raises what decoding raises."""
    from pipeline.data.correction import measure_period
    from pipeline.data.opening import decode

    return measure_period(decode(encoded, how).image)


def content_of(encoded: Sequence[bytes]) -> str:
    """sha256 of what an input is made of: of the image, or of the sha256 of image, card and bar."""
    hashes = [hashlib.sha256(part).hexdigest() for part in encoded]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def signature(data: Data) -> str:
    """`Dataset.signature()` without loading the table: reads file names, sizes and times, for plans on a login node."""
    return _signature_of(open_source(data), data)


def _signature_of(source: Source, data: Data) -> str:
    return _signature(source, tuple(choose_splits(source.splits(), data)), image_columns(data))


def rows_signature(data: Data) -> str:
    """The same of the files alone that rows are read from, of all splits, and of the tree: a table is read again where it is
    another. Of images it tells nothing, but for the names in a folder."""
    source = open_source(data)
    return signature_of(source.kind, map(str, [*source.table_files(), *([data.tree] if data.tree else [])]))


def known_signature(data: Data) -> str | None:
    """`signature(data)` if it can be told from this machine's files alone, without a network; else None."""
    with suppress(UserError, OSError, ValueError, KeyError):  # whoever reads the data says what is wrong with them
        source = open_source(data)
        return _signature_of(source, data) if source.is_here() else None
    return None


def known_number(data: Data) -> int | None:
    """How many images there are in the splits that are read, if it can be told as `known_signature` is."""
    with suppress(UserError, OSError, ValueError, KeyError):
        source = open_source(data)
        return sum(map(source.rows, choose_splits(source.splits(), data))) if source.is_here() else None
    return None


def _signature(source: Source, splits: tuple[str, ...], columns: tuple[str, ...]) -> str:
    return f"{source.signature()}/{','.join(splits)}/{'/'.join(columns)}"


def unread_splits(source: Source, data: Data) -> Iterator[str]:
    """A warning for splits of which no row is read, but for one that the configuration turns off (data.split.test=none). Raises
    UserError for one that differs from a split that is read in the case of its letters alone."""
    wanted, exist = data.split.names, source.splits()
    unread = {name: source.rows(name) for name in exist if wanted and name not in wanted.values()}
    for name, n in unread.items():
        if key := next((key for key, read in wanted.items() if read.casefold() == name.strip().casefold()), None):
            place = source.where(name, 0) if n else f"data.source {data.source}"
            raise UserError(
                f"{place}: rows of split {name!r} ({n} in all) would not be read: the configuration spells it {wanted[key]!r} "
                f"(data.split.{key}). Spell all alike, and set data.split.{key} to that."
            )
    counts = [
        f"{n} {'row' if n == 1 else 'rows'} of split {name[:SHOWN]!r}"
        for name, n in unread.items()
        if not _is_turned_off(name, wanted, exist)
    ]
    if counts:
        more = f" and those of {len(counts) - NAMED} more splits" if len(counts) > NAMED else ""
        yield f"{', '.join(counts[:NAMED])}{more} are not read: data.split reads {', '.join(wanted.values())}"


def _is_turned_off(name: str, wanted: Mapping[str, str], exist: Sequence[str]) -> bool:
    """Whether it has the usual name of a split for which the configuration names one that is not there."""
    return name in wanted and wanted[name] not in exist


def choose_splits(exist: list[str], data: Data) -> dict[str, str]:
    """Source splits to read, in the table's order, with the split each becomes (`train` where rows are dealt out later). Raises
    UserError if train or validation does not exist, listing what does."""
    if not (wanted := data.split.names):
        return dict.fromkeys(sorted(exist), "train")
    if len(set(wanted.values())) < len(wanted):
        raise UserError(f"data.split names one split twice: {', '.join(f'{k}={v}' for k, v in wanted.items())}.")
    for key in ("train", "validation"):
        if wanted[key] not in exist:
            raise UserError(
                f"data.source {data.source} has no split {wanted[key]!r}; it has: {', '.join(exist) or 'none'}. "
                f"Name it with data.split.{key}=…, or let groups be dealt to folds with data.split.kind=folds."
            )
    return {name: key for key, name in wanted.items() if name in exist}
