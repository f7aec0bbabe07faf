"""The kinds of features: how each is computed, and how large it is. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pipeline.config.backbone import FeatureKind
from pipeline.config.measures import Measures


class Kind(NamedTuple):
    """What one kind takes of a backbone and of an image."""

    compute: Callable[[Any, Any, int], Any]
    """Backbone, images as its transform gives them, and the blocks before the cut where there is one → features [B, …]."""
    n_numbers: Callable[[Measures], int]
    """Numbers in one image's features."""


KINDS: dict[FeatureKind, Kind] = {
    "pooled": Kind(lambda backbone, images, _: backbone.embed(images), lambda of: of.embed_dim * of.n_views),
    "patches": Kind(lambda backbone, images, _: backbone.patches(images), lambda of: of.n_patches * of.width * of.n_views),
    "cut": Kind(lambda backbone, images, cut: backbone.trunk(images, cut), lambda of: of.n_tokens),
    "images": Kind(lambda backbone, images, _: backbone.given(images), lambda of: of.n_inputs),
}
