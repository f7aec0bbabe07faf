"""The training stage: one trial from cached features to `model.safetensors`, `adapter/` and `trained.json`."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import torch

from pipeline.config import Config, config_hash, digest
from pipeline.device import choose_device, make_deterministic, set_threads
from pipeline.experiment import dump_config
from pipeline.features.bank import make_bank
from pipeline.layout import TrialDir, read_json, write_json, write_text
from pipeline.lease import Lease
from pipeline.models.regressor import Regressor
from pipeline.models.saved import Facts, make_model, save_model
from pipeline.provenance import provenance
from pipeline.stages.inputs import Inputs, Split, load_inputs, make_facts, table_hash
from pipeline.training.checkpoint import Progress, remove_checkpoint
from pipeline.training.loop import Run, fit
from pipeline.training.ridge import fit_ridge
from pipeline.training.samples import Samples, make_samples, target_scale


def run(config: Config, trial: TrialDir, stop_asked: Callable[[], bool] = lambda: False) -> None:
    """Train one trial, or go on where it was interrupted; nothing is done if it is trained already.

    Two jobs on one trial: the second waits for the first. Raises UserError, WorkError, Interrupted.
    """
    write_text(trial.config, dump_config(config))
    with Lease(trial.lease, config.resources.lease_seconds).hold(done=lambda: is_trained(config, trial)) as held:
        if held:
            _train(config, trial, stop_asked)
    shutil.rmtree(trial.lease, ignore_errors=True)  # nobody claims it any more: waiters see that the trial is trained


def is_trained(config: Config, trial: TrialDir) -> bool:
    """Whether the folder holds a complete model of just this configuration."""
    return trial.trained.exists() and read_json(trial.trained)["config_hash"] == config_hash(config)


def _train(config: Config, trial: TrialDir, stop_asked: Callable[[], bool]) -> None:
    started = time.monotonic()
    threads, device = set_threads(), choose_device(config.device)
    make_deterministic()
    inputs = load_inputs(config)
    facts = make_facts(config, inputs)
    model = _new_model(config, facts, inputs).to(device)
    train, validation = (_samples(config, inputs, facts, split, device) for split in ("train", "validation"))
    identity = digest([config_hash(config), facts.feature_key, table_hash(inputs.dataset.table), str(device), threads])
    print(
        f"training {trial.path.name}: {_describe(model, train, validation)}, on {device} with {threads} threads",
        flush=True,
    )
    progress = _fit(model, train, validation, Run(trial, identity, config, stop_asked))
    save_model(model, facts, trial)
    write_json(trial.trained, _record(config, facts, inputs, progress, time.monotonic() - started))
    remove_checkpoint(trial)


def _new_model(config: Config, facts: Facts, inputs: Inputs) -> Regressor:
    model = make_model(config, facts, inputs.backbone)
    if config.model.standardize_targets:
        mean, scale = target_scale(inputs.table("train"), facts.targets)
        model.target_mean.copy_(mean)
        model.target_scale.copy_(scale)
    return model


def _samples(config: Config, inputs: Inputs, facts: Facts, split: Split, device: torch.device) -> Samples:
    bank = make_bank(inputs.store, inputs.positions(split).to_numpy(), device, config.resources.residence)
    return make_samples(bank, inputs.table(split), facts, device)


def _fit(model: Regressor, train: Samples, validation: Samples, run: Run) -> Progress:
    if run.config.model.head.kind == "ridge":
        return fit_ridge(model, train, validation, run.config)
    return fit(model, train, validation, run)


def _describe(model: Regressor, train: Samples, validation: Samples) -> str:
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{len(train)} images, {len(validation)} for validation, {trainable:,} trained parameters"


def _record(config: Config, facts: Facts, inputs: Inputs, progress: Progress, seconds: float) -> dict[str, Any]:
    train = inputs.table("train").groupby("event")[list(facts.targets)].first()
    return {
        "config_hash": config_hash(config),
        "feature_key": facts.feature_key,
        "table_hash": table_hash(inputs.dataset.table),
        "selected_on": "validation",
        "best_epoch": progress.best_epoch,
        "best_metric": progress.best_metric,
        "epochs": progress.epoch,
        "train_means": {target: float(train[target].mean()) for target in facts.targets},
        "n_train": len(inputs.table("train")),
        "provenance": provenance(
            seconds=round(seconds, 2), training_seconds=round(progress.seconds, 2), resumed=progress.restarts
        ),
    }
