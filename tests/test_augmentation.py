"""The four augmentations, their order of strength over the epochs, and where their randomness comes from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.config import Augment
from pipeline.models.regressor import DomainEmbedding, Regressor, make_mlp
from pipeline.training.augmentation import (
    add_noise,
    drop_domain,
    drop_specimens,
    epoch_streams,
    make_mix,
    strength,
)

CPU = torch.device("cpu")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- dropping specimens
@given(st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_at_least_one_specimen_stays_and_those_that_stay_keep_their_order(n: int, p: float, seed: int) -> None:
    indices = torch.arange(100, 100 + n)
    kept = drop_specimens(indices, p, rng(seed)).tolist()
    assert kept and kept == sorted(set(kept)) and set(kept) <= set(indices.tolist())


def test_specimens_are_dropped_with_the_given_probability() -> None:
    kept = len(drop_specimens(torch.arange(20_000), 0.25, rng()))
    assert kept / 20_000 == pytest.approx(0.75, abs=0.01)


def test_the_one_that_stays_of_a_batch_that_would_vanish_may_be_any() -> None:
    survivors = {drop_specimens(torch.arange(4), 1.0, rng(seed)).item() for seed in range(60)}
    assert survivors == {0, 1, 2, 3}


# ---------------------------------------------------------------- mixup
def test_one_lambda_and_one_permutation_mix_features_targets_and_domains_alike() -> None:
    """Mistake 4: the domain was left unmixed."""
    mix = make_mix(6, 0.4, rng(3))
    assert mix is not None
    eye = mix(torch.eye(6))  # row i shows the weights of all specimens in specimen i
    torch.testing.assert_close(eye.sum(1), torch.ones(6))
    for rows in (torch.randn(6, 3), torch.randn(6, 5, 4), torch.randn(6)):
        torch.testing.assert_close(mix(rows), torch.tensordot(eye, rows, dims=1))
    shares = {round(v, 5) for v in eye[eye > 0].tolist()}
    assert len(shares) in (2, 3)  # λ, 1 − λ, and 1 where a specimen is mixed with itself


@given(st.integers(1, 9), st.floats(1e-6, 5), st.integers(0, 999))
@settings(deadline=None)
def test_mixing_keeps_constants_and_stays_within_the_batch(n: int, alpha: float, seed: int) -> None:
    mix = make_mix(n, alpha, rng(seed))
    assert mix is not None
    torch.testing.assert_close(mix(torch.ones(n, 2)), torch.ones(n, 2))
    rows = torch.arange(n, dtype=torch.float32)
    mixed = mix(rows)
    assert mixed.min() >= 0 and mixed.max() <= n - 1 + 1e-5
    assert torch.isfinite(mixed).all()


def test_lambda_follows_the_beta_distribution_of_alpha() -> None:
    """Beta(α, α): mean ½ and variance 1 / (4·(2α + 1))."""
    for alpha in (0.2, 1.0, 4.0):
        draws = []
        for seed in range(2000):
            mix = make_mix(2, alpha, rng(seed))
            assert mix is not None
            weights = mix(torch.eye(2))
            if weights[0, 1] != 0:  # swapped, so that λ shows
                draws.append(weights[0, 0].item())
        assert np.mean(draws) == pytest.approx(0.5, abs=0.05)
        assert np.var(draws) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def make_model(n_domains: int = 3, width: int = 4) -> Regressor:
    torch.manual_seed(0)
    domain = DomainEmbedding(n_domains, width)
    return Regressor(nn.Identity(), make_mlp([width, 3]), domain, normalize=False, n_targets=3)


def test_the_model_mixes_domain_embeddings_by_the_lambda_of_the_features() -> None:
    """Mistake 4, through the model: a mixed batch is the mix of its embedding and its domains' embeddings."""
    model, mix = make_model(), make_mix(5, 1.0, rng(1))
    assert mix is not None and model.domain is not None
    features, domains = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = model.head(mix(features + model.domain(domains, 5)))
    torch.testing.assert_close(model(mix(features), domains, mix), expected)
    assert not torch.allclose(model(mix(features), domains), expected)


# ---------------------------------------------------------------- dropping the domain
def test_a_whole_batch_loses_its_domain_or_none_of_it() -> None:
    domains = torch.tensor([0, 1, 2, 1])
    outcomes = [tuple(drop_domain(domains, 0.35, 3, rng(seed)).tolist()) for seed in range(3000)]
    assert set(outcomes) == {(0, 1, 2, 1), (3, 3, 3, 3)}
    assert outcomes.count((3, 3, 3, 3)) / 3000 == pytest.approx(0.35, abs=0.03)


def test_a_dropped_domain_is_the_unknown_row_by_index_and_never_a_real_domain() -> None:
    """Mistake 11: dropped domains went through the lookup of ids, where the index could be a real domain's id."""
    model = make_model(n_domains=3)
    assert model.domain is not None
    dropped = drop_domain(torch.tensor([0, 1, 2]), 1.0, model.domain.unknown, rng())
    assert dropped.tolist() == [3, 3, 3] and model.domain.table.num_embeddings == 4
    torch.testing.assert_close(model(torch.ones(3, 4), dropped), model(torch.ones(3, 4), None))


def test_the_unknown_row_learns_from_batches_whose_domain_is_dropped() -> None:
    """Mistake 11: as a padding_idx it stayed zero for ever."""
    model = make_model()
    assert model.domain is not None and model.domain.table.padding_idx is None
    assert model.domain.table.weight[-1].abs().sum() > 0
    dropped = drop_domain(torch.tensor([0, 1]), 1.0, model.domain.unknown, rng())
    model(torch.randn(2, 4), dropped).square().sum().backward()
    gradient = model.domain.table.weight.grad
    assert gradient is not None
    assert gradient[-1].abs().sum() > 0 and gradient[:-1].abs().sum() == 0


# ---------------------------------------------------------------- noise
def test_noise_has_the_given_standard_deviation_and_no_bias() -> None:
    features = torch.full((200, 300), 5.0)
    noisy = add_noise(features, 0.02, epoch_streams(0, 0, CPU).noise)
    assert noisy.std().item() == pytest.approx(0.02, rel=0.02)
    assert noisy.mean().item() == pytest.approx(5, abs=1e-3)
    assert features.eq(5).all()


# ---------------------------------------------------------------- off
def test_what_is_off_changes_nothing_and_draws_nothing() -> None:
    generator, torch_generator = rng(), epoch_streams(0, 0, CPU).noise
    before = generator.bit_generator.state, torch_generator.get_state()
    rows = torch.arange(4)
    assert drop_specimens(rows, 0, generator) is rows
    assert make_mix(4, 0, generator) is None
    assert drop_domain(rows, 0, 9, generator) is rows
    assert add_noise(rows, 0, torch_generator) is rows
    assert generator.bit_generator.state == before[0] and torch.equal(torch_generator.get_state(), before[1])


# ---------------------------------------------------------------- strength over the epochs
@given(st.integers(0, 499), st.integers(1, 500), st.floats(0.01, 1))
def test_strength_is_epoch_over_warmup_share_of_the_epochs_at_most_one(epoch: int, epochs: int, warmup: float) -> None:
    expected = min(epoch / (warmup * epochs), 1)
    assert strength(Augment(warmup=warmup), epoch, epochs) == pytest.approx(expected)


def test_a_quarter_of_500_epochs_grows_from_nothing_to_full_strength() -> None:
    strengths = [strength(Augment(warmup=0.25), epoch, 500) for epoch in range(500)]
    assert strengths[0] == 0 and strengths[50] == 0.4 and strengths[124] < 1 and set(strengths[125:]) == {1.0}
    assert strengths == sorted(strengths)


def test_without_warmup_the_first_epoch_has_full_strength() -> None:
    assert strength(Augment(), 0, 500) == 1


# ---------------------------------------------------------------- streams
def draws(seed: int, epoch: int) -> tuple[Any, ...]:
    """What an epoch's three streams give first: choices, noise, and dropout layers."""
    streams = epoch_streams(seed, epoch, CPU)
    return (*streams.choices.random(3), *torch.randn(3, generator=streams.noise).tolist(), *torch.rand(3).tolist())


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_an_epochs_draws_depend_on_seed_and_epoch_alone(seed: int, epoch: int) -> None:
    first = draws(seed, epoch)
    draws(seed + 1, epoch)
    torch.manual_seed(7)
    torch.rand(11)
    assert draws(seed, epoch) == first


def test_a_resumed_run_draws_what_an_undisturbed_one_would() -> None:
    undisturbed = [draws(3, epoch) for epoch in range(6)]
    assert [draws(3, epoch) for epoch in range(4, 6)] == undisturbed[4:]


def test_every_seed_and_epoch_draws_differently() -> None:
    seen = [draws(seed, epoch) for seed in range(6) for epoch in range(6)]
    assert all(len({values[i] for values in seen}) == len(seen) for i in range(9))


def test_streams_leave_numpys_and_pythons_global_state_alone() -> None:
    numbers, pythons = np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]
    streams = epoch_streams(0, 0, CPU)
    drop_specimens(torch.arange(8), 0.5, streams.choices)
    make_mix(8, 0.2, streams.choices)
    drop_domain(torch.arange(8), 0.5, 8, streams.choices)
    add_noise(torch.ones(8), 0.1, streams.noise)
    assert np.array_equal(np.random.get_state()[1], numbers) and random.getstate() == pythons  # type: ignore[index]


def test_augmenting_leaves_torchs_global_state_to_dropout_layers() -> None:
    streams = epoch_streams(5, 5, CPU)
    expected = torch.rand(4)
    streams = epoch_streams(5, 5, CPU)
    make_mix(8, 0.2, streams.choices)
    add_noise(torch.ones(8), 0.1, streams.noise)
    torch.testing.assert_close(torch.rand(4), expected)
