"""The collecting stage: all results of one experiment in results.csv, and ensembles of its trials over their seeds."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.layout import ExperimentDir, experiment_dir, write_text
from pipeline.results import Row, collect, to_csv
from pipeline.stages.ensemble import update_ensembles


def run(config: Config) -> None:
    """Rewrite the experiment's results.csv from its trials' folders; trials that are missing or failed are rows too.

    It is written before ensembles are made as well: of thousands of trials they take longer than all else.
    """
    experiment = experiment_dir(config)
    rows = _write(experiment)
    if update_ensembles(experiment):
        rows = _write(experiment)
    trials = [row for row in rows if not row.members]
    done, ensembles = sum(row.state == "done" for row in trials), len(rows) - len(trials)
    more = f", and there are {ensembles} ensembles of them" if ensembles else ""
    print(f"{experiment.results_csv}: {done} of {len(trials)} trials have results{more}", flush=True)


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
