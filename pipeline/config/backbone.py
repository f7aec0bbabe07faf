"""The block `backbone`: the pretrained encoder that features come from.

A block says all of its kind that needs no torch; what `load` gives does the rest (`backbones/base.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from pipeline.config.fits import Fit
from pipeline.config.kinds import Kind, kind_of
from pipeline.config.section import LATER, Positive, Seed, implementation
from pipeline.config.views import Views

FeatureKind = Literal["pooled", "patches", "cut", "images"]
"""What can be kept of an image: its pooled embedding [E], its patch tokens [P, D], all of its tokens at a cut [T, D], or itself
as the network reads it [3, H, W]."""
FEATURES: frozenset[FeatureKind] = frozenset({"pooled", "patches", "cut", "images"})
TextKind = Literal["pooled", "cut"]
"""What can be kept of a text: its pooled embedding [E], or its tokens at a cut with a mark behind each [T, D + 1]."""
LOCAL, HUB = "local-dir:", "hf-hub:"
"""How a name begins that brings its own weights, a folder's or those of the Hub."""


@dataclass(frozen=True)
class Weights:
    """Where weights come from: of path, repository and tag the one that is given; of none they are drawn from a seed."""

    path: str = ""
    """A folder or a file on this machine."""
    repository: str = ""
    """`owner/name` on the Hub."""
    revision: str | None = None
    file: str = "config.json"
    """A file that the repository has: by it the cache is asked which commit is there."""
    tag: tuple[str, ...] = ()
    """Of weights that a library knows by name: the function that tells their repository, if they have one, and its arguments."""


class Backbone(Kind):
    """A pretrained encoder of images."""

    offers: ClassVar[frozenset[FeatureKind]] = frozenset({"pooled"})
    """Which features it has; images, if it can be trained from them."""
    texts: ClassVar[frozenset[TextKind]] = frozenset()
    """Which features of texts it has beside those of images; none where it has no text tower."""
    lacks: ClassVar[str] = "has no such features"
    """What is said to an encoder that needs others."""
    shrinks_once: ClassVar[bool] = True
    """Whether it shrinks an image to one size, so that pixels beyond twice as many make no difference."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Keys that may name a folder or a file."""
    libraries: ClassVar[tuple[str, ...]] = ()
    """What it needs in a submission beside torch, by PyPI's name, in the version that is here."""
    loader: ClassVar[str]
    """The function or class that makes a `backbones.base.Backbone` of the block; a lab's own kind overrides `load`."""
    towers_loader: ClassVar[str]
    """Of one with features of texts: the function that makes `backbones.texts.Towers` of the block."""
    text_sources: ClassVar[str]
    """Of the same: the function that tells what, beside the weights, its texts are read by: repositories on the Hub, folders."""
    views: Annotated[Views, LATER] = Views()
    """What it sees of each image: the whole, as by default, or several crops."""

    @property
    def display_name(self) -> str:
        """What people call it: `facebook/dinov2-base`, `pixels`, `resnet18 + pixels`."""
        return str(getattr(self, "name", self.kind))

    @property
    def networks(self) -> tuple[Backbone, ...]:
        """What it is made of, one by one."""
        return (self,)

    @property
    def n_parts(self) -> int:
        """Of how many parts of one width its embedding consists."""
        return 1

    @property
    def takes_reduced(self) -> bool:
        """Whether `extract.decode=fast` spares it anything."""
        return self.shrinks_once and self.views.are_plain

    def load(self) -> Any:
        """The `backbones.base.Backbone`, on the CPU; torch's random state is left as it was."""
        return implementation(self.loader)(self)

    def weights_from(self) -> tuple[Weights, ...]:
        """Where its weights come from, for each network that it is made of; nothing where there are no weights."""
        return (Weights(),)

    def located(self, absolute: Callable[[str], str]) -> Self:
        """The same with its `paths` made absolute."""
        found = {}
        for key in self.paths:
            if name := getattr(self, key):
                prefix = LOCAL if name.startswith(LOCAL) else ""
                found[key] = prefix + absolute(name.removeprefix(prefix))
        return self.model_copy(update=found)


def _brought_by(name: str, file: str) -> tuple[Weights, ...]:
    """The weights that a name brings with it; nothing for an architecture's."""
    if name.startswith(HUB):
        return (Weights(repository=name.removeprefix(HUB), file=file),)
    return (Weights(path=name.removeprefix(LOCAL)),) if name.startswith(LOCAL) else ()


Pooling = Literal["cls", "mean", "max", "min", "gem"]
"""Of tokens to an embedding: the class token; of the patch tokens the mean, the largest or the smallest number of each dimension,
or the signed power mean (GeM, arXiv 1711.02512): of x the root of the mean of sign(x)·|x|^3."""


class OfTokens(Backbone):
    """One whose tokens can be pooled in several ways, after several of its blocks."""

    fits = (
        Fit("model.head.reads_texts", (False,), "make an embedding that is no longer as wide as those of texts", "poolings"),
        Fit("model.encoder.reads", ("pooled", "images"), "are of the whole backbone", "poolings"),
    )
    taps: Annotated[tuple[int, ...], LATER] = ()
    """Blocks, counted from 0, or from the end as -1, -2, …, after which tokens are pooled, behind the final layer norm; []: after
    the last one. (Of convolutional networks: stages, each filled with zeros to the width of the widest.)"""
    poolings: Annotated[tuple[Pooling, ...], LATER] = ()
    """How: the embedding is all of them, tap by tap, side by side; []: as the library pools."""

    @property
    def n_parts(self) -> int:
        return max(len(self.taps), 1) * max(len(self.poolings), 1)

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if self.taps and not self.poolings:
            raise ValueError("taps are of tokens: name poolings too, for example [cls, mean]")
        if len(set(self.taps)) < len(self.taps) or len(set(self.poolings)) < len(self.poolings):
            raise ValueError("taps and poolings: each once")
        return self


class OpenClip(OfTokens):
    """Any model of open_clip: its image tower, and for what reads texts its text tower."""

    offers = FEATURES
    texts = frozenset({"pooled", "cut"})
    libraries = ("open-clip-torch",)
    paths = ("name", "pretrained")
    loader = "pipeline.backbones.open_clip.load_open_clip"
    towers_loader = "pipeline.backbones.open_clip.load_open_clip_towers"
    text_sources = "pipeline.backbones.open_clip_names.text_sources"
    kind: Literal["open_clip"] = "open_clip"
    name: str = "hf-hub:imageomics/bioclip-2"
    """`hf-hub:owner/name`, `local-dir:/a/folder`, or an architecture name such as `ViT-B-32`."""
    pretrained: str | None = None
    """Pretrained tag or checkpoint file of an architecture name; null: random weights drawn from `seed`."""
    seed: Seed = 0
    """Seed of random weights; unused where weights are loaded."""

    def weights_from(self) -> tuple[Weights, ...]:
        if (brought := _brought_by(self.name, "open_clip_config.json")) or self.pretrained is None:
            return brought or (Weights(),)
        if Path(self.pretrained).expanduser().exists():
            return (Weights(path=self.pretrained),)
        return (Weights(tag=("pipeline.backbones.open_clip_names.hub_repository", self.name, self.pretrained)),)


class Dinov2(OfTokens):
    """DINOv2 through transformers."""

    offers = FEATURES
    libraries = ("transformers",)
    paths = ("name",)
    loader = "pipeline.backbones.dinov2.load_dinov2"
    kind: Literal["dinov2"]
    name: str = "facebook/dinov2-base"
    """Hub name or local folder."""
    revision: str | None = None
    """Commit, tag or branch on the Hub."""
    pooling: Literal["cls", "cls_mean"] = "cls"
    """The embedding: the class token; or the class token and, after it, the mean of the patch tokens."""

    def weights_from(self) -> tuple[Weights, ...]:
        is_here = Path(self.name).expanduser().exists()
        return (Weights(path=self.name) if is_here else Weights(repository=self.name, revision=self.revision),)


class Timm(OfTokens):
    """Any image network of timm: its pooled features, without its classifier."""

    offers = frozenset({"pooled", "images"})
    lacks = "cannot be cut"
    libraries = ("timm",)
    paths = ("name",)
    loader = "pipeline.backbones.timm_models.load_timm"
    kind: Literal["timm"]
    name: str = "resnet18"
    """An architecture (with or without a tag: `resnet18.a1_in1k`), `hf-hub:owner/name`, or `local-dir:/a/folder`."""
    pretrained: bool = False
    """Whether an architecture's published weights are loaded; false: random weights drawn from `seed`."""
    image_size: Positive | None = None
    """Side in pixels of the images that it reads; null: what it was made for."""
    seed: Seed = 0
    """Seed of random weights; unused where weights are loaded."""

    @model_validator(mode="after")
    def _one_size(self) -> Timm:
        if self.image_size is not None and self.views.sizes:
            raise ValueError("image_size and views.sizes exclude one another: the latter says at which sizes images are seen")
        return self

    def weights_from(self) -> tuple[Weights, ...]:
        published = Weights(tag=("pipeline.backbones.timm_models.hub_repository", self.name))
        return _brought_by(self.name, "config.json") or (published if self.pretrained else Weights(),)


class Pixels(Backbone):
    """A plain baseline instead of a network: the image shrunk to size × size RGB values (size 1: its mean colour)."""

    lacks = "has no blocks"
    shrinks_once = False
    kind: Literal["pixels"]
    size: Positive = 8
    """Side of the thumbnail in pixels."""

    @model_validator(mode="after")
    def _one_size(self) -> Pixels:
        if self.views.sizes not in ((), (self.size,)):
            raise ValueError(f"pixels reads images of {self.size} pixels alone: set backbone.views.sizes to []")
        return self

    def load(self) -> Any:
        return implementation("pipeline.backbones.pixels.PixelsBackbone")(self.size)

    def weights_from(self) -> tuple[Weights, ...]:
        return ()


class Concat(Backbone):
    """Several backbones as one: their embeddings, each scaled to length 1, one after the other."""

    lacks = "is several networks"
    shrinks_once = False
    kind: Literal["concat"]
    parts: tuple[Annotated[Backbone, *kind_of(Backbone)], ...] = (OpenClip(), Dinov2(kind="dinov2"))
    """The backbones, each a block with its `kind`."""

    @field_validator("parts")
    @classmethod
    def _are_several(cls, parts: tuple[Backbone, ...]) -> tuple[Backbone, ...]:
        if len(parts) < 2:
            raise ValueError("a concatenation is of two backbones or more; one alone is written as the backbone itself")
        if any(isinstance(part, Concat) for part in parts):
            raise ValueError("a concatenation is of plain backbones: write the parts of the inner one in its place")
        if any(not part.views.are_plain for part in parts):
            raise ValueError("a part of a concatenation sees what all see: set backbone.views of the concatenation itself")
        return parts

    def load(self) -> Any:
        load = implementation("pipeline.backbones.load_backbone")
        return implementation("pipeline.backbones.concat.ConcatBackbone")([load(part) for part in self.parts])

    @property
    def display_name(self) -> str:
        return " + ".join(part.display_name for part in self.parts)

    @property
    def networks(self) -> tuple[Backbone, ...]:
        return self.parts

    def weights_from(self) -> tuple[Weights, ...]:
        return tuple(each for part in self.parts for each in part.weights_from())

    def located(self, absolute: Callable[[str], str]) -> Self:
        return self.model_copy(update={"parts": tuple(part.located(absolute) for part in self.parts)})
