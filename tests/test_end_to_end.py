"""Training end to end from images: what is stored, learned, kept, resumed bit for bit, and predicted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.backbones import load_backbone
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir, experiment_dir
from pipeline.disk.writing import read_json
from pipeline.errors import Interrupted
from pipeline.features.hashes import weights_record
from pipeline.launch.watching import estimates
from pipeline.models.learner import Learner, load_trained_state, trained_state
from pipeline.models.saved import load_facts, load_model, make_model
from pipeline.stages import evaluate, extract, train
from pipeline.stages.inputs import load_inputs, make_facts
from pipeline.stages.predict import Origin, predict_files
from pipeline.training.optimiser import make_optimizer
from pipeline.training.run import Choice
from pipeline.training.samples import predict
from tests.conftest import Assets
from tests.small import image_files, named, small_config
from tests.test_training import StopAfter

pytestmark = pytest.mark.jobs

AUGMENTED = {"flip": True, "rotation": 20, "scale": 0.2, "shift": 0.1, "brightness": 0.2, "contrast": 0.2, "erase": 0.3}
MakeTrial = Callable[..., tuple[Config, TrialDir]]


@pytest.fixture
def make(table: Path, clip: Path, tmp_path: Path) -> Callable[..., Config]:
    """A config of a small network that learns end to end; `make(train={"epochs": 2})`."""

    def config(**sections: Any) -> Config:
        values: dict[str, Any] = {
            "backbone": {"kind": "timm", "name": "test_resnet", "image_size": 32},
            "model": {"encoder": {"kind": "end_to_end"}, "head": {"kind": "mlp", "hidden": []}},
            "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
            "optim": {"lr": 1e-3},
            "select": {"metric": "MAE"},
            "augment": {"images": AUGMENTED},
            "paths": {"features": str(tmp_path / "features"), "trained": str(tmp_path / "trained")},
        }
        basis = small_config(table, clip, tmp_path / "features").model_dump()
        merged = {name: {**basis[name], **value} if name != "backbone" else value for name, value in values.items()}
        for name, section in sections.items():
            replaced = name == "backbone" or not isinstance(section, dict)
            merged[name] = section if replaced else {**merged.get(name, basis[name]), **section}
        return Config.model_validate(named(basis | merged))

    return config


def run(config: Config, name: str = "trial", flag: StopAfter | None = None) -> TrialDir:
    trial = experiment_dir(config).trial(name)
    extract.ensure(config)
    train.run(config, trial, flag)
    return trial


# ---------------------------------------------------------------- what is stored
def test_the_store_holds_images_as_the_network_reads_them(make: Callable[..., Config]) -> None:
    config = make()
    store = extract.ensure(config)
    assert store.shape == (3, 32, 32) and store.ingredients.kind == "images"
    inputs = load_inputs(config)
    stored = load_file(store.path(0))["features"]
    expected = [load_backbone(config.backbone).transform(inputs.dataset.image(i)) for i in range(len(stored))]
    assert torch.equal(stored, torch.stack(expected))


def test_estimates_know_the_size_of_the_store_and_of_the_model(make: Callable[..., Config]) -> None:
    config = make()
    trial, store = run(config), extract.ensure(config)
    weights = weights_record(config, lambda: load_backbone(config.backbone))
    tensors = sum(shard.path.stat().st_size for shard in store.shards)
    assert estimates.features_bytes(config, weights, store.n) == pytest.approx(tensors, rel=0.02)
    assert estimates.model_bytes(config, weights) == pytest.approx(trial.model.stat().st_size, rel=0.1)
    assert estimates.training_bytes(config, weights, store.n) > estimates.OVERHEAD


# ---------------------------------------------------------------- what is learned
def epochs_of(trial: TrialDir) -> list[dict[str, float]]:
    return [json.loads(line) for line in trial.metrics.read_text().splitlines()]


def test_the_network_learns_from_images(make: Callable[..., Config], own: Path) -> None:
    """What each image shows, that is: targets are drawn for each, where a head alone could tell nothing."""
    table = pd.read_csv(own)
    targets = ["SPEI_30d", "SPEI_1y", "SPEI_2y"]
    table[targets] = np.random.default_rng(0).standard_normal((len(table), 3))
    table.to_csv(own, index=False)
    data = {"source": str(own), "columns": {"group": None}}
    config = make(data=data, train={"epochs": 40}, augment={"images": {}}, optim={"lr": 3e-3})
    losses = [epoch["train/loss"] for epoch in epochs_of(run(config))]
    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize("kind", ["open_clip", "dinov2"])
def test_transformers_learn_end_to_end_too(kind: str, make: Callable[..., Config], assets: Assets) -> None:
    backbones = {
        "open_clip": {"kind": "open_clip", "name": f"local-dir:{assets.clip}"},
        "dinov2": {"kind": "dinov2", "name": str(assets.dinov2), "pooling": "cls_mean"},
    }
    config = make(backbone=backbones[kind], train={"epochs": 1})
    trial = run(config)
    native = {name: tensor for name, tensor in load_file(trial.model).items() if name.startswith("encoder.")}
    before = {f"encoder.backbone.{name}": tensor for name, tensor in load_backbone(config.backbone).state_dict().items()}
    changed = [name for name, tensor in native.items() if not torch.equal(tensor, before[name])]
    assert len(changed) > 0.9 * len(native) and len(native) >= len(before) - 1  # DINOv2's mask token


def test_the_backbone_has_its_own_learning_rate(make: Callable[..., Config]) -> None:
    config = make(model={"encoder": {"kind": "end_to_end", "lr_scale": 0.1}})
    extract.ensure(config)
    inputs = load_inputs(config)
    model = make_model(config, make_facts(inputs), inputs.encoder_backbone)
    assert isinstance(model, Learner)
    rates = {id(p): group["lr"] for group in make_optimizer(model, config).param_groups for p in group["params"]}
    of_encoder, of_head = ([rates[id(p)] for p in part.parameters()] for part in (model.encoder, model.head))
    assert of_encoder == pytest.approx([1e-4] * len(of_encoder)) and of_head == pytest.approx([1e-3] * len(of_head))


def test_images_are_augmented_as_they_are_learned_from_and_each_strength_is_another_model(make: Callable[..., Config]) -> None:
    augments = [{"images": {}}, {"images": {"shift": 0.1}}, {"images": {"shift": 0.1}, "warmup": 1.0}]
    trials = [run(make(augment=augment), str(i)) for i, augment in enumerate(augments)]
    assert len({trial.model.read_bytes() for trial in trials}) == 3


def test_bf16_and_mixup_and_noise_work_on_the_cpu(make: Callable[..., Config]) -> None:
    augment = {"images": AUGMENTED, "mixup_alpha": 0.2, "noise": 0.1, "image_dropout": 0.3, "warmup": 0.5}
    config = make(train={"precision": "bf16"}, augment=augment, features={"dtype": "bf16"})
    assert all(np.isfinite(epoch["train/loss"]) for epoch in epochs_of(run(config)))


def test_a_last_batch_of_one_image_is_learned_from(make: Callable[..., Config]) -> None:
    """20 images; at 32 pixels the last stage has one cell, of which batch norm alone could make nothing."""
    config = make(train={"batch_size": 19, "epochs": 1})
    assert len(epochs_of(run(config))) == 1


# ---------------------------------------------------------------- the running statistics
def normalised() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def test_running_statistics_are_part_of_what_is_trained() -> None:
    model, other = normalised(), normalised()
    model(torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    state = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    assert {"1.running_mean", "1.running_var", "1.num_batches_tracked"} < set(state)
    load_trained_state(other, state)
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    del state["1.running_var"]
    with pytest.raises(KeyError, match="running_var"):
        load_trained_state(other, state)


def test_the_saved_model_has_the_statistics_of_its_epoch(make: Callable[..., Config]) -> None:
    """The figure on which the epoch was chosen is that of the model in the folder."""
    config = make(train={"epochs": 4}, evaluate={"split": "validation"}, select={"metric": "MAE"})
    trial = run(config)
    assert any(name.endswith("running_mean") for name in load_file(trial.model))
    inputs = load_inputs(config)
    model = load_model(config, trial, inputs.encoder_backbone)
    assert isinstance(model, Learner) and model.novelty is not None
    model.novelty = None  # what is far from all that was seen is drawn towards it afterwards
    samples = inputs.samples(load_facts(trial), "validation", torch.device("cpu"))
    figure = Choice.of(config).score(samples, predict(model, samples))
    assert figure == pytest.approx(read_json(trial.trained)["best_metric"], rel=1e-5)


def test_told_to_stop_and_run_again_it_ends_with_the_same_bits(make: Callable[..., Config]) -> None:
    config = make(train={"epochs": 4}, augment={"images": AUGMENTED, "mixup_alpha": 0.2, "warmup": 0.5})
    whole = run(config, "whole")
    with pytest.raises(Interrupted):
        run(config, "parts", StopAfter(2))
    parts = run(config, "parts")
    assert read_json(parts.trained)["provenance"]["resumed"] == 1
    assert whole.model.read_bytes() == parts.model.read_bytes()
    assert [e["train/loss"] for e in epochs_of(whole)] == [e["train/loss"] for e in epochs_of(parts)]


# ---------------------------------------------------------------- afterwards
def test_images_and_stored_images_and_files_are_predicted_alike(make: Callable[..., Config], table: Path) -> None:
    config = make(evaluate={"inputs": "images"})
    trial = run(config)
    assert evaluate.run(config, trial)["summary"]["features_difference"]["max_abs"] < 1e-5
    inputs = load_inputs(config)
    model = load_model(config, trial, inputs.backbone)
    assert not any(module.training for module in model.modules())
    said = list(predict_files(trial.path, image_files(table)[:3], Origin(), "cpu"))
    assert isinstance(model, Learner)
    with torch.no_grad():
        expected = model.predict(load_file(inputs.store.path(0))["features"][:3]).mean
    numbers = [[one[target] for target in config.data.targets] for one in said]
    np.testing.assert_allclose(numbers, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_concatenation_is_predicted_from_images_as_from_its_features(make: Callable[..., Config], clip: Path) -> None:
    parts = [{"kind": "open_clip", "name": f"local-dir:{clip}"}, {"kind": "timm", "name": "test_resnet", "image_size": 32}]
    config = make(
        backbone={"kind": "concat", "parts": parts},
        model={"encoder": {"kind": "frozen"}},
        augment={"images": {}},
        evaluate={"inputs": "images"},
    )
    assert evaluate.run(config, run(config))["summary"]["features_difference"]["max_abs"] < 1e-5
