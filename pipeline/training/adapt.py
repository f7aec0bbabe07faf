"""Adapting a trained model to the images that it is tested on, without their truth (`evaluate.adapt`): test-time training.

The model learns what it itself says of these images (with test-time augmentation, if there is any) from draws of them that are
augmented as in training: what it says should not hang on how an image is seen (Lee 2013, "Pseudo-label"; Sun et al. 2020, arXiv
1909.13231, adapt to each image alone). It is transductive: figures are then of these images as a set, and are labelled.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from pipeline.config.evaluation import Adapt
from pipeline.config.trial import Config
from pipeline.models.learner import Learner
from pipeline.training import augmentation as aug
from pipeline.training.learner import batch_loss
from pipeline.training.optimiser import parameter_groups
from pipeline.training.samples import Samples, Targets, predict
from pipeline.training.sets import draw_batches


def adapt(model: Learner, samples: Samples, config: Config, how: Adapt) -> None:
    """Train `model`, as it was loaded, in place on what it says of `samples`, whose targets are not looked at."""
    said = torch.from_numpy(predict(model, samples).mean).to(samples.targets.codes)
    pupil = replace(samples, targets=Targets(said.clamp_min(0) if model.log else said))
    model.beside, novelty, model.novelty = None, model.novelty, None
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in model.trained)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=how.lr, weight_decay=0.0)
    for group in optimizer.param_groups:  # in the same proportions as in training
        group["lr"] = how.lr * group["peak_lr"] / config.optim.lr
    for epoch in range(how.epochs):
        _pass(model, pupil, config, epoch, optimizer)
    model.novelty = novelty
    model.eval().requires_grad_(False)


def _pass(model: Learner, samples: Samples, config: Config, epoch: int, optimizer: torch.optim.Optimizer) -> None:
    """One pass over the images, at full strength of augmentation."""
    streams = aug.epoch_streams(config.seed, config.train.epochs + epoch, samples.targets.device)
    model.train()
    for batch in draw_batches(samples.groups, config.train, streams.choices):
        weights = torch.zeros(1, device=samples.targets.device)
        loss, _ = batch_loss(model, samples, batch, config, config.train.epochs, streams, weights)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
