"""The data set of a trial: one row per image with its split, group, domain and targets, checked, and its images.

`sources/` reads files; this module gives the columns their meaning, permutes targets for the
control, and refuses what cannot be right, naming file, row and column. It loads no torch and, to find faults in the
table, no image.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.config.data import Data, Folded
from pipeline.config.identity import image_columns
from pipeline.data.classes import auxiliary_column, class_columns, unseen_classes
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source
from pipeline.data.splits import assign, rare_strata, shuffled
from pipeline.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from PIL import Image

    from pipeline.data.correction import Gains

Read = TypeVar("Read")
OWN_COLUMNS = ("split", "source_split", "row", "id", "group", "domain", "species", "site", "date", "label")
OWN_ENDS = ("prediction", "variance", "weight", "mean", "spread", "mu", "sigma")
"""What follows a target's name in the columns of predictions and forecasts."""
OFFSET = r"(?:Z|[+-]\d\d:?\d\d)$"
WHOLE = re.compile(r"-?\d+(\.0+)?")
MEASURED = 64
"""Cards and bars whose measures are kept: images that were photographed together mostly stand together."""


class BadImage(UserError):
    """An image that cannot be read or decoded; the message names file, row and column."""


@dataclass(frozen=True)
class Dataset:
    """Images and what is known of them.

    Images come corrected by the card and the bar that were photographed with them, where the columns of these are given.

    `table` has one row per image, in the order of the source (position i is position i in the feature store), with the
    columns `split` (train, validation or test), `source_split`, `row` (within the source's split), `id`, `group`,
    `domain`, `species`, `site`, `date` (an ISO day; these four None where unknown) and one float64 column per target. Folds and
    permutation never change the order.

    A class is a target too, `hybrid_stat=hybrid`, that is 1 or 0 (the class itself is in `label`). Of two classes the positive
    one is the first. `auxiliary` labels are such columns as well, equal shares of 1, or all 0 where a row has none.
    """

    table: pd.DataFrame
    targets: tuple[str, ...]
    source: Source
    image_column: str
    auxiliary: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    """What is allowed and makes figures mean less than they seem to."""
    card_column: str | None = None
    """Where the image of the colour card is; None: colours stay as they are."""
    bar_column: str | None = None
    """Where the image of the scale bar is; None: images stay of their size."""
    canvas: float = 5.0
    """Side of the canvas in periods of the scale bar."""

    def __len__(self) -> int:
        return len(self.table)

    def where(self, i: int) -> str:
        """The place of image i in words for people."""
        return self.source.where(*self._place(i))

    @property
    def image_columns(self) -> tuple[str, ...]:
        """The image's column, then the card's and the bar's where they are used; as `config.image_columns`."""
        return tuple(column for column in (self.image_column, self.card_column, self.bar_column) if column is not None)

    def encoded(self, i: int) -> tuple[bytes, ...]:
        """What image i is made of, as it is encoded, in the order of `image_columns`; safe from several threads.

        Raises BadImage if one of them is not there.
        """
        return tuple(self.image_bytes(i, column) for column in self.image_columns)

    def image_bytes(self, i: int, column: str | None = None) -> bytes:
        """One image of row i as it is encoded, the image's by default; safe from several threads. Raises BadImage."""
        column = self.image_column if column is None else column
        try:
            return self.source.image_bytes(*self._place(i), column)
        except (OSError, ValueError) as error:
            raise self._bad(i, column, error) from error

    def image(self, i: int) -> Image.Image:
        """Image i, wholly decoded and corrected; safe from several threads. Raises BadImage.

        In the mode it was saved in, RGB where it is corrected.
        """
        return self.decode(i, self.encoded(i))

    def decode(self, i: int, encoded: Sequence[bytes]) -> Image.Image:
        """`image(i)` for who has `encoded(i)` already."""
        image = self._read(i, self.image_column, decode, encoded[0])
        if self.card_column is not None:
            from pipeline.data.correction import multiply

            image = multiply(image, self._read(i, self.card_column, _gains, encoded[1]))
        if self.bar_column is not None:
            from pipeline.data.correction import place

            image = place(image, self._read(i, self.bar_column, _period, encoded[-1]), self.canvas)
        return image

    def signature(self) -> str:
        """A cheap identity of which images there are, in which order; see `signature`."""
        return _signature(self.source, tuple(dict.fromkeys(self.table["source_split"])), self.image_columns)

    def _place(self, i: int) -> tuple[str, int]:
        return str(self.table["source_split"].iat[i]), int(self.table["row"].to_numpy()[i])

    def _read(self, i: int, column: str, read: Callable[[bytes], Read], encoded: bytes) -> Read:
        """What `read` makes of an encoded image. Raises BadImage where it cannot."""
        try:
            return read(encoded)
        except MemoryError:
            raise
        except Exception as error:  # PIL's decoders raise errors of many kinds on damaged files
            raise self._bad(i, column, error) from error

    def _bad(self, i: int, column: str, error: Exception) -> BadImage:
        names = {self.card_column: "colour card", self.bar_column: "scale bar", self.image_column: "image"}
        without = "it" if column == self.image_column else "the image that it belongs to"
        return BadImage(
            f"{self.where(i)}: the {names[column]} in column {column} cannot be read: {in_short(error)}. "
            f"Replace it, or set data.on_bad_image=skip to go on without {without}."
        )


def in_short(error: Exception) -> str:
    """A decoder's error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def decode(encoded: bytes) -> Image.Image:
    """An image with all its pixels read, so that a truncated file fails here. Raises what PIL raises, ValueError."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(encoded))
    except UnidentifiedImageError:  # its own words are about a BytesIO object at some address
        raise UnidentifiedImageError("its content is in no image format that Pillow knows") from None
    image.load()
    if image.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers, whose range nobody can tell; save it with 8 bits a channel"
        )
    return image


@lru_cache(MEASURED)
def _gains(encoded: bytes) -> Gains:
    """What an encoded colour card says to multiply channels by. Raises what `decode` raises."""
    from pipeline.data.correction import measure_gains  # numpy and Pillow: not for plans

    return measure_gains(decode(encoded))


@lru_cache(MEASURED)
def _period(encoded: bytes) -> float | None:
    """The period of an encoded scale bar in pixels. Raises what `decode` raises."""
    from pipeline.data.correction import measure_period

    return measure_period(decode(encoded))


def content_of(encoded: Sequence[bytes]) -> str:
    """sha256 of what an input is made of: of the image, or of the sha256 of image, card and bar."""
    hashes = [hashlib.sha256(part).hexdigest() for part in encoded]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def load_numbers(data: Data) -> Dataset:
    """`load_dataset_table` for a task that predicts numbers. Raises UserError for a label."""
    if data.label is not None:
        raise UserError(
            f"this task predicts numbers, and data.label {data.label} names classes: task=classify takes these"
        )
    return load_dataset_table(data)


def load_classes(data: Data) -> Dataset:
    """`load_dataset_table` for a task that predicts classes. Raises UserError where there is no label."""
    if data.label is None:
        raise UserError("this task predicts classes: name their column as data.label (numbers are for task=regress)")
    return load_dataset_table(data)


def load_dataset_table(data: Data) -> Dataset:
    """The data set that the configuration describes, checked. Raises UserError naming file, row and column."""
    import pandas as pd

    _check_names(data)
    source = open_source(data)
    chosen = choose_splits(source.splits(), data)
    table = pd.concat([_split_table(source, data, name, split) for name, split in chosen.items()], ignore_index=True)
    card = data.columns.colour_card if data.colour_card else None
    bar = data.columns.scale_bar if data.scale_bar else None
    dataset = Dataset(table, data.targets, source, data.columns.image, (), (), card, bar, data.canvas)
    if data.label is not None:
        table, targets, others = class_columns(table, data)
        dataset = replace(dataset, table=table, targets=targets, auxiliary=others)
    dataset = replace(dataset, warnings=_check_groups(dataset, data))
    if isinstance(data.split, Folded):
        dataset = replace(dataset, warnings=(*dataset.warnings, *_check_dealing(dataset, data)))
        strata = None if data.label is None else table["label"].tolist()
        table["split"] = assign(table, data.split, strata)
        if strata and data.split.is_stratified:
            rare = rare_strata(table["group"].tolist(), data.split, strata)
            dataset = replace(dataset, warnings=(*dataset.warnings, *rare))
    if data.permute_targets:
        learnt = (*dataset.targets, *dataset.auxiliary)
        table[list(learnt)] = permuted_targets(table, learnt)
    return (
        dataset if data.label is None else replace(dataset, warnings=(*dataset.warnings, *unseen_classes(table, data)))
    )


def signature(data: Data) -> str:
    """`Dataset.signature()` without loading the table: reads file names, sizes and times, for plans on a login node."""
    source = open_source(data)
    return _signature(source, tuple(choose_splits(source.splits(), data)), image_columns(data))


def known_signature(data: Data) -> str | None:
    """`signature(data)` if it can be told from this machine's files alone, without a network; else None."""
    try:
        source = open_source(data)
        return signature(data) if source.is_here() else None
    except (UserError, OSError, ValueError, KeyError):  # whoever reads the data says what is wrong with them
        return None


def _signature(source: Source, splits: tuple[str, ...], columns: tuple[str, ...]) -> str:
    return f"{source.signature()}/{','.join(splits)}/{'/'.join(columns)}"


def _check_names(data: Data) -> None:
    own = {*OWN_COLUMNS, "n", *(f"{target}_{end}" for target in data.targets for end in OWN_ENDS)}
    if taken := [name for name in data.targets if name in own]:
        raise UserError(f"data.targets: {taken[0]!r} is a name Carabid itself uses. Rename the column.")


# ---------------------------------------------------------------- splits
def choose_splits(exist: list[str], data: Data) -> dict[str, str]:
    """Source splits to read, in the table's order, with the split each becomes (`train` where rows are dealt out later).

    Raises UserError if train or validation does not exist, listing what does.
    """
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


def _check_dealing(dataset: Dataset, data: Data) -> tuple[str, ...]:
    """Warnings; raises UserError at the first row without the domain, site or date by which it is dealt to folds."""
    name = data.split.by
    if name is None:
        return ()
    table, column = dataset.table, getattr(data.columns, name)
    empty = table.index[table[name].isna()]
    if len(empty):
        raise UserError(
            f"{dataset.where(int(empty[0]))}: column {column} (data.columns.{name}) is empty or holds no {name}, in "
            f"{len(empty)} rows in all: data.split.kind={data.split.kind} cannot tell on which side they belong. Fill it in, "
            "or choose another split."
        )
    alone = table.loc[table["site"].isna() | table["date"].isna(), "group"].nunique() if name == "domain" else 0
    if not alone or not isinstance(data.split, Folded) or not data.split.share_held_out:
        return ()
    return (
        f"{alone} groups have no site or no date (data.columns.site, date): they are held out one by one, and another group of "
        "their site and day may be trained on",
    )


def permuted_targets(table: pd.DataFrame, targets: tuple[str, ...], seed: int = 0) -> NDArray[np.float64]:
    """Targets [rows, targets] with each group's dealt to another group of its split: nothing is left to learn.

    Groups are shuffled into a ring and each takes its neighbour's targets: every group keeps one target vector for all
    its images, each vector is used once, and none stays where it was (unless it is the split's only one).
    """
    import numpy as np

    values = table[list(targets)].to_numpy(dtype=np.float64)
    result = values.copy()
    for split in sorted(set(table["split"])):
        rows = _rows_by_group(table, split)
        ring = shuffled(rows, seed)
        for group, giver in zip(ring, ring[1:] + ring[:1], strict=True):
            result[rows[group]] = values[rows[giver][0]]
    return result


def _rows_by_group(table: pd.DataFrame, split: str) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for i, (of, group) in enumerate(zip(table["split"], table["group"], strict=True)):
        if of == split:
            rows.setdefault(group, []).append(i)
    return rows


# ---------------------------------------------------------------- columns
def _split_table(source: Source, data: Data, name: str, split: str) -> pd.DataFrame:
    """The rows of one source split in the data set's columns."""
    import pandas as pd

    _check_columns(source, data, name)
    cells = source.table(name)
    if cells.empty:
        raise UserError(f"data.source {data.source}: the split {name!r} has no rows.")
    rows = range(len(cells))
    table = pd.DataFrame({"split": split, "source_split": name, "row": rows})
    table["id"] = _ids(source, data, name, cells)
    table["group"] = _groups(source, data, name, cells)
    table["domain"] = _names(cells, data.columns.domain, "data.columns.domain")
    table["species"] = _names(cells, data.columns.species, "data.columns.species")
    table["site"] = _names(cells, data.columns.site, "data.columns.site")
    table["date"] = _dates(data, cells)
    for target in data.targets:
        table[target] = _numbers(source, name, target, _plain(cells, target, "data.targets"))
    if data.label is not None:
        table["label"] = _filled(source, name, _plain(cells, data.label, "data.label"), "data.label", "class")
    for i, column in enumerate(data.columns.auxiliary):
        table[auxiliary_column(i)] = _names(cells, column, "data.columns.auxiliary")
    return table


def _check_columns(source: Source, data: Data, split: str) -> None:
    """Every column that the configuration names exists and can be read; only the id's may be absent."""
    columns = data.columns
    exist = source.columns(split)
    wanted = [("data.columns.image", columns.image, "")]
    if columns.group is not None:
        wanted.append(("data.columns.group", columns.group, ", or null if each image is a group of its own"))
    for name in ("domain", "species", "site", "date"):
        if (column := getattr(columns, name)) is not None:
            wanted.append((f"data.columns.{name}", column, f", or null if the {name} is unknown"))
    for name in ("colour_card", "scale_bar"):
        if getattr(data, name):
            wanted.append((f"data.columns.{name}", getattr(columns, name), f", or data.{name} to false"))
    wanted += [("data.targets", target, "") for target in data.targets]
    wanted += [("data.label", data.label, "")] if data.label is not None else []
    wanted += [("data.columns.auxiliary", column, ", or to []") for column in columns.auxiliary]
    for key, column, otherwise in wanted:
        if column not in exist:
            near = difflib.get_close_matches(column, exist, 1, 0.6)
            raise UserError(
                f"data.source {data.source}, split {split}: there is no column {column!r} ({key}). "
                f"{f'The nearest is {near[0]!r}. ' if near else ''}There are: {', '.join(exist)}. "
                f"Set {key} to one of them{otherwise}."
            )


def _ids(source: Source, data: Data, split: str, cells: pd.DataFrame) -> list[str]:
    """What names each row to people: the id column, where it is absent or empty the image's name, else `split:row`."""
    column = data.columns.id
    given = labels(cells[column]) if column is not None and column in cells else [None] * len(cells)
    names = source.image_names(split, data.columns.image) if None in given else given
    known = [name for name in names if name]
    if len(set(known)) < len(known):
        names = [None] * len(cells)  # a name shared by several images names none of them
    return [a or b or f"{split}:{row}" for row, (a, b) in enumerate(zip(given, names, strict=True))]


def _groups(source: Source, data: Data, split: str, cells: pd.DataFrame) -> list[str]:
    """The group of each row; without a group column each image is one, however many rows it has."""
    column = data.columns.group
    if column is None:
        names = source.image_names(split, data.columns.image)
        rows_of = Counter(names)
        return [f"{name}" if name and rows_of[name] > 1 else f"{split}:{row}" for row, name in enumerate(names)]
    return _filled(source, split, _plain(cells, column, "data.columns.group"), "data.columns.group", "group")


def _filled(source: Source, split: str, column: pd.Series, key: str, what: str) -> list[str]:
    """The cells of a column as names. Raises UserError at the first that is empty."""
    found = []
    for row, name in enumerate(labels(column)):
        if name is None:
            raise UserError(
                f"{source.where(split, row)}: column {column.name} ({key}) is empty. Give the row its {what}, or remove it."
            )
        found.append(name)
    return found


def _names(cells: pd.DataFrame, column: str | None, key: str) -> pd.Series:
    """The cells of a column as names: str, or None where it is unknown."""
    import pandas as pd

    known = [None] * len(cells) if column is None else labels(_plain(cells, column, key))
    return pd.Series(known, dtype=object)  # pandas' own text type would turn None into NaN


def _dates(data: Data, cells: pd.DataFrame) -> pd.Series:
    """Days as `2017-07-11`, as they are written: a time and its offset are left off. None for what is empty or no date."""
    import pandas as pd

    texts = _names(cells, data.columns.date, "data.columns.date")
    days = pd.to_datetime(texts.astype(str).str.replace(OFFSET, "", regex=True), format="ISO8601", errors="coerce")
    written = days.dt.strftime("%Y-%m-%d").astype(object)
    return written.where(days.notna(), None)


def _plain(cells: pd.DataFrame, column: str, key: str) -> pd.Series:
    if column not in cells:
        raise UserError(f"{key}: the column {column!r} holds bytes or nested values, not text or numbers.")
    return cells[column]


def labels(column: pd.Series) -> list[str | None]:
    """Cells as names: whole numbers without '.0' however they are stored, None for an empty cell."""
    import pandas as pd

    cells = (None if cell is None or pd.isna(cell) else str(cell).strip() or None for cell in column)
    # Cell by cell, so that domain 7 is '7' in a split stored as whole numbers and in one stored as floats or text.
    return [cell.partition(".")[0] if cell and WHOLE.fullmatch(cell) else cell for cell in cells]


def _numbers(source: Source, split: str, target: str, column: pd.Series) -> NDArray[np.float64]:
    """A target's values [rows]. Raises UserError at the first cell that is empty, not a number or not finite."""
    import numpy as np
    import pandas as pd

    values: NDArray[np.float64] = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        row = int(bad[0])
        more = f" So are {len(bad) - 1} more rows of this split." if len(bad) > 1 else ""
        raise UserError(
            f"{source.where(split, row)}: column {target} (data.targets) {_describe(column.iat[row])}.{more} "
            "Correct the data or remove such rows; a whole split without targets is left out by data.split.test=none."
        )
    return values


def _describe(cell: Any) -> str:
    if cell is None or str(cell).lower() in ("nan", "<na>", "nat"):
        return "is empty or NaN"
    return f"holds {str(cell)!r}, which is not a finite number"


# ---------------------------------------------------------------- groups
def _check_groups(dataset: Dataset, data: Data) -> tuple[str, ...]:
    """All images of a group share its targets; groups that stand in several splits are what the warnings are of."""
    table = dataset.table
    # Folds pool the splits, so there a group is one group wherever it stands.
    pooled = not data.split.names
    scope = [""] * len(table) if pooled else list(table["split"])
    first: dict[tuple[str, str], int] = {}
    values = table[list(dataset.targets)].to_numpy()
    for i, key in enumerate(zip(scope, table["group"], strict=True)):
        j = first.setdefault(key, i)
        if (values[i] != values[j]).any():
            _raise_disagreement(dataset, key[1], j, i)
    return () if pooled else tuple(_shared_groups(dataset, first, values))


def _raise_disagreement(dataset: Dataset, group: str, i: int, j: int) -> None:
    if "label" in dataset.table:
        one, other = dataset.table["label"].iat[j], dataset.table["label"].iat[i]
        raise UserError(
            f"{dataset.where(j)}: group {group} is {one} here, but {other} at {dataset.where(i)}. Images of one group share "
            "its class: correct one of the rows, or name the column that tells groups apart as data.columns.group (null: each "
            "image is a group of its own)."
        )
    values: dict[str, NDArray[np.float64]] = {t: dataset.table[t].to_numpy() for t in dataset.targets}
    target = next(name for name, column in values.items() if column[i] != column[j])
    raise UserError(
        f"{dataset.where(j)}: group {group} has {target} {values[target][j]} here, but {values[target][i]} at "
        f"{dataset.where(i)}. Images of one group share its targets: correct one of the rows, or name the column "
        "that tells groups apart as data.columns.group (null: each image is a group of its own)."
    )


def _shared_groups(dataset: Dataset, first: dict[tuple[str, str], int], values: NDArray[np.float64]) -> Iterator[str]:
    """A warning for each pair of splits with the same groups (the same targets too: numbers may start again)."""
    seen: dict[str, int] = {}
    shared: dict[tuple[str, str], list[int]] = {}
    splits, groups = dataset.table["split"].tolist(), dataset.table["group"].tolist()
    for (split, group), i in first.items():
        j = seen.setdefault(group, i)
        if j != i and (values[i] == values[j]).all():
            shared.setdefault((splits[j], split), []).append(i)
    for (one, other), rows in shared.items():
        group, n = groups[rows[0]], len(rows)
        yield (
            f"{n} {'group is' if n == 1 else 'groups are'} in {one} and in {other} with the same targets (group {group}: "
            f"{dataset.where(seen[group])}, {dataset.where(rows[0])}): figures on {other} are not of new groups alone"
        )
