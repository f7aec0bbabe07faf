"""`carabid retry`: queue failed trials again, with more memory or time where that is what they lacked. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.amounts import scale_memory, scale_time
from pipeline.config.resources import MEMORY_KEYS, Job
from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir
from pipeline.errors import UserError
from pipeline.experiments.cluster import STAGES, Profile
from pipeline.experiments.reading import Experiment, Trial
from pipeline.launch.manifest.manifest import Manifest
from pipeline.launch.scheduler.queue import cancel_stuck
from pipeline.launch.submitting.submit import Request, one_at_a_time, queue_trials, wait_until_done
from pipeline.launch.watching.failures import KINDS
from pipeline.launch.watching.history import History, View
from pipeline.reporting.state import planned_trials, trial_state


@dataclass(frozen=True)
class Changes:
    """What a retry asks for in place of what the last submission asked for: `2x`, or an amount."""

    mem: str | None = None
    time: str | None = None
    pack: int | Literal["auto"] | None = None
    max_parallel: int | None = None
    profile: Profile | None = None


def retry(directory: ExperimentDir, only: Sequence[str], changes: Changes, request: Request) -> None:
    """Queue the failed trials of an experiment again (with `only`: those that failed in these ways), and no others.

    Each is what its last submission says, but for `changes` to the stage that failed. Raises UserError for a kind of
    failure that there is not.
    """
    if unknown := set(only) - set(KINDS):
        raise UserError(f"--only {','.join(sorted(unknown))}: the kinds of failure are: {', '.join(KINDS)}")
    queued = []
    with one_at_a_time(directory, request):
        for manifest, trials in _to_retry(directory, only, changes):
            terms, experiment = manifest.terms, Experiment(manifest.source, manifest.overrides, trials)
            request = replace(
                request,
                profile=changes.profile or terms.profile,
                pack=None if changes.pack == "auto" else changes.pack or terms.pack,
                max_parallel=changes.max_parallel or terms.max_parallel,
            )
            queued.append((experiment, queue_trials(experiment, trials, request)))
    for experiment, made in queued:
        if made and request.wait:
            wait_until_done(experiment, *made)


def _to_retry(directory: ExperimentDir, only: Sequence[str], changes: Changes) -> list[tuple[Manifest, list[Trial]]]:
    """What is to be queued again; says what is left alone, and if nothing remains."""
    cancel_stuck(directory)
    history = History(directory)
    views = [history.view(name, trial_state(directory.trial(name))) for name in planned_trials(directory)]
    failed = [view for view in views if view.failure and view.name in history.last]
    chosen = [view for view in failed if view.failure and (not only or view.failure.kind in only)]
    if not chosen:
        print(f"nothing to retry: {_counted(failed) or 'no trial has failed'}")
        return []
    if left := [view for view in failed if view not in chosen]:
        print(f"left alone: {_counted(left)}")
    return _groups(history, chosen, changes)


def _counted(views: Sequence[View]) -> str:
    kinds = [view.failure.kind for view in views if view.failure]
    return ", ".join(f"{kinds.count(kind)} × {kind}" for kind in KINDS if kind in kinds)


def _groups(history: History, views: Sequence[View], changes: Changes) -> list[tuple[Manifest, list[Trial]]]:
    """Trials that may be submitted together: of one submission, and asking for the same resources."""
    groups: dict[tuple[Path, str], tuple[Manifest, list[Trial]]] = {}
    off = [view for view in views if view.failure and view.failure.kind == "node"]
    nodes = sorted({node for view in off if view.failure for node in view.failure.nodes})
    if nodes:
        print(f"kept off {', '.join(nodes)}, which failed (--exclude): {len(off)} trials")
    for view in views:
        manifest, index = history.last[view.name]
        trial = manifest.trial(index)
        config = _without(trial.config, nodes) if view in off else trial.config
        trial = replace(trial, config=changed(config, view.stage, changes))
        key = manifest.path, trial.config.resources.model_dump_json()
        groups.setdefault(key, (manifest, []))[1].append(trial)
    return list(groups.values())


def changed(config: Config, stage: str, changes: Changes) -> Config:
    """The configuration with other amounts for one stage. Raises UserError for what is no amount."""
    job: Job = getattr(config.resources, stage)
    try:
        amounts = _memory(job, changes.mem) if changes.mem else {}
        amounts |= {"time": scale_time(job.time, changes.time)} if changes.time else {}
    except ValueError as error:
        raise UserError(f"retry: {error}, or a factor such as 2x") from None
    resources = config.resources.model_copy(update={stage: job.model_copy(update=amounts)})
    return config.model_copy(update={"resources": resources})


def _memory(job: Job, change: str) -> dict[str, str | None]:
    """A factor of what the job asks for, by whichever key it does; an amount is one of the node."""
    key = next((key for key in MEMORY_KEYS if getattr(job, key) is not None), "mem")
    if not change.endswith("x"):
        return {**dict.fromkeys(MEMORY_KEYS), "mem": scale_memory("0", change)}
    return {key: scale_memory(getattr(job, key) or "0", change)}


def _without(config: Config, nodes: Sequence[str]) -> Config:
    """The configuration whose stages all keep off these nodes, beside those that they keep off already."""
    resources = config.resources
    for stage in STAGES:
        job: Job = getattr(resources, stage)
        known = [job.exclude] if job.exclude else []
        added = [node for node in nodes if node not in (job.exclude or "").split(",")]
        resources = resources.model_copy(update={stage: job.model_copy(update={"exclude": ",".join(known + added) or None})})
    return config.model_copy(update={"resources": resources})
