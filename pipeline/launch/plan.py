"""Which trials are done, which wait in Slurm's queue, and which a submission would queue. Loads no torch."""

from __future__ import annotations

from pipeline.experiment import Experiment, Trial
from pipeline.launch.history import History
from pipeline.state import TrialState, trial_states


def plan(experiment: Experiment) -> list[TrialState]:
    """The state of each of an experiment's trials, with what is known of their jobs."""
    history = History(experiment.dir)
    pairs = zip(experiment.trials, trial_states(experiment), strict=True)
    return [history.view(trial.name, state, trial).state for trial, state in pairs]


def missing_trials(experiment: Experiment) -> list[Trial]:
    """Trials without current results, queued or not."""
    states = trial_states(experiment)
    return [trial for trial, state in zip(experiment.trials, states, strict=True) if state.state != "done"]
