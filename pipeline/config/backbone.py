"""The block `backbone`: the pretrained encoder that features come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.config.section import Positive, Section, Seed


class OpenClip(Section):
    """Any image tower of open_clip."""

    kind: Literal["open_clip"] = "open_clip"
    name: str = "hf-hub:imageomics/bioclip-2"
    """`hf-hub:owner/name`, `local-dir:/a/folder`, or an architecture name such as `ViT-B-32`."""
    pretrained: str | None = None
    """Pretrained tag or checkpoint file of an architecture name; null: random weights drawn from `seed`."""
    seed: Seed = 0
    """Seed of random weights; unused where weights are loaded."""


class Dinov2(Section):
    """DINOv2 through transformers."""

    kind: Literal["dinov2"]
    name: str = "facebook/dinov2-base"
    """Hub name or local folder."""
    revision: str | None = None
    """Commit, tag or branch on the Hub."""
    pooling: Literal["cls", "cls_mean"] = "cls"
    """The embedding: the class token; or the class token and, after it, the mean of the patch tokens."""


class Timm(Section):
    """Any image network of timm: its pooled features, without its classifier."""

    kind: Literal["timm"]
    name: str = "resnet18"
    """An architecture (with or without a tag: `resnet18.a1_in1k`), `hf-hub:owner/name`, or `local-dir:/a/folder`."""
    pretrained: bool = False
    """Whether an architecture's published weights are loaded; false: random weights drawn from `seed`."""
    image_size: Positive | None = None
    """Side in pixels of the images that it reads; null: what it was made for."""
    seed: Seed = 0
    """Seed of random weights; unused where weights are loaded."""


class Pixels(Section):
    """A plain baseline instead of a network: the image shrunk to size × size RGB values (size 1: its mean colour)."""

    kind: Literal["pixels"]
    size: Positive = 8
    """Side of the thumbnail in pixels."""


Part = Annotated[OpenClip | Dinov2 | Timm | Pixels, Field(discriminator="kind")]


class Concat(Section):
    """Several backbones as one: their embeddings, each scaled to length 1, one after the other."""

    kind: Literal["concat"]
    parts: tuple[Part, ...] = (OpenClip(), Dinov2(kind="dinov2"))
    """The backbones, each a block with its `kind`."""

    @field_validator("parts")
    @classmethod
    def _are_several(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(parts) < 2:
            raise ValueError("a concatenation is of two backbones or more; one alone is written as the backbone itself")
        return parts


Backbone = Annotated[OpenClip | Dinov2 | Timm | Pixels | Concat, Field(discriminator="kind")]


def backbone_parts(backbone: Backbone) -> tuple[Part, ...]:
    """The backbones that one is made of: itself, or the parts of a concatenation."""
    return backbone.parts if isinstance(backbone, Concat) else (backbone,)


def backbone_name(backbone: Backbone) -> str:
    """What people call a backbone: `facebook/dinov2-base`, `pixels`, `resnet18 + pixels`."""
    return " + ".join("pixels" if part.kind == "pixels" else part.name for part in backbone_parts(backbone))
