"""The block `model.encoder`: what turns features into an embedding.

A block says all of its kind that needs no torch: what it reads and costs, and what builds it (`models/encoders.py`).
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from math import isqrt
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field

from pipeline.config.backbone import FeatureKind
from pipeline.config.fits import OWN, Fit
from pipeline.config.kinds import Kind
from pipeline.config.measures import BLOCK, KEPT, PASSING, SIDES, Measures, kept_of_blocks
from pipeline.config.section import LATER, Fraction, Positive, implementation
from pipeline.errors import UserError

BLOCK_NUMBER = re.compile(r"(?:resblocks|blocks|layers?|stages)[._]?(\d+)")


class Encoder(Kind):
    """What turns features into an embedding."""

    fits = (Fit("backbone.offers", OWN, "reads {model.encoder.reads} features, and {backbone.kind} {backbone.lacks}", "reads"),)
    reads: ClassVar[FeatureKind] = "pooled"
    """The features that it needs."""
    learns: ClassVar[bool] = True
    """Whether there is anything in it that learns, for which it is built from the backbone."""
    has_own_files: ClassVar[bool] = False
    """Whether its tensors stand in files of its own, which `save` and `load` are of, instead of in model.safetensors."""

    @property
    def tail_blocks(self) -> int:
        """How many of the last blocks are its own, the cut being before them: its key `blocks`; 0: it has none."""
        return int(getattr(self, "blocks", 0)) if self.reads == "cut" else 0

    def embedding_width(self, embed_dim: int) -> int:
        """Width E of what it gives, for a backbone whose embedding is `embed_dim` wide."""
        return embed_dim

    def rate_scale(self, name: str) -> float:
        """The learning rate of the parameter of this name, as a multiple of `optim.lr`: its key `lr_scale`, if it has one."""
        return float(getattr(self, "lr_scale", 1.0))

    def rate_scales(self, names: Sequence[str]) -> dict[str, float]:
        """Of all of its parameters, in its order: with a `layer_decay` less for each block further from the embedding."""
        decay = float(getattr(self, "layer_decay", 1.0))
        return {name: self.rate_scale(name) * decay**depth for name, depth in depths(names).items()}

    # ------------------------------------------------------------ its module, and that on disk
    @abstractmethod
    def build(self, backbone: Any) -> Any:
        """A new module, features [B, …] → embedding [B, E], for a `backbones.base.Backbone` (None if it does not learn)."""

    def save(self, module: Any, folder: Any) -> None:
        """Write its own files, if it has any, as this folder (a Path) of a trial's."""

    def load(self, backbone: Any, folder: Any) -> Any:
        """The module with what its own files hold."""
        return self.build(backbone)

    def to_native(self, module: Any, tower: Any) -> dict[str, Any]:
        """Its module, with adapters merged, as tensors of the pretrained model that its tower (a `backbones.base.Tower`) is of,
        under the names of its library. Raises UserError where that model has no place for it."""
        return dict(module.to_native())

    # ------------------------------------------------------------ what it costs
    def n_trained(self, of: Measures) -> int:
        """Its parameters that training changes."""
        return 0

    def n_frozen(self, of: Measures) -> int:
        """Its parameters that training leaves as they are."""
        return 0

    def kept_bytes(self, of: Measures, numbers: int, fp32: bool, again: bool = False) -> int:
        """What it keeps for the backward pass of an image with so many `numbers` in its features; `again`: with gradient
        checkpointing."""
        return kept_of_blocks(numbers, self.tail_blocks, KEPT[self._method][fp32], again)

    def passing_bytes(self, of: Measures, numbers: int) -> int:
        """What such an image takes at the height of a forward pass that keeps nothing."""
        return numbers * PASSING[self._method]

    @property
    def _method(self) -> str:
        """As `KEPT` and `PASSING` call it."""
        return "tail"


def depths(names: Sequence[str]) -> dict[str, int]:
    """How many blocks lie between each of an encoder's parameters, in its order, and its end: 0 of what comes behind all blocks,
    1 of the last block, most of what comes before the first. Blocks are told by numbers behind `blocks`, `layer`, `stages`."""
    places = [tuple(map(int, BLOCK_NUMBER.findall(name))) for name in names]
    numbered = sorted({place for place in places if place})
    found, seen = {}, False
    for name, place in zip(names, places, strict=True):
        seen = seen or bool(place)
        before = 0 if seen else 1 + len(numbered)
        found[name] = len(numbered) - numbered.index(place) if place else before if numbered else 0
    return found


class Frozen(Encoder):
    """The backbone's pooled embedding as it is."""

    learns = False
    kind: Literal["frozen"] = "frozen"

    def build(self, backbone: Any) -> Any:
        return implementation("torch.nn.Identity")()

    def to_native(self, module: Any, tower: Any) -> dict[str, Any]:
        return {}


class Projection(Encoder):
    """A square matrix on the backbone's pooled embedding, trained from the identity on: light tuning of a frozen tower."""

    kind: Literal["projection"]
    lr_scale: float = Field(1.0, gt=0)
    """Its learning rate, as a multiple of `optim.lr`."""

    def build(self, backbone: Any) -> Any:
        return implementation("pipeline.models.encoders.Projection")(backbone.embed_dim)

    def to_native(self, module: Any, tower: Any) -> dict[str, Any]:
        return dict(tower.projected(module.matrix()))

    def n_trained(self, of: Measures) -> int:
        return of.embed_dim**2


class FineTuned(Encoder):
    """The last blocks and the final layer norm are trained, on cached tokens of the frozen trunk."""

    reads = "cut"
    kind: Literal["finetuned"]
    blocks: Positive = 2
    """How many of the last blocks are trained: the cut is at n_blocks − blocks."""
    lr_scale: float = Field(0.01, gt=0)
    """Learning rate of blocks and layer norm, as a multiple of `optim.lr`."""
    layer_decay: Annotated[float, Field(gt=0, le=1), LATER] = 1.0
    """Of the rate, from each block to the one before (arXiv 2106.08254)."""

    def build(self, backbone: Any) -> Any:
        return backbone.make_tail(backbone.cut_before(self.blocks))

    def n_trained(self, of: Measures) -> int:
        return self.blocks * BLOCK * of.width**2


LoraTarget = Literal["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"]


class Lora(Encoder):
    """Low-rank adapters on the last blocks through PEFT (LoRA, arXiv 2106.09685; DoRA, 2402.09353; rsLoRA, 2312.03732)."""

    reads = "cut"
    has_own_files = True
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
    targets: Annotated[tuple[LoraTarget, ...], Field(min_length=1)] = get_args(LoraTarget)
    """Projections that carry adapters."""
    depth_gain: float = Field(0.5, ge=0)
    """Block i of N learns at lr·(1 + depth_gain·i/N)."""
    ln_scale: float = Field(0.5, gt=0)
    """Learning rate of the final layer norm, as a multiple of `optim.lr`."""

    def build(self, backbone: Any) -> Any:
        tail = backbone.make_tail(backbone.cut_before(self.blocks))
        return implementation("pipeline.models.adapter.add_adapter")(tail, self)

    def rate_scale(self, name: str) -> float:
        parts = name.split(".")
        if "blocks" not in parts:
            return self.ln_scale
        return 1 + self.depth_gain * int(parts[parts.index("blocks") + 1]) / self.blocks

    def save(self, module: Any, folder: Any) -> None:
        implementation("pipeline.models.adapter.save_adapter")(module, folder)

    def load(self, backbone: Any, folder: Any) -> Any:
        tail = backbone.make_tail(backbone.cut_before(self.blocks))
        return implementation("pipeline.models.adapter.load_adapter")(tail, folder)

    def n_trained(self, of: Measures) -> int:
        return self.blocks * self.r * of.width * sum(SIDES[target] for target in self.targets)

    def n_frozen(self, of: Measures) -> int:
        return self.blocks * BLOCK * of.width**2

    @property
    def _method(self) -> str:
        return "dora" if self.dora else "lora"


class PatchConvs(Encoder):
    """Two convolutions over the grid of frozen patch tokens, the second one as wide as what the first leaves."""

    reads = "patches"
    kind: Literal["patch_convs"]
    kernel: Positive = 5
    """Side of the first convolution's kernel; it keeps the width."""
    channels: Positive = 1024
    """Output channels of the second convolution."""

    def build(self, backbone: Any) -> Any:
        convolutions = implementation("pipeline.models.encoders.PatchConvs")
        return convolutions(backbone.width, backbone.grid, self.kernel, self.channels)

    def to_native(self, module: Any, tower: Any) -> dict[str, Any]:
        raise UserError(f"model.encoder.kind {self.kind}: convolutions over patches are no part of {tower.label}.")

    def embedding_width(self, embed_dim: int) -> int:
        return self.channels

    def n_trained(self, of: Measures) -> int:
        rest = max(1, isqrt(of.n_patches) - self.kernel + 1)
        return self.kernel**2 * of.width**2 + rest**2 * of.width * self.channels


TokenPoolingKind = Literal["mean", "max", "gem", "attention"]


class TokenPooling(Encoder):
    """Frozen patch tokens pooled in several ways side by side, of which some learn, and one linear layer on that. (What does not
    learn is cheaper as backbone.poolings.)"""

    reads = "patches"
    kind: Literal["token_pooling"]
    poolings: Annotated[tuple[TokenPoolingKind, ...], Field(min_length=1)] = ("mean", "attention")
    """mean, max; gem: the power mean with an exponent that is learnt (arXiv 1711.02512); attention: weighted by a softmax over
    the tokens (arXiv 1802.04712)."""
    channels: Positive = 512
    """Width of what the linear layer makes of them."""

    def build(self, backbone: Any) -> Any:
        module = implementation("pipeline.models.encoders.TokenPooling")
        return module(backbone.width, self.poolings, self.channels)

    def to_native(self, module: Any, tower: Any) -> dict[str, Any]:
        raise UserError(f"model.encoder.kind {self.kind}: poolings of patches are no part of {tower.label}.")

    def embedding_width(self, embed_dim: int) -> int:
        return self.channels

    def n_trained(self, of: Measures) -> int:
        return of.width * len(self.poolings) * self.channels


class EndToEnd(Encoder):
    """Nothing is frozen: the whole tower learns from images or texts, which are cached as it reads them."""

    reads = "images"
    kind: Literal["end_to_end"]
    lr_scale: float = Field(1.0, gt=0)
    """Learning rate of the tower, as a multiple of `optim.lr`."""
    layer_decay: Annotated[float, Field(gt=0, le=1), LATER] = 1.0
    """Of the rate, from each block to the one before (arXiv 2106.08254)."""

    def build(self, backbone: Any) -> Any:
        return backbone.network()

    def n_trained(self, of: Measures) -> int:
        return of.n_parameters

    def kept_bytes(self, of: Measures, numbers: int, fp32: bool, again: bool = False) -> int:
        return of.kept_bytes(fp32, again)

    def passing_bytes(self, of: Measures, numbers: int) -> int:
        return of.passing_bytes()
