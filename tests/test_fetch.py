"""`carabid fetch`, against a Hub on this machine: what it brings is checked and enough for jobs without internet, and a
job that lacks something says what to type."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from pipeline.backbones import load_backbone, weights_files
from pipeline.config import backbone as configuration
from pipeline.config.data import Data
from pipeline.config.trial import Config
from pipeline.data.sources import open_source
from pipeline.disk.layout import PROJECT
from pipeline.errors import NotFetched, UserError, WorkError
from pipeline.experiments.reading import dump_config, load_experiment
from pipeline.stages import fetch
from tests.conftest import Assets, carabid
from tests.fake_hub import COMMIT, TOKEN, Hub, fake_hub
from tests.small import NAMED, image_files, small_config

pytestmark = pytest.mark.jobs

FROZEN = "configs/beetles/frozen.yaml"
ON_HUB = ("data.source=owner/beetles", "backbone.name=hf-hub:owner/tiny-clip", "device=cpu", "train.epochs=2")
NO_WAITING = "import time; time.sleep = lambda s: None; from pipeline.cli import main; main()"
"""The command line with the Hub's library not waiting between its attempts."""


@pytest.fixture(scope="module")
def hub(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A Hub with a data set and two models, and private copies of a data set and a model."""
    root = tmp_path_factory.mktemp("hub")
    for name in ("beetles", "private-beetles"):
        shutil.copytree(assets.data / "data", root / "datasets" / "owner" / name / "data")
    for name, source in (("tiny-clip", assets.clip), ("private-clip", assets.clip), ("tiny-dino", assets.dinov2)):
        shutil.copytree(source, root / "models" / "owner" / name)
    with fake_hub(root) as running:
        yield running


@pytest.fixture
def online(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A login node: the Hub can be reached, the cache is empty, and there is no token."""
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    hub.asked.clear()
    return hub


@pytest.fixture
def offline(online: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A compute node that shares its cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return online


# ---------------------------------------------------------------- what it brings is enough
def test_what_a_failed_job_says_to_type_is_enough_for_the_next_one(
    offline: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = ("submit", FROZEN, *ON_HUB, "--cluster", "local")
    failed = carabid(*submit, root=root, check=False)
    assert failed.returncode == 1 and "Traceback" not in failed.stdout + failed.stderr
    (failure,) = root.glob("trained/*/*/failure.json")
    command = re.search(r"`(carabid fetch [^`]*)`", json.loads(failure.read_text())["message"])
    assert command and offline.asked == []
    words = shlex.split(command[1])[1:]
    assert words == ["fetch", str(failure.with_name("config.yaml"))]

    monkeypatch.delenv("HF_HUB_OFFLINE")
    fetched = carabid(*words, root=root, cwd=root)
    assert "jobs can run without internet" in fetched.stdout
    for place in ("cache/datasets/owner___beetles", "cache/hub/models--owner--tiny-clip"):
        assert f"MB in {root.parent / place}" in fetched.stdout

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline.asked.clear()
    carabid(*submit, root=root)
    assert len(list(root.glob("trained/*/*/results.json"))) == 1 and offline.asked == []


def test_fetched_again_it_loads_nothing_and_says_so(online: Hub, root: Path) -> None:
    first = carabid("fetch", FROZEN, *ON_HUB, root=root)
    online.asked.clear()
    environ = {**os.environ, "CARABID_ROOT": str(root)}
    command = [sys.executable, "-X", "importtime", "-m", "pipeline.cli", "fetch", FROZEN, *ON_HUB]
    again = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environ)
    assert again.returncode == 0, again.stderr[-2000:]
    assert first.stdout.count("(checked ") == 0 and again.stdout.count("(checked ") == 2
    assert not re.search(r"\| *torch$", again.stderr, re.MULTILINE)
    assert not any(path.endswith((".parquet", ".safetensors")) for path in online.asked)


def test_a_dinov2_of_the_hub_is_found_offline_after_it_was_fetched(
    assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache's own layout, which the libraries look in; its files are those whose size `fetch` tells."""
    in_cache(monkeypatch, tmp_path / "hub", "owner/tiny-dino", assets.dinov2)
    backbone = configuration.Dinov2(kind="dinov2", name="owner/tiny-dino")
    local = configuration.Dinov2(kind="dinov2", name=str(assets.dinov2))
    assert load_backbone(backbone).weights_hash() == load_backbone(local).weights_hash()
    assert [path.name for path in weights_files(backbone)] == [path.name for path in weights_files(local)]


# ---------------------------------------------------------------- it is checked
def test_every_image_is_read_and_the_unreadable_ones_are_named(
    own: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = image_files(own)
    files[3].write_bytes(files[3].read_bytes()[:200])
    files[7].unlink()
    config = small_config(own, clip, tmp_path)
    for _ in range(2):  # the second time from its record
        with pytest.raises(UserError, match=f"line 5: .*cannot be read.*{re.escape('(1 more in these data')}"):
            fetch.run([config])
    assert capsys.readouterr().out.count("2 unreadable") == 2
    fetch.run([small_config(own, clip, tmp_path, data={"on_bad_image": "skip"})])
    out = capsys.readouterr().out
    assert "2 unreadable" in out and "left out" in out and "jobs can run without internet" in out


def test_images_that_changed_are_read_again(own: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(own, clip, tmp_path)
    fetch.run([config])
    image_files(own)[0].write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be read"):
        fetch.run([config])
    assert "40 images" in capsys.readouterr().out


def test_weights_that_changed_are_loaded_again(table: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was cut short after it was checked: the commit is the same, and so is the record of its content."""
    snapshot = in_cache(monkeypatch, tmp_path / "hub", "owner/tiny-clip", clip)
    config = small_config(table, clip, tmp_path, backbone={"name": "hf-hub:owner/tiny-clip"})
    fetch.run([config])
    weights = snapshot / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(WorkError, match=f"what lies in {snapshot.parents[1]} cannot be used: .* remove it. Run this where"):
        fetch.run([config])


def test_data_and_weights_that_several_trials_share_are_fetched_once(
    table: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trials = [small_config(table, clip, tmp_path, seed=seed) for seed in (0, 1)]
    pixels = configuration.Pixels(kind="pixels", size=2)
    fetch.run([*trials, trials[0].model_copy(update={"backbone": pixels})])
    out = capsys.readouterr().out
    assert out.count("data: ") == 1 and out.count("weights: ") == 2 and "weights: pixels: made without files" in out


# ---------------------------------------------------------------- what a job says without it
def nothing_cached(cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool = True) -> None:
    import datasets.config

    for name in ("HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.setattr(huggingface_hub.constants, name, offline if "OFFLINE" in name else str(cache))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))


def in_cache(monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, folder: Path) -> Path:
    """A model in the Hub's cache, offline; returns its snapshot."""
    nothing_cached(cache, monkeypatch)
    repository = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


MISSING: dict[str, tuple[configuration.Backbone, str]] = {
    "an open_clip model": (configuration.OpenClip(), "The weights of hf-hub:imageomics/bioclip-2"),
    "a tag": (
        configuration.OpenClip(name="ViT-B-32", pretrained="laion2b_s34b_b79k"),
        "The weights of ViT-B-32 (laion2b_s34b_b79k)",
    ),
    "a text tower's": (configuration.OpenClip(name="nllb-clip-base"), "What nllb-clip-base needs for its text tower"),
    "a DINOv2": (configuration.Dinov2(kind="dinov2"), "The weights of facebook/dinov2-base"),
    "a revision": (configuration.Dinov2(kind="dinov2", revision="v2"), "The weights of facebook/dinov2-base, revision v2"),
}


@pytest.mark.parametrize("what", MISSING)
def test_weights_that_are_not_in_the_cache_are_named_with_what_to_do(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_cached(tmp_path, monkeypatch)
    backbone, name = MISSING[what]
    with pytest.raises(NotFetched) as caught:
        load_backbone(backbone)
    message = str(caught.value)
    assert message.startswith(f"{name}: not all of it is in the cache ({tmp_path}")
    assert "HF_HUB_OFFLINE" in message and "run `carabid fetch CONFIG`" in message


def test_data_that_are_not_in_the_cache_are_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_cached(tmp_path, monkeypatch)
    with pytest.raises(NotFetched, match=r"^data\.source imageomics/sentinel-beetles .*not all of it is in the cache"):
        open_source(Data.model_validate(NAMED["data"])).splits()
    with pytest.raises(NotFetched, match=r", revision v1: not all of it"):
        open_source(Data.model_validate({**NAMED["data"], "revision": "v1"})).splits()


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(kind, fault) for kind in ("open_clip", "dinov2") for fault in ("no weights", "cut short", "no config")]
    + [("dinov2", "no processor")],
)
def test_a_cache_that_holds_a_part_or_a_damaged_file_is_named(
    kind: str, fault: str, assets: Assets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_clip = kind == "open_clip"
    name = "owner/tiny-clip" if is_clip else "owner/tiny-dino"
    snapshot = in_cache(monkeypatch, tmp_path, name, assets.clip if is_clip else assets.dinov2)
    weights = snapshot / ("open_clip_model.safetensors" if is_clip else "model.safetensors")
    if fault == "no weights":
        weights.unlink()
    elif fault == "cut short":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif fault == "no config":
        (snapshot / ("open_clip_config.json" if is_clip else "config.json")).unlink()
    else:
        (snapshot / "preprocessor_config.json").unlink()
    backbone = configuration.OpenClip(name=f"hf-hub:{name}")
    said = "not all of it is in the cache" if fault == "no config" else "cannot be used: .* remove it"
    with pytest.raises(NotFetched, match=f"{name}: .*{said}.*carabid fetch") as caught:
        load_backbone(backbone if is_clip else configuration.Dinov2(kind="dinov2", name=name))
    assert str(snapshot.parents[1]) in caught.value.why


def test_the_command_that_an_error_names_can_be_typed_whatever_the_folder_is_called(tmp_path: Path) -> None:
    error = NotFetched("No weights.")
    error.config = tmp_path / "it's $HOME; a folder" / "config.yaml"
    command = re.search(r"`(.*)`", str(error))
    assert command and shlex.split(command[1]) == ["carabid", "fetch", str(error.config)]


# ---------------------------------------------------------------- what the Hub answers
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.source=owner/private-beetles", "data.source owner/private-beetles (no folder here, so a data set of the Hub)"),
        ("backbone.name=hf-hub:owner/private-clip", "The weights of hf-hub:owner/private-clip"),
        ("backbone.name=hf-hub:owner/tiny-dino", "The weights of hf-hub:owner/tiny-dino"),
    ],
)
def test_what_the_hub_does_not_show_is_a_matter_of_the_name_or_of_the_account(
    online: Hub, generated: Path, root: Path, override: str, words: str
) -> None:
    data = () if override.startswith("data.") else (f"data.source={generated}",)
    done = carabid("fetch", FROZEN, *data, override, root=root, check=False)
    assert done.returncode == 2 and f"carabid: {words}: the Hub does not have it" in done.stderr.splitlines()[-1]
    assert "HF_TOKEN" in done.stderr and "Traceback" not in done.stderr


def test_a_hub_that_cannot_be_reached_is_said_so(
    online: Hub, generated: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    environ = {**os.environ, "CARABID_ROOT": str(root)}
    for source in ("owner/beetles", generated):
        command = [sys.executable, "-c", NO_WAITING, "fetch", FROZEN, f"data.source={source}"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environ)
        last = done.stderr.splitlines()[-1]
        assert done.returncode == 1 and "the Hub (http://127.0.0.1:9) cannot be reached: " in last
        assert last.endswith("Run this where there is internet, and HF_HUB_OFFLINE is not set.")


def test_what_is_private_is_fetched_with_the_token_of_the_environment(
    online: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    private = ("data.source=owner/private-beetles", "backbone.name=hf-hub:owner/private-clip")
    done = carabid("fetch", FROZEN, *private, root=root)
    assert "jobs can run without internet" in done.stdout


# ---------------------------------------------------------------- from a trial's folder
def test_a_trials_own_config_is_a_config_to_fetch_with(config_of: Callable[..., Config], root: Path) -> None:
    config = config_of("lora", "optim.lr=3e-4", "train.epochs=2")
    path = root / "trained" / config.experiment / "lr=3e-4" / "config.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(dump_config(config))
    assert [trial.config for trial in load_experiment(path).trials] == [config]
