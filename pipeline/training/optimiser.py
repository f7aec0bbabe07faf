"""Parameter groups at their own rates, the optimiser, and the learning rate of each epoch."""

import inspect
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.trial import Config
from pipeline.models.base import Model


def make_optimizer(model: Model, config: Config) -> torch.optim.Optimizer:
    """Adam or AdamW over every trainable parameter; each group remembers its full rate as `peak_lr`."""
    optim, groups = config.optim, parameter_groups(model, config)
    kind = _lean(torch.optim.AdamW if optim.kind == "adamw" else torch.optim.Adam)
    return kind(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True)


@cache
def _lean(kind: Any) -> Any:
    """An optimiser of torch, the same to the bit, whose step is its kernel and little else, and that leaves torch's compiler
    alone: its own methods load that (1.7 s of CPU in each process that trains) to tell it not to compile them."""
    names = ("add_param_group", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), methods | {"step": _step, "zero_grad": _zero_grad})


def _step(optimizer: torch.optim.Optimizer) -> None:
    step_together([optimizer])


def _zero_grad(optimizer: torch.optim.Optimizer, set_to_none: bool = True) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


@torch.no_grad()
def step_together(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """A step of several, each as by itself, in one launch for all parameters of one rate: those of torch take one for each
    optimiser and group. What no gradient has reached stays as it is."""
    alike: dict[tuple[Any, ...], list[tuple[Tensor, ...]]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            how = group["decoupled_weight_decay"], group["lr"], *group["betas"], group["weight_decay"], group["eps"]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = optimizer.state[parameter] or _begin(optimizer, parameter)
                    tensors = parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"], state["step"]
                    alike.setdefault((parameter.dtype, *how), []).append(tensors)
    for (_, decoupled, lr, beta1, beta2, decay, eps), known in alike.items():
        *moments, steps = map(list, zip(*known, strict=True))
        torch._foreach_add_(steps, 1)
        kernel: Any = torch._fused_adamw_ if decoupled else torch._fused_adam_
        numbers = {"lr": lr, "beta1": beta1, "beta2": beta2, "weight_decay": decay, "eps": eps}
        kernel(*moments, [], steps, **numbers, amsgrad=False, maximize=False)


def _begin(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """A parameter's state before its first step."""
    moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
    optimizer.state[parameter] = {"step": torch.zeros((), device=parameter.device), **moments}
    return optimizer.state[parameter]


def parameter_groups(model: Model, config: Config) -> list[dict[str, Any]]:
    """Trainable parameters grouped by rate and by whether they decay. None is left out: what requires a gradient is in exactly
    one group."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    scales = config.model.rate_scales(list(trained))
    for name, parameter in trained.items():
        decays = name not in model.undecayed and (config.optim.decays == "all" or parameter.ndim > 1)
        groups.setdefault((config.optim.lr * scales[name], decays), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak_lr": rate, **({} if decays else {"weight_decay": 0.0})}
        for (rate, decays), parameters in groups.items()
    ]


def set_rates(optimizer: torch.optim.Optimizer, config: Config, at: float, losses: Sequence[float]) -> None:
    """Set every group's learning rate, `at` epochs from the beginning: a function of that and of the validation losses alone, so
    that there is no state to resume. While the encoder is held, and behind that, it is as of trainings of their own."""
    first, held, epochs = config.train.head_first, config.train.held_epochs, config.train.epochs
    for group in optimizer.param_groups:
        peak, lr = group["peak_lr"], config.optim.lr
        if first and at < held:
            group["lr"] = config.schedule.rate(peak * first.lr / lr, first.lr, at, held, losses)
        else:
            group["lr"] = config.schedule.rate(peak, lr, at - held, epochs - held, losses[held:])


def without_gradient(model: nn.Module, held: bool = False) -> Iterator[str]:
    """Names of trainable parameters that the last backward pass did not reach; none of an encoder that is held."""
    trained = (
        (name, p) for name, p in model.named_parameters() if p.requires_grad and not (held and name.startswith("encoder."))
    )
    return (name for name, p in trained if p.grad is None)
