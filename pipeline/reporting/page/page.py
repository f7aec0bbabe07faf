"""The page of experiments: one HTML file that opens from disk and asks no network for anything. Loads no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined

from pipeline.disk.layout import ExperimentDir
from pipeline.disk.writing import atomic_folder, write_bytes, write_text
from pipeline.errors import UserError
from pipeline.metrics.charts.chart import Chart
from pipeline.metrics.charts.drawing import to_png, to_svg, to_svg_file
from pipeline.reporting.page.courses import courses
from pipeline.reporting.page.generalising import generalising
from pipeline.reporting.page.grid import grid
from pipeline.reporting.page.images import Pictures
from pipeline.reporting.page.leaderboard import leaderboard
from pipeline.reporting.page.section import Section
from pipeline.reporting.page.spent import costs, efficiency, failed, origin
from pipeline.reporting.page.tested import tested
from pipeline.reporting.results import Row, collect

MARK = "· Carabid</title>"
"""Stands in the head of each page, by which one is known again."""
NAMED = 3
"""Experiments that a title names."""
PARTS = ("page.html.j2", "page.css", "page.js")


def write(
    experiments: Sequence[ExperimentDir], out: Path, figures: Path | None = None, rows: Sequence[Row] | None = None
) -> Path:
    """Write the page of these experiments to `out`, and each of its charts as SVG, PNG and CSV to the new folder `figures`.
    `rows` are those that `collect` has found; None: it looks.

    Raises UserError for no experiments, and for a folder of figures that exists.
    """
    check_place(out)
    if not experiments:
        raise UserError("name the experiments to report on: `carabid status` lists them")
    if figures is not None and figures.exists():
        raise UserError(f"{figures} exists: name another folder for --figures, or remove it")
    rows = collect(experiments) if rows is None else rows
    sections = sections_of(experiments, rows)
    trials = [row for row in rows if not row.members]
    done = (
        f"{sum(row.state == 'done' for row in trials)} of {len(trials)} trial{'s have' if len(trials) != 1 else ' has'} results."
    )
    names = [experiment.path.name for experiment in experiments]
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    write_text(out, render(", ".join([*names[:NAMED], *more]), done, sections))
    if figures is not None:
        with atomic_folder(figures) as folder:
            for section in sections:
                for chart in section.charts:
                    with suppress(ValueError, LookupError, ArithmeticError):  # of one that cannot be drawn the page says it
                        _write_chart(folder, f"{section.name}-{chart.name}", chart)
    return out


def check_place(out: Path) -> None:
    """Raises UserError where writing would replace what is no page of ours, and for a name that no browser opens."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out}: name a file that ends in .html")
    if out.is_dir() or (out.exists() and MARK not in out.read_text(encoding="utf-8", errors="replace")[:1000]):
        raise UserError(f"{out} exists and is no page of Carabid's: name another file by --out, or remove it")


def sections_of(experiments: Sequence[ExperimentDir], rows: Sequence[Row]) -> list[Section]:
    """What there is to show of these experiments, whose `rows` are all of theirs."""
    return [_with_own_names(section) for section in _sections(experiments, rows) if section]


def _with_own_names(section: Section) -> Section:
    """Its charts called differently: two targets may be the same as names of files."""
    seen: Counter[str] = Counter()
    charts = []
    for chart in section.charts:
        seen[chart.name] += 1
        charts.append(chart if seen[chart.name] == 1 else replace(chart, name=f"{chart.name}-{seen[chart.name]}"))
    return replace(section, charts=charts)


def _sections(experiments: Sequence[ExperimentDir], rows: Sequence[Row]) -> Iterator[Section]:
    """From what is best to where it comes from."""
    yield leaderboard(experiments, rows)
    yield generalising(rows)
    pictures = Pictures()
    for experiment in experiments:
        mine = [row for row in rows if row.experiment == experiment.path.name]
        yield grid(experiment, mine)
        yield tested(experiment, mine, pictures)
    yield courses(experiments, rows)
    yield failed(rows)
    yield costs(experiments, rows)
    yield efficiency(experiments)
    yield origin(experiments)


def render(title: str, about: str, sections: Sequence[Section]) -> str:
    """A page as HTML: of these sections, and above them a sentence about it."""
    environment = Environment(
        loader=FunctionLoader(_part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(PARTS[0]).render(
        title=title,
        about=about,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        sections=sections,
        svg=_svg,
        css=_part(PARTS[1]),
        js=_part(PARTS[2]),
    )


def _svg(section: Section, chart: Chart) -> str:
    """A chart as HTML, or why it is none: one that cannot be drawn, of a lab's own task for one, must not hide all others."""
    try:
        drawn = to_svg(chart, f"{section.name}-")
    except Exception as error:
        return f"<p>{escape(f'It cannot be drawn: {type(error).__name__}: {error}')}</p>"
    return drawn.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _write_chart(folder: Path, name: str, chart: Chart) -> None:
    write_text(folder / f"{name}.svg", to_svg_file(chart))
    write_bytes(folder / f"{name}.png", to_png(chart))
    write_text(folder / f"{name}.csv", chart.table.to_csv(index=chart.table.index.name is not None))
