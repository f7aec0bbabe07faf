"""Resume state of a training run: what it takes to end with the same bits as a run that was never disturbed.

Weights, optimiser, the best epoch so far, and which run it belongs to. No random state: every epoch's streams are derived
from (seed, epoch). One file, replaced as a whole, read with `weights_only=True`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.layout import TrialDir, atomic_path
from pipeline.models.regressor import Regressor, load_trained_state, trained_state


@dataclass
class Progress:
    """How far a run is: `epoch` epochs are done; `best_state` are the trained tensors after `best_epoch` (from 0)."""

    epoch: int = 0
    best_epoch: int = -1
    best_metric: float | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    restarts: int = 0


def save_checkpoint(
    trial: TrialDir, run: str, model: Regressor, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Replace the checkpoint. `run` names what it belongs to: config, features and code that must not change on resume."""
    state = {"run": run, "model": trained_state(model), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
    with atomic_path(_path(trial)) as temporary:
        torch.save(state, temporary)


def load_checkpoint(trial: TrialDir, run: str, model: Regressor, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's state back and say how far it was; without one, or with another run's, start at epoch 0."""
    state = _read(_path(trial), next(model.parameters()).device)
    if state is None or state["run"] != run:
        if state is not None:
            print(
                f"{trial.checkpoint}: the checkpoint is of another configuration or of other features: starting again"
            )
        return Progress()
    load_trained_state(model, state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    progress.restarts += 1
    return progress


def remove_checkpoint(trial: TrialDir) -> None:
    """Training is done: resume state is no longer needed, nor are leavings of writes that were killed."""
    if trial.checkpoint.is_dir():
        for path in trial.checkpoint.iterdir():
            path.unlink()
        trial.checkpoint.rmdir()


def _path(trial: TrialDir) -> Path:
    return trial.checkpoint / "state.pt"


def _read(path: Path, device: torch.device) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file; each means: not usable
        damaged = path.with_name(f"damaged-{os.getpid()}.pt")
        path.rename(damaged)
        print(
            f"{path} cannot be read ({type(error).__name__}: {error}); kept as {damaged.name}, starting again from epoch 0"
        )
        return None
    return state
