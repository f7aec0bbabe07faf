"""What a head's numbers say of targets: parts that add up, shares of a whole, logarithms, heads of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.config.data import Data
from pipeline.config.head import PerTargetHead
from pipeline.config.loss import GaussianLoss, SmoothL1
from pipeline.config.outputs import Each, Outputs, Parts, Ratios
from pipeline.config.trial import Config
from pipeline.data.truth import Numbers
from pipeline.errors import UserError
from pipeline.metrics.sums import Sums
from pipeline.models.base import Facts
from pipeline.models.learner import Apart, Learner, make_head
from pipeline.models.metadata import Names
from pipeline.tasks import load_task
from pipeline.training.demands import check_table
from tests.small import named

TARGETS = ("green", "dead", "clover", "gdm", "total")
ADD_UP = {"total": ["gdm", "dead"], "gdm": ["green", "clover"]}


def config_of(**sections: Any) -> Config:
    keeps_sums = sections.get("model", {}).get("outputs", {}).get("kind") in ("parts", "ratios")
    data = {"targets": TARGETS, **({"sums": ADD_UP} if keeps_sums else {})}
    return Config.model_validate(named({"experiment": "x", "data": data, **sections}))


def learner(**sections: Any) -> Learner:
    config = config_of(**sections)
    facts = Facts(TARGETS, Names(), 6, "", None, "")
    torch.manual_seed(0)
    made = config.model.head.make_model(config, facts, torch.nn.Identity())
    assert isinstance(made, Learner)
    return made.eval()


WITH_SUMS = config_of(model={"outputs": {"kind": "parts"}}, loss={"kind": "nll"}).data
FEATURES = 5 * torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
SUMS = Sums.of(TARGETS, {whole: tuple(parts) for whole, parts in ADD_UP.items()})


# ---------------------------------------------------------------- targets that add up
@pytest.mark.parametrize("kind", ["parts", "ratios"])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_said_adds_up_and_nothing_is_below_0(kind: str, scaled: bool) -> None:
    """In the targets' own units too: all are scaled by one number."""
    model = learner(model={"outputs": {"kind": kind}, "standardize_targets": scaled}, loss={"kind": "mse"})
    model.target_scale.fill_(17.0)
    said = model.predict(FEATURES).mean.detach().double().numpy()
    assert said.min() >= 0 and SUMS.apart(said).max() < 1e-9 and np.ptp(said[:, 4]) > 0.1


def test_parts_are_added_in_fp32_where_all_else_is_bf16() -> None:
    """As a product of matrices they would be off by a quarter of a gram in sixty."""
    model = learner(model={"outputs": {"kind": "parts"}}, loss={"kind": "nll"})
    with torch.autocast("cpu", torch.bfloat16):
        said = model(60 * FEATURES, None).parameters
    assert said.dtype == torch.float32
    assert SUMS.apart(said[..., 0].detach().double().numpy()).max() < 1e-6 * said.abs().max()


def test_variances_of_parts_add_up_as_those_of_independent_numbers() -> None:
    model = learner(model={"outputs": {"kind": "parts"}}, loss={"kind": "nll"})
    said = model.predict(FEATURES)
    green, dead, clover, gdm, total = said.variance.T
    torch.testing.assert_close(gdm, green + clover)
    torch.testing.assert_close(total, gdm + dead)
    loss = model.losses(model(FEATURES), torch.rand(9, 5))[0]
    assert loss.shape == (9,) and loss.isfinite().all()


def test_shares_of_a_whole_are_ratios_of_it() -> None:
    """dead / total is a logistic function of two numbers."""
    block = Ratios(kind="ratios")
    module = block.build(TARGETS, WITH_SUMS)
    raw = torch.randn(7, 5, 1, generator=torch.Generator().manual_seed(1))
    green, dead, clover, gdm, total = module(raw)[..., 0].T
    of = {name: raw[:, i, 0] for i, name in enumerate(TARGETS)}
    torch.testing.assert_close(total, F.softplus(of["total"]))
    torch.testing.assert_close(dead / total, torch.sigmoid(of["dead"] - of["gdm"]))
    torch.testing.assert_close(clover / gdm, torch.sigmoid(of["clover"] - of["green"]))
    torch.testing.assert_close(green + clover + dead, total)


@pytest.mark.parametrize("kind", Outputs.kinds)
def test_every_output_has_a_gradient(kind: str) -> None:
    model = learner(model={"outputs": {"kind": kind}, "head": {"kind": "per_target"}}, loss={"kind": "smooth_l1"})
    model.losses(model(FEATURES), torch.rand(9, 5))[0].mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"model": {"outputs": {"kind": "ratios"}}, "loss": {"kind": "nll"}}, "ratios knows no variance of a share"),
        ({"model": {"outputs": {"kind": "parts"}}, "loss": {"kind": "quantiles"}}, "parts adds means and variances"),
        ({"model": {"outputs": {"kind": "each", "positive": True}, "head": {"kind": "ridge"}}}, "learns by gradient descent"),
        ({"model": {"outputs": {"kind": "each", "positive": True}}, "loss": {"kind": "quantiles"}}, "one number of each target"),
        ({"loss": {"kind": "smooth_l1", "weights": [1, 2]}}, "loss.weights: one of each of green, dead"),
        ({"loss": {"kind": "smooth_l1", "weights": [0] * 5}}, "not all 0"),
    ],
)
def test_outputs_that_cannot_be_are_refused_in_words(sections: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config_of(**sections)


@pytest.mark.parametrize(
    ("sums", "said"),
    [
        ({"total": ["gdm", "moss"]}, "moss is no target"),
        ({"total": ["gdm", "dead"], "gdm": ["dead", "green"]}, "dead is a part of two wholes"),
        ({"total": ["gdm", "dead"], "gdm": ["total", "green"]}, "is a part of itself"),
        ({"total": ["gdm"]}, "at least 2"),
    ],
)
def test_sums_that_cannot_be_are_refused_in_words(sums: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(named({"experiment": "x", "data": {"targets": TARGETS, "sums": sums}}))


# ---------------------------------------------------------------- logarithms
def test_a_logarithm_that_is_learnt_comes_back_in_the_targets_own_units() -> None:
    model = learner(model={"outputs": {"kind": "each", "log": True}, "standardize_targets": True}, loss={"kind": "nll"})
    model.target_mean.fill_(2.0)
    model.target_scale.fill_(0.5)
    answer = model(FEATURES)
    location, scale = answer.parameters.unbind(-1)
    said = model.in_units(answer)
    torch.testing.assert_close(said.mean, torch.expm1(0.5 * location + 2))
    torch.testing.assert_close(said.variance, (0.5 * scale * torch.exp(0.5 * location + 2)).square())
    torch.testing.assert_close(model.standardize(torch.full((1, 5), 3.0)), torch.full((1, 5), (np.log(4.0) - 2) / 0.5).float())


def test_a_target_below_0_has_no_logarithm_and_is_named_before_anything_is_queued() -> None:
    config = config_of(model={"outputs": {"kind": "each", "log": True}}, select={"metric": "MAE"})
    table = pd.DataFrame({name: [1.0, 2.0, 3.0] for name in TARGETS} | {"group": ["a", "b", "c"], "split": "train"})
    tables = {"train": table, "validation": table.assign(dead=[1.0, -0.5, 2.0]), "test": table.iloc[:0]}
    with pytest.raises(UserError, match=r"model.outputs.log learns log\(1 \+ target\), and dead is as low as -0.5"):
        check_table(config, load_task("regress"), Numbers(TARGETS), tables)


# ---------------------------------------------------------------- heads of their own
def test_heads_are_apart_and_each_is_what_the_original_has() -> None:
    """Linear(D → max(8, D/4)) → ReLU → dropout → Linear(1) → softplus, of each target."""
    assert PerTargetHead(kind="per_target").hidden_width(100) == 25 and PerTargetHead(kind="per_target").hidden_width(12) == 8
    head = make_head(PerTargetHead(kind="per_target"), 40, 3, 1).eval()
    first, _, dropout, last = head
    assert isinstance(last, Apart) and dropout.p == 0.3
    x = torch.randn(5, 40)
    said = head(x)
    for target in range(3):
        rows = slice(10 * target, 10 * target + 10)
        alone = F.linear(F.relu(F.linear(x, first.weight[rows], first.bias[rows])), last.weight[target], last.bias[target])
        torch.testing.assert_close(said[:, target], alone[:, 0])
    said[:, 1].sum().backward()
    assert first.weight.grad[:10].abs().sum() == 0 == first.weight.grad[20:].abs().sum() and last.weight.grad[0].abs().sum() == 0


def test_an_output_that_is_positive_is_softplus() -> None:
    model = learner(model={"outputs": {"kind": "each", "positive": True}, "head": {"kind": "per_target"}}, loss={"kind": "mse"})
    raw = model.head(model.embed(FEATURES, None, None))
    torch.testing.assert_close(model.predict(FEATURES).mean, F.softplus(raw))


# ---------------------------------------------------------------- the loss
PARAMETERS = st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=4)


@given(PARAMETERS, st.floats(0.1, 5))
def test_the_loss_is_the_weighted_sum_of_smooth_l1(values: list[list[float]], beta: float) -> None:
    said, weights = torch.tensor(values), (0.5, 0.2, 0.1)
    targets = torch.zeros_like(said)
    found = SmoothL1(kind="smooth_l1", beta=beta, weights=weights).make(3).losses(said.unsqueeze(-1), targets)
    wanted = sum(w * F.smooth_l1_loss(said[:, i], targets[:, i], reduction="none", beta=beta) for i, w in enumerate(weights))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


def test_kinds_say_what_they_are() -> None:
    assert Each().keeps_zero is False and Each(positive=True).keeps_zero and Parts(kind="parts").n(WITH_SUMS, 5) == 3
    assert GaussianLoss(kind="nll").adds_up and isinstance(WITH_SUMS, Data)
