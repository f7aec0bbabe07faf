"""What the demo promises of its generated beetles: a signal, a domain shift that hurts, and nothing where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import demo
from pipeline.experiment import load_experiment
from pipeline.launch import jobs
from pipeline.layout import PROJECT, experiment_dir, read_json
from pipeline.stages import extract


def test_the_frozen_head_learns_loses_out_of_domain_and_learns_nothing_from_permuted_targets(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.prepare(root)
    wanted = [(name, overrides) for name, overrides in demo.experiments(root) if name == "frozen"]
    summaries = {}
    for name, overrides in wanted:
        experiment = load_experiment(PROJECT / "configs" / "beetles" / f"{name}.yaml", overrides)
        extract.ensure(experiment.config)
        trial = experiment.trials[0]
        jobs.train_trials([trial])
        jobs.evaluate_trials([trial])
        results = read_json(experiment_dir(trial.config).trial(trial.name).results)
        summaries[trial.config.data.permute_targets] = results["summary"]
    learned, control = summaries[False], summaries[True]
    assert 0.3 <= learned["in_domain"]["r2"] <= 0.8
    assert learned["out_of_domain"]["r2"] <= learned["in_domain"]["r2"] - 0.15
    assert control["in_domain"]["r2"] <= 0.05
    assert learned["in_domain"]["r2"] > learned["mean_predictor"]["in_domain"]["r2"]
