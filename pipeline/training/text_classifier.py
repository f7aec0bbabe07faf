"""What a classifier learns from that starts at the texts of classes: batches of images, by cross-entropy over the classes that
have training images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config.towers import LiftHead
from pipeline.config.trial import Config
from pipeline.data.image_augmentation import augment_images
from pipeline.models.losses import Categorical
from pipeline.models.towers import TextClassifier
from pipeline.training import augmentation as aug
from pipeline.training import loop
from pipeline.training.run import Choice, Fitted, Run
from pipeline.training.samples import PREDICTION_BATCH, Samples, predict
from pipeline.training.sets import Batch, draw_batches
from pipeline.training.towers import embed_classes, of_texts


def fit(model: TextClassifier, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Tune `model` in place, from the classes' texts on, and leave it with the weights of the epoch that `select` says. Raises
    what `loop.descend` raises."""
    start(model, train, run.config)
    counts = torch.tensor(train.counts, dtype=torch.float32)
    loss: Categorical = run.config.loss.make(train.n_targets)
    loss.set_counts(counts)
    lesson = Lesson(model, train, validation, run.config, loss, (counts == 0).to(train.targets.device))
    return Fitted(loop.descend(model, lesson, run))


def start(model: TextClassifier, train: Samples, config: Config) -> None:
    """The classes' weights at their texts, and the scale as the head says."""
    embed_classes(model, of_texts(train))
    if (scale := cast(LiftHead, config.model.head).scale) is not None:
        model.logit_scale.data.fill_(math.log(scale))


@dataclass
class Lesson:
    """Images and their classes, as `loop.Lesson` has it."""

    model: TextClassifier
    train: Samples
    validation: Samples
    config: Config
    score: Categorical
    untrained: Bool[Tensor, " classes"]
    """The classes without training images, which take no part in the loss and keep their texts."""
    log_weights: Float[Tensor, " domains"] = field(default_factory=lambda: torch.zeros(0))

    def batches(self, streams: aug.Streams) -> tuple[int, Iterator[Batch]]:
        n_batches = math.ceil(len(self.train) / self.config.train.batch_size)
        return n_batches, draw_batches(self.train.groups, self.config.train, streams.choices)

    def loss(self, batch: Batch, epoch: int, streams: aug.Streams) -> tuple[Tensor, int]:
        augment, rng = self.config.augment, streams.choices
        share = aug.strength(augment, epoch, self.config.train.epochs)
        batch = batch.thinned(share * augment.image_dropout, rng)
        mix = aug.make_mix(len(batch.indices), share * augment.mixup_alpha, rng, self.untrained.device, augment.mixup)
        features, targets, _ = self.train.select(batch.indices)
        features = augment_images(features, augment.images, share, rng)
        if mix:
            features, targets = mix(features), mix(targets)
        features = aug.add_noise(features, share * augment.noise, streams.noise)
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            embedded = self.model.embed(features)
        return self._losses(embedded, targets).mean(), len(batch.indices)

    def told(self) -> dict[str, float]:
        return {}

    @torch.inference_mode()
    def validate(self) -> tuple[float | None, float]:
        """The loss is of images of classes that are trained on."""
        said, targets = predict(self.model, self.validation), self.validation.targets
        metric = Choice.of(self.config).score(self.validation, said)
        embedded, known = torch.from_numpy(said.mean).to(targets.device), ~self.untrained[targets.codes[:, 0]]
        parts = torch.nonzero(known).flatten().split(PREDICTION_BATCH)
        return metric, float(torch.cat([self._losses(embedded[rows], targets[rows]) for rows in parts]).mean())

    def _losses(self, embedded: Tensor, targets: Tensor) -> Float[Tensor, " images"]:
        """Of each image: [B, E] and shares of classes [B, C] (what is learnt beside them stands behind) → [B]."""
        logits = self.model.logits(embedded).masked_fill(self.untrained, -math.inf)
        return self.score.losses(self.score.parameters(logits), targets[:, : len(self.untrained)])
