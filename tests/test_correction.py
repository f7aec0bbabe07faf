"""Colours by a card and scale by a bar: the same beetle comes out the same under any light and at any magnification."""

from __future__ import annotations

import ast
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from pipeline.backbones import load_backbone
from pipeline.config.identity import config_hash
from pipeline.config.trial import Config
from pipeline.data import correction, dataset, decoding
from pipeline.data.correction import CANVAS, GREY, balance, measure_gains, measure_period, place, rescale
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import write_json, write_text
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import dump_config
from pipeline.features.hashes import known_feature_key
from pipeline.features.store import FeatureStore
from pipeline.models.base import Facts
from pipeline.models.metadata import Names
from pipeline.models.saved import make_model, save_model
from pipeline.stages import extract, fetch
from pipeline.stages.predict import Origin, predict_files, predict_group
from pipeline.synthetic.beetles import Light, draw_colour_card, draw_scale_bar, encode
from pipeline.tasks import load_task
from tests.small import image_files, named, small_config

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16"]
Pixels = NDArray[Any]


def picture(values: Pixels) -> Image.Image:
    """An image, RGB, of values within 0 … 1."""
    return Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)).convert("RGB")


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image).astype(np.int64)


def patches(seed: int, high: float = 0.6) -> Pixels:
    """Patches of random colours [24, 32, 3]."""
    colours = np.random.default_rng(seed).uniform(0.1, high, (3, 4, 3))
    return colours.repeat(8, axis=0).repeat(8, axis=1)


# ---------------------------------------------------------------- colours
gains = st.tuples(*[st.floats(0.6, 1.6)] * 3)


@given(gains, st.integers(0, 1000))
def test_an_image_comes_out_the_same_under_any_light(light: tuple[float, ...], seed: int) -> None:
    image, card = patches(seed, 0.3), patches(seed + 1)
    plain = pixels(balance(picture(image), picture(card)))
    lit = pixels(balance(picture(image * light), picture(card * light)))
    assert np.abs(lit - plain).max() <= 4  # values are rounded to whole numbers twice


@given(st.integers(0, 1000))
def test_a_card_that_is_grey_already_changes_nothing(seed: int) -> None:
    image = picture(patches(seed, 1.0))
    assert np.array_equal(pixels(balance(image, Image.new("RGB", (20, 10), (int(GREY),) * 3))), pixels(image))


def test_a_card_brought_to_itself_is_grey_on_average() -> None:
    card = picture(patches(3))
    balanced = np.sort(pixels(balance(card, card)).reshape(-1, 3), axis=0)
    assert balanced[len(balanced) // 4 : -len(balanced) // 4].mean(0) == pytest.approx(GREY, abs=1)


def test_a_white_patch_that_is_burnt_out_does_not_count() -> None:
    """The generator's card: one of its six patches is white."""
    reference = np.array(measure_gains(picture(draw_colour_card(Light(1.0, np.ones(3), 0.7)))))
    bright = np.array(measure_gains(picture(draw_colour_card(Light(1.4, np.ones(3), 0.7)))))
    assert bright * 1.4 == pytest.approx(reference, rel=0.01)


@pytest.mark.parametrize(
    "card",
    [Image.new("RGB", (9, 9)), Image.new("RGB", (0, 0)), Image.new("RGB", (0, 5)), Image.new("RGB", (1, 1))],
    ids=["black", "empty", "no width", "one pixel"],
)
def test_a_card_that_tells_nothing_leaves_colours_as_they_are(card: Image.Image) -> None:
    image = picture(patches(5))
    assert np.array_equal(pixels(balance(image, card)), pixels(image))


def test_a_dark_card_brightens_only_so_far_and_each_channel_is_judged_alone() -> None:
    assert measure_gains(Image.new("RGB", (9, 9), (5, 0, int(GREY)))) == (4.0, 1.0, 1.0)


@pytest.mark.parametrize("mode", MODES)
def test_image_card_and_bar_may_be_of_any_mode(mode: str) -> None:
    image = decoding.to_rgb(Image.new(mode, (60, 40), 1 if mode in ("1", "I", "I;16") else 0))
    for corrected in (balance(image, image), rescale(image, image, 4)):
        assert corrected.mode == "RGB"


# ---------------------------------------------------------------- scale
def draw_bar(length: int, period: float, phase: float, noise: float = 0.0, seed: int = 0, across: int = 12) -> Image.Image:
    """A bar [across, length] whose stretches begin between pixels as they do in photographs, with noise of this sd."""
    place = np.arange(length * 8) / 8 / period + phase
    line = np.where(place % 1 < 0.5, 0.05, 0.85).reshape(length, 8).mean(1)
    values = line[None].repeat(across, 0) + noise * np.random.default_rng(seed).standard_normal((across, length))
    return picture(values)


@st.composite
def bars(draw: st.DrawFn) -> tuple[int, float, float, float, int]:
    """Length, period, phase, noise and seed of a bar of at least two periods and a bit."""
    length = draw(st.integers(48, 2000))
    period = draw(st.floats(6, length / 2.2))
    return length, period, draw(st.floats(0, 1)), draw(st.floats(0, 0.15)), draw(st.integers(0, 99))


@given(bars())
def test_the_period_of_a_bar_is_found_along_its_longer_side(bar: tuple[int, float, float, float, int]) -> None:
    length, period, phase, noise, seed = bar
    image = draw_bar(length, period, phase, noise, seed)
    upright = image.transpose(Image.Transpose.ROTATE_90)
    for each in (image, upright):
        assert measure_period(each) == pytest.approx(period, rel=0.03)


@given(st.floats(-0.5, 0.5), st.floats(12, 60), st.floats(0.25, 0.75))
def test_uneven_light_and_narrow_stretches_do_not_hide_it(slope: float, period: float, share: float) -> None:
    place = np.arange(200 * 8) / 8 / period
    line = np.where(place % 1 < share, 0.1, 0.6).reshape(200, 8).mean(1) * (1 + slope * np.linspace(-1, 1, 200))
    assert measure_period(picture(line[None].repeat(9, 0))) == pytest.approx(period, rel=0.03)


@given(st.integers(0, 47) | st.integers(100, 400), st.integers(0, 47), st.integers(0, 10_000))
def test_noise_is_no_bar(length: int, across: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (across, length), np.uint8)
    bar = Image.fromarray(noise) if noise.size else Image.new("L", (length, across))
    assert measure_period(bar) is None


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_no_image_and_no_bar_is_too_small_to_be_placed(width: int, height: int, length: int, across: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (across, length), np.uint8)
    bar = Image.fromarray(noise) if noise.size else Image.new("L", (length, across))
    assert rescale(Image.new("RGB", (width, height)), bar, 4).size == (CANVAS, CANVAS)


def test_a_very_long_bar_is_averaged_down_first() -> None:
    assert measure_period(draw_bar(9000, 311.7, 0.4)) == pytest.approx(311.7, rel=0.01)


@pytest.mark.parametrize("margin", [5, 20, 35, 100])
def test_plain_ground_at_the_ends_of_a_bar_does_not_hide_it(margin: int) -> None:
    bar = Image.new("RGB", (160 + 2 * margin, 30), "white")
    bar.paste(draw_bar(160, 32, 0.0), (margin, 9))
    assert measure_period(bar) == pytest.approx(32, rel=0.03)


@pytest.mark.parametrize(
    "line",
    [np.full(200, 0.4), np.linspace(0, 1, 200), np.linspace(-1, 1, 200) ** 2, np.arange(200) < 100, np.arange(200) % 150 < 60],
    ids=["flat", "ramp", "shadow", "one edge", "one stretch"],
)
def test_what_does_not_repeat_is_no_bar(line: Pixels) -> None:
    assert measure_period(picture(line[None].repeat(9, 0).astype(float))) is None


def test_the_generators_bar_has_centimetres_of_ten_pixels() -> None:
    bar = Image.open(io.BytesIO(encode(draw_scale_bar(Light(0.8, np.array([1.1, 1.0, 0.9]), 0.7)))))
    assert measure_period(bar) == pytest.approx(20, rel=0.01)


def body(magnification: float) -> tuple[Image.Image, Image.Image]:
    """A beetle two periods long on grey ground, and its bar; a period of 20 pixels is magnified."""
    side = round(100 * magnification)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    ellipse = (x / (10 * magnification)) ** 2 + (y / (20 * magnification)) ** 2 < 1
    return picture(np.where(ellipse, 0.1, 0.7)), draw_bar(round(90 * magnification), 20 * magnification, 0.3)


@given(st.floats(0.6, 6))
def test_a_body_has_the_same_size_at_any_magnification(magnification: float) -> None:
    image, bar = body(magnification)
    dark = pixels(rescale(image, bar, 4))[..., 0] < 100
    assert dark.any(0).sum() == pytest.approx(CANVAS / 4, abs=5) and dark.any(1).sum() == pytest.approx(CANVAS / 2, abs=6)
    assert np.abs(np.argwhere(dark).mean(0) - CANVAS / 2).max() < 2, "in the middle"


def test_a_larger_beetle_is_larger_on_the_canvas_though_its_image_fills_the_frame_as_much() -> None:
    image, bar = body(1)
    twice = image.resize((200, 200))
    shares = [(pixels(rescale(each, bar, 5))[..., 0] < 100).mean() for each in (image, twice)]
    assert shares[1] == pytest.approx(4 * shares[0], rel=0.1)


@given(st.integers(1, 400), st.integers(1, 400), st.none() | st.floats(0.5, 500), st.floats(0.1, 20))
def test_the_canvas_has_one_size_and_the_colour_of_the_images_border(
    width: int, height: int, period: float | None, span: float
) -> None:
    canvas = pixels(place(Image.new("RGB", (width, height), (200, 30, 90)), period, span))
    assert canvas.shape == (CANVAS, CANVAS, 3) and np.ptp(canvas, axis=(0, 1)).max() == 0
    assert canvas[0, 0].tolist() == [200, 30, 90]


def test_without_a_period_the_image_is_as_large_as_fits() -> None:
    image = picture(np.kron(np.eye(2), np.ones((100, 200))))
    canvas = pixels(place(image, None, 4))[..., 0]
    top, left, bottom = canvas[60, 10], canvas[160, 10], canvas[160, 210]
    assert (top, left, bottom) == (255, 0, 255)


def test_a_coarse_bar_makes_no_image_larger_than_the_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *rest: sizes.append(size) or resize(self, size, *rest))
    place(Image.new("RGB", (3000, 2000)), 6.0, 0.5)
    assert sizes == [(CANVAS, CANVAS)]


# ---------------------------------------------------------------- standing alone
@pytest.mark.parametrize("module", [correction, decoding])
def test_the_module_can_be_copied_into_a_submission(module: Any) -> None:
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names == {"numpy", "PIL"}


# ---------------------------------------------------------------- from data to features
CARD, BAR = "colorpicker_full_path", "scalebar_full_path"


@pytest.fixture(autouse=True)
def _measured_anew() -> Iterator[None]:
    dataset._gains.cache_clear()
    dataset._period.cache_clear()
    yield


def config_for(table: Path, root: Path, size: int = 1, **data: Any) -> Config:
    """Mean colours, or pixels, of forty beetles."""
    columns = {"group": "eventID", "domain": "domainID", "colour_card": CARD, "scale_bar": BAR}
    values = small_config(table, Path(), root, data={"columns": columns, **data}).model_dump()
    return Config.model_validate(named({**values, "backbone": {"kind": "pixels", "size": size}}))


def features(store: FeatureStore | None) -> Pixels:
    assert store
    return torch.cat([load_file(store.path(shard))["features"] for shard in range(store.n_shards)]).numpy()


def test_the_light_of_an_event_is_gone_from_corrected_features(table: Path, tmp_path: Path) -> None:
    plain, card = (extract.run(config_for(table, tmp_path, colour_card=on)) for on in (False, True))
    assert plain and card and plain.key != card.key
    assert "correction" not in plain.ingredients.as_dict() and card.ingredients.as_dict()["correction"]
    events = load_task("beetles").load(config_for(table, tmp_path).data).table.groupby("group").indices.values()

    def tint(colours: Pixels) -> float:
        ratios = np.log(colours[:, 0] / colours[:, 2])
        return float(np.std([ratios[rows].mean() for rows in events]))

    assert tint(features(card)) < tint(features(plain)) / 3


def test_columns_that_are_named_and_not_used_leave_key_and_records_alone(table: Path, tmp_path: Path) -> None:
    named = config_for(table, tmp_path)
    unnamed = config_for(table, tmp_path, columns={"group": "eventID", "domain": "domainID"})
    stores = [extract.run(config) for config in (named, unnamed)]
    assert stores[0] and stores[1] and stores[0].key == stores[1].key
    assert len(list((tmp_path / "records").glob("data-*.json"))) == 1


def test_each_use_of_card_and_bar_has_its_own_key(table: Path, tmp_path: Path) -> None:
    uses = [{"colour_card": True}, {"scale_bar": True}, {"colour_card": True, "scale_bar": True}]
    configs = [config_for(table, tmp_path, 2, **use) for use in ({}, *uses, {"scale_bar": True, "canvas": 4})]
    keys = [store.key for store in map(extract.run, configs) if store]
    assert len(set(keys)) == 5 and [known_feature_key(config) for config in configs] == keys


def test_another_card_makes_another_key_for_those_who_use_it(own: Path, tmp_path: Path) -> None:
    configs = [config_for(own, tmp_path, colour_card=on) for on in (False, True)]
    before = [extract.prepare(config).store.key for config in configs]
    picture(patches(1)).save(image_files(own, CARD)[3], "PNG")
    assert known_feature_key(configs[0]) == before[0] and known_feature_key(configs[1]) is None
    after = [extract.prepare(config).store.key for config in configs]
    assert after[0] == before[0] and after[1] != before[1]


def test_a_card_changed_behind_the_records_back_is_noticed(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(own, tmp_path, colour_card=True)
    extract.prepare(config)
    monkeypatch.setattr(dataset.Dataset, "signature", lambda self: signature)
    signature = dataset.signature(config.data)
    image_files(own, CARD)[0].write_bytes(encode(patches(2).astype(np.float32)))
    with pytest.raises(WorkError, match=r"line 2: image, colour card or scale bar is not what.*Run this again"):
        extract.run(config)


@pytest.mark.parametrize(("name", "column"), [("colour_card", CARD), ("scale_bar", BAR)])
def test_a_missing_card_or_bar_is_named_and_can_be_skipped(own: Path, tmp_path: Path, name: str, column: str) -> None:
    lost = image_files(own, column)[12]
    lost.unlink()
    without = [i for i, file in enumerate(image_files(own, column)) if file == lost]
    for run in (extract.run, lambda config: fetch.run([config])):
        with pytest.raises(UserError, match=rf"line {without[0] + 2}: the {name.replace('_', ' ')} in column {column}"):
            run(config_for(own, tmp_path, **{name: True}))
    store = extract.run(config_for(own, tmp_path, on_bad_image="skip", **{name: True}))
    assert store and list(store.bad) == without
    assert extract.run(config_for(own, tmp_path)), "who does not use it does not miss it"


def test_a_card_of_many_specimens_is_measured_once(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Image.Image] = []
    monkeypatch.setattr(correction, "measure_gains", lambda card: measured.append(card) or (1.0, 1.0, 1.0))
    data = load_task("beetles").load(config_for(table, tmp_path, colour_card=True).data)
    for i in range(len(data)):
        data.image(i)
    assert len(measured) == data.table["group"].nunique() < len(data)


# ---------------------------------------------------------------- new images
@pytest.fixture
def make_trial(table: Path, tmp_path: Path) -> Callable[..., TrialDir]:
    """A trial whose model was drawn, trained on images corrected as the arguments say."""

    def make(**data: Any) -> TrialDir:
        config, folder = config_for(table, tmp_path, 4, **data), TrialDir(tmp_path / "trial")
        backbone = load_backbone(config.backbone)
        facts = Facts(config.data.targets, Names(("1", "3")), backbone.embed_dim, backbone.weights_hash(), None, "key")
        save_model(make_model(config, facts, backbone), facts, folder)
        write_text(folder.config, dump_config(config))
        write_json(folder.trained, {"config_hash": config_hash(config)})
        return folder

    return make


def test_new_images_are_corrected_like_those_of_the_data(
    make_trial: Callable[..., TrialDir], table: Path, tmp_path: Path
) -> None:
    trial = make_trial(colour_card=True, scale_bar=True)
    data = load_task("beetles").load(config_for(table, tmp_path, colour_card=True, scale_bar=True).data)
    data.image(7).save(tmp_path / "corrected.png")
    origin = Origin(colour_card=image_files(table, CARD)[7], scale_bar=image_files(table, BAR)[7])
    (predicted,) = predict_files(trial.path, [image_files(table)[7]], origin, "cpu")
    config = config_for(table, tmp_path, 4)  # the same model, for images that are corrected already
    write_text(trial.config, dump_config(config))
    write_json(trial.trained, {"config_hash": config_hash(config)})
    (expected,) = predict_files(trial.path, [tmp_path / "corrected.png"], Origin(), "cpu")
    assert predicted == expected


@pytest.mark.parametrize("name", ["colour_card", "scale_bar"])
def test_a_trial_that_needs_card_or_bar_says_how_to_name_it(make_trial: Callable[..., TrialDir], table: Path, name: str) -> None:
    trial, files = make_trial(**{name: True}), image_files(table)[:1]
    option = f"--{name.replace('_', '-')} FILE"
    for predict in (predict_group, lambda *arguments: list(predict_files(*arguments))):
        with pytest.raises(UserError, match=option):
            predict(trial.path, files, Origin(), "cpu")
    with pytest.raises(UserError, match=r"none\.png does not exist"):
        list(predict_files(trial.path, files, Origin(None, (), Path("none.png"), Path("none.png")), "cpu"))


def test_a_card_that_a_trial_does_not_use_is_said_to_be_unused(
    make_trial: Callable[..., TrialDir], table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial, files = make_trial(), image_files(table)[:2]
    plain = list(predict_files(trial.path, files, Origin(), "cpu"))
    assert list(predict_files(trial.path, files, Origin(colour_card=Path("none.png")), "cpu")) == plain
    assert capsys.readouterr().err.count("--colour-card is not used") == 1
