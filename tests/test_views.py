"""Views of images: which crops a backbone sees, in which order, turned, masked and augmented; taps and poolings; and what becomes
of them in a store, in training and in predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone
from pipeline.backbones.pooled import PooledBackbone, gem
from pipeline.backbones.timm_models import TimmBackbone
from pipeline.backbones.viewed import BOXES, TURNS
from pipeline.config.augment import ImageAugment
from pipeline.config.backbone import Backbone as Block
from pipeline.config.fuse import Fuse
from pipeline.config.trial import Config
from pipeline.config.views import Views
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.features.hashes import known_feature_key
from pipeline.models.saved import load_facts, load_model, make_model
from pipeline.stages import evaluate, extract, train
from pipeline.stages.inputs import load_inputs, make_facts
from pipeline.stages.predict import Origin, predict_files, trained_config
from pipeline.training.augmentation import draw_poses
from tests.small import image_files, small_config

HALVES = {"crops": ["left", "right"]}


def block(**values: Any) -> Any:
    return Block.parse({"kind": "timm", "name": "test_vit", **values})


def seen(views: dict[str, Any], **values: Any) -> Backbone:
    return load_backbone(block(views=views, **values))


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (12, 20, 3), np.uint8))
    return small.resize((400, 240), Image.Resampling.BICUBIC)


def as_read(image: Image.Image, side: int, backbone: Backbone) -> Tensor:
    """What the network reads of a crop, squeezed: by mean and sd of timm's settings."""
    mean, sd = (torch.tensor(backbone.seen_by.model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    pixels = torch.from_numpy(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC), np.float32)).permute(2, 0, 1) / 255
    return (pixels - mean) / sd


# ---------------------------------------------------------------- from an image to views
def test_views_are_crops_and_tiles_in_the_order_of_their_names(photograph: Image.Image) -> None:
    views = Views(crops=("left", "whole"), tiles=(2, 3), poses=("hflip",))
    backbone = seen(views.model_dump())
    side, given = backbone.image_size, backbone.transform(photograph)
    names = views.names()
    assert given.shape == (len(names), 3, side, side) and len(names) == views.n == 24
    assert names[:3] == ["left 0.0", "left 0.1", "left 0.2"] and names[6] == "whole 0.0" and names[-1] == "whole 1.2 hflip"
    width, height = photograph.size
    for name, view in zip(names, given, strict=True):
        crop, tile, *turned = name.split(" ")
        left, top, right, bottom = BOXES[crop]  # type: ignore[index]
        image = photograph.crop((int(left * width), int(top * height), int(right * width), int(bottom * height)))
        image = image.transpose(TURNS["hflip"]) if turned else image
        row, column = map(int, tile.split("."))
        w, h = image.width / 3, image.height / 2
        box = tuple(map(round, (column * w, row * h, (column + 1) * w, (row + 1) * h)))
        torch.testing.assert_close(view, as_read(image.crop(box), side, backbone), atol=2e-5, rtol=0)


def test_every_crop_and_every_turn_shows_what_its_name_says() -> None:
    """Of an image with another colour in each corner."""
    corners = np.zeros((64, 64, 3), np.uint8)
    corners[:32, :32], corners[:32, 32:], corners[32:, :32], corners[32:, 32:] = 40, 90, 140, 190
    image = Image.fromarray(corners)
    backbone = seen({"crops": [*BOXES], "poses": [*TURNS]}, image_size=32)
    levels = (backbone.transform(image)[:, 0] - backbone._black[0]) / (backbone._white - backbone._black)[0] * 255
    found = {
        name: view[[4, 4, -5, -5], [4, -5, 4, -5]].round().int().tolist()
        for name, view in zip(Views(crops=tuple(BOXES), poses=tuple(TURNS)).names(), levels, strict=True)
    }
    assert found["whole"] == [40, 90, 140, 190] and found["left"] == [40, 40, 140, 140] and found["right"] == [90, 90, 190, 190]
    assert found["top"] == [40, 90, 40, 90] and found["bottom"] == [140, 190, 140, 190]
    assert found["whole hflip"] == [90, 40, 190, 140] and found["whole vflip"] == [140, 190, 40, 90]
    assert found["whole rot180"] == [190, 140, 90, 40] and found["whole rot90"] == [90, 190, 40, 140]
    assert found["whole rot270"] == [140, 40, 190, 90] and found["left hflip"] == [40, 40, 140, 140]


def test_nothing_is_cut_off_at_borders() -> None:
    """timm's own transform cuts a square out of the middle: a quadrat's grams are of the whole."""
    image = Image.new("RGB", (200, 100), "black")
    image.paste((255, 255, 255), (0, 0, 20, 100))
    plain, whole = load_backbone(block()), seen({"crops": ["whole"], "poses": ["vflip"]})
    assert plain.transform(image)[0].max() < 0 < whole.transform(image)[0, 0, :, 0].min()


def test_masks_are_painted_over_before_all_else(photograph: Image.Image) -> None:
    box = (0.5, 0.5, 0.75, 1.0)
    backbone = seen({**HALVES, "masks": [box]})
    stamped = photograph.copy()
    stamped.paste((255, 0, 255), (230, 150, 280, 230))
    one, other = backbone.transform(photograph), backbone.transform(stamped)
    assert (one - seen(HALVES).transform(photograph)).abs().max() > 0.05
    assert (one[1] - other[1]).abs().max() < 0.2 and (one - seen(HALVES).transform(stamped)).abs().max() > 0.5


def test_draws_are_augmented_each_by_itself_and_the_same_of_the_same_image(photograph: Image.Image) -> None:
    views = {**HALVES, "draws": 2, "augment": {"rotation": 30, "brightness": 0.5}}
    one, again = (seen(views).transform(photograph).unflatten(0, (3, 2)) for _ in range(2))
    assert torch.equal(one, again) and torch.equal(one[0], seen(HALVES).transform(photograph))
    different = {tuple(view.flatten()[:50].tolist()) for view in one.flatten(0, 1)}
    assert len(different) == 6
    other = photograph.copy()
    other.putpixel((0, 0), (1, 2, 3))
    assert not torch.allclose(seen(views).transform(other)[2:], one[1:].flatten(0, 1), atol=0.1)


@pytest.mark.parametrize(
    ("views", "said"),
    [
        ({"crops": ["left", "left"]}, "each once"),
        ({"draws": 2}, "draws and augment"),
        ({"augment": {"flip": True}}, "draws and augment"),
        ({"masks": [[0.5, 0, 0.4, 1]]}, "left, top, right, bottom"),
        ({"tiles": [0, 2]}, "greater than or equal to 1"),
    ],
)
def test_views_that_cannot_be_are_refused(views: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Views.model_validate(views)


# ---------------------------------------------------------------- what a backbone makes of views
def test_each_view_is_embedded_as_it_would_be_alone(photograph: Image.Image) -> None:
    backbone, plain = seen({**HALVES, "tiles": [1, 2]}), load_backbone(block())
    images = torch.stack(
        [backbone.transform(photograph), backbone.transform(photograph.transpose(Image.Transpose.FLIP_TOP_BOTTOM))]
    )
    embedded = backbone.embed(images)
    assert embedded.shape == (2, 4, plain.embed_dim)
    for i, j in np.ndindex(2, 4):
        torch.testing.assert_close(embedded[i, j], plain.embed(images[i, j : j + 1])[0], atol=1e-5, rtol=1e-4)


def test_views_of_several_sizes_are_embedded_each_at_its_own(photograph: Image.Image) -> None:
    views = {**HALVES, "sizes": [32, 64], "poses": ["hflip"]}
    backbone = seen(views)
    given = backbone.transform(photograph)
    assert given.shape == (2 * 2 * 3 * (32**2 + 64**2),)
    embedded = backbone.embed(given[None])[0]
    assert Views.model_validate(views).names()[:4] == ["left@32", "right@32", "left@64", "right@64"]
    for size, places in ((32, (0, 1, 4, 5)), (64, (2, 3, 6, 7))):
        one = seen(views | {"sizes": [size]}, image_size=None)
        alone = one.embed(one.transform(photograph)[None])[0]
        torch.testing.assert_close(embedded[list(places)], alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("encoder", ["patch_convs", "end_to_end"])
def test_what_is_no_embedding_is_not_of_several_sizes(encoder: str, photograph: Image.Image) -> None:
    backbone = seen({"sizes": [32, 64]})
    images = backbone.transform(photograph)[None]
    with pytest.raises(UserError, match="are not of one shape"):
        backbone.patches(images) if encoder == "patch_convs" else backbone.given(images)


def test_a_size_that_cannot_be_read_is_refused_in_words(clip: Path) -> None:
    with pytest.raises(UserError, match="name multiples of 16"):
        load_backbone(block(views={"sizes": [30, 60]}))
    with pytest.raises(UserError, match=r"reads images of \d+ pixels alone: set backbone.views.sizes to \[\]"):
        load_backbone(Block.parse({"kind": "open_clip", "name": f"local-dir:{clip}", "views": {"sizes": [3]}}))


@pytest.mark.parametrize("kind", ["timm", "dinov2", "poolings"])
def test_a_network_that_learns_has_positions_of_the_size_that_it_is_shown(
    kind: str, assets: Any, photograph: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resampled once, from those that came with it, and never again: the gradient of that is not deterministic on a GPU."""
    blocks: dict[str, dict[str, Any]] = {
        "timm": {"kind": "timm", "name": "test_vit"},
        "dinov2": {"kind": "dinov2", "name": str(assets.dinov2)},
        "poolings": {"kind": "dinov2", "name": str(assets.dinov2), "poolings": ["cls", "mean"]},
    }
    side = load_backbone(Block.parse(blocks[kind])).image_size
    backbone = load_backbone(Block.parse({**blocks[kind], "views": {**HALVES, "sizes": [2 * side]}}))
    views = backbone.transform(photograph)
    network = backbone.network().eval()
    wanted = backbone.embed(views[None])[0]

    def resample(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("resampled in a step")

    monkeypatch.setattr(torch.nn.functional, "interpolate", resample)
    torch.testing.assert_close(network(views), wanted, atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------- taps and poolings
def test_a_network_that_is_pooled_trains_in_earnest_and_its_statistics_move(photograph: Image.Image) -> None:
    backbone = load_backbone(block(name="test_resnet", poolings=["mean"]))
    network = backbone.network()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    assert norms and all(norm.training for norm in norms)
    network(torch.stack([backbone.transform(photograph.rotate(turn)) for turn in range(4)]))
    assert not any(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
    assert not any(norm.training for norm in (network.eval(), *norms)[1:])


def test_parts_of_a_concatenation_are_pooled_as_they_say(photograph: Image.Image) -> None:
    pooled = {"kind": "timm", "name": "test_vit", "poolings": ["cls", "mean"]}
    both = load_backbone(Block.parse({"kind": "concat", "parts": [pooled, {"kind": "timm", "name": "test_resnet"}]}))
    alone = load_backbone(Block.parse(pooled))
    said = both.embed(both.transform(photograph)[None])[0, : alone.embed_dim]
    wanted = torch.nn.functional.normalize(alone.embed(alone.transform(photograph)[None]), dim=1)[0]
    torch.testing.assert_close(said, wanted, atol=1e-5, rtol=1e-4)


def test_a_transformer_of_stages_has_taps(photograph: Image.Image) -> None:
    swin = timm.models.swin_transformer.SwinTransformer(
        img_size=64, patch_size=4, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(1, 1), num_classes=0
    ).eval()
    swin.pretrained_cfg = timm.models.vision_transformer.default_cfgs["vit_base_patch16_224"].default.to_dict() | {
        "input_size": (3, 64, 64)
    }
    pooled = PooledBackbone(TimmBackbone(swin, 64, "a small Swin"), (-1,), ("mean", "max"))
    assert pooled.embed(pooled.transform(photograph)[None]).shape == (1, 2 * 16)


def test_poolings_are_of_the_tokens_after_each_tap_without_class_token_and_registers(photograph: Image.Image) -> None:
    """DINOv3 has five tokens before the patches: all but the first of these would be taken for patches by `tokens[:, 1:]`."""
    torch.manual_seed(0)
    model = timm.models.eva.Eva(
        img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=2, num_reg_tokens=4, use_rot_pos_emb=True,
        use_abs_pos_emb=False, num_classes=0, rope_type="dinov3", norm_layer=torch.nn.LayerNorm, dynamic_img_size=True,
    ).eval()  # fmt: skip
    model.pretrained_cfg = timm.models.vision_transformer.default_cfgs["vit_base_patch16_224"].default.to_dict() | {
        "input_size": (3, 64, 64)
    }
    pooled = PooledBackbone(TimmBackbone(model, 64, "a small DINOv3"), (0, -1), ("cls", "mean", "max", "min", "gem"))
    images = pooled.transform(photograph)[None]
    hooked: list[Tensor] = []
    for layer in (model.blocks[0], model.blocks[2]):
        layer.register_forward_hook(lambda _, __, out: hooked.append(out))
    with torch.no_grad():
        model.forward_features(images)
        tokens = [model.norm(each) for each in hooked[:2]]
        parts = pooled.embed(images).unflatten(1, (2, 5, 32))[0]
    for of, said in zip(tokens, parts, strict=True):
        patches = of[0, 5:]
        power = (patches.sign() * patches.abs() ** 3).mean(0)
        wanted = [of[0, 0], patches.mean(0), patches.amax(0), patches.amin(0), power.sign() * power.abs() ** (1 / 3)]
        torch.testing.assert_close(said, torch.stack(wanted), atol=1e-5, rtol=1e-4)


def test_the_power_mean_keeps_signs_and_has_a_slope_where_it_is_nothing() -> None:
    patches = torch.tensor([[[2.0, -2.0, 0.0], [2.0, -2.0, 0.0]]], requires_grad=True)
    found = gem(patches)
    assert found.tolist() == [[pytest.approx(2.0), pytest.approx(-2.0), 0.0]]
    found.sum().backward()
    assert patches.grad is not None and patches.grad.isfinite().all()


@pytest.mark.parametrize("backbone", ["open_clip", "dinov2", "timm"])
def test_the_last_tap_is_what_the_library_gives(backbone: str, clip: Path, assets: Any, photograph: Image.Image) -> None:
    """The class token of the last block is DINOv2's embedding, the mean of patches what `patches` tell."""
    blocks: dict[str, dict[str, Any]] = {
        "open_clip": {"kind": "open_clip", "name": f"local-dir:{clip}"},
        "dinov2": {"kind": "dinov2", "name": str(assets.dinov2)},
        "timm": {"kind": "timm", "name": "test_vit"},
    }
    pooled, plain = (
        load_backbone(Block.parse({**blocks[backbone], "poolings": ["cls", "mean"]})),
        load_backbone(Block.parse(blocks[backbone])),
    )
    images = plain.transform(photograph)[None]
    cls, mean = pooled.embed(images).chunk(2, dim=1)
    if backbone != "timm":
        torch.testing.assert_close(mean, plain.patches(images).mean(1), atol=1e-5, rtol=1e-4)
    if backbone == "dinov2":
        torch.testing.assert_close(cls, plain.embed(images), atol=1e-5, rtol=1e-4)
    assert pooled.weights_hash() and pooled.embed_dim == 2 * (plain.embed_dim if backbone == "timm" else plain.width)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"taps": [99], "poolings": ["mean"]}, r"blocks: backbone.taps are from 0 to \d+"),
        ({"taps": [-1, 5], "poolings": ["mean"]}, "stands there twice"),
        ({"name": "test_resnet", "poolings": ["cls"]}, "has no class token"),
    ],
)
def test_a_tap_or_pooling_that_there_is_not_is_refused_in_words(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_backbone(block(**values))
    with pytest.raises(ValidationError, match="name poolings too"):
        block(taps=[1])


def test_stages_of_convolutions_are_taps_too(photograph: Image.Image) -> None:
    backbone = load_backbone(block(name="test_resnet", poolings=["mean", "max"]))
    plain = load_backbone(block(name="test_resnet"))
    images = plain.transform(photograph)[None]
    torch.testing.assert_close(backbone.embed(images)[:, : plain.embed_dim], plain.embed(images), atol=1e-5, rtol=1e-4)


def test_stages_of_several_widths_are_parts_as_wide_as_the_widest(photograph: Image.Image) -> None:
    backbone = load_backbone(block(name="test_resnet", taps=[1, -1], poolings=["mean", "max"]))
    assert isinstance(backbone, PooledBackbone) and isinstance(backbone.of, TimmBackbone)
    images = backbone.transform(photograph)[None]
    with torch.no_grad():
        stages = backbone.of.model.forward_intermediates(images, indices=backbone.taps, intermediates_only=True)
        parts = backbone.embed(images).unflatten(1, (2, 2, -1))[0]
    widths = [stage.shape[1] for stage in stages]
    assert widths[0] < widths[1] == parts.shape[2]
    for part, stage, width in zip(parts, stages, widths, strict=True):
        wanted = torch.stack([stage[0].mean((1, 2)), stage[0].amax((1, 2))])
        torch.testing.assert_close(part[:, :width], wanted, atol=1e-5, rtol=1e-4)
        assert not part[:, width:].any()


# ---------------------------------------------------------------- fusing
SEEN = torch.randn(5, 8, 16, generator=torch.Generator().manual_seed(0))
EIGHT = Views(crops=("left", "right"), tiles=(2, 2))


def fused(kind: str, **values: Any) -> Any:
    made = Fuse.parse({"kind": kind, **values})
    torch.manual_seed(1)
    return made, made.build(16, EIGHT).eval()


@pytest.mark.parametrize("kind", Fuse.kinds)
def test_a_fuse_gives_the_width_that_it_says_and_learns_what_it_counts(kind: str) -> None:
    made, module = fused(kind)
    assert module(SEEN).shape == (5, made.width(16, EIGHT))
    n = sum(parameter.numel() for parameter in module.parameters())
    assert (n == 0) == (made.n_parameters(16, EIGHT) == 0) == (not made.learns) and 0.7 * n <= made.n_parameters(
        16, EIGHT
    ) <= 1.3 * n + 1


def test_tiles_are_modulated_crop_by_crop_from_their_mean_on() -> None:
    """FiLM begins as the mean of each crop's tiles, and then is what the formula says, with a modulation of its own for each."""
    _, module = fused("film")
    crops = SEEN.unflatten(1, (2, 4))
    torch.testing.assert_close(module(SEEN), crops.mean(2).flatten(1))
    for last in (module.modulations[0][2], module.modulations[1][2]):
        torch.nn.init.normal_(last.weight)
    wanted = []
    for tiles, modulation in zip(crops.unbind(1), module.modulations, strict=True):
        gamma, beta = modulation(tiles.mean(1)).chunk(2, 1)
        wanted.append((tiles * (1 + gamma[:, None]) + beta[:, None]).mean(1))
    torch.testing.assert_close(module(SEEN), torch.cat(wanted, 1))
    assert [layer.in_features for layer in module.modulations[0] if hasattr(layer, "in_features")] == [16, 8]


@pytest.mark.parametrize("kind", ["attention", "local_mixing"])
def test_views_that_are_mixed_tell_of_one_another(kind: str) -> None:
    _, module = fused(kind)
    other = SEEN.clone()
    other[:, 3] += 1
    apart = (module(other) - module(SEEN)).abs()
    assert (apart > 1e-4).float().mean() > 0.9
    assert not torch.allclose(module(SEEN), module(SEEN.flip(1)), atol=1e-4) or kind == "attention"  # (places begin as 0)


def test_views_of_several_sizes_have_as_many_patches_as_all_of_them_together() -> None:
    backbone = seen({"sizes": [32, 64]})
    assert backbone.n_patches * 2 == (32 // 16) ** 2 + (64 // 16) ** 2


def test_what_is_asked_of_views_is_asked_in_words(table: Path, clip: Path, tmp_path: Path) -> None:
    def make(**sections: Any) -> Config:
        return small_config(table, clip, tmp_path, **sections)

    for sections, said in (
        ({"model": {"fuse": {"kind": "mean"}}}, "model.fuse.kind mean makes one of several views.*backbone.views.crops to"),
        (
            {"backbone": {"views": HALVES}, "model": {"fuse": {"kind": "film"}}},
            r"modulates the tiles of a crop.*tiles to \[2, 2\]",
        ),
        ({"backbone": {"views": HALVES}, "model": {"head": {"kind": "climatology"}}}, "climatology reads one view of an image"),
        ({"augment": {"poses": 0.5}}, "augment.poses 0.5 draws poses"),
        (
            {"backbone": {"views": {"poses": ["hflip"]}}},
            r"views.poses: nothing is .* set evaluate.tta to a weight of each of plain, hflip \(\[1, 0\]: the first alone\)",
        ),
        (
            {"backbone": {"views": {"draws": 2, "augment": {"flip": True}}}},
            "draws 2 are trained on, by augment.poses, and nothing else: set augment.poses above 0",
        ),
        ({"evaluate": {"tta": [1, 1]}, "backbone": {"views": HALVES}}, "evaluate.tta"),
        ({"evaluate": {"tta": [1]}, "backbone": {"views": {"poses": ["hflip"]}}}, "a weight of each of plain, hflip"),
        ({"model": {"head": {"kind": "ridge_stack"}}}, "ridge_stack scales each part"),
    ):
        with pytest.raises(ValidationError, match=said):
            make(**sections)
    with pytest.raises(UserError, match="does not divide the 16 numbers"):
        fused("attention", heads=3)


# ---------------------------------------------------------------- poses
def test_poses_are_drawn_for_each_image_by_itself_and_only_where_asked_for() -> None:
    views = Views(crops=("left", "right"), poses=("hflip", "vflip"))
    features = torch.arange(600.0).reshape(100, 6, 1)
    plain = draw_poses(features, views, 0.0, np.random.default_rng(0))
    assert torch.equal(plain, features[:, :2])
    drawn = draw_poses(features, views, 0.5, np.random.default_rng(0))
    which = (drawn[:, 0, 0] - features[:, 0, 0]).int() // 2
    assert torch.equal(drawn[:, 1], drawn[:, 0] + 1) and set(which.tolist()) == {0, 1, 2}
    assert 30 < (which == 0).sum() < 70
    unseen = torch.zeros(4, 8)
    assert draw_poses(unseen, Views(), 0.0, np.random.default_rng(0)) is unseen


# ---------------------------------------------------------------- all the way
@pytest.fixture
def make(table: Path, clip: Path, root: Path) -> Callable[..., Config]:
    def config(views: dict[str, Any], **sections: Any) -> Config:
        plain: dict[str, Any] = {
            "optim": {"lr": 1e-3},
            "train": {"epochs": 2, "batch_size": 8},
            "loss": {"kind": "mse"},
            "select": {"metric": "MAE"},
            "model": {"head": {"kind": "mlp", "hidden": [8]}},
        }
        merged = {name: {**plain.get(name, {}), **sections.get(name, {})} for name in {*plain, *sections}}
        merged["backbone"] = {"views": views, **sections.get("backbone", {})}
        return small_config(table, clip, root, **merged)

    return config


def learn(config: Config, folder: Path) -> TrialDir:
    trial = TrialDir(folder)
    folder.mkdir(parents=True)
    extract.ensure(config)
    train.run(config, trial)
    evaluate.run(config, trial)
    return trial


TILES = {**HALVES, "tiles": [2, 2]}
ENCODERS: dict[str, dict[str, Any]] = {
    "frozen": {},
    "finetuned": {"model": {"encoder": {"kind": "finetuned", "blocks": 1}}},
    "lora": {"model": {"encoder": {"kind": "lora", "blocks": 1, "r": 2, "alpha": 2}}},
    "token_pooling": {
        "model": {"encoder": {"kind": "token_pooling", "poolings": ["mean", "max", "gem", "attention"], "channels": 8}}
    },
    "patch_convs": {"model": {"encoder": {"kind": "patch_convs", "kernel": 2, "channels": 8}}},
    "end_to_end": {"backbone": {"kind": "timm", "name": "test_resnet"}, "model": {"encoder": {"kind": "end_to_end"}}},
}


@pytest.mark.jobs
@pytest.mark.parametrize("encoder", ENCODERS)
def test_views_go_through_every_encoder_and_predictions_from_images_are_those_from_features(
    encoder: str, make: Callable[..., Config], table: Path, tmp_path: Path
) -> None:
    sections = ENCODERS[encoder]
    views = HALVES if encoder != "frozen" else TILES
    config = make(views, **{**sections, "model": {"head": {"kind": "mlp", "hidden": [8]}, **sections.get("model", {})}})
    if sections.get("backbone"):
        config = config.model_copy(update={"backbone": Block.parse({**sections["backbone"], "views": views})})
    trial = learn(config, tmp_path / "trial")
    store = extract.ensure(config)
    assert store.shape[0] == config.backbone.views.n and known_feature_key(config) == store.key
    inputs = load_inputs(config)
    images = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"inputs": "images"})})
    summary = evaluate.run(images, trial)["summary"]
    assert summary["features_difference"]["max_abs"] < 1e-3
    model = load_model(config, trial, inputs.backbone)
    assert model.predict(store_rows(store, 2)).mean.shape == (2, 3)
    said = list(predict_files(trial.path, image_files(table)[:2], Origin(), "cpu"))
    assert [set(each) for each in said] == [set(load_facts(trial).targets)] * 2


def store_rows(store: Any, n: int) -> Tensor:
    from pipeline.features.bank import make_bank

    return make_bank(store, range(n), torch.device("cpu")).gather(torch.arange(n)).float()


@pytest.mark.jobs
def test_poolings_that_learn_do(make: Callable[..., Config], tmp_path: Path) -> None:
    config = make(HALVES, **ENCODERS["token_pooling"], train={"epochs": 3})
    trial = learn(config, tmp_path / "trial")
    inputs = load_inputs(config)
    before, after = make_model(config, make_facts(inputs), inputs.backbone), load_model(config, trial, inputs.backbone)
    moved = {name: not torch.equal(p, after.get_parameter(name)) for name, p in before.named_parameters()}
    assert {"encoder.power", "encoder.score.0.weight", "encoder.out.weight"} <= set(moved) and all(moved.values())


@pytest.mark.jobs
@pytest.mark.parametrize("kind", [kind for kind, each in Fuse.kinds.items() if each.learns])
def test_whatever_fuses_views_learns(kind: str, make: Callable[..., Config], tmp_path: Path) -> None:
    """Every parameter has a gradient, and has moved when training ends: FiLM that stays random was a mistake of others."""
    config = make(TILES, model={"fuse": {"kind": kind}, "head": {"kind": "mlp", "hidden": [8]}}, train={"epochs": 4})
    trial = learn(config, tmp_path / "trial")
    inputs = load_inputs(config)
    before, after = make_model(config, make_facts(inputs), None), load_model(config, trial, None)
    moved = {name: not torch.equal(p, after.get_parameter(name)) for name, p in before.named_parameters()}
    assert any(name.startswith("fuse.") for name in moved) and all(moved.values()), moved


@pytest.mark.jobs
def test_test_time_augmentation_is_the_weighted_mean_of_what_poses_alone_would_say(
    make: Callable[..., Config], tmp_path: Path
) -> None:
    """And it is no part of the model: the same trial is evaluated with and without."""
    config = make({**HALVES, "poses": ["hflip", "vflip"]}, augment={"poses": 0.5})
    trial = learn(config, tmp_path / "trial")
    weighted = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"tta": (2.0, 1.0, 1.0)})})
    features = store_rows(extract.ensure(config), 6)
    plain, together = (load_model(each, trial, None) for each in (config, weighted))
    alone = [plain.predict(features[:, 2 * i : 2 * i + 2]).mean for i in range(3)]
    torch.testing.assert_close(plain.predict(features).mean, alone[0])
    torch.testing.assert_close(together.predict(features).mean, (2 * alone[0] + alone[1] + alone[2]) / 4)
    before = read_json(trial.results)["figures"]
    assert trained_config(trial).evaluate.tta == ()
    assert evaluate.run(weighted, trial)["figures"] != before
    assert trained_config(trial) == weighted  # what its results are of is what it predicts and is exported with
    assert evaluate.run(config, trial)["figures"] == before and trained_config(trial) == config


@pytest.mark.jobs
def test_a_store_of_other_views_is_another_store(make: Callable[..., Config]) -> None:
    keys = {
        extract.ensure(make(views, evaluate={"tta": [1, 1]} if "poses" in views else {})).key
        for views in ({}, HALVES, TILES, {**HALVES, "masks": [[0, 0, 0.1, 0.1]]}, {"poses": ["hflip"]})
    }
    assert len(keys) == 5
    assert ImageAugment() == Views().augment and make({}).backbone.views.are_plain
