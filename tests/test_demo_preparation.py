"""The demo's data and backbones: made once, and made again where a killed run has left them undone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.backbones import load_backbone
from pipeline.config.backbone import Dinov2, OpenClip
from pipeline.demo import prepare
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
