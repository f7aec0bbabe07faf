"""Training on groups: which images of which groups a step learns from, and that a resumed run draws and weighs alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.config.training import Train
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.errors import Interrupted
from pipeline.features.bank import TensorBank
from pipeline.models.learner import DomainEmbedding, Learner, SpeciesEmbedding, make_mlp, trained_state
from pipeline.models.metadata import Names
from pipeline.models.pooling import make_pooling
from pipeline.signals import StopFlag
from pipeline.training import augmentation as aug
from pipeline.training import learner
from pipeline.training.checkpoint import Progress
from pipeline.training.run import Run, Stop
from pipeline.training.samples import Samples, Targets
from pipeline.training.sets import Batch, draw_batches
from tests.small import named
from tests.test_training import StopAfter

CPU, N, WIDTH = torch.device("cpu"), 60, 6
NAMES = Names(("1", "3", "7"), ("Carabus a", "Carabus b", "Harpalus c"))


def of_groups(groups: Any, batch_size: int, most: int, seed: int, epoch: int = 0) -> list[Batch]:
    train = Train(sample="groups", batch_size=batch_size, max_images=most)
    return list(draw_batches(np.asarray(groups, "int64"), train, aug.epoch_streams(seed, epoch, CPU).choices))


# ---------------------------------------------------------------- what is drawn
@given(st.lists(st.integers(0, 7), min_size=1, max_size=50), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_every_group_is_seen_once_an_epoch_with_as_many_of_its_images_as_may_be(
    labels: list[int], batch_size: int, most: int, seed: int
) -> None:
    groups = np.unique(labels, return_inverse=True)[1]
    sizes, seen = np.bincount(groups), []
    batches = of_groups(groups, batch_size, most, seed)
    for batch in batches:
        assert batch.numbers is not None and (np.diff(batch.numbers) >= 0).all()
        for number in range(batch.numbers[-1] + 1):
            drawn = batch.indices.numpy()[batch.numbers == number]
            (group,) = set(groups[drawn])
            assert len(drawn) == len(set(drawn)) == min(sizes[group], most)
            seen.append(group)
    assert sorted(seen) == list(range(len(sizes)))
    of_batch = [int(batch.numbers[-1]) + 1 for batch in batches if batch.numbers is not None]
    assert of_batch[:-1] == [batch_size] * (len(of_batch) - 1) and 0 < of_batch[-1] <= batch_size


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 99))
def test_an_epoch_of_images_sees_each_once_and_knows_no_groups(n: int, batch_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    batches = list(draw_batches(np.zeros(n, "int64"), Train(batch_size=batch_size), rng))
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(n))
    assert all(batch.numbers is None and batch.sets(CPU) is None for batch in batches)


def drawn(seed: int, epoch: int) -> list[tuple[list[int], list[int]]]:
    groups = np.repeat(np.arange(12), 5)
    return [(b.indices.tolist(), b.numbers.tolist()) for b in of_groups(groups, 4, 2, seed, epoch) if b.numbers is not None]


def test_images_are_drawn_anew_in_each_epoch_and_are_a_function_of_seed_and_epoch() -> None:
    first = drawn(3, 0)
    drawn(4, 7)
    assert drawn(3, 0) == first
    others = [drawn(seed, epoch) for seed in (3, 4) for epoch in range(5)]
    assert len({str(each) for each in others}) == 10
    assert {i for epoch in range(30) for indices, _ in drawn(3, epoch) for i in indices} == set(range(60))


def test_groups_of_a_step_are_told_apart_where_the_model_pools_them() -> None:
    sets = Batch(torch.tensor([7, 3, 9, 1]), np.array([0, 0, 1, 2])).sets(CPU)
    assert sets is not None and (sets.numbers.tolist(), sets.firsts.tolist()) == ([0, 0, 1, 2], [0, 2, 3])


# ---------------------------------------------------------------- what is learned from it
EVERYTHING: dict[str, Any] = {
    "data": {"columns": {"domain": "domainID", "species": "scientificName"}},
    "model": {"pool": "attention", "species_embedding": True, "domain_embedding": True},
    "loss": {"kind": "crps"},
    "risk": {"kind": "group_dro", "step": 0.5},
    "augment": {"species_dropout": 0.4, "image_dropout": 0.3, "domain_dropout": 0.3, "noise": 0.05, "warmup": 0.5},
    "train": {"sample": "groups", "max_images": 3, "batch_size": 5, "epochs": 8, "precision": "fp32"},
    "optim": {"lr": 0.001},
}


def make_config(**sections: Any) -> Config:
    return Config.model_validate(named({"experiment": "test"} | sections))


def make_model(config: Config) -> Learner:
    output = config.loss.make(2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = make_mlp([WIDTH, 8, 3 * output.n])
        species = SpeciesEmbedding(3, 2, WIDTH) if config.model.species_embedding else None
        domain = DomainEmbedding(3, WIDTH) if config.model.domain_embedding else None
        pooling = make_pooling(config.model.pool, WIDTH)
    return Learner(nn.Identity(), head, domain, True, 3, output, species, pooling)


@pytest.fixture
def samples() -> Samples:
    """Events of 1 to 7 images, in three domains that differ."""
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, 15, N))
    groups = np.unique(groups, return_inverse=True)[1]
    domains = [NAMES.domains[group % 3] for group in groups]
    metadata = NAMES.metadata({"domain": domains, "species": [NAMES.species[i] for i in rng.integers(0, 3, N)]})
    targets = rng.normal(size=(groups.max() + 1, 3))[groups] + 3 * (groups % 3 == 2)[:, None]
    features = torch.from_numpy(rng.normal(size=(N, WIDTH))).float()
    return Samples(
        TensorBank(features, CPU, "device"), Targets(torch.from_numpy(targets).float()), metadata, groups, targets.shape[1]
    )


def test_the_loss_of_a_step_is_of_its_groups_each_once(samples: Samples) -> None:
    config = make_config(train={"sample": "groups", "precision": "fp32"})
    model = make_model(config)
    batch = Batch(torch.tensor([3, 0, 1, 2, 30, 40, 41]), np.array([0, 1, 1, 1, 2, 3, 3]))
    loss, n = learner.batch_loss(model, samples, batch, config, 0, aug.epoch_streams(0, 0, CPU), torch.ones(3) / 3)
    features, targets, metadata = samples.select(batch.indices)
    said = model(features, metadata).parameters[..., 0]
    groups = [torch.tensor(batch.numbers == number) for number in range(4)]
    by_hand = torch.stack([(said[rows].mean(0) - targets[rows][0]).square().mean() for rows in groups])
    torch.testing.assert_close(loss, by_hand.mean())
    assert n == 4


def test_the_validation_loss_is_of_groups_where_training_is(samples: Samples) -> None:
    for sample, expected in (("images", N), ("groups", int(samples.groups.max()) + 1)):
        config = make_config(train={"sample": sample, "precision": "fp32"})
        model = make_model(config)
        said = model(samples.bank.gather(torch.arange(N)), samples.metadata).parameters[..., 0].detach()
        rows = [torch.tensor(samples.groups == e) for e in range(expected)] if sample == "groups" else torch.eye(N).bool()
        errors = [(said[each].mean(0) - samples.targets[each][0]).square().mean() for each in rows]
        assert len(errors) == expected
        assert learner.validate(model, samples, config)[1] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)


# ---------------------------------------------------------------- resuming
def fitted(samples: Samples, config: Config, folder: Path, stops: tuple[int, ...]) -> tuple[Any, Progress]:
    """Bits and figures at the end of a run that was stopped after so many epochs, each time in a new process' place."""
    for stop in (*stops, None):
        model = make_model(config)
        flag = StopFlag() if stop is None else StopAfter(stop)
        run = Run(TrialDir(folder), "identity", "machine", config, Stop(flag, lambda: True))
        if stop is not None:
            with pytest.raises(Interrupted):
                learner.fit(model, samples, samples, run)
    progress = learner.fit(model, samples, samples, run).progress
    lines = [json.loads(line) for line in TrialDir(folder).metrics.read_text().splitlines()]
    figures = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    state = {name: tensor.numpy().tobytes() for name, tensor in trained_state(model).items()}
    return (state, figures, progress.domain_log_weights.tolist()), progress


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return one | {key: {**one.get(key, {}), **value} for key, value in other.items()}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"risk": {"kind": "coral", "weight": 2.0}, "model": {"pool": "precision"}},
        {"train": {"sample": "images"}, "model": {"pool": "mean"}},
    ],
    ids=["groups, attention, group DRO", "groups, precision, CORAL", "images, group DRO"],
)
def test_a_resumed_run_ends_with_the_bits_and_the_domain_weights_of_an_undisturbed_one(
    samples: Samples, tmp_path: Path, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last epoch is taken as the best: what is kept has then gone through every stop.
    keep_best = Progress.keep_best
    monkeypatch.setattr(Progress, "keep_best", lambda self, epoch, _, **more: keep_best(self, epoch, epoch, **more))
    config = make_config(**merged(EVERYTHING | ({"risk": {}} if "risk" in change else {}), change))
    undisturbed, progress = fitted(samples, config, tmp_path / "undisturbed", ())
    resumed, again = fitted(samples, config, tmp_path / "resumed", (2, 3))
    assert progress.best_epoch == again.best_epoch == 7
    assert again.restarts == 2 and resumed == undisturbed
    if config.risk.kind == "group_dro":
        weights = progress.domain_log_weights.exp()
        assert weights.sum() == pytest.approx(1) and weights.max() - weights.min() > 0.05


def test_sets_and_attention_train_in_bf16_with_weights_and_losses_in_fp32(samples: Samples) -> None:
    config = make_config(**merged(EVERYTHING, {"train": {"precision": "bf16"}}))
    model, weights = make_model(config), torch.zeros(3)
    batch = next(draw_batches(samples.groups, config.train, np.random.default_rng(0)))
    loss, _ = learner.batch_loss(model, samples, batch, config, 0, aug.epoch_streams(0, 0, CPU), weights)
    loss.backward()
    assert loss.dtype == weights.dtype == torch.float32
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())
