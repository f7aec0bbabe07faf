"""The block `backbone.views`: what a backbone sees of each image: crops of it, tiles of these, at several sizes, and each of them
several times, turned or augmented."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.augment import ImageAugment
from pipeline.config.fits import Fit
from pipeline.config.section import Fraction, Positive, Section

Crop = Literal["whole", "left", "right", "top", "bottom"]
Pose = Literal["hflip", "vflip", "rot90", "rot180", "rot270"]
PLAIN = "plain"
"""The pose that is none."""


class Views(Section):
    """Views of an image: of each pose, of each size, of each crop its tiles row by row. All are squeezed into the network's
    square, nothing is cut off at borders. As by default, the image is seen once, by the backbone's own transform."""

    fits = (
        Fit(
            "augment.draws_poses",
            (True,),
            "are trained on, by augment.poses, and nothing else",
            "draws",
            hint="augment.poses above 0",
        ),
    )
    crops: Annotated[tuple[Crop, ...], Field(min_length=1)] = ("whole",)
    """Parts of the image that it sees apart; [left, right]: two streams."""
    tiles: tuple[Positive, Positive] = (1, 1)
    """Rows and columns of tiles that each crop is cut into."""
    sizes: tuple[Positive, ...] = ()
    """Sides in pixels at which it sees each of them; []: at the backbone's own."""
    poses: tuple[Pose, ...] = ()
    """What else it sees, each crop mirrored or turned (anticlockwise): test-time augmentation, or more to train on."""
    draws: Annotated[int, Field(ge=0)] = 0
    """How many augmented draws it sees beside, to train a head on features that are extracted once; never predicted from."""
    augment: ImageAugment = ImageAugment()
    """How draws are augmented, each view by itself."""
    masks: tuple[tuple[Fraction, Fraction, Fraction, Fraction], ...] = ()
    """Boxes (left, top, right, bottom, in fractions of the sides) that are painted over with the image's mean colour before all
    else: a date stamp, a colour card."""

    @model_validator(mode="after")
    def _can_be(self) -> Views:
        for key in ("crops", "sizes", "poses"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                raise ValueError(f"{key}: each once")
        if bool(self.draws) == (self.augment == ImageAugment()):
            raise ValueError("draws and augment go together: how many, and how they are augmented")
        if any(left >= right or top >= bottom for left, top, right, bottom in self.masks):
            raise ValueError("masks: left, top, right, bottom, in fractions of the sides, the first two less than the others")
        return self

    @property
    def are_plain(self) -> bool:
        """Whether the image is seen once, as it is. (Every step of training asks: no block is made for it.)"""
        return all(getattr(self, name) == info.default for name, info in type(self).model_fields.items())

    @property
    def has_tiles(self) -> bool:
        """Whether crops are cut."""
        return self.n_tiles > 1

    @property
    def has_poses(self) -> bool:
        """Whether each crop is seen in several ways."""
        return len(self.pose_names) > 1

    @property
    def pose_names(self) -> tuple[str, ...]:
        """What each crop is seen as: plainly first, then as `poses` say, then augmented."""
        return (PLAIN, *self.poses, *(f"draw {i}" for i in range(self.draws)))

    @property
    def n_crops(self) -> int:
        """Views of one pose."""
        return max(len(self.sizes), 1) * len(self.crops) * self.n_tiles

    @property
    def n_tiles(self) -> int:
        """Of a crop."""
        return self.tiles[0] * self.tiles[1]

    @property
    def n(self) -> int:
        """Views of an image."""
        return len(self.pose_names) * self.n_crops

    def names(self) -> list[str]:
        """What each view is: `left@512 1.2 hflip`."""
        sizes = [f"@{size}" for size in self.sizes] or [""]
        tiles = (
            [f" {row}.{column}" for row in range(self.tiles[0]) for column in range(self.tiles[1])] if self.n_tiles > 1 else [""]
        )
        parts = product(self.pose_names, sizes, self.crops, tiles)
        return [f"{crop}{size}{tile}" + f" {pose}" * (pose != PLAIN) for pose, size, crop, tile in parts]
