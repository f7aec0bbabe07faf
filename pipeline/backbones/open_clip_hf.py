"""Text towers of Hugging Face's transformers in open_clip (`HFTextEncoder`): BERT, RoBERTa and XLM-RoBERTa can be cut. They look
at all tokens but padding, and have real q, k and v projections as they are."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler, HFTextEncoder, MeanPooler
from torch import Tensor, nn

from pipeline.backbones.base import Tail, recompute_in_transformers
from pipeline.backbones.explicit import fixed, on_cpu
from pipeline.backbones.one_token import first_of, gathered, token_at
from pipeline.backbones.open_clip_text import OpenClipTextTower
from pipeline.backbones.open_clip_tokens import Tokens
from pipeline.backbones.texts import up_to_last_mark, with_marks, without_marks

MODEL_TYPES = ("bert", "roberta", "xlm-roberta")
PROJECTIONS = {
    "q_proj": ("attention.self.query",),
    "k_proj": ("attention.self.key",),
    "v_proj": ("attention.self.value",),
    "out_proj": ("attention.output.dense",),
    "c_fc": ("intermediate.dense",),
    "c_proj": ("output.dense",),
}


class HfTextTail(Tail):
    """The last layers of a BERT, its pooling, and its projection (frozen: buffers). There is no layer norm behind the last layer:
    each layer ends with its own."""

    spelt_out: ClassVar[bool] = True  # `output.dense` is of the attention too

    def __init__(self, text: HFTextEncoder, cut: int, prefix: str) -> None:
        super().__init__()
        self.cut, self.prefix, self.projections = cut, prefix, PROJECTIONS
        self.blocks = nn.ModuleList(deepcopy(layer) for layer in text.transformer.encoder.layer[cut:])
        self.ln_post = nn.Identity()
        self.averages = isinstance(text.pooler, MeanPooler)
        own = text.transformer.pooler if isinstance(text.pooler, ClsPooler) and text.pooler.use_pooler_output else None
        self.pooler = deepcopy(cast("nn.Module | None", own))
        self.projection = fixed(text.proj)

    def forward(self, tokens: Float[Tensor, "texts tokens marked"]) -> Float[Tensor, "texts embed_dim"]:
        """As `HFTextEncoder.forward` goes on from there."""
        x, marks = without_marks(up_to_last_mark(tokens))
        seen = additive(marks, x.dtype)
        if self.averages:
            x = self.ln_post(self.through_blocks(x, seen))
            pooled = (x * marks.unsqueeze(-1)).sum(dim=1) / marks.sum(dim=1, keepdim=True)
        else:
            pooled = self.ln_post(self.token_after_blocks(x, first_of(x), seen))
            pooled = pooled if self.pooler is None else self.pooler(pooled.unsqueeze(1))  # it reads the first token itself
        return cast(Tensor, self.projection(pooled))

    def one_token(self, block: nn.Module, tokens: Tensor, at: Tensor, *more: Any) -> Float[Tensor, "texts 1 width"]:
        """As a layer of transformers goes, with its own modules. A mask is the same for all tokens."""
        layer = cast(Any, block)
        attention, own = layer.attention, layer.attention.self
        projections, dropout = (own.query, own.key, own.value), own.dropout.p if own.training else 0.0
        y = gathered(tokens, at, projections, own.num_attention_heads, attended=more[0], dropout=dropout)
        y = attention.output(y.flatten(1).unsqueeze(1), token_at(tokens, at))
        return cast(Tensor, layer.feed_forward_chunk(y))

    def to_native(self) -> dict[str, Tensor]:
        """Names as in the state dict of an open_clip model: `text.transformer.encoder.layer.5.attention.self.query.weight`, …"""
        native = {f"proj.{name}": tensor for name, tensor in self.projection.named_buffers()}
        if self.pooler is not None:
            native |= {f"transformer.pooler.{name}": tensor for name, tensor in self.pooler.state_dict().items()}
        for i, block in enumerate(self.blocks):
            prefix = f"transformer.encoder.layer.{self.cut + i}."
            native |= {f"{prefix}{name}": tensor for name, tensor in block.state_dict().items()}
        return on_cpu({f"{self.prefix}{name}": tensor for name, tensor in native.items()})


class HfTextTower(OpenClipTextTower):
    """A text tower of transformers that can be cut."""

    def __init__(self, text: nn.Module, tokens: Tokens, label: str, prefix: str, embed_dim: int) -> None:
        super().__init__(text, tokens, label, prefix, embed_dim)
        config = cast(Any, text.transformer).config
        self.width, self.n_blocks = config.hidden_size, config.num_hidden_layers

    def trunk(self, texts: Int[Tensor, "texts tokens"], cut: int) -> Float[Tensor, "texts n_tokens marked"]:
        self._check_cut(cut)
        model = cast(Any, self.text.transformer)
        marks = texts != model.config.pad_token_id
        x = model.embeddings(input_ids=texts)
        for layer in model.encoder.layer[:cut]:
            x = _hidden(layer(x, additive(marks, x.dtype)))
        return with_marks(x, marks)

    def make_tail(self, cut: int) -> Tail:
        self._check_cut(cut)
        return HfTextTail(cast(HFTextEncoder, self.text), cut, self.prefix).requires_grad_(True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        recompute_in_transformers(self.text.transformer, enable)

    def extra_repr(self) -> str:
        """Part of the key of features: modules alone do not tell the heads, nor what padding is."""
        config = cast(Any, self.text.transformer).config
        return f"tokens={self.n_tokens}, heads={config.num_attention_heads}, padding={config.pad_token_id}"


def is_cuttable(text: nn.Module) -> bool:
    """Whether a text tower is one whose layers and pooling a tail knows."""
    if not isinstance(text, HFTextEncoder) or text.config.model_type not in MODEL_TYPES:
        return False
    return isinstance(text.pooler, (MeanPooler, ClsPooler, ClsLastHiddenStatePooler)) and not text.config.is_decoder


def additive(marks: Bool[Tensor, "texts tokens"], dtype: torch.dtype) -> Float[Tensor, "texts 1 1 tokens"]:
    """Marks as what is added to the logits of attention: as good as −∞ at padding, whichever way transformers computes it."""
    return torch.zeros_like(marks, dtype=dtype).masked_fill(~marks, torch.finfo(dtype).min)[:, None, None, :]


def _hidden(output: Any) -> Tensor:
    """A layer's hidden states: transformers before 5 gave a tuple."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)
