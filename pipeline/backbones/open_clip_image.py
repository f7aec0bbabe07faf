"""Image towers of open_clip: any of them embeds. Its own vision transformers can also be cut and give patch tokens; timm's, of
SigLIP and ViTamin, can be cut."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from PIL import Image
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import Attention as TimmsAttention
from timm.models.vision_transformer import Block as TimmsBlock
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from timm.models.vision_transformer import global_pool_nlc
from torch import Tensor, nn
from torchvision.transforms import Compose

from pipeline.backbones.base import Backbone, Tail, Tapped
from pipeline.backbones.explicit import QKV, ExplicitBlock, TimmBlock, fixed, on_cpu
from pipeline.backbones.halves import Halves, of_steps
from pipeline.backbones.one_token import first_of
from pipeline.backbones.open_clip_names import architecture
from pipeline.backbones.open_clip_projection import last_projection, multiplied
from pipeline.config import backbone as blocks
from pipeline.config.backbone import HUB
from pipeline.disk.writing import write_json
from pipeline.errors import UserError


# ---------------------------------------------------------------- tails
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
        pooled = self._pool(tokens)
        return pooled if self.proj is None else pooled @ self.proj

    def _pool(self, tokens: Tensor) -> Tensor:
        # A layer norm acts on each token alone: only the tokens that are pooled need it.
        if self.pool_type == "tok":
            return cast(Tensor, self.ln_post(self.token_after_blocks(tokens, first_of(tokens))))
        patches = self.through_blocks(tokens)[:, 1:]
        if self.ln_after_pool:
            return cast(Tensor, self.ln_post(patches.mean(dim=1)))
        return cast(Tensor, self.ln_post(patches).mean(dim=1))

    def one_token(self, block: nn.Module, tokens: Tensor, at: Tensor, *more: Any) -> Float[Tensor, "images 1 width"]:
        return cast(ExplicitBlock, block).one_token(tokens, at, *more)

    def to_native(self) -> dict[str, Tensor]:
        """Names as in the state dict of an open_clip model: `visual.transformer.resblocks.22.attn.in_proj_weight`, …"""
        native = {} if self.proj is None else {"visual.proj": self.proj}
        native |= {f"visual.ln_post.{name}": tensor for name, tensor in self.ln_post.state_dict().items()}
        for i, block in enumerate(self.blocks):
            prefix = f"visual.transformer.resblocks.{self.cut + i}."
            native |= {f"{prefix}{name}": tensor for name, tensor in cast(ExplicitBlock, block).to_native().items()}
        return on_cpu(native)


class TimmTail(Tail):
    """The last blocks of a timm VisionTransformer in open_clip, its final layer norm, its pooling (SigLIP's is attention with a
    perceptron, trained like a block but without adapters), and the projections behind it (frozen, buffers)."""

    spelt_out: ClassVar[bool] = True  # the attention that pools has a `proj` and an `mlp` too
    attn_pool: nn.Module | None

    def __init__(self, visual: TimmModel, cut: int) -> None:
        super().__init__()
        trunk = visual.trunk
        self.cut, self.pool_type = cut, trunk.global_pool
        self.n_prefix, self.with_prefix = trunk.num_prefix_tokens, getattr(trunk, "pool_include_prefix", False)
        self.blocks = nn.ModuleList(TimmBlock(block) for block in trunk.blocks[cut:])
        self.projections = _timm_projections(trunk.blocks[0].mlp)
        self.norm_name = _final_norm(trunk)
        self.ln_post = deepcopy(getattr(trunk, self.norm_name))
        self.attn_pool = deepcopy(trunk.attn_pool)
        self.head = fixed(nn.Sequential(trunk.head, visual.head))

    def forward(self, tokens: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images embed_dim"]:
        """As `TimmModel.forward` goes on from there."""
        tokens = self.through_blocks(tokens)
        if self.norm_name == "fc_norm":
            return cast(Tensor, self.head(self.ln_post(self._pool(tokens))))
        return cast(Tensor, self.head(self._pool(self.ln_post(tokens))))

    def _pool(self, tokens: Tensor) -> Tensor:
        if self.attn_pool is None:
            return global_pool_nlc(
                tokens, self.pool_type, num_prefix_tokens=self.n_prefix, reduce_include_prefix=self.with_prefix
            )
        return cast(Tensor, self.attn_pool(tokens if self.with_prefix else tokens[:, self.n_prefix :]))

    def to_native(self) -> dict[str, Tensor]:
        """Names as in the state dict of an open_clip model: `visual.trunk.blocks.11.attn.qkv.weight`, …"""
        native = {f"visual.trunk.{self.norm_name}.{name}": tensor for name, tensor in self.ln_post.state_dict().items()}
        for i, block in enumerate(self.blocks):
            prefix = f"visual.trunk.blocks.{self.cut + i}."
            native |= {f"{prefix}{name}": tensor for name, tensor in cast(TimmBlock, block).to_native().items()}
        if self.attn_pool is not None:
            native |= {f"visual.trunk.attn_pool.{name}": tensor for name, tensor in self.attn_pool.state_dict().items()}
        for i, place in enumerate(("visual.trunk.head", "visual.head")):
            native |= {f"{place}.{name}": tensor for name, tensor in self.head.get_submodule(str(i)).named_buffers()}
        return on_cpu(native)


def _timm_projections(mlp: nn.Module) -> dict[str, tuple[str, ...]]:
    """Canonical name → paths in a block; ViTamin's perceptron is gated."""
    gated = hasattr(mlp, "w0")
    attention = {name: (f"attn.{name}",) for name in QKV} | {"out_proj": ("attn.proj",)}
    wide, narrow = (("mlp.w0", "mlp.w1"), ("mlp.w2",)) if gated else (("mlp.fc1",), ("mlp.fc2",))
    return attention | {"c_fc": wide, "c_proj": narrow}


def _final_norm(trunk: nn.Module) -> str:
    """timm's name of the last layer norm, which stands before the pooling or behind it."""
    return "norm" if isinstance(trunk.fc_norm, nn.Identity) else "fc_norm"


# ---------------------------------------------------------------- how a tower is cut
class Cutting(ABC):
    """How an image tower that consists of blocks is cut."""

    width: int
    grid: tuple[int, int]
    blocks: nn.ModuleList | nn.Sequential
    pools: bool = True
    """Whether there is a pooled embedding."""

    @abstractmethod
    def first(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images tokens width"]:
        """What the first block reads."""

    @abstractmethod
    def tail(self, cut: int) -> Tail:
        """The blocks after `cut` and what comes then, as a copy."""


class _Vit(Cutting):
    """open_clip's own vision transformer."""

    def __init__(self, visual: VisionTransformer) -> None:
        self.visual, self.width, self.grid = visual, visual.transformer.width, visual.grid_size
        self.blocks, self.pools = visual.transformer.resblocks, visual.pool_type != "none"

    def first(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images tokens width"]:
        return cast(Tensor, self.visual._embeds(images))

    def tail(self, cut: int) -> Tail:
        return OpenClipTail(self.visual, cut)

    def patches(self, tokens: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images patches width"]:
        return cast(Tensor, self.visual.ln_post(tokens[:, 1:]))


class _TimmVit(Cutting):
    """timm's vision transformer."""

    def __init__(self, visual: TimmModel) -> None:
        self.visual, self.trunk = visual, visual.trunk
        self.width, self.grid, self.blocks = visual.trunk.embed_dim, visual.trunk.patch_embed.grid_size, visual.trunk.blocks

    def first(self, images: Float[Tensor, "images 3 h w"]) -> Float[Tensor, "images tokens width"]:
        tokens = self.trunk._pos_embed(self.trunk.patch_embed(images))
        return cast(Tensor, self.trunk.norm_pre(self.trunk.patch_drop(tokens)))

    def tail(self, cut: int) -> Tail:
        return TimmTail(self.visual, cut)


def _cutting(visual: nn.Module) -> Cutting | None:
    """How this tower is cut: tokens in, tokens out, and a pooling behind its blocks that a tail knows. None if it cannot be."""
    if isinstance(visual, VisionTransformer):
        return _Vit(visual) if visual.attn_pool is None else None
    trunk = getattr(visual, "trunk", None)
    if not isinstance(trunk, TimmVisionTransformer) or hasattr(visual.head, "pool"):
        return None
    pooled = isinstance(trunk.attn_pool, AttentionPoolLatent) or (trunk.attn_pool is None and trunk.global_pool == "avg")
    return _TimmVit(cast(TimmModel, visual)) if pooled and all(map(_is_plain, trunk.blocks)) else None


def _is_plain(block: nn.Module) -> bool:
    """Whether a block of timm is one that `TimmBlock` makes explicit."""
    attention = getattr(block, "attn", None)
    is_gated = getattr(attention, "gate", None) is not None
    return type(block) is TimmsBlock and type(attention) is TimmsAttention and not is_gated


# ---------------------------------------------------------------- the backbone
class OpenClipBackbone(Backbone):
    """An image tower of open_clip with its inference transform."""

    def __init__(self, visual: nn.Module, preprocess: Compose, label: str) -> None:
        super().__init__()
        self.visual, self.preprocess, self.label = visual, preprocess, label
        self.halves = of_steps(preprocess)
        size = cast("int | tuple[int, int]", visual.image_size)
        height, width = (size, size) if isinstance(size, int) else size
        self.image_size = height
        self.width = self.embed_dim = self._measure_embedding(height, width)
        if cutting := _cutting(self.visual):
            self.width, self.n_blocks = cutting.width, len(cutting.blocks)
            self.grid = cutting.grid

    def transform(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        return cast(Halves, self.halves)(image)

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
        if isinstance(cutting := _cutting(self.visual), _Vit):
            return cutting.patches(self.trunk(images, self.n_blocks))
        return super().patches(images)

    def trunk(self, images: Float[Tensor, "images 3 h w"], cut: int) -> Float[Tensor, "images tokens width"]:
        if (cutting := _cutting(self.visual)) is None:
            raise self._uncuttable()
        self._check_cut(cut)
        tokens = cutting.first(images)
        for block in cutting.blocks[:cut]:
            tokens = block(tokens)
        return tokens

    def tapped(self, images: Float[Tensor, "images 3 h w"], taps: Sequence[int]) -> list[Tapped]:
        if not isinstance(cutting := _cutting(self.visual), _Vit):
            return super().tapped(images, taps)
        after = [self.trunk(images, tap + 1) for tap in taps]
        return [Tapped(cast(Tensor, cutting.visual.ln_post(tokens[:, :1])), cutting.patches(tokens)) for tokens in after]

    def make_tail(self, cut: int) -> Tail:
        if (cutting := _cutting(self.visual)) is None:
            raise self._uncuttable()
        if not cutting.pools:
            raise self._unpooled()
        self._check_cut(cut)
        return cutting.tail(cut).requires_grad_(True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        cast(Any, self.visual).set_grad_checkpointing(enable)

    def to_native(self) -> dict[str, Tensor]:
        """Names as in the state dict of an open_clip model."""
        return on_cpu(self.state_dict())

    def projected(self, matrix: Float[Tensor, "embed_dim embed_dim"]) -> dict[str, Tensor]:
        found = last_projection(self.visual)
        return on_cpu(multiplied(found, matrix, "visual.")) if found else super().projected(matrix)

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

    def _unpooled(self) -> UserError:
        return UserError(
            f"{self.label} gives all its tokens and no pooled embedding: use them (model.encoder.kind: patch_convs)."
        )

    def _measure_embedding(self, height: int, width: int) -> int:
        if isinstance(named := getattr(self.visual, "output_dim", None), int):
            return named
        with torch.inference_mode():
            return self.embed(torch.zeros(1, 3, height, width)).shape[1]
