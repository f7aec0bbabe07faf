"""Which trials are done, which wait in Slurm's queue, and why the others are not done. Loads no torch."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from pipeline.config.identity import flatten, science
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.errors import NotFetched, UserError
from pipeline.experiments.names import written
from pipeline.experiments.reading import Experiment, Trial, saved_science
from pipeline.experiments.trees import differences
from pipeline.launch.watching.forecast import forecast
from pipeline.launch.watching.history import History
from pipeline.launch.watching.preflight import preflight
from pipeline.reporting.results import REPLICATES
from pipeline.reporting.state import TrialState, trial_states

TO_DO = ("missing", "stale", "interrupted", "failed", "trained")
"""States of trials that a submission would queue."""
MAX_KEYS = 3
"""A trial that differs in more keys is another one, and no earlier form of this one."""
Older = tuple[TrialDir, dict[str, Any], float]
"""A trial of the experiment that the plan does not name: its folder, its science, and when that was written."""
MAX_COMPARED = 20_000
"""Older trials that are read, and pairs of trials that are compared: about a second. Where there are more, none is."""


def plan(experiment: Experiment) -> tuple[list[TrialState], list[TrialState]]:
    """The states of an experiment's trials that the disk shows, and those with what is known of jobs.

    A trial without results whose configuration has an earlier form with results is stale, with the keys that changed.
    """
    history = History(experiment.dir)
    _ = history.job_tasks  # before the disk: what ends in between is seen there
    states = _compare(experiment, trial_states(experiment))
    pairs = zip(experiment.trials, states, strict=True)
    return states, [history.view(trial.name, state, trial).state for trial, state in pairs]


def lines(experiment: Experiment, check: bool = True) -> Iterator[str]:
    """What `carabid plan` prints: each trial with its state and the reason, how many are in each state, and the forecast; with
    `check` also what is to be said of the tables of trials that are not done. Raises UserError at the end for one that cannot be
    trained on.
    """
    on_disk, states = plan(experiment)
    for trial, state in zip(experiment.trials, states, strict=True):
        yield f"{state.state:<12}{trial.name}{'  ' + state.reason if state.reason else ''}"
    counts = Counter(state.state for state in states).most_common()
    summary = ", ".join(f"{n} {state}" for state, n in counts)
    yield f"{len(states)} trial{'s' * (len(states) > 1)}: {summary} (in {experiment.dir.path})"
    if line := forecast(experiment, on_disk):
        yield line
    if not check:
        return
    try:
        yield from table_warnings(trial for trial, state in zip(experiment.trials, states, strict=True) if state.state in TO_DO)
    except NotFetched as error:  # as every data set is that somebody plans for the first time
        error.config = experiment.source
        yield f"{error}"


def table_warnings(trials: Iterable[Trial]) -> Iterator[str]:
    """A line for all that is to be said of the tables of these trials. Raises UserError for one that cannot be trained on."""
    try:
        found = preflight([trial.config for trial in trials])
    except UserError as error:
        raise UserError(f"{error}\nNo job could do this. For data that nodes alone see: --no-check") from error
    for warning in found:
        yield f"warning: {warning}"


def missing_trials(experiment: Experiment) -> list[Trial]:
    """Trials without current results, queued or not."""
    states = trial_states(experiment)
    return [trial for trial, state in zip(experiment.trials, states, strict=True) if state.state != "done"]


# ---------------------------------------------------------------- earlier forms of a trial
def _compare(experiment: Experiment, states: list[TrialState]) -> list[TrialState]:
    """The states, with the reason of missing trials that were done before some keys of their configuration changed."""
    missing = [i for i, state in enumerate(states) if state.state == "missing"]
    older = _older_trials(experiment) if missing else {}
    if not older:
        return states
    pairs = {i: older.get(_repetition_of(experiment.trials[i].config), []) for i in missing}
    if sum(map(len, pairs.values())) > MAX_COMPARED:
        return states
    near = ((i, candidates) for i, candidates in pairs.items() if candidates)
    found = {i: _change(science(experiment.trials[i].config), candidates) for i, candidates in near}
    return [found.get(i) or state for i, state in enumerate(states)]


def _older_trials(experiment: Experiment) -> dict[str, list[Older]]:
    """The trials in an experiment's folder that it does not name, by what tells repetitions apart."""
    directory = experiment.dir
    names = directory.folders() - {trial.name for trial in experiment.trials}
    found: dict[str, list[Older]] = {}
    for folder in map(directory.trial, sorted(names) if len(names) <= MAX_COMPARED else ()):
        with suppress(OSError):
            if values := saved_science(folder.config):
                found.setdefault(_repetition(values), []).append((folder, values, folder.config.stat().st_mtime))
    return found


def _repetition(values: dict[str, Any]) -> str:
    """Seed and fold: a trial of another seed is one more repetition, not an earlier form."""
    flat = flatten(values)
    return str([flat.get(key) for key in REPLICATES])


def _repetition_of(config: Config) -> str:
    return str([getattr(config.data.split, "fold", None) if key == "data.split.fold" else config.seed for key in REPLICATES])


def _change(values: dict[str, Any], candidates: list[Older]) -> TrialState | None:
    """What has changed since the nearest of older trials (of those equally near the latest); None if none is near."""
    pairs = [(differences(older, values), folder, time) for folder, older, time in candidates]
    near = [pair for pair in pairs if 0 < len(pair[0]) <= MAX_KEYS]
    if not near:
        return None
    keys, folder, _ = min(near, key=lambda pair: (len(pair[0]), -pair[2]))
    words = ", ".join(f"{key} {written(old)} → {written(new)}" for key, (old, new) in keys.items())
    return TrialState("stale" if folder.results.exists() else "missing", f"config changed: {words}")
