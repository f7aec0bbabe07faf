"""Trials of one shape trained together: each as it is alone, whatever becomes of the others."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.config.head import Head, MlpHead
from pipeline.config.loss import Loss, SmoothL1
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.errors import Interrupted, TakenOver, WorkError
from pipeline.features.bank import TensorBank
from pipeline.models.base import Facts
from pipeline.models.learner import Learner
from pipeline.models.metadata import Names
from pipeline.signals import StopFlag
from pipeline.training import stacked
from pipeline.training.run import Fitted, Run, Stop
from pipeline.training.samples import Samples, Targets
from pipeline.training.stacked import Outcome, Prepared, shape
from tests.small import named

N, WIDTH, EPOCHS, CPU = 50, 6, 5, torch.device("cpu")
TARGETS = ("SPEI_30d", "SPEI_1y", "SPEI_2y")
NAMES = Names(("D01", "D02"), ("Agonum puncticolle", "Pterostichus melanarius"))
FACTS = Facts(TARGETS, NAMES, WIDTH, "", None, "")
WHOLE: dict[str, Any] = {"model": {"domain_embedding": True}, "data": {"columns": {"domain": "domainID"}}}
DIFFERENT: list[dict[str, Any]] = [
    {"seed": 1, "optim": {"lr": 0.01}},
    {"seed": 2, "optim": {"lr": 0.01, "kind": "adamw", "weight_decay": 0.1}, "augment": {"noise": 0.1, "warmup": 0.5}},
    {"seed": 3, "optim": {"lr": 0.03, "clip": 0.1}, "augment": {"mixup_alpha": 0.4, "domain_dropout": 0.5}},
    {"seed": 4, "optim": {"lr": 0.03, "ema": 0.5}, "schedule": {"kind": "cosine", "per": "step"}},
    {"seed": 4, "optim": {"lr": 0.05}, "train": {"epochs": 4, "patience": 1}},
]
"""What trials of one shape may differ in."""


def make_config(**sections: Any) -> Config:
    values: dict[str, Any] = {"experiment": "test", "train": {"epochs": EPOCHS, "batch_size": 16, "precision": "fp32"}}
    values["model"] = {"head": {"kind": "mlp", "hidden": [8]}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return Config.model_validate(named(values))


def make_samples(seed: int, n: int = N) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    features, targets = torch.randn(n, WIDTH, generator=generator), torch.randn(n, 3, generator=generator)
    metadata = NAMES.metadata({"domain": [("D01", "D02")[i % 2] for i in range(n)], "species": [NAMES.species[0]] * n})
    return Samples(TensorBank(features, CPU, "device"), Targets(targets), metadata, np.arange(n) // 2, 3)


TRAIN, VALIDATION = make_samples(1), make_samples(2)


def make_trial(
    folder: Path, config: Config, flag: StopFlag | None = None, train: Samples = TRAIN, validation: Samples = VALIDATION
) -> Prepared:
    torch.manual_seed(config.seed)
    run = Run(TrialDir(folder), "identity", "machine", config, Stop(flag or StopFlag(), lambda: True))
    return Prepared(Learner.make(config, FACTS, nn.Identity()), train, validation, run)


def both_ways(
    tmp_path: Path, configs: Sequence[Config], train: Samples = TRAIN, validation: Samples = VALIDATION
) -> tuple[list[Prepared], list[Prepared]]:
    """Each fitted alone, and all of them together."""

    def made(name: str) -> list[Prepared]:
        return [make_trial(tmp_path / f"{name}-{i}", config, None, train, validation) for i, config in enumerate(configs)]

    alone = made("alone")
    for trial in alone:
        trial.fit()
    together = made("together")
    found = fit_together(together)
    assert all(isinstance(each, Fitted) for each in found), found
    return alone, together


def fit_together(trials: Sequence[Prepared]) -> list[Outcome]:
    """How each of these went, or what it raised."""
    found: dict[int, Outcome] = {}
    stacked.fit_together(trials, lambda place, outcome, _: found.update({place: outcome}))
    return [found[place] for place in range(len(trials))]


def lines(trial: Prepared) -> list[dict[str, Any]]:
    """Of metrics.jsonl, without seconds."""
    read = [json.loads(line) for line in trial.run.trial.metrics.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read]


def assert_same(one: Prepared, other: Prepared) -> None:
    """The same course, and the same model, to 1e-6."""
    assert len(lines(one)) == len(lines(other))
    for mine, theirs in zip(lines(one), lines(other), strict=True):
        assert mine.pop("phase") == theirs.pop("phase") and mine == pytest.approx(theirs, abs=2e-6, rel=2e-6), (mine, theirs)
    for (name, mine_), theirs_ in zip(one.model.own_state().items(), other.model.own_state().values(), strict=True):
        torch.testing.assert_close(mine_, theirs_, atol=1e-6, rtol=1e-6, msg=name)


@pytest.fixture(autouse=True)
def small_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two are stacked too."""
    monkeypatch.setattr(stacked, "FEWEST", 2)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of how many trials each step that was taken together was."""
    taken: list[int] = []
    step = stacked._Stack.step

    def counted(stack: Any, rows: Tensor, done: float) -> Tensor:
        taken.append(len(rows))
        return step(stack, rows, done)

    monkeypatch.setattr(stacked._Stack, "step", counted)
    return taken


def test_trials_that_differ_in_all_that_they_may_are_trained_together_as_alone(tmp_path: Path, steps: list[int]) -> None:
    alone, together = both_ways(tmp_path, [make_config(**WHOLE, **each) for each in DIFFERENT])
    for one, other in zip(alone, together, strict=True):
        assert_same(one, other)
    per_epoch = -(-N // 16)
    assert len(lines(alone[4])) < EPOCHS == len(lines(alone[0])), "none stops early: the test would say nothing"
    assert steps[:per_epoch] == [5] * per_epoch and steps[-1] == 4, steps


@pytest.mark.parametrize("loss", ["smooth_l1", "crps", "nll", "student_t", "quantiles"])
def test_every_loss_of_numbers_is_the_same_of_several_trials(tmp_path: Path, loss: str) -> None:
    configs = [make_config(**WHOLE, loss={"kind": loss}, seed=seed, optim={"lr": 0.01}, train={"epochs": 2}) for seed in (1, 2)]
    for one, other in zip(*both_ways(tmp_path, configs), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("loss", [{}, {"balanced": True}, {"focal": 2.0}, {"logit_adjustment": 1.0}])
def test_cross_entropy_is_the_same_of_several_trials(tmp_path: Path, loss: dict[str, Any]) -> None:
    def of_classes(samples: Samples) -> Samples:
        return replace(samples, targets=Targets(samples.targets.dense().argmax(1, keepdim=True), (3, 0)))

    sections = {"task": "classify", "data": {"label": "kind"}, "loss": {"kind": "cross_entropy", **loss}}
    configs = [
        make_config(**sections, seed=seed, optim={"lr": 0.01}, train={"epochs": 3}, augment={"mixup_alpha": alpha})
        for seed, alpha in ((1, 0.0), (2, 0.4))
    ]
    train, validation = of_classes(TRAIN), of_classes(VALIDATION)
    for one, other in zip(*both_ways(tmp_path, configs, train, validation), strict=True):
        assert_same(one, other)


def test_names_that_are_dropped_and_embeddings_that_are_mixed_are_those_of_each_trial(tmp_path: Path) -> None:
    mixup = {"of": "embedding", "probability": 0.5}
    augment = {"mixup_alpha": 0.4, "mixup": mixup, "species_dropout": 0.5, "domain_dropout": 0.5, "noise": 0.1}
    sections = {**WHOLE, "data": {"columns": {"domain": "domainID", "species": "scientificName"}}, "augment": augment}
    sections["model"] = {**WHOLE["model"], "species_embedding": True}
    for one, other in zip(*both_ways(tmp_path, [make_config(**sections, seed=seed) for seed in (1, 2)]), strict=True):
        assert_same(one, other)


def test_a_stack_that_was_told_to_stop_is_gone_on_with_alone_and_a_trial_alone_in_a_stack(tmp_path: Path) -> None:
    configs = [make_config(**WHOLE, seed=seed, optim={"lr": 0.01, "ema": 0.5}) for seed in (1, 2)]
    undisturbed = [make_trial(tmp_path / f"whole-{i}", config) for i, config in enumerate(configs)]
    for trial in undisturbed:
        trial.fit()
    for first, then in (("together", "alone"), ("alone", "together")):
        interrupted = [make_trial(tmp_path / f"{first}-{i}", config, told()) for i, config in enumerate(configs)]
        if first == "together":
            assert all(isinstance(each, Interrupted) for each in fit_together(interrupted))
        else:
            for trial in interrupted:
                with pytest.raises(Interrupted):
                    trial.fit()
        resumed = [make_trial(tmp_path / f"{first}-{i}", config) for i, config in enumerate(configs)]
        found = fit_together(resumed) if then == "together" else [trial.fit() for trial in resumed]
        assert [each.progress.restarts for each in found if isinstance(each, Fitted)] == [1, 1]
        for one, other in zip(undisturbed, resumed, strict=True):
            assert_same(one, other)


def told() -> StopFlag:
    """To stop after this epoch."""
    flag = StopFlag()
    flag.signal, flag._since = 15, time.monotonic()
    return flag


def test_a_checkpoint_of_one_of_many_holds_one(tmp_path: Path) -> None:
    sizes = {}
    for n in (1, 20):
        configs = [make_config(seed=seed, resources={"checkpoint_epochs": 1}, train={"epochs": 2}) for seed in range(n)]
        trials = [make_trial(tmp_path / f"{n}-{i}", config) for i, config in enumerate(configs)]
        fit_together(trials)
        sizes[n] = trials[0].run.trial.resume_state.stat().st_size
    assert sizes[20] < 1.1 * sizes[1]


def test_a_trial_whose_loss_is_not_finite_fails_by_itself(tmp_path: Path) -> None:
    fine = make_config(**WHOLE, seed=1, optim={"lr": 0.01})
    configs = [fine, make_config(**WHOLE, seed=2, optim={"lr": 1e30}), fine]
    trials = [make_trial(tmp_path / f"{i}", config) for i, config in enumerate(configs)]
    first, failed, third = fit_together(trials)
    alone = make_trial(tmp_path / "alone", fine)
    alone.fit()
    assert isinstance(failed, WorkError) and "the training loss became nan in epoch 0" in str(failed)
    assert isinstance(first, Fitted) and isinstance(third, Fitted)
    assert_same(alone, trials[0])
    assert_same(alone, trials[2])


def test_one_that_cannot_begin_fails_by_itself_and_damage_is_put_aside_as_alone(tmp_path: Path) -> None:
    config = make_config(seed=1)
    trials = [make_trial(tmp_path / f"{i}", config) for i in range(3)]
    trials[0].run.trial.resume_state.parent.mkdir(parents=True)
    trials[0].run.trial.resume_state.write_bytes(b"damaged")
    trials[1].run.trial.metrics.mkdir(parents=True)  # where a file is to be
    damaged, failed, fine = fit_together(trials)
    assert isinstance(damaged, Fitted) and isinstance(failed, OSError) and isinstance(fine, Fitted)
    assert_same(trials[0], trials[2])


def test_one_that_is_taken_over_leaves_the_others(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path / f"{i}", make_config(seed=i)) for i in range(3)]
    lost = replace(trials[1].run, stop=Stop(StopFlag(), lambda: False))
    first, taken, third = fit_together([trials[0], replace(trials[1], run=lost), trials[2]])
    assert isinstance(first, Fitted) and isinstance(taken, TakenOver) and isinstance(third, Fitted)


def test_told_that_the_end_of_the_epoch_is_too_far_all_stop_at_once(tmp_path: Path) -> None:
    flag = told()
    flag.grace = -1
    found = fit_together([make_trial(tmp_path / f"{i}", make_config(seed=i), flag) for i in range(2)])
    assert all(isinstance(each, Interrupted) and "too long" in str(each) for each in found)


def test_after_a_stack_a_model_is_a_model_of_its_own(tmp_path: Path) -> None:
    trials = [make_trial(tmp_path / f"{i}", make_config(seed=i, train={"epochs": 1})) for i in range(2)]
    fit_together(trials)
    one, other = (next(trial.model.parameters()) for trial in trials)
    assert one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    assert one.untyped_storage().nbytes() == one.numel() * 4 and one.grad is None


# ---------------------------------------------------------------- which
@pytest.mark.parametrize(("hidden", "n", "gains"), [([8], 4, True), ([8], 3, False), ([256, 256], 16, False)])
def test_on_a_cpu_several_narrow_heads_are_faster_together_and_no_wide_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hidden: list[int], n: int, gains: bool
) -> None:
    monkeypatch.undo()  # what is stacked in other tests
    config = make_config(model={"head": {"kind": "mlp", "hidden": hidden}})
    assert stacked.pays(make_trial(tmp_path, config), n) is gains


def test_in_bf16_which_rounds_far_more_than_that_a_cpu_trains_them_one_by_one(tmp_path: Path) -> None:
    assert not stacked.pays(make_trial(tmp_path, make_config(train={"precision": "bf16"})), 16)


@pytest.mark.parametrize("says_so", [False, True])
def test_a_labs_own_kind_has_no_shape_unless_it_says_so_itself(says_so: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be fitted in another way than what it derives from."""
    for family in (Head, Loss):
        monkeypatch.setattr(family, "kinds", dict(family.kinds))
    stacks = {"can_be_stacked": True} if says_so else {}
    for base, name in ((MlpHead, "own_mlp"), (SmoothL1, "own_smooth")):
        type("Own", (base,), {"__module__": name, "__annotations__": {"kind": Literal[name]}, **stacks})
    for sections in ({"model": {"head": {"kind": "own_mlp"}}}, {"loss": {"kind": "own_smooth"}}):
        assert (shape(make_config(**sections)) is not None) is says_so, sections


@pytest.mark.parametrize(
    "sections",
    [
        {"model": {"head": {"kind": "per_target"}}},
        {"model": {"head": {"kind": "ridge"}}},
        {"train": {"sample": "groups"}},
        {"train": {"accumulate": 2}},
        {"augment": {"image_dropout": 0.1}},
        {"tracking": {"kind": "tensorboard"}},
        {"risk": {"kind": "coral"}, "data": {"columns": {"domain": "domainID"}}},
        {"model": {"encoder": {"kind": "finetuned"}}},
    ],
)
def test_what_would_not_be_the_same_to_the_bit_in_its_draws_has_no_shape(sections: dict[str, Any]) -> None:
    assert shape(make_config()) is not None and shape(make_config(**sections)) is None


def test_trials_of_one_shape_differ_in_what_is_each_ones_own_alone() -> None:
    assert len({shape(make_config(**WHOLE, **each)) for each in DIFFERENT}) == 1
    others: list[dict[str, Any]] = [{"train": {"batch_size": 8}}, {"loss": {"kind": "crps"}}, {"data": {"targets": ["SPEI_30d"]}}]
    assert len({shape(make_config(**each)) for each in ({}, *others)}) == 4
