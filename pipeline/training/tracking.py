"""The course of a training in experiment trackers (`config/tracking.py`), through accelerate's. What is told is what a line of
metrics.jsonl has; a training that goes on from a checkpoint goes on in the same run."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.config.identity import digest, flatten, science
from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.lease import Lease
from pipeline.errors import UserError

Tell = Callable[[Mapping[str, Any], int], None]
"""Tell a line of metrics.jsonl and its epoch."""
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}


@contextmanager
def tracked(config: Config, trial: TrialDir) -> Iterator[Tell]:
    """What the block is given tells each epoch to the tracker that the configuration names. Raises UserError where that is not
    installed."""
    kind = config.tracking.kind
    if kind == "none":
        yield lambda values, epoch: None
        return
    if find_spec(PACKAGES[kind]) is None:
        raise UserError(f'tracking.kind {kind}: the package {PACKAGES[kind]} is not installed: pip install "carabid[tracking]"')
    tracker = _open(config, trial)
    tracker.store_init_configuration({key: _plain(value) for key, value in flatten(science(config)).items()})
    try:
        yield lambda values, epoch: tracker.log(_numbers(values), step=epoch)
    finally:
        tracker.finish()


def folder_of(trial: TrialDir) -> Path:
    """Where trackers keep the files of an experiment's trials."""
    return ExperimentDir(trial.path.parent).tracking


def run_id(trial: TrialDir) -> str:
    """Of a trial's run: the same when its training goes on."""
    return digest([trial.path.parent.name, trial.path.name])[:16]


def _open(config: Config, trial: TrialDir) -> Any:
    from accelerate.state import PartialState

    PartialState()  # accelerate's trackers ask it which process is the main one
    logging.getLogger("accelerate.tracking").setLevel(logging.ERROR)
    folder = folder_of(trial)
    folder.mkdir(parents=True, exist_ok=True)
    tracker = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}[config.tracking.kind]
    made = tracker(config, trial, folder)
    made.start()
    return made


def _tensorboard(config: Config, trial: TrialDir, folder: Path) -> Any:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker(trial.path.name, folder / "tensorboard")


def _wandb(config: Config, trial: TrialDir, folder: Path) -> Any:
    from accelerate.tracking import WandBTracker

    of, mode = config.tracking, "online" if config.tracking.online else "offline"
    options = {"name": trial.path.name, "group": config.experiment, "id": run_id(trial), "resume": "allow", "mode": mode}
    return WandBTracker(of.project, dir=str(folder), **options)


def _mlflow(config: Config, trial: TrialDir, folder: Path) -> Any:
    """Into a file store: one of each experiment, which its first trial makes."""
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow
    from accelerate.tracking import MLflowTracker

    mlflow.set_tracking_uri(uri := (folder / "mlruns").as_uri())
    client = mlflow.MlflowClient(uri)
    with Lease(folder / "mlflow.lease", config.resources.lease_seconds).hold(lambda: False):
        known = client.get_experiment_by_name(config.experiment)
        experiment = known.experiment_id if known else client.create_experiment(config.experiment)
        named = f"tags.carabid = '{run_id(trial)}'"
        before = client.search_runs([experiment], named)
        run = before[0] if before else client.create_run(experiment, tags={"carabid": run_id(trial)}, run_name=trial.path.name)
    return MLflowTracker(config.experiment, run_id=run.info.run_id, run_name=trial.path.name)


def _trackio(config: Config, trial: TrialDir, folder: Path) -> Any:
    os.environ["TRACKIO_DIR"] = str(folder / "trackio")  # read when the package is imported
    from accelerate.tracking import TrackioTracker

    return TrackioTracker(config.tracking.project, name=trial.path.name, group=config.experiment, resume="allow", embed=False)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """With names, which hold those of targets, as mlflow takes them, which is the strictest."""
    named = {re.sub(r"[^\w/.\- :]", "_", name): value for name, value in values.items()}
    return {name: value for name, value in named.items() if isinstance(value, int | float)}


def _plain(value: Any) -> Any:
    """A value as trackers keep it: lists as text."""
    return value if isinstance(value, bool | int | float | str) else str(value)
