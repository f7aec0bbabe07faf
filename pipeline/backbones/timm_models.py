"""Networks of timm, convolutional or not: pooled features without the classifier, frozen or trained end to end. Weights are
random, published (timm's names with a tag), of a model on the Hub, or of a folder as timm's `save_for_hf` writes one
(config.json, model.safetensors). timm reads them as safetensors or with `weights_only`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from jaxtyping import Float
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from pipeline import hub
from pipeline.backbones.base import Backbone, Tapped, checked_folder, seeded
from pipeline.backbones.halves import Halves, of_steps
from pipeline.config import backbone as blocks
from pipeline.config.backbone import HUB, LOCAL
from pipeline.disk.reading import in_short
from pipeline.errors import UserError, WorkError, nearest


class TimmBackbone(Backbone):
    """A network of timm with its inference transform: nothing random is done to an image."""

    def __init__(self, model: nn.Module, image_size: int, label: str) -> None:
        super().__init__()
        self.model, self.label = model, label
        settings = resolve_data_config({"input_size": (3, image_size, image_size)}, model=model)
        self.preprocess = cast(Any, create_transform(**settings, is_training=False))
        self.halves = of_steps(self.preprocess)
        self.image_size = image_size
        self.embed_dim = self.width = self._measure_embedding()

    def transform(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        return cast(Halves, self.halves)(image)

    def transform_id(self) -> str:
        return f"timm, rgb first: {self.preprocess!r}"

    def embed(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images embed_dim"]:
        """Pooled features before the classifier."""
        return cast(Tensor, self.model(images))

    def tapped(self, images: Float[Tensor, "images 3 h w"], taps: Sequence[int]) -> list[Tapped]:
        """Of convolutions the cells of the map after a stage are its patches."""
        if not hasattr(self.model, "forward_intermediates"):
            return super().tapped(images, taps)
        options = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
        options |= {"return_prefix_tokens": True} if self._n_prefix else {}
        found = cast(Any, self.model).forward_intermediates(images, indices=list(taps), **options)
        pairs = found if self._n_prefix else [(each, each.new_zeros(len(each), 0, each.shape[1])) for each in found]
        return [Tapped(prefix, maps.flatten(2).transpose(1, 2)) for maps, prefix in pairs]

    @property
    def n_taps(self) -> int:
        model = cast(Any, self.model)
        return len(model.blocks if hasattr(model, "blocks") and hasattr(model, "patch_embed") else model.feature_info)

    @property
    def _n_prefix(self) -> int:
        """Class token and registers: of DINOv3 five. (Pooling all but the first would take registers for patches.)"""
        return int(getattr(self.model, "num_prefix_tokens", 0))

    def grid_at(self, size: int) -> tuple[int, int]:
        patches = getattr(self.model, "patch_embed", None)
        if patches is None or size == self.image_size:  # convolutions read any
            return self.grid
        side = int(patches.patch_size[0])
        if size % side or not getattr(self.model, "dynamic_img_size", False):
            raise UserError(f"{self.label} cannot read {size} pixels: name multiples of {side} in backbone.views.sizes.")
        return size // side, size // side

    def fix_size(self, size: int) -> None:
        if size != self.image_size and hasattr(self.model, "set_input_size"):
            cast(Any, self.model).set_input_size(img_size=(size, size))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        cast(Any, self.model).set_grad_checkpointing(enable)

    def write_spec(self, block: blocks.Backbone, folder: Path, name: str) -> dict[str, Any]:
        """Nothing is written: architecture, image size and the settings of the transform are all that timm needs."""
        size = self.image_size
        settings = resolve_data_config({"input_size": (3, size, size)}, model=self.model)
        own = {"timm": _settings(self.model)["architecture"], "image_size": size, "preprocess": settings}
        return block.model_dump(mode="json") | {"architecture": name} | own

    def extra_repr(self) -> str:
        """Part of the key of features: modules alone do not tell how a transformer pools."""
        pool = getattr(self.model, "global_pool", None)
        return f"architecture={_settings(self.model)['architecture']}" + (f", pool={pool}" if isinstance(pool, str) else "")

    def _measure_embedding(self) -> int:
        """Width of the embedding; raises UserError where the network cannot read images of this size, or does not pool."""
        try:
            with torch.inference_mode():
                embedding = self.embed(torch.zeros(1, 3, self.image_size, self.image_size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise UserError(
                f"{self.label} cannot read images of {self.image_size} × {self.image_size} pixels: {in_short(error)} Set "
                "backbone.image_size to a size that it can."
            ) from error
        if embedding.ndim != 2:
            raise UserError(f"{self.label} gives {tuple(embedding.shape[1:])} numbers and no pooled embedding.")
        return embedding.shape[1]


def _settings(model: nn.Module) -> dict[str, Any]:
    """timm's description of a model: architecture, input size, mean and sd of pixels, where weights come from."""
    return dict(cast(Any, model).pretrained_cfg)


# ---------------------------------------------------------------- loading
def load_timm(config: blocks.Timm) -> TimmBackbone:
    """The network of an architecture name, `hf-hub:owner/name`, or `local-dir:/a/folder`."""
    name = _checked_name(config)
    label = f"timm's {config.name}"
    with seeded(config.seed):
        model = _create(name, config).eval()
    sizes = config.views.sizes or ((config.image_size,) if config.image_size else ())
    if len(sizes) > 1 and hasattr(model, "dynamic_img_size"):
        with seeded(config.seed):
            model = _create(name, config, dynamic_img_size=True).eval()
    elif sizes:
        _resize(model, sizes[0], label)
    return TimmBackbone(model, sizes[0] if len(sizes) == 1 else _settings(model)["input_size"][1], label)


def _create(name: str, config: blocks.Timm, **more: Any) -> nn.Module:
    loads = config.pretrained or name.startswith((LOCAL, HUB))
    try:
        return cast(nn.Module, timm.create_model(name, pretrained=loads, num_classes=0, **more))
    except Exception as error:  # timm raises whatever its libraries do
        raise _failure(name, loads, error) from error


def _resize(model: nn.Module, size: int, label: str) -> None:
    """Make a transformer whose positions are of one size fit another; convolutions read any."""
    if not hasattr(model, "set_input_size"):
        return
    try:
        cast(Any, model).set_input_size(img_size=(size, size))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(f"{label} cannot be made to read {size} × {size} pixels: {in_short(error)}") from error


def _checked_name(config: blocks.Timm) -> str:
    """The name as timm takes it; UserError for what is wrong with it before anything is loaded."""
    name = config.name
    if name.startswith((LOCAL, HUB)):
        if config.pretrained:
            raise UserError(f"backbone.name {name} brings its own weights: remove backbone.pretrained.")
        if name.startswith(HUB):
            return name
        return f"{LOCAL}{checked_folder(name, ('config.json', 'model.safetensors'), 'timm')}"
    if Path(name).expanduser().is_dir():
        raise UserError(f"backbone.name {name} is a folder: write {LOCAL}{name}.")
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near, named = nearest(architecture, timm.list_models()), f"{HUB}owner/name, folders {LOCAL}/a/folder"
        raise UserError(f"backbone.name {name} is no architecture of timm; {near} Models on the Hub are named {named}.")
    published = [known.partition(".") for known in timm.list_pretrained(f"{architecture}*")]
    tags = [known_tag for known, _, known_tag in published if known == architecture]
    if tag and tag not in tags:
        raise UserError(f"backbone.name {name}: {architecture} has no weights {tag}; it has: {', '.join(tags) or 'none'}.")
    if tag and not config.pretrained:
        raise UserError(
            f"backbone.name {name} names weights, and backbone.pretrained is false: set it to true, or write {architecture} for "
            "random ones."
        )
    if config.pretrained and not tags:
        raise UserError(f"backbone.name {name} has no published weights: remove backbone.pretrained, or name another.")
    return name


def hub_repository(name: str) -> str | None:
    """The model on the Hub (`owner/name`) that an architecture's published weights come from; None for those elsewhere."""
    settings = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    return (settings and settings.hf_hub_id) or None


def _failure(name: str, loads: bool, error: Exception) -> UserError | WorkError:
    if name.startswith(LOCAL):
        folder = name.removeprefix(LOCAL)
        return UserError(f"The weights in {folder} are damaged or of another architecture than its config: {in_short(error)}")
    repository = name.removeprefix(HUB) if name.startswith(HUB) else hub_repository(name)
    if loads and repository:
        return hub.not_loaded(f"The weights of {name}", error, hub.cached_repository(repository, "models"))
    return UserError(f"timm could not build {name}: {in_short(error)}")
