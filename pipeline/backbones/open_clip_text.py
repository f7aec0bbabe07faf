"""Text towers of open_clip: its own transformers, of CLIP, SigLIP, ViTamin and CoCa. Hugging Face's are in open_clip_hf.py.

CLIP looks back only and pools at the end of the text; SigLIP looks everywhere, padding included, and pools at the last token;
CoCa looks back, not at padding, and pools at a class token that it appends."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pipeline.backbones.base import Tail
from pipeline.backbones.explicit import QKV, ExplicitBlock, fixed, on_cpu
from pipeline.backbones.open_clip_projection import last_projection, multiplied
from pipeline.backbones.open_clip_tokens import Tokens
from pipeline.backbones.texts import TextTower, up_to_last_mark, with_marks, without_marks
from pipeline.errors import UserError


class Reading(NamedTuple):
    """How a text transformer looks at its tokens, and which of them it pools."""

    pool: str
    """open_clip's name: argmax, eos, last, first, none; last where there is a class token."""
    causal: bool
    """Whether a token looks at none behind it."""
    padded: bool
    """Whether it does not look at padding. Marks then say which tokens are looked at, else which one is pooled."""


class TextTail(Tail):
    """The last blocks of a text transformer, its final layer norm, its pooling, and its projection (frozen: a buffer)."""

    matrix: Tensor | None

    def __init__(self, text: nn.Module, cut: int, reading: Reading, prefix: str) -> None:
        super().__init__()
        self.cut, self.reading, self.prefix = cut, reading, prefix
        self.projections = {name: (name,) for name in (*QKV, "out_proj", "c_fc", "c_proj")}
        self.blocks = nn.ModuleList(ExplicitBlock(cast(Any, block)) for block in _blocks(text)[cut:])
        self.ln_post = deepcopy(cast(nn.Module, text.ln_final))
        projection = text.text_projection
        self.projection = fixed(projection) if isinstance(projection, nn.Module) else nn.Identity()
        matrix = projection.detach().clone() if isinstance(projection, Tensor) else None
        self.register_buffer("matrix", matrix, persistent=False)

    def forward(self, tokens: Float[Tensor, "texts tokens marked"]) -> Float[Tensor, "texts embed_dim"]:
        """Hidden states after block `cut` and their marks → what open_clip's `encode_text` gives, not normalised."""
        if self.reading.causal and not self.reading.padded:
            tokens = up_to_last_mark(tokens)
        x, marks = without_marks(tokens)
        at = torch.full_like(marks[:, 0], x.shape[1] - 1, dtype=torch.int64) if self.reading.padded else marks.int().argmax(dim=1)
        # a layer norm acts on each token alone: only the one that is pooled needs it
        pooled = self.ln_post(self.token_after_blocks(x, at, *self._masks(marks)))
        return cast(Tensor, self.projection(pooled if self.matrix is None else pooled @ self.matrix))

    def one_token(self, block: nn.Module, tokens: Tensor, at: Tensor, *more: Any) -> Float[Tensor, "texts 1 width"]:
        return cast(ExplicitBlock, block).one_token(tokens, at, *more)

    def _masks(self, marks: Bool[Tensor, "texts tokens"]) -> tuple[Bool[Tensor, "texts 1 queries tokens"] | None, bool]:
        """What `ExplicitBlock.forward` takes beside the tokens: which are looked at, and whether none behind."""
        if not self.reading.padded:
            return None, self.reading.causal
        n = marks.shape[1]
        seen = marks[:, None, None, :].expand(-1, 1, n, -1)
        behind = torch.ones(n, n, dtype=torch.bool, device=marks.device).triu(1)
        return (seen & ~behind if self.reading.causal else seen), False

    def to_native(self) -> dict[str, Tensor]:
        """Names as in the state dict of an open_clip model: `transformer.resblocks.10.attn.in_proj_weight`, …, of CLIP, and with
        `text.` before them of all others."""
        native = {f"ln_final.{name}": tensor for name, tensor in self.ln_post.state_dict().items()}
        native |= {} if self.matrix is None else {"text_projection": self.matrix}
        native |= {f"text_projection.{name}": tensor for name, tensor in self.projection.named_buffers()}
        for i, block in enumerate(self.blocks):
            prefix = f"transformer.resblocks.{self.cut + i}."
            native |= {f"{prefix}{name}": tensor for name, tensor in cast(ExplicitBlock, block).to_native().items()}
        return on_cpu({f"{self.prefix}{name}": tensor for name, tensor in native.items()})


# ---------------------------------------------------------------- the towers
class OpenClipTextTower(TextTower):
    """A text tower of open_clip with its tokenizer: one of whatever library, that can embed."""

    def __init__(self, text: nn.Module, tokens: Tokens, label: str, prefix: str, embed_dim: int) -> None:
        """`text`: the tower. `prefix`: what the names of its tensors begin with in the whole model's state dict."""
        super().__init__()
        self.text, self.tokens, self.label, self.prefix = text, tokens, label, prefix
        self.embed_dim = self.width = embed_dim
        self.context_length = self.n_tokens = tokens.context_length

    def transform(self, text: str) -> Int[Tensor, " tokens"]:
        return self.tokens(text)

    def transform_id(self) -> str:
        return self.tokens.description()

    def embed(self, texts: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts embed_dim"]:
        # A CLIP is its own text tower: see `open_clip.text_tower`.
        encode = getattr(self.text, "encode_text", self.text)
        output = encode(texts)
        return cast(Tensor, output[0] if isinstance(output, tuple) else output)

    def trunk(self, texts: Int[Tensor, "texts tokens"], cut: int) -> Float[Tensor, "texts n_tokens marked"]:
        raise self._uncuttable()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        cast(Any, self.text).set_grad_checkpointing(enable)

    def to_native(self) -> dict[str, Tensor]:
        """Names as in the state dict of an open_clip model."""
        return on_cpu({f"{self.prefix}{name}": tensor for name, tensor in self.text.state_dict().items()})

    def projected(self, matrix: Float[Tensor, "embed_dim embed_dim"]) -> dict[str, Tensor]:
        found = last_projection(self.text)
        return on_cpu(multiplied(found, matrix, self.prefix)) if found else super().projected(matrix)


class TransformerTextTower(OpenClipTextTower):
    """A text transformer of open_clip's own."""

    def __init__(self, text: nn.Module, tokens: Tokens, label: str, prefix: str, embed_dim: int) -> None:
        super().__init__(text, tokens, label, prefix, embed_dim)
        self.width, self.n_blocks = cast(Any, text.transformer).width, len(_blocks(text))
        self.n_tokens = self.context_length + (getattr(text, "cls_emb", None) is not None)
        self.reading = _reading(text)
        if self.reading.pool == "none":
            raise UserError(f"{label} gives all its tokens and no pooled embedding: use another model.")

    def trunk(self, texts: Int[Tensor, "texts tokens"], cut: int) -> Float[Tensor, "texts n_tokens marked"]:
        self._check_cut(cut)
        x, mask = self._first(texts)
        for block in _blocks(self.text)[:cut]:
            x = block(x, attn_mask=mask)
        return with_marks(x, self._marks(texts))

    def make_tail(self, cut: int) -> Tail:
        self._check_cut(cut)
        return TextTail(self.text, cut, self.reading, self.prefix).requires_grad_(True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        cast(Any, self.text.transformer).grad_checkpointing = enable

    def extra_repr(self) -> str:
        """Part of the key of features: modules alone tell neither how a transformer looks nor how it pools."""
        return f"{self.reading}, tokens={self.n_tokens}, heads={cast(Any, _blocks(self.text)[0]).attn.num_heads}"

    def _first(self, texts: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the first block reads, and the library's mask."""
        text = cast(Any, self.text)
        if hasattr(text, "_embeds"):
            return cast("tuple[Tensor, Tensor | None]", text._embeds(texts))
        return text.token_embedding(texts) + text.positional_embedding, text.attn_mask

    def _marks(self, texts: Int[Tensor, "texts tokens"]) -> Bool[Tensor, "texts n_tokens"]:
        text, pool = cast(Any, self.text), self.reading.pool
        if self.reading.padded:
            valid, own = texts != text.pad_id, texts.new_ones(len(texts), 1, dtype=torch.bool)
            # CoCa's released weights were trained with the class token's mark in front, one off (open_clip keeps to that).
            return torch.cat([valid, own] if getattr(text, "correct_cls_mask", False) else [own, valid], dim=1)
        if pool in ("argmax", "eos"):
            eos = cast(Any, getattr(text, "text_eos_id", getattr(text, "eos_id", None)))
            at = texts.argmax(dim=1) if pool == "argmax" else texts.eq(eos).int().argmax(dim=1)
        else:
            at = torch.full_like(texts[:, 0], 0 if pool == "first" else self.n_tokens - 1)
        return torch.arange(self.n_tokens, device=texts.device) == at.unsqueeze(1)


def _blocks(text: nn.Module) -> nn.ModuleList:
    return cast(nn.ModuleList, cast(Any, text.transformer).resblocks)


def _reading(text: nn.Module) -> Reading:
    """Of a TextTransformer, or of a CLIP, which has the parts of one as its own."""
    has_class_token = getattr(text, "cls_emb", None) is not None
    pool = getattr(text, "text_pool_type", None) or cast(str, text.pool_type)
    return Reading("last" if has_class_token else pool, text.attn_mask is not None, has_class_token)
