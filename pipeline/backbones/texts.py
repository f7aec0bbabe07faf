"""Towers of texts: from a text to token ids, embedding, trunk and tail, like a backbone of images (base.py).

A tail of texts needs more than hidden states: at which token the text is pooled, or which tokens are padding. The trunk therefore
gives each token one number more, a mark of 0 or 1 behind its D numbers: exact in bf16 as in fp32, and one tensor to cache."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.backbones.base import Backbone, Network, Tower

BASE = 256
"""Of the digits that a token id is kept as."""


class TextTower(Tower):
    """A tower of texts."""

    context_length: int
    """Token ids of a text, padding and all (L)."""
    n_tokens: int
    """Tokens at a cut: L, and one more where the tower adds a class token."""
    place: ClassVar[str] = "model.text"

    @abstractmethod
    def transform(self, text: str) -> Int[Tensor, " tokens"]:
        """A text → its token ids as the model's own tokenizer gives them, [L], on the CPU."""

    @abstractmethod
    def embed(self, texts: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts embed_dim"]:
        """Token ids → pooled embeddings as the library gives them, not normalised."""

    def given(self, texts: Int[Tensor, "texts tokens"]) -> Float[Tensor, "texts tokens 3"]:
        """Token ids, each as three digits to the base of 256: bf16 holds these exactly, and not every id above 256."""
        return torch.stack([texts // BASE**2, texts // BASE % BASE, texts % BASE], dim=-1).float()

    @abstractmethod
    def trunk(self, texts: Int[Tensor, "texts tokens"], cut: int) -> Float[Tensor, "texts n_tokens marked"]:
        """Hidden states after the first `cut` blocks, each with its mark: [B, n_tokens, D + 1]."""

    def example(self) -> Int[Tensor, "1 tokens"]:
        return self.transform("a photo of a beetle").unsqueeze(0)

    def fills(self, text: str) -> bool:
        """Whether a text takes the whole context, so that what stands behind (of this text, too) is not read."""
        return torch.equal(self.transform(text), self.transform(f"{text} beetle"))

    def network(self) -> Network:
        return TextNetwork(self)


class TextNetwork(Network):
    """A trainable copy of a whole tower of texts."""

    def forward(self, given: Float[Tensor, "texts tokens 3"]) -> Float[Tensor, "texts embed_dim"]:
        digits = given.long().unbind(-1)
        return self.backbone.embed((digits[0] * BASE + digits[1]) * BASE + digits[2])


class Towers(NamedTuple):
    """The two towers of a model, and the numbers that make logits of cosines: logits = exp(scale) · cosine + bias."""

    image: Backbone
    text: TextTower
    logit_scale: float
    """As it is learnt: the logarithm of the factor."""
    logit_bias: float | None
    """None where the model has none (CLIP; SigLIP has one)."""


# ---------------------------------------------------------------- marks
def with_marks(
    tokens: Float[Tensor, "texts tokens width"], marks: Bool[Tensor, "texts tokens"]
) -> Float[Tensor, "texts tokens marked"]:
    """Hidden states with a mark behind each."""
    return torch.cat([tokens, marks.unsqueeze(-1).to(tokens.dtype)], dim=-1)


def without_marks(
    tokens: Float[Tensor, "texts tokens marked"],
) -> tuple[Float[Tensor, "texts tokens width"], Bool[Tensor, "texts tokens"]]:
    """Hidden states and marks apart."""
    return tokens[..., :-1], tokens[..., -1] > 0.5


def up_to_last_mark(tokens: Float[Tensor, "texts tokens marked"]) -> Float[Tensor, "texts shorter marked"]:
    """Without the tokens behind the last one that is marked in any of the texts. A species' name takes ten of 77: where no marked
    token looks at those behind it, nothing else has to be computed."""
    marked = (tokens[..., -1] > 0.5).any(dim=0)
    last = (marked * torch.arange(len(marked), device=tokens.device)).max()
    return tokens[:, : int(last) + 1]
