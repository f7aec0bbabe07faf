"""Kinds of a lab's own, defined here and nowhere else: a backbone of two views and an encoder; planned, extracted, trained,
evaluated, predicted with, saved and loaded like those of the package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from pipeline.backbones import load_backbone, weights_files
from pipeline.backbones.base import Backbone as Network
from pipeline.backbones.base import seeded
from pipeline.config.backbone import Backbone
from pipeline.config.encoder import Encoder
from pipeline.config.identity import features_of, plain
from pipeline.config.section import Seed
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.experiments.reading import dump_config, load_config, load_experiment
from pipeline.features.hashes import known_feature_key, weights_signature
from pipeline.launch.watching.plan import lines, plan
from pipeline.models.saved import load_model
from pipeline.stages import evaluate, extract, fetch, train
from pipeline.stages.inputs import load_inputs
from pipeline.stages.predict import Origin, predict_files
from tests.small import image_files, small_config

pytestmark = pytest.mark.jobs


# ---------------------------------------------------------------- the kinds
class Halves(Backbone):
    """The left and the right half of an image through one small network, its embeddings one after the other."""

    offers = frozenset({"pooled", "images"})
    kind: Literal["halves"]
    channels: int = 8
    """Of the network."""
    seed: Seed = 0
    """Of its random weights."""

    def load(self) -> Network:
        with seeded(self.seed):
            return HalvesNetwork(self.channels)


class HalvesNetwork(Network):
    label = "The two halves"
    image_size = 32

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, channels, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.width = self.embed_dim = 8 * channels

    def transform(self, image: Image.Image) -> Tensor:
        return tv.to_tensor(image.convert("RGB").resize((64, 32))) - 0.5

    def transform_id(self) -> str:
        return "rgb, 64 × 32, around 0"

    def embed(self, images: Tensor) -> Tensor:
        return torch.cat([self.net(half) for half in images.chunk(2, dim=3)], dim=1)


class Scaled(Encoder):
    """The embedding, each number of it times one that is learnt."""

    kind: Literal["scaled"]

    def build(self, backbone: Network) -> nn.Module:
        return Times(backbone.embed_dim)

    def rate_scale(self, name: str) -> float:
        return 0.5

    def n_trained(self, of: Any) -> int:
        return int(of.embed_dim)


class Times(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(width))

    def forward(self, embedding: Tensor) -> Tensor:
        return embedding * self.by


# ---------------------------------------------------------------- a trial of theirs
@pytest.fixture
def make(table: Path, clip: Path, root: Path) -> Callable[..., Config]:
    def config(encoder: str, **backbone: Any) -> Config:
        values = {
            "task": "beetles",
            "model": {"encoder": {"kind": "frozen"}, "head": {"kind": "mlp", "hidden": []}},
            "train": {"epochs": 2, "batch_size": 8, "precision": "fp32"},
            "select": {"metric": "MAE"},
            "paths": {"features": str(root / "features"), "trained": str(root / "trained")},
        }
        basis = small_config(table, clip, root / "features", **values).model_dump(mode="json")
        basis["backbone"], basis["model"]["encoder"] = {"kind": "halves", **backbone}, {"kind": encoder}
        (root / "small.yaml").write_text(yaml.safe_dump(basis))
        return load_experiment(root / "small.yaml").config

    return config


@pytest.mark.parametrize("encoder", ["frozen", "scaled", "end_to_end"])
def test_a_trial_of_a_kind_of_ones_own_goes_all_the_way(encoder: str, make: Callable[..., Config], root: Path, own: Path) -> None:
    config = make(encoder)
    assert load_config(_written(config, root)) == config
    fetch.run([config])
    store = extract.ensure(config)
    assert store.shape == ((3, 32, 64) if encoder == "end_to_end" else (64,)) and store.ingredients.backbone == "halves"
    assert known_feature_key(config) == store.key
    experiment = load_experiment(root / "small.yaml")
    trial = experiment.dir.trial(experiment.trials[0].name)
    train.run(config, trial)
    evaluate.run(config, trial)
    assert read_json(trial.results)["feature_key"] == store.key
    assert [state.state + state.reason for state in plan(experiment)[1]] == ["done"] and "1 done" in "\n".join(lines(experiment))
    _check_predictions(config, trial, own)


def _written(config: Config, root: Path) -> Path:
    (root / "config.yaml").write_text(dump_config(config))
    return root / "config.yaml"


def _check_predictions(config: Config, trial: TrialDir, table: Path) -> None:
    """Those of a saved model, loaded again, from image files: what evaluation said of the same images."""
    model = load_model(config, trial, load_inputs(config).encoder_backbone)
    learnt = [name for name in model.state_dict() if name.startswith("encoder.")]
    assert learnt == {"frozen": [], "scaled": ["encoder.by"]}.get(config.model.encoder.kind, learnt)
    said = pd.read_parquet(trial.predictions)
    files = image_files(table)[-10:]
    found = list(predict_files(trial.path, files, Origin(), "cpu"))
    expected = said[said["target"] == "SPEI_1y"]["prediction"].tolist()
    assert [one["SPEI_1y"] for one in found] == pytest.approx(expected, rel=1e-4, abs=1e-5)


# ---------------------------------------------------------------- what the package asks of them
def test_its_keys_are_part_of_its_identity_and_of_its_weights(make: Callable[..., Config]) -> None:
    one, other = make("frozen"), make("frozen", seed=1)
    assert features_of(one) != features_of(other)
    assert weights_signature(one.backbone) != weights_signature(other.backbone)
    assert load_backbone(one.backbone).weights_hash() != load_backbone(other.backbone).weights_hash()
    assert weights_files(one.backbone) == [] and one.backbone.display_name == "halves"


def test_it_can_be_a_part_of_a_concatenation(make: Callable[..., Config]) -> None:
    block = {"kind": "concat", "parts": [{"kind": "halves", "channels": 4}, {"kind": "pixels", "size": 2}]}
    config = Config.model_validate(make("frozen").model_dump() | {"backbone": block})
    assert extract.ensure(config).shape == (32 + 12,)
    assert plain(config.backbone)["parts"][0] == {"kind": "halves", "channels": 4, "seed": 0}


def test_what_it_does_not_offer_is_refused_in_words(make: Callable[..., Config]) -> None:
    with pytest.raises(
        UserError, match=r"lora reads cut .* halves has no such features: .* frozen, projection, end_to_end or scaled"
    ):
        make("lora")
    with pytest.raises(UserError, match=r"`backbone.chanels` does not exist, but `backbone.channels` does"):
        make("frozen", chanels=3)
