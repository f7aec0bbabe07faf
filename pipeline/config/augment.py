"""The block `augment`: augmentations of what the encoder reads."""

from __future__ import annotations

from typing import Annotated, Literal

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
    flip_vertical: Annotated[bool, LATER] = False
    """Mirror half of the images, up and down."""
    quarter_turns: Annotated[Fraction, LATER] = 0.0
    """Probability of one, two or three quarters of a turn."""
    saturation: Annotated[Fraction, LATER] = 0.0
    """Stretch or flatten colours by up to this fraction around each pixel's grey."""
    hue: Annotated[float, Field(ge=0, le=0.5), LATER] = 0.0
    """Turn colours around grey by up to so much of the circle, either way."""
    colour_probability: Annotated[Fraction, LATER] = 1.0
    """Of an image to have brightness, contrast, saturation and hue changed at all."""
    erase: Fraction = 0.0
    """Probability that a random rectangle becomes 0, the colour that the network takes for the mean."""

    def is_on(self) -> bool:
        """Whether anything is on."""
        return any(value for name, value in self.model_dump().items() if name != "colour_probability")

    @property
    def changes_colours(self) -> bool:
        """Whether anything is on that `colour_probability` is of."""
        return bool(self.brightness or self.contrast or self.saturation or self.hue)


class Mixup(Section):
    """How `augment.mixup_alpha` mixes."""

    of: Literal["features", "embedding"] = "features"
    """What is mixed: what the encoder reads, or what it and the fusing of views make of it (arXiv 1806.05236)."""
    probability: Fraction = 1.0
    """Of a batch to be mixed at all."""
    keeps_most: bool = False
    """λ = max(λ, 1 − λ): an image stays most of what it was."""


class Augment(Section):
    """Augmentations of what the encoder reads, applied in this order; 0 turns one off."""

    fits = (
        Fit("train.sample", ("images",), "mixes images", "mixup_alpha"),
        Fit("augment.mixes", (True,), "says how to mix, and nothing is mixed", "mixup", hint="augment.mixup_alpha above 0"),
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
    mixup: Annotated[Mixup, LATER] = Mixup()
    """What of."""
    domain_dropout: Fraction = 0.0
    """Probability that a whole batch's domain becomes unknown."""
    species_dropout: Fraction = 0.0
    """Probability that an image's species becomes unknown; of these, the same share lose their genus too."""
    noise: float = Field(0.0, ge=0)
    """Standard deviation of Gaussian noise on the features."""
    warmup: Fraction = 0.0
    """Every strength grows linearly from 0 over this share of the epochs; 0: full strength from the start."""

    @property
    def is_on(self) -> bool:
        """Whether anything is on that `warmup` is of."""
        numbers = (self.image_dropout, self.poses, self.mixup_alpha, self.domain_dropout, self.species_dropout, self.noise)
        return any(numbers) or self.images.is_on()

    @property
    def draws_poses(self) -> bool:
        """Whether images are trained on as others of their poses than the plain one."""
        return self.poses > 0

    @property
    def mixes(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup_alpha > 0
