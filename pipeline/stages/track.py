"""Sending what trackers have kept of an experiment's trials, from a machine that has a network: `carabid track sync`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.disk.layout import ExperimentDir
from pipeline.errors import UserError, WorkError

Environ = Mapping[str, str]


def sync(experiment: ExperimentDir, environ: Environ) -> list[str]:
    """Send what is there; a line on each tracker. Raises UserError where there is nothing, or nowhere to send it to, and
    WorkError where sending fails."""
    there = {name: experiment.tracking / folder for name, (folder, _) in SENDERS.items()}
    found = {name: folder for name, folder in there.items() if folder.is_dir()}
    if not found:
        raise UserError(
            f"{experiment.path.name}: there are no tracker's files in {experiment.tracking}: train with tracking.kind"
        )
    return [SENDERS[name][1](folder, environ) for name, folder in found.items()]


def _tensorboard(folder: Path, environ: Environ) -> str:
    return f"tensorboard: nothing is sent; to look at it: tensorboard --logdir {folder}"


def _wandb(folder: Path, environ: Environ) -> str:
    """By its own command; a run that was sent before is left out by it."""
    runs = sorted(folder.glob("offline-run-*"))
    command = [sys.executable, "-m", "wandb", "sync", *map(str, runs)]
    ended = subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:] or ["it says nothing"]
        raise WorkError(f"wandb sync failed: {last[0]} (`wandb login` first; this needs a network)")
    return f"wandb: {len(runs)} runs sent"


def _mlflow(folder: Path, environ: Environ) -> str:
    """Runs that the server does not have yet, with parameters, tags and every epoch."""
    if not (uri := environ.get("MLFLOW_TRACKING_URI")):
        raise UserError("mlflow: set MLFLOW_TRACKING_URI to the server that runs are sent to")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    mine, server = MlflowClient(folder.as_uri()), MlflowClient(uri)
    n_sent = n = 0
    for experiment in mine.search_experiments():
        runs = [run for run in mine.search_runs([experiment.experiment_id]) if "carabid" in run.data.tags]
        known = server.get_experiment_by_name(experiment.name) if runs else None
        of = known.experiment_id if known else server.create_experiment(experiment.name) if runs else ""
        sent = {run.data.tags.get("carabid") for run in server.search_runs([of])} if runs else set()
        for run in runs:
            n += 1
            if run.data.tags["carabid"] not in sent:
                _send_run(mine, server, run, of)
                n_sent += 1
    return f"mlflow: {n_sent} of {n} runs sent to {uri}"


def _send_run(mine: Any, server: Any, run: Any, experiment: str) -> None:
    made = server.create_run(
        experiment, run.info.start_time, tags={"carabid": run.data.tags["carabid"]}, run_name=run.info.run_name
    )
    metrics = [each for name in run.data.metrics for each in mine.get_metric_history(run.info.run_id, name)]
    from mlflow.entities import Param

    parameters = [Param(name, value) for name, value in run.data.params.items()]
    for begin in range(0, max(len(metrics), len(parameters)), 100):
        server.log_batch(made.info.run_id, metrics[begin : begin + 100], parameters[begin : begin + 100])
    server.set_terminated(made.info.run_id, run.info.status, run.info.end_time)


def _trackio(folder: Path, environ: Environ) -> str:
    """To a Space of the Hub."""
    if not (space := environ.get("TRACKIO_SPACE_ID")):
        raise UserError("trackio: set TRACKIO_SPACE_ID to the Space (owner/name) that runs are sent to")
    os.environ["TRACKIO_DIR"] = str(folder)
    import trackio

    projects = sorted(path.stem for path in folder.glob("*.db"))
    for project in projects:
        trackio.sync(project=project, space_id=space)
    return f"trackio: {', '.join(projects)} sent to {space}"


SENDERS: dict[str, tuple[str, Callable[[Path, Environ], str]]] = {
    "tensorboard": ("tensorboard", _tensorboard),
    "wandb": ("wandb", _wandb),
    "mlflow": ("mlruns", _mlflow),
    "trackio": ("trackio", _trackio),
}
"""Tracker → its folder, and what sends it."""
