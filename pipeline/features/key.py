"""What the contents of a feature store depend on, and the key that follows from it. Loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.config.backbone import FeatureKind
from pipeline.config.identity import Tower, digest

FORMAT = 1
"""Version of what a store's files mean and of how features are computed; a change of either makes new stores."""

Format = Literal["bf16", "fp32"]
"""Number format on disk."""


@dataclass(frozen=True)
class Ingredients:
    """Everything that features depend on and nothing else: equal ingredients, equal key, one store."""

    data: str
    """sha256 over the images' own sha256, in order; over those of their colour cards and scale bars too if they are used."""
    backbone: str
    """Kind of the backbone."""
    architecture: str
    """sha256 of the modules' description: weights alone do not tell GELU from QuickGELU."""
    weights: str
    """sha256 of the weights. Of images as the network reads them they are no part, and stand here all the same: one rule holds
    for all kinds, and a model is always of the backbone that its features name."""
    transform: str
    """The preprocessing in words."""
    kind: FeatureKind
    """Pooled embedding [E], patch tokens [P, D], tokens at a cut [T, D], or network inputs (mostly [3, H, W])."""
    cut: int
    """Blocks before the cut; 0 for other kinds."""
    dtype: Format
    shard_size: int
    """Images a shard."""
    format: int = FORMAT
    tower: Tower = "image"
    """What reads them; left out for images, as a correction is that there is not: stores from before have neither."""
    correction: str = ""
    """How images are decoded, if not as by default, and what colour card and scale bar do to them, in words; empty if nothing."""

    def key(self) -> str:
        """16 hexadecimal digits."""
        return digest(self.as_dict())[:16]

    def as_dict(self) -> dict[str, Any]:
        """As JSON values, for the manifest."""
        plain = {"correction": "", "tower": "image"}
        return {name: value for name, value in asdict(self).items() if name not in plain or value != plain[name]}
