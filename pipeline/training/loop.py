"""Gradient training of one trial: epochs over resident features, the best epoch kept, checkpoints, early stopping."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Optimizer

from pipeline.amounts import parse_time
from pipeline.config.trial import Config
from pipeline.disk.writing import write_text
from pipeline.errors import Interrupted, WorkError
from pipeline.models.learner import Learner, load_trained_state, trained_state
from pipeline.training import augmentation as aug
from pipeline.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.training.image_augmentation import augment_images
from pipeline.training.optimiser import make_optimizer, set_rates, without_gradient
from pipeline.training.risk import start_log_weights
from pipeline.training.run import Choice, Fitted, Run, set_novelty, set_scales
from pipeline.training.samples import Samples, answers, joined
from pipeline.training.sets import Batch, draw_batches, make_sets


def fit(model: Learner, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Train `model` in place and leave it with the weights of the epoch that `select` says.

    Raises WorkError for a loss that is not finite or a parameter without a gradient, Interrupted when told to stop.
    """
    config, epochs = run.config, run.config.train.epochs
    set_scales(model, train, run)
    optimizer = make_optimizer(model, config)
    progress = load_checkpoint(run.trial, run.identity, run.machine, model, optimizer)
    if not len(progress.domain_log_weights):
        progress.domain_log_weights = start_log_weights(train.metadata.domain)
    log, saved = EpochLog(run.trial.metrics, progress.epoch), time.monotonic()
    patience = math.inf if config.train.patience is None else config.train.patience
    while progress.epoch < epochs and progress.epoch - 1 - progress.best_epoch < patience:
        fit_epoch(model, train, validation, optimizer, run, progress, log)
        run.stop.check_epoch(run.trial)
        told_to_stop = run.stop.flag.asked() and progress.epoch < epochs
        if told_to_stop or _checkpoint_is_due(config, progress.epoch, saved):
            save_checkpoint(run.trial, run.identity, model, optimizer, progress)
            run.after_checkpoint()
            saved = time.monotonic()
        if told_to_stop:
            raise Interrupted(f"{run.trial.path}: told to stop; the checkpoint is written, run it again to go on")
    load_trained_state(model, progress.best_state)
    set_novelty(model, train, validation)
    return Fitted(progress)


def fit_epoch(
    model: Learner, train: Samples, validation: Samples, optimizer: Optimizer, run: Run, progress: Progress, log: EpochLog
) -> None:
    """Train for one epoch, validate, remember the weights if they are the best, and write the epoch's line."""
    started, epoch, config = time.monotonic(), progress.epoch, run.config
    set_rates(optimizer, config.schedule, config.optim, epoch, config.train.epochs)
    loss = train_epoch(model, train, optimizer, config, epoch, progress.domain_log_weights, run.stop.check_batch)
    metric, validation_loss = validate(model, validation, config)
    if config.select.epoch == "last":
        progress.keep(epoch, metric, trained_state(model))
    else:
        progress.keep_best(epoch, metric, lower=run.choice.lower_is_better, state=trained_state(model))
    progress.epoch, seconds = epoch + 1, time.monotonic() - started
    progress.seconds += seconds
    log.write(epoch=epoch, loss=loss, validation_loss=validation_loss, metric=metric, seconds=seconds)


def train_epoch(
    model: Learner,
    samples: Samples,
    optimizer: Optimizer,
    config: Config,
    epoch: int,
    log_weights: Float[Tensor, " domains"],
    after_batch: Callable[[], None],
) -> float:
    """One pass over the samples; returns the mean loss of a batch. `after_batch` may raise to end it early.

    `log_weights` are group DRO's, brought up to date in place.
    """
    streams = aug.epoch_streams(config.seed, epoch, samples.targets.device)
    losses, counts = [], []
    model.train()
    for number, batch in enumerate(draw_batches(samples.groups, config.train, streams.choices)):
        loss, count = batch_loss(model, samples, batch, config, epoch, streams, log_weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if epoch == 0 and number == 0 and (names := list(without_gradient(model))):  # better to stop at once
            raise WorkError(
                f"no gradient reaches {len(names)} trainable parameters, they would never learn: {', '.join(names[:8])}"
            )
        if config.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_((p for p in model.parameters() if p.requires_grad), config.optim.clip)
        optimizer.step()
        losses.append(loss.detach())
        counts.append(count)
        after_batch()
    return _mean_loss(torch.stack(losses), counts, epoch)


def batch_loss(
    model: Learner, samples: Samples, batch: Batch, config: Config, epoch: int, streams: aug.Streams, log_weights: Tensor
) -> tuple[Tensor, int]:
    """The loss of one augmented batch, and of how many images or groups it is."""
    augment, rng = config.augment, streams.choices
    share = aug.strength(augment, epoch, config.train.epochs)
    batch = batch.thinned(share * augment.image_dropout, rng)
    mix = aug.make_mix(len(batch.indices), share * augment.mixup_alpha, rng, samples.targets.device)
    features, targets, metadata = samples.select(batch.indices)
    domains = metadata.domain
    features = augment_images(features, augment.images, share, rng)
    if mix:
        features, targets = mix(features), mix(targets)
    metadata = aug.drop_names(metadata, model, augment, share, rng)
    features = aug.add_noise(features, share * augment.noise, streams.noise)
    with torch.autocast(features.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
        answer = model(features, metadata, mix)
    sets = batch.sets(samples.targets.device)
    losses = model.losses(answer, targets, sets)
    of_losses = domains if sets is None else domains[sets.firsts]
    loss: Tensor = config.risk.combine(losses, answer.hidden, (of_losses, domains), log_weights)
    return loss, len(losses)


def validate(model: Learner, samples: Samples, config: Config) -> tuple[float | None, float]:
    """The selection metric (None where it is not defined) and the mean loss of an image, or of a group."""
    answer, targets = answers(model, samples), samples.targets
    metric = Choice.of(config).score(samples, joined([model.in_units(answer)]))
    sets = make_sets(samples.groups, targets.device) if config.train.sample == "groups" else None
    return metric, float(model.losses(answer, targets.dense(), sets).mean())


class EpochLog:
    """metrics.jsonl: one line per epoch; lines after the checkpoint that a run resumes from are dropped."""

    def __init__(self, path: Path, n_epochs_done: int) -> None:
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        write_text(path, "".join(lines[:n_epochs_done]))

    def write(self, **values: float | int | None) -> None:
        """Append one epoch (what is not finite is null in JSON), and print it: a log's line, and what a person watches."""
        numbers = {k: round(v, 6) if isinstance(v, float) else v for k, v in values.items()}
        rounded = {k: None if v is None or not math.isfinite(v) else v for k, v in numbers.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(rounded) + "\n")
        print("  ".join(f"{k} {v}" for k, v in rounded.items()), flush=True)


def _mean_loss(losses: Float[Tensor, " batches"], counts: list[int], epoch: int) -> float:
    """Weighted mean over batches of unequal size. Read once per epoch: asking each batch would make the GPU wait."""
    bad = torch.nonzero(~torch.isfinite(losses)).flatten()
    if len(bad):
        raise WorkError(
            f"the training loss became {losses[bad[0]].item()} in epoch {epoch}, batch {int(bad[0])} (both counted from 0). "
            "Lower optim.lr, set optim.clip=1, or train.precision=fp32."
        )
    weights = torch.tensor(counts, dtype=losses.dtype, device=losses.device)
    return float((losses * weights).sum() / weights.sum())


def _checkpoint_is_due(config: Config, epochs_done: int, saved: float) -> bool:
    resources, age = config.resources, time.monotonic() - saved
    by_epochs = resources.checkpoint_epochs is not None and epochs_done % resources.checkpoint_epochs == 0
    # A short job would end before its first checkpoint, and begin again at the same place.
    return by_epochs or age >= min(resources.checkpoint_seconds, parse_time(resources.train.time) / 5)
