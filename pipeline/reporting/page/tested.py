"""What was predicted: the charts of the task, of the best trial or of what is made of its repetitions, the cases that it was most
wrong about, and what a search finds. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.reading import Damaged, reading
from pipeline.disk.writing import read_json, read_record
from pipeline.errors import UserError
from pipeline.experiments.reading import saved_science
from pipeline.metrics.charts.chart import Chart, slug
from pipeline.metrics.charts.retrieval import frontier
from pipeline.reporting.page.cases import cases
from pipeline.reporting.page.images import Images, Pictures, explained, images_of
from pipeline.reporting.page.section import Cell, Section, Table, number, text
from pipeline.reporting.page.worth import known
from pipeline.reporting.results import Look, Row, by_look, sort_rows
from pipeline.reporting.state import AGAIN
from pipeline.tasks import load_task

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")


@dataclass(frozen=True)
class _Which:
    """The trial or ensemble that is shown, or trials of several folds, whose images are put side by side."""

    rows: Sequence[Row]
    members: Sequence[Row]
    """Those that an ensemble is of."""
    called: str


def tested(experiment: ExperimentDir, rows: Sequence[Row], pictures: Pictures) -> Section:
    """Of one experiment, what is on top of its leaderboard."""
    done = [row for row in rows if row.state == "done"]
    for look, some in by_look(done).items():
        return _section(experiment, _which(experiment, some, look), pictures)
    return Section("", "")


def _which(experiment: ExperimentDir, rows: Sequence[Row], look: Look) -> _Which:
    """What is out of all folds where there is such; else the best line of the leaderboard. Of its repetitions no lucky one is
    shown: those that differ in the fold are put together, of others the one in the middle."""
    groups: dict[str, list[Row]] = {}
    for row in [each for each in rows if each.together.startswith("out of")] or rows:
        groups.setdefault(row.split + row.group, []).append(row)
    best = sort_rows([_mean(some, look.sort) for some in groups.values()], look.sort)[0]
    some = sort_rows(groups[best.split + best.group], look.sort)
    folds = [_fold(experiment, row) for row in some]
    if len(some) > 1 and None not in folds and len(set(folds)) == len(folds):
        return _Which(some, [], f"Each image by the fold that has not learnt from it ({len(some)} folds)")
    row = some[len(some) // 2]
    if row.members:
        members = [each for each in rows if each.trial in row.members]
        return _Which([row], members, row.together[:1].upper() + row.together[1:])
    more = f", in the middle of {len(some)} repetitions" if len(some) > 1 else ""
    return _Which([row], [], f"The trial {row.trial}{more}")


def _mean(rows: Sequence[Row], figure: str) -> Row:
    values = [value for row in rows if (value := row.figures.get(figure)) is not None]
    return replace(rows[0], figures={figure: sum(values) / len(values) if values else None})


def _fold(experiment: ExperimentDir, row: Row) -> int | None:
    """The fold that a trial tests; None for an ensemble, and where no fold is tested."""
    science = {} if row.members else saved_science(experiment.trial(row.trial).config) or {}
    found = science.get("data", {}).get("split", {}).get("fold")
    return int(found) if isinstance(found, int) else None


def _section(experiment: ExperimentDir, which: _Which, pictures: Pictures) -> Section:
    name, title = f"tested-{slug(experiment.path.name)}", f"What was predicted: {experiment.path.name}"
    try:
        with reading(experiment.path, AGAIN):
            return _shown(name, title, experiment, which, pictures)
    except (OSError, Damaged, UserError) as error:
        return Section(name, title, [f"Nothing of it can be shown: {error}"])


def _shown(name: str, title: str, experiment: ExperimentDir, which: _Which, pictures: Pictures) -> Section:
    folders = [TrialDir(experiment.path / row.trial) for row in which.rows]
    trained = [experiment.trial(row.members[0] if row.members else row.trial) for row in which.rows]
    task = load_task((saved_science(trained[0].config) or {}).get("task", ""))
    results = [read_json(folder.results) for folder in folders]
    of_folds = {"of": "folds"} if len(results) > 1 else {}
    images = images_of(trained[0], results[0] | of_folds, pictures)
    said, groups = _together([_predicted(folder, images) for folder in folders])
    n = sum(each["n_images"] for each in results)
    words = [f"{which.called}: {n:,} images of the {which.rows[0].split} split.", *filter(None, [images.lacking])]
    words += dict.fromkeys(f"Mind: {warning}." for each in results for warning in each["summary"]["warnings"])
    of_one = results[0] if len(results) == 1 else {}
    charts = [*_all(lambda: task.charts(said, groups, of_one), "charts", words), *_between(folders[0])]
    worst = [] if said is None else _all(lambda: cases(said, images, task.of_classes), "cases", words)
    tables = [*known(results, which.rows[0]), *_each(which), *worst, *_found(results[0], images)]
    return Section(name, title, words, tables, charts, explained(trained[0]))


def _together(pairs: Sequence[tuple[pd.DataFrame | None, pd.DataFrame]]) -> tuple[pd.DataFrame | None, pd.DataFrame]:
    """What was said of the images of several folds, and of their groups."""
    import pandas as pd

    images = [said for said, _ in pairs if said is not None]
    return pd.concat(images, ignore_index=True) if images else None, pd.concat([of for _, of in pairs], ignore_index=True)


def _all(make: Callable[[], Iterable[T]], what: str, words: list[str]) -> list[T]:
    """All there is until something fails, which is said: what a lab's own task cannot show must not hide the rest."""
    found: list[T] = []
    try:
        found.extend(make())
    except Exception as error:
        words.append(f"There are no {what}, or not all: {type(error).__name__}: {error}")
    return found


def _each(which: _Which) -> Iterator[Table]:
    """What those that are taken together have reached alone."""
    rows = which.members or (which.rows if len(which.rows) > 1 else ())
    if rows:
        headline = which.rows[0].headline
        lines = [[text(each.trial), *(number(each.figures.get(name)) for name in headline)] for each in rows]
        yield Table(f"Each of the {len(rows)} trials that are taken together", ("trial", *headline.values()), lines)


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
