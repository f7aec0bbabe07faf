"""A trial's state, read from its folder alone. Loads no torch."""

from __future__ import annotations

import time
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipeline.config.data import Data
from pipeline.config.identity import config_hash, digest, image_features_of, images_of, plain
from pipeline.config.own import content_hash
from pipeline.config.trial import Config
from pipeline.data.dataset import known_signature
from pipeline.disk.layout import ExperimentDir, TrialDir, folder_name
from pipeline.disk.lease import is_gone, owner
from pipeline.disk.reading import Damaged, reading, told
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.experiments.reading import Experiment, load_config
from pipeline.features.hashes import Basis, basis_change, known_feature_key

State = Literal["done", "stale", "queued", "trained", "running", "interrupted", "failed", "missing"]
Reads = tuple[Data, Hashable]
"""What a trial's features are made from."""


@dataclass(frozen=True)
class TrialState:
    """What is known of a trial: `state`, and `reason` in words where there is something to say."""

    state: State
    reason: str = ""


AGAIN = "Delete it and submit the trial again."
NOT_RUN = TrialState("missing", "not run")


class Sources:
    """What data and features look like now, looked up once for all trials that share them."""

    def __init__(self) -> None:
        self._signatures: dict[str, str | None] = {}
        self._now: dict[Reads, Basis] = {}
        self._words: dict[tuple[Reads, Basis], str] = {}
        self._task = cache(content_hash)

    def changed(self, results: dict[str, Any], config: Config) -> str:
        """What has changed since these results, in words; empty if nothing has, or if it cannot be told from here."""
        if results.get("task_hash") != self._task(config.task):
            return f"the task's file {config.task} has changed since it was trained"
        reads = config.data, image_features_of(config)
        then = Basis(results.get("data_signature"), results.get("feature_key"))
        if (reads, then) not in self._words:
            if reads not in self._now:
                self._now[reads] = self._look(config)
            self._words[reads, then] = basis_change(config, then, self._now[reads])
        return self._words[reads, then]

    def _look(self, config: Config) -> Basis:
        images = digest(images_of(config.data))
        if images not in self._signatures:
            self._signatures[images] = known_signature(config.data)
        looks = self._signatures[images]
        # Data that are not on this machine tell nothing: their results stand.
        return Basis(looks, known_feature_key(config, looks) if looks else None)


def trial_states(experiment: Experiment) -> list[TrialState]:
    """The state of each of an experiment's trials, results of data that have changed since among them."""
    sources, directory = Sources(), experiment.dir
    there = directory.folders()
    return [trial_state(directory.trial(t.name), t.config, sources) if t.name in there else NOT_RUN for t in experiment.trials]


def trial_state(trial: TrialDir, config: Config | None = None, sources: Sources | None = None) -> TrialState:
    """State of a trial's folder; with `config`, results of another configuration or evaluation do not count.

    done: results.json is there; stale: so it is, but (with `sources`) the data have changed since; trained: a model is,
    results are not; running: a job renews its lease; interrupted: a checkpoint waits for the next attempt; failed: the
    last attempt ended with an error, or a file is damaged; missing: nothing yet. (`launch.plan` knows more: what is
    queued, and that a missing trial is stale, because one with results differs in few keys.)
    """
    try:
        return _state(trial, config, sources)
    except (Damaged, OSError) as error:
        return TrialState("failed", str(error))


def _state(trial: TrialDir, config: Config | None, sources: Sources | None) -> TrialState:
    with reading(trial.results, AGAIN):
        results = _read(trial.results, "evaluation", "config_hash")
        if results and _is_current(results, config):
            changed = sources.changed(results, config) if sources and config else ""
            return TrialState("stale", changed) if changed else TrialState("done")
    with reading(trial.failure, AGAIN):
        if failure := _read(trial.failure, "stage", "message"):
            after = {"extract": "; not trained", "train": "; not evaluated"}.get(failure["stage"], "")
            message = next(iter(str(failure["message"]).splitlines()), "no reason given")
            return TrialState("failed", f"{failure['stage']}: {message}{after}")
    if _is_held(trial):
        return TrialState("running")
    record = _read(trial.trained, "config_hash")
    if record and (config is None or record["config_hash"] == config_hash(config)):
        return TrialState("trained", "evaluation has not run" if not results else "evaluated in another way")
    if trial.checkpoint.is_dir():
        return TrialState("interrupted", "a checkpoint waits; running it again goes on from there")
    return NOT_RUN


def planned_trials(experiment: ExperimentDir) -> list[str]:
    """Names of all trials that any submission of this experiment named, or that have a folder, in order."""
    names: dict[str, None] = {}
    for path in experiment.submission_records():
        names |= dict.fromkeys(_planned(path))
    return list(names | dict.fromkeys(trial.path.name for trial in experiment.trials()))


def _planned(submission: Path) -> list[str]:
    """Names of a submission's trials; a record that is damaged is said on stderr, and must not hide all others."""
    with suppress(OSError), told(), reading(submission, "Trials that stand in it alone are not shown."):
        return [folder_name(trial["name"]) for trial in read_json(submission)["trials"]]
    return []


def trial_config(trial: TrialDir) -> Config | None:
    """The configuration in a trial's folder, or None if there is none that can be read."""
    with suppress(UserError):
        return load_config(trial.config) if trial.config.exists() else None
    return None


def _is_current(results: dict[str, Any], config: Config | None) -> bool:
    told = results["config_hash"], results["evaluation"]
    return config is None or told == (config_hash(config), plain(config.evaluate))


def _read(path: Path, *keys: str) -> dict[str, Any] | None:
    """A JSON object that has these keys; None if it is not there, or no longer: a job may be at work in the folder."""
    try:
        with reading(path, AGAIN):
            content = read_json(path)
            return {**content, **{key: content[key] for key in keys}}
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_held(trial: TrialDir) -> bool:
    """Whether somebody renewed the trial's lease lately. Only for display: waiting jobs trust no clock but their own."""
    found = owner(trial.lease)
    if found is None or is_gone(found):
        return False
    times = [0.0]
    with suppress(OSError):  # (whoever finishes a trial removes its lease)
        for path in trial.lease.iterdir():
            with suppress(OSError):
                times.append(path.stat().st_mtime)
    config = trial_config(trial)
    return time.time() - max(times) < (config.resources.lease_seconds if config else 120)
