"""The last block of a tail for the one token that its pooling reads: the same outputs and gradients as of a block that computes
all tokens, and no other token computed."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor, nn

from pipeline.backbones.base import Tail, Tower
from pipeline.backbones.explicit import ExplicitBlock
from pipeline.backbones.one_token import token_at
from pipeline.config.encoder import Lora
from pipeline.models.adapter import add_adapter
from tests.test_backbones import make_dinov2, make_open_clip, noise, randomised, small_dinov2
from tests.test_towers import learn
from tests.towers import ids, make_towers, small_kinds

TEXTS = ("ViT-B-32", "SigLIP", "custom blocks", "CoCa", "BERT with pooler")
DINOV2 = ("plain", "SwiGLU", "registers")
ONE = ("image", *(f"text {name}" for name in TEXTS), *(f"DINOv2 {name}" for name in DINOV2))
"""Towers whose pooling reads one token."""
ALL = ("image avg", "DINOv2 with mean", "text BERT")
"""Towers whose pooling reads more."""
LAST = re.compile("mlp|output")
"""The last part of a block, as libraries call it."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return small_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def cut(request: pytest.FixtureRequest, kinds: dict[str, dict[str, Any]]) -> tuple[Tail, Tensor]:
    """A tail of two blocks or more with random weights, and what it reads."""
    tower, inputs = _tower(request.param, kinds)
    tail = tower.make_tail(1)
    randomised(tail, seed=5)
    return tail.eval(), tower.trunk(inputs, 1).detach()


def _tower(name: str, kinds: dict[str, dict[str, Any]]) -> tuple[Tower, Tensor]:
    which, _, kind = name.partition(" ")
    if which == "text":
        return make_towers(kinds[kind])[1].text, ids()
    if which == "DINOv2":
        backbone = make_dinov2(small_dinov2(kind if kind in DINOV2 else "registers"))
        backbone.pooling = "cls" if kind in DINOV2 else "cls_mean"
        return backbone, noise(3, 28)
    return make_open_clip(**({"pool_type": kind} if kind else {})), noise(3, 32)


def plainly(tail: Tail) -> Tail:
    """The same tail, every block of which computes all tokens."""
    plain = deepcopy(tail)
    plain.one_token = partial(Tail.one_token, plain)  # type: ignore[method-assign]
    return plain


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """But for the biases of keys: they change no output, so that their gradients are roundings."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if not re.search(r"(k_proj|key)(\.base_layer)?\.bias", name):
            torch.testing.assert_close(tensor, theirs[name], rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("cut", ONE, indirect=True)
def test_it_says_and_learns_what_a_block_for_all_tokens_does(cut: tuple[Tail, Tensor], adapted: bool) -> None:
    tail, tokens = cut[0], cut[1].double().requires_grad_()
    found: list[list[dict[str, Tensor]]] = []
    for each in (tail, plainly(tail)):
        torch.manual_seed(2)
        model = (add_adapter(each, Lora(kind="lora", blocks=2, r=2, alpha=2.0)) if adapted else each).double()
        said = model(tokens)
        learnt = {"tokens": tokens, **{name: p for name, p in model.named_parameters() if p.requires_grad}}
        weights = torch.linspace(-1, 1, said.numel(), dtype=said.dtype).view_as(said)
        slopes = torch.autograd.grad((said * weights).sum(), list(learnt.values()))
        learn(model, tokens.detach())
        found.append([{"said": said.detach()}, dict(zip(learnt, slopes, strict=True)), dict(model.state_dict())])
    for ours, theirs in zip(*found, strict=True):
        equal(ours, theirs)


@pytest.mark.parametrize("cut", [*ONE, *ALL], indirect=True)
def test_the_last_block_goes_on_with_the_pooled_token_alone(cut: tuple[Tail, Tensor], request: pytest.FixtureRequest) -> None:
    (tail, tokens), seen = cut, []
    (last,) = (module for name, module in tail.blocks[-1].named_children() if LAST.fullmatch(name))
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    for again in (False, True):
        tail.set_grad_checkpointing(again)
        tail(tokens).sum().backward()
    assert len(seen) == 3 and (max(seen) == 1) == (request.node.callspec.params["cut"] in ONE)


class Plain(Tail):
    """A tail of a library whose blocks know nothing of this."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.token_after_blocks(tokens, torch.tensor([1, 0]))

    def to_native(self) -> dict[str, Tensor]:
        return {}


def test_blocks_that_cannot_compute_one_token_alone_compute_all_and_none_gives_the_token() -> None:
    tokens = torch.randn(2, 3, 4)
    expected = torch.stack([tokens[0, 1], tokens[1, 0]])
    assert torch.equal(Plain()(tokens), expected)
    torch.testing.assert_close(Plain(nn.Tanh(), nn.Tanh())(tokens), expected.tanh().tanh())


@given(
    heads=st.integers(1, 3),
    per_head=st.integers(1, 4),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    masked=st.sampled_from(["", "causal", "some"]),
    custom=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_block_gives_any_token_alone(
    heads: int, per_head: int, sizes: tuple[int, int], masked: str, custom: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    (n, n_tokens), width = sizes, heads * per_head
    more = {"scale_attn": True, "scale_heads": True, "scale_fc": True} if custom else {}
    block = (CustomResidualAttentionBlock if custom else ResidualAttentionBlock)(width, heads, ls_init_value=0.5, **more)
    block = randomised(ExplicitBlock(block), seed).double()
    x, at = torch.randn(n, n_tokens, width, dtype=torch.float64, requires_grad=True), torch.randint(n_tokens, (n,))
    attended = torch.rand(n, 1, n_tokens, n_tokens) < 0.5
    attended[..., 0] = True
    mask = (attended if masked == "some" else None, masked == "causal")
    alone, among = block.one_token(x, at, *mask), token_at(block(x, *mask), at)
    torch.testing.assert_close(alone, among)
    learnt = [x, *(p for name, p in block.named_parameters() if name != "attn.k_proj.bias")]
    slopes = [torch.autograd.grad(said.square().sum(), learnt) for said in (alone, among)]
    for ours, theirs in zip(*slopes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
