"""From images to their group: whatever their order and number, the same in training as in evaluation, and worth learning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor, nn

from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.features.bank import TensorBank
from pipeline.metrics.groups import group_table, image_table, pool_groups
from pipeline.metrics.regression import group_means, r2
from pipeline.models.learner import Learner, make_mlp
from pipeline.models.losses import Quantiles
from pipeline.models.metadata import Names
from pipeline.models.pooling import AttentionPooling, Pooling, make_pooling, pool
from pipeline.signals import StopFlag
from pipeline.training.learner import fit
from pipeline.training.run import Run, Stop
from pipeline.training.samples import Samples, Targets, answers, predict
from pipeline.training.sets import make_sets
from tests.small import named

CPU, WIDTH, TARGETS = torch.device("cpu"), 4, ("a", "b", "c")
KINDS: tuple[Any, ...] = ("mean", "precision", "attention")
LOSSES = ("mse", "crps", "nll", "student_t", "quantiles")


def group_r2(truth: np.ndarray, said: np.ndarray, groups: np.ndarray, log_weights: np.ndarray | None = None) -> float | None:
    return r2(group_means(truth, groups), group_means(said, groups, log_weights))


def opinionated(kind: Any, width: int = WIDTH) -> Pooling:
    """A pooling whose attention, if it is one, has learnt something."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        pooling = make_pooling(kind, width)
        if isinstance(pooling, AttentionPooling):
            nn.init.normal_(pooling.score.weight, std=3)
    return pooling.requires_grad_(False)


def draw(groups: list[int], kind: Any, seed: int) -> tuple[Tensor, Tensor, Tensor, NDArray[np.int64]]:
    """Mean, sd and log weights [B, 2] of images of these groups."""
    generator = torch.Generator().manual_seed(seed)
    mean, embedding = torch.randn(len(groups), 2, generator=generator), torch.randn(len(groups), 4, generator=generator)
    sd = torch.rand(len(groups), 2, generator=generator) * 3 + 0.1
    return mean, sd, opinionated(kind)(embedding, sd.square()), pd.factorize(np.array(groups))[0].astype("int64")


def by_torch(mean: Tensor, sd: Tensor, weights: Tensor, groups: NDArray[np.int64]) -> tuple[Any, Any]:
    """Mean and variance of groups as training pools the locations and scales of a distribution."""
    mean, sd = pool(torch.stack((mean, sd), -1), weights, make_sets(groups, CPU)).unbind(-1)
    return mean.numpy(), sd.square().numpy()


def by_numpy(mean: Tensor, sd: Tensor, weights: Tensor, groups: NDArray[np.int64]) -> tuple[Any, Any]:
    return pool_groups(*(each.double().numpy() for each in (mean, sd.square(), weights)), groups)


SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=40)


# ---------------------------------------------------------------- what pooling must keep
@pytest.mark.parametrize("kind", KINDS)
@given(SIZES, st.integers(0, 999), st.randoms(use_true_random=False))
def test_pooling_does_not_depend_on_the_order_of_images_and_stays_within_them(
    kind: Any, groups: list[int], seed: int, random: Any
) -> None:
    sample = draw(groups, kind, seed)
    order = list(range(len(groups)))
    random.shuffle(order)
    shuffled = [each[order] for each in sample]
    names = sample[3]
    appear = pd.unique(shuffled[3])  # groups are told apart by number, whatever their order
    for pooled in (by_torch, by_numpy):
        ours, theirs = pooled(*sample), pooled(*shuffled[:3], shuffled[3])  # type: ignore[arg-type]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        for group in appear:
            for values, at in ((sample[0].numpy(), ours[0]), (sample[1].square().numpy(), ours[1])):
                assert (at[group] >= values[names == group].min(0) - 1e-4).all()
                assert (at[group] <= values[names == group].max(0) + 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
@given(SIZES, st.integers(0, 999))
def test_training_and_evaluation_pool_alike(kind: Any, groups: list[int], seed: int) -> None:
    sample = draw(groups, kind, seed)
    for one, other in zip(by_torch(*sample), by_numpy(*sample), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_set_of_one_is_itself(kind: Any) -> None:
    mean, sd, weights, groups = draw([0, 1, 2], kind, 0)
    for pooled in (by_torch, by_numpy):
        np.testing.assert_allclose(pooled(mean, sd, weights, groups)[0], mean, rtol=1e-6)
        np.testing.assert_allclose(pooled(mean, sd, weights, groups)[1], sd.square(), rtol=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e30, -1e30])
def test_log_weights_of_any_size_neither_overflow_nor_vanish(size: float) -> None:
    """Of one group they are large, of the other small: what counts are differences within a group."""
    mean, sd, _, groups = draw([0, 0, 1, 1], "mean", 1)
    weights = torch.tensor([[size], [size], [-size], [-size]]).expand(4, 2).clone().requires_grad_()
    for pooled in (by_torch, by_numpy):
        found = pooled(mean, sd, weights.detach(), groups)[0]
        np.testing.assert_allclose(found, group_means(mean.numpy(), groups), rtol=1e-6)
    pool(mean.unsqueeze(-1), weights, make_sets(groups, CPU)).square().sum().backward()
    assert weights.grad is not None and torch.isfinite(weights.grad).all()


def test_the_gradient_of_pooling_is_that_of_a_softmax() -> None:
    mean, _, weights, groups = draw([0, 1, 0, 1, 1, 0], "attention", 2)
    inputs, sets = (mean.double().requires_grad_(), weights.double().requires_grad_()), make_sets(groups, CPU)
    assert torch.autograd.gradcheck(lambda m, w: pool(m.unsqueeze(-1), w, sets), inputs)
    first = torch.tensor(groups == 0)
    expected = (weights[first].softmax(0) * mean[first]).sum(0)
    torch.testing.assert_close(pool(mean.unsqueeze(-1), weights, sets)[0, :, 0], expected)


def test_an_image_that_is_sure_counts_for_more_where_precision_weighs() -> None:
    mean, variance, groups = np.array([[0.0], [10.0]]), np.array([[1.0], [4.0]]), np.array([0, 0])
    assert pool_groups(mean, variance, np.zeros((2, 1)), groups)[0] == pytest.approx(5)
    weights = Pooling("precision")(torch.zeros(2, 1), torch.from_numpy(variance)).numpy()
    weighted, each = pool_groups(mean, variance, weights, groups)
    assert weighted == pytest.approx(2.0) and each == pytest.approx((0.8 * 1 + 0.2 * 2) ** 2)


def test_what_is_not_finite_makes_its_own_group_so_and_no_other() -> None:
    mean, variance, groups = np.array([[0.0], [np.nan], [1.0]]), np.ones((3, 1)), np.array([0, 0, 1])
    assert np.isfinite(pool_groups(mean, variance, np.zeros((3, 1)), groups)[0]).tolist() == [[False], [True]]
    assert np.isfinite(pool_groups(variance, variance, mean, groups)[0]).tolist() == [[False], [True]]


# ---------------------------------------------------------------- one forecast in training and in evaluation
def make_model(loss: str, kind: Any) -> Learner:
    output = Config.model_validate(named({"experiment": "x", "loss": {"kind": loss}})).loss.make(1)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        head = make_mlp([WIDTH, 8, 3 * output.n])
    if isinstance(output, Quantiles):  # that do not cross, as they do not once they are learnt
        with torch.no_grad():
            head[-1].weight.mul_(0.1)
            head[-1].bias.copy_(torch.from_numpy(ndtri(output.levels)).repeat(3))
    model = Learner(nn.Identity(), head, None, False, 3, output, pooling=opinionated(kind))
    model.target_mean.copy_(torch.tensor([1.0, -2.0, 3.0]))
    model.target_scale.copy_(torch.tensor([10.0, 0.5, 2.0]))
    return model


def make_samples(features: Tensor, targets: Tensor, groups: NDArray[np.int64]) -> Samples:
    metadata = Names().metadata({"domain": [None] * len(groups)})
    return Samples(TensorBank(features, CPU, "device"), Targets(targets), metadata, groups, targets.shape[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_the_forecast_that_training_scores_is_the_one_that_evaluation_makes(loss: str, kind: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    groups = pd.factorize(np.random.default_rng(6).integers(0, 9, 40))[0].astype("int64")
    model = make_model(loss, kind)
    samples = make_samples(torch.randn(40, WIDTH, generator=generator), torch.zeros(40, 3), groups)
    answer = answers(model, samples)
    pooled = pool(answer.parameters, answer.log_weights, make_sets(groups, CPU))
    mean, variance = model.loss.moments(pooled)
    scored = model.losses(answer, samples.targets.dense(), make_sets(groups, CPU))[0]
    table = pd.DataFrame({"id": range(40), "group": groups, "domain": None, **dict.fromkeys(TARGETS, 0.0)})
    made = group_table(image_table(table, TARGETS, predict(model, samples)), TARGETS)
    ours, ours_variance = (made[[f"{t}_{of}" for t in TARGETS]].to_numpy() for of in ("mean", "variance"))
    np.testing.assert_allclose(mean * model.target_scale + model.target_mean, ours, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance * model.target_scale.square(), ours_variance, rtol=1e-4)
    standard = model.standardize(torch.zeros(1, 3)).expand(len(pooled), 3)
    torch.testing.assert_close(scored, model.loss.losses(pooled, standard))


# ---------------------------------------------------------------- attention
def test_attention_starts_as_the_plain_mean() -> None:
    weights = make_pooling("attention", WIDTH)(torch.randn(7, WIDTH), torch.ones(7, 3))
    assert weights.shape == (7, 3) and (weights == 0).all()


def marked(n_groups: int, seed: int) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Events of 1 to 8 images, of which one is marked and tells the target; the others are noise."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_groups), rng.integers(1, 9, n_groups))
    truth, first = rng.normal(size=n_groups), np.r_[True, np.diff(groups) > 0]
    features = np.column_stack([first, np.where(first, truth[groups], rng.normal(0, 2, len(groups)))])
    return torch.tensor(features).float(), torch.tensor(truth[groups])[:, None].float(), groups


def learnt(kind: Any, folder: Path) -> tuple[float | None, float | None]:
    """R² of held-out groups after training: as the model pools them, and by plain means."""
    train, held_out = (make_samples(*marked(150, seed)) for seed in (0, 1))
    config = Config.model_validate(
        named(
            {
                "experiment": "x",
                "data": {"targets": ["value"]},
                "model": {"pool": kind},
                "train": {"sample": "groups", "epochs": 60, "batch_size": 50, "precision": "fp32"},
                "optim": {"lr": 0.03},
            }
        )
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Learner(nn.Identity(), make_mlp([2, 1]), None, False, 1, pooling=make_pooling(kind, 2))
    fit(model, train, held_out, Run(TrialDir(folder), "identity", "machine", config, Stop(StopFlag(), lambda: True)))
    said, truth = predict(model, held_out), held_out.truth[:, 0]
    weighted = group_r2(truth, said.mean[:, 0], held_out.groups, said.log_weights[:, 0])
    return weighted, group_r2(truth, said.mean[:, 0], held_out.groups)


def test_attention_learns_which_image_to_ask(tmp_path: Path) -> None:
    attended, plain = learnt("attention", tmp_path / "attention")
    of_mean, same = learnt("mean", tmp_path / "mean")
    assert attended is not None and plain is not None and of_mean is not None
    assert attended > 0.95 and of_mean < 0.7 and plain < 0.7 and same == of_mean
