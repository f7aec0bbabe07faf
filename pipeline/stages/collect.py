"""The collecting stage: all results of one experiment in results.csv."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.layout import experiment_dir, write_text
from pipeline.results import collect, to_csv


def run(config: Config) -> None:
    """Rewrite the experiment's results.csv from its trials' folders; trials that are missing or failed are rows too."""
    experiment = experiment_dir(config)
    rows = collect([experiment])
    write_text(experiment.results_csv, to_csv(rows))
    done = sum(row.state == "done" for row in rows)
    print(f"{experiment.results_csv}: {done} of {len(rows)} trials have results", flush=True)
