"""Which trials are done, which wait in Slurm's queue, and which a submission would queue. Loads no torch."""

from __future__ import annotations

import sys

from pipeline.errors import WorkError
from pipeline.experiment import Experiment, Trial
from pipeline.launch.queue import Queued, queued_trials
from pipeline.state import TrialState, trial_states


def plan(experiment: Experiment) -> list[TrialState]:
    """The state of each of an experiment's trials; those that a submission has queued are queued, with their job."""
    queued = look_at_queue(experiment)
    pairs = zip(experiment.trials, trial_states(experiment), strict=True)
    return [_with_queue(trial, state, queued.get(trial.name)) for trial, state in pairs]


def look_at_queue(experiment: Experiment) -> dict[str, Queued]:
    """What Slurm has queued of an experiment, to be shown: nothing, and a word on stderr, where it does not answer."""
    try:
        return queued_trials(experiment.dir)
    except WorkError as error:
        print(f"carabid: what is queued is not known: {str(error).splitlines()[0]}", file=sys.stderr)
        return {}


def _with_queue(trial: Trial, state: TrialState, queued: Queued | None) -> TrialState:
    if queued is None or not queued.will_do(trial) or state.state in ("done", "running"):
        return state
    return TrialState("queued", f"{queued.stage}: job {queued.job}, {queued.state}")


def missing_trials(experiment: Experiment) -> list[Trial]:
    """Trials without current results, queued or not."""
    states = trial_states(experiment)
    return [trial for trial, state in zip(experiment.trials, states, strict=True) if state.state != "done"]
