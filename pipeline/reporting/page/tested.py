"""What was predicted: the charts of the task, of the best trial or of what is made of its repetitions, and the cases that it was
most wrong about. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.reading import Damaged, reading
from pipeline.disk.writing import read_json
from pipeline.experiments.reading import saved_science
from pipeline.metrics.charts.chart import slug
from pipeline.reporting.page.section import Section, Table, number, text
from pipeline.reporting.results import Row, by_look, sort_rows
from pipeline.reporting.state import AGAIN
from pipeline.tasks import load_task

if TYPE_CHECKING:
    import pandas as pd

MOST_CASES, MOST_SAID = 10, 5


def tested(experiment: ExperimentDir, rows: Sequence[Row]) -> Section:
    """Of one experiment."""
    done = [row for row in rows if row.state == "done"]
    for look, some in by_look(done).items():
        row = sort_rows([each for each in some if each.together.startswith("out of")] or some, look.sort)[0]
        return _section(experiment, row)
    return Section("", "")


def _section(experiment: ExperimentDir, row: Row) -> Section:
    folder = TrialDir(experiment.path / row.trial)
    of = saved_science(experiment.trial(row.members[0] if row.members else row.trial).config)
    name = slug(experiment.path.name)
    with suppress(OSError, Damaged), reading(folder.path, AGAIN):
        task, results = load_task(of["task"] if of else ""), read_json(folder.results)
        called = row.together[:1].upper() + row.together[1:] if row.together else f"The best trial, {row.trial}"
        words = [f"{called}: {results['n_images']:,} images of the {row.split} split."]
        charts = list(task.charts(folder, results))
        return Section(f"tested-{name}", f"What was predicted: {experiment.path.name}", words, _cases(folder), charts)
    return Section("", "")


def _cases(folder: TrialDir) -> list[Table]:
    """The images that it was most wrong about, and the most ordinary ones."""
    import pandas as pd

    table = pd.read_parquet(folder.predictions)
    if not {"id", "target", "truth", "prediction"} <= set(table):
        return []
    is_classes = bool(table["target"].str.contains("=", regex=False).all())
    wrong = (_missed if is_classes else _apart)(table).sort_values()
    ordinary = (wrong - wrong.median()).abs().sort_values().index[:MOST_CASES]
    of = "1 less what is said of the true class" if is_classes else "error in sds of the truth, mean over targets"
    return [
        _cases_table(f"The worst cases ({of})", table, wrong.index[::-1][:MOST_CASES].tolist(), wrong, is_classes),
        _cases_table(f"The most ordinary cases ({of})", table, ordinary.tolist(), wrong, is_classes),
    ]


def _apart(table: pd.DataFrame) -> pd.Series:
    """Of each image: how far predictions are from what was observed, in sds of that."""
    scale = table.groupby("target")["truth"].transform("std").replace(0, 1).fillna(1)
    return ((table["prediction"] - table["truth"]).abs() / scale).groupby(table["id"]).mean()


def _missed(table: pd.DataFrame) -> pd.Series:
    """Of each image: what is lacking to certainty of its class (where one of two has rows: of that, or of the other)."""
    true = table["prediction"].where(table["truth"] == 1, 1 - table["prediction"])
    kept = table["truth"] == 1 if table["target"].nunique() > 1 else table["truth"].notna()
    return (1 - true[kept]).groupby(table["id"][kept]).mean()


def _said(of: pd.DataFrame, is_classes: bool) -> str:
    """What was predicted of an image, and what is so."""
    if not is_classes:
        return "; ".join(f"{each.target}: {each.prediction:.3g}, is {each.truth:.3g}" for each in of.head(MOST_SAID).itertuples())
    names = of["target"].str.partition("=")[2]
    true = names[of["truth"] == 1].tolist() or [f"not {names.iloc[0]}"]
    said = sorted(zip(of["prediction"], names, strict=True), reverse=True)
    return f"is {true[0]}; " + ", ".join(f"{name} {value:.3g}" for value, name in said[:3])


def _cases_table(caption: str, table: pd.DataFrame, ids: Sequence[str], wrong: pd.Series, is_classes: bool) -> Table:
    by_id = table[table["id"].isin(ids)].groupby("id")
    rows = []
    for name in ids:
        of = by_id.get_group(name)
        species = of["species"].iloc[0] if "species" in of else ""
        known = species if isinstance(species, str) else ""
        rows.append([text(name), text(known), text(_said(of, is_classes)), number(wrong[name])])
    return Table(caption, ("image", "species", "predicted and observed", "error"), rows)
