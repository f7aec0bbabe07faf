"""The kinds of features: what each takes of a backbone and of an image. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.backbone import FeatureKind
from pipeline.config.measures import Measures

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.backbones.base import Backbone


@dataclass(frozen=True)
class Kind:
    """How features of one kind are computed, and how large they are."""

    compute: Callable[[Backbone, Tensor, int], Tensor]
    """Images [B, 3, H, W], and the blocks before the cut where there is one → features [B, …]."""
    n_numbers: Callable[[Measures], int]
    """Numbers in one image's features."""


KINDS: dict[FeatureKind, Kind] = {
    "pooled": Kind(lambda backbone, images, _: backbone.embed(images), lambda of: of.embed_dim),
    "patches": Kind(lambda backbone, images, _: backbone.patches(images), lambda of: of.n_patches * of.width),
    "cut": Kind(lambda backbone, images, cut: backbone.trunk(images, cut), lambda of: of.n_tokens),
    "images": Kind(lambda _, images, __: images, lambda of: of.n_inputs),
}
