"""What was predicted: the charts of the task, of the best trial or of what is made of its repetitions, the cases that it was most
wrong about, and what a search finds. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.reading import Damaged, reading
from pipeline.disk.writing import read_json, read_record
from pipeline.experiments.reading import saved_science
from pipeline.metrics.charts.chart import Chart, slug
from pipeline.metrics.charts.retrieval import frontier
from pipeline.reporting.page.cases import cases
from pipeline.reporting.page.images import Images, Pictures, explained, images_of
from pipeline.reporting.page.section import Cell, Section, Table, number, text
from pipeline.reporting.results import Row, by_look, sort_rows
from pipeline.reporting.state import AGAIN
from pipeline.tasks import load_task

if TYPE_CHECKING:
    import pandas as pd


def tested(experiment: ExperimentDir, rows: Sequence[Row], pictures: Pictures) -> Section:
    """Of one experiment."""
    done = [row for row in rows if row.state == "done"]
    for look, some in by_look(done).items():
        row = sort_rows([each for each in some if each.together.startswith("out of")] or some, look.sort)[0]
        return _section(experiment, row, pictures, [each for each in some if each.trial in row.members])
    return Section("", "")


def _section(experiment: ExperimentDir, row: Row, pictures: Pictures, members: Sequence[Row]) -> Section:
    folder, trained = TrialDir(experiment.path / row.trial), experiment.trial(row.members[0] if row.members else row.trial)
    of = saved_science(trained.config)
    with suppress(OSError, Damaged), reading(folder.path, AGAIN):
        task, results = load_task(of["task"] if of else ""), read_json(folder.results)
        images = images_of(trained, results, pictures)
        said, groups = _predicted(folder, images)
        called = row.together[:1].upper() + row.together[1:] if row.together else f"The best trial, {row.trial}"
        words = [f"{called}: {results['n_images']:,} images of the {row.split} split.", images.lacking]
        tables = [*_each(row, members), *(cases(said, images) if said is not None else ()), *_found(results, images)]
        charts = [*task.charts(said, groups, results), *_between(folder)]
        name = slug(experiment.path.name)
        title = f"What was predicted: {experiment.path.name}"
        return Section(f"tested-{name}", title, [*filter(None, words)], tables, charts, explained(trained))
    return Section("", "")


def _each(row: Row, members: Sequence[Row]) -> Iterator[Table]:
    """What those that are taken together have reached alone."""
    if members:
        lines = [[text(each.trial), *(number(each.figures.get(name)) for name in row.headline)] for each in members]
        yield Table(f"Each of the {len(members)} trials that are taken together", ("trial", *row.headline.values()), lines)


def _predicted(folder: TrialDir, images: Images) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """What is said of images, with what is known of them, and of groups. An ensemble over seeds says nothing of images."""
    import pandas as pd

    groups = pd.read_parquet(folder.groups)
    if not folder.predictions.exists():
        return None, groups
    return images.joined(pd.read_parquet(folder.predictions)), groups


def _between(folder: TrialDir) -> Iterator[Chart]:
    """Between the released model and this one, where `carabid interpolate` has looked."""
    if rows := read_record(folder.interpolation).get("rows"):
        yield frontier(rows)


def _found(results: Mapping[str, Any], images: Images) -> Iterator[Table]:
    """Of some images those that are nearest to them, where a task has looked for these."""
    queries = results.get("neighbours") or []
    rows = [[_near(each, images) for each in (query, *query["nearest"])] for query in queries]
    if rows:
        header = ("query", *(f"nearest {i}" for i in range(1, len(rows[0]))))
        yield Table("Of ten images, each of another class, the nearest ones (cosine of embeddings)", header, rows)


def _near(of: Mapping[str, Any], images: Images) -> Cell:
    cosine = f", {of['cosine']:.3f}" if "cosine" in of else ""
    image = images.places.get((of["id"], of["group"], of["nth"]), -1)
    return images.cell(of["id"], image, f"{of['class']}{cosine}")
