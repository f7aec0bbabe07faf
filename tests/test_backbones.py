"""Backbones: what they give equals what their libraries give, cut anywhere, and weights go in and come out unchanged."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import RidgeCV
from torch import Tensor, nn
from transformers import (
    AutoModel,
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone, Tail
from pipeline.backbones.dinov2 import Dinov2Backbone
from pipeline.backbones.open_clip import OpenClipBackbone
from pipeline.backbones.tiny import write_tiny_dinov2, write_tiny_open_clip
from pipeline.config import backbone as config
from pipeline.errors import UserError

TEXT = {"context_length": 4, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}
VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 8, "patch_size": 8}
CUSTOM = {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
TOWERS: dict[str, dict[str, Any]] = {
    "class token": {},
    "average": {"pool_type": "avg"},
    "average, then norm": {"pool_type": "avg", "final_ln_after_pool": True},
    "class token, then norm": {"final_ln_after_pool": True},
    "layer scale": {"ls_init_value": 0.3},
    "no first norm, fixed positions": {"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
    "custom blocks": CUSTOM,
    "QuickGELU": {"quick_gelu": True},
}
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj")


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).norm() / expected.norm())


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random: biases and norms too, which libraries start at 0 and 1 and so hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        base = 1.0 if parameter.ndim == 1 and float(parameter.detach().mean()) > 0.1 else 0.0
        parameter.data = base + 0.3 * torch.randn(parameter.shape, generator=generator) / max(1, parameter.ndim - 1)
    return module


def make_open_clip(**vision: Any) -> OpenClipBackbone:
    quick = vision.pop("quick_gelu", False)
    model = open_clip.CLIP(32, {**VISION, **vision}, TEXT, quick_gelu=quick)
    preprocess = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    return OpenClipBackbone(randomised(model.visual), preprocess, "the test tower").freeze()


def make_dinov2(model: nn.Module, side: int = 28) -> Dinov2Backbone:
    crop = {"height": side, "width": side}
    processor = BitImageProcessor(size={"shortest_edge": side}, crop_size=crop, do_resize=True, do_center_crop=True)
    return Dinov2Backbone(randomised(model), processor, "the test model").freeze()


def small_dinov2(kind: str = "plain") -> nn.Module:
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    shape |= {"image_size": 28, "patch_size": 7}
    if kind == "registers":
        registers: nn.Module = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape, num_register_tokens=3))
        return registers
    plain: nn.Module = Dinov2Model(Dinov2Config(**shape, use_swiglu_ffn=kind == "SwiGLU"))
    return plain


def noise(n: int, side: int, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def write_local(folder: Path, model_cfg: dict[str, Any]) -> str:
    """A random model in the Hub's layout; returns its name for open_clip."""
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    save_file(open_clip.CLIP(**model_cfg).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_open_clip")
    write_tiny_open_clip(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny_dinov2")
    write_tiny_dinov2(folder)
    return folder


@pytest.fixture(scope="module")
def clip_backbone(tiny_clip: Path) -> Backbone:
    return load_backbone(config.OpenClip(name=f"local-dir:{tiny_clip}"))


@pytest.fixture(scope="module")
def dino_backbone(tiny_dino: Path) -> Backbone:
    return load_backbone(config.Dinov2(kind="dinov2", name=str(tiny_dino)))


# ---------------------------------------------------------------- the cut
@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_trunk_and_tail_give_open_clips_own_embedding_at_every_cut(kind: str) -> None:
    backbone, images = make_open_clip(**TOWERS[kind]), noise(3, 32)
    expected = backbone.visual(images)
    for cut in range(backbone.n_blocks + 1):
        tokens = backbone.trunk(images, cut)
        assert tokens.shape == (3, 17, backbone.width)
        assert relative_error(backbone.make_tail(cut)(tokens), expected) < 1e-5


@pytest.mark.parametrize("kind", TOWERS)
@torch.no_grad()
def test_perturbed_tails_give_the_same_embedding_back_in_open_clip(kind: str) -> None:
    backbone, images = make_open_clip(**TOWERS[kind]), noise(3, 32)
    tail = backbone.make_tail(1)
    randomised(tail, seed=5)
    expected = tail(backbone.trunk(images, 1))
    assert relative_error(backbone.embed(images), expected) > 0.01
    state = {name.removeprefix("visual."): tensor for name, tensor in tail.to_native().items()}
    assert not backbone.visual.load_state_dict(state, strict=False).unexpected_keys
    assert relative_error(backbone.embed(images), expected) < 1e-5


@given(cut=st.integers(0, 3), kind=st.sampled_from(sorted(TOWERS)), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_weights_of_a_tail_go_into_the_tower_and_into_another_tail_bit_for_bit(cut: int, kind: str, seed: int) -> None:
    backbone = make_open_clip(**TOWERS[kind])
    source = backbone.make_tail(cut)
    randomised(source, seed)
    native = source.to_native()
    names = {f"visual.{name}" for name in backbone.visual.state_dict()}
    assert set(native) <= names
    backbone.visual.load_state_dict({name.removeprefix("visual."): tensor for name, tensor in native.items()}, strict=False)
    other = backbone.make_tail(cut)
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), other.state_dict().values(), strict=True))
    assert all(torch.equal(tensor, other.to_native()[name]) for name, tensor in native.items())


@pytest.mark.parametrize("kind", ["plain", "SwiGLU", "registers"])
@torch.no_grad()
def test_trunk_and_tail_give_transformers_own_embedding_at_every_cut(kind: str) -> None:
    backbone, images = make_dinov2(small_dinov2(kind)), noise(3, 28)
    expected = backbone.model(images)
    assert torch.equal(backbone.embed(images), expected.pooler_output)
    assert torch.equal(backbone.patches(images), expected.last_hidden_state[:, -16:])
    for cut in range(backbone.n_blocks + 1):
        assert relative_error(backbone.make_tail(cut)(backbone.trunk(images, cut)), expected.pooler_output) < 1e-5


@pytest.mark.parametrize("kind", ["plain", "SwiGLU", "registers"])
@torch.no_grad()
def test_perturbed_tails_give_the_same_embedding_back_in_transformers(kind: str) -> None:
    backbone, images = make_dinov2(small_dinov2(kind)), noise(3, 28)
    tail = backbone.make_tail(1)
    randomised(tail, seed=5)
    expected = tail(backbone.trunk(images, 1))
    assert relative_error(backbone.embed(images), expected) > 0.01
    assert not backbone.model.load_state_dict(tail.to_native(), strict=False).unexpected_keys
    assert all(torch.equal(a, b) for a, b in zip(tail.parameters(), backbone.make_tail(1).parameters(), strict=True))
    assert relative_error(backbone.embed(images), expected) < 1e-5


@pytest.mark.parametrize("cut", [-1, 4])
def test_a_cut_outside_the_blocks_is_refused(cut: int) -> None:
    backbone = make_open_clip()
    for call in (lambda: backbone.trunk(noise(1, 32), cut), lambda: backbone.make_tail(cut)):
        with pytest.raises(UserError, match="has 3 blocks"):
            call()


def test_the_last_blocks_are_counted_from_the_end() -> None:
    backbone = make_open_clip()
    assert [backbone.cut_before(n) for n in (0, 1, 3)] == [3, 2, 0]
    with pytest.raises(UserError, match=r"model\.encoder\.blocks"):
        backbone.cut_before(4)


# ---------------------------------------------------------------- the tail as a trainable module
@pytest.mark.parametrize("library", ["open_clip", "dinov2"])
def test_a_tail_is_an_independent_trainable_copy(library: str) -> None:
    backbone: Backbone = make_open_clip() if library == "open_clip" else make_dinov2(small_dinov2())
    images, before = noise(2, backbone.image_size), backbone.weights_hash()
    tail = backbone.make_tail(1)
    assert [name for name, _ in tail.named_parameters()] == list(tail.state_dict())
    assert all(parameter.requires_grad for parameter in tail.parameters())
    optimiser = torch.optim.SGD(tail.parameters(), 0.1)
    tail(backbone.trunk(images, 1)).square().sum().backward()
    assert not [name for name, parameter in tail.named_parameters() if parameter.grad is None]
    optimiser.step()
    assert backbone.weights_hash() == before


@pytest.mark.parametrize("library", ["open_clip", "dinov2", "SwiGLU"])
@pytest.mark.parametrize("target", TARGETS)
def test_an_adapter_on_each_projection_learns_and_changes_the_output(library: str, target: str) -> None:
    backbone: Backbone = make_open_clip() if library == "open_clip" else make_dinov2(small_dinov2(library))
    tokens, tail = backbone.trunk(noise(2, backbone.image_size), 1), backbone.make_tail(1)
    tail, tokens = tail.double(), tokens.double()  # adapted keys and values are computed, plain ones are not
    before = tail(tokens)
    modules = tail.module_names([target])
    adapted = get_peft_model(tail, LoraConfig(r=2, target_modules=modules, use_dora=True)).double()
    assert relative_error(adapted(tokens), before) < 1e-6
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len([name for name in trained if "lora_B" in name]) == 2 * len(modules)  # two blocks
    adapted(tokens).square().sum().backward()
    assert not [name for name, parameter in trained.items() if parameter.grad is None]
    torch.optim.SGD(trained.values(), 0.1).step()
    assert not torch.allclose(adapted(tokens), before)


def test_a_projection_that_does_not_exist_is_refused_with_the_valid_names() -> None:
    with pytest.raises(UserError, match="qkv: choose from q_proj"):
        make_open_clip().make_tail(0).module_names(["q_proj", "qkv"])


# ---------------------------------------------------------------- embedding and patch tokens
@torch.no_grad()
def test_embedding_and_patch_tokens_are_open_clips_own(tiny_clip: Path, clip_backbone: Backbone) -> None:
    model = open_clip.create_model(f"local-dir:{tiny_clip}").eval()
    images = noise(4, 64)
    assert torch.equal(clip_backbone.embed(images), model.encode_image(images))
    model.visual.output_tokens = True
    assert relative_error(clip_backbone.patches(images), model.visual(images)[1]) < 1e-6
    assert clip_backbone.patches(images).shape == (4, 16, clip_backbone.width)
    assert clip_backbone.grid == (4, 4)


@pytest.mark.parametrize(
    "vision",
    [
        {"attentional_pool": True, "attn_pooler_queries": 4, "output_tokens": True},
        {"attentional_pool": "parallel", "attn_pooler_queries": 4},
        {"layers": [1, 1, 1, 1], "image_size": 64},
        {"timm_model_name": "resnet10t", "image_size": 64},
        {"timm_model_name": "test_vit", "image_size": 160, "timm_pool": "token"},
    ],
    ids=["attentional pool", "contrastive pool", "ResNet", "timm ResNet", "timm ViT"],
)
@torch.no_grad()
def test_towers_that_cannot_be_cut_embed_and_say_so(vision: dict[str, Any], tmp_path: Path) -> None:
    name = write_local(tmp_path / "model", {"embed_dim": 32, "vision_cfg": {**VISION, **vision}, "text_cfg": TEXT})
    backbone = load_backbone(config.OpenClip(name=name))
    images = torch.stack([backbone.transform(Image.new("RGB", (50, 40), colour)) for colour in ("red", "blue")])
    embedded = backbone.embed(images)
    assert embedded.shape == (2, 32) == (2, backbone.embed_dim)
    library = open_clip.create_model(name).eval().encode_image(images)
    library = library[0] if isinstance(library, tuple) else library
    # Not to the bit: another CPU multiplies the two in another order.
    torch.testing.assert_close(embedded, library.reshape(2, 32), rtol=1e-5, atol=1e-6)
    assert (backbone.n_blocks, backbone.grid) == (0, (0, 0))
    for call in (lambda: backbone.trunk(images, 0), lambda: backbone.make_tail(0), lambda: backbone.cut_before(1)):
        with pytest.raises(UserError, match="cannot be cut"):
            call()
    with pytest.raises(UserError, match="no patch tokens"):
        backbone.patches(images)


@torch.no_grad()
def test_a_tower_that_does_not_pool_gives_tokens_but_no_embedding() -> None:
    backbone, images = make_open_clip(pool_type="none"), noise(2, 32)
    assert backbone.patches(images).shape == (2, 16, 32)
    norm = backbone.visual.get_submodule("ln_post")
    assert torch.equal(norm(backbone.trunk(images, 3))[:, 1:], backbone.patches(images))
    with pytest.raises(UserError, match="no pooled embedding"):
        backbone.embed(images)
    with pytest.raises(UserError, match="no pooled embedding"):
        backbone.make_tail(1)


def test_a_backbone_is_frozen_and_stays_in_eval_mode(clip_backbone: Backbone, dino_backbone: Backbone) -> None:
    for backbone in (clip_backbone, dino_backbone):
        wrapper = nn.Sequential(backbone).train()
        assert not any(module.training for module in backbone.modules())
        assert wrapper.training
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


# ---------------------------------------------------------------- transforms
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"])
def test_images_of_every_mode_become_network_input(mode: str, clip_backbone: Backbone, dino_backbone: Backbone) -> None:
    image = Image.new(mode, (70, 90), 0)
    pixels = load_backbone(config.Pixels(kind="pixels", size=2))
    for backbone in (clip_backbone, dino_backbone, pixels):
        tensor = backbone.transform(image)
        assert tensor.shape == (3, backbone.image_size, backbone.image_size)
        assert tensor.dtype == torch.float32


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    pixels = load_backbone(config.Pixels(kind="pixels", size=1))
    values = [float(pixels.transform(Image.fromarray(np.full((4, 4), v, np.uint16))).mean()) for v in (0, 30000, 65535)]
    assert values == pytest.approx([0, 30000 / 65535, 1], abs=0.003)


def test_masks_are_resized_smoothly(clip_backbone: Backbone) -> None:
    mask = Image.fromarray(np.indices((200, 200)).sum(0) % 7 < 3)
    assert mask.mode == "1"
    assert len(set(clip_backbone.transform(mask).flatten().tolist())) > 20


def test_the_transform_equals_open_clips_own(tiny_clip: Path, clip_backbone: Backbone) -> None:
    _, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tiny_clip}")
    image = photograph(np.random.default_rng(0))[0]
    assert torch.equal(clip_backbone.transform(image), preprocess(image))


def test_transform_ids_are_stable_text_that_tells_transforms_apart(
    tiny_clip: Path, tiny_dino: Path, tmp_path: Path, clip_backbone: Backbone, dino_backbone: Backbone
) -> None:
    again = load_backbone(config.OpenClip(name=f"local-dir:{tiny_clip}")).transform_id()
    assert again == clip_backbone.transform_id()
    assert "0x" not in again + dino_backbone.transform_id()
    for source, file, key, value in (
        (tiny_clip, "open_clip_config.json", "preprocess_cfg", {"resize_mode": "longest"}),
        (tiny_dino, "preprocessor_config.json", "image_mean", [0.1, 0.1, 0.1]),
    ):
        other = tmp_path / source.name
        other.mkdir()
        for path in source.iterdir():
            (other / path.name).write_bytes(path.read_bytes())
        settings_file = json.loads((other / file).read_text())
        (other / file).write_text(json.dumps(settings_file | {key: value}))
        name = (
            config.OpenClip(name=f"local-dir:{other}") if source is tiny_clip else config.Dinov2(kind="dinov2", name=str(other))
        )
        before = clip_backbone if source is tiny_clip else dino_backbone
        assert load_backbone(name).transform_id() != before.transform_id()


@given(size=st.integers(1, 5), width=st.integers(1, 30), height=st.integers(1, 30), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_pixels_are_the_means_of_their_cells(size: int, width: int, height: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (height * size, width * size, 3), np.uint8)
    backbone = load_backbone(config.Pixels(kind="pixels", size=size))
    embedded = backbone.embed(backbone.transform(Image.fromarray(array)).unsqueeze(0))
    cells = array.reshape(size, height, size, width, 3).mean(axis=(1, 3)) / 255
    assert embedded.shape == (1, backbone.embed_dim)
    assert embedded.numpy()[0] == pytest.approx(cells.transpose(2, 0, 1).ravel(), abs=1e-5)


# ---------------------------------------------------------------- identity of weights
def test_weights_hash_sees_every_change_and_not_the_order() -> None:
    backbone = make_open_clip()
    before = backbone.weights_hash()
    assert make_open_clip().weights_hash() == before
    changed = make_open_clip()
    changed.visual.get_parameter("conv1.weight").data[0, 0, 0, 0] += 1e-6
    assert changed.weights_hash() != before
    assert make_open_clip().bfloat16().weights_hash() != before
    modules = backbone.visual._modules
    modules["conv1"] = modules.pop("conv1")
    assert list(backbone.state_dict()) != list(make_open_clip().state_dict())
    assert backbone.weights_hash() == before


def test_loading_leaves_torchs_random_state_as_it_was(tiny_clip: Path, tiny_dino: Path) -> None:
    for name in (
        config.OpenClip(name=f"local-dir:{tiny_clip}"),
        config.OpenClip(name="RN50"),
        config.Dinov2(kind="dinov2", name=str(tiny_dino)),
        config.Pixels(kind="pixels"),
    ):
        torch.manual_seed(11)
        expected = torch.rand(3)
        torch.manual_seed(11)
        load_backbone(name)
        assert torch.equal(torch.rand(3), expected)


def test_random_weights_come_from_the_seed() -> None:
    hashes = [load_backbone(config.OpenClip(name="ViT-M-32-alt", seed=seed)).weights_hash() for seed in (0, 0, 1)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_text_tower_is_let_go(tiny_clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[nn.Module]] = []
    create = open_clip.create_model_from_pretrained

    def recorded(*arguments: Any, **options: Any) -> Any:
        model, preprocess = create(*arguments, **options)
        made.append(weakref.ref(model))
        return model, preprocess

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", recorded)
    backbone = load_backbone(config.OpenClip(name=f"local-dir:{tiny_clip}"))
    gc.collect()
    assert backbone.n_blocks == 8
    assert [reference() for reference in made] == [None]


# ---------------------------------------------------------------- names that do not lead to weights
@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-L14", None, "ViT-L-14"),
        ("ViT-B-32", "openia", "openai"),
        ("local-dir:/no/such/folder", None, "does not exist"),
        ("local-dir:/no/such/folder", "openai", "remove backbone.pretrained"),
    ],
)
def test_a_wrong_open_clip_name_is_refused_with_the_remedy(name: str, pretrained: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_backbone(config.OpenClip(name=name, pretrained=pretrained))


@pytest.mark.parametrize("fault", ["no config", "bad config", "no weights", "truncated weights", "other weights"])
def test_a_damaged_open_clip_folder_is_refused(fault: str, tiny_clip: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    name = write_local(folder, {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT})
    described, weights = folder / "open_clip_config.json", folder / "open_clip_model.safetensors"
    if fault == "no config":
        described.unlink()
    elif fault == "bad config":
        described.write_text("{")
    elif fault == "no weights":
        weights.unlink()
    elif fault == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        weights.write_bytes((tiny_clip / weights.name).read_bytes())
    with pytest.raises(UserError, match=str(folder)):
        load_backbone(config.OpenClip(name=name))


@pytest.mark.parametrize("fault", ["no folder", "no weights", "no processor", "a tensor missing", "another model"])
def test_a_damaged_dinov2_folder_is_refused(fault: str, tiny_dino: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    if fault != "no folder":
        folder.mkdir()
        for path in tiny_dino.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    if fault == "no weights":
        (folder / "model.safetensors").unlink()
    elif fault == "no processor":
        (folder / "preprocessor_config.json").unlink()
    elif fault == "a tensor missing":
        tensors = load_file(folder / "model.safetensors")
        del tensors["layernorm.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    elif fault == "another model":
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(UserError, match=str(folder)):
        load_backbone(config.Dinov2(kind="dinov2", name=str(folder)))


# ---------------------------------------------------------------- tiny models
def test_tiny_models_come_from_their_seed(tiny_clip: Path, tiny_dino: Path, tmp_path: Path) -> None:
    for folder, write in ((tiny_clip, write_tiny_open_clip), (tiny_dino, write_tiny_dinov2)):
        torch.manual_seed(3)
        expected = torch.rand(3)
        torch.manual_seed(3)
        write(tmp_path / folder.name, 0)
        assert torch.equal(torch.rand(3), expected)
        files = sorted(path.name for path in folder.iterdir())
        assert files == sorted(path.name for path in (tmp_path / folder.name).iterdir())
        assert all((folder / name).read_bytes() == (tmp_path / folder.name / name).read_bytes() for name in files)
        write(tmp_path / "other", 1)
        weights = next(name for name in files if name.endswith(".safetensors"))
        assert (folder / weights).read_bytes() != (tmp_path / "other" / weights).read_bytes()


def test_tiny_models_have_the_hubs_layouts(
    tiny_clip: Path, tiny_dino: Path, clip_backbone: Backbone, dino_backbone: Backbone
) -> None:
    assert {path.name for path in tiny_clip.iterdir()} == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} == {path.name for path in tiny_dino.iterdir()}
    with safe_open(tiny_dino / "model.safetensors", "pt") as file:
        assert "encoder.layer.0.attention.attention.query.weight" in file.keys()  # noqa: SIM118
    assert isinstance(AutoModel.from_pretrained(tiny_dino), Dinov2Model)
    assert (clip_backbone.n_blocks, clip_backbone.width, clip_backbone.embed_dim, clip_backbone.image_size) == (8, 64, 64, 64)
    assert (dino_backbone.n_blocks, dino_backbone.width, dino_backbone.grid, dino_backbone.image_size) == (6, 64, (8, 8), 56)


def photograph(rng: np.random.Generator) -> tuple[Image.Image, list[float]]:
    """An ellipse on an uneven ground, and what it shows: red, green, blue, mean radius, log of length over width."""
    y, x = np.mgrid[:75, :90]
    slope = rng.normal(0, 8, 2)
    image = (215 + rng.normal(0, 12) + slope[0] * (x / 45 - 1) + slope[1] * (y / 38 - 1))[..., None] + rng.normal(0, 8, 3)
    colour, radius, elongation = rng.uniform(20, 190, 3), rng.uniform(9, 27), rng.uniform(0, np.log(3))
    angle = rng.uniform(-0.5, 0.5)
    u, v = x - 45 - rng.normal(0, 4), y - 38 - rng.normal(0, 3)
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    stretch = np.exp(elongation / 2)
    image[(along / stretch) ** 2 + (across * stretch) ** 2 < radius**2] = colour
    image += rng.normal(0, 5, image.shape)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8)), [*colour, radius, elongation]


def probe(features: Tensor, targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """R² of each target by ridge regression: three quarters of the rows train."""
    x = nn.functional.normalize(features, dim=-1).numpy().astype(np.float64)
    n = len(x) * 3 // 4
    predicted = RidgeCV(np.logspace(-4, 2, 13)).fit(x[:n], targets[:n]).predict(x[n:])
    residual, spread = targets[n:] - predicted, targets[n:] - targets[n:].mean(axis=0)
    return np.asarray(1 - (residual**2).sum(axis=0) / (spread**2).sum(axis=0))


@pytest.mark.jobs
@torch.no_grad()
def test_tiny_features_show_colour_size_and_shape(clip_backbone: Backbone, dino_backbone: Backbone) -> None:
    rng = np.random.default_rng(0)
    photographs, shown = zip(*(photograph(rng) for _ in range(1000)), strict=True)
    targets = np.array(shown)
    embedded = clip_backbone.embed(torch.stack([clip_backbone.transform(image) for image in photographs]))
    unit = nn.functional.normalize(embedded, dim=-1)
    assert (unit - unit.mean(dim=0)).norm(dim=-1).mean() > 0.4  # plain random weights: 0.14
    assert (probe(embedded, targets) > [0.75, 0.75, 0.75, 0.75, 0.45]).all()
    images = torch.stack([dino_backbone.transform(image) for image in photographs])
    patches = dino_backbone.patches(images).transpose(1, 2).reshape(len(images), 64, 8, 8)
    assert (probe(nn.functional.adaptive_avg_pool2d(patches, 2).flatten(1), targets) > [0.85, 0.85, 0.85, 0.85, 0.55]).all()
    assert (probe(dino_backbone.embed(images), targets) > [0.8, 0.8, 0.8, 0.75, 0.4]).all()


@torch.no_grad()
def test_tiny_features_survive_bf16(clip_backbone: Backbone) -> None:
    rng = np.random.default_rng(0)
    images = torch.stack([clip_backbone.transform(photograph(rng)[0]) for _ in range(100)])
    for cut in (2, 6):
        tokens = clip_backbone.trunk(images, cut)
        stored = clip_backbone.make_tail(cut)(tokens.bfloat16().float())
        assert relative_error(stored, clip_backbone.embed(images)) < 0.04


# ---------------------------------------------------------------- the real architecture
@pytest.fixture(scope="module")
def bioclip2(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """BioCLIP-2's architecture and file layout with random weights (its text tower all zeros: no test reads it)."""
    folder = tmp_path_factory.mktemp("bioclip2")
    model_cfg = open_clip.get_model_config("ViT-L-14")
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "interpolation": "bicubic"}
    described = {"model_cfg": model_cfg, "preprocess_cfg": preprocess | {"resize_mode": "shortest"}}
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    with torch.device("meta"):
        shapes = open_clip.CLIP(**model_cfg).state_dict()
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.zeros(tensor.shape) for name, tensor in shapes.items()}
    for name, tensor in state.items():
        if name.startswith("visual."):
            tensor.normal_(std=0.03, generator=generator)
            tensor += 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
    save_file(state, folder / "open_clip_model.safetensors")
    del state
    backbone = load_backbone(config.OpenClip(name=f"local-dir:{folder}"))
    (folder / "open_clip_model.safetensors").unlink()
    return backbone


@torch.no_grad()
@pytest.mark.jobs
@pytest.mark.long
def test_the_real_bioclip2_architecture_embeds_and_cuts(bioclip2: Backbone) -> None:
    shape = (bioclip2.n_blocks, bioclip2.width, bioclip2.embed_dim, bioclip2.grid, bioclip2.image_size)
    assert shape == (24, 1024, 768, (16, 16), 224)
    rng = np.random.default_rng(0)
    images = torch.stack([bioclip2.transform(photograph(rng)[0]) for _ in range(2)])
    expected = bioclip2.embed(images)
    assert expected.shape == (2, 768)
    for cut in (22, 18):
        tokens = bioclip2.trunk(images, cut)
        assert tokens.shape == (2, 257, 1024)
        tail: Tail = bioclip2.make_tail(cut)
        assert len(tail.blocks) == 24 - cut
        assert relative_error(tail(tokens), expected) < 1e-5
