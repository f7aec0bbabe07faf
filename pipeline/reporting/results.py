"""Reading results: every trial of every experiment as a row, and every ensemble; means over seeds; tables. Loads no torch."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from textwrap import fill, shorten
from typing import Any

from pipeline.config.identity import flatten, science
from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, TrialDir, folder_name, trained_root
from pipeline.disk.reading import Damaged, is_number, reading, sha256_of_file, told
from pipeline.disk.writing import read_hashed, read_json
from pipeline.errors import UserError
from pipeline.reporting.state import AGAIN, planned_trials, trial_config, trial_state
from pipeline.reporting.terminal import columns, fit, print_cells, short_names

REPLICATES = ("seed", "data.split.fold")
"""Trials that differ in these alone are repetitions of one another: the table shows their mean ± sd."""
Figures = dict[str, float | None]
MADE_AGAIN = "Delete it, and `carabid collect` makes it again."
"""What to do about an ensemble that is damaged."""


@dataclass(frozen=True)
class Row:
    """One trial, or one ensemble. `figures` are keyed `r2`, `in_domain.r2`, `SPEI_30d.r2`, …, as its task names them."""

    experiment: str
    trial: str
    """Name of its folder within the experiment's."""
    state: str
    reason: str = ""
    group: str = ""
    split: str = ""
    optimistic: bool = False
    figures: Figures = field(default_factory=dict)
    members: tuple[str, ...] = ()
    """The trials that are taken together; none: it is a trial."""
    together: str = ""
    """How these are called: `ensemble of 3` (seeds), `out of 5 folds`."""
    headline: dict[str, str] = field(default_factory=dict)
    """The figures that tables show, with their titles; the first sorts them."""
    lower_is_better: tuple[str, ...] = ()
    """Last parts of the names of figures of which less is better."""
    instead: dict[str, tuple[str, str]] = field(default_factory=dict)
    """For a figure that is not defined in a table the one that is shown and sorts it then, with its title."""

    def rank(self, sort: str, value: float | None) -> float:
        """Lowest for the best value of a figure."""
        return (value or 0) * (1 if sort.rpartition(".")[2] in self.lower_is_better else -1)


@dataclass(frozen=True)
class Line:
    """A line of the table: the repetitions of one configuration, or a trial without results."""

    experiment: str
    name: str
    state: str
    n: int
    split: str
    optimistic: bool
    means: Figures
    sds: Figures


def collect(experiments: Iterable[ExperimentDir]) -> list[Row]:
    """A row for each trial that was ever planned, with or without results, and behind them one for each ensemble."""
    rows = []
    for experiment in experiments:
        rows += [_row(experiment, name) for name in planned_trials(experiment)]
        rows += _ensembles(experiment)
    return rows


def hash_results(trial: TrialDir) -> str:
    """What tells a trial's results from others. Raises OSError if there are none."""
    return sha256_of_file(trial.results)


def sorts(tables: Mapping[Look, Sequence[Row]], wanted: str | None) -> dict[Look, str]:
    """The figure that each table is sorted by: the one that is wanted, where its results have it, or what stands in for it where
    it is defined for none, else its own.

    Raises UserError if no result of any has a figure of that name.
    """
    if wanted is not None:
        _check_figure([row for rows in tables.values() for row in rows], wanted)
    has = {look: any(wanted in row.figures for row in rows) for look, rows in tables.items()}
    return {look: _defined(wanted, rows)[0] if wanted is not None and has[look] else look.sort for look, rows in tables.items()}


def _defined(name: str, rows: Sequence[Row], title: str = "") -> tuple[str, str]:
    """A figure with its title, or what stands in for it where none of these results has it."""
    other = next((row.instead[name] for row in rows if name in row.instead), None)
    return (name, title) if other is None or any(row.figures.get(name) is not None for row in rows) else other


def summarize(rows: Sequence[Row], sort: str) -> list[Line]:
    """Repetitions joined to lines, best first by `sort`; trials without results last, by name.

    Raises UserError if no result has a figure of that name.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        same = row.split + row.group if row.state == "done" else f"{row.trial} {row.state}"
        groups.setdefault((row.experiment, same), []).append(row)
    _check_figure(rows, sort)
    lines = [(members[0], _line(members)) for members in groups.values()]
    return [line for _, line in sorted(lines, key=lambda each: _order(sort, each[0], each[1].means, each[1].name))]


def sort_rows(rows: Sequence[Row], sort: str) -> list[Row]:
    """Trials in the order of `summarize`: best first by `sort`, those without results last, by name.

    Raises UserError if no result has a figure of that name.
    """
    _check_figure(rows, sort)
    return sorted(rows, key=lambda row: _order(sort, row, row.figures, row.trial))


def _check_figure(rows: Sequence[Row], sort: str) -> None:
    names = sorted({name for row in rows for name in row.figures})
    if names and sort not in names:
        raise UserError(f"--sort {sort}: no result has that figure; there are: {', '.join(names)}")


def _order(sort: str, row: Row, figures: Figures, name: str) -> tuple[bool, bool, float, str]:
    """Where it stands: results with the figure first, the best of them first; equals by name."""
    value = figures.get(sort)
    return row.state != "done", value is None, row.rank(sort, value), name


def to_csv(rows: Sequence[Row]) -> str:
    """One line per trial or ensemble with every figure; `members` is of how many trials an ensemble is."""
    names = sorted({name for row in rows for name in row.figures})
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["experiment", "trial", "members", "state", "reason", "split", "optimistic", *names])
    for row in rows:
        values = [row.figures.get(name) for name in names]
        name = [row.experiment, row.trial, len(row.members) or ""]
        writer.writerow([*name, row.state, row.reason, row.split, row.optimistic, *values])
    return buffer.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """The same as a list of objects."""
    return json.dumps([vars(row) for row in rows], indent=1, allow_nan=False)


@dataclass(frozen=True)
class Look:
    """What a table shows: the figures in its columns with their titles, of which the first sorts it if nobody says another."""

    columns: tuple[tuple[str, str], ...]

    @property
    def sort(self) -> str:
        return self.columns[0][0]

    def led_by(self, name: str) -> Look:
        """The same with this figure, if it is one of its columns, as the first of them."""
        return Look(tuple(sorted(self.columns, key=lambda column: column[0] != name)))

    @property
    def header(self) -> tuple[str, ...]:
        return ("experiment", "trial", "n", "split", *(title for _, title in self.columns))

    def cells(self, line: Line) -> tuple[str, ...]:
        """A line's cells under the header."""
        if line.state != "done":
            return (line.experiment, line.name, "", "", line.state, *[""] * (len(self.columns) - 1))
        split = line.split + (" (optimistic)" if line.optimistic else "")
        return (line.experiment, line.name, str(line.n), split, *(_cell(line, name) for name, _ in self.columns))


NO_RESULTS = Look((("", "state"),))
"""Of trials of which none has results."""


def by_look(rows: Sequence[Row]) -> dict[Look, list[Row]]:
    """Rows that one table can show: of experiments with the same headline figures; trials without results stand among them."""
    looks: dict[str, Look] = {}
    for name, group in groupby(sorted((row for row in rows if row.headline), key=_experiment), key=_experiment):
        some = list(group)
        shown = (_defined(figure, some, title) for figure, title in some[0].headline.items())
        looks[name] = Look(tuple(dict(shown).items()))
    fallback = next(iter(looks.values()), NO_RESULTS)
    tables: dict[Look, list[Row]] = {look: [] for look in looks.values()}
    for row in rows:
        tables.setdefault(looks.get(row.experiment, fallback), []).append(row)
    return tables


def _experiment(row: Row) -> str:
    return row.experiment


def no_trials(trained: Path | None = None) -> str:
    """What to say in place of an empty table."""
    return f"no trials yet under {trained or trained_root()}"


def print_tables(tables: Mapping[Look, Sequence[Line]], trained: Path | None = None) -> None:
    """The tables for a terminal, each with the trials that have no results below it, or a sentence where there is nothing yet."""
    for look, lines in tables.items():
        _print_done(look, [line for line in lines if line.state == "done"])
        for line in lines:
            if line.state != "done":
                print(fill(f"{line.experiment}/{line.name}: {line.state}", columns(), subsequent_indent="    "))
    if not tables:
        print(no_trials(trained))


def _print_done(look: Look, lines: Sequence[Line]) -> None:
    if not lines:
        return
    names = short_names([(line.experiment, line.name) for line in lines])
    rows = [look.cells(replace(line, name=name)) for line, name in zip(lines, names, strict=True)]
    widths = fit(look.header, rows, columns())
    print_cells(look.header, rows, widths)
    said = ["Trials are called by what tells them apart."] * (names != [line.name for line in lines])
    said += [f"Left out: {', '.join(look.header[len(widths) :])}."] * (len(widths) < len(look.header))
    if said:
        print(fill(f"{' '.join(said)} `--format csv` has all.", columns()))


def to_markdown(tables: Mapping[Look, Sequence[Line]]) -> str:
    """The tables in Markdown."""
    return "\n".join(cells_to_markdown(look.header, map(look.cells, lines)) for look, lines in tables.items())


def cells_to_markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _row(experiment: ExperimentDir, name: str) -> Row:
    trial = experiment.trial(name)
    config, state = trial_config(trial), trial_state(trial)
    row = Row(experiment.path.name, name, state.state, state.reason)
    if state.state != "done":
        return row
    if config is None:  # which repetitions it belongs with cannot be told
        why = "config.yaml is damaged: `carabid train` with this trial's configuration writes it again"
        return replace(row, state="failed", reason=why)
    try:
        with reading(trial.results, AGAIN):
            return _with_results(row, read_json(trial.results), _group(name, config))
    except (OSError, Damaged) as error:
        return replace(row, state="failed", reason=str(error))


def _ensembles(experiment: ExperimentDir) -> Iterator[Row]:
    """Rows of the ensembles; one whose members have other results by now waits, out of sight, for the next collection."""
    for folder in experiment.ensembles():
        with suppress(OSError), told(), reading(folder.results, MADE_AGAIN):
            results = read_ensemble(folder)
            members = tuple(results["members"])
            if results["made_from"] != {name: hash_results(experiment.trial(name)) for name in members}:
                continue
            called = f"out of {len(members)} folds" if results.get("of") == "folds" else f"ensemble of {len(members)}"
            row = Row(experiment.path.name, f"ensembles/{folder.path.name}", "done", members=members, together=called)
            group = _group(folder.path.name, trial_config(experiment.trial(members[0])))
            yield _with_results(row, results, f"{called}: {group}")


def read_ensemble(folder: TrialDir) -> dict[str, Any]:
    """An ensemble's results, once they are known to be what was written and to name its members. Raises OSError or Damaged."""
    with reading(folder.results, MADE_AGAIN):
        results = read_hashed(folder.results)
        members, made_from = results["members"], dict(results["made_from"])
        if not isinstance(members, list) or not members or {folder_name(name) for name in members} != made_from.keys():
            raise ValueError("its members are not those that it was made from.")
        return results


def is_optimistic(results: Mapping[str, Any]) -> bool:
    """Whether figures are of what the model was chosen on (also where it was adapted to it)."""
    return str(results["split"]).partition(",")[0] == results["selected_on"]


def check_results(results: Mapping[str, Any]) -> None:
    """Raises ValueError, TypeError or LookupError for results that no table and no comparison can show."""
    figures, headline, lower = {**results["figures"]}, {**results["headline"]}, list(results["lower_is_better"])
    texts = [*figures, *headline, *headline.values(), *lower, results["split"], results["selected_on"]]
    for name, (other, title) in dict(results.get("instead", {})).items():
        texts += [name, other, title]
    if chosen := results["summary"].get("selection"):
        texts.append(chosen["metric"])
        figures["selection.value"] = chosen["value"]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{_short(wrong[0])} stands where a text should.")
    if bad := [name for name, value in figures.items() if value is not None and not is_number(value)]:
        raise ValueError(f"its figure {bad[0]} is {_short(figures[bad[0]])}, which is no number.")


def _short(value: Any) -> str:
    return shorten(json.dumps(value), 60, placeholder=" …")


def _with_results(row: Row, results: dict[str, Any], group: str) -> Row:
    check_results(results)
    if missing := results["headline"].keys() - results["figures"].keys():
        raise ValueError(f"it has no figure {min(missing)}, which its headline names.")
    told = {
        "split": results["split"],
        "optimistic": is_optimistic(results),
        "headline": dict(results["headline"]),
        "lower_is_better": tuple(results["lower_is_better"]),
        "instead": {name: (other, title) for name, (other, title) in results.get("instead", {}).items()},
    }
    return replace(row, group=group, figures=dict(results["figures"]), **told)


def _group(name: str, config: Config | None) -> str:
    """The trial's configuration without what repetitions differ in; shown as its name without seed and hash."""
    if config is None:
        return name
    values = {key: value for key, value in flatten(science(config)).items() if key not in REPLICATES}
    return json.dumps(values, sort_keys=True)


def _line(rows: Sequence[Row]) -> Line:
    first = rows[0]
    columns = {
        name: [row.figures.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row.figures)
    }
    numbers = {name: [v for v in values if v is not None] for name, values in columns.items()}
    means: Figures = {name: statistics.fmean(v) if len(v) == len(rows) else None for name, v in numbers.items()}
    sds: Figures = {name: statistics.stdev(v) if len(v) == len(rows) > 1 else None for name, v in numbers.items()}
    shared = common_name([row.trial.rpartition("/")[2] for row in rows])
    called = first.trial if first.state != "done" or len(rows) == 1 else shared
    if first.members:
        called = f"{first.together}: {shared}"
    state = first.state + (f": {shorten(first.reason, 160, placeholder=' … (`carabid status`)')}" if first.reason else "")
    return Line(first.experiment, called, state, len(rows), first.split, first.optimistic, means, sds)


def common_name(names: Sequence[str]) -> str:
    """What the names of repetitions share: `lr=1e-3,seed=0-5f2c9a` and `lr=1e-3,seed=1-0ab3de` → `lr=1e-3`."""
    parts = [name.rpartition("-")[0].split(",") for name in names]
    shared = [part for part in parts[0] if all(part in other for other in parts)]
    return ",".join(shared) or "defaults"


def _cell(line: Line, name: str) -> str:
    mean, sd = line.means.get(name), line.sds.get(name)
    if mean is None:
        return "–"
    return f"{mean:.3f}" + (f" ± {sd:.3f}" if sd is not None else "")
