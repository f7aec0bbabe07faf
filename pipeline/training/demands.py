"""What a configuration asks of its table, beside what `data/table.py` checks of every one: checked on a login node before
anything is queued, and again where training begins, without the images that could not be read. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config.head import FEWEST_FOLDS
from pipeline.config.trial import Config
from pipeline.data.splits import together
from pipeline.data.truth import RANK, Truth
from pipeline.errors import UserError
from pipeline.metrics.sums import apart
from pipeline.tasks.base import Task

if TYPE_CHECKING:
    import pandas as pd

Tables = Mapping[str, "pd.DataFrame"]
"""The rows of train, validation and test."""
MOST_SCORED = 2000
"""Validation images by which it is known whether a figure is defined."""
SPLITS = ("train", "validation", "test")


def split_tables(table: pd.DataFrame, config: Config) -> Tables:
    """The rows of each split; of train all that are trained on."""
    of = {split: [split] for split in SPLITS} | {"train": list(config.data.split.trained)}
    return {split: table[table["split"].isin(names)] for split, names in of.items()}


def check_table(config: Config, task: Task[Any], truth: Truth, tables: Tables) -> None:
    """Raises UserError where these rows cannot be trained, chosen by or evaluated on as the configuration asks."""
    for split in ("train", "validation"):
        if tables[split].empty:
            raise UserError(f"{config.data.source}: the {split} split has no usable image")
    _check_names(config, tables["train"])
    _check_folds(config, tables)
    _check_logarithms(config, tables)
    _check_sums(config, tables["train"])
    _check_head(config, truth, tables)
    _check_batches(config, truth, tables["train"])
    if config.loss.reads_ranks and f"{RANK}0" not in tables["train"]:
        raise UserError(
            f"{config.data.source}: loss.targets hierarchical reads the ranks of classes, and no column is known for one: name "
            "them (data.columns.ranks, the most general first), or set loss.targets=multipositive"
        )
    if config.select.epoch == "best" and config.select.folds is None and config.model.head.chooses:
        _check_choice(config, task, truth, tables["validation"])
    wanted = config.evaluate.split
    if wanted in SPLITS and tables[wanted].empty:
        raise UserError(
            f"{config.data.source}: evaluate.split is {wanted}, but the data have no such images: set it to validation"
        )


def _check_names(config: Config, train: pd.DataFrame) -> None:
    """Where a name that the model reads tells the class by itself, it would learn that, and no image."""
    model, columns = config.model, config.data.columns
    for name, read in (("species", model.species_embedding), ("domain", model.domain_embedding)):
        if not read or "label" not in train:
            continue
        classes = train.groupby(train[name].fillna(""))["label"].nunique()
        if classes.max() == 1 and len(classes) < len(train) / 2:
            raise UserError(
                f"{config.data.source}: column {getattr(columns, name)} (data.columns.{name}) tells the class of every training "
                f"image by itself, so model.{name}_embedding would learn nothing of images: set it to false"
            )


def _check_folds(config: Config, tables: Tables) -> None:
    """A trial that folds by itself must not have one group in two folds, nor an empty one, nor leave nothing to evaluate on."""
    if (n := config.model.head.n_folds) and (there := len(set(together(tables["train"], config.data.split)))) < n:
        lower = f"set it to {there} or lower, or " if there >= FEWEST_FOLDS else ""
        raise UserError(
            f"{config.data.source}: model.head.folds is {n}, and data.split leaves {there} groups that it may part: {lower}"
            "choose a split that keeps less together (data.split)"
        )
    if config.select.folds is None:
        return
    if tables["test"].empty:
        raise UserError(
            f"{config.data.source}: select.folds fits validation images too, and there is no test split: nothing would be "
            "left to evaluate on. Name one (data.split), or set select.folds=null"
        )
    if both := set(tables["train"]["group"]) & set(tables["validation"]["group"]):
        raise UserError(
            f"{config.data.source}: select.folds cannot keep a group in one fold that is in train and in validation: "
            f"{sorted(both)[0]} ({len(both)} in all). Let folds be dealt by group (data.split.kind=folds), or set "
            "select.folds=null"
        )


def _check_logarithms(config: Config, tables: Tables) -> None:
    """Of a target below 0 there is no log(1 + target) that could be learnt."""
    if not (config.model.outputs.learns_log or config.model.head.learns_log):
        return
    for split in ("train", "validation"):
        lowest, target = min((float(tables[split][target].min()), target) for target in config.data.targets)
        if lowest < 0:
            what = "model.outputs.log" if config.model.outputs.learns_log else f"model.head.kind {config.model.head.kind}"
            raise UserError(
                f"{config.data.source}: {what} learns log(1 + target), and {target} is as low as {lowest:g}: choose another, or "
                "correct the data"
            )


def _check_sums(config: Config, train: pd.DataFrame) -> None:
    """Targets that are to add up do so, but for a few rows and for rounding: what is said would be bent to what is not so."""
    for whole, parts in config.data.parts_of.items():
        if wrong := apart(train[whole].to_numpy(), train[list(parts)].sum(axis=1).to_numpy()):
            raise UserError(
                f"{config.data.source}: data.sums has it that {whole} is {' + '.join(parts)}, and in the training images that is "
                f"{wrong}: correct data.sums, or the data"
            )


def _check_head(config: Config, truth: Truth, tables: Tables) -> None:
    head, counts = config.model.head, truth.counts(tables["train"])
    if config.select.folds is not None:
        counts = {name: n + truth.counts(tables["validation"])[name] for name, n in counts.items()}
    if why := head.misfit(counts):
        raise UserError(
            f"{config.data.source}: model.head.kind {head.kind} {why}: choose another head, or another split (data.split)"
        )


def _check_batches(config: Config, truth: Truth, train: pd.DataFrame) -> None:
    """Of a head that compares the images of a batch partial ones are dropped: one whole batch there must be."""
    if not config.model.head.embeds_pairs:
        return
    views = train["view"].value_counts(dropna=False).tolist() if "view" in train else [len(train)]
    if why := config.train.batches.misfit(list(truth.counts(train).values()), views, config.train.batch_size):
        raise UserError(f"{config.data.source}: {why}")
    if (n := config.train.batches.n_images(config.train.batch_size)) < config.train.processes:
        raise UserError(
            f"train.processes is {config.train.processes}, and they share out batches of {n} images: each must have one. Set "
            f"train.processes={n}, or train.batch_size higher"
        )


def _check_choice(config: Config, task: Task[Any], truth: Truth, validation: pd.DataFrame) -> None:
    """No epoch could be better than another by a figure that is not defined even of the truth itself."""
    if _is_defined(task, task.metric(config.select.metric), truth, validation):
        return
    figures = [name for name, figure in task.figures.items() if figure.selectable]
    able = [name for name in figures if _is_defined(task, name, truth, validation)]
    raise UserError(
        f"{config.data.source}: the {validation['group'].nunique()} validation groups are too much alike for "
        f"{task.figures[task.metric(config.select.metric)].title}, so nothing can be chosen by it: choose another split "
        f"(data.split), or select.metric={' or '.join(able)}."
    )


def _is_defined(task: Task[Any], metric: str, truth: Truth, validation: pd.DataFrame) -> bool:
    order = np.argsort(validation.duplicated(list(truth.columns)), kind="stable")  # one of each truth, then others as they come
    from pipeline.metrics.groups import Prediction  # pandas: not for plans

    some = validation.iloc[order[:MOST_SCORED]]
    true, said = truth.perfect(some)
    groups = np.unique(some["group"], return_inverse=True)[1].astype("int64")
    return task.score(metric, true, Prediction.of(said.astype("float32")), groups, names=truth.names) is not None
