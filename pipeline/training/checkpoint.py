"""Resume state of a training run: what it takes to end with the same bits as a run that was never disturbed.

Weights, optimiser, the best epoch so far, and which run it belongs to. No random state: every epoch's streams are derived
from (seed, epoch). One file, replaced as a whole, read with `weights_only=True`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import atomic_path, writing
from pipeline.models.learner import load_trained_state, trained_state

if TYPE_CHECKING:
    from pipeline.training.run import Run


@dataclass
class Progress:
    """How far a run is: `epoch` epochs are done; `best_state` are the trained tensors after `best_epoch` (from 0)."""

    epoch: int = 0
    best_epoch: int = -1
    best_metric: float | None = None
    best_state: dict[str, Tensor] = field(default_factory=dict)
    domain_log_weights: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Logarithms of group DRO's weights [n_domains]; empty before the first epoch."""
    validation_losses: list[float] = field(default_factory=list)
    """Of each epoch that is done."""
    average: dict[str, Tensor] = field(default_factory=dict)
    """The moving average of trained tensors; empty where there is none."""
    averaged: int = 0
    """Steps that it is of."""
    seconds: float = 0.0
    restarts: int = 0
    machines: list[str] = field(default_factory=list)
    """Device and threads of each part of the run: the same bits are promised on the same ones only."""

    def keep_best(self, epoch: int, metric: float | None, *, lower: bool, state: Mapping[str, Tensor]) -> None:
        """Remember `state` if it is the first or better than the best; a negative R² is kept like any other."""
        sign, best = -1 if lower else 1, self.best_metric
        if self.best_epoch < 0 or (metric is not None and (best is None or sign * metric > sign * best)):
            self.keep(epoch, metric, state)

    def keep(self, epoch: int, metric: float | None, state: Mapping[str, Tensor]) -> None:
        """Remember `state`."""
        self.best_epoch, self.best_metric = epoch, metric
        self.best_state = {name: tensor.clone() for name, tensor in state.items()}


def save_checkpoint(
    trial: TrialDir, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Replace the checkpoint. `identity` names what must not change on resume: config, features, table."""
    state = {"identity": identity, "model": trained_state(model), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
    with atomic_path(trial.resume_state) as temporary, writing(trial.resume_state):
        torch.save(state, temporary)


def load_checkpoint(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's state back and say how far it was; without one, or with that of another `identity`, start at epoch 0.

    On another device or with other threads it goes on too, says that the last bits may differ, and keeps a record.
    """
    path, machine = run.trial.resume_state, run.machine
    state: dict[str, Any] | None = None
    if path.exists():
        try:
            state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
        except Exception as error:  # torch raises many kinds for a damaged file; each means: not usable
            _put_aside(run, f"it cannot be read ({type(error).__name__}: {error})")
    if state is not None and state["identity"] != run.identity:
        _put_aside(run, "it is of another configuration, other features or other targets")
        state = None
    if state is None:
        return Progress(machines=[machine])
    load_trained_state(model, state["model"])
    optimizer.load_state_dict(state["optimizer"])
    progress = Progress(**state["progress"])
    progress.restarts += 1
    if machine != progress.machines[-1]:
        run.say(f"resuming on {machine} what ran on {progress.machines[-1]}: the last bits may differ from an undisturbed run")
        progress.machines.append(machine)
    return progress


def remove_checkpoint(trial: TrialDir) -> None:
    """Training is done: resume state is no longer needed. (Another job that waited for the trial may remove it too.)"""
    shutil.rmtree(trial.checkpoint, ignore_errors=True)


def _put_aside(run: Run, why: str) -> None:
    """Keep a checkpoint that is of no use now until training is done; nothing is lost by mistake."""
    path = run.trial.resume_state
    aside = path.with_name(f"unused-{os.getpid()}.pt")
    path.rename(aside)
    run.say(f"{path}: {why}; kept as {aside.name}, starting again from epoch 0")
