"""Where a model looks: what is said to matter most does, wherever the model was made to look, and what cannot be explained is
refused in words."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone
from pipeline.cli import main
from pipeline.config.identity import config_hash, token_kind
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.errors import UserError
from pipeline.experiments.reading import dump_config, load_experiment
from pipeline.metrics import attribution as metrics
from pipeline.metrics.attribution import Deletion
from pipeline.models.base import Facts, Model, TextFacts
from pipeline.models.estimators import OfSome, Rows
from pipeline.models.metadata import Names
from pipeline.models.saved import make_model, save_model
from pipeline.stages.explain import Explained, Request, run
from pipeline.stages.predict import Origin, predict_files
from tests.conftest import Assets
from tests.small import named
from tests.test_open_clip_folder import with_simple_tokens
from tests.towers import write_model

SIDE = 64


# ---------------------------------------------------------------- cells
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(2, 64))
def test_cells_are_about_square_and_tile_the_image(width: int, height: int, cells: int) -> None:
    grid = metrics.grid_of(width, height, cells)
    for n, side in zip(grid, (height, width), strict=True):
        edges = metrics.edges(n, side)
        assert 1 <= n <= cells and (edges[0], edges[-1]) == (0, side) and (np.diff(edges) >= 1).all()
    if min(width, height) > cells >= 8 and max(width, height) < 4 * min(width, height):
        assert 0.5 <= (width / grid[1]) / (height / grid[0]) <= 2


boxes = st.tuples(st.floats(0, 0.4), st.floats(0, 0.4), st.floats(0.6, 1), st.floats(0.6, 1))


@given(boxes, st.integers(1, 7), st.integers(1, 7), st.integers(2, 9), st.integers(0, 10**6))
def test_cells_of_a_part_are_shared_out_whole(
    box: tuple[float, float, float, float], rows: int, columns: int, n: int, seed: int
) -> None:
    cells = np.random.default_rng(seed).normal(size=(rows, columns))
    assert metrics.spread(cells, box, (n, n + 1)).sum() == pytest.approx(cells.sum())


def test_cells_of_a_part_lie_where_it_is() -> None:
    quarters = np.array([[1.0, 2], [3, 4]])
    assert np.array_equal(metrics.spread(quarters, (0, 0, 1, 1), (2, 2)), quarters)
    lower = metrics.spread(quarters, (0.5, 0.5, 1, 1), (4, 4))
    assert np.array_equal(lower[2:, 2:], quarters) and lower.sum() == 10
    beyond = metrics.spread(np.ones((2, 2)), (-1, 0, 1, 1), (1, 1))  # half of it lies left of the image
    assert beyond.item() == 2


@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 10**6))
def test_of_a_figure_that_cells_add_up_to_the_right_cells_hold_and_their_opposite_does_not(
    rows: int, columns: int, seed: int
) -> None:
    cells = np.random.default_rng(seed).normal(size=(rows, columns))

    def check(said: Any) -> Deletion:
        without = [cells[~mask].sum() for mask in (metrics.most(said), *metrics.random_masks(rows, columns))]
        return Deletion(cells.sum(), without[0], np.array(without[1:]), metrics.direction(said))

    assert check(cells).holds and check(cells).beaten >= 5 and check(cells).change > 0
    assert not check(-cells).holds


def test_random_cells_are_a_tenth_the_same_each_time_and_nothing_everywhere_does_not_hold() -> None:
    masks = metrics.random_masks(14, 9)
    assert (masks.sum(axis=(1, 2)) == 13).all() and len(np.unique(masks.reshape(10, -1), axis=0)) == 10
    assert np.array_equal(masks, metrics.random_masks(14, 9))
    assert not Deletion(1.0, 1.0, np.ones(10), 1).holds


# ---------------------------------------------------------------- models that were made to look somewhere
Change = Callable[[Model, Backbone], None]


@pytest.fixture(scope="module")
def config_for(assets: Assets) -> Callable[..., Config]:
    """A trial's config: `config_for("lora", "train.epochs=2")`."""
    return lambda method, *more: load_experiment(f"configs/beetles/{method}.yaml", (*assets.overrides(method), *more)).config


def made(
    config: Config, folder: Path, change: Change | None = None, targets: tuple[str, ...] = (), text: TextFacts | None = None
) -> TrialDir:
    """A trial whose model is as it was drawn, or as `change` leaves it."""
    trial, backbone, blocks = TrialDir(folder), load_backbone(config.backbone), token_kind(config)[1]
    cut, learnt = backbone.cut_before(blocks) if blocks else None, targets or config.data.targets
    facts = Facts(learnt, Names(("1", "3")), backbone.embed_dim, backbone.weights_hash(), cut, "key", text=text)
    model = make_model(config, facts, backbone)
    if change:
        with torch.no_grad():
            change(model, backbone)
    save_model(model, facts, trial)
    write_text(trial.config, dump_config(config))
    write_json(trial.trained, {"config_hash": config_hash(config)})
    return trial


def quarters(seed: int) -> tuple[np.ndarray, Image.Image]:
    """An image of four greys, and these."""
    greys = np.random.default_rng(seed).integers(0, 255, (2, 2))
    return greys / 255, Image.fromarray(np.kron(greys, np.ones((SIDE // 2, SIDE // 2))).astype("uint8")).convert("RGB")


def look_at_lower_right(model: Model, backbone: Backbone) -> None:
    """Fit the head to the grey of the lower right quarter."""
    drawn = [quarters(seed) for seed in range(300)]
    inputs = torch.stack([backbone.transform(image) for _, image in drawn])
    x = model.encode(torch.cat([backbone.embed(some) for some in inputs.split(100)])).double()
    y = torch.tensor(np.array([greys[1, 1] for greys, _ in drawn]))
    centred = x - x.mean(0)
    weights = torch.linalg.solve(centred.T @ centred + 1e-6 * torch.eye(x.shape[1]), centred.T @ (y - y.mean()))
    (linear,) = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
    linear.weight.copy_(weights[None])
    linear.bias.copy_((y.mean() - x.mean(0) @ weights)[None])


TTA = ("evaluate.tta=[1,1]",)
ONE = ("data.targets=[SPEI_30d]", "model.normalize=false", "model.head={kind: ridge}")


def explained(trial: TrialDir, folder: Path, images: list[Image.Image], **how: Any) -> list[Explained]:
    for i, image in enumerate(images):
        image.save(folder / f"{i}.png")
    files = [folder / f"{i}.png" for i in range(len(images))]
    return run(Request(trial.path, files, folder / "out", **{"device": "cpu", "n_cells": 4, **how}), [])


@pytest.fixture(scope="module", params=["frozen", "dinov2", "pixels"])
def looking(request: Any, config_for: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> TrialDir:
    """A linear head on an embedding, that was fitted to one quarter."""
    of_tokens = ("model.encoder={kind: frozen}", "backbone.pooling=cls_mean") if request.param == "dinov2" else ()
    return made(config_for(request.param, *ONE, *of_tokens), tmp_path_factory.mktemp("looking"), look_at_lower_right)


def test_a_model_that_looks_at_one_quarter_is_explained_by_it(looking: TrialDir, tmp_path: Path) -> None:
    found = explained(looking, tmp_path, [quarters(1000 + i)[1] for i in range(3)], n_cells=2)
    assert [(one.target, one.method) for one in found[0].found] == [("SPEI_30d", "occlusion"), ("SPEI_30d", "gradient")]
    for place in (0, 1):
        of = [image.found[place] for image in found]
        sizes = sum(np.abs(one.cells) for one in of)
        assert sizes[1, 1] > 0.5 * sizes.sum() and all(one.check.holds for one in of), sizes


def test_gradients_of_all_cells_are_what_an_empty_image_changes(looking: TrialDir, tmp_path: Path) -> None:
    _, image = quarters(7)
    (one,) = explained(looking, tmp_path, [image], method="gradient")[0].found
    image.resize((1, 1), Image.Resampling.BOX).resize((SIDE, SIDE)).save(tmp_path / "empty.png")
    (empty,) = predict_files(looking.path, [tmp_path / "empty.png"], Origin(), "cpu")
    assert one.cells.sum() == pytest.approx(one.check.figure - empty["SPEI_30d"], rel=0.05, abs=0.005)


def test_two_streams_are_explained_where_each_is_in_the_image(config_for: Callable[..., Config], tmp_path: Path) -> None:
    """Of a head that reads the embedding of the right half alone."""

    def look_right(model: Model, backbone: Backbone) -> None:
        (linear,) = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1]
        linear.weight[:, : linear.in_features // 2] = 0

    views = "backbone.views={crops: [left, right], tiles: [2, 1], poses: [hflip]}", "evaluate.tta=[1,1]"
    trial = made(config_for("pixels", *ONE, *views), tmp_path / "trial", look_right)
    for one in explained(trial, tmp_path, [quarters(3)[1]])[0].found:
        assert np.abs(one.cells[:, :2]).max() < 1e-6 < np.abs(one.cells[:, 2:]).min(), one.method


# ---------------------------------------------------------------- every kind
KINDS = {
    "frozen": (),
    "finetune": ("model.encoder.blocks=2",),
    "lora": ("model.encoder.blocks=2", "model.encoder.r=2"),
    "dinov2": ("model.encoder.channels=16",),
    "augmentation": ("backbone={kind: timm, name: resnet10t, image_size: 32}", "model.encoder={kind: end_to_end}"),
    "baseline": ("model.encoder={kind: projection}", "model.head.hidden=[8]"),
}


@pytest.mark.jobs
@pytest.mark.parametrize("method", KINDS)
def test_whatever_learns_by_descent_is_explained_by_both_methods(
    method: str, config_for: Callable[..., Config], tmp_path: Path
) -> None:
    trial = made(config_for(method, *KINDS[method]), tmp_path / "trial")
    found = explained(trial, tmp_path, [quarters(1)[1]], n_cells=2, targets=("SPEI_2y",))[0].found
    assert [(one.target, one.method) for one in found] == [("SPEI_2y", "occlusion"), ("SPEI_2y", "gradient")]
    assert all(np.abs(one.cells).max() > 0 for one in found)


@pytest.fixture(scope="module")
def classifier(config_for: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> TrialDir:
    """scikit-learn's, of the lower right quarter: light or dark."""
    values = {"task": "classify", "data": {"source": "x", "label": "grey"}, "loss": {"kind": "cross_entropy"}}
    values |= {"experiment": "x", "model": {"head": {"kind": "logistic"}, "normalize": False}, "device": "cpu"}
    config = Config.model_validate(named(values | {"backbone": {"kind": "pixels", "size": 2}, "features": {"dtype": "fp32"}}))

    def fit(model: Any, backbone: Backbone) -> None:
        drawn = [quarters(seed) for seed in range(60)]
        x = backbone.embed(torch.stack([backbone.transform(image) for _, image in drawn])).double().numpy()
        labels = np.array([int(greys[1, 1] < 0.5) for greys, _ in drawn])
        rows = Rows(x, labels, np.full(60, -1), np.arange(60))
        model.estimator = OfSome(model.recipe.fit(rows, [], 0)[-1], (0, 1), 2)

    return made(config, tmp_path_factory.mktemp("classifier") / "trial", fit, ("grey=light", "grey=dark"))


def test_the_most_probable_class_is_explained_and_a_head_without_gradients_by_trying_alone(
    classifier: TrialDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = [quarters(seed) for seed in range(100, 104)]
    found = explained(classifier, tmp_path, [image for _, image in drawn], n_cells=2)
    assert "explained by occlusion alone: the head (Classifier) has no gradients" in capsys.readouterr().err
    for (greys, _), each in zip(drawn, found, strict=True):
        (one,) = each.found
        assert (one.target, one.method) == ("grey=light" if greys[1, 1] >= 0.5 else "grey=dark", "occlusion")
        assert np.abs(one.cells).argmax() == 3
    with pytest.raises(UserError, match=r"the head .Classifier. has no gradients: --method occlusion works"):
        run(Request(classifier.path, [tmp_path / "0.png"], tmp_path / "more", method="gradient"), [])
    again = run(Request(classifier.path, [tmp_path / "0.png"], tmp_path / "named", ["dark", "grey=dark"], "occlusion"), [])
    assert [one.target for one in again[0].found] == ["grey=dark"]


def test_a_class_of_two_towers_is_explained_by_its_similarity(tmp_path: Path) -> None:
    write_model(tmp_path / "clip", with_simple_tokens("ViT-B-32"))
    own = ("data.source=x.csv", f"backbone.name=local-dir:{tmp_path / 'clip'}", "device=cpu", "features.dtype=fp32")
    own += ("model.text={kind: frozen}",)
    config = load_experiment(PROJECT / "configs/species/projection.yaml", own).trials[0].config
    text, names = TextFacts("", None, "key", 2.0, None), ("Abax ater", "Carabus niger")
    trial = made(config, tmp_path / "trial", lambda model, _: model.get_buffer("classes").normal_(), names, text)
    found = explained(trial, tmp_path, [quarters(1)[1]], n_cells=2, targets=("Carabus niger",))[0].found
    assert [one.method for one in found] == ["occlusion", "gradient"] and -1 <= found[0].check.figure <= 1


@pytest.mark.parametrize("method", ["climatology", "metadata"])
def test_a_model_that_looks_at_no_image_is_refused(method: str, config_for: Callable[..., Config], tmp_path: Path) -> None:
    trial = made(config_for(method), tmp_path / "trial")
    with pytest.raises(UserError, match="looks at no image"):
        explained(trial, tmp_path, [quarters(1)[1]])
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- the command
def typed(*arguments: str | Path) -> tuple[int, str, str]:
    """Status, what is printed, and messages of `carabid explain`."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        patch.setattr(sys, "argv", ["carabid", "explain", *map(str, arguments), "--device", "cpu", "--patches", "3"])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def plain(config_for: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> TrialDir:
    return made(config_for("pixels"), tmp_path_factory.mktemp("plain") / "trial")


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    """Two of one name, and one that is none."""
    files = [tmp_path / "a" / "x.png", tmp_path / "b" / "X.png", tmp_path / "c.png"]
    for i, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        quarters(i)[1].save(file)
    files[2].write_bytes(b"none")
    return files


def test_the_same_command_writes_the_same_pictures_and_numbers_and_nothing_over_others(
    plain: TrialDir, photographs: list[Path], tmp_path: Path
) -> None:
    status, out, err = typed(plain.path, *photographs, "--out", tmp_path / "one")
    assert status == 1 and "c.png is not a readable image" in err and "1 of 3 images" in err and "10 of 10" in out
    written = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    assert set(written) == {"x.png", "X~2.png", "explain.csv", "explain.json"}
    assert typed(plain.path, *photographs[:2], "--out", tmp_path / "two")[0] == 0
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "two").iterdir()}
    status, _, err = typed(plain.path, photographs[0], "--out", tmp_path / "one")
    assert status == 2 and "exists, and is no empty folder" in err
    assert written == {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}


def test_what_is_written_tells_what_each_image_loses(plain: TrialDir, photographs: list[Path], tmp_path: Path) -> None:
    arguments = ("--target", "SPEI_2y", "--target", "SPEI_1y", "--fill", "blur", "--method", "gradient")
    typed(plain.path, photographs[0], *arguments, "--out", tmp_path / "out")
    table, record = pd.read_csv(tmp_path / "out" / "explain.csv"), read_json(tmp_path / "out" / "explain.json")
    assert table[["target", "method"]].to_numpy().tolist() == [["SPEI_2y", "gradient"], ["SPEI_1y", "gradient"]]
    (image,) = record["images"]
    assert record["fill"] == "blur" and image["picture"] == "x.png" and np.shape(image["found"][0]["cells"]) == (3, 3)
    first = table.iloc[0]
    assert abs(first["predicted"] - first["without_most"]) == pytest.approx(abs(first["change"]))
    (said,) = predict_files(plain.path, [photographs[0]], Origin(), "cpu")
    assert first["predicted"] == pytest.approx(said["SPEI_2y"], abs=1e-6)
    with Image.open(tmp_path / "out" / "x.png") as picture:
        assert min(picture.size) > 600


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--target", "SPEI_1d"), "--target SPEI_1d: the trial says nothing of that; did you mean SPEI_1y?"),
        (("--method", "gradcam"), "--method gradcam: there are: both, occlusion, gradient"),
        (("--fill", "black"), "--fill black: there are: mean, blur"),
        (("--species", "a", "--species", "b"), "2 names for 1 images"),
    ],
)
def test_what_there_is_not_is_refused_before_anything_is_written(
    plain: TrialDir, photographs: list[Path], tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    status, _, err = typed(plain.path, photographs[0], *arguments, "--out", tmp_path / "out")
    assert status == 2 and said in err and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what a backbone is shown
def test_what_a_backbone_is_shown_is_found_by_trying(config_for: Callable[..., Config]) -> None:
    def backbone_of(*how: str) -> Backbone:
        return load_backbone(config_for(*how).backbone)

    assert backbone_of("frozen").shown((300, 200))[0] == pytest.approx((1 / 6, 0, 5 / 6, 1), abs=0.01)  # crops the middle
    assert backbone_of("dinov2").shown((50, 120))[0] == pytest.approx((0, 35 / 120, 1, 85 / 120), abs=0.01)
    views = backbone_of("frozen", "backbone.views={crops: [right], tiles: [2, 1]}").shown((90, 70))
    assert views == [(0.5, 0, 1, 0.5), (0.5, 0.5, 1, 1)]


@pytest.mark.parametrize(
    "backbone",
    [
        "backbone={kind: concat, parts: [{kind: pixels, size: 2}, {kind: pixels, size: 4}]}",
        "backbone={kind: timm, name: resnet10t, views: {sizes: [32, 64], poses: [hflip]}}",
    ],
)
def test_what_is_given_in_one_vector_is_seen_as_the_pictures_that_it_is_made_of(
    backbone: str, config_for: Callable[..., Config]
) -> None:
    loaded, (_, image) = load_backbone(config_for("pixels", backbone, *TTA * ("views" in backbone)).backbone), quarters(5)
    seen = loaded.seen(loaded.transform(image))
    low = seen[0].min()
    for picture in seen[:2]:
        rows, columns = (side // 2 for side in picture.shape[1:])
        corner = picture[:, :rows, :columns]
        assert corner.shape[0] == 3 and (corner - seen[0][:, :1, :1]).abs().max() < 0.6 and picture.min() >= low - 0.6
    assert len(loaded.shown(image.size)) == 2 and len(seen) == (4 if "views" in backbone else 2)
