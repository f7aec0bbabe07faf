"""Training in phases: the head first, then everything; the average of weights that is kept; steps of several batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.config.encoder import depths
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import Interrupted, UserError, WorkError
from pipeline.models.learner import trained_state
from pipeline.models.saved import load_facts, make_model
from pipeline.stages import evaluate, extract, train
from pipeline.stages.inputs import load_inputs, make_facts
from pipeline.training import augmentation as aug
from pipeline.training import loop
from pipeline.training.average import Average
from pipeline.training.learner import Lesson
from pipeline.training.optimiser import make_optimizer, set_rates
from pipeline.training.risk import start_log_weights
from tests.small import small_config
from tests.test_training import StopAfter

HALVES = {"crops": ["left", "right"]}
FIRST = {"epochs": 2, "lr": 3e-3}


@pytest.fixture
def make(table: Path, clip: Path, root: Path) -> Callable[..., Config]:
    """Two streams through a small network, its heads first; `make(train={"epochs": 3})`."""

    def config(**sections: Any) -> Config:
        values: dict[str, Any] = {
            "backbone": {"kind": "timm", "name": "test_resnet", "views": {**HALVES, "sizes": [32]}},
            "model": {"encoder": {"kind": "end_to_end"}, "head": {"kind": "per_target", "hidden": 6}, "normalize": False},
            "loss": {"kind": "smooth_l1"},
            "train": {"epochs": 4, "batch_size": 8, "precision": "fp32", "head_first": FIRST},
            "optim": {"kind": "adamw", "lr": 1e-3, "ema": 0.9},
            "select": {"epoch": "last"},
            "augment": {"images": {"flip": True, "flip_vertical": True, "quarter_turns": 0.5, "saturation": 0.2, "hue": 0.1}},
        }
        basis = small_config(table, clip, root).model_dump(mode="json")
        for name, section in {**values, **{k: {**values.get(k, {}), **v} for k, v in sections.items()}}.items():
            basis[name] = {**basis[name], **section} if name not in ("backbone", "loss", "model") else section
        if "backbone" in sections:
            basis["backbone"] = sections["backbone"]
        return Config.model_validate(basis)

    return config


def learn(config: Config, folder: Path, stops: tuple[int, ...] = ()) -> TrialDir:
    """Train it, interrupted after so many epochs each time."""
    trial = TrialDir(folder)
    folder.mkdir(parents=True)
    extract.ensure(config)
    for stop in stops:
        with pytest.raises(Interrupted):
            train.run(config, trial, StopAfter(stop))
    train.run(config, trial)
    return trial


def kept(trial: TrialDir) -> dict[str, torch.Tensor]:
    return load_file(trial.model)


def begun(config: Config) -> dict[str, torch.Tensor]:
    """The tensors that training begins with."""
    inputs = load_inputs(config)
    return make_model(config, make_facts(inputs), inputs.encoder_backbone).own_state()


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> list[bool]:
    return [not torch.equal(before[name], after[name]) for name in after if name.startswith(part) and "scale" not in name]


# ---------------------------------------------------------------- head first
@pytest.mark.jobs
def test_the_encoder_is_held_while_the_head_learns_and_every_parameter_of_it_moves_then(
    make: Callable[..., Config], tmp_path: Path
) -> None:
    """Others built their optimiser in the first stage, so that the second trained nothing more."""
    early = make(optim={"ema": 0.0}, train={"epochs": 3, "head_first": FIRST})
    trial = TrialDir(tmp_path / "held")
    trial.path.mkdir()
    extract.ensure(early)
    before = begun(early)
    with pytest.raises(Interrupted):
        train.run(early, trial, StopAfter(2))
    state = torch.load(trial.resume_state, weights_only=True)["model"]
    assert not any(moved(before, state, "encoder.")) and all(moved(before, state, "head."))
    train.run(early, trial)
    after = kept(trial)
    assert all(moved(before, after, "encoder.")) and all(moved(state, after, "head."))
    statistics = [name for name in after if "running" in name]
    assert statistics  # of batch norm: fixed while it is held, learnt then


@pytest.mark.jobs
@pytest.mark.parametrize("stops", [(1,), (2,), (3,), (1, 2)], ids=str)
def test_interrupted_in_either_phase_it_ends_with_the_same_weights(
    stops: tuple[int, ...], make: Callable[..., Config], tmp_path: Path
) -> None:
    config = make(train={"accumulate": 2})
    undisturbed, disturbed = learn(config, tmp_path / "a"), learn(config, tmp_path / "b", stops)
    assert undisturbed.model.read_bytes() == disturbed.model.read_bytes()
    assert read_json(disturbed.trained)["provenance"]["resumed"] == len(stops)
    lines = [trial.metrics.read_text().count("\n") for trial in (undisturbed, disturbed)]
    assert lines == [4, 4]


@pytest.mark.jobs
def test_a_parameter_that_no_gradient_reaches_in_the_second_phase_stops_the_run(
    make: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make(train={"epochs": 2, "head_first": {"epochs": 1}})
    real = loop.train_epoch

    def detached(model: Any, *rest: Any, **more: Any) -> float:
        if not model.held:
            model.encoder.register_forward_hook(lambda _, __, out: out.detach())
        return real(model, *rest, **more)

    monkeypatch.setattr(loop, "train_epoch", detached)
    with pytest.raises(WorkError, match=r"no gradient reaches .* encoder"):
        learn(config, tmp_path / "trial")


def test_each_phase_has_its_own_rate_and_a_schedule_of_its_own(make: Callable[..., Config]) -> None:
    config = make(train={"epochs": 12, "head_first": {"epochs": 4, "lr": 1e-2}})
    config = Config.model_validate(config.model_dump() | {"schedule": {"kind": "cosine", "floor": 0.0}})
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "peak_lr": 2e-3, "lr": 1.0}], lr=1.0)
    rates = []
    for epoch in range(12):
        set_rates(optimizer, config, epoch, [])
        rates.append(optimizer.param_groups[0]["lr"])
    of = config.schedule.rate
    assert rates == pytest.approx([of(2e-2, 1e-2, i, 4) for i in range(4)] + [of(2e-3, 1e-3, i, 8) for i in range(8)])
    assert rates[3] == rates[11] == 0 and rates[4] == 2e-3


def test_phases_that_cannot_be_are_refused(make: Callable[..., Config]) -> None:
    with pytest.raises(ValueError, match=r"head_first.epochs is 4: less than epochs"):
        make(train={"epochs": 4, "head_first": {"epochs": 4}})
    values = make().model_dump()
    solved = {"encoder": {"kind": "frozen"}, "head": {"kind": "ridge"}}
    with pytest.raises(ValueError, match=r"train.accumulate 2 makes steps of several batches: .* or train.accumulate 1"):
        Config.model_validate(values | {"model": solved, "augment": {}, "train": {"accumulate": 2}, "loss": {"kind": "mse"}})
    with pytest.raises(ValueError, match=r"train.head_first holds what does not learn"):
        Config.model_validate(values | {"model": values["model"] | {"encoder": {"kind": "frozen"}}, "augment": {}})


def test_a_head_of_two_towers_has_no_phases() -> None:
    towers = {"text": {"kind": "end_to_end"}, "head": {"kind": "contrastive"}, "encoder": {"kind": "end_to_end"}}
    data = {"source": "x", "columns": {"image": "i", "species": "s"}, "label": "species"}
    with pytest.raises(ValueError, match=r"train.head_first holds no towers"):
        Config.model_validate(
            {"task": "species", "experiment": "x", "data": data, "model": towers, "train": {"head_first": {"epochs": 2}}}
        )


def test_phases_of_what_samples_make_of_epochs_are_asked_again(make: Callable[..., Config]) -> None:
    config = make(train={"epochs": 12, "samples": 400, "head_first": {"epochs": 4}})
    assert config.for_images(90).train.epochs == 5
    with pytest.raises(UserError, match=r"400 of 100 images are 4 epochs, all of them train.head_first's 4"):
        config.for_images(100)


# ---------------------------------------------------------------- layer-wise decay
def test_a_block_is_as_deep_as_blocks_follow_it() -> None:
    names = [
        "encoder.backbone.model.patch_embed.weight", "encoder.backbone.model.stages.0.blocks.0.conv.weight",
        "encoder.backbone.model.stages.0.blocks.1.conv.weight", "encoder.backbone.model.stages.1.downsample.weight",
        "encoder.backbone.model.stages.1.blocks.0.conv.weight", "encoder.backbone.model.norm.weight",
    ]  # fmt: skip
    assert list(depths(names).values()) == [5, 4, 3, 2, 1, 0]
    assert depths(["encoder.weight"]) == {"encoder.weight": 0}
    assert list(depths([f"encoder.blocks.{i}.w" for i in range(3)] + ["encoder.ln_post.weight"]).values()) == [3, 2, 1, 0]


@pytest.mark.jobs
def test_rates_fall_from_block_to_block_and_every_parameter_has_one(make: Callable[..., Config]) -> None:
    model = {"encoder": {"kind": "end_to_end", "layer_decay": 0.5, "lr_scale": 0.1}, "head": {"kind": "mlp", "hidden": []}}
    config = make(model=model)
    inputs = load_inputs(config) if extract.ensure(config) else None
    assert inputs is not None
    made = make_model(config, make_facts(inputs), inputs.encoder_backbone)
    groups = make_optimizer(made, config).param_groups
    rates = sorted({group["lr"] for group in groups}, reverse=True)
    assert rates[0] == 1e-3 and rates[1:] == pytest.approx([1e-4 * 0.5 ** (i + 1) for i in range(len(rates) - 1)])
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in made.parameters()) and len(rates) > 4


# ---------------------------------------------------------------- the average of weights
def test_an_average_is_what_its_formula_says_and_begins_fast() -> None:
    layer, decay = nn.Linear(1, 1, bias=False), 0.99
    values, average, wanted = [1.0, 3.0, -2.0, 5.0], None, 1.0
    for step, value in enumerate(values):
        with torch.no_grad():
            layer.weight.fill_(value)
        if average is None:
            average = Average(layer, decay, {}, 0)
            continue
        average.update()
        share = min(decay, (1 + step) / (10 + step))
        wanted = share * wanted + (1 - share) * value
    assert average is not None and float(average.state["weight"]) == pytest.approx(wanted)
    with average.applied():
        assert float(layer.weight) == pytest.approx(wanted)
    assert float(layer.weight) == 5.0


def test_without_a_decay_there_is_no_average() -> None:
    layer = nn.Linear(2, 1)
    average = Average(layer, 0.0, {}, 0)
    average.update()
    with average.applied():
        assert average.state == {} and average.steps == 0


def test_statistics_of_batch_norm_are_averaged_and_whole_numbers_are_not() -> None:
    norm = nn.Sequential(nn.BatchNorm1d(2))
    average = Average(norm, 0.9, {}, 0)
    norm.train()
    norm(torch.ones(4, 2) * torch.arange(4.0)[:, None])
    average.update()
    assert average.state["0.num_batches_tracked"] == 1
    share = 2 / 11
    torch.testing.assert_close(average.state["0.running_mean"], (1 - share) * norm.get_buffer("0.running_mean"))
    assert set(average.state) == set(trained_state(norm))


@pytest.mark.jobs
def test_the_average_is_what_is_validated_kept_and_evaluated(make: Callable[..., Config], tmp_path: Path) -> None:
    """Others kept an average and never looked at it."""
    with_average, without = make(train={"epochs": 3}), make(train={"epochs": 3}, optim={"ema": 0.0})
    averaged, plain = learn(with_average, tmp_path / "a"), learn(without, tmp_path / "b")
    assert not any(
        torch.equal(a, b)
        for a, b in zip(kept(averaged).values(), kept(plain).values(), strict=True)
        if a.is_floating_point() and a.numel() > 9
    )
    trial = TrialDir(tmp_path / "c")
    trial.path.mkdir()
    with pytest.raises(Interrupted):
        train.run(with_average, trial, StopAfter(2))
    state = torch.load(trial.resume_state, weights_only=True)
    best, average = state["progress"]["best_state"], state["progress"]["average"]
    assert all(torch.equal(best[name], average[name]) for name in best) and state["progress"]["averaged"] > 0
    assert any(not torch.equal(state["model"][name], average[name]) for name in best)
    figures = [evaluate.run(config, of)["figures"]["MAE"] for config, of in ((with_average, averaged), (without, plain))]
    assert figures[0] != figures[1]


# ---------------------------------------------------------------- steps of several batches
@pytest.mark.jobs
@pytest.mark.parametrize("n", [2, 3])
def test_the_gradient_of_several_batches_is_that_of_one_as_large(n: int, make: Callable[..., Config]) -> None:
    """Also where the last step of an epoch has fewer batches, and the last batch fewer images."""
    head, frozen = {"kind": "mlp", "hidden": [4]}, {"kind": "frozen"}
    plain = {"model": {"encoder": frozen, "head": head}, "augment": {"images": {}}, "backbone": {"kind": "pixels", "size": 2}}
    grads: dict[int, list[list[torch.Tensor]]] = {}
    for several in (1, n):
        config = make(**plain, train={"batch_size": 12 // several, "accumulate": several, "head_first": None}, optim={"ema": 0.0})
        extract.ensure(config)
        inputs = load_inputs(config)
        facts = make_facts(inputs)
        model = make_model(config, facts, None)
        samples = inputs.samples(facts, "train", torch.device("cpu"))
        lesson = Lesson(model, samples, samples, config, start_log_weights(samples.metadata.domain))  # type: ignore[arg-type]
        optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.0), []
        optimizer.register_step_pre_hook(
            lambda *_, seen=seen, model=model: seen.append([p.grad.clone() for p in model.parameters()])
        )
        loop.train_epoch(model, lesson, optimizer, config.model_copy(update={"schedule": config.schedule}), 0, lambda share: None)
        grads[several] = seen
    assert len(grads[1]) == len(grads[n]) == 2  # 20 images: 12 and 8
    for one, other in zip(grads[1], grads[n], strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


# ---------------------------------------------------------------- mixup
def test_mixup_may_keep_most_of_an_image_and_leave_batches_alone() -> None:
    from pipeline.config.augment import Mixup

    rng = np.random.default_rng(0)
    values = torch.arange(8.0)[:, None]
    mixed = [aug.make_mix(8, 0.4, rng, how=Mixup(probability=0.5, keeps_most=True)) for _ in range(200)]
    assert 60 < sum(mix is None for mix in mixed) < 140
    for mix in filter(None, mixed):
        assert ((mix(values) - values).abs() <= 0.5 * 7 + 1e-6).all()
        shares = mix(torch.eye(8))
        assert (shares.diagonal() >= 0.5 - 1e-6).all()


@pytest.mark.jobs
def test_an_embedding_that_is_mixed_is_mixed_behind_the_encoder(make: Callable[..., Config], tmp_path: Path) -> None:
    """The same λ mixes targets; images reach the encoder as they are."""
    config = make(augment={"mixup_alpha": 0.4, "mixup": {"of": "embedding"}, "images": {}}, train={"epochs": 3})
    other = make(augment={"mixup_alpha": 0.4, "images": {}}, train={"epochs": 3})
    trials = [learn(each, tmp_path / str(i)) for i, each in enumerate((config, other))]
    assert kept(trials[0]).keys() == kept(trials[1]).keys() and load_facts(trials[0]).targets
    assert any(not torch.equal(a, b) for a, b in zip(kept(trials[0]).values(), kept(trials[1]).values(), strict=True))
