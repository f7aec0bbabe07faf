"""The block `augment`: augmentations of what the encoder reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.config.fits import Fit
from pipeline.config.section import LATER, BelowOne, Fraction, Section


class ImageAugment(Section):
    """Augmentations of the images that `model.encoder.kind: end_to_end` learns from, drawn for each image; 0 or false turns
    one off."""

    flip: bool = False
    """Mirror half of the images, left and right."""
    rotation: float = Field(0.0, ge=0, le=180)
    """Turn by up to so many degrees, either way."""
    scale: float = Field(0.0, ge=0)
    """Shrink or enlarge by up to this fraction: a factor between 1 / (1 + scale) and 1 + scale."""
    shift: Fraction = 0.0
    """Shift by up to this fraction of the side, in both directions."""
    brightness: float = Field(0.0, ge=0)
    """Add up to so much, or take it away, in the units of the network's input (about its standard deviations)."""
    contrast: Fraction = 0.0
    """Stretch or flatten by up to this fraction around the image's mean."""
    erase: Fraction = 0.0
    """Probability that a random rectangle becomes 0, the colour that the network takes for the mean."""

    def is_on(self) -> bool:
        """Whether anything is on."""
        return any(self.model_dump().values())


class Augment(Section):
    """Augmentations of what the encoder reads, applied in this order; 0 turns one off."""

    fits = (
        Fit("train.sample", ("images",), "mixes images", "mixup_alpha"),
        Fit("backbone.views.has_poses", (True,), "draws poses", "poses", hint="backbone.views.poses to some"),
        Fit(
            "model.encoder.reads",
            ("images",),
            "changes images, and model.encoder.kind {model.encoder.kind} reads cached features",
            "images",
        ),
    )
    image_dropout: BelowOne = 0.0
    """Probability that an image is left out of its batch, or of its group (at least one stays)."""
    images: ImageAugment = ImageAugment()
    """Of images, where these are what it reads."""
    poses: Annotated[Fraction, LATER] = 0.0
    """Probability that an image is trained on as another of its poses than the plain one (backbone.views)."""
    mixup_alpha: float = Field(0.0, ge=0)
    """λ ~ Beta(α, α) per batch mixes features, targets and domain embeddings (mixup, arXiv 1710.09412)."""
    domain_dropout: Fraction = 0.0
    """Probability that a whole batch's domain becomes unknown."""
    species_dropout: Fraction = 0.0
    """Probability that an image's species becomes unknown; of these, the same share lose their genus too."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on the features."""
    warmup: Fraction = 0.0
    """Every strength grows linearly from 0 over this share of the epochs; 0: full strength from the start."""
