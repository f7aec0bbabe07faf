"""`carabid submit`: find the trials without results, freeze them in a manifest, and queue or run the chain. Loads no torch."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace

from pipeline.config import Config
from pipeline.errors import UserError, WorkError
from pipeline.experiment import Experiment, Trial
from pipeline.launch import slurm
from pipeline.launch.manifest import Manifest, make_manifest
from pipeline.state import trial_state

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
    manifest = make_manifest(experiment, todo, argv)
    print(f"{len(todo)} of {len(experiment.trials)} trials, submission {manifest.path}", flush=True)
    if cluster == "local":
        _run_here(manifest, workers)
    else:
        _queue(manifest, wait)


def missing_trials(experiment: Experiment) -> list[Trial]:
    """Trials without current results."""
    return [t for t in experiment.trials if trial_state(experiment.dir.trial(t.name), t.config).state != "done"]


def show_scripts(experiment: Experiment, todo: list[Trial]) -> None:
    """Print every script that would be queued. Nothing is left behind."""
    with tempfile.TemporaryDirectory() as folder:
        trials = [replace(t, config=_with_trained_root(t, folder)) for t in todo]
        manifest = make_manifest(replace(experiment, trials=trials), trials, [])
        for stage, script in slurm.scripts(manifest, slurm.chain(manifest)):
            real = script.replace(str(manifest.experiment.path), str(experiment.dir.path))
            print(f"──── {stage}\n{real}")
    print(
        f"dry run: {len(todo)} of {len(experiment.trials)} trials would be queued: {', '.join(t.name for t in todo[:5])}",
        end="",
    )
    print(f" and {len(todo) - 5} more" if len(todo) > 5 else "")


def _with_trained_root(trial: Trial, folder: str) -> Config:
    paths = trial.config.paths.model_copy(update={"trained": folder})
    return trial.config.model_copy(update={"paths": paths})


def _run_here(manifest: Manifest, workers: int) -> None:
    from pipeline.launch import local

    if not local.run([manifest], workers):
        raise WorkError(f"some trials did not finish; their logs are in {manifest.experiment.logs}")


def _queue(manifest: Manifest, wait: bool) -> None:
    ids = slurm.submit(manifest, slurm.chain(manifest))
    for stage, job in ids.items():
        print(f"{stage:<9} job {job}", flush=True)
    while wait and slurm.is_queued(ids["collect"]):
        time.sleep(POLL_SECONDS)
