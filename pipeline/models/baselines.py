"""Models that look at no image: climatology, and gradient boosting on metadata. What a claim about images must beat.

They remember what they learnt in buffers whose sizes follow from the data, so that they are saved like any model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.config.head import ClimatologyHead
from pipeline.config.trial import Config
from pipeline.models.base import Facts, Model, Predicted
from pipeline.models.metadata import UNKNOWN_DAY, Metadata, Names

if TYPE_CHECKING:
    from lightgbm import Booster

DAYS = 365.25


class Baseline(Model):
    """A model that is all buffers."""

    reads_images = False

    @classmethod
    def make(cls, config: Config, facts: Facts, encoder: nn.Module) -> Self:
        return cls(config.model.head, facts.names)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take these tensors over, by name, whatever their sizes."""
        for name, tensor in state.items():
            self.register_buffer(name, tensor)


class Climatology(Baseline):
    """Mean and spread of the training groups of a site around that day of the year; else of the domain; else of all.

    The organisers' first baseline. Its buffers are the training groups.
    """

    domain: Int[Tensor, " groups"]
    site: Int[Tensor, " groups"]
    day: Int[Tensor, " groups"]
    targets: Float[Tensor, "groups targets"]

    def __init__(self, head: ClimatologyHead, names: Names) -> None:
        super().__init__()
        self.window, self.min_groups = head.window, head.min_groups
        self.unknown_domain, self.unknown_site = len(names.domains), len(names.sites)

    def learn(self, metadata: Metadata, targets: Float[Tensor, "groups targets"]) -> None:
        """Remember the training groups and their targets."""
        self.restore({"domain": metadata.domain, "site": metadata.site, "day": metadata.day, "targets": targets})

    def predict(self, features: Tensor, metadata: Metadata | None = None) -> Predicted:
        assert metadata is not None
        mean, variance = self._moments(torch.ones(len(metadata), len(self.domain), dtype=torch.bool, device=self.domain.device))
        same_domain = (metadata.domain[:, None] == self.domain) & (self.domain != self.unknown_domain)
        apart = (metadata.day[:, None] - self.day).abs().float()
        near = torch.minimum(apart, DAYS - apart) <= self.window
        known = (metadata.day != UNKNOWN_DAY)[:, None] & (self.day != UNKNOWN_DAY) & (self.site != self.unknown_site)
        same_season = (metadata.site[:, None] == self.site) & near & known
        for alike in (same_domain, same_season):  # what is unknown is like nothing
            enough = (alike.sum(1) >= self.min_groups)[:, None]
            found = self._moments(alike)
            mean, variance = torch.where(enough, found[0], mean), torch.where(enough, found[1], variance)
        return Predicted(mean, variance, torch.zeros_like(mean))

    def spec(self) -> dict[str, Any]:
        return {"kind": "climatology", "min_groups": self.min_groups}

    def _moments(self, alike: Bool[Tensor, "images groups"]) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance of the training groups that are `alike`."""
        weights, targets = alike.double(), self.targets.double()  # squares far from 0 cancel
        n = weights.sum(1, keepdim=True).clamp_min(1)
        mean = weights @ targets / n
        squares = weights @ targets.square() / n - mean.square()
        return mean.float(), (squares * n / (n - 1).clamp_min(1)).clamp_min(1e-6).float()


class Boosting(Baseline):
    """Gradient-boosted trees on domain, species, site and day of the year. Its buffers are LightGBM's own text, `target_<i>`."""

    def __init__(self, head: Any, names: Names) -> None:
        super().__init__()
        self.sizes = (len(names.domains), len(names.species), len(names.sites))

    def learn(self, texts: list[str]) -> None:
        """Remember a model for each target."""
        self.restore({f"target_{i}": torch.tensor(list(text.encode()), dtype=torch.uint8) for i, text in enumerate(texts)})

    def predict(self, features: Tensor, metadata: Metadata | None = None) -> Predicted:
        assert metadata is not None
        columns = self.columns(metadata)
        said = np.stack([booster.predict(columns, num_threads=1) for booster in self._boosters], 1)
        mean = torch.from_numpy(said).float().to(metadata.domain.device)
        return Predicted(mean, torch.ones_like(mean), torch.zeros_like(mean))

    def spec(self) -> dict[str, Any]:
        return {"kind": "boosting"}

    def columns(self, metadata: Metadata) -> Float[np.ndarray, "images 4"]:
        """What the trees read; NaN for what is unknown."""
        rows = torch.stack((metadata.domain, metadata.species, metadata.site, metadata.day), 1).cpu().numpy()
        unknown = rows == np.array([*self.sizes, UNKNOWN_DAY])
        return np.where(unknown, np.nan, rows.astype("float64"))

    @cached_property
    def _boosters(self) -> list[Booster]:
        from lightgbm import Booster  # a library that nothing else needs

        texts = (self.get_buffer(f"target_{i}") for i in range(len(self.state_dict())))
        return [Booster(model_str=bytes(text.cpu().numpy()).decode()) for text in texts]
