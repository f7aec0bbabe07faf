"""The exported submission: in an environment without this package it forecasts what `carabid predict` does."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.backbones import halves, load_backbone
from pipeline.backbones.base import Backbone
from pipeline.config.identity import config_hash, token_kind
from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.writing import write_json, write_text
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import dump_config, load_experiment
from pipeline.export.check import check
from pipeline.export.clean import environment
from pipeline.export.codabench import export
from pipeline.export.seal import seal
from pipeline.features.forward import compute_features
from pipeline.models.base import Facts
from pipeline.models.baselines import Boosting, Climatology
from pipeline.models.learner import Learner
from pipeline.models.metadata import Metadata, Names
from pipeline.models.novelty import Novelty
from pipeline.models.saved import make_model, save_model
from pipeline.stages import collect
from pipeline.stages.predict import Origin, predict_group
from pipeline.tasks import load_task
from pipeline.training.samples import feature_scale
from tests.conftest import Assets
from tests.test_ensembles import MLP, finish
from tests.test_fetch import in_cache

pytestmark = pytest.mark.jobs

TARGETS = ("SPEI_30d", "SPEI_1y", "SPEI_2y")
NAMES = Names(("1", "3"), ("Carabus goryi", "Tetracha carolina"), ("ABCD",))
EVENTS: dict[str, tuple[str | None, int, str | None]] = {
    "known": ("3", 3, "Carabus goryi"),
    "single": ("1", 1, "Carabus nemoralis"),
    "new": ("99", 4, None),
}
"""Event → domain, number of images, scientific name."""

MODELS = """
import importlib, json, sys
from PIL import Image

def models(folders):
    for folder in folders:
        sys.path.insert(0, folder)
        for name in ("model", "network", "towers", "plain", "correction", "decoding", "seal"):
            sys.modules.pop(name, None)
        yield folder, importlib.import_module("model").Model()
"""
"""The models of exported folders, each made as the platform does."""

DRIVER = f"""{MODELS}
folders, groups, said = json.load(open(sys.argv[1])), json.load(open(sys.argv[2])), {{}}
for folder, model in models(folders):
    said[folder] = {{}}
    try:
        model.load()
    except ValueError as error:
        said[folder] = str(error)
        continue
    for group, (domain, files, species) in groups.items():
        known = {{"domainID": domain and int(domain), "scientificName": float("nan") if species is None else species}}
        cards = {{"colorpicker_img": Image.open(sys.argv[4]), "scalebar_img": Image.open(sys.argv[5])}}
        points = [{{"relative_img": Image.open(f), **cards, **known}} for f in files]
        said[folder][group] = model.predict(points)
        assert all(type(v) is float for each in said[folder][group].values() for v in each.values())
assert not {{"pipeline", "peft"}} & set(sys.modules)
json.dump(said, open(sys.argv[3], "w"))
"""
"""Lets exported folders forecast the groups, or say why they do not."""

TABLE_DRIVER = f"""{MODELS}
import io
import pandas as pd
def read(cell): return Image.open(io.BytesIO(cell["bytes"]))
folders, said = json.load(open(sys.argv[1])), {{}}
for folder, model in models(folders):
    model.load()
    said[folder] = {{}}
    for group, rows in pd.read_parquet(sys.argv[2]).groupby("eventID"):
        points = [{{"relative_img": read(row.file_path), "colorpicker_img": read(row.colorpicker_full_path), "scalebar_img": None,
                   "scientificName": row.scientificName, "domainID": row.domainID}} for row in rows.itertuples()]
        said[folder][str(group)] = model.predict(points)
json.dump(said, open(sys.argv[3], "w"))
"""
"""The same of a table in the challenge's schema."""


def trial_of(config: Config, folder: Path, seed: int = 0) -> TrialDir:
    """A trial's folder with a model whose every tensor is moved, so that none is at a start that hides it."""
    trial, backbone = TrialDir(folder), load_backbone(config.backbone)
    encoder = config.model.encoder
    cut = backbone.cut_before(encoder.blocks) if encoder.kind in ("finetuned", "lora") else None
    facts = Facts(config.data.targets, NAMES, backbone.embed_dim, backbone.weights_hash(), cut, "key")
    model = make_model(config, facts, backbone)
    if isinstance(model, Learner):
        _disturb(model, seed)
        _remember(model, config, backbone, cut or 0)
    else:
        _teach(model)
    save_model(model, facts, trial)
    write_text(trial.config, dump_config(config))
    means, sds = (dict.fromkeys(config.data.targets, value) for value in (0.5 + seed, 1.5))
    record = {
        "config_hash": config_hash(config),
        "calibration": calibration(config, seed),
        "train_means": means,
        "train_sds": sds,
    }
    write_json(trial.trained, record)
    return trial


def _disturb(model: Learner, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        if len(model.feature_mean) > 1:  # standardised
            model.feature_mean.copy_(0.1 * torch.randn(model.feature_mean.shape, generator=generator))
            model.feature_scale.copy_(0.5 + torch.rand(model.feature_scale.shape, generator=generator))
        model.target_mean.copy_(torch.tensor([0.1, 0.4, 0.5])[: len(model.target_mean)])
        model.target_scale.copy_(torch.tensor([1.0, 1.1, 1.2])[: len(model.target_scale)])


def _remember(model: Learner, config: Config, backbone: Backbone, cut: int) -> None:
    """A range of which about half of the photographs lie out, and some of what is said of them."""
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 255, (90, 80, 3)).astype("uint8")) for _ in range(12)]
    with torch.inference_mode():
        features = compute_features(backbone, torch.stack(list(map(backbone.transform, images))), token_kind(config)[0], cut)
        encoded = model.encoder(features).clone()
    model.novelty = Novelty.of(feature_scale(encoded.numpy()), encoded, torch.tensor([[-0.2] * 3, [0.6] * 3]))
    model.novelty.reach *= 0.7


def _teach(model: Climatology | Boosting) -> None:
    """Events of two domains and of a third whose targets differ."""
    n, rng = 60, np.random.default_rng(0)
    domains = np.arange(n) % 3
    targets = torch.from_numpy(rng.normal(domains[:, None], 1, (n, 3))).float()
    rows = torch.from_numpy(domains)
    if isinstance(model, Climatology):
        model.learn(Metadata(rows, *(torch.zeros(n, dtype=torch.int64) for _ in range(4))), targets)
        return
    import lightgbm

    columns = np.stack([domains.clip(max=1), rng.integers(0, 2, n), np.full(n, np.nan), np.full(n, np.nan)], 1)
    options = {"verbose": -1, "min_data_in_leaf": 2, "num_leaves": 4}
    model.learn(
        [
            lightgbm.train(options, lightgbm.Dataset(columns, y.clone().numpy()), 5).model_to_string()
            for y in targets.T.contiguous()
        ]
    )


def calibration(config: Config, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    if config.calibrate.kind == "spread":
        return {target: {part: {"alone": 0.4} for part in ("in_domain", "out_of_domain")} for target in config.data.targets}
    values = ("shared", "own", "bias", "slope", "floor", "usual", "usual_sd")
    return {
        target: {
            part: dict(zip(values, rng.uniform(0.2, 1.5, len(values)), strict=True)) for part in ("in_domain", "out_of_domain")
        }
        for target in config.data.targets
    }


@pytest.fixture(autouse=True)
def same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A submission, which has Pillow alone, sees what is shrunk much within 1 of 255 of what its trial sees; here to the bit, so
    that nothing else may differ."""
    monkeypatch.setattr(halves, "_shrinks", lambda *_: (1.0, 1.0))


@pytest.fixture(scope="module")
def clean() -> Iterator[Path]:
    """The interpreter of an environment of whitelisted packages alone."""
    with environment(None) as interpreter:
        yield interpreter


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Images of each group, in the modes that people save."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    modes, found, i = ["RGB", "RGBA", "L", "P", "I;16", "RGB", "turned", "RGBA"], {}, 0
    for group, (_, n, _) in EVENTS.items():
        found[group] = []
        for _ in range(n):
            pixels = rng.integers(0, 255, (90 + 7 * i, 80, 3)).astype("uint8")
            file = folder / f"{i}.png"
            _save(pixels, modes[i % len(modes)], file)
            found[group].append(file)
            i += 1
    return found


def _save(pixels: np.ndarray, mode: str, file: Path) -> None:
    """In a mode; of 12 bits in 16, with a hole, or with an orientation by EXIF."""
    image, exif = Image.fromarray(pixels), Image.Exif()
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 16)
    elif mode == "RGBA":
        image.putalpha(Image.fromarray(pixels[..., 1] // 2 * 2 * (np.arange(pixels.shape[1]) > 30).astype(np.uint8)))
    elif mode == "turned":
        exif[0x0112] = 6
    else:
        image = image.convert(mode)
    image.save(file, exif=exif)


def beside(folder: Path) -> tuple[Path, Path]:
    """The colour card and the scale bar of all of them, drawn if they are not there."""
    card, bar = folder / "card.png", folder / "bar.png"
    if not bar.exists():
        Image.new("RGB", (48, 24), (120, 90, 60)).save(card)
        stripes = np.where(np.arange(200) // 10 % 2 == 0, 20, 220).astype("uint8")
        Image.fromarray(np.repeat(stripes[None], 16, 0)).save(bar)
    return card, bar


METHODS = {
    "frozen": ("data.exif=apply",),
    "finetune": ("loss.kind=crps", "model.pool=precision", "data.range=image", "data.background='#804000'"),
    "baseline": ("loss.kind=student_t", "data.columns.species=scientificName", "model.species_embedding=true"),
    "lora": ("loss.kind=quantiles", "model.encoder.blocks=3", "model.encoder.r=4"),
    "dinov2": ("loss.kind=nll",),
    "mean_rgb": ("calibrate.kind=spread", "data.targets=[SPEI_2y,SPEI_30d,SPEI_1y]"),
    "pixels": ("model.head.kind=mlp", "train.sample=groups", "model.pool=attention", "loss.kind=crps"),
    "augmentation": ("data.colour_card=true", "data.scale_bar=true", "loss.kind=crps", "data.range=[0,4095]", "data.exif=apply"),
    "forecast": (),
    "climatology": (),
    "metadata": (),
}


def forecasts(trials: list[TrialDir], photographs: dict[str, list[Path]]) -> dict[str, dict[str, tuple[float, float]]]:
    """What `carabid predict --group` says; of several trials the equal mixture."""
    said = {}
    for group, (domain, _, species) in EVENTS.items():
        card, bar = beside(photographs[group][0].parent)
        origin = Origin(domain, () if species is None else (species,), card, bar)
        members = [predict_group(trial.path, photographs[group], origin, "cpu") for trial in trials]
        said[group] = {target: mixture([member[target] for member in members]) for target in members[0]}
    return said


def mixture(members: list[tuple[float, float]]) -> tuple[float, float]:
    mu, sigma = (np.array(each) for each in zip(*members, strict=True))
    return float(mu.mean()), math.sqrt(float((sigma**2).mean() + mu.var()))


def submitted(
    folders: list[Path], photographs: dict[str, list[Path]], python: Path, environ: dict[str, str] | None = None
) -> dict[str, Any]:
    """What exported folders say, in a process of its own."""
    groups = {group: (EVENTS[group][0], [str(f) for f in files], EVENTS[group][2]) for group, files in photographs.items()}
    (folders[0].parent / "groups.json").write_text(json.dumps(groups))
    files = [folders[0].parent / "groups.json", *beside(next(iter(photographs.values()))[0].parent)]
    return driven(DRIVER, folders, files, python, environ)


def driven(
    driver: str, folders: list[Path], files: list[Path], python: Path, environ: dict[str, str] | None = None
) -> dict[str, Any]:
    """What a driver writes, in a process of its own that is given the folders, the first file, where to answer, the others."""
    here = folders[0].parent
    (here / "folders.json").write_text(json.dumps([str(folder) for folder in folders]))
    command = [python, "-c", driver, here / "folders.json", files[0], here / "answer.json", *files[1:]]
    paths = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", **(environ or {})}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=here, env=paths, timeout=300)
    assert done.returncode == 0, done.stderr
    assert environ or not done.stdout + done.stderr  # (a backbone that is fetched may show that)
    found: dict[str, Any] = json.loads((here / "answer.json").read_text())
    return found


def test_a_submission_forecasts_what_predict_does(
    config_of: Callable[..., Config], tmp_path: Path, photographs: dict[str, list[Path]], clean: Path
) -> None:
    """Every kind of model, with every kind of pooling, output and calibration; and two ensembles, whose members' tails are of
    different lengths: one member's blocks must not stay behind for the next."""
    sets: dict[str, list[tuple[str, tuple[str, ...]]]] = {method: [(method, more)] for method, more in METHODS.items()}
    sets["ensemble"] = [("frozen", ("loss.kind=crps", f"seed={seed}")) for seed in (1, 2)]
    sets["ensemble of tails"] = [("finetune", (f"model.encoder.blocks={n}",)) for n in (3, 1)]
    trials = {
        name: [trial_of(config_of(m, *more), tmp_path / f"{name} {i}", i) for i, (m, more) in enumerate(members)]
        for name, members in sets.items()
    }
    folders = {
        name: export([t.path for t in members], tmp_path / f"{name} out", zipped=False, with_backbone=True)
        for name, members in trials.items()
    }
    found = submitted(list(folders.values()), photographs, clean)
    for name, members in trials.items():
        for group, targets in forecasts(members, photographs).items():
            for target, (mu, sigma) in targets.items():
                expected = pytest.approx({"mu": mu, "sigma": sigma}, abs=1e-5)
                assert found[str(folders[name])][group][target] == expected, (name, group, target)


def broken(source: Path, folder: Path) -> list[Path]:
    """Files that Pillow opens and cannot decode: cut short in four formats, and with bytes of their middle changed."""
    folder.mkdir()
    made = []
    for ending in ("jpg", "png", "tif", "webp"):
        whole = folder / f"whole.{ending}"
        Image.open(source).convert("RGB").save(whole)
        content = whole.read_bytes()
        whole.unlink()
        made.append((folder / f"cut.{ending}", content[: len(content) // 2]))
        if ending == "png":
            half = len(content) // 2
            made.append((folder / "changed.png", content[:half] + bytes(64) + content[half + 64 :]))
    for file, content in made:
        file.write_bytes(content)
    return [file for file, _ in made if _opens(file)]


def _opens(file: Path) -> bool:
    """Whether the platform could hand it over."""
    try:
        image = Image.open(file)
    except OSError:
        return False
    with pytest.raises(Exception, match=""):
        image.load()
    return True


def test_a_photograph_that_does_not_decode_is_left_out_of_its_event(
    config_of: Callable[..., Config], tmp_path: Path, photographs: dict[str, list[Path]], clean: Path
) -> None:
    """The others answer for it; where there are none, what is known without a photograph does."""
    damaged = broken(photographs["known"][0], tmp_path / "broken")
    assert {file.name for file in damaged} >= {"cut.jpg", "cut.png", "changed.png"}
    events = {"known": [*damaged, *photographs["known"]], "new": damaged, "single": photographs["single"]}
    methods = {"pixels": (), "augmentation": ("data.colour_card=true",), "climatology": ()}
    trials = {name: trial_of(config_of(name, *more), tmp_path / name) for name, more in methods.items()}
    folders = {name: export([trial.path], tmp_path / f"{name} out", False, True) for name, trial in trials.items()}
    beside(photographs["known"][0].parent)
    found = submitted(list(folders.values()), dict(reversed(events.items())), clean)
    for name, trial in trials.items():
        said, expected = found[str(folders[name])], forecasts([trial], photographs)
        for target in TARGETS:
            if name == "climatology":  # it looks at no photograph
                whole = predict_group(trial.path, photographs["known"][:1] * len(damaged), Origin("99"), "cpu")
                assert [*said["new"][target].values()] == pytest.approx(whole[target], abs=1e-5)
                continue
            assert [*said["known"][target].values()] == pytest.approx(expected["known"][target], abs=1e-5), (name, target)
            assert said["new"][target] == {"mu": 0.5, "sigma": 1.5}


def test_an_exported_ensemble_forecasts_what_was_evaluated_and_passes_the_check(
    assets: Assets, root: Path, tmp_path: Path, clean: Path
) -> None:
    """The whole way, on the tested groups themselves: train, evaluate, collect, export, check. From a store of bf16."""
    overrides = ("data.colour_card=true", "loss.kind=crps", *MLP, "seed=0,1")
    experiment = load_experiment("configs/beetles/pixels.yaml", (*assets.overrides("pixels"), *overrides))
    finish(experiment)
    collect.run(experiment.config)
    (ensemble,) = experiment.dir.ensembles()
    made = {"ensemble": ensemble.path, "one": experiment.dir.trial(experiment.trials[0].name).path}
    folders = {name: export([path], tmp_path / name, zipped=False, with_backbone=False) for name, path in made.items()}
    found = submitted_groups(list(folders.values()), assets.data, clean)
    for name, path in made.items():
        for row in pd.read_parquet(path / "groups.parquet").itertuples():
            said = found[str(folders[name])][str(row.group)][str(row.target)]
            assert said == pytest.approx({"mu": row.mu, "sigma": row.sigma}, abs=1e-4), (name, row)
    lines = check(folders["one"], largest=20)
    assert any("the largest event has 20)" in line for line in lines), lines
    assert not any(line.startswith("note") for line in lines), lines


def submitted_groups(folders: list[Path], data: Path, python: Path) -> dict[str, Any]:
    """What exported folders say of the tested groups, from the challenge's own table."""
    (table,) = (data / "data").glob("test-*.parquet")
    return driven(TABLE_DRIVER, folders, [table], python)


def test_the_tensors_are_plain_and_the_archive_has_no_folder_around_them(
    config_of: Callable[..., Config], tmp_path: Path
) -> None:
    trial = trial_of(config_of("lora", "model.encoder.blocks=2", "model.encoder.r=4"), tmp_path / "trial")
    archive = export([trial.path], tmp_path / "submission", zipped=True, with_backbone=True)
    names = set(zipfile.ZipFile(archive).namelist())
    assert {"model.py", "network.py", "towers.py", "seal.py", "weights.pt", "submission.json", "requirements.txt"} <= names
    weights = torch.load(tmp_path / "submission" / "weights.pt", weights_only=True)
    (member,) = weights["members"]
    assert not any("lora" in name for name in member) and any(name.startswith("tail.") for name in member)


def test_a_submission_without_its_backbone_fetches_the_very_weights_that_were_trained_on(
    config_of: Callable[..., Config],
    tmp_path: Path,
    photographs: dict[str, list[Path]],
    clean: Path,
    assets: Assets,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And says so where it gets others."""
    names, trials, folders, spoiled = {"finetune": "hf-hub:owner/tiny", "dinov2": "owner/tiny-dino"}, {}, {}, {}
    for method, name in names.items():
        model = assets.dinov2 if method == "dinov2" else assets.clip
        in_cache(monkeypatch, tmp_path / "hub", name.removeprefix("hf-hub:"), model)
        config = config_of(method)
        backbone = config.backbone.model_copy(update={"name": name})
        trials[method] = trial_of(config.model_copy(update={"backbone": backbone}), tmp_path / method)
        folders[method] = export([trials[method].path], tmp_path / f"{method} out", zipped=False, with_backbone=False)
        assert torch.load(folders[method] / "weights.pt", weights_only=True)["backbone"] == {}
        spoiled[method] = with_another_fingerprint(folders[method], tmp_path / f"{method} spoiled")
    environ = {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    found = submitted([*folders.values(), *spoiled.values()], photographs, clean, environ)
    for method, trial in trials.items():
        for group, targets in forecasts([trial], photographs).items():
            for target, (mu, sigma) in targets.items():
                expected = pytest.approx({"mu": mu, "sigma": sigma}, abs=1e-5)
                assert found[str(folders[method])][group][target] == expected, (method, group, target)
        assert "are not those that the members were trained on" in found[str(spoiled[method])], found


def with_another_fingerprint(folder: Path, copy: Path) -> Path:
    """A copy of an exported folder that was made for other weights."""
    shutil.copytree(folder, copy)
    spec = json.loads((copy / "submission.json").read_text())
    spec["backbone"]["fingerprint"] = "of other weights"
    del spec["sha256"], spec["content"]
    seal(copy, spec)
    return copy


def test_an_ensemble_whose_members_have_other_results_now_is_not_exported(tmp_path: Path) -> None:
    experiment = ExperimentDir(tmp_path / "experiment")
    write_json(experiment.trial("one").results, {"summary": {}})
    ensemble = experiment.ensemble("of one")
    stale = {"members": ["one"], "made_from": {"one": "another"}, "calibration": {}}
    write_json(ensemble.results, stale)
    with pytest.raises(WorkError, match="carabid collect"):
        export([ensemble.path], tmp_path / "out", zipped=False, with_backbone=False)
    with pytest.raises(UserError, match="export it alone"):
        export([ensemble.path, ensemble.path], tmp_path / "out", zipped=False, with_backbone=False)
    ensemble.results.write_text("{")
    with pytest.raises(WorkError, match=rf"damaged: {ensemble.results}: .*carabid collect"):
        export([ensemble.path], tmp_path / "out", zipped=False, with_backbone=False)


def test_without_its_backbone_a_submission_is_small_and_only_for_what_can_be_fetched(
    config_of: Callable[..., Config], tmp_path: Path
) -> None:
    here = trial_of(config_of("frozen"), tmp_path / "trial")
    with pytest.raises(UserError, match="with-backbone"):
        export([here.path], tmp_path / "submission", zipped=False, with_backbone=False)
    assert not (tmp_path / "submission").exists()


def test_what_cannot_be_exported_is_refused_in_words(
    config_of: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = trial_of(config_of("pixels"), tmp_path / "trial")
    other = trial_of(config_of("mean_rgb"), tmp_path / "other")
    (tmp_path / "taken").mkdir()
    for trials, out, message in (
        ([], "new", "name the trials"),
        ([trial.path], "taken", "exists"),
        ([trial.path, other.path], "new", "another backbone"),
        ([tmp_path / "nowhere"], "new", "is not a trial's folder"),
    ):
        with pytest.raises(UserError, match=message):
            export(trials, tmp_path / out, zipped=False, with_backbone=True)
    two = trial_of(config_of("pixels", "data.targets=[SPEI_30d,SPEI_1y]"), tmp_path / "two")
    with pytest.raises(UserError, match="the platform asks for"):
        export([two.path], tmp_path / "new", zipped=False, with_backbone=True)
    monkeypatch.setattr(type(load_task("beetles")), "challenge", None)
    with pytest.raises(UserError, match="no challenge's platform takes what the task beetles predicts"):
        export([trial.path], tmp_path / "new", zipped=False, with_backbone=True)
