"""A moving average of a model's weights (`optim.ema`), which is what is validated and kept (Polyak and Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pipeline.models.learner import load_trained_state, trained_state

State = dict[str, Tensor]


class Average:
    """The average of what a model's trained tensors have been, those of whole numbers as they are now. A checkpoint keeps its
    `state` and `steps`."""

    def __init__(self, model: nn.Module, decay: float, state: State, steps: int) -> None:
        """Go on from a `state` after so many steps; an empty one begins with the model's weights, and with a decay of 0 there is
        no average: everything is the model's own."""
        self.model, self.decay, self.steps = model, decay, steps
        self.state = state or ({name: tensor.clone() for name, tensor in trained_state(model).items()} if decay else {})

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the optimiser."""
        if self.decay:
            self.steps += 1
            share = 1 - min(self.decay, (1 + self.steps) / (10 + self.steps))
            now = trained_state(self.model)
            floating = [name for name, tensor in now.items() if tensor.is_floating_point()]
            torch._foreach_lerp_([self.state[name] for name in floating], [now[name] for name in floating], share)
            self.state |= {name: tensor.clone() for name, tensor in now.items() if name not in floating}

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the model has the average as its weights."""
        if not self.decay:
            yield
            return
        own = {name: tensor.clone() for name, tensor in trained_state(self.model).items()}
        load_trained_state(self.model, self.state)
        try:
            yield
        finally:
            load_trained_state(self.model, own)
