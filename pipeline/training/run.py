"""What every way of fitting is given, beside a model and samples, and what it tells: one protocol for all heads.

fit(model, train, validation, run) -> Fitted
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64

from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.errors import Interrupted, TakenOver
from pipeline.metrics.groups import Prediction
from pipeline.models.learner import Learner
from pipeline.models.novelty import Novelty
from pipeline.signals import StopFlag
from pipeline.streams import print_line
from pipeline.tasks import load_task
from pipeline.tasks.base import Task
from pipeline.training.checkpoint import Progress
from pipeline.training.processes import ALONE, Processes
from pipeline.training.samples import Samples, embeddings, encoded, feature_scale, target_scale


@dataclass(frozen=True)
class Choice:
    """By what the best epoch, penalty or classifier is known: a figure of the task, on validation."""

    task: Task[Any]
    metric: str
    targets: tuple[str, ...] = ()
    """Of numbers what they are called."""

    @classmethod
    def of(cls, config: Config) -> Choice:
        task = load_task(config.task)
        return cls(task, task.metric(config.select.metric), config.data.targets)

    @property
    def lower_is_better(self) -> bool:
        return self.task.figures[self.metric].lower_is_better

    def score(self, samples: Samples, said: Prediction) -> float | None:
        """The figure of what is said of all samples; None where it is not defined."""
        known = samples.groups, samples.counts, self.targets
        return self.task.score(self.metric, samples.truth, said.only(samples.n_targets), *known)

    def figures(self, samples: Samples, said: Prediction) -> dict[str, float]:
        """What is told of an epoch beside that."""
        return self.task.course(samples.truth, said.only(samples.n_targets), samples.groups, self.targets)


@dataclass(frozen=True)
class Stop:
    """What may end a run early: a signal to one of its processes, or another job that has taken the trial over."""

    flag: StopFlag
    still_mine: Callable[[], bool]
    processes: Processes = ALONE
    """Who stops together, at the same step."""

    def check_batch(self) -> None:
        """Raises Interrupted if the end of the epoch must not be waited for."""
        urgency, overdue = self.processes.most(self.flag.urgency, int(self.flag.overdue()))
        self.flag.hear(urgency)
        if overdue:
            raise Interrupted("told to stop, and the epoch is too long to end it; the last checkpoint stands, run it again")

    def check_epoch(self, trial: TrialDir) -> bool:
        """Whether the run is to stop here. Raises TakenOver if another job trains this trial now: two writers would undo each
        other's work."""
        asked, lost, urgency = self.processes.most(int(self.flag.asked()), int(not self.still_mine()), self.flag.urgency)
        if lost:
            raise TakenOver(f"{trial.path}: another job has taken this trial over while this one was suspended")
        self.flag.hear(urgency)
        return bool(asked)


@dataclass(frozen=True)
class Run:
    """One trial's training: where it is kept, what it is (for the checkpoint), where it runs, what may stop it."""

    trial: TrialDir
    identity: str
    machine: str
    config: Config
    """Its lengths in epochs (`Config.for_images`)."""
    stop: Stop
    after_checkpoint: Callable[[], None] = lambda: None
    """Called when a checkpoint has been written."""
    table: pd.DataFrame | None = None
    """The training images' rows of the data's table, which the scale of targets is taken from."""
    say: Callable[[str], None] = print_line
    """Told of each epoch, where nobody watches a bar."""
    wait: Callable[[], None] = lambda: None
    go_on: Callable[[float], None] = lambda share: None
    """Told when it waits for others that are trained at once with it, and when it goes on, with its share of seconds of that."""

    @property
    def processes(self) -> Processes:
        """Who trains it together."""
        return self.stop.processes

    @cached_property
    def choice(self) -> Choice:
        """By what the best epoch, penalty or classifier is known."""
        return Choice.of(self.config)


@dataclass(frozen=True)
class Fitted:
    """How a fit went: the model itself is left as `select` says."""

    progress: Progress
    """Of heads without epochs: how many candidates there were, and which is kept."""
    left_out: Float64[np.ndarray, "images classes"] | None = None
    """With `select.folds`: what was said of each image of `train`, then of `validation`, when it was left out."""


def set_scales(model: Learner, train: Samples, run: Run) -> None:
    """Set scales of targets and features and weights of classes from the training split, where the configuration asks for it."""
    if run.config.model.standardize_targets:
        assert run.table is not None
        outputs = run.config.model.outputs
        mean, scale = target_scale(run.table, run.config.data.targets, outputs.learns_log)
        if outputs.keeps_zero:  # or sums would hold no longer
            mean, scale = torch.zeros_like(mean), scale.square().mean().sqrt().expand_as(scale)
        model.target_mean.copy_(mean)
        model.target_scale.copy_(scale)
    if run.config.model.standardize_features:
        mean, scale = feature_scale(embeddings(model, train))
        model.feature_mean.copy_(mean)
        model.feature_scale.copy_(scale)
    model.loss.balance(train.targets.dense())
    if model.beside is not None:
        truth = train.targets.dense()
        model.beside.set_scales(truth[:, : train.n_targets], truth[:, train.n_targets :])


def set_novelty(model: Learner, train: Samples, validation: Samples) -> None:
    """Let a fitted model know how far what it has learnt from reaches, unless all that it can say is bounded."""
    if not model.loss.bounded:
        scale = feature_scale(encoded(model, train).numpy())
        model.novelty = Novelty.of(scale, encoded(model, validation), train.targets.dense()[:, : train.n_targets].cpu()).to(
            train.targets.device
        )
