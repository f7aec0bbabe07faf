"""What a `Learner` learns from: batches of images or groups, augmented, their losses made one by a risk; and by what it is known
how much it has learnt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.trial import Config
from pipeline.data.image_augmentation import augment_views
from pipeline.models.learner import Learner
from pipeline.training import augmentation as aug
from pipeline.training import loop
from pipeline.training.risk import start_log_weights
from pipeline.training.run import Choice, Fitted, Run, set_novelty, set_scales
from pipeline.training.samples import Samples, answers, joined
from pipeline.training.sets import Batch, draw_batches, make_sets


def fit(model: Learner, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Train `model` in place and leave it with the weights of the epoch that `select` says. Raises what `loop.descend` raises."""
    set_scales(model, train, run)
    lesson = Lesson(model, train, validation, run.config, start_log_weights(train.metadata.domain))
    progress = loop.descend(model, lesson, run)
    set_novelty(model, train, validation)
    return Fitted(progress)


@dataclass
class Lesson:
    """The images of two splits, as `loop.Lesson` has it."""

    model: Learner
    train: Samples
    validation: Samples
    config: Config
    log_weights: Float[Tensor, " domains"]
    """Group DRO's, brought up to date in place."""

    def batches(self, streams: aug.Streams) -> tuple[int, Iterator[Batch]]:
        drawn = len(self.train) if self.config.train.sample == "images" else len(np.unique(self.train.groups))
        n_batches = math.ceil(drawn / self.config.train.batch_size)
        return n_batches, draw_batches(self.train.groups, self.config.train, streams.choices)

    parts: list[Float[Tensor, " targets"]] = field(default_factory=list)
    """Of the epoch: the sums over each batch of the losses of each target, then how many they are of."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of the last validation."""

    def loss(self, batch: Batch, epoch: int, streams: aug.Streams) -> tuple[Tensor, int]:
        return batch_loss(self.model, self.train, batch, self.config, epoch, streams, self.log_weights, self._note)

    def _note(self, losses: Float[Tensor, "images targets"] | None) -> None:
        if losses is not None:
            self.parts.append(torch.cat([losses.detach().sum(0), losses.new_full((1,), len(losses))]))

    def validate(self) -> tuple[float | None, float]:
        metric, loss, self.figures = validate(self.model, self.validation, self.config)
        return metric, loss

    def told(self) -> dict[str, float]:
        """`train/loss_…` of each target, and `val/…` for figures of the task."""
        found = {f"val/{name}": value for name, value in self.figures.items()}
        if self.parts:
            *sums, n = torch.stack(self.parts).sum(0).tolist()
            found |= {f"train/loss_{target}": each / n for target, each in zip(self.config.data.targets, sums, strict=False)}
        self.parts.clear()
        return found


def batch_loss(
    model: Learner,
    samples: Samples,
    batch: Batch,
    config: Config,
    epoch: int,
    streams: aug.Streams,
    log_weights: Tensor,
    note: Callable[[Float[Tensor, "sets targets"] | None], None] = lambda _: None,
) -> tuple[Tensor, int]:
    """The loss of one augmented batch, and of how many images or groups it is; `note` is told what it is of each target."""
    augment, rng = config.augment, streams.choices
    share = aug.strength(augment, epoch, config.train.epochs)
    batch = batch.thinned(share * augment.image_dropout, rng)
    mix = aug.make_mix(len(batch.indices), share * augment.mixup_alpha, rng, samples.targets.device, augment.mixup)
    features, targets, metadata = samples.select(batch.indices)
    domains = metadata.domain
    features = aug.draw_poses(features, config.backbone.views, share * augment.poses, rng)
    features = augment_views(features, augment.images, share, rng)
    before = augment.mixup.of == "features"
    if mix:
        features, targets = mix(features) if before else features, mix(targets)
    metadata = aug.drop_names(metadata, model, augment, share, rng)
    features = aug.add_noise(features, share * augment.noise, streams.noise)
    with in_precision(config, features.device):
        answer = model(features, metadata, mix) if before or not mix else model.answer(mix(model.encode(features)), metadata, mix)
    sets = batch.sets(samples.targets.device)
    losses, of_targets = model.losses(answer, targets, sets)
    note(of_targets)
    of_losses = domains if sets is None else domains[sets.firsts]
    loss: Tensor = config.risk.combine(losses, answer.hidden, (of_losses, domains), log_weights)
    return loss, len(losses)


def in_precision(config: Config, device: torch.device) -> AbstractContextManager[object]:
    """Where forward passes of training are computed: under autocast with bf16, which costs time even where it is off."""
    return torch.autocast(device.type, torch.bfloat16) if config.train.precision == "bf16" else nullcontext()


def validate(model: Learner, samples: Samples, config: Config) -> tuple[float | None, float, dict[str, float]]:
    """The selection metric (None where it is not defined), the mean loss of an image, or of a group, and figures beside."""
    answer, targets, choice = answers(model, samples), samples.targets, Choice.of(config)
    said = joined([model.in_units(answer)])
    sets = make_sets(samples.groups, targets.device) if config.train.sample == "groups" else None
    loss = float(model.losses(answer, targets.dense(), sets)[0].mean())
    return choice.score(samples, said), loss, choice.figures(samples, said)
