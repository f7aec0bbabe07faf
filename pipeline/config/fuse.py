"""The block `model.fuse`: how the views of an image become one embedding (`backbone.views`). A kind names the module of
`models/fuse.py` that does it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.config.fits import Fit
from pipeline.config.kinds import Kind
from pipeline.config.section import BelowOne, Positive, implementation
from pipeline.config.views import Views


class Fuse(Kind):
    """How views become one embedding."""

    fits: ClassVar[tuple[Any, ...]] = (
        Fit(
            "backbone.views.are_plain",
            (False,),
            "makes one of several views, and there is one",
            "asks_for_views",
            (True,),
            hint="backbone.views.crops to [left, right], for example",
        ),
        Fit("model.head.descends", (True,), "learns by gradient descent", "learns", (True,)),
        Fit("model.standardize_features", (False,), "learns what would be standardised", "learns", (True,)),
    )
    asks_for_views: ClassVar[bool] = True
    """Whether it is of no use with one view."""
    learns: ClassVar[bool] = False
    """Whether there is anything in it that learns."""
    module: ClassVar[str]
    """The class of `models/fuse.py`."""

    @abstractmethod
    def width(self, embed_dim: int, views: Views) -> int:
        """Width F of what it makes of views that are `embed_dim` wide."""

    def n_parameters(self, embed_dim: int, views: Views) -> int:
        """How many numbers it learns."""
        return 0

    def build(self, embed_dim: int, views: Views) -> Any:
        """A new module, views of one pose [B, C, E] → embedding [B, F]."""
        return implementation(self.module)(self, embed_dim, views)


class Concat(Fuse):
    """All views side by side."""

    asks_for_views = False
    module = "pipeline.models.fuse.Concat"
    kind: Literal["concat"] = "concat"

    def width(self, embed_dim: int, views: Views) -> int:
        return embed_dim * views.n_crops


class Mean(Fuse):
    """The mean of the views."""

    module = "pipeline.models.fuse.Mean"
    kind: Literal["mean"]

    def width(self, embed_dim: int, views: Views) -> int:
        return embed_dim


class Film(Fuse):
    """Of each crop the mean of its tiles, modulated by what they have in common (FiLM, arXiv 1709.07871), in a way of its own;
    crops side by side."""

    fits = (Fit("backbone.views.has_tiles", (True,), "modulates the tiles of a crop", hint="backbone.views.tiles to [2, 2]"),)
    learns = True
    module = "pipeline.models.fuse.Film"
    kind: Literal["film"]

    def width(self, embed_dim: int, views: Views) -> int:
        return embed_dim * (views.n_crops // views.n_tiles)

    def n_parameters(self, embed_dim: int, views: Views) -> int:
        half = embed_dim // 2
        return (views.n_crops // views.n_tiles) * 3 * embed_dim * half


class Attention(Fuse):
    """Self-attention over the views, each with a learned embedding of its place, then their mean."""

    learns = True
    module = "pipeline.models.fuse.Attention"
    kind: Literal["attention"]
    layers: Positive = 1
    """How many, one after another."""
    heads: Positive = 8
    """Of each layer; they divide the embedding's width."""
    dropout: BelowOne = 0.1
    """In each layer."""

    def width(self, embed_dim: int, views: Views) -> int:
        return embed_dim

    def n_parameters(self, embed_dim: int, views: Views) -> int:
        return self.layers * 8 * embed_dim**2


class LocalMixing(Fuse):
    """Neighbouring views mixed by a gated convolution over them, dimension by dimension, then their mean."""

    learns = True
    module = "pipeline.models.fuse.LocalMixing"
    kind: Literal["local_mixing"]
    layers: Positive = 1
    """How many, one after another."""
    kernel: Annotated[int, Field(ge=3)] = 3
    """How many neighbours each one mixes."""

    def width(self, embed_dim: int, views: Views) -> int:
        return embed_dim

    def n_parameters(self, embed_dim: int, views: Views) -> int:
        return self.layers * 2 * embed_dim**2
