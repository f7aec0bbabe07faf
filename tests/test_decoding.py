"""What encoded images become: wide greys, transparency, orientation and size, each as its key says and told where it matters."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import ValidationError
from torch.nn import functional as F

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone
from pipeline.config.backbone import OpenClip
from pipeline.config.decoding import Decoding
from pipeline.config.identity import config_hash, images_of
from pipeline.config.trial import Config
from pipeline.data import decoding
from pipeline.data.decoding import DEEP, HIDDEN, LONELY, NARROW, NEGATIVE, REDUCED, TURNED, Decoded, How, decode_opened
from pipeline.data.opening import decode, how_of
from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.disk.writing import read_json
from pipeline.stages import evaluate, extract, train
from tests.small import named

Values = NDArray[Any]


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixels(image: Image.Image | Decoded) -> NDArray[np.int64]:
    return np.asarray(image.image if isinstance(image, Decoded) else image).astype(np.int64)


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# ---------------------------------------------------------------- more than 8 bits
def stripes(low: float, high: float) -> Values:
    """A picture [96, 96] of these values."""
    return np.where(np.arange(96) // 24 % 2, high, low)[None].repeat(96, 0)


def discs(low: float, high: float) -> Values:
    """Another, [96, 96]."""
    y, x = np.mgrid[:96, :96] - 47.5
    return low + (high - low) * np.clip(1 - np.hypot(x, y) / 48, 0, 1)


def wide(values: Values, kind: type[np.generic]) -> bytes:
    """16 bits as PNG, 32 as TIFF; unsigned ones, which Pillow does not write, by their tag."""
    if kind is np.uint32:
        made = Image.fromarray(values.astype(np.uint32).view(np.int32))
        return encoded(made, "TIFF").replace(struct.pack("<HHIHH", 339, 3, 1, 2, 0), struct.pack("<HHIHH", 339, 3, 1, 1, 0))
    return encoded(Image.fromarray(values.astype(kind)), "PNG" if kind is np.uint16 else "TIFF")


@pytest.fixture(scope="module")
def backbone(assets: Any) -> Backbone:
    return load_backbone(OpenClip(name=f"local-dir:{assets.clip}"))


WIDE = [
    pytest.param(0, 4095, np.uint16, id="12 bits"),
    pytest.param(51300, 52300, np.uint16, id="thermal"),
    pytest.param(0, 1_000_000, np.int32, id="32 bits"),
    pytest.param(70_000, 90_000_000, np.int32, id="32 bits, base"),
    pytest.param(3_000_000_000, 3_100_000_000, np.uint32, id="unsigned"),
    pytest.param(-2000, 1500, np.int32, id="signed"),
]


@pytest.mark.parametrize(("low", "high", "kind"), WIDE)
def test_unlike_pictures_of_a_narrow_range_are_unlike_by_their_own_range_and_warned_of_by_the_full_one(
    low: int, high: int, kind: type[np.generic], backbone: Backbone
) -> None:
    def likeness(how: How) -> float:
        inputs = [backbone.transform(decode(wide(picture(low, high), kind), how).image) for picture in (stripes, discs)]
        return float(F.cosine_similarity(*(each.flatten() for each in inputs), dim=0))

    content = wide(stripes(low, high), kind)
    assert likeness(How("full")) > 0.99 and decode(content, How("full")).notes == (NARROW, NEGATIVE)[: 1 + (low < 0)]
    for how in (How("image"), How((low, high))):
        assert likeness(how) < 0.9
        found = decode(content, how)
        assert set(np.unique(pixels(found))) == {0, 255} and found.notes == ()


@pytest.mark.parametrize(
    ("low", "high", "kind", "odd"),
    [
        pytest.param(0, 4095, np.uint16, [65535], id="hot"),
        pytest.param(51300, 52300, np.uint16, [0], id="dead"),
        pytest.param(2000, 4000, np.uint16, [0] * 5 + [65535] * 5, id="several of each"),
        pytest.param(0, 60_000, np.int32, [2**31 - 1], id="which makes 32 bits of 16"),
        pytest.param(3_000_000_000, 3_100_000_000, np.uint32, [0, 2**32 - 1], id="unsigned"),
    ],
)
def test_a_few_dead_or_hot_pixels_do_not_hide_that_the_others_are_nearly_one_grey(
    low: int, high: int, kind: type[np.generic], odd: list[int]
) -> None:
    values = discs(low, high).round()
    values.flat[: len(odd)] = odd
    content = wide(values, kind)
    assert decode(content, How("full")).notes == (NARROW,) and decode(content, How("image")).notes == (LONELY,)
    assert decode(content, How((low, high))).notes == () and decode(wide(discs(low, high), kind), How("image")).notes == ()


def test_the_pixels_of_an_image_of_few_count_each() -> None:
    values = np.array([[0, 30_000, 65535]])
    for how in (How("full"), How("image")):
        assert decode(wide(values, np.uint16), how).notes == ()


@pytest.mark.parametrize(
    ("low", "high", "notes"),
    [
        pytest.param(-5000, 5000, (NEGATIVE,), id="signed"),
        pytest.param(-5000, 500, (NARROW, NEGATIVE), id="hardly any above 0"),
        pytest.param(-9000, -10, (NARROW, NEGATIVE), id="none"),
        pytest.param(0, 30_000, (), id="not negative"),
    ],
)
def test_negative_values_which_the_full_range_shows_black_are_told(low: int, high: int, notes: tuple[str, ...]) -> None:
    content = wide(discs(low, high), np.int32)
    assert decode(content, How("full")).notes == notes
    for how in (How("image"), How((low, high))):
        assert decode(content, how).notes == ()


def test_a_value_that_stands_for_no_data_is_told_if_it_is_negative() -> None:
    values = discs(0, 30_000)
    values[0, 0] = -32768
    assert decode(wide(values, np.int32), How()).notes == (NEGATIVE,)


def test_sixteen_bits_are_shown_over_their_full_range_as_they_always_were() -> None:
    """Stores and models from before stay valid, bit for bit."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    before = Image.fromarray(values).convert("I").point(lambda value: value * (1 / 257)).convert("L").convert("RGB")
    for form, kind in (("PNG", np.uint16), ("TIFF", np.int32)):
        found = decode(encoded(Image.fromarray(values.astype(kind)), form), How())
        assert np.array_equal(pixels(found), pixels(before)) and found.notes == ()


def test_thirty_two_bits_beyond_sixteen_are_shown_over_all_of_theirs() -> None:
    values = np.array([[0, 2**30, 2**31 - 1]], np.int32)
    assert pixels(decode(encoded(Image.fromarray(values), "TIFF"), How()))[0, :, 0].tolist() == [0, 127, 255]


def test_one_range_for_all_keeps_images_comparable_and_cuts_off_what_is_beyond() -> None:
    values = np.array([[0, 1000, 2000, 3000, 60000]], np.uint16)
    found = decode(wide(values, np.uint16), How((1000, 3000)))
    assert pixels(found)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_floating_point_numbers_are_read_where_their_range_is_told() -> None:
    content = encoded(Image.fromarray(np.array([[0.25, 0.5, 0.75, np.nan, np.inf]], np.float32)), "TIFF")
    with pytest.raises(ValueError, match=r"floating-point numbers, whose range nobody can tell: set data\.range"):
        decode(content, How())
    assert pixels(decode(content, How("image")))[0, :, 0].tolist() == [0, 128, 255, 0, 255]
    assert pixels(decode(content, How((0, 1))))[0, :, 0].tolist() == [64, 128, 191, 0, 255]


@pytest.mark.parametrize("scope", ["image", (0.0, 4095.0)])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "CMYK"])
def test_images_of_eight_bits_stay_as_they_are(scope: Any, mode: str) -> None:
    content = encoded(Image.fromarray(noise(9, 7, 3) // 8).convert(mode), "TIFF")
    assert np.array_equal(pixels(decode(content, How(scope))), pixels(decode(content, How())))


@pytest.mark.parametrize("values", [np.full((4, 4), 700), np.zeros((4, 4))], ids=["grey", "black"])
def test_an_image_of_one_value_is_black_by_its_own_range(values: Values) -> None:
    assert pixels(decode(wide(values, np.uint16), How("image"))).max() == 0


def test_colours_of_sixteen_bits_of_which_pillow_keeps_next_to_nothing_are_told() -> None:
    """A PNG of 12 bits a channel, by hand: Pillow writes none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def deep(high: int, hottest: int = 0) -> bytes:
        rows = np.random.default_rng(0).integers(0, high, (40, 40, 3)).astype(">u2")
        rows[3, 4] = hottest
        header = struct.pack(">IIBBBBB", 40, 40, 16, 2, 0, 0, 0)
        lines = b"".join(b"\0" + row.tobytes() for row in rows)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")

    assert decode(deep(4096), How()).notes == decode(deep(4096, 65535), How()).notes == (DEEP,)
    assert decode(deep(65536), How()).notes == ()


# ---------------------------------------------------------------- transparency
def cut_out(seed: int, mode: str) -> bytes:
    """A specimen that is the same for all seeds on hidden ground that is not."""
    colours, alpha = noise(20, 30, 3), np.zeros((20, 30), np.uint8)
    alpha[5:15, 8:22] = 255
    colours[alpha == 0] = noise(20, 30, 3, seed=seed)[alpha == 0]
    rgba = Image.fromarray(np.dstack([colours, alpha]))
    if mode in ("RGBA", "LA"):
        return encoded(rgba.convert(mode))
    if mode == "WEBP":
        return encoded(rgba, "WEBP", lossless=True, exact=True)
    if mode == "16-bit key":
        values = np.where(alpha > 0, noise(20, 30).astype(np.uint16) * 100, 60000 + seed)
        return encoded(Image.fromarray(values.astype(np.uint16)), transparency=60000 + seed)
    key = (10 * seed, 255 - seed, seed)
    seen = np.where(alpha[..., None] > 0, noise(20, 30, 3) // 2 + 100, np.array(key, np.uint8))
    if mode == "RGB key":
        return encoded(Image.fromarray(seen.astype(np.uint8)), transparency=key)
    if mode == "L key":
        return encoded(Image.fromarray(np.where(alpha > 0, noise(20, 30) // 2 + 100, seed).astype(np.uint8)), transparency=seed)
    image = Image.fromarray(np.where(alpha > 0, noise(20, 30) % 4 + 1, 0).astype(np.uint8), "L")
    palette = Image.frombytes("P", image.size, image.tobytes())
    palette.putpalette([*key, 0, 0, 9, 200, 90, 0, 50, 0, 0, 30, 30, 200])
    return encoded(palette, "GIF" if mode == "GIF" else "PNG", transparency=0)


TRANSPARENT = ["RGBA", "LA", "WEBP", "16-bit key", "RGB key", "L key", "palette", "GIF"]


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_what_lies_under_full_transparency_reaches_no_model(mode: str, backbone: Backbone) -> None:
    assert cut_out(1, mode) != cut_out(2, mode)
    one, other = (decode(cut_out(seed, mode), How()).image for seed in (1, 2))
    assert np.array_equal(pixels(one), pixels(other)) and one.getpixel((0, 0)) == (255, 255, 255)
    assert len(np.unique(pixels(one)[5:15, 8:22])) > 2, "the specimen is seen"
    raw = [Image.open(io.BytesIO(cut_out(seed, mode))) for seed in (1, 2)]
    assert torch.equal(*(backbone.transform(image) for image in raw)), "nor where somebody hands one over as it was opened"


@pytest.mark.parametrize("mode", TRANSPARENT)
def test_the_background_is_seen_where_an_image_is_transparent(mode: str) -> None:
    red = pixels(decode(cut_out(1, mode), How(background="#c00000")))
    assert red[0, 0].tolist() == [192, 0, 0]
    assert np.array_equal(red[5:15, 8:22], pixels(decode(cut_out(1, mode), How()))[5:15, 8:22])


@pytest.mark.parametrize("mode", ["RGBA", "WEBP"])
def test_hidden_colours_are_told(mode: str) -> None:
    assert decode(cut_out(1, mode), How()).notes == (HIDDEN,)


def test_ground_of_one_colour_that_hides_nothing_is_not_told() -> None:
    for colour in ("white", "black", "#c00000"):
        image = Image.new("RGBA", (9, 9), (1, 2, 3, 255))
        image.paste(Image.new("RGBA", (4, 9), (*Image.new("RGB", (1, 1), colour).tobytes(), 0)))
        assert decode(encoded(image), How(background="#c00000")).notes == ()
    image.paste((200, 0, 0, 0), (0, 0, 4, 9))
    assert decode(encoded(image), How()).notes == (HIDDEN,), "a colour that one class alone may have"


def test_an_opaque_image_with_an_alpha_channel_is_as_without() -> None:
    image = Image.fromarray(noise(9, 7, 4))
    image.putalpha(255)
    assert np.array_equal(pixels(decode(encoded(image), How())), pixels(image.convert("RGB")))


def test_half_transparency_is_half_background() -> None:
    image = Image.new("RGBA", (1, 1), (0, 100, 200, 51))
    assert pixels(decode(encoded(image), How()))[0, 0].tolist() == [204, 224, 244]


# ---------------------------------------------------------------- orientation
EIGHT = list(range(1, 9))


def lying(orientation: int, form: str) -> tuple[bytes, Image.Image]:
    """A photograph as a camera stores it, and as it is meant."""
    stored = Image.fromarray(noise(4, 6, 3).repeat(16, 0).repeat(16, 1))
    exif = Image.Exif()
    exif[decoding.ORIENTATION] = orientation
    turn = decoding.TURNS.get(orientation)
    options: dict[str, Any] = {"lossless": True} if form == "WEBP" else {"quality": 98} if form in ("JPEG", "AVIF") else {}
    return encoded(stored, form, exif=exif, **options), stored if turn is None else stored.transpose(turn)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", EIGHT)
def test_an_orientation_is_applied_where_asked(orientation: int, form: str) -> None:
    content, meant = lying(orientation, form)
    found = decode(content, How(exif="apply"))
    assert found.image.size == meant.size and np.abs(pixels(found) - pixels(meant)).mean() < 6 and found.notes == ()
    again = decode_opened(found.image, How(exif="apply"))
    assert np.array_equal(pixels(again), pixels(found)), "once"


def test_orientation_six_is_the_upright_image_to_a_model(backbone: Backbone) -> None:
    content, meant = lying(6, "PNG")
    upright, turned, stored = (
        backbone.transform(image).flatten()
        for image in (meant, decode(content, How(exif="apply")).image, decode(content, How()).image)
    )
    assert torch.equal(upright, turned) and F.cosine_similarity(upright, stored, dim=0) < 0.5


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", EIGHT)
def test_where_it_is_ignored_pixels_stay_as_stored_and_it_is_told(orientation: int, form: str) -> None:
    content, _ = lying(orientation, form)
    found = decode(content, How(exif="ignore"))
    assert found.image.size == (96, 64) == found.size and found.notes == ((TURNED,) if orientation > 1 else ())


def test_an_orientation_in_xmp_counts_too() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    content = encoded(Image.new("RGB", (6, 4)), pnginfo=info)
    assert decode(content, How(exif="apply")).image.size == (4, 6) and decode(content, How()).notes == (TURNED,)


@pytest.mark.parametrize("exif", [b"", b"nonsense", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_exif_data_leave_an_image_as_it_is(exif: bytes) -> None:
    content = encoded(Image.new("RGB", (6, 4)), "JPEG", exif=b"Exif\0\0" + exif)
    assert decode(content, How(exif="apply")).image.size == decode(content, How()).image.size == (6, 4)


# ---------------------------------------------------------------- size
def scene(width: int, height: int) -> Image.Image:
    """A picture with something to see at every scale."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    layers = [np.sin(2 * np.pi * (a * x + b * y)) / (a + b) for a, b in ((3, 2), (11, 7), (40, 60), (150, 90))]
    grey = sum(layers, np.zeros_like(x))
    colours = np.stack([grey, grey * 0.7 + x * 0.3, y - grey * 0.4], 2)
    return Image.fromarray((np.clip((colours + 1) / 2.5, 0, 1) * 255).astype(np.uint8))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "BMP", "GIF"])
def test_an_image_above_max_pixels_is_refused_with_its_size_and_a_way_out(form: str) -> None:
    content = encoded(Image.new("RGB", (30, 20)), form)
    assert decode(content, How(max_pixels=600)).size == (30, 20)
    with pytest.raises(ValueError, match=r"it has (30 × 20|600) pixels, and data\.max_pixels allows 599: set that higher"):
        decode(content, How(max_pixels=599))


@pytest.mark.parametrize(("most", "size"), [(600, (30, 20)), (599, (15, 10)), (149, (8, 5)), (15, (4, 3))])
def test_a_jpeg_above_max_pixels_is_decoded_at_the_first_part_of_its_size_that_fits(most: int, size: tuple[int, int]) -> None:
    found = decode(encoded(Image.new("RGB", (30, 20), "red"), "JPEG"), How(max_pixels=max(most, 12)))
    assert found.image.size == size and found.size == (30, 20) and found.notes == ((REDUCED,) if most < 600 else ())


def test_a_jpeg_of_which_no_part_fits_or_that_is_measured_in_pixels_is_refused() -> None:
    content = encoded(Image.new("RGB", (30, 20)), "JPEG")
    for how in (How(max_pixels=11), How(max_pixels=599, keeps_size=True)):
        with pytest.raises(ValueError, match=r"30 × 20 pixels, and data\.max_pixels allows"):
            decode(content, how)


@pytest.mark.parametrize(("part", "most"), [(2, 0.02), (4, 0.06)])
def test_what_a_model_sees_of_a_reduced_jpeg_differs_little(part: int, most: float, backbone: Backbone) -> None:
    """While a part has still more pixels than the network reads (here 32 × 32)."""
    image = scene(1200, 900)
    content = encoded(image, "JPEG", quality=92)
    n = image.width * image.height
    whole, reduced = (decode(content, How(max_pixels=most)) for most in (n, n // part**2))
    assert reduced.image.size == (1200 // part, 900 // part)
    one, other = (backbone.transform(each.image) for each in (whole, reduced))
    assert (one - other).abs().max() < most * (one.max() - one.min())


def test_a_large_image_inside_of_an_icon_is_refused_too() -> None:
    content = encoded(Image.new("RGBA", (256, 256)), "ICO", sizes=[(256, 256)], bitmap_format="png")
    at = content.index(b"IHDR")
    header = b"IHDR" + struct.pack(">II", 30000, 30000) + content[at + 12 : at + 17]
    forged = content[:at] + header + struct.pack(">I", zlib.crc32(header)) + content[at + 21 :]
    with pytest.raises(ValueError, match=r"900,000,000 pixels, and data\.max_pixels"):
        decode(forged, How())


def test_large_images_within_the_limit_cause_no_warning() -> None:
    content = encoded(Image.new("L", (100, 100)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        decode(content, How(max_pixels=10_000))
        decode(content, How(max_pixels=4_000_000_000))


PEAK = """
import resource, sys
from pathlib import Path
from pipeline.stages import embed
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
request = lambda folder: embed.Request(Path(folder), sys.argv[3], Path(folder, "e.parquet"), threads=2, device="cpu")
assert embed.run(request(sys.argv[1])) == 0
before = peak()
assert embed.run(request(sys.argv[2])) == 0
print(peak() - before)
"""


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("mode", "side"), [("1", 8000), ("RGBA", 8000), pytest.param("RGBA", 13370, marks=pytest.mark.long, id="the largest")]
)
def test_a_small_file_of_a_huge_image_takes_the_memory_that_the_key_says(
    tmp_path: Path, root: Path, mode: str, side: int
) -> None:
    for name, length in (("small", 40), ("huge", side)):
        (tmp_path / name).mkdir()
        Image.new(mode, (length, length)).save(tmp_path / name / "a.png")
    command = [sys.executable, "-c", PEAK, str(tmp_path / "small"), str(tmp_path / "huge"), "pixels:2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 24 * side**2, "bytes a pixel"


# ---------------------------------------------------------------- formats
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def test_heic_is_read_where_its_package_is_installed_and_else_the_error_names_it() -> None:
    try:
        import pillow_heif  # noqa: F401
    except ImportError:
        with pytest.raises(UnidentifiedImageError, match=r"it is HEIC, .*pip install pillow-heif"):
            decode(HEIC, How())
    else:
        assert decode(encoded(scene(64, 48), "HEIF"), How()).image.size == (64, 48)


# ---------------------------------------------------------------- the keys
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"range": "half"}, "full"),
        ({"range": [9, 9]}, "low must be less than high"),
        ({"range": [5]}, "range"),
        ({"background": "octarine"}, "octarine"),
        ({"background": "#ff000080"}, "transparent"),
        ({"exif": "maybe"}, "apply"),
        ({"max_pixels": 0}, "greater than or equal to 1"),
    ],
)
def test_choices_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Decoding.model_validate(values)


CHOICES: list[dict[str, Any]] = [
    {"range": "image"},
    {"range": [0, 4095]},
    {"background": "black"},
    {"exif": "apply"},
    {"max_pixels": 1_000_000},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_choice_makes_another_trial_of_other_images_and_a_default_that_is_named_does_not(choice: dict[str, Any]) -> None:
    plain, chosen = (Config.model_validate(named({"experiment": "x", "data": data})) for data in ({}, choice))
    (name,) = choice
    again = Config.model_validate(named({"experiment": "x", "data": {name: Decoding.model_fields[name].default}}))
    assert config_hash(plain) == config_hash(again) != config_hash(chosen)
    assert images_of(plain.data) == images_of(again.data) != images_of(chosen.data)
    assert how_of(chosen.data.decoding) == How(**{name: tuple(v) if isinstance(v := choice[name], list) else v})


# ---------------------------------------------------------------- extraction
@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twelve images, each kind of which something is told; a table of them."""
    for i in range(12):
        contents = (wide(stripes(0, 4095 - i), np.uint16), cut_out(i, "RGBA"), lying(6, "JPEG")[0])
        (tmp_path / f"{i}.img").write_bytes(contents[i % 3])
    rows = "".join(f"{i}.img,{'ab'[i % 2]}\n" for i in range(12))
    (tmp_path / "labels.csv").write_text(f"filename,label\n{rows}")
    return tmp_path / "labels.csv"


def config_for(table: Path, **data: Any) -> Config:
    values = {
        "task": "classify",
        "experiment": "x",
        "data": {"source": str(table), "label": "label", "columns": {"image": "filename", "id": "filename"}} | data,
        "backbone": {"kind": "pixels", "size": 2},
        "features": {"dtype": "fp32", "shard_size": 5},
        "loss": {"kind": "cross_entropy"},
        "model": {"head": {"kind": "logistic"}},
        "device": "cpu",
        "resources": {"decode_threads": 2, "extract_batch": 4},
        "paths": {"features": str(table.parent / "features"), "trained": str(table.parent / "trained")},
    }
    values["data"] |= {"split": {"kind": "folds", "n": 3}}
    return Config.model_validate(values)


def test_each_choice_has_its_own_features(photographs: Path) -> None:
    stores = [extract.run(config_for(photographs, **choice)) for choice in ({}, *CHOICES)]
    keys = [store.key for store in stores if store]
    assert len(set(keys)) == 6
    manifests = [read_json(store.dir.manifest) for store in stores if store]
    assert "correction" not in manifests[0]["ingredients"]
    assert manifests[4]["ingredients"]["correction"] == 'decoding 1: {"exif": "apply"}'


def test_what_is_told_of_images_is_a_line_for_each_kind_in_log_and_manifest(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = extract.run(config_for(photographs))
    assert store is not None
    said = [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines() if "the first" in line]
    assert (
        store.notes
        == said
        == [
            f"4 images (the first: {photographs}, line 2): {NARROW}",
            f"4 images (the first: {photographs}, line 3): {HIDDEN}",
            f"4 images (the first: {photographs}, line 4): {TURNED}",
        ]
    )
    told = read_json(store.dir.manifest)["notes"]
    assert told[NARROW] == [4, f"{photographs}, line 2"]
    quiet = extract.run(config_for(photographs, range="image", exif="apply"))
    assert quiet and [HIDDEN in line for line in quiet.notes] == [True]


@pytest.mark.jobs
def test_results_warn_of_it(photographs: Path, tmp_path: Path) -> None:
    config, trial = config_for(photographs), TrialDir(tmp_path / "trial")
    extract.run(config)
    train.run(config, trial)
    warned = evaluate.run(config, trial)["summary"]["warnings"]
    assert [line.rpartition(": ")[0] for line in warned if line.endswith(NARROW[-40:])]
