"""One trial's configuration, wholly resolved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.config import classifiers  # noqa: F401  (as towers)
from pipeline.config.augment import Augment
from pipeline.config.backbone import Backbone, OpenClip
from pipeline.config.data import Data
from pipeline.config.evaluation import Calibrate, Evaluate, Extract, Features
from pipeline.config.fits import Need, check, needs_in
from pipeline.config.kinds import kind_of
from pipeline.config.loss import Loss, PlainRisk, Risk, SmoothL1, SquaredError
from pipeline.config.model import Model
from pipeline.config.pairs import PairLoss  # noqa: F401  (its kinds join the family `Loss` by being defined)
from pipeline.config.resources import Job, Launch, Paths, Resources
from pipeline.config.schedule import Plain, Schedule
from pipeline.config.section import LATER, NAME_PATTERN, Section, Seed
from pipeline.config.texts import Texts
from pipeline.config.towers import TextHead  # noqa: F401  (its kinds join the family `Head`)
from pipeline.config.tracking import Tracking
from pipeline.config.training import Optim, Select, Train
from pipeline.errors import UserError

# A task is a file; listing them imports none. Those that others are built on are none themselves.
STOCK = {"base", "numbers", "classes", "retrieval"}
TASKS = sorted({p.stem for p in (Path(__file__).parents[1] / "tasks").glob("[a-z]*.py")} - STOCK)
KNOWN_TASKS = f"the tasks are: {', '.join(TASKS)}, or a Python file of your own, whose name ends in .py"


class Config(Section):
    """One trial, wholly resolved."""

    task: str
    """The scientific problem: a module of pipeline/tasks, or a Python file of your own (relative to its YAML)."""
    experiment: str = Field(pattern=NAME_PATTERN)
    """Name of the experiment: its folder under trained/. Default: the task and the YAML's file name."""
    seed: Seed = 0
    """Seed of everything random in training."""
    data: Data
    texts: Annotated[Texts, LATER] = Texts()
    backbone: Annotated[Backbone, *kind_of(Backbone)] = OpenClip()
    features: Features = Features()
    extract: Annotated[Extract, LATER] = Extract()
    model: Model = Model()
    loss: Annotated[Loss, *kind_of(Loss)] = SquaredError()
    risk: Annotated[Risk, *kind_of(Risk)] = PlainRisk()
    """How the losses of a batch become the one that is minimised: methods of domain generalisation."""
    augment: Augment = Augment()
    optim: Optim = Optim()
    schedule: Annotated[Schedule, *kind_of(Schedule)] = Plain()
    train: Train = Train()
    select: Select = Select()
    calibrate: Calibrate = Calibrate()
    evaluate: Evaluate = Evaluate()
    tracking: Annotated[Tracking, LATER] = Tracking()
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: the GPU if there is one; a job that was given a GPU which torch cannot use stops."""
    resources: Resources = Resources()
    launch: Launch = Launch()
    paths: Paths = Paths()

    def job(self, stage: str) -> Job:
        """What a job of this stage asks Slurm for: training for each of its processes."""
        job: Job = getattr(self.resources, stage)
        return job.times(self.train.processes) if stage == "train" else job

    @property
    def is_solved(self) -> bool:
        """Whether what learns is solved on the CPU: a GPU that training asks for would idle."""
        return not self.model.head.descends and not self.model.tunes_towers

    @property
    def chooses(self) -> bool:
        """Whether an epoch, a penalty or the like is chosen by figures on validation."""
        return self.select.epoch == "best" and self.model.head.chooses

    def for_images(self, n: int) -> Self:
        """The same with what `train.samples` and `schedule.warmup_samples` say, if they are given, as epochs of `n` images, of
        which a head that compares those of a batch drops a last partial batch. A warm-up may then end within an epoch."""
        if self.model.head.embeds_pairs:
            n = max(n - n % self.train.batch_size, 1)
        train, schedule = self.train, self.schedule
        if train.samples is not None:
            train = train.model_copy(update={"epochs": math.ceil(train.samples / n)})
            if train.held_epochs >= train.epochs:
                raise UserError(
                    f"train.samples: {train.samples} of {n} images are {train.epochs} epochs, all of them train.head_first's "
                    f"{train.held_epochs}: set train.head_first.epochs lower, or train.samples higher"
                )
        if schedule.warmup_samples is not None:
            schedule = schedule.model_copy(update={"warmup": schedule.warmup_samples / n})
        return self.model_copy(update={"train": train, "schedule": schedule})

    def holding(self, blocks: dict[str, Any], needs: Sequence[Need]) -> Self:
        """The same, whose blocks fit, with others that are validated already, of which the rest has these needs (`needs_on`).
        Raises ValueError where they do not go together."""
        config = self.model_copy(update=blocks)
        own = (need for name, block in blocks.items() if isinstance(block, Section) for need in needs_in(name, block))
        config._check([*needs, *own])
        return config

    @field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        if task not in TASKS and not task.endswith(".py"):
            raise ValueError(f"there is no task {task!r}; {KNOWN_TASKS}")
        return task

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self._check()
        return self

    def _check(self, needs: Sequence[Need] | None = None) -> None:
        """What goes with what; with `needs` of these alone."""
        self._weigh_targets()
        self._weigh_poses()
        check(self, needs)

    def _weigh_targets(self) -> None:
        weights = self.loss.weights if isinstance(self.loss, SmoothL1) else ()
        if weights and (len(weights) != len(self.data.targets) or not any(weights)):
            raise ValueError(f"loss.weights: one of each of {', '.join(self.data.targets)} (data.targets), and not all 0, or []")

    def _weigh_poses(self) -> None:
        """Of draws none: they are random."""
        weights, names = self.evaluate.tta, ("plain", *self.backbone.views.poses)
        if weights and (len(weights) != len(names) or not any(weights)):
            raise ValueError(f"evaluate.tta: a weight of each of {', '.join(names)}, and not all 0, or [] for the first alone")
        if len(names) > 1 and not weights and not self.augment.draws_poses:
            plain = ", ".join(["1", *"0" * (len(names) - 1)])
            raise ValueError(
                f"backbone.views.poses: nothing is trained on or predicted from them: set evaluate.tta to a weight of each of "
                f"{', '.join(names)} ([{plain}]: the first alone), or augment.poses above 0"
            )
