"""All that is to be seen of data before training: in the terminal, and as one HTML page. Loads no torch."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.config.trial import Config
from pipeline.data.truth import SPLITS
from pipeline.disk.writing import write_text
from pipeline.reporting.inspection import about_images, about_table
from pipeline.reporting.inspection.look import Look, look
from pipeline.reporting.page.page import check_place, render
from pipeline.reporting.page.section import Section, Table
from pipeline.reporting.terminal import columns, print_cells, squeeze

MOST_ROWS = 12
"""Of a table in the terminal."""
WIDE = 160
"""Columns of a file."""


def inspect(config: Config, most: int, out: Path | None = None) -> None:
    """Print what is to be seen of a trial's data and of at most so many of its images, and write it as a page.

    Raises UserError for a table that cannot be read as the configuration says, and for a file `out` that is not such a page;
    NotFetched for data of the Hub that are not in the cache.
    """
    if out is not None:
        check_place(out)
    seen = look(config, most)
    show(seen)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, to_html(seen))
        print(f"wrote {out}")


def findings(seen: Look) -> list[str]:
    """What stands out, the worst first."""
    return [*_lost(seen), *_near(seen), *seen.copies, *_told(seen), *seen.dataset.warnings]


def _lost(seen: Look) -> Iterator[str]:
    n = len(seen.dataset)
    for lost, of, what in ((seen.absent, n, "not there"), (seen.seen.bad, seen.n_looked, "there and cannot be opened")):
        if lost:
            (first, *rest) = lost.values()
            fetch = ": `carabid fetch` brings them" if lost is seen.absent and seen.config.data.download else ""
            more = f" And {len(rest):,} more." if rest else ""
            yield f"{_images(len(lost))} of {of:,} {'is' if len(lost) == 1 else 'are'} {what}{fetch}. {first.rstrip('.')}.{more}"


def _near(seen: Look) -> Iterator[str]:
    splits = seen.table["split"].tolist()
    leaks = ([splits[i] for i in pair] for pair in seen.near.pairs[seen.leaks].tolist())
    pairs = Counter(" and ".join(sorted(pair, key=SPLITS.index)) for pair in leaks)
    for where, n in pairs.items():
        yield f"{_pairs(n)} in {where}: figures are too good by these (section near-duplicates)"
    if odd := int((seen.contradict & ~seen.leaks).sum()):
        yield f"{_pairs(odd)} in one split with different truths: one of each pair may be wrong"


def _told(seen: Look) -> Iterator[str]:
    for note, n in seen.seen.notes.most_common():
        yield f"{_images(n)} of {seen.n_looked:,}: {note}"


def _images(n: int) -> str:
    return f"{n:,} {'image' if n == 1 else 'images'}"


def _pairs(n: int) -> str:
    return f"{n:,} {'pair of near-duplicates stands' if n == 1 else 'pairs of near-duplicates stand'}"


def _sections(seen: Look, with_pictures: bool) -> Iterator[Section]:
    """From the table to its images."""
    yield about_table.splits(seen)
    yield about_table.predicted(seen)
    yield about_table.known(seen)
    yield about_images.stored(seen)
    if len(seen.seen.images):
        yield about_images.near_section(seen, with_pictures)


# ---------------------------------------------------------------- forms
def show(seen: Look) -> None:
    """Print all but charts and images, and what stands out at the end."""
    print(f"{seen.config.data.source}: {seen.config.task}")
    for section in filter(None, _sections(seen, with_pictures=False)):
        print(f"\n{section.title}")
        for sentence in section.words:
            print(sentence)
        for table in section.tables:
            _print(table)
    print("\nWhat stands out")
    print("\n".join(f"- {each}" for each in findings(seen)) or "Nothing.")


def _print(table: Table) -> None:
    """As far as it fits the terminal, and what is left out."""
    rows = [[cell.text for cell in row] for row in table.rows]
    widths = squeeze(table.header, rows[:MOST_ROWS], columns() if sys.stdout.isatty() else WIDE)
    lacks = [f"the first {MOST_ROWS} of {len(rows):,}"] if len(rows) > MOST_ROWS else []
    lacks += [f"without {', '.join(gone)}, for which there is no room"] if (gone := table.header[len(widths) :]) else []
    print(f"{table.caption} ({'; '.join(lacks)}):" if lacks else f"{table.caption}:")
    print_cells(table.header, rows[:MOST_ROWS], widths)


def to_html(seen: Look) -> str:
    """One page, with charts, near-duplicates side by side and sheets of samples."""
    found = findings(seen)
    first = Section("findings", "What stands out", found or ["Nothing."])
    sections = [first, *filter(None, (*_sections(seen, with_pictures=True), about_images.samples(seen)))]
    source = seen.config.data.source
    name = Path(*Path(source).parts[-2:])
    return render(f"Data: {name}", f"{source}, task {seen.config.task}. {about_images.looked(seen)}", sections)
