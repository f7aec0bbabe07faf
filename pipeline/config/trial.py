"""One trial's configuration, wholly resolved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.augment import Augment
from pipeline.config.backbone import Backbone, OpenClip
from pipeline.config.data import Data
from pipeline.config.encoder import Encoder
from pipeline.config.evaluation import Calibrate, Evaluate, Features
from pipeline.config.head import CLASSIFIER_KINDS
from pipeline.config.kinds import kind_of
from pipeline.config.loss import CrossEntropy, Loss, PlainLoss, PlainRisk, Risk
from pipeline.config.model import Model
from pipeline.config.resources import Paths, Resources
from pipeline.config.section import NAME_PATTERN, Section, Seed
from pipeline.config.training import Optim, Schedule, Select, Train

# A task is a file; listing them imports none.
TASKS = sorted(p.stem for p in (Path(__file__).parents[1] / "tasks").glob("[a-z]*.py"))


class Config(Section):
    """One trial, wholly resolved."""

    task: str = "beetles"
    """The scientific problem: a module of pipeline/tasks."""
    experiment: str = Field(pattern=NAME_PATTERN)
    """Name of the experiment: its folder under trained/. Default: the task and the YAML's file name."""
    seed: Seed = 0
    """Seed of everything random in training."""
    data: Data = Data()
    backbone: Annotated[Backbone, *kind_of(Backbone)] = OpenClip()
    features: Features = Features()
    model: Model = Model()
    loss: Loss = PlainLoss()
    risk: Risk = PlainRisk()
    """How the losses of a batch become the one that is minimised: methods of domain generalisation."""
    augment: Augment = Augment()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    train: Train = Train()
    select: Select = Select()
    calibrate: Calibrate = Calibrate()
    evaluate: Evaluate = Evaluate()
    device: Literal["auto", "cuda", "cpu"] = "auto"
    """auto: the GPU if there is one; a job that was given a GPU which torch cannot use stops."""
    resources: Resources = Resources()
    paths: Paths = Paths()

    @field_validator("task")
    @classmethod
    def _task_exists(cls, task: str) -> str:
        if task not in TASKS:
            raise ValueError(f"there is no task {task!r}; the tasks are: {', '.join(TASKS)}")
        return task

    @model_validator(mode="before")
    @classmethod
    def _classes_are_chosen_by_auc(cls, values: Any) -> Any:
        data, select = (values.get(name, {}) for name in ("data", "select")) if isinstance(values, dict) else ({}, {})
        label = data.get("label") if isinstance(data, dict) else getattr(data, "label", None)
        return values | {"select": {"metric": "roc_auc", **select}} if label and isinstance(select, dict) else values

    @model_validator(mode="after")
    def _classes_and_numbers_have_their_own(self) -> Config:
        classes = self.data.label is not None
        what = "classes (data.label)" if classes else "numbers (data.targets)"
        if classes != (self.loss.kind == "cross_entropy"):
            other = "set loss.kind cross_entropy" if classes else "loss.kind cross_entropy needs data.label"
            raise ValueError(f"loss.kind {self.loss.kind} does not fit {what}: {other}")
        if classes == (self.select.metric in ("r2", "mae")):
            fitting = "roc_auc, average_precision, balanced_accuracy or log_loss" if classes else "r2 or mae"
            raise ValueError(f"select.metric {self.select.metric} does not fit {what}: choose {fitting}")
        if classes != (self.model.head.kind in CLASSIFIER_KINDS) and self.model.head.kind != "mlp":
            fitting = f"mlp, {', '.join(CLASSIFIER_KINDS)}" if classes else "mlp, ridge, climatology or boosting"
            raise ValueError(f"model.head.kind {self.model.head.kind} does not fit {what}: choose {fitting}")
        if classes and self.calibrate.kind != "scale":
            raise ValueError("calibrate is of numbers: a class' probability (data.label) is not calibrated")
        if self.select.folds is not None and self.evaluate.split == "validation":
            raise ValueError(
                "select.folds fits validation images too: evaluate.split validation would be of what was learnt"
            )
        if classes and self.model.standardize_targets:
            raise ValueError("model.standardize_targets scales numbers: classes (data.label) have no scale")
        return self

    @model_validator(mode="after")
    def _auxiliary_labels_have_columns(self) -> Config:
        if self.loss.kind == "cross_entropy" and self.loss.auxiliary and not self.data.columns.auxiliary:
            raise ValueError("loss.auxiliary needs data.columns.auxiliary: name the columns of these labels")
        return self

    @model_validator(mode="after")
    def _only_perceptrons_have_another_loss(self) -> Config:
        head, usual_loss = self.model.head.kind, "mse" if self.data.label is None else "cross_entropy"
        others = {"loss.kind": self.loss.kind, "risk.kind": self.risk.kind, "train.sample": self.train.sample}
        for key, usual in zip(others, (usual_loss, "mean", "images"), strict=True):
            if head != "mlp" and others[key] != usual:
                raise ValueError(f"model.head.kind {head} has no use for {key} {others[key]}: it needs head.kind mlp")
        if head != "mlp" and self.augment != Augment():
            raise ValueError(f"model.head.kind {head} has no use for augment: it needs head.kind mlp")
        if head != "mlp" and self.loss.kind == "cross_entropy" and self.loss != CrossEntropy(kind="cross_entropy"):
            raise ValueError(f"model.head.kind {head} has no use for options of loss: they need head.kind mlp")
        return self

    @model_validator(mode="after")
    def _classifiers_have_what_they_need(self) -> Config:
        if self.select.folds is not None and self.model.head.kind not in CLASSIFIER_KINDS:
            raise ValueError(
                f"select.folds fits again and again, and model.head.kind {self.model.head.kind} is not made for that: it needs "
                f"one of {', '.join(CLASSIFIER_KINDS)}"
            )
        return self

    @model_validator(mode="after")
    def _epochs_are_chosen_where_it_matters(self) -> Config:
        if self.train.patience is not None and self.select.epoch == "last":
            raise ValueError("train.patience waits for a better epoch: it needs select.epoch best")
        if self.model.head.kind != "mlp" and self.select.epoch == "last":
            raise ValueError(f"model.head.kind {self.model.head.kind} has no epochs: it needs select.epoch best")
        return self

    @model_validator(mode="after")
    def _sets_fit(self) -> Config:
        if self.model.pool == "attention" and self.train.sample != "groups":
            raise ValueError("model.pool attention learns from sets of images: set train.sample=groups")
        if self.model.pool == "precision" and self.loss.kind in ("mse", "cross_entropy"):
            raise ValueError(
                f"model.pool precision needs a variance of each image, which loss.kind {self.loss.kind} does not learn"
            )
        if self.augment.mixup_alpha and self.train.sample == "groups":
            raise ValueError("augment.mixup_alpha mixes images: it needs train.sample images")
        return self

    @model_validator(mode="after")
    def _risk_has_what_it_acts_on(self) -> Config:
        if self.risk.kind != "mean" and self.augment.mixup_alpha:
            raise ValueError(
                f"risk.kind {self.risk.kind} tells domains apart, and augment.mixup_alpha mixes them: set it to 0"
            )
        model = self.model
        learns = model.encoder.kind != "frozen" or model.domain_embedding or model.species_embedding
        if self.risk.kind == "coral" and not learns and model.head.kind == "mlp" and not model.head.hidden:
            raise ValueError(
                "risk.kind coral acts on the last hidden layer, and there is none: name one in model.head.hidden"
            )
        return self

    @model_validator(mode="after")
    def _names_have_columns(self) -> Config:
        columns = self.data.columns
        if self.model.species_embedding and columns.species is None:
            raise ValueError("model.species_embedding needs data.columns.species: name the column that holds it")
        if self.risk.kind != "mean" and columns.domain is None:
            raise ValueError(f"risk.kind {self.risk.kind} needs data.columns.domain: name the column that holds it")
        return self

    @model_validator(mode="after")
    def _encoder_fits_backbone(self) -> Config:
        backbone, encoder = self.backbone, self.model.encoder
        if encoder.reads not in backbone.offers:
            others = [kind for kind, other in Backbone.kinds.items() if encoder.reads in other.offers]
            fitting = [kind for kind, other in Encoder.kinds.items() if other.reads in backbone.offers]
            raise ValueError(
                f"backbone.kind {backbone.kind} {backbone.lacks}: model.encoder.kind {encoder.kind} needs a "
                f"network such as {' or '.join(others)}; or use {' or '.join(fitting)}"
            )
        return self

    @model_validator(mode="after")
    def _images_are_augmented_where_they_are_read(self) -> Config:
        if self.augment.images.is_on() and self.model.encoder.kind != "end_to_end":
            raise ValueError(
                "augment.images changes images, and model.encoder.kind "
                f"{self.model.encoder.kind} reads cached features: it needs end_to_end"
            )
        return self
