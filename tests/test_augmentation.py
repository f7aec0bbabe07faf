"""The augmentations, their order of strength over the epochs, and where their randomness comes from."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.config.augment import Augment
from pipeline.models.learner import DomainEmbedding, Learner, SpeciesEmbedding, make_mlp
from pipeline.models.metadata import Metadata, Names
from pipeline.training.augmentation import add_noise, drop_domain, drop_names, drop_species, epoch_streams, make_mix, strength
from pipeline.training.sets import Batch, keep_some

CPU = torch.device("cpu")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---------------------------------------------------------------- dropping images
@given(st.integers(1, 30), st.floats(0, 1), st.integers(0, 99))
def test_at_least_one_image_stays_and_those_that_stay_keep_their_order(n: int, p: float, seed: int) -> None:
    indices = torch.arange(100, 100 + n)
    kept = Batch(indices).thinned(p, rng(seed)).indices.tolist()
    assert kept and kept == sorted(set(kept)) and set(kept) <= set(indices.tolist())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.floats(0, 1), st.integers(0, 99))
def test_every_group_of_a_step_keeps_an_image_and_each_keeps_its_group(sizes: list[int], p: float, seed: int) -> None:
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    whole = Batch(torch.arange(len(numbers)) + 7, numbers)
    thin = whole.thinned(p, rng(seed))
    assert thin.numbers is not None and set(thin.numbers) == set(range(len(sizes)))
    assert thin.numbers.tolist() == numbers[thin.indices.numpy() - 7].tolist()
    assert thin.indices.tolist() == sorted(set(thin.indices.tolist())) and (p > 0 or thin is whole)


def test_images_are_dropped_with_the_given_probability() -> None:
    kept = len(Batch(torch.arange(20_000)).thinned(0.25, rng()).indices)
    assert kept / 20_000 == pytest.approx(0.75, abs=0.01)


def test_the_one_that_stays_of_a_batch_that_would_vanish_may_be_any() -> None:
    survivors = {Batch(torch.arange(4)).thinned(1.0, rng(seed)).indices.item() for seed in range(60)}
    assert survivors == {0, 1, 2, 3}
    of_groups = [tuple(np.flatnonzero(keep_some(np.array([0, 0, 1, 1]), 1.0, rng(seed)))) for seed in range(60)]
    assert set(of_groups) == {(0, 2), (0, 3), (1, 2), (1, 3)}


# ---------------------------------------------------------------- mixup
def test_one_lambda_and_one_permutation_mix_features_targets_and_domains_alike() -> None:
    """Mistake 4: the domain was left unmixed."""
    mix = make_mix(6, 0.4, rng(3))
    assert mix is not None
    eye = mix(torch.eye(6))  # row i shows the weights of all images in image i
    torch.testing.assert_close(eye.sum(1), torch.ones(6))
    for rows in (torch.randn(6, 3), torch.randn(6, 5, 4), torch.randn(6)):
        torch.testing.assert_close(mix(rows), torch.tensordot(eye, rows, dims=1))
    shares = {round(v, 5) for v in eye[eye > 0].tolist()}
    assert len(shares) in (2, 3)  # λ, 1 − λ, and 1 where an image is mixed with itself


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


@pytest.mark.jobs
def test_lambda_follows_the_beta_distribution_of_alpha() -> None:
    """Beta(α, α): mean ½ and variance 1 / (4·(2α + 1))."""
    both = torch.eye(2)
    for alpha in (0.2, 1.0, 4.0):
        draws, generator = [], rng(0)
        for _ in range(2000):
            mix = make_mix(2, alpha, generator)
            assert mix is not None
            weights = mix(both)
            if weights[0, 1] != 0:  # swapped, so that λ shows
                draws.append(weights[0, 0].item())
        assert np.mean(draws) == pytest.approx(0.5, abs=0.05)
        assert np.var(draws) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


def make_model(n_domains: int = 3, width: int = 4, species: SpeciesEmbedding | None = None) -> Learner:
    torch.manual_seed(0)
    domain = DomainEmbedding(n_domains, width)
    return Learner(nn.Identity(), make_mlp([width, 3]), domain, normalize=False, n_targets=3, species=species)


def of_rows(domains: list[int] | torch.Tensor, **others: torch.Tensor) -> Metadata:
    """Specimens of these rows, and of the first row of all else."""
    nothing = Names().metadata({"domain": [None] * len(domains)})
    return replace(nothing, domain=torch.as_tensor(domains), **others)


def said(model: Learner, features: torch.Tensor, domains: list[int] | torch.Tensor | None, *more: Any) -> torch.Tensor:
    parameters: torch.Tensor = model(features, None if domains is None else of_rows(domains), *more).parameters
    return parameters[..., 0]


def test_the_model_mixes_domain_embeddings_by_the_lambda_of_the_features() -> None:
    """Mistake 4, through the model: a mixed batch is the mix of its embedding and its domains' embeddings."""
    model, mix = make_model(), make_mix(5, 1.0, rng(1))
    assert mix is not None and model.domain is not None
    features, domains = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = model.head(mix(features + model.domain(domains, 5)))
    torch.testing.assert_close(said(model, mix(features), domains, mix), expected)
    assert not torch.allclose(said(model, mix(features), domains), expected)


def test_species_embeddings_are_mixed_by_the_lambda_of_the_features_too() -> None:
    model, mix = make_model(species=SpeciesEmbedding(3, 2, 4)), make_mix(5, 1.0, rng(1))
    assert mix is not None and model.domain is not None and model.species is not None
    features, rows = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    metadata = of_rows(rows, species=rows, genus=rows.clamp_max(2))
    shifts = model.domain(rows, 5) + model.species(rows, rows.clamp_max(2), 5)
    expected = model.head(mix(features + shifts))
    torch.testing.assert_close(model(mix(features), metadata, mix).parameters[..., 0], expected)


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
    torch.testing.assert_close(said(model, torch.ones(3, 4), dropped), said(model, torch.ones(3, 4), None))


def test_the_unknown_row_learns_from_batches_whose_domain_is_dropped() -> None:
    """Mistake 11: as a padding_idx it stayed zero for ever."""
    model = make_model()
    assert model.domain is not None and model.domain.table.padding_idx is None
    assert model.domain.table.weight[-1].abs().sum() > 0
    dropped = drop_domain(torch.tensor([0, 1]), 1.0, model.domain.unknown, rng())
    said(model, torch.randn(2, 4), dropped).square().sum().backward()
    gradient = model.domain.table.weight.grad
    assert gradient is not None
    assert gradient[-1].abs().sum() > 0 and gradient[:-1].abs().sum() == 0


# ---------------------------------------------------------------- dropping the species
def with_species(n: int) -> tuple[Metadata, SpeciesEmbedding]:
    """Specimens of the first of three species, of the first of two genera."""
    rows = torch.zeros(n, dtype=torch.int64)
    return of_rows(rows, species=rows, genus=rows), SpeciesEmbedding(3, 2, 4)


def test_each_image_loses_its_species_on_its_own_and_some_of_these_their_genus() -> None:
    metadata, known = with_species(20_000)
    dropped = drop_species(metadata, 0.3, known, rng())
    lost, of_genus = dropped.species == 3, dropped.genus == 2
    assert set(dropped.species.tolist()) == {0, 3} and set(dropped.genus.tolist()) == {0, 2}
    assert lost.float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert of_genus.float().mean().item() == pytest.approx(0.09, abs=0.01) and not (of_genus & ~lost).any()
    assert torch.equal(dropped.domain, metadata.domain) and metadata.species.eq(0).all()


def test_unknown_rows_of_species_and_genus_learn_under_species_dropout() -> None:
    """Mistake 11, of species: without them a species never seen would be what the seed drew."""
    metadata, known = with_species(64)
    dropped = drop_species(metadata, 0.5, known, rng())
    (known(dropped.species, dropped.genus, 64) * torch.arange(4.0)).sum().backward()
    for table, used in ((known.species, [0, 3]), (known.genus, [0, 2])):
        assert table.weight.grad is not None and table.padding_idx is None
        assert table.weight.grad.any(1).nonzero().flatten().tolist() == used


def test_names_that_a_model_does_not_read_are_kept_and_nothing_is_drawn_for_them() -> None:
    generator, all_on = rng(), Augment(domain_dropout=1.0, species_dropout=1.0)
    before = generator.bit_generator.state
    model = Learner(nn.Identity(), make_mlp([4, 3]), None, normalize=False, n_targets=3)
    metadata, known = with_species(4)
    assert drop_names(metadata, model, all_on, 1.0, generator) is metadata
    assert generator.bit_generator.state == before
    dropped = drop_names(metadata, make_model(species=known), all_on, 1.0, generator)
    assert (dropped.domain.tolist(), dropped.species.tolist(), dropped.genus.tolist()) == ([3] * 4, [3] * 4, [2] * 4)


def test_names_are_dropped_progressively() -> None:
    metadata, known = with_species(20_000)
    model = make_model(species=known)
    dropped = drop_names(metadata, model, Augment(species_dropout=0.8), 0.25, rng())
    assert dropped.species.eq(3).float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert drop_names(metadata, model, Augment(species_dropout=0.8, domain_dropout=0.8), 0.0, rng()).species.eq(0).all()


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
    rows, batch = torch.arange(4), Batch(torch.arange(4))
    metadata, known = with_species(4)
    assert batch.thinned(0, generator) is batch
    assert drop_species(metadata, 0, known, generator) is metadata
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
    metadata, known = with_species(8)
    numbers, pythons = np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]
    streams = epoch_streams(0, 0, CPU)
    Batch(torch.arange(8)).thinned(0.5, streams.choices)
    drop_species(metadata, 0.5, known, streams.choices)
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
