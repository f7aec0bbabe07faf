"""Transformer blocks with attention made of real linear layers, equal to those of open_clip and timm that they are made from.
open_clip's attention (`nn.MultiheadAttention`) keeps queries, keys and values in one matrix and calls a fused kernel, timm's
keeps them in one linear layer: adapters would never reach the three. The blocks give weights back under the names of their
library."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from open_clip.transformer import Attention, CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones.one_token import gathered, seen_by, token_at

QKV = ("q_proj", "k_proj", "v_proj")


# ---------------------------------------------------------------- open_clip
class ExplicitAttention(nn.Module):
    """Self-attention with linear q, k, v and out projections, equal to the open_clip attention it is made from."""

    def __init__(self, source: nn.MultiheadAttention | Attention) -> None:
        super().__init__()
        self.n_heads = source.num_heads
        self.q_proj, self.k_proj, self.v_proj = _thirds(source.in_proj_weight, source.in_proj_bias)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)
        # What open_clip's custom blocks add; nothing in the usual ones.
        self.ln_q, self.ln_k, self.ln_inner = (
            deepcopy(getattr(source, name, nn.Identity())) for name in ("ln_q", "ln_k", "ln_inner")
        )
        self.head_scale = deepcopy(getattr(source, "head_scale", None))

    def forward(
        self,
        x: Float[Tensor, "inputs tokens width"],
        attended: Bool[Tensor, "#inputs 1 #tokens tokens"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "inputs tokens width"]:
        """`attended`: which tokens each token may look at (None: all); `causal`, with `attended` None: none behind it."""
        q, k, v = _heads(self, x)
        return self._out(F.scaled_dot_product_attention(self.ln_q(q), self.ln_k(k), v, attn_mask=attended, is_causal=causal))

    def one_token(
        self,
        x: Float[Tensor, "inputs tokens width"],
        at: Int[Tensor, " inputs"],
        attended: Bool[Tensor, "#inputs 1 #tokens tokens"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "inputs 1 width"]:
        """What `forward` gives of token `at` of each input."""
        seen, norms = seen_by(at, attended, causal, x.shape[1]), (self.ln_q, self.ln_k)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        return self._out(gathered(x, at, projections, self.n_heads, attended=seen, norms=norms))

    def _out(self, y: Float[Tensor, "inputs heads tokens per_head"]) -> Float[Tensor, "inputs tokens width"]:
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

    def forward(
        self,
        x: Float[Tensor, "inputs tokens width"],
        attended: Bool[Tensor, "#inputs 1 #tokens tokens"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "inputs tokens width"]:
        """As `ExplicitAttention.forward`."""
        return self._out(x, self.attn(self.ln_1(x), attended, causal))

    def one_token(
        self,
        x: Float[Tensor, "inputs tokens width"],
        at: Int[Tensor, " inputs"],
        attended: Bool[Tensor, "#inputs 1 #tokens tokens"] | None = None,
        causal: bool = False,
    ) -> Float[Tensor, "inputs 1 width"]:
        """What `forward` gives of token `at` of each input."""
        return self._out(token_at(x, at), self.attn.one_token(self.ln_1(x), at, attended, causal))

    def _out(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.ls_1(self.ln_attn(attended))
        return cast(Tensor, x + self.ls_2(self.mlp(self.ln_2(x))))

    def to_native(self) -> dict[str, Tensor]:
        """Its tensors under open_clip's names."""
        return _stacked(self.state_dict(), "attn.in_proj_")


# ---------------------------------------------------------------- timm
class TimmAttention(nn.Module):
    """Self-attention with linear q, k and v projections, equal to the `timm.layers.Attention` it is made from."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.n_heads = source.num_heads
        self.q_proj, self.k_proj, self.v_proj = _thirds(source.qkv.weight, source.qkv.bias)
        self.q_norm, self.k_norm, self.norm = (
            deepcopy(getattr(source, name, nn.Identity())) for name in ("q_norm", "k_norm", "norm")
        )
        self.proj = deepcopy(source.proj)

    def forward(self, x: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images tokens width"]:
        q, k, v = _heads(self, x)
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return cast(Tensor, self.proj(self.norm(y.transpose(1, 2).flatten(2))))


class TimmBlock(nn.Module):
    """One block of timm's vision transformers with its attention made explicit; all else is a copy of the original's modules."""

    norm1: nn.Module
    ls1: nn.Module
    drop_path1: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    ls2: nn.Module
    drop_path2: nn.Module

    def __init__(self, source: Any) -> None:
        super().__init__()
        self.attn = TimmAttention(source.attn)
        for name in ("norm1", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"):
            setattr(self, name, deepcopy(getattr(source, name)))

    def forward(self, x: Float[Tensor, "images tokens width"]) -> Float[Tensor, "images tokens width"]:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return cast(Tensor, x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))

    def to_native(self) -> dict[str, Tensor]:
        """Its tensors under timm's names."""
        return _stacked(self.state_dict(), "attn.qkv.")


# ---------------------------------------------------------------- what stays frozen in a tail
def fixed(module: nn.Module) -> nn.Module:
    """A copy whose tensors are buffers that no state dict holds: it computes the same and does not learn. So the `state_dict()`
    of a tail is what is trained and nothing else."""
    copied = deepcopy(module)
    for part in copied.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach(), persistent=False)
    return copied


def on_cpu(native: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors on the CPU, as a file takes them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in native.items()}


# ---------------------------------------------------------------- parts of both
def _heads(attention: nn.Module, x: Tensor) -> list[Tensor]:
    """Queries, keys and values, each [inputs, heads, tokens, …]."""
    heads = cast(int, attention.n_heads)
    return [getattr(attention, name)(x).unflatten(-1, (heads, -1)).transpose(1, 2) for name in QKV]


def _thirds(weight: Tensor, bias: Tensor | None) -> list[nn.Linear]:
    """The three projections that are stacked in one matrix and one bias."""
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return [_linear(w, b) for w, b in zip(weight.chunk(3), biases, strict=True)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with copies of these tensors, without the cost and the random numbers of an initialisation."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear


def _stacked(block: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A block's tensors with the q, k and v projections stacked into one matrix and one bias, whose names begin with `prefix`."""
    stacked = {name: tensor for name, tensor in block.items() if name.split(".")[1] not in QKV}
    for kind in ("weight", "bias"):
        if parts := [block[f"attn.{name}.{kind}"] for name in QKV if f"attn.{name}.{kind}" in block]:
            stacked[f"{prefix}{kind}"] = torch.cat(parts)
    return stacked
