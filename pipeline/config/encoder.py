"""The block `model.encoder`: what turns features into an embedding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import Fraction, Positive, Section


class Frozen(Section):
    """The backbone's pooled embedding as it is."""

    kind: Literal["frozen"] = "frozen"


class FineTuned(Section):
    """The last blocks and the final layer norm are trained, on cached tokens of the frozen trunk."""

    kind: Literal["finetuned"]
    blocks: Positive = 2
    """How many of the last blocks are trained: the cut is at n_blocks − blocks."""
    lr_scale: float = Field(0.01, gt=0)
    """Learning rate of blocks and layer norm, as a multiple of `optim.lr`."""


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"]


class Lora(Section):
    """Low-rank adapters on the last blocks through PEFT (LoRA, arXiv 2106.09685; DoRA, 2402.09353; rsLoRA, 2312.03732)."""

    kind: Literal["lora"]
    blocks: Positive = 6
    """How many of the last blocks carry adapters."""
    r: Positive = 256
    """Rank."""
    alpha: float = Field(256, gt=0)
    """Scale of the update: alpha / r, or alpha / √r with rsLoRA."""
    dropout: Fraction = 0.0
    """Dropout on the adapters' input."""
    rslora: bool = True
    """Scale by 1/√r instead of 1/r."""
    dora: bool = True
    """Train magnitude and direction apart."""
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "out_proj",
        "c_fc",
        "c_proj",
    )
    """Projections that carry adapters."""
    depth_gain: float = Field(0.5, ge=0)
    """Block i of N learns at lr·(1 + depth_gain·i/N)."""
    ln_scale: float = Field(0.5, gt=0)
    """Learning rate of the final layer norm, as a multiple of `optim.lr`."""


class PatchConvs(Section):
    """Two convolutions over the grid of frozen patch tokens, the second one as wide as what the first leaves."""

    kind: Literal["patch_convs"]
    kernel: Positive = 5
    """Side of the first convolution's kernel; it keeps the width."""
    channels: Positive = 1024
    """Output channels of the second convolution."""


class EndToEnd(Section):
    """Nothing is frozen: the whole backbone learns from images, which are cached as it reads them."""

    kind: Literal["end_to_end"]
    lr_scale: float = Field(1.0, gt=0)
    """Learning rate of the backbone, as a multiple of `optim.lr`."""


Encoder = Annotated[Frozen | FineTuned | Lora | PatchConvs | EndToEnd, Field(discriminator="kind")]
