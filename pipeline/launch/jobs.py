"""What a job runs: one stage for one index of a manifest. The functions that submitit's pickles name.

A trial that fails leaves its reason in its folder, for `carabid status` and `results`; the next attempt removes it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import Interrupted, UserError, WorkError
from pipeline.experiment import Trial
from pipeline.launch.manifest import Manifest, load_manifest
from pipeline.launch.signals import StopFlag, requeue_if_out_of_time
from pipeline.layout import TrialDir, experiment_dir, write_json
from pipeline.provenance import now


def extract(manifest_path: str, index: int) -> None:
    """One task of the extraction's array."""
    from pipeline.stages import extract as stage

    manifest = load_manifest(Path(manifest_path))
    trial, task, n_tasks = manifest.extractions[index]
    _exit_on_error(lambda: stage.run(manifest.trials[trial].config, task, n_tasks))


def train(manifest_path: str, index: int) -> None:
    """Train trial `index`."""
    manifest = load_manifest(Path(manifest_path))
    _exit_on_error(lambda: train_trial(manifest.trials[index]))


def evaluate(manifest_path: str, index: int) -> None:
    """Evaluate trial `index`."""
    manifest = load_manifest(Path(manifest_path))
    _exit_on_error(lambda: evaluate_trial(manifest.trials[index]))


def collect(manifest_path: str, index: int = 0) -> None:
    """Bring the experiment's results together."""
    from pipeline.stages import collect as stage

    manifest: Manifest = load_manifest(Path(manifest_path))
    _exit_on_error(lambda: stage.run(manifest.trials[index].config))


def train_trial(trial: Trial) -> None:
    """Train one trial; if told to stop it writes a checkpoint first, and is queued again if its time was up."""
    from pipeline.stages import train as stage

    folder = trial_dir(trial)
    flag = StopFlag()
    with recorded_failure(folder, "train"), flag.installed():
        try:
            stage.run(trial.config, folder, flag)
        except Interrupted:
            requeue_if_out_of_time(flag)
            raise


def evaluate_trial(trial: Trial) -> None:
    """Evaluate one trial."""
    from pipeline.stages import evaluate as stage

    folder = trial_dir(trial)
    with recorded_failure(folder, "evaluate"):
        stage.run(trial.config, folder)


def trial_dir(trial: Trial) -> TrialDir:
    return experiment_dir(trial.config).trial(trial.name)


@contextmanager
def recorded_failure(trial: TrialDir, stage: str) -> Iterator[None]:
    """failure.json of an earlier attempt goes when the block starts, and comes if it raises.

    An evaluation that finds no model is no failure of its own: the reason that training left stays.
    """
    if stage == "train" or trial.trained.exists():
        trial.failure.unlink(missing_ok=True)
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:
        if not trial.failure.exists():
            write_json(trial.failure, _failure(stage, error))
        raise


def _failure(stage: str, error: Exception) -> dict[str, str | None]:
    for_people = isinstance(error, UserError | WorkError)
    return {
        "stage": stage,
        "message": str(error) if for_people else f"{type(error).__name__}: {error}",
        "traceback": None if for_people else "".join(traceback.format_exception(error)),
        "written": now(),
    }


def _exit_on_error(work: Callable[[], object]) -> None:
    """An error made for people ends the job with its message and status 1, without a traceback."""
    try:
        work()
    except (UserError, WorkError) as error:
        print(f"carabid: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error
