"""The page of experiments: one HTML file that opens from disk and asks no network for anything. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
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
    if not experiments:
        raise UserError("name the experiments to report on: `carabid status` lists them")
    if figures is not None and figures.exists():
        raise UserError(f"{figures} exists: name another folder for --figures, or remove it")
    rows = collect(experiments) if rows is None else rows
    sections = sections_of(experiments, rows)
    trials = [row for row in rows if not row.members]
    done = f"{sum(row.state == 'done' for row in trials)} of {len(trials)} trials have results."
    names = [experiment.path.name for experiment in experiments]
    more = [f"{len(names) - NAMED} more"] if len(names) > NAMED else []
    write_text(out, render(", ".join([*names[:NAMED], *more]), done, sections))
    if figures is not None:
        with atomic_folder(figures) as folder:
            for section in sections:
                for chart in section.charts:
                    _write_chart(folder, f"{section.name}-{chart.name}", chart)
    return out


def sections_of(experiments: Sequence[ExperimentDir], rows: Sequence[Row]) -> list[Section]:
    """What there is to show of these experiments, whose `rows` are all of theirs."""
    return [section for section in _sections(experiments, rows) if section]


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
        svg=lambda chart: to_svg(chart).replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1),
        css=_part(PARTS[1]),
        js=_part(PARTS[2]),
    )


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _write_chart(folder: Path, name: str, chart: Chart) -> None:
    write_text(folder / f"{name}.svg", to_svg_file(chart))
    write_bytes(folder / f"{name}.png", to_png(chart))
    write_text(folder / f"{name}.csv", chart.table.to_csv(index=chart.table.index.name is not None))
