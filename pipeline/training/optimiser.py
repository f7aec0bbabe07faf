"""Parameter groups at their own rates, the optimiser, and the learning rate of each epoch."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pipeline.config.training import Optim, Schedule
from pipeline.config.trial import Config
from pipeline.models.learner import Learner


def make_optimizer(model: Learner, config: Config) -> torch.optim.Optimizer:
    """Adam or AdamW over every trainable parameter; each group remembers its full rate as `peak_lr`."""
    groups = parameter_groups(model, config)
    kind = torch.optim.AdamW if config.optim.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=config.optim.lr, betas=config.optim.betas, weight_decay=config.optim.weight_decay, fused=True)


def parameter_groups(model: Learner, config: Config) -> list[dict[str, Any]]:
    """Trainable parameters grouped by rate. None is left out: what requires a gradient is in exactly one group."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = config.model.encoder.rate_scale(name) if name.startswith("encoder.") else config.model.head.rate_scale()
            by_rate.setdefault(config.optim.lr * part, []).append(parameter)
    return [{"params": parameters, "lr": rate, "peak_lr": rate} for rate, parameters in by_rate.items()]


def set_rates(optimizer: torch.optim.Optimizer, schedule: Schedule, optim: Optim, epoch: int, epochs: int) -> None:
    """Set every group's learning rate for `epoch`: a function of the epoch alone, so that there is no state to resume."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(group["peak_lr"], schedule, optim, epoch, epochs)


def learning_rate(peak: float, schedule: Schedule, optim: Optim, epoch: int, epochs: int) -> float:
    """Rate of a group whose full rate is `peak` in `epoch` (from 0): linear warm-up, hold, then constant or cosine.

    The cosine reaches its floor, floor·`optim.lr` for every group, in the last epoch.
    """
    if epoch < schedule.warmup:
        return peak * (epoch + 1) / (schedule.warmup + 1)
    if schedule.kind == "constant":
        return peak
    start = schedule.warmup + (min(10, epochs // 10) if schedule.hold == "auto" else schedule.hold)
    done = min(max(epoch - start, 0) / max(epochs - 1 - start, 1), 1.0)
    floor = min(schedule.floor * optim.lr, peak)
    return floor + (peak - floor) * (1 + math.cos(math.pi * done)) / 2


def without_gradient(model: nn.Module) -> Iterator[str]:
    """Names of trainable parameters that the last backward pass did not reach."""
    return (name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
