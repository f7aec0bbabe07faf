"""What a job runs: one stage for one index of a manifest. The functions that submitit's pickles name. Loads no torch."""

from functools import partial
from pathlib import Path

from pipeline.launch.jobs import pack
from pipeline.launch.jobs.extraction import make_features
from pipeline.launch.jobs.trials import evaluate_trial, evaluate_trials, exit_on_error, log_attempt, out_of_time, train_index
from pipeline.launch.manifest.manifest import Manifest, load_manifest
from pipeline.signals import at_walltime
from pipeline.stages.shared import Shared


def extract(manifest_path: str, job_task: int, shared: Shared | None = None) -> None:
    """One job task of the extraction's array: its part of the shards of one feature store."""
    from pipeline.stages import extract as stage

    manifest = manifest_at(manifest_path, shared)
    features, part, n_parts = manifest.extractions[job_task]
    sharing = manifest.reading(features)
    log_attempt("extract", f"features of {len(sharing)} trials, part {part + 1} of {n_parts}")
    exit_on_error(lambda: make_features(sharing, partial(stage.run, sharing[0].config, part, n_parts)))


def train(manifest_path: str, job_task: int, shared: Shared | None = None) -> None:
    """One job task of the training's array: one trial, or several one after another."""
    manifest = manifest_at(manifest_path, shared)
    indices = manifest.job_tasks[job_task]
    if len(indices) > 1:
        log_attempt("train", f"{len(indices)} trials one after another")
        exit_on_error(lambda: pack.train(manifest, indices))
    else:
        train_index(manifest, indices[0], shared)


def evaluate(manifest_path: str, job_task: int, shared: Shared | None = None) -> None:
    """One job task of the evaluation's array: the trials of the same one of the training's, one after another."""
    manifest, shared = manifest_at(manifest_path, shared), shared or Shared()
    trials = [manifest.trial(index) for index in manifest.job_tasks[job_task]]
    log_attempt("evaluate", trials[0].name if len(trials) == 1 else f"{len(trials)} trials")
    work = partial(evaluate_trials, trials, shared) if len(trials) > 1 else partial(evaluate_trial, trials[0], shared)
    with at_walltime(out_of_time):
        exit_on_error(work)


def collect(manifest_path: str, job_task: int = 0) -> None:
    """Bring the experiment's results together."""
    from pipeline.stages import collect as stage

    manifest = manifest_at(manifest_path)
    log_attempt("collect", manifest.experiment.path.name)
    with at_walltime(out_of_time):
        exit_on_error(lambda: stage.run(manifest.trial(0).config))


def manifest_at(path: str, shared: Shared | None = None) -> Manifest:
    """A submission's manifest, which a process that does several of its job tasks reads once."""
    manifest: Manifest = (shared or Shared()).get("manifest", path, partial(load_manifest, Path(path)))
    return manifest
