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
BATCH = 100
"""What a server of mlflow takes at once: so many parameters, and metrics."""


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
    """What the server does not have yet: runs with parameters and tags, and of runs that went on since the later epochs."""
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
        sent = {run.data.tags.get("carabid"): run for run in server.search_runs([of])} if runs else {}
        for run in runs:
            n += 1
            there = sent.get(run.data.tags["carabid"])
            n_sent += _send_run(mine, server, run, there or _make_run(server, run, of))
    return f"mlflow: {n_sent} of {n} runs sent to {uri}"


def _make_run(server: Any, run: Any, experiment: str) -> Any:
    from mlflow.entities import Param

    tags = {"carabid": run.data.tags["carabid"]}
    made = server.create_run(experiment, run.info.start_time, tags=tags, run_name=run.info.run_name)
    parameters = [Param(name, value) for name, value in run.data.params.items()]
    for begin in range(0, len(parameters), BATCH):
        server.log_batch(made.info.run_id, params=parameters[begin : begin + BATCH])
    return made


def _send_run(mine: Any, server: Any, run: Any, there: Any) -> bool:
    """Whether there was an epoch to send."""
    known = {(each.key, each.step) for each in _metrics(server, there)}
    metrics = [each for each in _metrics(mine, run) if (each.key, each.step) not in known]
    for begin in range(0, len(metrics), BATCH):
        server.log_batch(there.info.run_id, metrics[begin : begin + BATCH])
    server.set_terminated(there.info.run_id, run.info.status, run.info.end_time)
    return bool(metrics)


def _metrics(client: Any, run: Any) -> list[Any]:
    return [each for name in run.data.metrics for each in client.get_metric_history(run.info.run_id, name)]


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
