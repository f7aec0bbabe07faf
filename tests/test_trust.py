"""Models and data sets of strangers: no code that comes with one runs, and nobody is asked whether it may."""

from __future__ import annotations

import ast
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.backbones import load_backbone
from pipeline.config import backbone as blocks
from pipeline.config.data import Data
from pipeline.data.sources import open_source
from pipeline.disk.layout import PROJECT
from pipeline.errors import UserError
from tests.conftest import Assets, carabid
from tests.fake_hub import fake_hub

pytestmark = pytest.mark.jobs

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
class Config(Dinov2Config):
    model_type = "own"
"""
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
MODEL = {"AutoConfig": "code.Config", "AutoModel": "code.Dinov2Model"}
ATTENTION = "kernels-community/flash-attn"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What the code of a stranger would leave behind; whoever asks is answered with yes, and nobody may ask."""
    answers = io.StringIO("y\n" * 99)
    monkeypatch.setattr(sys, "stdin", answers)
    yield tmp_path / "mark"
    assert not (tmp_path / "mark").exists() and answers.tell() == 0


@pytest.fixture
def changed(assets: Assets, tmp_path: Path, mark: Path) -> Callable[..., Path]:
    """A folder of the tiny DINOv2 with these values in one of its files, and code beside them."""

    def change(file: str, **values: Any) -> Path:
        folder = Path(shutil.copytree(assets.dinov2, tmp_path / "stranger"))
        (folder / "code.py").write_text(CODE.format(mark=str(mark)))
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))
        return folder

    return change


# ---------------------------------------------------------------- models
@pytest.mark.parametrize(
    ("file", "values"),
    [
        (CONFIG, {"auto_map": MODEL}),
        (PROCESSOR, {"auto_map": {"AutoImageProcessor": "code.BitImageProcessor"}}),
        (CONFIG, {"custom_pipelines": {"x": {"impl": "code.Config"}}}),
    ],
)
def test_a_dinov2_with_code_beside_a_class_that_is_known_loads_by_the_class(
    changed: Callable[..., Path], file: str, values: dict[str, Any]
) -> None:
    backbone = load_backbone(blocks.Dinov2(kind="dinov2", name=str(changed(file, **values))))
    assert type(backbone.model).__module__ == "transformers.models.dinov2.modeling_dinov2"


@pytest.mark.parametrize(
    ("file", "values", "why"),
    [
        (CONFIG, {"auto_map": MODEL, "model_type": "own"}, "code of its own"),
        (PROCESSOR, {"auto_map": {"AutoImageProcessor": "code.Own"}, "image_processor_type": "Own"}, "code of its own"),
        (CONFIG, {"attn_implementation": ATTENTION}, f"the attention {ATTENTION}.*Remove"),
        (CONFIG, {"_attn_implementation": "flash_attention_2"}, "the attention flash_attention_2"),
    ],
)
def test_a_dinov2_that_needs_its_code_is_refused_and_told_why(
    changed: Callable[..., Path], file: str, values: dict[str, Any], why: str
) -> None:
    folder = changed(file, **values)
    with pytest.raises(UserError, match=rf"backbone\.name {folder}: .*{why}"):
        load_backbone(blocks.Dinov2(kind="dinov2", name=str(folder)))


def test_an_open_clip_folder_whose_text_tower_needs_code_is_refused(
    changed: Callable[..., Path], assets: Assets, tmp_path: Path
) -> None:
    text, folder = changed(CONFIG, auto_map=MODEL, model_type="own"), tmp_path / "clip"
    shutil.copytree(assets.clip, folder)
    described = json.loads((folder / "open_clip_config.json").read_text())
    described["model_cfg"]["text_cfg"]["hf_model_name"] = str(text)
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=rf"backbone\.name local-dir:{folder}: it asks for code of its own"):
        load_backbone(blocks.OpenClip(name=f"local-dir:{folder}"))


@pytest.mark.parametrize("odd", [{"auto_map": MODEL}, {"trust_remote_code": True}, {"custom_text": "code.Config"}])
@pytest.mark.parametrize("block", ["model_cfg", "preprocess_cfg", "vision_cfg", "text_cfg", "top"])
def test_odd_keys_of_an_open_clip_folder_run_nothing(
    assets: Assets, tmp_path: Path, mark: Path, odd: dict[str, Any], block: str
) -> None:
    folder = Path(shutil.copytree(assets.clip, tmp_path / "clip"))
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    described = json.loads((folder / "open_clip_config.json").read_text())
    {"top": described, **described, **described["model_cfg"]}[block].update(odd)
    (folder / "open_clip_config.json").write_text(json.dumps(described))
    try:
        load_backbone(blocks.OpenClip(name=f"local-dir:{folder}"))
    except UserError as error:
        assert str(folder) in str(error)


def test_a_yes_on_the_standard_input_of_a_command_is_not_read(changed: Callable[..., Path], root: Path, tmp_path: Path) -> None:
    folder, images = changed(CONFIG, auto_map=MODEL, model_type="own"), tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (60, 60)).save(images / "beetle.png")
    command = ["embed", images, "--backbone", folder, "--out", tmp_path / "x.parquet"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, command)], input="y\n" * 99, capture_output=True, text=True
    )
    assert done.returncode == 2 and "asks for code of its own" in done.stderr and "y/N" not in done.stdout + done.stderr


def test_transformers_is_never_left_to_ask() -> None:
    calls = [node for path in (PROJECT / "pipeline").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    auto = [node for node in calls if isinstance(node, ast.Call) and re.search(r"Auto\w+.*\.from_\w+\(", ast.unparse(node))]
    assert len(auto) >= 7
    for node in auto:
        assert "trust_remote_code=False" in (said := ast.unparse(node)) or "**options" in said


# ---------------------------------------------------------------- data sets
def test_a_data_set_of_the_hub_that_is_a_script_is_not_run(
    mark: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hub" / "datasets" / "owner" / "scripted"
    folder.mkdir(parents=True)
    (folder / "scripted.py").write_text(CODE.format(mark=str(mark)))
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  script: scripted.py\n---\n")
    with fake_hub(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        done = carabid("fetch", "configs/beetles/frozen.yaml", "data.source=owner/scripted", root=root, check=False)
        assert any("scripted" in path for path in hub.asked)
    assert done.returncode in (1, 2) and "scripts are no longer supported" in done.stderr


def test_a_folder_with_a_loading_script_is_no_data_set(mark: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text(CODE.format(mark=str(mark)))
    for place in (folder, folder / "scripted.py"):
        with pytest.raises(UserError, match=r"holds no data set|a table's name ends in"):
            open_source(Data.model_validate({"source": str(place), "columns": {"image": "file"}, "targets": ["x"]}))
