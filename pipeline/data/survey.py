"""Images looked at before anything is trained: which are there, which can be read, how they are stored, which are alike. Loads no
torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.data.dataset import BadImage, Dataset, content_of
from pipeline.data.near_duplicates import SIDE, Small, shrunk
from pipeline.data.sources.base import absent
from pipeline.progress import progress

if TYPE_CHECKING:
    import pandas as pd

SEED = 0
"""Of which images are looked at, where not all are."""


class Seen(NamedTuple):
    """One image."""

    width: int
    height: int
    """As stored, in pixels."""
    form: str
    """Format and mode."""
    n_bytes: int
    sha256: str
    """`content_of` it."""
    small: Small
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Survey:
    """What was seen of some images of a data set."""

    images: pd.DataFrame
    """A row for each that can be read, named by its position: width, height, form, n_bytes, sha256."""
    small: Small
    """The same, shrunk."""
    bad: dict[int, str] = field(default_factory=dict)
    """Position of each that cannot be read → why, naming file, row and column."""
    notes: Counter[str] = field(default_factory=Counter)
    """What is to be told of images → of how many."""


def not_there(dataset: Dataset) -> dict[int, str]:
    """Position of each image that is not there → why, of all; no image is opened."""
    source, found = dataset.source, dict[int, str]()
    for split, rows in dataset.table.groupby("source_split", sort=False)["row"]:
        positions = dict(zip(rows.tolist(), rows.index.tolist(), strict=True))
        for column in dataset.image_columns:
            if (cells := source.paths(str(split), column)) is not None:
                lost = absent(cells, source.folder(), set())
                found |= {positions[row]: f"{source.where(str(split), row)}: column {column}: {why}" for row, why in lost}
    return found


def drawn(positions: Sequence[int], most: int) -> list[int]:
    """At most so many of these, the same each time."""
    if len(positions) <= most:
        return list(positions)
    chosen = np.random.default_rng(SEED).choice(len(positions), most, replace=False)
    return [positions[i] for i in np.sort(chosen).tolist()]


def survey(dataset: Dataset, positions: Sequence[int], threads: int) -> Survey:
    """Decode these images as training would, by so many threads."""
    import pandas as pd

    def look(i: int) -> Seen | str:
        try:
            return _look(dataset, i)
        except BadImage as error:
            return str(error)

    seen, bad = dict[int, Seen](), dict[int, str]()
    with ThreadPoolExecutor(threads) as pool, progress("look at images", len(positions)) as advance:
        for i, one in zip(positions, pool.map(look, positions), strict=True):
            if isinstance(one, str):
                bad[i] = one
            else:
                seen[i] = one
            advance(1)
    kept = ("width", "height", "form", "n_bytes", "sha256")
    images = pd.DataFrame([[getattr(one, name) for name in kept] for one in seen.values()], list(seen), kept)
    small = np.array([one.small for one in seen.values()], "uint8").reshape(-1, SIDE, SIDE, 3)
    return Survey(images, small, bad, Counter(note for one in seen.values() for note in one.notes))


def _look(dataset: Dataset, i: int) -> Seen:
    """Raises BadImage."""
    from pipeline.data.decoding import How
    from pipeline.data.opening import form_of

    encoded = dataset.encoded(i)
    decoded = dataset.decode(i, encoded)
    form = form_of(encoded[0], dataset.how or How())
    return Seen(*decoded.size, form, len(encoded[0]), content_of(encoded), shrunk(decoded.image), decoded.notes)
