"""The collecting stage: all results of one experiment in results.csv."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.layout import experiment_dir, write_text
from pipeline.results import collect, to_csv


def run(config: Config) -> None:
    """Rewrite the experiment's results.csv from its trials' folders; trials that are missing or failed are rows too.

    Several jobs may do this at once. Each looks again after it has written, so that the last file written has every
    result there was when it was written, whoever wrote it.
    """
    experiment = experiment_dir(config)
    rows, written = collect([experiment]), ""
    while (text := to_csv(rows)) != written:
        write_text(experiment.results_csv, text)
        rows, written = collect([experiment]), text
    done = sum(row.state == "done" for row in rows)
    print(f"{experiment.results_csv}: {done} of {len(rows)} trials have results", flush=True)
