"""The table of a data set: which column holds what, what cannot be right, which rows train, validate and test. Names file, row
and column of what is wrong; permutes targets for the control. Loads no torch and, to find faults, no image."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.config.data import Data
from pipeline.data.classes import number_classes, unseen_classes
from pipeline.data.dataset import Dataset, choose_splits, unread_splits
from pipeline.data.dealing import deal
from pipeline.data.known_columns import same_meaning, with_genus
from pipeline.data.missing import emptied
from pipeline.data.sources import open_source
from pipeline.data.sources.base import Source
from pipeline.data.splits import shuffled
from pipeline.data.suspects import sentinels
from pipeline.data.truth import AUXILIARY, BESIDE, LABEL, RANK, SPLIT_BY, Numbers, Truth
from pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

OWN_COLUMNS = ("split", "source_split", "row", "id", "group", "domain", "species", "site", "date", "label", LABEL)
OWN_ENDS = ("prediction", "variance", "weight", "mean", "spread", "mu", "sigma")
"""What follows a target's name in the columns of predictions and forecasts."""
OFFSET = r"(?:Z|[+-]\d\d:?\d\d)$"
SLASHED = r"^(\d{4})/(\d{1,2})/(\d{1,2})\b"
WHOLE = re.compile(r"-?\d+(\.0+)?")
DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
LARGEST = 3.4e38
"""Of a target: networks learn in single precision."""
NAMED = 5
"""Rows that an error names."""


def load_numbers(data: Data) -> Dataset:
    """The data set of a task that predicts numbers, checked. Raises UserError naming file, row and column, also for a label."""
    if data.label is not None:
        raise UserError(f"this task predicts numbers, and data.label {data.label} names classes: task=classify takes these")
    return permute(deal(read_table(data, open_source(data)), data, None), data)


def load_classes(data: Data) -> Dataset:
    """The data set of a task that predicts classes, checked. Raises UserError naming file, row and column, also for no label."""
    if data.label is None:
        raise UserError("this task predicts classes: name their column as data.label (numbers are for task=regress)")
    dataset = read_table(data, open_source(data))
    dataset = permute(deal(dataset, data, dataset.table["label"].tolist()), data)
    return warned(dataset, unseen_classes(dataset.table, data))


def read_table(data: Data, source: Source, many_classes: bool = False) -> Dataset:
    """All rows, each in the split that its source names; with `many_classes` a class may have a row or two, as species have."""
    import pandas as pd

    from pipeline.data.opening import how_of  # Pillow: not for plans

    _check_names(data)
    chosen = choose_splits(source.splits(), data)
    table = pd.concat([_split_table(source, data, name, split) for name, split in chosen.items()], ignore_index=True)
    table, beside = _number_names(table, data)
    truth: Truth = Numbers(data.targets, beside=beside)
    if data.label is not None:
        table, truth = number_classes(table, data, many_classes)
    card = data.columns.colour_card if data.colour_card else None
    bar = data.columns.scale_bar if data.scale_bar else None
    how = how_of(data.decoding, keeps_size=data.scale_bar)
    warnings = (*unread_splits(source, data), *_ungrouped(table, data), *sentinels(table, data.targets))
    dataset = Dataset(table, truth, source, data.columns.image, warnings, card, bar, data.canvas, how)
    return warned(dataset, _check_groups(dataset, data))


def _number_names(table: pd.DataFrame, data: Data) -> tuple[pd.DataFrame, tuple[int, ...]]:
    """With what is learnt beside numbers as numbers: NaN, or of a name -1, where it is not known; and of each how many names
    there are. Raises UserError for a cell that holds no number."""
    import pandas as pd

    counts = []
    for i, auxiliary in enumerate(each for each in data.auxiliary if each.reads):
        cells = table[f"{BESIDE}{i}"]
        if auxiliary.kind == "name":
            codes, names = pd.factorize(cells, sort=True)
            table[f"{BESIDE}{i}"], n = codes.astype("float64"), len(names)
        else:
            values, n = pd.to_numeric(cells, errors="coerce"), 0
            if (wrong := values.isna() & cells.notna()).any():
                place = table[wrong].iloc[0]
                raise UserError(
                    f"data.source {data.source}, {place['source_split']} row {place['row']}: column {auxiliary.reads} "
                    f"(data.auxiliary) holds {cells[wrong].iloc[0]!r}, which is no number"
                )
            table[f"{BESIDE}{i}"] = values.astype("float64")
        counts.append(n)
    return table, tuple(counts)


def warned(dataset: Dataset, warnings: Iterable[str]) -> Dataset:
    return replace(dataset, warnings=(*dataset.warnings, *warnings))


def permute(dataset: Dataset, data: Data) -> Dataset:
    """With the truth dealt out to other groups, where the configuration asks for this control."""
    if data.permute_targets:
        rows = givers(dataset.table)
        for column in dataset.truth.learnt:
            dataset.table[column] = dataset.table[column].array.take(rows)
    return dataset


def _check_names(data: Data) -> None:
    own = {*OWN_COLUMNS, "n", *(f"{target}_{end}" for target in data.targets for end in OWN_ENDS)}
    if taken := [name for name in data.targets if name in own]:
        raise UserError(f"data.targets: {taken[0]!r} is a name Carabid itself uses. Rename the column.")


def givers(table: pd.DataFrame, seed: int = 0) -> NDArray[np.int64]:
    """For each row the one [rows] whose truth it is dealt, of another group of its split: nothing is left to learn. Groups are
    shuffled into a ring and each takes its neighbour's truth: every group keeps one for all its images, each is used once, and
    none stays where it was (unless it is the split's only one)."""
    import numpy as np

    result = np.arange(len(table))
    for _, of_split in table.reset_index(drop=True).groupby("split"):
        rows = of_split.groupby("group").indices
        places = of_split.index.to_numpy()
        ring = shuffled(map(str, rows), seed)
        for group, giver in zip(ring, ring[1:] + ring[:1], strict=True):
            result[places[rows[group]]] = places[rows[giver][0]]
    return result


# ---------------------------------------------------------------- columns
def _split_table(source: Source, data: Data, name: str, split: str) -> pd.DataFrame:
    """The rows of one source split in the data set's columns."""
    import pandas as pd

    _check_columns(source, data, name)
    cells = emptied(source.table(name), data.missing)
    if cells.empty:
        raise UserError(f"data.source {data.source}: the split {name!r} has no rows.")
    table = pd.DataFrame({"split": split, "source_split": name, "row": range(len(cells))})
    table["id"] = _ids(source, data, name, cells)
    table["group"] = _groups(source, data, name, cells)
    for known in ("domain", "species", "site"):
        table[known] = _names(cells, getattr(data.columns, known), f"data.columns.{known}")
    table["date"] = _dates(data, cells)
    for i, column in enumerate(data.split.columns):
        table[f"{SPLIT_BY}{i}"] = _names(cells, column, "data.split.by")
    for i, auxiliary in enumerate(filter(None, (each.reads for each in data.auxiliary))):
        table[f"{BESIDE}{i}"] = _names(cells, auxiliary, "data.auxiliary")
    for target in data.targets:
        table[target] = _numbers(source, name, target, _plain(cells, target, "data.targets"))
    if data.label is not None:
        names = _filled(source, name, _plain(cells, data.label, "data.label"), "data.label", "class")
    for i, column in enumerate(data.columns.ranks):
        table[f"{RANK}{i}"] = _names(cells, column, "data.columns.ranks")
    for known in ("common", "sex", "view"):
        if column := getattr(data.columns, known):
            table[known] = _names(cells, column, f"data.columns.{known}")
    if data.label is not None:
        table["label"] = with_genus(names, table, data)
    for i, column in enumerate(data.columns.auxiliary):
        table[f"{AUXILIARY}{i}"] = _names(cells, column, "data.columns.auxiliary")
    return table


def _check_columns(source: Source, data: Data, split: str) -> None:
    """Every column that the configuration names exists once and can be read; only the id's may be absent."""
    columns = data.columns
    exist = source.columns(split)
    if twice := next((name for name, n in Counter(exist).items() if n > 1), None):
        raise UserError(f"data.source {data.source}, split {split}: the column {twice!r} stands there twice. Rename one of them.")
    wanted = [("data.columns.image", columns.image, "")]
    optional = {"group": "each image is a group of its own"}
    unknown = ("domain", "species", "site", "date", "sex", "view")
    optional |= {name: f"the {name} is unknown" for name in unknown} | {"common": "the common name is unknown"}
    given = [(name, column, where) for name, where in optional.items() if (column := getattr(columns, name)) is not None]
    wanted += [(f"data.columns.{name}", column, f", or null if {where}") for name, column, where in given]
    for name in ("colour_card", "scale_bar"):
        wanted += [(f"data.columns.{name}", getattr(columns, name), f", or data.{name} to false")] * getattr(data, name)
    wanted += [("data.targets", target, "") for target in data.targets]
    wanted += [("data.auxiliary", each.reads, "") for each in data.auxiliary if each.reads]
    wanted += [("data.split.by", column, ", or to []") for column in data.split.columns]
    wanted += [] if data.label is None else [("data.label", data.label, "")]
    wanted += [
        (f"data.columns.{key}", column, ", or to []") for key in ("auxiliary", "ranks") for column in getattr(columns, key)
    ]
    for key, column, otherwise in wanted:
        if column not in exist:
            near = same_meaning(key, column, exist) + nearest(column, exist, listed=True)
            raise UserError(
                f"data.source {data.source}, split {split}: there is no column {column!r} ({key}); {near}. "
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
    """The group of each row, its own where the cell is empty; without a group column each image is one, however many rows it
    has."""
    column = data.columns.group
    if column is None:
        names = source.image_names(split, data.columns.image)
        rows_of = Counter(names)
        return [f"{name}" if name and rows_of[name] > 1 else f"{split}:{row}" for row, name in enumerate(names)]
    return [name or f"{split}:{row}" for row, name in enumerate(labels(_plain(cells, column, "data.columns.group")))]


def _ungrouped(table: pd.DataFrame, data: Data) -> Iterator[str]:
    """A warning if some rows have no group where others have."""
    if data.columns.group is not None:
        alone = (table["group"] == table["source_split"] + ":" + table["row"].astype(str)).sum()
        if alone:
            yield f"{alone} of {len(table)} images have no group (column {data.columns.group}): each is taken as one of its own"


def _filled(source: Source, split: str, column: pd.Series, key: str, what: str) -> list[str]:
    """The cells of a column as names. Raises UserError naming the rows in which it is empty."""
    names = labels(column)
    if empty := [row for row, name in enumerate(names) if name is None]:
        places = [source.where(split, row) for row in empty[:NAMED]]
        others = "".join(f", {place.rpartition(', ')[2]}" for place in places[1:])
        raise UserError(
            f"{places[0]}{others}{f' and {len(empty) - NAMED} more' if len(empty) > NAMED else ''}: column {column.name} ({key}) "
            f"{_cell(source, split, str(column.name), empty[0])}. Give the rows their {what}, or remove them."
        )
    return [str(name) for name in names]


def _cell(source: Source, split: str, column: str, row: int) -> str:
    """What is wrong with a cell that stands for nothing: it is empty, or holds one of data.missing."""
    (said,) = labels(source.table(split)[column].iloc[[row]])
    return f"holds {said!r}, which stands for nothing (data.missing: it may say otherwise)" if said else "is empty"


def _names(cells: pd.DataFrame, column: str | None, key: str) -> pd.Series:
    """The cells of a column as names: str, or None where it is unknown."""
    import pandas as pd

    known = [None] * len(cells) if column is None else labels(_plain(cells, column, key))
    return pd.Series(known, dtype=object)  # pandas' own text type would turn None into NaN


def _dates(data: Data, cells: pd.DataFrame) -> pd.Series:
    """Days as `2017-07-11`, as they are written (`2017/7/11` too): a time and its offset are left off. None for what is empty or
    no date."""
    import pandas as pd

    texts = _names(cells, data.columns.date, "data.columns.date").astype(str)
    plain = texts.str.replace(SLASHED, lambda found: f"{found[1]}-{int(found[2]):02}-{int(found[3]):02}", regex=True)
    days = pd.to_datetime(plain.str.replace(OFFSET, "", regex=True), format="ISO8601", errors="coerce")
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
    return [_whole(cell) if cell else None for cell in cells]


def _whole(cell: str) -> str:
    return cell.partition(".")[0] if WHOLE.fullmatch(cell) else cell


def _numbers(source: Source, split: str, target: str, column: pd.Series) -> NDArray[np.float64]:
    """A target's values [rows]. Raises UserError at the first cell that is empty, not a number, or one that single precision, in
    which networks learn, cannot hold."""
    import numpy as np
    import pandas as pd

    values: NDArray[np.float64] = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if len(bad := np.flatnonzero(~(np.abs(values) <= LARGEST))):
        row = int(bad[0])
        more = f" So are {len(bad) - 1} more rows of this split." if len(bad) > 1 else ""
        what = _describe(column.iat[row]) or _cell(source, split, target, row)
        raise UserError(
            f"{source.where(split, row)}: column {target} (data.targets) {what}.{more} "
            "Correct the data or remove such rows; a whole split without targets is left out by data.split.test=none."
        )
    return values


def _describe(cell: Any) -> str:
    """What is wrong with a target's cell; empty for one that stands for nothing."""
    text = str(cell).strip()
    if cell is None or text.lower() in ("", "nan", "<na>", "nat"):
        return ""
    if DECIMAL_COMMA.fullmatch(text):
        return f"holds {text!r}: write decimal points, {text.replace(',', '.')}"
    try:
        beyond = math.isfinite(float(text))
    except ValueError:
        beyond = False
    return f"holds {text[:100]!r}, which is {f'beyond ±{LARGEST:.2g}' if beyond else 'not a finite number'}"


# ---------------------------------------------------------------- groups
def _check_groups(dataset: Dataset, data: Data) -> tuple[str, ...]:
    """All images of a group share its targets; groups that stand in several splits are what the warnings are of."""
    import numpy as np
    import pandas as pd

    table = dataset.table
    # Folds pool the splits, so there a group is one group wherever it stands.
    pooled = not data.split.names
    keys = table["group"] if pooled else table["split"] + "\0" + table["group"]
    codes, _ = pd.factorize(keys)
    _, first = np.unique(codes, return_index=True)
    values = table[list(dataset.truth.columns)].to_numpy()
    if len(odd := np.flatnonzero((values != values[first[codes]]).any(1))):
        _raise_disagreement(dataset, str(table["group"].iat[odd[0]]), int(first[codes[odd[0]]]), int(odd[0]))
    return () if pooled else tuple(_shared_groups(dataset, first, values))


def _raise_disagreement(dataset: Dataset, group: str, i: int, j: int) -> None:
    is_class = "label" in dataset.table
    names = ["label"] if is_class else dataset.targets
    pairs = ((dataset.table[name].tolist(), name) for name in names)
    one, other, name = next((column[j], column[i], name) for column, name in pairs if column[i] != column[j])
    raise UserError(
        f"{dataset.where(j)}: group {group} {f'is {one}' if is_class else f'has {name} {one}'} here, but {other} at "
        f"{dataset.where(i)}. Images of one group share its {'class' if is_class else 'targets'}: correct one of the rows, or "
        "name the column that tells groups apart as data.columns.group (null: each image is a group of its own)."
    )


def _shared_groups(dataset: Dataset, first: NDArray[np.int64], values: NDArray[np.float64]) -> Iterator[str]:
    """A warning for each pair of splits with the same groups (the same targets too: numbers may start again)."""
    seen: dict[str, int] = {}
    shared: dict[tuple[str, str], list[int]] = {}
    splits, groups = dataset.table["split"].tolist(), dataset.table["group"].tolist()
    for i in first.tolist():
        split, group = splits[i], groups[i]
        j = seen.setdefault(group, i)
        if j != i and (values[i] == values[j]).all():
            shared.setdefault((splits[j], split), []).append(i)
    for (one, other), rows in shared.items():
        group, n = groups[rows[0]], len(rows)
        yield (
            f"{n} {'group is' if n == 1 else 'groups are'} in {one} and in {other} with the same targets (group {group}: "
            f"{dataset.where(seen[group])}, {dataset.where(rows[0])}): figures on {other} are not of new groups alone"
        )
