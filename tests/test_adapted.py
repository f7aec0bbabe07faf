"""Carabid's layer for an adapted linear one says what PEFT's own says, learns what that learns, and leaves to it what it has no
way for."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from pipeline.config.encoder import Lora
from pipeline.models.adapted import AdaptedLinear, Adapter
from pipeline.models.adapter import add_adapter, load_adapter, save_adapter
from tests.test_backbones import make_open_clip, noise, randomised, relative_error

WAYS = ("by_weight", "by_both", "by_rank")


def layers(n_in: int, n_out: int, rank: int, bias: bool = True, dropout: float = 0.0, **kinds: Any) -> tuple[Any, Any]:
    """PEFT's layer and Carabid's around the same linear one, with the same adapter, in double precision."""
    base = nn.Linear(n_in, n_out, bias)
    config = LoraConfig(r=rank, lora_alpha=3, lora_dropout=dropout, use_rslora=True, **kinds)
    theirs = Linear(base, "default", config, rank, lora_alpha=3)
    ours = AdaptedLinear(deepcopy(base), "default", config, rank, lora_alpha=3)
    randomised(theirs, seed=2)
    ours.load_state_dict(theirs.state_dict())
    for layer in (theirs, ours):
        layer.double().get_base_layer().requires_grad_(False)
    return theirs, ours


def gradients(layer: Any, said: Tensor, x: Tensor) -> list[Tensor]:
    learnt = [x, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    weights = torch.linspace(-1, 1, said.numel(), dtype=said.dtype).view_as(said)
    return list(torch.autograd.grad((said.square() * weights).sum(), learnt))


@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6)),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    dora=st.booleans(),
    bias=st.booleans(),
    way=st.sampled_from(WAYS),
)
@settings(max_examples=60, deadline=None)
def test_each_way_gives_pefts_output_and_gradients(
    sizes: tuple[int, int, int], shape: list[int], dora: bool, bias: bool, way: str
) -> None:
    torch.manual_seed(0)
    theirs, ours = layers(*sizes, bias=bias, use_dora=dora)
    x = torch.randn(*shape, sizes[0], dtype=torch.float64, requires_grad=True)
    said, expected = getattr(ours._only_one(), way)(x), theirs(x)
    torch.testing.assert_close(said, expected)
    for ours_is, theirs_is in zip(gradients(ours, said, x), gradients(theirs, expected, x), strict=True):
        torch.testing.assert_close(ours_is, theirs_is)


def test_the_way_follows_what_is_multiplied() -> None:
    def way(n_vectors: int, rank: int, dora: bool) -> str:
        magnitude = torch.ones(768) if dora else None
        return Adapter(torch.empty(0), None, torch.empty(rank, 768), torch.empty(768, rank), 1.0, magnitude).cheapest(n_vectors)

    assert way(16 * 257, 256, True) == way(16 * 257, 256, False) == "by_weight"
    assert way(16 * 50, 256, True) == "by_both" and way(8, 16, True) == "by_both"
    assert way(8, 16, False) == "by_rank"
    with torch.no_grad():
        assert way(16 * 50, 256, True) != "by_rank" and way(8, 16, False) == "by_rank"


@pytest.mark.parametrize("dora", [True, False])
def test_a_tail_learns_what_it_would_with_pefts_own_layers(dora: bool) -> None:
    """Should PEFT's layers get another shape, this or the next test fails."""
    backbone, learnt = make_open_clip(), []
    tokens = backbone.trunk(noise(3, 32), 1).detach().double()
    for own in (True, False):
        tail, lora = backbone.make_tail(1), Lora(kind="lora", blocks=2, r=4, alpha=4.0, dora=dora)
        torch.manual_seed(1)
        model = add_adapter(tail, lora) if own else pefts_own(tail, lora)
        learnt.append(after_steps(model.double(), tokens))
    assert learnt[0].keys() == learnt[1].keys()
    for name, tensor in learnt[0].items():
        torch.testing.assert_close(tensor, learnt[1][name], rtol=1e-6, atol=1e-9, msg=name)


def pefts_own(tail: Any, lora: Lora) -> PeftModel:
    sizes = {"r": lora.r, "lora_alpha": lora.alpha, "use_rslora": lora.rslora, "use_dora": lora.dora}
    config = LoraConfig(**sizes, target_modules=tail.module_names(lora.targets), modules_to_save=["ln_post"])
    model = get_peft_model(tail, config)
    assert isinstance(model, PeftModel) and not any(isinstance(module, AdaptedLinear) for module in model.modules())
    return model


def after_steps(model: nn.Module, tokens: Tensor, steps: int = 4) -> dict[str, Tensor]:
    """All tensors after some steps, but for the biases of keys: they change no output, and their gradients are roundings."""
    optimiser = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], 0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        model(tokens).square().mean().backward()
        optimiser.step()
    return {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("k_proj.bias")}


def test_every_layer_of_a_new_and_of_a_loaded_adapter_has_a_way_of_its_own(tmp_path: Path) -> None:
    backbone, lora = make_open_clip(), Lora(kind="lora", blocks=2, r=2, alpha=2.0)
    new = add_adapter(backbone.make_tail(1), lora)
    save_adapter(new, tmp_path / "adapter")
    for model in (new.train(), load_adapter(backbone.make_tail(1), tmp_path / "adapter").train()):
        adapted = [module for module in model.modules() if isinstance(module, Linear)]
        assert len(adapted) == 2 * len(lora.targets)
        assert all(isinstance(module, AdaptedLinear) and isinstance(module._only_one(), Adapter) for module in adapted)
    assert "AdaptedLinear" not in (tmp_path / "adapter" / "adapter_config.json").read_text()


def merged(layer: Any) -> None:
    layer.merge()


def disabled(layer: Any) -> None:
    layer.enable_adapters(False)


def learning(layer: Any) -> None:
    layer.get_base_layer().requires_grad_(True)


@pytest.mark.parametrize("change", [merged, disabled, learning])
def test_what_has_no_way_of_its_own_is_pefts(change: Any) -> None:
    theirs, ours = layers(5, 4, 2, use_dora=True)
    x = torch.randn(3, 5, dtype=torch.float64)
    change(theirs), change(ours)
    assert ours._only_one() is None and torch.equal(ours(x), theirs(x))


def test_dropout_is_pefts_while_it_drops() -> None:
    theirs, ours = layers(5, 4, 2, use_dora=True, dropout=0.5)
    x, said = torch.randn(3, 5, dtype=torch.float64), []
    for layer in (theirs, ours):
        torch.manual_seed(0)
        said.append(layer.train()(x))
    assert ours._only_one() is None and torch.equal(*said)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_merging_and_unmerging_stay_pefts() -> None:
    _, ours = layers(6, 5, 2, use_dora=True)
    x = torch.randn(3, 6, dtype=torch.float64)
    before = ours(x)
    ours.merge(safe_merge=True)
    torch.testing.assert_close(ours.get_base_layer()(x), before)
    ours.unmerge()
    torch.testing.assert_close(ours(x), before)


def test_under_autocast_it_says_the_same_but_for_roundings() -> None:
    _, ours = layers(64, 48, 4, use_dora=True)
    ours, x = ours.float(), torch.randn(10, 64, requires_grad=True)
    expected = ours(x)
    wanted = gradients(ours, expected, x)
    with torch.autocast("cpu", torch.bfloat16):
        said = ours(x)
    assert said.dtype == torch.bfloat16 and relative_error(said.detach().float(), expected.detach()) < 0.01
    for gradient, exact in zip(gradients(ours, said.float(), x), wanted, strict=True):
        assert gradient.dtype == torch.float32 and relative_error(gradient, exact) < 0.02
