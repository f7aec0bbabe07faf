"""Transforms in two halves: pixels as the library cuts them, within 1 of 255, and scaled to the bit; JPEGs decoded by
libjpeg-turbo itself as Pillow decodes them; and JPEGs decoded at a part of their size."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform
from torchvision import transforms
from transformers import BitImageProcessor
from transformers.image_utils import PILImageResampling

from pipeline.backbones import load_backbone
from pipeline.backbones.halves import Halves, of_processor, of_steps
from pipeline.config import backbone as blocks
from pipeline.config.backbone import FeatureKind
from pipeline.config.identity import config_hash, features_of
from pipeline.config.trial import Config
from pipeline.data.decoding import How, decode_opened
from pipeline.data.jpeg import plain_pixels
from pipeline.data.opening import decode
from pipeline.features.forward import compile_for, compute_features
from pipeline.features.hashes import DataRecord, WeightsRecord, ingredients
from pipeline.stages import extract
from tests.small import named, small_config

SIDE = 48
SIZES = [(301, 199), (199, 301), (97, 96), (640, 101), (101, 640), (1, 1), (3, 200), (47, 49), (1201, 803), (48, 48), (350, 350)]


def open_clips(**choices: Any) -> Halves:
    return of_steps(image_transform_v2(PreprocessCfg(size=SIDE, **choices), is_train=False))


def timms(**choices: Any) -> Halves:
    return of_steps(create_transform(input_size=(3, SIDE, SIDE), is_training=False, **choices))


def dinos(**choices: Any) -> Halves:
    return of_processor(BitImageProcessor(do_resize=True, **choices))


KINDS: dict[str, Callable[[], Halves]] = {
    "open_clip": open_clips,
    "open_clip bilinear": lambda: open_clips(interpolation="bilinear"),
    "open_clip squash": lambda: open_clips(resize_mode="squash"),
    "timm": lambda: timms(crop_pct=0.875, interpolation="bicubic"),
    "timm squash": lambda: timms(crop_pct=0.9, crop_mode="squash", interpolation="bilinear"),
    "dinov2": lambda: dinos(size={"shortest_edge": 64}, crop_size={"height": SIDE, "width": SIDE}, do_center_crop=True),
    "dinov2 odd": lambda: dinos(size={"shortest_edge": 63}, crop_size={"height": 48, "width": 40}, do_center_crop=True),
    "dinov2 squash": lambda: dinos(size={"height": 40, "width": 56}, do_center_crop=False),
}
UNKNOWN: dict[str, Callable[[], Halves]] = {
    "open_clip longest": lambda: open_clips(resize_mode="longest"),
    "timm border": lambda: timms(crop_mode="border"),
    "timm lanczos": lambda: timms(interpolation="lanczos"),
    "dinov2 lanczos": lambda: dinos(size={"height": 40, "width": 56}, do_center_crop=False, resample=PILImageResampling.LANCZOS),
    "dinov2 padded": lambda: dinos(size={"shortest_edge": 32}, crop_size={"height": 48, "width": 48}, do_center_crop=True),
    "a step of another library": lambda: of_steps(
        transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor(), transforms.RandomErasing(0)])
    ),
}


def pictures(rng: np.random.Generator, size: tuple[int, int]) -> list[Image.Image]:
    """Noise, and something smooth."""
    width, height = size
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    return [noise, noise.resize((max(1, width // 9), max(1, height // 9))).resize(size, Image.Resampling.BICUBIC)]


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_within_one_of_the_librarys_and_scaled_to_the_bit(kind: str) -> None:
    halves, rng = KINDS[kind](), np.random.default_rng(0)
    assert halves.cut is not None
    step = halves.levels.diff(dim=1).mean(1)[:, None, None]
    for size in SIZES:
        for image in pictures(rng, size):
            library, pixels = halves.whole(image), halves.pixels(image)
            assert pixels.dtype == torch.uint8 and pixels.shape == library.shape and pixels.is_contiguous()
            assert float(((halves.normalised(pixels) - library) / step).abs().max()) <= 1.001, size
            assert torch.equal(halves.normalised(halves.cut.library(image)), library), size
            assert torch.equal(pixels, halves.pixels(np.array(image))), "as an array"
            assert torch.equal(halves(image), halves.normalised(pixels[None])[0])


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_transform_that_is_not_understood_is_the_librarys_own(kind: str) -> None:
    halves = UNKNOWN[kind]()
    assert halves.cut is None and halves.enough == 0
    image = pictures(np.random.default_rng(0), (301, 199))[0]
    assert halves.pixels(image).dtype == torch.float32 and torch.equal(halves(image), halves.whole(image))


def test_halves_that_do_not_agree_with_the_whole_are_not_used() -> None:
    right = KINDS["open_clip"]()
    assert right.cut and Halves(right.whole, right.cut, right.levels).cut
    assert Halves(right.whole, right.cut, right.levels + 1e-6).cut is None
    assert Halves(right.whole, right.cut._replace(before=lambda half: int(half) - 1), right.levels).cut is None


def test_a_backbone_computes_the_same_from_pixels_as_from_what_its_transform_gives(clip: Path, tmp_path: Path) -> None:
    backbone = load_backbone(blocks.OpenClip(name=f"local-dir:{clip}"))
    images = [image for size in ((301, 199), (50, 40)) for image in pictures(np.random.default_rng(0), size)]
    pixels = torch.stack([backbone.pixels(image) for image in images])
    assert pixels.dtype == torch.uint8
    for kind in ("pooled", "cut", "images"):
        given = torch.stack([backbone.transform(image) for image in images])
        assert torch.equal(compute_features(backbone, pixels, kind, 2), compute_features(backbone, given, kind, 2))
    compile_for(backbone, "pooled", torch.device("cpu"))
    assert "embed" not in vars(backbone), "nothing is compiled for a CPU"


@pytest.mark.jobs
@pytest.mark.skipif(shutil.which("cc") is None, reason="torch compiles with a C compiler")
@pytest.mark.parametrize("kind", ["pooled", "cut"])
def test_what_is_compiled_computes_the_same(clip: Path, kind: FeatureKind) -> None:
    """The code that is for a GPU, compiled for this processor; a last batch is smaller."""
    backbone = load_backbone(blocks.OpenClip(name=f"local-dir:{clip}"))
    pixels = torch.stack([backbone.pixels(image) for image in pictures(np.random.default_rng(0), (60, 50))])
    batches = (pixels, pixels[:1])
    plain = [compute_features(backbone, batch, kind, 2) for batch in batches]
    compile_for(backbone, kind, torch.device("cuda"))
    for batch, wanted in zip(batches, plain, strict=True):
        apart = (compute_features(backbone, batch, kind, 2) - wanted).abs().max()
        assert apart <= 1e-4 * wanted.abs().max()  # fp32 added up in another order, block by block


# ---------------------------------------------------------------- JPEGs
def jpeg(mode: str = "RGB", size: tuple[int, int] = (96, 64), **options: Any) -> bytes:
    rng, buffer = np.random.default_rng(0), io.BytesIO()
    small = Image.fromarray(rng.integers(0, 256, (9, 14, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


PLAIN = {
    "colours": jpeg(),
    "grey": jpeg("L"),
    "progressive": jpeg(progressive=True),
    "4:4:4": jpeg(subsampling=0),
    "restarts": jpeg(restart_marker_blocks=2),
    "RGB inside": jpeg(keep_rgb=True),
    "upright": jpeg(exif=oriented(1)),
}
OTHERS = {
    "CMYK": jpeg("CMYK"),
    "on its side": jpeg(exif=oriented(6)),
    "truncated": jpeg()[:-400],
    "without its end": jpeg()[:-2],
    "progressive, truncated": jpeg(progressive=True)[:-300],
    "a damaged scan": jpeg()[:800] + b"\xff\xd9\0\0" + jpeg()[804:],
}


def by_pillow(encoded: bytes, how: How) -> Any:
    return said(lambda: decode_opened(Image.open(io.BytesIO(encoded)), how))


def said(decoded: Callable[[], Any]) -> Any:
    """Pixels, size and notes; or the error."""
    try:
        found = decoded()
    except (OSError, ValueError, SyntaxError) as error:
        return type(error), str(error)
    return np.asarray(found.image).tobytes(), found.image.size, found.size, found.notes


@pytest.mark.parametrize(
    "how", [How(), How(exif="apply"), How(enough=20), How(enough=10), How(enough=8, keeps_size=True)], ids=str
)
def test_jpegs_are_decoded_as_pillow_decodes_them_plain_ones_without_it(how: How) -> None:
    for name, encoded in (PLAIN | OTHERS).items():
        assert said(lambda: decode(encoded, how)) == by_pillow(encoded, how), name  # noqa: B023
        is_plain = plain_pixels(encoded, Image.open(io.BytesIO(encoded)), how) is not None
        assert is_plain == (name in PLAIN), name


def test_a_jpeg_that_is_larger_than_allowed_is_decoded_at_a_part_of_its_size_by_pillow() -> None:
    how = How(max_pixels=2000)
    found = decode(PLAIN["colours"], how)
    assert found.image.size == (48, 32) and found.notes and found.size == (96, 64)


@pytest.mark.parametrize(("enough", "size"), [(0, (96, 64)), (32, (48, 32)), (33, (96, 64)), (16, (24, 16)), (1, (12, 8))])
def test_a_jpeg_is_decoded_at_the_least_part_that_leaves_enough(enough: int, size: tuple[int, int]) -> None:
    assert decode(PLAIN["colours"], How(enough=enough)).image.size == size
    assert decode(jpeg(size=(97, 64)), How(enough=enough)).image.size == (97, 64), "no part of it has its shape"


def test_reduced_decoding_changes_little_of_what_a_network_sees() -> None:
    halves = KINDS["open_clip"]()
    large = jpeg(size=(400, 300))
    pixels = [halves.pixels(decode(large, how).picture).int() for how in (How(), How(enough=halves.enough))]
    assert decode(large, How(enough=halves.enough)).image.size == (200, 150)
    assert 0 < int((pixels[0] - pixels[1]).abs().max()) <= 8


# ---------------------------------------------------------------- the configuration
def made(**sections: Any) -> Config:
    return Config.model_validate(named({"experiment": "small", **sections}))


def test_fast_decoding_makes_trials_and_features_of_its_own_and_the_default_none() -> None:
    plain, exact, fast = made(), made(extract={"decode": "exact", "compile": True}), made(extract={"decode": "fast"})
    assert config_hash(plain) == config_hash(exact) != config_hash(fast)
    assert features_of(plain) == features_of(exact) != features_of(fast)
    words = dict.fromkeys(("signature", "weights", "architecture", "transform"), "a")
    measures = {field.name: 1 for field in fields(WeightsRecord) if field.name not in words}
    data, weights = DataRecord("", "a", 1, ["a"]), WeightsRecord(**measures, **words)
    keys = [ingredients(config, data, weights).key() for config in (plain, exact, fast)]
    assert keys[0] == keys[1] != keys[2]


def test_fast_decoding_does_not_go_with_what_measures_in_an_images_pixels() -> None:
    columns = {"scale_bar": "bar", "colour_card": "card"}
    for name in columns:
        with pytest.raises(ValueError, match=f"extract.decode fast .*data.{name} false"):
            made(extract={"decode": "fast"}, data={name: True, "columns": columns})


@pytest.mark.jobs
def test_extraction_decodes_as_it_is_told_and_rows_are_the_backbones_own(clip: Path, tmp_path: Path) -> None:
    targets = {"SPEI_30d": 0.1, "SPEI_1y": 0.2, "SPEI_2y": 0.3}
    rows = [{"file_path": f"{i}.jpg", "public_id": i, "eventID": i, "domainID": 1, "split": "train", **targets} for i in range(4)]
    rows[3]["split"] = "validation"
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(size=(400 + 4 * i, 300), quality=60 + 10 * i))
    stored, backbone = {}, load_backbone(blocks.OpenClip(name=f"local-dir:{clip}"))
    for decoding in ("exact", "fast"):
        store = extract.run(small_config(tmp_path / "table.csv", clip, tmp_path, extract={"decode": decoding}))
        assert store
        found = torch.cat([load_file(store.path(shard))["features"] for shard in range(store.n_shards)])
        how = How(enough=backbone.enough(decoding))
        pixels = [backbone.pixels(decode((tmp_path / f"{i}.jpg").read_bytes(), how).picture) for i in range(4)]
        torch.testing.assert_close(found, compute_features(backbone, torch.stack(pixels), "pooled"), rtol=1e-5, atol=1e-5)
        stored[store.key] = found
    one, other = stored.values()
    assert not torch.equal(one, other) and torch.cosine_similarity(one, other).min() > 0.99
