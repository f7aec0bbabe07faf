"""Weights between a base model and a tuned one, and soups of tuned ones (Wortsman et al. 2022: WiSE-FT, arXiv 2109.01903; model
soups, arXiv 2203.05482). Adapters are merged into plain weights before, so that what is between two models is one as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from pipeline.errors import UserError

State = Mapping[str, Tensor]
M = TypeVar("M", bound=nn.Module)


def plain(model: M) -> M:
    """A copy in whose encoders adapters are merged, so that its tensors have the names of a model's without any."""
    return _with_parts(model, lambda adapted: adapted.merge_and_unload())


def bare(model: M) -> M:
    """A copy of a new model without its adapters, which have learnt nothing: merged, DoRA would round its weights."""
    return _with_parts(model, lambda adapted: adapted.unload())


def _with_parts(model: M, replaced: Callable[[PeftModel], nn.Module]) -> M:
    model = deepcopy(model)
    for name in ("encoder", "text_encoder"):
        if isinstance(part := getattr(model, name, None), PeftModel):
            setattr(model, name, replaced(part))
    return model


def soup(states: Sequence[State]) -> State:
    """The mean of several models' tensors, in double precision; of one its own. Raises UserError where they are not alike."""
    first = states[0]
    if any(_shapes(state) != _shapes(first) for state in states):
        raise UserError("these trials have not the same encoders: a soup is of trials that differ in rates, losses or seeds")
    if len(states) == 1:
        return first
    return {name: torch.stack([s[name].double() for s in states]).mean(0).to(first[name].dtype) for name in first}


def between(base: State, tuned: State, alpha: float) -> State:
    """(1 − α)·base + α·tuned: at 0 and at 1 one of them to the bit, as torch's lerp has it. Raises UserError where they are not
    alike."""
    if _shapes(base) != _shapes(tuned):
        raise UserError("the tuned model has tensors that its base has not: it cannot be interpolated")
    floats = {name for name, tensor in base.items() if tensor.is_floating_point()}
    return {name: torch.lerp(base[name], tuned[name], alpha) if name in floats else base[name] for name in base}


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
