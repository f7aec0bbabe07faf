"""A tuned trial as a model of open_clip: a process that knows nothing of this package loads it and embeds the same, and its card
is one that the Hub takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbones import load_towers
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError, WorkError
from pipeline.export.open_clip import export
from pipeline.models.encoders import Projection
from pipeline.models.saved import load_model
from pipeline.models.tuned import TunedImages, TunedTexts, embed_each
from pipeline.stages.predict import trained_config
from tests.conftest import carabid
from tests.test_search import place, trial_of  # noqa: F401  (fixtures)
from tests.test_towers import Case, case, kinds, loaded  # noqa: F401  (fixtures)
from tests.towers import encoded, shrunk, write_model

pytestmark = pytest.mark.usefixtures("one_vocabulary")
METHODS = {"baseline": "baseline", "projection": "projection", "finetune": "finetune", "lora": "lora", "whole": "finetune"}
TEXTS = ["A photo of Carabus niger.", "melanarius", "a black beetle"]
PLAIN = """
import json, sys, numpy, open_clip, torch
from PIL import Image
folders, picture, texts = (json.loads(each) for each in sys.argv[1:])
for folder in folders:
    name = f"local-dir:{folder}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    with torch.no_grad():
        image = model.encode_image(preprocess(Image.open(picture)).unsqueeze(0), normalize=True)
        text = model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    numpy.savez(f"{folder}.npz", image=image, text=text, scale=model.logit_scale.detach())
assert "pipeline" not in sys.modules
"""
FINETUNE = ("train.epochs=1", "optim.lr=1e-3", "model.encoder.blocks=1", "model.text.blocks=2")
WHOLE = ("train.epochs=1", "optim.lr=1e-3", "model.encoder={kind: end_to_end}", "model.text={kind: end_to_end}")


def by_plain_open_clip(folders: list[Path], picture: Path) -> list[Any]:
    """What a process without this package makes of each."""
    command = [sys.executable, "-I", "-c", PLAIN, *map(json.dumps, ([*map(str, folders)], str(picture), TEXTS))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folders[0].parent)
    assert done.returncode == 0, done.stderr
    return [np.load(f"{folder}.npz") for folder in folders]


def own(trial: TrialDir, picture: Path) -> tuple[Tensor, Tensor, float]:
    """The trial's embeddings, by its own modules with its adapters, and the scale of its similarities."""
    config, cpu = trained_config(trial), torch.device("cpu")
    towers = load_towers(config.backbone)
    model: Any = load_model(config, trial, towers.image, towers.text)
    image, text = TunedImages(towers.image, model, config), TunedTexts(towers.text, model, config)
    with Image.open(picture) as opened:
        inputs = towers.image.halves.whole(opened.convert("RGB"))  # (its own is within 1 of 255 of the library's)
    return (
        embed_each(image, [inputs], cpu),
        embed_each(text, [text.transform(t) for t in TEXTS], cpu),
        float(model.logit_scale[0]),
    )


@pytest.mark.jobs
def test_plain_open_clip_loads_it_in_a_clean_process_and_embeds_the_same(
    trial_of: Callable[..., TrialDir],  # noqa: F811
    place: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Each method's, and what was released: one process loads them all."""
    more = {"finetune": FINETUNE, "whole": WHOLE}
    trials = {method: trial_of(config, *more.get(method, ())) for method, config in METHODS.items()}
    picture = next((place / "data" / "images").iterdir())
    folders = [export(trial.path, tmp_path / method) for method, trial in trials.items()]
    *exported, released = by_plain_open_clip([*folders, place / "clip"], picture)
    for (method, trial), found in zip(trials.items(), exported, strict=True):
        image, text, scale = own(trial, picture)
        assert np.abs(found["image"] - image.numpy()).max() < 1e-6, method
        assert np.abs(found["text"] - text.numpy()).max() < 1e-6, method
        assert float(found["scale"]) == scale, method
        apart = max(np.abs(found[which] - released[which]).max() for which in ("image", "text"))
        assert apart < 1e-6 if method == "baseline" else apart > 1e-4, method


@pytest.mark.jobs
def test_the_card_is_one_of_the_hub_and_tells_nothing_of_this_machine(
    trial_of: Callable[..., TrialDir],  # noqa: F811
    place: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    trial = trial_of("projection")
    said = carabid("export", trial.path, "--to", "open_clip", "--out", tmp_path / "tuned", root=place / "root")
    assert said.stdout == f"{tmp_path / 'tuned'}\n"
    card, results = ModelCard.load(tmp_path / "tuned" / "README.md"), json.loads(trial.results.read_text())
    assert card.data.license is None and "# license: yours to say" in (tmp_path / "tuned" / "README.md").read_text()
    assert card.data.pipeline_tag == "zero-shot-image-classification" in card.data.tags
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values["id.i2t_map"] == results["figures"]["id.i2t_map"] and "selection" not in values
    assert "open_clip.create_model_and_transforms" in card.content
    for path in (tmp_path / "tuned").rglob("*"):
        content = path.read_bytes()
        assert not [name for name in (tmp_path, place, Path.home(), trial.path) if str(name).encode() in content], path


@pytest.mark.jobs
def test_what_open_clip_has_no_place_for_is_refused_and_nothing_is_written(
    trial_of: Callable[..., TrialDir],  # noqa: F811
    place: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    write_model(place / "siglip", shrunk("ViT-B-16-SigLIP"))
    siglip = trial_of("projection", clip="siglip")
    with pytest.raises(UserError, match="does not end in a matrix: another one behind it is no part of its library's model"):
        export(siglip.path, tmp_path / "tuned")
    with pytest.raises(UserError, match="leaves the towers as they were released"):
        export(trial_of("few_shot", "data.shots=2").path, tmp_path / "tuned")
    with pytest.raises(UserError, match="lift tells species by weights of their own, for which open_clip has no place"):
        export(trial_of("lift", "train.epochs=1", "model.encoder.kind=frozen").path, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="exists: name another --out, or remove it"):
        export(trial_of("projection").path, tmp_path / "there")
    for arguments in (("--zip",), ("--with-backbone",), (trial_of("projection").path,)):
        command = ("export", trial_of("projection").path, "--to", "open_clip", "--out", tmp_path / "tuned", *arguments)
        said = carabid(*command, root=place / "root", check=False)
        assert said.returncode == 2 and "--to open_clip writes one trial as a folder" in said.stderr


@pytest.mark.jobs
def test_a_model_that_would_embed_otherwise_than_the_trial_is_not_left_behind(
    trial_of: Callable[..., TrialDir],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = trial_of("projection")
    monkeypatch.setattr(Projection, "matrix", lambda self: torch.eye(len(self.weight), dtype=torch.float64))
    with pytest.raises(WorkError, match="open_clip embeds otherwise than the trial"):
        export(trial.path, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


# ---------------------------------------------------------------- projections
FOLDED = ["ViT-B-32", "ViTamin", "QuickGELU", "CLIPA", "CoCa", "BERT"]
MORE = ["image timm with registers, average", "text SigLIP", "text SigLIP2"]


@pytest.mark.parametrize("case", [f"{which} {name}" for name in FOLDED for which in ("image", "text")] + MORE, indirect=True)
@torch.no_grad()
def test_a_projection_behind_a_tower_becomes_its_own(case: Case) -> None:  # noqa: F811
    model, tower, inputs = case
    projection = Projection(tower.embed_dim)
    torch.nn.init.normal_(projection.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    expected = F.normalize(projection(tower.embed(inputs)), dim=-1)
    native = tower.projected(projection.matrix())
    assert 1 <= len(native) <= 2
    found = F.normalize(encoded(loaded(model, native), inputs), dim=-1)
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("case", ["image SigLIP"], indirect=True)
def test_a_tower_that_ends_in_no_matrix_says_so(case: Case) -> None:  # noqa: F811
    _, tower, _ = case
    with pytest.raises(UserError, match="does not end in a matrix"):
        tower.projected(torch.eye(tower.embed_dim))
