"""The collecting stage: all results of one experiment in results.csv, ensembles of its trials over their seeds and folds, where
there are several methods, a comparison of them, and the page that shows all of it."""

from functools import cache

from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, experiment_dir
from pipeline.disk.secrets import complain
from pipeline.disk.writing import write_text
from pipeline.errors import UserError
from pipeline.progress import log
from pipeline.reporting import folds
from pipeline.reporting.comparison import Candidate, candidates, compare, to_json, to_markdown
from pipeline.reporting.page import page
from pipeline.reporting.results import Row, collect, to_csv
from pipeline.stages.ensemble import update_ensembles


def run(config: Config) -> None:
    """Rewrite the experiment's results.csv from its trials' folders; trials that are missing or failed are rows too.

    It is written before ensembles are made as well: of thousands of trials they take longer than all else.
    """
    experiment = experiment_dir(config)
    rows = _write(experiment)
    if update_ensembles(experiment):
        rows = _write(experiment)
    _compare(experiment)
    _report(experiment, rows)
    for warning in folds.warnings([experiment]):
        log(f"carabid: {warning}")
    trials = [row for row in rows if not row.members]
    done, ensembles = sum(row.state == "done" for row in trials), len(rows) - len(trials)
    more = f", and there are {ensembles} ensembles of them" if ensembles else ""
    print(f"{experiment.results_csv}: {done} of {len(trials)} trials have results{more}", flush=True)
    if experiment.report_html.exists():
        print(f"{experiment.report_html}: the page that shows them", flush=True)


def _compare(experiment: ExperimentDir) -> None:
    """Write the comparison of methods, if there are several with results; else there is none.

    It looks again after it has written, as `_write` does. Trials that cannot be compared are said on stderr, and are no error:
    they have their results without it.
    """
    seen: list[Candidate] = []
    say_once = cache(complain)
    while (found := candidates([experiment], say_once)) != seen and len({trial.method for trial in found}) > 1:
        try:
            comparison = compare(found)
        except UserError as error:
            log(f"carabid: no comparison of methods: {error}")
            break
        write_text(experiment.comparison_json, to_json(comparison) + "\n")
        write_text(experiment.comparison_md, to_markdown(comparison))
        seen = found
    if not seen:
        experiment.comparison_json.unlink(missing_ok=True)
        experiment.comparison_md.unlink(missing_ok=True)


def _report(experiment: ExperimentDir, rows: list[Row]) -> None:
    """Write the page of the experiment, and look again, as `_write` does. Trials have their results without it: what prevents it
    is said on stderr, and no page of earlier results is left; a file of somebody's own in its place is."""
    shown: list[Row] = []
    try:
        while rows != shown:
            page.write([experiment], experiment.report_html, rows=rows)
            shown, rows = rows, collect([experiment])
    except Exception as error:  # of whatever kind: a lab's own task may have charts of its own
        complain(f"no report: {error or type(error).__name__}")
        if not isinstance(error, UserError):
            experiment.report_html.unlink(missing_ok=True)


def _write(experiment: ExperimentDir) -> list[Row]:
    """Write results.csv; returns its rows.

    Several jobs may do this at once. Each looks again after it has written, so that the last file written has every
    result there was when it was written, whoever wrote it.
    """
    rows, written = collect([experiment]), ""
    while (text := to_csv(rows)) != written:
        write_text(experiment.results_csv, text)
        rows, written = collect([experiment]), text
    return rows
