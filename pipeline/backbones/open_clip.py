"""Image towers of open_clip: any of them embeds; a VisionTransformer can also be cut and gives patch tokens. open_clip's
attention (`nn.MultiheadAttention`) keeps queries, keys and values in one matrix and calls a fused kernel, so adapters never reach
it. The tail therefore has attention of its own, with real q, k, v and out projections, and gives weights back under the names of
the library."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from huggingface_hub import hf_hub_download
from jaxtyping import Float
from open_clip.transformer import Attention, CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import Compose
from transformers import dynamic_module_utils

from pipeline import hub
from pipeline.backbones.base import Backbone, Tail, checked_folder, refuse_code, seeded
from pipeline.config import backbone as blocks
from pipeline.config.backbone import HUB, LOCAL
from pipeline.data.decoding import to_rgb
from pipeline.disk.reading import in_short, reading
from pipeline.disk.writing import write_json
from pipeline.errors import UserError, WorkError, nearest

CONFIG_FILE = "open_clip_config.json"
QKV = ("q_proj", "k_proj", "v_proj")
# open_clip leaves it to transformers, for a text tower of its, to ask on the terminal whether code that came with a model may
# run. With no time to answer it refuses at once.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0


# ---------------------------------------------------------------- the tail
class ExplicitAttention(nn.Module):
    """Self-attention with linear q, k, v and out projections, equal to the open_clip attention it is made from."""

    def __init__(self, source: nn.MultiheadAttention | Attention) -> None:
        super().__init__()
        self.n_heads = source.num_heads
        weights = source.in_proj_weight.chunk(3)
        biases = (None,) * 3 if source.in_proj_bias is None else source.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (_linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)
        # What open_clip's custom blocks add; nothing in the usual ones.
        self.ln_q, self.ln_k, self.ln_inner = (
            deepcopy(getattr(source, name, nn.Identity())) for name in ("ln_q", "ln_k", "ln_inner")
        )
        self.head_scale = deepcopy(getattr(source, "head_scale", None))

    def forward(self, x: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images tokens width"]:
        q, k, v = (
            projection(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        y = F.scaled_dot_product_attention(self.ln_q(q), self.ln_k(k), v)
        if self.head_scale is not None:
            y = y * self.head_scale
        return cast(Tensor, self.out_proj(self.ln_inner(y.transpose(1, 2).flatten(2))))


class ExplicitBlock(nn.Module):
    """One residual block of open_clip with its attention made explicit; all else is a copy of the original's modules."""

    ln_1: nn.Module
    ls_1: nn.Module
    ln_2: nn.Module
    mlp: nn.Module
    ls_2: nn.Module

    def __init__(self, source: ResidualAttentionBlock | CustomResidualAttentionBlock) -> None:
        super().__init__()
        self.attn = ExplicitAttention(source.attn)
        self.ln_attn = deepcopy(getattr(source, "ln_attn", nn.Identity()))
        for name in ("ln_1", "ls_1", "ln_2", "mlp", "ls_2"):
            setattr(self, name, deepcopy(getattr(source, name)))

    def forward(self, x: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images tokens width"]:
        x = x + self.ls_1(self.ln_attn(self.attn(self.ln_1(x))))
        return cast(Tensor, x + self.ls_2(self.mlp(self.ln_2(x))))


class OpenClipTail(Tail):
    """The last blocks of a VisionTransformer, its final layer norm, its pooling, and its projection (frozen, a buffer)."""

    proj: Tensor | None

    def __init__(self, visual: VisionTransformer, cut: int) -> None:
        super().__init__()
        self.cut = cut
        self.projections = {name: (name,) for name in (*QKV, "out_proj", "c_fc", "c_proj")}
        self.pool_type, self.ln_after_pool = visual.pool_type, visual.final_ln_after_pool
        self.blocks = nn.ModuleList(ExplicitBlock(block) for block in visual.transformer.resblocks[cut:])
        self.ln_post = deepcopy(visual.ln_post)
        # Not persistent, so that state_dict() is what is trained and nothing else.
        self.register_buffer("proj", None if visual.proj is None else visual.proj.detach().clone(), persistent=False)

    def forward(self, tokens: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images embed_dim"]:
        """As `VisionTransformer.forward` goes on from there."""
        for block in self.blocks:
            tokens = block(tokens)
        # A layer norm acts on each token alone: only the tokens that are pooled need it.
        if self.pool_type == "tok":
            pooled = self.ln_post(tokens[:, 0])
        elif self.ln_after_pool:
            pooled = self.ln_post(tokens[:, 1:].mean(dim=1))
        else:
            pooled = self.ln_post(tokens[:, 1:]).mean(dim=1)
        return cast(Tensor, pooled if self.proj is None else pooled @ self.proj)

    def to_native(self) -> dict[str, Tensor]:
        """Names as in the state dict of an open_clip model: `visual.transformer.resblocks.22.attn.in_proj_weight`, …"""
        native = {} if self.proj is None else {"visual.proj": self.proj}
        native |= {f"visual.ln_post.{name}": tensor for name, tensor in self.ln_post.state_dict().items()}
        for i, block in enumerate(self.blocks):
            prefix = f"visual.transformer.resblocks.{self.cut + i}."
            native |= {f"{prefix}{name}": tensor for name, tensor in _pack(block.state_dict()).items()}
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in native.items()}


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with copies of these tensors, without the cost and the random numbers of an initialisation."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear


def _pack(block: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A block's tensors under open_clip's names: the q, k and v projections stacked into one matrix and one bias."""
    packed = {name: tensor for name, tensor in block.items() if name.split(".")[1] not in QKV}
    for kind in ("weight", "bias"):
        if parts := [block[f"attn.{name}.{kind}"] for name in QKV if f"attn.{name}.{kind}" in block]:
            packed[f"attn.in_proj_{kind}"] = torch.cat(parts)
    return packed


# ---------------------------------------------------------------- the backbone
class OpenClipBackbone(Backbone):
    """An image tower of open_clip with its inference transform."""

    def __init__(self, visual: nn.Module, preprocess: Compose, label: str) -> None:
        super().__init__()
        self.visual, self.preprocess, self.label = visual, preprocess, label
        size = cast("int | tuple[int, int]", visual.image_size)
        height, width = (size, size) if isinstance(size, int) else size
        self.image_size = height
        self.width = self.embed_dim = self._measure_embedding(height, width)
        if self._vit is not None:
            self.width, self.n_blocks = self._vit.transformer.width, len(self._vit.transformer.resblocks)
            self.grid = self._vit.grid_size

    def transform(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        # RGB first: Pillow resizes palette and 1-bit images by nearest neighbour.
        return cast(Tensor, self.preprocess(to_rgb(image)))

    def transform_id(self) -> str:
        return f"open_clip, rgb first: {self.preprocess!r}"

    def embed(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images embed_dim"]:
        """As the library gives it. Raises UserError for a tower that does not pool."""
        output = self.visual(images)
        pooled = cast(Tensor, output[0] if isinstance(output, tuple) else output)  # CoCa's towers give their tokens too
        if pooled.ndim == 3 and pooled.shape[1] == 1:  # an attentional pool with one query
            pooled = pooled[:, 0]
        if pooled.ndim != 2:
            raise self._unpooled()
        return pooled

    def patches(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images patches width"]:
        if self._vit is None:
            return super().patches(images)
        return cast(Tensor, self._vit.ln_post(self.trunk(images, self.n_blocks)[:, 1:]))

    def trunk(self, images: Float[Tensor, "images 3 h w"], cut: int) -> Float[Tensor, "images tokens width"]:
        if self._vit is None:
            raise self._uncuttable()
        self._check_cut(cut)
        tokens = self._vit._embeds(images)
        for block in self._vit.transformer.resblocks[:cut]:
            tokens = block(tokens)
        return cast(Tensor, tokens)

    def make_tail(self, cut: int) -> Tail:
        if self._vit is None:
            raise self._uncuttable()
        if self._vit.pool_type == "none":
            raise self._unpooled()
        self._check_cut(cut)
        return OpenClipTail(self._vit, cut).requires_grad_(True)

    def write_spec(self, block: blocks.Backbone, folder: Path, name: str) -> dict[str, Any]:
        assert isinstance(block, blocks.OpenClip)
        described, chosen = architecture(block), block.name
        write_json(folder / f"{name}.json", described)
        return block.model_dump(mode="json") | {
            "name": chosen if chosen.startswith(HUB) else chosen.replace("/", "-"),
            "architecture": name,
            "preprocess": dict(cast(Any, self.visual).preprocess_cfg),
            "quick_gelu": described["quick_gelu"],
        }

    @property
    def _vit(self) -> VisionTransformer | None:
        """The tower, if it can be cut: tokens in, tokens out, and no pooling network behind its blocks."""
        tower = self.visual
        return tower if isinstance(tower, VisionTransformer) and tower.attn_pool is None else None

    def _unpooled(self) -> UserError:
        return UserError(
            f"{self.label} gives all its tokens and no pooled embedding: use them (model.encoder.kind: patch_convs)."
        )

    def _measure_embedding(self, height: int, width: int) -> int:
        if isinstance(named := getattr(self.visual, "output_dim", None), int):
            return named
        with torch.inference_mode():
            return self.embed(torch.zeros(1, 3, height, width)).shape[1]


# ---------------------------------------------------------------- loading
def load_open_clip(config: blocks.OpenClip) -> OpenClipBackbone:
    """The image tower of `hf-hub:owner/name`, `local-dir:/a/folder`, or an architecture with or without a pretrained tag."""
    name = _checked_name(config)
    with seeded(config.seed):
        model, preprocess = _create(name, config.pretrained)
    # The text tower and its memory go when `model` does.
    return OpenClipBackbone(cast(nn.Module, model.visual).eval(), preprocess, f"open_clip's {config.name}")


def _create(name: str, pretrained: str | None) -> tuple[nn.Module, Compose]:
    """open_clip's model and inference transform; weights that were asked for and are not there are an error."""
    try:
        if name.startswith((LOCAL, HUB)) or pretrained is not None:
            model, preprocess = open_clip.create_model_from_pretrained(name, pretrained, **_tag_options(name, pretrained))
        else:  # pretrained_text: the text tower is thrown away, so its default weights need not be fetched
            model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained_text=False)
    except Exception as error:  # open_clip raises whatever its libraries do
        refuse_code(name, error)
        raise _failure(name, pretrained, error) from error
    return model, preprocess


def _tag_options(name: str, pretrained: str | None) -> dict[str, bool]:
    """open_clip only warns where a tag was trained with QuickGELU and the architecture's default is GELU."""
    known = open_clip.get_pretrained_cfg(name, pretrained) if pretrained else {}
    return {"force_quick_gelu": True} if known.get("quick_gelu") else {}


def _checked_name(config: blocks.OpenClip) -> str:
    """The name as open_clip takes it; UserError for what is wrong with it before anything is loaded."""
    if config.name.startswith((LOCAL, HUB)):
        if config.pretrained is not None:
            raise UserError(f"backbone.name {config.name} brings its own weights: remove backbone.pretrained.")
        return _checked_folder(config.name) if config.name.startswith(LOCAL) else config.name
    name = config.name.replace("/", "-")
    if name not in open_clip.list_models():
        if Path(config.name).expanduser().is_dir():
            raise UserError(f"backbone.name {config.name} is a folder: write {LOCAL}{config.name}.")
        near, named = nearest(name, open_clip.list_models()), f"{HUB}owner/name, folders {LOCAL}/a/folder"
        raise UserError(f"backbone.name {config.name} is no architecture of open_clip; {near} On the Hub they are named {named}.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if config.pretrained is not None and config.pretrained not in tags and not os.path.isfile(config.pretrained):
        near = nearest(config.pretrained, tags)
        raise UserError(f"backbone.pretrained {config.pretrained} is neither a file nor a tag of {name}; {near}")
    return name


def _checked_folder(name: str) -> str:
    folder = checked_folder(name, (CONFIG_FILE,), "open_clip")
    with reading(folder / CONFIG_FILE, f"It is of backbone.name {name}.", UserError):
        if "model_cfg" not in dict(json.loads((folder / CONFIG_FILE).read_text())):
            raise ValueError("it has no model_cfg")
    return f"{LOCAL}{folder}"


def architecture(config: blocks.OpenClip) -> dict[str, Any]:
    """What open_clip builds this image tower from, as in the `model_cfg` of its config files, with the smallest text tower that
    it takes: nothing has to be fetched for it."""
    whole = _whole_architecture(config)
    return {
        "embed_dim": whole["embed_dim"],
        "quick_gelu": bool(_tag_options(config.name, config.pretrained)) or whole.get("quick_gelu", False),
        "vision_cfg": whole["vision_cfg"],
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1},
    }


def _whole_architecture(config: blocks.OpenClip) -> dict[str, Any]:
    if not config.name.startswith((LOCAL, HUB)):
        return dict(open_clip.get_model_config(config.name.replace("/", "-")))
    is_local, name = config.name.startswith(LOCAL), config.name.removeprefix(LOCAL).removeprefix(HUB)
    file = Path(name).expanduser() / CONFIG_FILE if is_local else Path(hf_hub_download(name, CONFIG_FILE))
    return dict(json.loads(file.read_text())["model_cfg"])


def hub_repository(name: str, pretrained: str | None) -> str | None:
    """The model on the Hub (`owner/name`) that the weights come from; None for a file, a folder, and random weights."""
    if name.startswith(HUB):
        return name.removeprefix(HUB)
    tag = {} if pretrained is None else open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained)
    return os.path.dirname(tag["hf_hub"]) if tag.get("hf_hub") else None


def _failure(name: str, pretrained: str | None, error: Exception) -> UserError | WorkError:
    cause = in_short(error)
    if name.startswith(LOCAL):
        folder = name.removeprefix(LOCAL)
        return UserError(f"The weights in {folder} are missing, damaged or of another architecture than its config: {cause}")
    whole = f"{name} ({pretrained})" if pretrained else name
    if repository := hub_repository(name, pretrained):
        return hub.not_loaded(f"The weights of {whole}", error, hub.cached_repository(repository, "models"))
    if hub.was_asked(error):
        return hub.not_loaded(f"What {whole} needs for its text tower", error, hub.cache())
    return UserError(f"open_clip could not build {whole}: {cause}")
