"""The training stage: one trial from cached features to `model.safetensors`, `adapter/` and `trained.json`."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pipeline.config.head import CLASSIFIER_KINDS
from pipeline.config.identity import digest
from pipeline.config.trial import Config
from pipeline.device import choose_device, device_name, gpu_name, make_deterministic, set_threads
from pipeline.disk.attempts import Attempts, spent, this_attempt
from pipeline.disk.layout import TrialDir, sweep, write_json, write_table, write_text
from pipeline.disk.lease import Lease
from pipeline.disk.provenance import loaded_code, provenance
from pipeline.errors import TakenOver, UserError, WorkError
from pipeline.experiments.reading import dump_config
from pipeline.features.bank import make_bank
from pipeline.metrics.groups import Prediction, fit_calibrations, group_table, image_table
from pipeline.models.baselines import Boosting, Climatology
from pipeline.models.classifiers import Classifier
from pipeline.models.learner import Learner
from pipeline.models.outputs import Categorical
from pipeline.models.saved import Facts, Model, is_whole, make_model, read_trained, save_model
from pipeline.signals import StopFlag
from pipeline.stages.inputs import Inputs, Split, differences, identity, load_inputs, make_facts
from pipeline.training.baselines import fit_boosting, fit_climatology
from pipeline.training.checkpoint import Progress, remove_checkpoint
from pipeline.training.classifiers import fit_classifier
from pipeline.training.loop import Run, Stop, fit
from pipeline.training.ridge import fit_ridge
from pipeline.training.samples import (
    Samples,
    check_selection,
    embeddings,
    feature_scale,
    make_samples,
    predict,
    target_scale,
)


def run(config: Config, trial: TrialDir, flag: StopFlag | None = None) -> None:
    """Train one trial, or go on where it was interrupted; nothing is done if it is trained already on the same data.

    Two jobs on one trial: the second waits for the first. Raises UserError, WorkError, Interrupted.
    """
    started = time.monotonic()
    loaded_code()  # now: it may be edited while this runs
    write_text(trial.config, dump_config(config))
    inputs = load_inputs(config)
    with Lease(trial.lease, config.resources.lease_seconds).hold(done=lambda: is_trained(trial, inputs)) as held:
        if held:
            try:
                _forget_outdated(trial)
                _train(inputs, trial, Stop(flag or StopFlag(), held.still_mine), started)
            except OSError as error:  # a successor clears away what we were writing
                if held.still_mine():
                    raise
                raise TakenOver(f"{trial.path}: another job has taken this trial over") from error
        else:
            print(f"{trial.path.name} is trained already", flush=True)
    remove_checkpoint(trial)
    trial.attempts.unlink(missing_ok=True)
    shutil.rmtree(trial.lease, ignore_errors=True)  # nobody claims it any more: waiters see that the trial is trained


def is_trained(trial: TrialDir, inputs: Inputs) -> bool:
    """Whether the folder holds a whole model of just this configuration, features, splits and targets."""
    try:
        same = not differences(read_trained(trial), inputs)
    except FileNotFoundError:
        return False
    except WorkError as error:
        print(f"carabid: {error}", flush=True)
        return False
    model = inputs.config.model
    classifier = model.head.kind in CLASSIFIER_KINDS
    return same and is_whole(trial, model.encoder, classifier)


def _forget_outdated(trial: TrialDir) -> None:
    """A model that is trained again takes its results with it: they would stand beside another model."""
    if trial.trained.exists():
        print(
            f"{trial.path.name}: its configuration, features or targets have changed, or a file of its model is damaged: "
            "trained again, results removed",
            flush=True,
        )
    for path in (trial.trained, trial.results, trial.predictions, trial.groups, trial.provenance, trial.card):
        path.unlink(missing_ok=True)
    trial.validation.unlink(missing_ok=True)
    for path in (trial.model, trial.adapter, trial.classifier, trial.validation, trial.resume_state, trial.attempts):
        sweep(path)


def _train(inputs: Inputs, trial: TrialDir, stop: Stop, started: float) -> None:
    config, name = inputs.config, digest(identity(inputs))
    threads, device = set_threads(), choose_device(config.device)
    attempts = Attempts(trial.attempts, name, this_attempt(gpu_name(device)), started)
    run = Run(trial, name, f"{device_name(device)}, {threads} threads", config, stop, attempts.note)
    with attempts.noted(stop.still_mine):
        model, facts, progress, calibrations = _learn(inputs, run, device)
        save_model(model, facts, trial)
        write_json(trial.trained, _record(facts, inputs, progress, attempts) | {"calibration": calibrations})


def _learn(inputs: Inputs, run: Run, device: torch.device) -> tuple[Model, Facts, Progress, dict[str, Any]]:
    """A model fitted to the training split, and what calibrates its forecasts, fitted to the validation split."""
    config = inputs.config
    make_deterministic()
    inputs.store.verify()
    facts = make_facts(inputs)
    model = make_model(config, facts, inputs.encoder_backbone).to(device)
    train, validation = (_samples(inputs, facts, split, device) for split in ("train", "validation"))
    print(f"training {run.trial.path.name}: {_describe(model, train, validation)}, on {run.machine}", flush=True)
    check_selection(config, validation)
    _check_names(inputs)
    _standardize(model, train, inputs, facts)
    if isinstance(model, Classifier):
        _check_folds(inputs)
        progress, left_out = fit_classifier(model, train, validation, config)
        held_out = _held_out(model, validation, inputs, facts, left_out)
    else:
        progress = _fit(model, train, validation, run)
        held_out = _held_out(model, validation, inputs, facts)
    return model, facts, progress, _calibrate(held_out, inputs, facts, run.trial)


def _check_names(inputs: Inputs) -> None:
    """UserError where a name that the model reads tells the class by itself: it would learn that, and no image."""
    model, columns, table = inputs.config.model, inputs.config.data.columns, inputs.table("train")
    for name, read in (("species", model.species_embedding), ("domain", model.domain_embedding)):
        if not read or inputs.config.data.label is None:
            continue
        classes = table.groupby(table[name].fillna(""))["label"].nunique()
        if classes.max() == 1 and len(classes) < len(table) / 2:
            raise UserError(
                f"column {getattr(columns, name)} (data.columns.{name}) tells the class of every training image by itself, so "
                f"model.{name}_embedding would learn nothing of images: set it to false"
            )


def _check_folds(inputs: Inputs) -> None:
    """UserError where a trial that folds by itself would have one group in two folds, or leave nothing to evaluate on."""
    if inputs.config.select.folds is None:
        return
    if not len(inputs.positions("test")):
        raise UserError(
            "select.folds fits validation images too, and there is no test split: nothing would be left to evaluate on. Name one "
            "(data.split), or set select.folds=null"
        )
    both = set(inputs.table("train")["group"]) & set(inputs.table("validation")["group"])
    if both:
        raise UserError(
            f"select.folds cannot keep a group in one fold that is in train and in validation: {sorted(both)[0]} "
            f"({len(both)} in all). Let folds be dealt by group (data.split.kind=folds), or set select.folds=null"
        )


def _held_out(
    model: Model, validation: Samples, inputs: Inputs, facts: Facts, left_out: NDArray[np.float64] | None = None
) -> pd.DataFrame:
    """Groups that the model was not fitted to, and what it says of them: those of validation, or, if it was fitted to these too,
    all of them, with what was said of each when it was `left_out` [N, C]."""
    if left_out is None:
        said, table = predict(model, validation), inputs.table("validation")
    else:
        said = Prediction(left_out, np.ones_like(left_out), np.zeros_like(left_out))
        table = pd.concat([inputs.table("train"), inputs.table("validation")])
    return group_table(image_table(table, facts.targets, said), facts.targets)


def _calibrate(groups: pd.DataFrame, inputs: Inputs, facts: Facts, trial: TrialDir) -> dict[str, Any]:
    """Calibrations of each target, as JSON, from held-out groups; these stay in the folder, for ensembles and exports.

    Of classes none: a probability says itself how sure it is.
    """
    write_table(trial.validation, groups)
    if inputs.config.data.label is not None:
        return {}
    fitted = fit_calibrations(groups, facts.targets, facts.domains, inputs.config.calibrate.kind)
    return {target: {part: asdict(one) for part, one in parts.items()} for target, parts in fitted.items()}


def _standardize(model: Model, train: Samples, inputs: Inputs, facts: Facts) -> None:
    """Set scales of targets and features and weights of classes from the training split, where the configuration asks for
    it."""
    asked = inputs.config.model
    if isinstance(model, Learner) and asked.standardize_targets:
        mean, scale = target_scale(inputs.table("train"), facts.targets)
        model.target_mean.copy_(mean)
        model.target_scale.copy_(scale)
    if isinstance(model, Learner) and asked.standardize_features:
        mean, scale = feature_scale(embeddings(model, train))
        model.feature_mean.copy_(mean)
        model.feature_scale.copy_(scale)
    if isinstance(model, Learner) and isinstance(model.output, Categorical):
        model.output.balance(train.targets)


def _samples(inputs: Inputs, facts: Facts, split: Split, device: torch.device) -> Samples:
    bank = make_bank(inputs.store, inputs.positions(split).to_numpy(), device, inputs.config.resources.residence)
    return make_samples(bank, inputs.table(split), facts, device)


def _fit(model: Learner | Climatology | Boosting, train: Samples, validation: Samples, run: Run) -> Progress:
    if isinstance(model, Climatology):
        return fit_climatology(model, train, validation, run.config)
    if isinstance(model, Boosting):
        return fit_boosting(model, train, validation, run.config)
    if run.config.model.head.kind == "ridge":
        return fit_ridge(model, train, validation, run.config)
    return fit(model, train, validation, run)


def _describe(model: Model, train: Samples, validation: Samples) -> str:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{len(train)} images, {len(validation)} for validation, {trainable:,} trained parameters"


def _record(facts: Facts, inputs: Inputs, progress: Progress, attempts: Attempts) -> dict[str, Any]:
    train = inputs.table("train").groupby("group")[list(facts.targets)].first()
    return identity(inputs) | {
        "selected_on": "validation" if inputs.config.select.folds is None else "cross-validation",
        "best_epoch": progress.best_epoch,
        "best_metric": progress.best_metric,
        "epochs": progress.epoch,
        "train_domains": list(facts.domains),
        "train_means": {target: float(train[target].mean()) for target in facts.targets},
        "train_sds": {target: float(train[target].std(ddof=0)) for target in facts.targets},
        "n_train": len(inputs.table("train")),
        "provenance": provenance(
            **spent(attempts.all()),
            training_seconds=round(progress.seconds, 2),
            resumed=progress.restarts,
            computed_on=progress.machines,
        ),
    }
