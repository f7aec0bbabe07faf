"""The commands that show results: tables, costs, comparisons, and trackers elsewhere."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.arguments import ExperimentNames, TrainedFolder, find_experiments
from pipeline.disk.layout import ExperimentDir
from pipeline.errors import UserError


def results(
    experiments: ExperimentNames = None,
    form: Annotated[str, typer.Option("--format", help="table, csv, markdown or json.")] = "table",
    sort: Annotated[str | None, typer.Option(help="Figure to sort by: r2, in_domain.r2, SPEI_30d.r2, roc_auc, …")] = None,
    cost: Annotated[bool, typer.Option("--cost", help="Hours, GPU-hours, nodes and jobs, not metrics.")] = False,
    efficiency: Annotated[
        bool, typer.Option("--efficiency", help="Time and memory that jobs asked Slurm for, and used.")
    ] = False,
    trained: TrainedFolder = None,
) -> None:
    """All trials of all experiments with their metrics, best first; mean ± sd over seeds and folds."""
    from pipeline.reporting import folds
    from pipeline.reporting import results as module

    found = find_experiments(experiments, trained)
    if efficiency:
        _show_efficiency(found, form)
        return
    tables = module.by_look(module.collect(found))
    by = module.sorts(tables, sort)
    rows = [row for look, some in tables.items() for row in module.sort_rows(some, by[look])]
    if cost:
        from pipeline.reporting import cost as costs

        spent = costs.collect(found, rows)
        forms = {"csv": costs.to_csv, "markdown": costs.to_markdown, "json": costs.to_json}
        texts = {name: partial(write, spent) for name, write in forms.items()}
        _show(form, partial(costs.print_table, spent, trained), texts)
        return
    lines = {look.led_by(by[look]): module.summarize(some, by[look]) for look, some in tables.items()}
    texts = {"csv": partial(module.to_csv, rows), "markdown": partial(module.to_markdown, lines)}
    _show(form, partial(module.print_tables, lines, trained), texts | {"json": partial(module.to_json, rows)})
    for warning in folds.warnings(found) if form == "table" else ():
        print(f"\n{warning}.")


def _show_efficiency(experiments: list[ExperimentDir], form: str) -> None:
    from pipeline.reporting import efficiency

    used = efficiency.collect(experiments)
    forms = {"csv": efficiency.to_csv, "markdown": efficiency.to_markdown, "json": efficiency.to_json}
    _show(form, partial(efficiency.print_table, used), {name: partial(write, used) for name, write in forms.items()})


def compare(
    experiments: Annotated[list[str], typer.Argument(metavar="EXPERIMENT …", help="Their names.")],
    figure: Annotated[
        str | None, typer.Option(help="Figure of what was tested (roc_auc, r2, …); default: the task's first.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="table, markdown or json.")] = "table",
    trained: TrainedFolder = None,
) -> None:
    """Methods on the images that all of them tested: the one chosen on validation against each."""
    from pipeline.reporting import comparison as module

    found = module.compare(module.candidates(find_experiments(experiments, trained)), figure)
    texts = {"markdown": partial(module.to_markdown, found), "json": partial(module.to_json, found)}
    _show(form, partial(module.print_table, found), texts)


def report(
    experiments: ExperimentNames = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The page; default: report.html in the experiment's folder, of several in the current one."),
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="New folder for each picture as SVG, PNG and CSV.")] = None,
    trained: TrainedFolder = None,
) -> None:
    """One HTML page of experiments: what is best, what the grid taught, what was predicted, what it has cost."""
    from pipeline.reporting.page.page import write

    found = find_experiments(experiments, trained)
    print(write(found, out or (found[0].report_html if len(found) == 1 else Path.cwd() / "report.html"), figures))


def track(
    action: Annotated[str, typer.Argument(metavar="sync", help="Send what trackers have kept (tracking.kind).")],
    experiments: ExperimentNames = None,
    trained: TrainedFolder = None,
) -> None:
    """From a machine with a network: send the runs that trackers have written to files while trials were trained."""
    if action != "sync":
        raise UserError(f"track {action}: there is `carabid track sync`")
    from pipeline.stages import track as stage

    for experiment in find_experiments(experiments, trained):
        if experiments or experiment.tracking.is_dir():
            for line in stage.sync(experiment, os.environ):
                print(f"{experiment.path.name}: {line}")


def _show(form: str, table: Callable[[], None], texts: Mapping[str, Callable[[], str]]) -> None:
    """Print in the form that was asked for."""
    if form == "table":
        table()
    elif form in texts:
        print(texts[form]().removesuffix("\n"))
    else:
        *others, last = texts
        raise UserError(f"--format {form}: choose {', '.join(['table', *others])} or {last}")
