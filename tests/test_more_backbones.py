"""Networks of timm, DINOv2 with its mean patch token, several backbones as one, and trainable copies of whole backbones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.backbones import load_backbone, weights_files
from pipeline.backbones.base import Backbone
from pipeline.config.backbone import Backbone as BackboneConfig
from pipeline.config.backbone import Concat, Dinov2, OpenClip, Pixels, Timm
from pipeline.config.trial import Config
from pipeline.errors import NotFetched, UserError
from pipeline.features.hashes import known_feature_key, weights_signature
from pipeline.stages import extract, fetch
from tests.conftest import Assets
from tests.fake_hub import COMMIT, fake_hub
from tests.small import load_named as load_experiment
from tests.small import small_config
from tests.test_backbones import make_dinov2, make_open_clip, noise, relative_error, small_dinov2


def small(name: str = "test_resnet", **values: Any) -> Timm:
    return Timm(kind="timm", name=name, image_size=values.pop("image_size", 32), **values)


def saved(folder: Path, name: str = "test_resnet", **arguments: Any) -> Path:
    """A random model in a folder as timm writes it for the Hub."""
    torch.manual_seed(7)
    save_for_hf(timm.create_model(name, num_classes=5, **arguments), folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("timm") / "model")


# ---------------------------------------------------------------- timm
@torch.no_grad()
def test_the_embedding_is_timms_pooled_features_with_weights_drawn_from_the_seed() -> None:
    backbone, images = load_backbone(small(seed=3)), noise(2, 32)
    torch.manual_seed(3)
    library = timm.create_model("test_resnet", num_classes=0).eval()
    assert torch.equal(backbone.embed(images), library(images))
    assert backbone.embed(images).shape == (2, backbone.embed_dim)
    assert backbone.weights_hash() != load_backbone(small(seed=4)).weights_hash()


def test_loading_leaves_torchs_random_state_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_backbone(small())
    assert torch.equal(torch.rand(3), expected)


def test_a_1_bit_image_is_resized_smoothly_and_without_chance() -> None:
    pixels = np.random.default_rng(0).random((64, 64)) > 0.5
    backbone = load_backbone(small())
    image = backbone.transform(Image.fromarray(pixels))
    assert image.shape == (3, 32, 32) and len(image.unique()) > 100
    assert torch.equal(image, backbone.transform(Image.fromarray(pixels).convert("RGB")))


def test_an_image_size_is_part_of_the_transforms_identity() -> None:
    small_one, large_one = (load_backbone(small(image_size=size)) for size in (32, 64))
    assert small_one.transform_id() != large_one.transform_id()
    assert load_backbone(Timm(kind="timm", name="test_resnet")).image_size == 160


@torch.no_grad()
def test_a_transformers_positions_are_made_to_fit_the_image_size() -> None:
    backbone = load_backbone(small("test_vit", image_size=64))
    assert backbone.transform(Image.new("RGB", (80, 50))).shape == (3, 64, 64)
    assert backbone.embed(noise(2, 64)).shape == (2, backbone.embed_dim)


@torch.no_grad()
def test_a_folder_that_timm_wrote_gives_its_weights_and_its_files(local: Path) -> None:
    backbone, images = load_backbone(small(f"local-dir:{local}")), noise(2, 32)
    torch.manual_seed(7)
    library = timm.create_model("test_resnet", num_classes=5).eval()
    library.reset_classifier(0)
    assert torch.equal(backbone.embed(images), library(images))
    assert weights_files(small(f"local-dir:{local}")) == [local / "config.json", local / "model.safetensors"]
    assert weights_files(small()) == []


def test_two_ways_of_pooling_are_two_architectures(tmp_path: Path) -> None:
    folders = [saved(tmp_path / pool, "test_vit", global_pool=pool, fc_norm=False) for pool in ("token", "avg")]
    one, other = (repr(load_backbone(small(f"local-dir:{folder}", image_size=160))) for folder in folders)
    assert one != other


def folder_without(local: Path, tmp_path: Path, file: str) -> str:
    shutil.copytree(local, tmp_path / "copy")
    (tmp_path / "copy" / file).unlink()
    return f"local-dir:{tmp_path / 'copy'}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _, __: small("resnet18.a1_in1k"), "names weights, and backbone.pretrained is false"),
        (lambda _, __: small("resnt18"), "no architecture of timm; did you mean resnet18"),
        (lambda _, __: small("resnet18.nothing"), "resnet18 has no weights nothing; it has: a1_in1k"),
        (lambda _, __: small("hf-hub:a/b", pretrained=True), "brings its own weights: remove backbone.pretrained"),
        (lambda local, _: small(str(local)), "is a folder: write local-dir:"),
        (lambda _, __: small("local-dir:/no/such/folder"), "does not exist"),
        (lambda local, path: small(folder_without(local, path, "config.json")), "has no config.json"),
        (lambda local, path: small(folder_without(local, path, "model.safetensors")), "has no model.safetensors"),
        (lambda _, __: small("test_vit", image_size=1), "images of 1 × 1|to read 1 × 1"),
    ],
)
def test_a_name_that_leads_nowhere_says_what_to_write(
    make: Callable[[Path, Path], Timm], message: str, local: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(make(local, tmp_path))


def test_weights_of_another_architecture_are_refused(local: Path, tmp_path: Path) -> None:
    shutil.copytree(local, tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architecture": "test_resnet_x"}))
    with pytest.raises(UserError, match="damaged or of another architecture"):
        load_backbone(small(f"local-dir:{tmp_path / 'copy'}"))


def test_it_cannot_be_cut_and_has_no_patch_tokens() -> None:
    backbone = load_backbone(small())
    with pytest.raises(UserError, match="cannot be cut"):
        backbone.make_tail(1)
    with pytest.raises(UserError, match="no patch tokens"):
        backbone.patches(noise(1, 32))


def test_a_model_on_the_hub_is_fetched_once_and_needs_no_network_then(
    local: Path, table: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(local, tmp_path / "hub" / "models" / "owner" / "net")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    backbone = {"kind": "timm", "name": "hf-hub:owner/net", "image_size": 32}
    config = small_config(table, clip, tmp_path / "features")
    config = Config.model_validate(config.model_dump() | {"backbone": backbone})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFetched, match="The weights of hf-hub:owner/net: not all of it is in the cache"):
        load_backbone(config.backbone)
    assert weights_signature(config.backbone) is None
    with fake_hub(tmp_path / "hub") as hub:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        fetch.run([config])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    loaded = load_backbone(config.backbone)
    assert loaded.weights_hash() == load_backbone(small(f"local-dir:{local}")).weights_hash()
    assert {path.name for path in weights_files(config.backbone)} >= {"config.json", "model.safetensors"}
    assert all(COMMIT in str(path) for path in weights_files(config.backbone))
    assert weights_signature(config.backbone) is not None


# ---------------------------------------------------------------- DINOv2's mean patch token
@pytest.mark.parametrize("kind", ["plain", "SwiGLU", "registers"])
@torch.no_grad()
def test_cls_mean_is_the_class_token_and_the_mean_of_the_patch_tokens_at_every_cut(kind: str) -> None:
    plain, images = make_dinov2(small_dinov2(kind)), noise(3, 28)
    backbone = type(plain)(plain.model, plain.processor, "both", "cls_mean")
    expected = torch.cat([plain.embed(images), plain.patches(images).mean(dim=1)], dim=1)
    assert torch.equal(backbone.embed(images), expected)
    assert backbone.embed_dim == expected.shape[1] == 2 * plain.embed_dim and backbone.width == plain.width
    for cut in range(backbone.n_blocks + 1):
        assert relative_error(backbone.make_tail(cut)(backbone.trunk(images, cut)), expected) < 1e-5


def test_the_poolings_are_told_apart_and_the_first_one_is_described_as_before(assets: Assets) -> None:
    cls, both = (
        load_backbone(Dinov2(kind="dinov2", name=str(assets.dinov2), pooling=pooling)) for pooling in ("cls", "cls_mean")
    )
    assert repr(cls) != repr(both) and "pooling" not in repr(cls)
    assert cls.weights_hash() == both.weights_hash()


# ---------------------------------------------------------------- several as one
@pytest.fixture(scope="module")
def several(assets: Assets) -> Concat:
    dino = Dinov2(kind="dinov2", name=str(assets.dinov2), pooling="cls_mean")
    clip = OpenClip(name=f"local-dir:{assets.clip}")
    return Concat(kind="concat", parts=(clip, dino, small(), Pixels(kind="pixels", size=2)))


@torch.no_grad()
def test_a_concatenation_is_of_its_parts_embeddings_each_of_length_1(several: Concat) -> None:
    whole, parts = load_backbone(several), [load_backbone(part) for part in several.parts]
    images = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (70, 90, 3), "uint8")) for i in range(2)]
    embedded = whole.embed(torch.stack([whole.transform(image) for image in images]))
    expected = [F.normalize(part.embed(torch.stack([part.transform(i) for i in images])), dim=1) for part in parts]
    assert torch.equal(embedded, torch.cat(expected, dim=1))
    assert embedded.shape == (2, whole.embed_dim)
    assert embedded.square().sum(dim=1).tolist() == pytest.approx([4, 4], rel=1e-5)


def test_a_concatenations_identity_is_that_of_all_its_parts(several: Concat) -> None:
    whole = load_backbone(several)
    for number, other in ((2, small(seed=9)), (3, Pixels(kind="pixels", size=3)), (2, small(image_size=64))):
        parts = tuple(other if i == number else part for i, part in enumerate(several.parts))
        changed = load_backbone(Concat(kind="concat", parts=parts))
        assert (changed.weights_hash(), changed.transform_id()) != (whole.weights_hash(), whole.transform_id())
    reversed_parts = Concat(kind="concat", parts=several.parts[::-1])
    assert weights_signature(reversed_parts) != weights_signature(several)


def test_a_concatenations_files_and_name_are_its_parts(several: Concat, assets: Assets) -> None:
    assert {path.parent for path in weights_files(several)} == {assets.clip, assets.dinov2}
    assert several.display_name == f"local-dir:{assets.clip} + {assets.dinov2} + test_resnet + pixels"


def test_a_concatenation_with_a_part_that_is_not_here_is_not_here(several: Concat) -> None:
    missing = Dinov2(kind="dinov2", name="owner/nowhere")
    assert weights_signature(Concat(kind="concat", parts=(*several.parts, missing))) is None


def test_its_features_are_stored_and_known_to_a_plan(several: Concat, table: Path, clip: Path, tmp_path: Path) -> None:
    config = small_config(table, clip, tmp_path)
    config = Config.model_validate(config.model_dump() | {"backbone": several.model_dump()})
    store = extract.ensure(config)
    assert store.shape == (load_backbone(several).embed_dim,)
    assert known_feature_key(config) == store.key


def test_local_parts_of_a_yaml_become_absolute_and_its_trials_are_named_by_them(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(local.parent)
    (tmp_path / "both.yaml").write_text(
        "task: beetles\nbackbone:\n  kind: concat\n  parts: [{kind: timm, name: local-dir:model}, {kind: pixels, size: 2}]\n"
    )
    (trial,) = load_experiment(tmp_path / "both.yaml").trials
    assert isinstance(trial.config.backbone, Concat)
    assert trial.config.backbone.display_name == f"local-dir:{local} + pixels"
    (other,) = load_experiment(tmp_path / "both.yaml", ["backbone.parts=[{kind: timm}, {kind: pixels}]"]).trials
    assert other.name.startswith("parts=resnet18xpixels")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{kind: timm, nmae: x}", r"`backbone.parts.0.nmae` does not exist, but `backbone.parts.0.name` does"),
        ("{kind: timm, image_size: a}", r"`backbone.parts.0.image_size`: Input should be a valid integer"),
        ("{name: x}", r"`backbone.parts.0.kind`: "),
        ("resnet18", r"`backbone.parts.0`: this is a block of keys: kind, views, taps, poolings, name"),
    ],
)
def test_what_is_wrong_with_a_part_is_named_by_its_number(part: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text("task: beetles\nbackbone: {kind: concat}\n")
    with pytest.raises(UserError, match=message):
        load_experiment(tmp_path / "both.yaml", [f"backbone.parts=[{part}, {{kind: pixels}}]"])


# ---------------------------------------------------------------- trainable copies
def networks(assets: Assets) -> list[tuple[BackboneConfig, int]]:
    dino = Dinov2(kind="dinov2", name=str(assets.dinov2), pooling="cls_mean")
    return [(small(), 32), (OpenClip(name=f"local-dir:{assets.clip}"), 64), (dino, 56)]


@pytest.mark.parametrize("number", range(3), ids=["timm", "open_clip", "dinov2"])
def test_a_network_starts_as_its_backbone_learns_and_leaves_that_as_it_was(number: int, assets: Assets) -> None:
    config, side = networks(assets)[number]
    backbone, images = load_backbone(config), noise(4, side)
    before, network = backbone.weights_hash(), backbone.network()
    with torch.no_grad():
        assert relative_error(network.eval()(images), backbone.embed(images)) < 1e-5
    network.train()(images).square().mean().backward()
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in learning)
    torch.optim.SGD(learning, lr=0.1).step()
    assert not torch.equal(network.eval()(images), backbone.embed(images))
    assert backbone.weights_hash() == before and not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("kind", ["plain", "registers"])
@torch.no_grad()
def test_dinov2s_positions_are_resized_once_and_not_in_every_step(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made for 28 × 28 pixels, used at 42 × 42: 4 × 4 positions become 6 × 6."""
    backbone, images = make_dinov2(small_dinov2(kind), side=42), noise(3, 42)
    expected, network = backbone.embed(images), backbone.network().eval()
    monkeypatch.setattr("torch.nn.functional.interpolate", None)
    assert relative_error(network(images), expected) < 1e-5
    positions = network.backbone.get_submodule("model.embeddings").position_embeddings
    assert isinstance(positions, nn.Parameter) and positions.requires_grad and positions.shape == (1, 37, 32)


def test_what_the_embedding_does_not_depend_on_is_not_trained(assets: Assets) -> None:
    network = load_backbone(networks(assets)[2][0]).network()
    fixed = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert fixed == ["backbone.model.embeddings.mask_token"]
    assert make_open_clip(attentional_pool=True, attn_pooler_queries=4).network() is not None


def statistics(network: nn.Module) -> list[Tensor]:
    return [buffer.clone() for name, buffer in network.named_buffers() if name.endswith("running_mean")]


def test_batch_norm_takes_the_batchs_statistics_while_it_trains_and_the_running_ones_else() -> None:
    network, images = load_backbone(small()).network(), noise(6, 32)
    before = statistics(network)
    with torch.no_grad():
        nn.Sequential(network).train()(images)
        after = statistics(network)
        assert not all(map(torch.equal, before, after))
        nn.Sequential(network).eval()(images)
        assert all(map(torch.equal, after, statistics(network)))
        assert (
            torch.equal(network(images[:1]), network(images)[:1])
            or relative_error(network(images[:1]), network(images)[:1]) < 1e-5
        )


def test_a_batch_of_one_image_is_normalised_by_the_running_statistics_and_does_not_change_them() -> None:
    network, image = load_backbone(small()).network(), noise(1, 32)
    before = statistics(network.train())
    with torch.no_grad():
        alone = network(image)
        assert all(map(torch.equal, before, statistics(network))) and network.backbone.get_submodule("model").training
        assert torch.equal(alone, network.eval()(image))
        assert not torch.equal(network.train()(noise(2, 32))[:1], network.eval()(noise(2, 32))[:1])


@pytest.mark.parametrize("parts", [(), (Pixels(kind="pixels", size=2),)], ids=["pixels", "concat"])
def test_what_has_no_network_says_so(parts: tuple[Pixels, ...]) -> None:
    pixels = Pixels(kind="pixels", size=2)
    backbone: Backbone = load_backbone(Concat(kind="concat", parts=(pixels, *parts)) if parts else pixels)
    with pytest.raises(UserError, match=f"use {'them' if parts else 'it'} frozen"):
        backbone.network()
