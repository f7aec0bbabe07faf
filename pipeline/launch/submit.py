"""`carabid submit`: find the trials without results, freeze them in a manifest, and queue or run the chain. Loads no torch."""

from __future__ import annotations

import time

from pipeline.config import Config
from pipeline.errors import UserError, WorkError
from pipeline.experiment import Experiment, Trial
from pipeline.features.store import is_complete
from pipeline.launch import slurm
from pipeline.launch.manifest import Manifest, make_manifest, preview_manifest
from pipeline.records import known_feature_key
from pipeline.sources import open_source
from pipeline.state import trial_states

POLL_SECONDS = 10.0


def submit(experiment: Experiment, cluster: str, *, dry_run: bool, wait: bool, workers: int, argv: list[str]) -> None:
    """Queue what is missing and print the job ids, or run it here; say so if there is nothing to do."""
    if cluster not in ("slurm", "local"):
        raise UserError(f"--cluster {cluster}: choose slurm or local")
    todo = missing_trials(experiment)
    if not todo:
        print(
            f"nothing to do: all {len(experiment.trials)} trials have results (`carabid results {experiment.dir.path.name}`)"
        )
        return
    if dry_run:
        show_scripts(experiment, todo)
        return
    for data in {trial.config.data for trial in todo}:
        open_source(data)  # a mistyped path is refused now, and not by jobs that have waited in the queue
    manifest = make_manifest(experiment, todo, argv)
    print(f"{len(todo)} of {len(experiment.trials)} trials, submission {manifest.path}", flush=True)
    if cluster == "local":
        _run_here(manifest, workers)
    else:
        _queue(manifest, wait)
        if wait and (left := missing_trials(experiment)):
            names = ", ".join(trial.name for trial in left[:5])
            where = f"see `carabid status` and {manifest.experiment.logs}"
            raise WorkError(f"{len(left)} of {len(todo)} trials have no results: {names}; {where}")


def missing_trials(experiment: Experiment) -> list[Trial]:
    """Trials without current results."""
    states = trial_states(experiment)
    return [trial for trial, state in zip(experiment.trials, states, strict=True) if state.state != "done"]


def show_scripts(experiment: Experiment, todo: list[Trial]) -> None:
    """Print every script that would be queued. Nothing is written."""
    manifest = preview_manifest(experiment, todo)
    for stage, script in slurm.scripts(manifest, stages_of(manifest)):
        print(f"──── {stage}\n{script}")
    names = ", ".join(trial.name for trial in todo[:5]) + (f" and {len(todo) - 5} more" if len(todo) > 5 else "")
    print(f"dry run: {len(todo)} of {len(experiment.trials)} trials would be queued: {names}")


def stages_of(manifest: Manifest) -> list[slurm.Stage]:
    """The chain that this submission needs: without extraction where all its features are there."""
    return slurm.chain(
        manifest, extract=not all(_has_features(manifest.trials[i].config) for i, _, _ in manifest.extractions)
    )


def _has_features(config: Config) -> bool:
    key = known_feature_key(config)
    return key is not None and is_complete(config, key)


def _run_here(manifest: Manifest, workers: int) -> None:
    from pipeline.launch import local

    if not local.run([manifest], workers):
        raise WorkError(f"some trials did not finish; their logs are in {manifest.experiment.logs}")


def _queue(manifest: Manifest, wait: bool) -> None:
    try:
        ids = slurm.submit(manifest, stages_of(manifest))
    except WorkError:  # nothing is queued: no trial is planned
        manifest.path.unlink()
        raise
    for stage, job in ids.items():
        print(f"{stage:<9} job {job}", flush=True)
    while wait and slurm.is_queued(ids["collect"]):
        time.sleep(POLL_SECONDS)
