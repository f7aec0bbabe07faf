"""Ridge regressions on the parts of an embedding, and others on what these say (`config/head.RidgeStackHead`): what came 13th of
3,803 in CSIRO's Image2Biomass challenge without training a network. Computed in double precision."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from pipeline.config.trial import Config
from pipeline.metrics.sums import Sums
from pipeline.models.base import Facts, Features, Model, Predicted
from pipeline.models.metadata import Metadata

SPACES = ("raw", "log")
"""What is learnt: targets as they are, and log(1 + target)."""


class RidgeStack(Model):
    """Of P parts, each D wide, and T targets: a part says of each target, in both SPACES, (x − centre) / scale · part_weights +
    part_bias; the stack makes of what all parts say of it says · stack_weights + stack_bias. Both spaces' answers are averaged by
    `log_share`, and what is below 0 is 0; where targets add up, they are brought to where sums hold instead. An image unlike all
    others may not be said to be far beyond what was seen: each space's answer is held within `low` and `high`."""

    has_gradients = False  # sums are brought to hold by numpy
    centre: Float64[Tensor, "parts width"]
    scale: Float64[Tensor, "parts width"]
    part_weights: Float64[Tensor, "parts width spaces_targets"]
    part_bias: Float64[Tensor, "parts spaces_targets"]
    stack_weights: Float64[Tensor, "parts spaces_targets"]
    stack_bias: Float64[Tensor, " spaces_targets"]
    low: Float64[Tensor, " targets"]
    high: Float64[Tensor, " targets"]

    def __init__(self, shape: tuple[int, int, int], log_share: float, sums: Sums | None) -> None:
        super().__init__()
        (n, width, targets), self.log_share, self.sums = shape, log_share, sums
        outputs = len(SPACES) * targets
        sizes = {
            "centre": (n, width), "scale": (n, width), "part_weights": (n, width, outputs), "part_bias": (n, outputs),
            "stack_weights": (n, outputs), "stack_bias": (outputs,), "low": (targets,), "high": (targets,),
        }  # fmt: skip
        for name, size in sizes.items():
            self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    @classmethod
    def make(cls, config: Config, facts: Facts, encoder: nn.Module) -> Self:
        head, views, per_view = config.model.head, config.backbone.views, config.backbone.n_parts
        n, data = views.n_crops * per_view, config.data
        sums = Sums.of(facts.targets, data.parts_of) if data.sums else None
        model = cls((n, facts.embed_dim // per_view, len(facts.targets)), getattr(head, "log_share", 0.0), sums)
        model.views = views
        return model

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """A model of before limits were kept has none."""
        if "low" not in state:
            for name, limit in (("low", -math.inf), ("high", math.inf)):
                self.register_buffer(name, torch.full_like(self.get_buffer(name), limit), persistent=False)
        super().restore(state)

    def parts_of(self, features: Features) -> Float64[Tensor, "images parts width"]:
        """Features of the views of one pose [B, C, E], or of the image [B, E], part by part."""
        return features.double().reshape(len(features), *self.centre.shape)

    def predict(self, features: Features, metadata: Metadata | None = None) -> Predicted:
        return self.over_poses(self._say, features, metadata)

    def _say(self, features: Features, metadata: Metadata | None) -> Predicted:
        scaled = (self.parts_of(features) - self.centre) / self.scale
        of_parts = torch.einsum("npd,pdo->npo", scaled, self.part_weights) + self.part_bias
        said = self.consistent(torch.einsum("npo,po->no", of_parts, self.stack_weights) + self.stack_bias)
        mean = said.to(features.device)
        return Predicted(mean, torch.ones_like(mean), torch.zeros_like(mean))

    def consistent(self, said: Float64[Tensor, "images spaces_targets"]) -> Float64[Tensor, "images targets"]:
        """What both spaces say, averaged in the targets' own units, nothing below 0, and so that sums hold."""
        raw, log = said.chunk(len(SPACES), dim=1)
        raw, log = (answer.clamp(self.low, self.high) for answer in (raw, torch.expm1(log)))
        mean = (1 - self.log_share) * raw + self.log_share * log
        if self.sums is None:
            return mean.clamp_min(0)
        return torch.from_numpy(self.sums.reconciled(mean.cpu().numpy())).to(mean)


def in_spaces(targets: Float[np.ndarray, "images targets"]) -> Float64[np.ndarray, "images spaces_targets"]:
    """Targets in both SPACES, side by side."""
    values = targets.astype("float64")
    return np.concatenate([values, np.log1p(values)], axis=1)


def take_over(model: RidgeStack, fitted: dict[str, Any]) -> None:
    """Put fitted arrays into a model, by the names of its buffers."""
    for name, values in fitted.items():
        model.get_buffer(name).copy_(torch.from_numpy(np.asarray(values)))
