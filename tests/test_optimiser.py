"""Every trained tensor at its own rate, once; and the learning rate of each epoch."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.backbones.base import Tail
from pipeline.config.encoder import Lora
from pipeline.config.schedule import Plain
from pipeline.config.training import Optim
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT
from pipeline.experiments.reading import load_experiment
from pipeline.models.encoders import PatchConvs
from pipeline.models.learner import DomainEmbedding, Learner, SpeciesEmbedding, make_mlp
from pipeline.models.metadata import Names
from pipeline.models.pooling import make_pooling
from pipeline.training.optimiser import make_optimizer, parameter_groups, set_rates, without_gradient

WIDTH = 4
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj")


class Block(nn.Module):
    """The six projections of a transformer block in a row."""

    def __init__(self) -> None:
        super().__init__()
        for name in PROJECTIONS:
            self.add_module(name, nn.Linear(WIDTH, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        for name in PROJECTIONS:
            tokens = tokens + self.get_submodule(name)(tokens)
        return tokens


class SmallTail(Tail):
    """A tail with the names that real ones have."""

    cut = 0
    projections: Mapping[str, tuple[str, ...]] = {name: (name,) for name in PROJECTIONS}

    def __init__(self, n_blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(n_blocks))
        self.ln_post = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.ln_post(tokens[:, 0])
        return out

    def to_native(self) -> dict[str, Tensor]:
        return {}


def resolve(method: str, *overrides: str) -> Config:
    return load_experiment(PROJECT / "configs" / "beetles" / f"{method}.yaml", overrides).config


def make_encoder(config: Config) -> nn.Module:
    encoder = config.model.encoder
    if encoder.kind == "finetuned":
        return SmallTail(encoder.blocks).requires_grad_(True)
    if encoder.kind == "patch_convs":
        return PatchConvs(WIDTH, (6, 6), encoder.kernel, WIDTH)
    if isinstance(encoder, Lora):
        from pipeline.models.adapter import add_adapter

        return add_adapter(SmallTail(encoder.blocks), encoder)
    return nn.Identity()


def make_model(config: Config) -> Learner:
    model = config.model
    domain = DomainEmbedding(3, WIDTH) if model.domain_embedding else None
    species = SpeciesEmbedding(5, 2, WIDTH) if model.species_embedding else None
    pooling, head = make_pooling(model.pool, WIDTH), make_mlp([WIDTH, 8, 3])
    return Learner(make_encoder(config), head, domain, model.normalize, 3, species=species, pooling=pooling)


def rates(method: str, *overrides: str) -> dict[str, float]:
    """Name of each trainable parameter → its full learning rate, over the method's `optim.lr`."""
    config = resolve(method, *overrides)
    model = make_model(config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, config).param_groups
    return {names[p]: group["lr"] / config.optim.lr for group in groups for p in group["params"]}


def rates_of(found: dict[str, float], part: str) -> set[float]:
    return {round(rate, 9) for name, rate in found.items() if part in name}


METHODS = ("frozen", "finetune", "baseline", "dinov2", "augmentation", "lora", "combined")
OF_SETS = ("model.species_embedding=true", "model.pool=attention", "train.sample=groups")


@pytest.mark.parametrize("method", METHODS)
def test_every_trainable_parameter_is_in_exactly_one_group(method: str) -> None:
    """Mistake 1: the domain embedding's parameters were in no group."""
    config = resolve(method, "model.encoder.r=2" if method in ("lora", "combined") else "seed=0")
    model = make_model(config)
    grouped = [p for group in parameter_groups(model, config) for p in group["params"]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert trainable and sorted(map(id, grouped)) == sorted(map(id, trainable))


def test_a_frozen_backbone_leaves_one_rate_for_the_head() -> None:
    assert set(rates("frozen").values()) == {1.0}


@pytest.mark.parametrize("method", ["finetune", "baseline", "augmentation"])
def test_fine_tuned_blocks_and_layer_norm_learn_at_a_hundredth_of_the_heads_rate(method: str) -> None:
    found = rates(method)
    assert rates_of(found, "encoder.blocks.0.") == rates_of(found, "encoder.blocks.1.") == {0.01}
    assert rates_of(found, "encoder.ln_post.") == {0.01}
    assert rates_of(found, "head.") == {1.0}


@pytest.mark.parametrize(("method", "rate"), [("baseline", 1.0), ("augmentation", 1.0), ("lora", 1.5), ("combined", 1.5)])
def test_the_domain_embedding_learns_at_the_heads_rate(method: str, rate: float) -> None:
    """Mistakes 1 and 11."""
    found = rates(method, "model.encoder.r=2") if method in ("lora", "combined") else rates(method)
    assert rates_of(found, "domain.table") == rates_of(found, "domain.mlp") == rates_of(found, "head.") == {rate}


@pytest.mark.parametrize(("method", "rate"), [("baseline", 1.0), ("lora", 1.5)])
def test_species_and_attention_learn_at_the_heads_rate(method: str, rate: float) -> None:
    found = rates(method, *OF_SETS, *(["model.encoder.r=2"] if method == "lora" else []))
    for part in ("species.species", "species.genus", "species.mlp", "pooling.value", "pooling.gate", "pooling.score"):
        assert rates_of(found, part) == {rate}, part


@pytest.mark.parametrize("method", ["lora", "combined"])
def test_adapters_of_block_i_of_n_learn_faster_by_half_of_i_over_n(method: str) -> None:
    found = rates(method, "model.encoder.r=2")
    for i in range(6):
        assert rates_of(found, f".blocks.{i}.") == {round(1 + 0.5 * i / 6, 9)}
    assert rates_of(found, "ln_post") == {0.5}


def test_lora_trains_adapters_of_all_six_projections_and_no_weight_of_the_backbone() -> None:
    found = rates("lora", "model.encoder.r=2")
    for projection in PROJECTIONS:
        for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
            assert rates_of(found, f".blocks.5.{projection}.{part}.")
    assert not any("base_layer" in name or "original_module" in name for name in found)


def test_dinov2s_convolutions_are_trained() -> None:
    """Mistake 5."""
    found = rates("dinov2")
    assert rates_of(found, "encoder.convs.0.") == rates_of(found, "encoder.convs.2.") == {1.0}


def test_the_rates_come_from_the_configuration() -> None:
    overrides = ("model.encoder.r=2", "model.encoder.blocks=2", "model.encoder.depth_gain=3")
    found = rates("lora", *overrides, "model.encoder.ln_scale=0.25", "model.head.lr_scale=4")
    assert rates_of(found, ".blocks.1.") == {2.5}
    assert rates_of(found, "ln_post") == {0.25}
    assert rates_of(found, "head.") == {4.0}


@pytest.mark.parametrize(("method", "kind", "decay"), [("baseline", torch.optim.Adam, 0), ("lora", torch.optim.AdamW, 0.01)])
def test_a_method_has_the_optimiser_that_was_published(method: str, kind: type, decay: float) -> None:
    config = resolve(method, "optim.betas=[0.8,0.9]", *(["model.encoder.r=2"] if method == "lora" else []))
    optimizer = make_optimizer(make_model(config), config)
    assert type(optimizer).__bases__ == (kind,), "the published one, but that its methods load no compiler"
    assert all(g["weight_decay"] == decay and tuple(g["betas"]) == (0.8, 0.9) for g in optimizer.param_groups)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_moves_every_trained_tensor_that_has_a_gradient(method: str) -> None:
    config = resolve(method, "optim.lr=0.1", *(["model.encoder.r=2"] if method in ("lora", "combined") else []))
    torch.manual_seed(0)
    model = make_model(config)
    optimizer = make_optimizer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    shapes: dict[str, tuple[int, ...]] = {"frozen": (5, WIDTH), "patch_convs": (5, 36, WIDTH)}
    features = torch.randn(shapes.get(config.model.encoder.kind, (5, 7, WIDTH)))
    metadata = Names(("a", "b", "c")).metadata({"domain": ["a", "b", "c", None, "d"]})
    model(features, metadata).parameters.square().mean().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        learns = parameter.requires_grad and parameter.grad is not None and parameter.grad.abs().max() > 1e-6
        assert not learns or not torch.equal(parameter, before[name]), name
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name


def test_a_parameter_that_no_gradient_reached_is_named() -> None:
    """Mistake 3: adapters that the fused attention bypassed had a gradient of None."""
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "bypassed": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    model["used"](torch.ones(1, 2)).sum().backward()
    assert list(without_gradient(model)) == ["bypassed.weight", "bypassed.bias"]


# ---------------------------------------------------------------- the schedule
COSINE = Plain(kind="cosine", hold="auto")
ADAM = Optim(lr=1e-4)


def curve(schedule: Plain, epochs: int, peak: float = 1e-4, optim: Optim = ADAM) -> list[float]:
    return [schedule.rate(peak, optim.lr, epoch, epochs) for epoch in range(epochs)]


def test_without_a_schedule_the_rate_is_constant() -> None:
    assert set(curve(Plain(), 50)) == {1e-4}


@pytest.mark.parametrize(("epochs", "held"), [(500, 10), (100, 10), (40, 4), (9, 0)])
def test_hold_auto_holds_for_a_tenth_of_the_epochs_at_most_ten(epochs: int, held: int) -> None:
    rate = curve(COSINE, epochs)
    assert rate[: held + 1] == [1e-4] * (held + 1) and rate[held + 1] < 1e-4


def test_the_cosine_ends_at_the_floor_in_the_last_epoch_and_is_halfway_in_the_middle() -> None:
    rate = curve(Plain(kind="cosine", hold=0), 101)
    assert rate[-1] == pytest.approx(1e-6)
    assert rate[50] == pytest.approx((1e-4 + 1e-6) / 2)
    expected = [1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * epoch / 100)) / 2 for epoch in range(101)]
    assert rate == pytest.approx(expected)


def test_all_groups_end_at_one_floor_whatever_their_full_rates() -> None:
    """0.01·lr for each of them, not a hundredth of each one's own rate."""
    config = resolve("lora", "train.epochs=500", "model.encoder.r=2", "optim.lr=2e-3")
    optimizer = make_optimizer(make_model(config), config)
    assert len({group["peak_lr"] for group in optimizer.param_groups}) > 3
    set_rates(optimizer, config, 499, ())
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-5] * len(optimizer.param_groups))
    set_rates(optimizer, config, 0, ())
    assert all(group["lr"] == group["peak_lr"] for group in optimizer.param_groups)


def test_warmup_grows_linearly_and_then_the_hold_begins() -> None:
    rate = curve(Plain(kind="cosine", warmup=4, hold=2), 20)
    assert rate[:5] == pytest.approx([2e-5, 4e-5, 6e-5, 8e-5, 1e-4])
    assert rate[4:7] == pytest.approx([1e-4] * 3) and rate[7] < 1e-4
    assert curve(Plain(warmup=4), 20)[4:] == [1e-4] * 16


schedules: st.SearchStrategy[Any] = st.builds(
    Plain,
    kind=st.sampled_from(["constant", "cosine"]),
    warmup=st.integers(0, 30),
    hold=st.integers(0, 30) | st.just("auto"),
    floor=st.floats(0, 1),
)


@given(schedules, st.integers(1, 60), st.floats(1, 2))
@settings(deadline=None)
def test_a_rate_rises_once_falls_once_and_stays_between_floor_and_peak(schedule: Plain, epochs: int, scale: float) -> None:
    peak = scale * 1e-4
    rate = curve(schedule, epochs, peak)
    top = rate.index(max(rate))
    assert rate[: top + 1] == sorted(rate[: top + 1])
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(rate[top:], rate[top + 1 :], strict=False))
    assert max(rate) <= peak * (1 + 1e-12)
    assert all(value >= schedule.floor * 1e-4 * (1 - 1e-12) for value in rate[schedule.warmup :])


def test_a_rate_is_a_function_of_the_epoch_alone_so_that_a_resumed_run_has_it() -> None:
    config = resolve("lora", "train.epochs=500", "model.encoder.r=2")
    optimizer = make_optimizer(make_model(config), config)
    set_rates(optimizer, config, 300, ())
    expected = [group["lr"] for group in optimizer.param_groups]
    for epoch in (499, 0, 7, 300):
        set_rates(optimizer, config, epoch, ())
    assert [group["lr"] for group in optimizer.param_groups] == expected


# ---------------------------------------------------------------- torch's compiler
STEPS = """
import sys, torch
from pipeline.config.training import Optim
from pipeline.training.optimiser import _lean

def trained(kind):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    optimizer = kind(model.parameters(), lr=0.1, fused=True)
    for i in range(3):
        optimizer.zero_grad(set_to_none=True)
        model(torch.ones(2, 3) * i).square().sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    return model.weight

mine = [trained(_lean(kind)) for kind in (torch.optim.Adam, torch.optim.AdamW)]
assert "torch._dynamo" not in sys.modules
assert all(map(torch.equal, mine, [trained(kind) for kind in (torch.optim.Adam, torch.optim.AdamW)]))
assert "torch._dynamo" in sys.modules, "torch's own no longer loads it: ours is not needed"
"""


@pytest.mark.jobs
def test_an_optimiser_is_torchs_to_the_bit_and_loads_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", STEPS], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
