"""A block for one token of each input: what its pooling reads. Attention then asks for that token alone, and of the others
nothing but what answers it is computed; the same numbers as in a block that computes all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def token_at(x: Float[Tensor, "inputs tokens width"], at: Int[Tensor, " inputs"]) -> Float[Tensor, "inputs 1 width"]:
    """One token of each input."""
    return x[torch.arange(len(x), device=x.device), at].unsqueeze(1)


def first_of(x: Float[Tensor, "inputs tokens width"]) -> Int[Tensor, " inputs"]:
    """Where the class token stands."""
    return torch.zeros(len(x), dtype=torch.int64, device=x.device)


def gathered(
    x: Float[Tensor, "inputs tokens width"],
    at: Int[Tensor, " inputs"],
    projections: Sequence[nn.Module],
    n_heads: int,
    *,
    attended: Tensor | None = None,
    norms: Sequence[nn.Module] = (nn.Identity(), nn.Identity()),
    dropout: float = 0.0,
) -> Float[Tensor, "inputs heads 1 per_head"]:
    """What attention gathers for token `at` of each input, by its query, key and value projections. `attended`
    [inputs, 1, 1, tokens]: what it may look at (bool), or what is added to logits; `norms`: of queries and of keys."""
    ask, key, value = projections
    queries = norms[0](_heads(ask(token_at(x, at)), n_heads))
    if type(key) is type(value) is nn.Linear and isinstance(norms[1], nn.Identity):
        return _through_queries(x, queries, key, value, attended, dropout)
    keys, values = norms[1](_heads(key(x), n_heads)), _heads(value(x), n_heads)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=attended, dropout_p=dropout)


def _through_queries(
    x: Tensor, queries: Tensor, key: nn.Linear, value: nn.Linear, attended: Tensor | None, dropout: float
) -> Tensor:
    """Without keys and values: q·(K x) = (Kᵀ q)·x and Σ aᵢ V xᵢ = V Σ aᵢ xᵢ, so that the two matrices meet one vector of each
    head and no token. Products are of [heads, width] with [width, tokens], where they were of [width, width]."""
    n_heads, per_head = queries.shape[1], queries.shape[3]
    asked = torch.einsum("bhqd,hdw->bhw", queries, key.weight.unflatten(0, (n_heads, -1)))
    logits = asked @ x.transpose(1, 2)  # [inputs, heads, tokens]
    if key.bias is not None:  # of one query a constant, that leaves the weights as they are
        logits = logits + torch.einsum("bhqd,hd->bhq", queries, key.bias.unflatten(0, (n_heads, -1)))
    weights = _softmax(logits * per_head**-0.5, None if attended is None else attended.squeeze(2))
    mixed = F.dropout(weights, dropout) if dropout else weights
    given = torch.einsum("bhw,hdw->bhd", mixed @ x, value.weight.unflatten(0, (n_heads, -1)))
    if value.bias is not None:
        given = given + mixed.sum(2, keepdim=True) * value.bias.unflatten(0, (n_heads, -1))
    return given.unsqueeze(2)


def _softmax(logits: Tensor, attended: Tensor | None) -> Tensor:
    if attended is None:
        return logits.softmax(2)
    if attended.dtype == torch.bool:
        return logits.masked_fill(~attended, -torch.inf).softmax(2)
    return (logits + attended).softmax(2)


def seen_by(
    at: Int[Tensor, " inputs"], attended: Bool[Tensor, "#inputs 1 #tokens tokens"] | None, causal: bool, n_tokens: int
) -> Bool[Tensor, "inputs 1 1 tokens"] | None:
    """The row of a mask that is token `at`'s; of `causal` attention without a mask (None), that and the tokens before it."""
    if attended is not None:
        return attended.expand(len(at), 1, n_tokens, -1)[torch.arange(len(at), device=at.device), :, at].unsqueeze(2)
    return (torch.arange(n_tokens, device=at.device) <= at[:, None])[:, None, None] if causal else None


def _heads(x: Tensor, n_heads: int) -> Float[Tensor, "inputs heads tokens per_head"]:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)
