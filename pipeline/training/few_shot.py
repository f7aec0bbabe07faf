"""Heads on frozen embeddings of images and texts that need no epochs and no validation."""

from __future__ import annotations

from typing import cast

import torch

from pipeline.config.towers import FewShotHead
from pipeline.models.towers import FewShot, TwoTowers
from pipeline.training.checkpoint import Progress
from pipeline.training.run import Fitted, Run
from pipeline.training.samples import Samples, embeddings, predict
from pipeline.training.towers import embed_classes, of_texts


def fit(model: FewShot, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Fit prototypes of the classes to the training images and the classes' texts."""
    texts = of_texts(train)
    of_classes = torch.cat([texts.bank.gather(rows).float().cpu() for rows in texts.of_class.split(512)]).numpy()
    head = cast(FewShotHead, run.config.model.head)
    model.take(head.prototypes(embeddings(model, train), train.truth, of_classes, texts.scale))
    return _scored(model, validation, run)


def fit_zero_shot(model: TwoTowers, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Nothing but the classes' texts as they are."""
    embed_classes(model, of_texts(train))
    return _scored(model, validation, run)


def _scored(model: FewShot | TwoTowers, validation: Samples, run: Run) -> Fitted:
    value = run.choice.score(validation, predict(model, validation))
    return Fitted(Progress(epoch=1, best_epoch=0, best_metric=value))
