"""Sections of a data set's images: how they are stored, which are all but the same, and samples of them. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from pipeline.amounts import format_bytes
from pipeline.data.survey import SEED, drawn
from pipeline.metrics.charts.overview import sizes
from pipeline.metrics.summaries import Summary
from pipeline.reporting.inspection.about_table import as_table
from pipeline.reporting.inspection.look import Look
from pipeline.reporting.page.images import MOST, Images
from pipeline.reporting.page.section import Cell, Gallery, Section, Table, text

if TYPE_CHECKING:
    import pandas as pd

MOST_BAD = 50
"""Images that cannot be opened, that are listed."""
MOST_PAIRS, MOST_SHOWN = 200, 30
"""Pairs of near-duplicates that are listed, and that are shown."""
MOST_SAMPLES = MOST - 2 * MOST_SHOWN
"""Images on sheets of samples."""
MOST_SHEETS, OF_EACH = 20, 8
"""Sheets of one kind, and images on each."""


def stored(look: Look) -> Section:
    """Sizes, formats, modes, what is to be told of them; which cannot be opened."""
    images, words = look.seen.images, [looked(look)]
    tables = [*_bad(look)]
    if len(images):
        words.append(
            f"Together {format_bytes(int(images['n_bytes'].sum()))}, {images['n_bytes'].mean() / 1000:,.0f} kB an image."
        )
        tables[:0] = [as_table(_spans(look)), as_table(_forms(look))]
    charts = [sizes(images)] if len(images[["width", "height"]].drop_duplicates()) > 1 else []
    return Section("images", "Images", words, tables, charts)


def looked(look: Look) -> str:
    """Which images were looked at, in words."""
    if not look.n_there:
        return "None of the images are there."
    if not look.n_looked:
        return "No image was opened."
    bad = f"; {len(look.seen.bad):,} of them could not be" if look.seen.bad else ""
    if look.n_looked == look.n_there:
        return f"All {look.n_there:,} images that are there were to be opened{bad}."
    return (
        f"{look.n_looked:,} of {look.n_there:,} images were opened, drawn at random (seed {SEED}); what is said of images is of "
        "these. More: --images."
    )


def _spans(look: Look) -> Summary:
    import pandas as pd

    images = look.seen.images
    shown = {
        "width, pixels": images["width"],
        "height, pixels": images["height"],
        "width : height": images["width"] / images["height"],
        "megapixels": images["width"] * images["height"] / 1e6,
    }
    rows = [
        {"size": name, "min": float(of.min()), "median": float(of.median()), "max": float(of.max())} for name, of in shown.items()
    ]
    return Summary("Sizes, as stored", pd.DataFrame(rows))


def _forms(look: Look) -> Summary:
    counts = look.seen.images["form"].value_counts()
    return Summary("Formats and modes", counts.rename("images").rename_axis("format, mode").reset_index())


def _bad(look: Look) -> Iterator[Table]:
    lost = {**look.absent, **look.seen.bad}
    if lost:
        ids = look.table["id"].tolist()
        rows = [[text(ids[i]), text(why)] for i, why in list(lost.items())[:MOST_BAD]]
        more = f", the first {MOST_BAD}" if len(lost) > MOST_BAD else ""
        yield Table(f"{len(lost):,} images that are not there or cannot be opened{more}", ("image", "why"), rows)


# ---------------------------------------------------------------- near-duplicates
def near_section(look: Look, with_pictures: bool) -> Section:
    """How many there are where; one by one those in different splits, and those in one split with different truths."""
    words = [
        "Looked for among the images that were opened: the same photograph saved again at another quality or size, or the same "
        "thing photographed twice from one place; not mirrored, turned or cropped copies."
    ]
    tables = [as_table(_counts(look))] if len(look.near.pairs) else []
    if not len(look.near.pairs):
        words.append("None were found.")
    elif not look.near.is_all:
        words.append(f"There may be more than these {len(look.near.pairs):,} pairs: no further ones were looked for.")
    listed = np.flatnonzero(look.leaks | (look.contradict & ~look.expected))
    listed = listed[np.lexsort((look.near.apart[listed], ~look.leaks[listed]))][:MOST_PAIRS]
    if len(listed):
        tables.append(_pairs(look, listed.tolist(), with_pictures))
    return Section("near-duplicates", "Near-duplicates", words, tables)


def _counts(look: Look) -> Summary:
    import pandas as pd

    others = ~look.leaks & ~look.expected
    rows = [
        {"near-duplicates": name, "pairs": int(which.sum()), "with different truths": int((which & look.contradict).sum())}
        for name, which in (
            ("in different splits: a leak", look.leaks),
            ("in one split, of different groups", others),
            ("in one split, of one group: expected", look.expected),
        )
    ]
    return Summary("Where they stand", pd.DataFrame(rows))


def _pairs(look: Look, listed: Sequence[int], with_pictures: bool) -> Table:
    shown = look.near.pairs[listed[:MOST_SHOWN]].ravel().tolist() if with_pictures else []
    cells, ids, splits = _cells(look, shown), look.table["id"].tolist(), look.table["split"].tolist()
    contents = look.seen.images["sha256"]

    def row(pair: int) -> list[Cell]:
        one, other = look.near.pairs[pair].tolist()
        images = [[cells.get(i) or text(ids[i]), text(splits[i])] for i in (one, other)]
        apart = float(look.near.apart[pair])
        said = "the same file" if contents[one] == contents[other] else f"{apart:.3f}"
        return [*images[0], *images[1], Cell(said, apart), text("no" if look.contradict[pair] else "yes")]

    n = int((look.leaks | (look.contradict & ~look.expected)).sum())
    more = f", the nearest {MOST_PAIRS}" if n > MOST_PAIRS else ""
    caption = (
        f"{n:,} pairs in different splits, or of different groups with different truths{more} (apart: 0 is equal, 1 unrelated)"
    )
    return Table(
        caption, ("image", "split", "near-duplicate", "its split", "apart", "same truth"), [row(pair) for pair in listed]
    )


def _cells(look: Look, positions: Iterable[int]) -> dict[int, Cell]:
    """Images with small pictures of them, by position; made by threads."""
    images, ids, wanted = Images(look.dataset), look.table["id"].tolist(), list(dict.fromkeys(positions))
    with ThreadPoolExecutor(look.config.resources.decode_threads) as pool:
        return dict(zip(wanted, pool.map(lambda i: images.cell(ids[i], i), wanted), strict=True))


# ---------------------------------------------------------------- samples
def samples(look: Look) -> Section:
    """Sheets of images drawn at random: of each class, domain, range of a target."""
    by = look.task.sheets(look.dataset)
    sheets = [each for kind, names in by.items() for each in _sheets(look, kind, names, MOST_SAMPLES // len(by))]
    cells = _cells(look, (i for _, positions in sheets for i in positions))
    galleries = [Gallery(title, [cells[i] for i in positions]) for title, positions in sheets]
    words = [f"Drawn at random among the images that were opened (seed {SEED}); of the {MOST_SHEETS} most common of each kind."]
    return Section("samples", "Samples", words if galleries else [], galleries=galleries)


def _sheets(look: Look, kind: str, names: pd.Series, most: int) -> Iterator[tuple[str, list[int]]]:
    """Title and positions of each sheet of one kind, at most so many images in all."""
    opened = names.loc[look.seen.images.index].dropna()
    n = names.value_counts()
    of = [name for name in (names.cat.categories if names.dtype == "category" else n.index) if (opened == name).any()][
        :MOST_SHEETS
    ]
    for name in of:
        some = drawn(opened.index[opened == name].tolist(), min(OF_EACH, most // len(of)))
        yield f"{kind}: {name} ({len(some)} of {n[name]:,} images)", some
