"""DINOv2 through transformers (with or without register tokens): embedding, patch tokens, trunk and tail. Its attention already
consists of linear layers, so the tail is made of copies of transformers' own layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from pipeline import hub
from pipeline.backbones.base import Backbone, Tail, Tapped, checked_folder, recompute_in_transformers, refuse_code, seeded
from pipeline.backbones.halves import Halves, of_processor
from pipeline.backbones.one_token import first_of, gathered, token_at
from pipeline.config import backbone as blocks
from pipeline.disk.reading import in_short
from pipeline.errors import UserError, WorkError

Pooling = Literal["cls", "cls_mean"]
MODEL_TYPES = ("dinov2", "dinov2_with_registers")
ATTENTION = (None, "eager", "sdpa")
"""What transformers computes itself; others are libraries, which it may bring from the Hub."""
MODULES = {
    "q_proj": (("q_proj",), ("query",)),
    "k_proj": (("k_proj",), ("key",)),
    "v_proj": (("v_proj",), ("value",)),
    "out_proj": (("o_proj",), ("dense",)),
    "c_fc": (("fc1",), ("gate_proj", "up_proj"), ("weights_in",)),
    "c_proj": (("fc2",), ("down_proj",), ("weights_out",)),
}
"""Canonical name → how a layer may call it: the giant has another perceptron, and transformers renamed all after 5.16."""


class Dinov2Tail(Tail):
    """The last encoder layers, the final layer norm, and the pooling."""

    def __init__(self, model: nn.Module, cut: int, n_prefix: int, pooling: Pooling) -> None:
        super().__init__()
        self.cut, self.n_prefix, self.pooling = cut, n_prefix, pooling
        self.blocks = nn.ModuleList(deepcopy(layer) for layer in _layers(model)[cut:])
        self.ln_post = deepcopy(cast(nn.Module, model.layernorm))
        self.projections = _projections(_layers(model)[0])
        config = cast(Any, model.config)
        self.n_heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob

    def forward(self, tokens: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images embed_dim"]:
        """The class token [B, D], or with the patch tokens' mean [B, 2D]."""
        # A layer norm acts on each token alone: only the tokens that are pooled need it.
        if self.pooling == "cls":
            return cast(Tensor, self.ln_post(self.token_after_blocks(tokens, first_of(tokens))))
        return cls_and_mean(self.ln_post(self.through_blocks(tokens)), self.n_prefix)

    def one_token(self, block: nn.Module, tokens: Tensor, at: Tensor, *more: Any) -> Float[Tensor, "images 1 width"]:
        """As a layer of transformers goes, with its own modules."""
        layer, find = cast(Any, block), partial(_projection, block, self.projections)
        x, dropout, heads = layer.norm1(tokens), self.dropout if layer.training else 0.0, self.n_heads
        y = gathered(x, at, [find(name) for name in ("q_proj", "k_proj", "v_proj")], heads, dropout=dropout)
        y = find("out_proj")(y.flatten(1).unsqueeze(1))
        y = layer.drop_path(layer.layer_scale1(y)) + token_at(tokens, at)
        return cast(Tensor, layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(y)))) + y)

    def to_native(self) -> dict[str, Tensor]:
        """Names as in `model.state_dict()`: `encoder.layer.10.attention.q_proj.weight`, …, `layernorm.weight`."""
        return {self._native(name): tensor.detach().to("cpu", copy=True) for name, tensor in self.state_dict().items()}

    def _native(self, name: str) -> str:
        if name.startswith("ln_post."):
            return f"layernorm.{name.removeprefix('ln_post.')}"
        _, index, rest = name.split(".", 2)
        return f"encoder.layer.{self.cut + int(index)}.{rest}"


def cls_and_mean(tokens: Float[Tensor, "images tokens width"], n_prefix: int) -> Float[Tensor, "images 2*width"]:
    """Tokens after the final layer norm → class token and mean of the patch tokens, without registers. What DINOv2's own linear
    classifiers read (Oquab et al. 2023, arXiv 2304.07193)."""
    return torch.cat([tokens[:, 0], tokens[:, n_prefix:].mean(dim=1)], dim=1)


class Dinov2Backbone(Backbone):
    """A DINOv2 model with its image processor."""

    def __init__(self, model: nn.Module, processor: Any, label: str, pooling: Pooling = "cls") -> None:
        super().__init__()
        self.model, self.processor, self.label, self.pooling = model, processor, label, pooling
        self.halves = of_processor(processor)
        config = cast(Any, model.config)
        self.width = config.hidden_size
        self.embed_dim = self.width * (1 if pooling == "cls" else 2)
        self.n_blocks = config.num_hidden_layers
        self.n_prefix = 1 + getattr(config, "num_register_tokens", 0)
        height, width = self._input_shape()
        self.image_size = height
        self.grid = height // config.patch_size, width // config.patch_size

    def transform(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        return cast(Halves, self.halves)(image)

    def transform_id(self) -> str:
        return f"transformers, rgb first: {type(self.processor).__name__} {self.processor.to_json_string()}"

    def embed(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images embed_dim"]:
        """The class token after the final layer norm [B, D]; with the patch tokens' mean [B, 2D]."""
        said = self.model(images)
        return cast(Tensor, said.pooler_output) if self.pooling == "cls" else cls_and_mean(said[0], self.n_prefix)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        recompute_in_transformers(self.model, enable)

    def patches(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images patches width"]:
        return cast(Tensor, self.model(images).last_hidden_state[:, self.n_prefix :])

    def trunk(self, images: Float[Tensor, "images 3 h w"], cut: int) -> Float[Tensor, "images tokens width"]:
        self._check_cut(cut)
        tokens = cast(nn.Module, self.model.embeddings)(images)
        for layer in _layers(self.model)[:cut]:
            tokens = layer(tokens)
        return cast(Tensor, tokens)

    def tapped(self, images: Float[Tensor, "images 3 h w"], taps: Sequence[int]) -> list[Tapped]:
        tokens, found, norm = cast(nn.Module, self.model.embeddings)(images), {}, cast(nn.Module, self.model.layernorm)
        for number, layer in enumerate(_layers(self.model)[: max(taps) + 1]):
            tokens = layer(tokens)
            if number in taps:
                found[number] = norm(tokens)
        return [Tapped(found[tap][:, : self.n_prefix], found[tap][:, self.n_prefix :]) for tap in taps]

    def grid_at(self, size: int) -> tuple[int, int]:
        side = self.image_size // self.grid[0]
        if size % side:
            raise UserError(f"{self.label} cannot read {size} pixels: name multiples of {side} in backbone.views.sizes.")
        return size // side, size // side

    def make_tail(self, cut: int) -> Tail:
        self._check_cut(cut)
        return Dinov2Tail(self.model, cut, self.n_prefix, self.pooling).requires_grad_(True)

    def fix_size(self, size: int) -> None:
        embeddings = cast(Any, self.model).embeddings
        rows, columns = self.grid if size == self.image_size else self.grid_at(size)
        patch_height, patch_width = embeddings.patch_embeddings.patch_size
        with torch.no_grad():
            tokens = torch.zeros(1, 1 + rows * columns, self.width)
            positions = embeddings.interpolate_pos_encoding(tokens, rows * patch_height, columns * patch_width)
        embeddings.position_embeddings = nn.Parameter(positions.clone())

    def write_spec(self, block: blocks.Backbone, folder: Path, name: str) -> dict[str, Any]:
        cast(Any, self.model).config.save_pretrained(folder / name)
        self.processor.save_pretrained(folder / name)
        return block.model_dump(mode="json") | {"architecture": name}

    def extra_repr(self) -> str:
        """Part of the key of features: their modules alone do not tell the poolings apart. (Nothing for what there was first.)"""
        return "" if self.pooling == "cls" else f"pooling={self.pooling}"

    def _input_shape(self) -> tuple[int, int]:
        """Height and width that the processor gives, found by trying: sizes are written in several ways."""
        upright, lying = (self.transform(Image.new("RGB", size)).shape[1:] for size in ((96, 128), (128, 96)))
        if upright != lying:
            raise UserError(f"{self.label}: its image processor gives images of differing shapes; it must crop or squash them.")
        return upright[0], upright[1]


def _projections(layer: nn.Module) -> dict[str, tuple[str, ...]]:
    there = {path.rpartition(".")[2] for path, module in layer.named_modules() if isinstance(module, nn.Linear)}
    return {name: next(found for found in ways if there.issuperset(found)) for name, ways in MODULES.items()}


def _projection(layer: nn.Module, projections: Mapping[str, tuple[str, ...]], name: str) -> nn.Module:
    """The one module of the attention that a canonical name stands for, adapted or not."""
    (wanted,) = projections[name]
    attention = cast(nn.Module, layer.attention)
    return next(module for path, module in attention.named_modules() if path.rpartition(".")[2] == wanted)


def _layers(model: nn.Module) -> nn.ModuleList:
    return cast(nn.ModuleList, cast(nn.Module, model.encoder).layer)


# ---------------------------------------------------------------- loading
def load_dinov2(config: blocks.Dinov2) -> Dinov2Backbone:
    """The model and processor of a Hub name or a local folder."""
    with seeded(0):  # transformers may draw random weights before it loads
        model, processor = _read(config)
    return Dinov2Backbone(model, processor, f"DINOv2 {config.name}", config.pooling)


def _read(config: blocks.Dinov2) -> tuple[nn.Module, Any]:
    name = config.name
    if _is_folder(name):
        name = str(checked_folder(name, ("config.json", "preprocessor_config.json"), "transformers"))
    options = {"revision": config.revision, "trust_remote_code": False}
    try:
        _check(config.name, AutoConfig.from_pretrained(name, **options))
        processor = cast(Any, AutoImageProcessor).from_pretrained(name, **options)
        model, info = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True, **options)
    except UserError:
        raise
    except Exception as error:  # transformers raises whatever its libraries do
        refuse_code(config.name, error)
        raise _failure(config, error) from error
    # transformers only warns about tensors it did not find and leaves them random.
    if missing := sorted(set(info["missing_keys"]) - {"embeddings.mask_token"}):
        raise UserError(f"The weights of backbone.name {config.name} lack {missing[0]} (and {len(missing) - 1} more).")
    return model, processor


def _check(name: str, found: Any) -> None:
    """Raise UserError where a config.json is of another kind of model, or leads to code."""
    if found.model_type not in MODEL_TYPES:
        kinds = ", ".join(MODEL_TYPES)
        raise UserError(f"backbone.name {name} is a {found.model_type} model: backbone.kind dinov2 needs one of {kinds}.")
    if found._attn_implementation not in ATTENTION:
        raise UserError(
            f"backbone.name {name}: its config.json asks for the attention {found._attn_implementation}, which may be code from "
            "the Hub, and Carabid runs none. Remove attn_implementation from it."
        )


def _is_folder(name: str) -> bool:
    return name.startswith(("/", ".", "~")) or Path(name).is_dir()


def _failure(config: blocks.Dinov2, error: Exception) -> UserError | WorkError:
    if _is_folder(config.name):
        return UserError(f"The model in {config.name} is damaged or incomplete: {in_short(error)}")
    of = f"{config.name}, revision {config.revision}" if config.revision else config.name
    return hub.not_loaded(f"The weights of {of}", error, hub.cached_repository(config.name, "models"))
