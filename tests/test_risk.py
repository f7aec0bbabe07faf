"""Methods of domain generalisation: each against a computation by hand, and what a batch may lack."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config import loss as cfg
from pipeline.training.risk import coral, group_dro, start_log_weights

DRO, CORAL = cfg.GroupDro(kind="group_dro", step=0.5), cfg.Coral(kind="coral", weight=2.0)
BATCHES = st.lists(st.integers(0, 3), min_size=1, max_size=30)


def draw(domains: list[int], seed: int = 0, width: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [N], hidden layer [N, width] and domains [N] of images."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(domains), width, generator=generator) * 2 + 5
    return torch.rand(len(domains), generator=generator) * 3, hidden, torch.tensor(domains)


# ---------------------------------------------------------------- group DRO
def by_algorithm_1(losses: Any, domains: Any, q: list[float], step: float) -> tuple[float, list[float]]:
    """Sagawa et al. 2020, in Python: q is raised where the loss is high, then the losses are weighed by it."""
    means = {d: np.mean([x for x, of in zip(losses, domains, strict=True) if of == d]) for d in set(domains)}
    q = [weight * math.exp(step * means.get(d, 0.0)) for d, weight in enumerate(q)]
    q = [weight / sum(q) for weight in q]
    return sum(q[d] * mean for d, mean in means.items()), q


@given(BATCHES, st.integers(0, 99))
def test_group_dro_is_its_published_algorithm_batch_after_batch(domains: list[int], seed: int) -> None:
    logs, by_hand = torch.full((4,), 0.25).log(), [0.25] * 4
    for number in range(3):
        losses, _, of = draw(domains[number:] or domains, seed + number)
        loss = group_dro(losses, of, logs, 0.5)
        expected, by_hand = by_algorithm_1(losses.tolist(), of.tolist(), by_hand, 0.5)
        assert float(loss) == pytest.approx(expected, rel=1e-5)
        assert logs.exp().tolist() == pytest.approx(by_hand, rel=1e-5) and float(logs.exp().sum()) == pytest.approx(1)


def test_group_dro_turns_to_the_domain_with_the_highest_loss() -> None:
    logs, of = torch.full((3,), 1 / 3).log(), torch.tensor([0, 1, 1, 2])
    for _ in range(100):
        loss = group_dro(torch.tensor([1.0, 3.0, 3.0, 2.0]), of, logs, 0.1)
    assert logs.argmax() == 1 and logs[1].exp() > 0.99 and float(loss) == pytest.approx(3, abs=0.02)


def test_the_gradient_of_group_dro_goes_through_the_losses_and_not_the_weights() -> None:
    losses, _, of = draw([0, 0, 1, 2])
    logs = torch.full((3,), 1 / 3).log()
    group_dro(losses.requires_grad_(), of, logs, 0.5).backward()
    counts = torch.tensor([2.0, 2.0, 1.0, 1.0])
    assert losses.grad is not None and not logs.requires_grad
    torch.testing.assert_close(losses.grad, logs[of].exp() / counts)


def test_a_domain_that_is_not_in_the_batch_keeps_its_share_beside_those_that_are_equally_well_learned() -> None:
    logs = torch.tensor([0.5, 0.3, 0.2]).log()
    group_dro(torch.zeros(3), torch.tensor([0, 0, 1]), logs, 0.5)
    assert logs.exp().tolist() == pytest.approx([0.5, 0.3, 0.2])


def test_losses_of_any_size_leave_shares_and_a_domain_that_was_forgotten_comes_back() -> None:
    logs = torch.full((3,), 1 / 3).log()
    for losses in ([1e4, 1.0, 2.0], [0.0, 3e4, 0.0], [1.0, 0.0, 300.0]):
        loss = group_dro(torch.tensor(losses), torch.arange(3), logs, 1.0)
        assert torch.isfinite(loss) and torch.isfinite(logs).all() and float(logs.exp().sum()) == pytest.approx(1)
    assert logs.exp().tolist() == pytest.approx([0, 1, 0], abs=1e-6)


def test_weights_start_equal_for_every_training_domain_and_for_none() -> None:
    assert start_log_weights(torch.tensor([2, 0, 1, 2])).exp().tolist() == pytest.approx([1 / 3] * 3)
    assert start_log_weights(torch.tensor([0, 0])).tolist() == [0]


# ---------------------------------------------------------------- CORAL
def by_pairs(hidden: Tensor, domains: Tensor) -> float:
    """Means and covariances of each two domains with at least two images, by numpy."""
    x, of = hidden.double().numpy(), domains.numpy()
    parts = [x[of == d] for d in np.unique(of) if (of == d).sum() >= 2]
    apart = [
        np.square(a.mean(0) - b.mean(0)).mean() + np.square(np.cov(a.T) - np.cov(b.T)).mean()
        for a, b in itertools.combinations(parts, 2)
    ]
    return float(np.mean(apart)) if apart else 0.0


@given(BATCHES, st.integers(0, 99))
def test_coral_is_the_mean_over_pairs_of_domains(domains: list[int], seed: int) -> None:
    _, hidden, of = draw(domains, seed)
    assert float(coral(hidden, of, 5)) == pytest.approx(by_pairs(hidden, of), rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("offset", [0.0, 5.0, 100.0])
def test_coral_of_equal_domains_is_zero_wherever_they_lie(offset: float) -> None:
    half = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)) + offset
    penalty = coral(torch.cat([half, half.flip(0)]), torch.arange(40) // 20, 2)
    assert abs(float(penalty)) < 1e-5


def test_coral_tells_domains_apart_by_their_means_and_by_their_covariances() -> None:
    half = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    of = torch.arange(100) // 50
    assert float(coral(torch.cat([half, half + 3]), of, 2)) == pytest.approx(9, rel=1e-4)
    scaled = half - half.mean(0)
    assert float(coral(torch.cat([scaled, 2 * scaled]), of, 2)) == pytest.approx(
        9 * float(scaled.T.cov().square().mean()), rel=1e-4
    )


def test_coral_leaves_out_a_domain_with_one_image() -> None:
    _, hidden, of = draw([0, 0, 0, 1, 1, 2])
    far = hidden.clone()
    far[5] = 1e3
    torch.testing.assert_close(coral(far, of, 3), coral(hidden[:5], of[:5], 3))


@pytest.mark.parametrize("domains", [[0], [1, 1], [0, 1, 2], [0, 0, 1], [0, 0, 1, 1], [0, 1] * 9])
def test_the_gradient_of_coral_is_finite_whatever_a_batch_holds(domains: list[int]) -> None:
    _, hidden, of = draw(domains)
    hidden.requires_grad_()
    coral(hidden, of, 3).backward()
    assert hidden.grad is not None and torch.isfinite(hidden.grad).all()
    assert bool(hidden.grad.any()) == (sum(domains.count(d) >= 2 for d in set(domains)) >= 2)


def test_descending_coral_draws_domains_together() -> None:
    _, hidden, of = draw([0] * 20 + [1] * 20)
    hidden[20:] = 3 * hidden[20:] + 4
    hidden.requires_grad_()
    optimizer = torch.optim.Adam([hidden], lr=0.2)
    first = float(coral(hidden.detach(), of, 2))
    for _ in range(200):
        optimizer.zero_grad()
        coral(hidden, of, 2).backward()
        optimizer.step()
    assert float(coral(hidden.detach(), of, 2)) < 1e-2 * first


# ---------------------------------------------------------------- the loss of a batch
@pytest.mark.parametrize("kind", [cfg.PlainRisk(), CORAL, DRO], ids=["mean", "coral", "group DRO"])
def test_with_a_single_domain_each_is_the_mean_loss(kind: Any) -> None:
    losses, hidden, of = draw([0] * 7)
    logs = start_log_weights(of)
    torch.testing.assert_close(kind.combine(losses, hidden, (of, of), logs), losses.mean())
    assert logs.tolist() == [0]


def test_losses_of_groups_are_weighed_by_the_domains_of_groups_and_coral_looks_at_images() -> None:
    _, hidden, of = draw([0, 0, 0, 1, 1])
    of_groups, losses = torch.tensor([0, 1]), torch.tensor([1.0, 3.0])
    found = CORAL.combine(losses, hidden.bfloat16(), (of_groups, of), start_log_weights(of))
    assert float(found) == pytest.approx(2 + 2 * by_pairs(hidden.bfloat16().float(), of), rel=1e-3)
    logs = start_log_weights(of)
    expected, q = by_algorithm_1([1.0, 3.0], [0, 1], [0.5, 0.5], 0.5)
    assert float(DRO.combine(losses, hidden, (of_groups, of), logs)) == pytest.approx(expected, rel=1e-5)
    assert logs.exp().tolist() == pytest.approx(q, rel=1e-5)
