"""Two towers from one configuration: loaded, tokenised, and, once tuned, written as a folder that plain open_clip loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.backbones import halves, load_backbone, load_towers
from pipeline.backbones.open_clip_folder import write_open_clip_folder
from pipeline.backbones.texts import Towers
from pipeline.backbones.tiny import write_tiny_open_clip
from pipeline.config.backbone import OpenClip, Pixels
from pipeline.errors import NotFetched, UserError
from tests.test_backbones import randomised, relative_error
from tests.towers import WORDS, encoded, hugging_face, images, shrunk, write_model, write_tokenizer

TEXTS = ["A photo of Carabus niger.", "melanarius", "a photo of a beetle, a photo of a beetle, a photo of a beetle"]


def with_simple_tokens(architecture: str) -> dict[str, Any]:
    """A small model that reads open_clip's own tokens."""
    config = shrunk(architecture)
    return {**config, "text_cfg": config["text_cfg"] | {"vocab_size": 49408}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Models on disk, by kind: their names."""
    root = tmp_path_factory.mktemp("models")
    bert = hugging_face(root / "bert")
    configs = {"CLIP": with_simple_tokens("ViT-B-32"), "ViTamin": with_simple_tokens("ViTamin-S"), "BERT": bert}
    configs |= {"SigLIP": shrunk("ViT-B-16-SigLIP"), "SigLIP2": shrunk("ViT-B-16-SigLIP2")}
    return {name: write_model(root / name, config) for name, config in configs.items()}


KINDS = ["CLIP", "SigLIP", "SigLIP2", "ViTamin", "BERT"]


def block(folders: dict[str, str], kind: str) -> OpenClip:
    return OpenClip(name=folders[kind])


def tokens(towers: Towers) -> Tensor:
    return torch.stack([towers.text.transform(text) for text in TEXTS])


# ---------------------------------------------------------------- loading
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_both_towers_of_a_folder_give_open_clips_own_embeddings(kind: str, folders: dict[str, str]) -> None:
    towers, model = load_towers(block(folders, kind)), open_clip.create_model(folders[kind]).eval()
    tokenizer = open_clip.get_tokenizer(folders[kind])
    assert torch.equal(tokens(towers), tokenizer(TEXTS))
    assert tokens(towers).shape == (3, towers.text.context_length)
    # Not to the bit: memory that is aligned otherwise is summed in another order.
    assert relative_error(towers.text.embed(tokens(towers)), encoded(model, tokenizer(TEXTS))) < 1e-6
    assert relative_error(towers.image.embed(images(model)), encoded(model, images(model))) < 1e-6
    for tower in towers[:2]:
        assert isinstance(tower, torch.nn.Module)
        assert not any(p.requires_grad for p in tower.parameters()) and not any(m.training for m in tower.modules())


def test_the_image_tower_is_the_one_that_is_loaded_alone(folders: dict[str, str]) -> None:
    for kind in ("CLIP", "SigLIP"):
        alone, towers = load_backbone(block(folders, kind)), load_towers(block(folders, kind))
        assert towers.image.weights_hash() == alone.weights_hash() and repr(towers.image) == repr(alone)
        assert towers.image.transform_id() == alone.transform_id()


def test_scale_and_bias_are_the_models_own(folders: dict[str, str]) -> None:
    clip, siglip = load_towers(block(folders, "CLIP")), load_towers(block(folders, "SigLIP"))
    for towers, kind in ((clip, "CLIP"), (siglip, "SigLIP")):
        state = load_file(Path(folders[kind].removeprefix("local-dir:")) / "open_clip_model.safetensors")
        assert towers.logit_scale == float(state["logit_scale"])
        assert towers.logit_bias == (float(state["logit_bias"]) if kind == "SigLIP" else None)


def test_random_towers_come_from_the_seed_and_leave_torchs_random_state(monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_simple_tokens("ViT-B-32")
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-M-32-alt", small)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = (load_towers(OpenClip(name="ViT-M-32-alt", seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert one.text.weights_hash() == same.text.weights_hash() != other.text.weights_hash()
    assert one.image.weights_hash() == load_backbone(OpenClip(name="ViT-M-32-alt")).weights_hash()


def test_a_backbone_without_a_text_tower_says_which_have_one() -> None:
    with pytest.raises(UserError, match=r"backbone\.kind pixels reads no texts: .*open_clip"):
        load_towers(Pixels(kind="pixels"))


def test_a_tokenizer_that_is_not_there_is_named(folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folders["SigLIP"].removeprefix("local-dir:"), tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=f"The tokenizer's files in {tmp_path / 'copy'} are missing or damaged"):
        load_towers(OpenClip(name=f"local-dir:{tmp_path / 'copy'}"))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "ViT-M-32-alt", shrunk("ViT-B-16-SigLIP"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFetched, match=r"The tokenizer of ViT-M-32-alt: .*timm--ViT-B-16-SigLIP"):
        load_towers(OpenClip(name="ViT-M-32-alt"))


# ---------------------------------------------------------------- tokens
def test_siglip_reads_neither_capitals_nor_punctuation(folders: dict[str, str]) -> None:
    text = load_towers(block(folders, "SigLIP")).text
    assert torch.equal(text.transform("A photo, of_Carabus  NIGER!"), text.transform("a photo of carabus niger"))
    expected = [2, *(WORDS.index(word) for word in ("a", "photo", "of", "carabus", "niger")), 3]
    assert text.transform("A photo of Carabus niger.").tolist() == expected + [0] * (12 - len(expected))


def test_a_text_that_is_too_long_is_cut_and_keeps_its_end(folders: dict[str, str]) -> None:
    for kind, end in (("CLIP", 49407), ("SigLIP", 3)):
        ids = load_towers(block(folders, kind)).text.transform("a photo of " * 40)
        assert ids.shape == (12,) and ids[-1] == end


@pytest.mark.parametrize("change", ["context", "words", "cleaning"])
def test_the_identity_of_a_tokenizer_changes_with_what_it_does(change: str, folders: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(folders["SigLIP"].removeprefix("local-dir:"), folder)
    file = folder / "open_clip_config.json"
    described = json.loads(file.read_text())
    if change == "words":
        write_tokenizer(folder, (*WORDS, "granulatus"))
    else:
        text = {"context": {"context_length": 9}, "cleaning": {"tokenizer_kwargs": {"clean": "whitespace"}}}[change]
        described["model_cfg"]["text_cfg"] |= text
    file.write_text(json.dumps(described))
    before, again = (load_towers(block(folders, "SigLIP")).text.transform_id() for _ in range(2))
    assert before == again and "0x" not in before
    if change == "context":  # positions of another length
        state = load_file(folder / "open_clip_model.safetensors")
        state["text.positional_embedding"] = state["text.positional_embedding"][:9].clone()
        save_file(state, folder / "open_clip_model.safetensors")
    assert load_towers(OpenClip(name=f"local-dir:{folder}")).text.transform_id() != before


# ---------------------------------------------------------------- the folder of a tuned model
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_plain_open_clip_loads_a_tuned_model_and_embeds_the_same(
    kind: str, folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = load_towers(block(folders, kind))
    tails = [tower.make_tail(1).eval() for tower in towers[:2]]  # type: ignore[attr-defined]
    native: dict[str, Tensor] = {}
    for seed, tail in enumerate(tails):
        native |= randomised(tail, seed + 7).to_native()
    write_open_clip_folder(block(folders, kind), native, tmp_path / "tuned", 2.5, -7.25)

    name = f"local-dir:{tmp_path / 'tuned'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    assert (float(model.logit_scale), float(model.logit_bias)) == (2.5, -7.25)
    ids, batch = open_clip.get_tokenizer(name)(TEXTS), images(model)
    assert torch.equal(ids, tokens(towers))
    image, text = (tail(tower.trunk(x, 1)) for tail, tower, x in zip(tails, towers[:2], (batch, ids), strict=True))  # type: ignore[attr-defined]
    for expected, inputs in ((image, batch), (text, ids)):
        found = F.normalize(encoded(model, inputs), dim=-1)
        assert (found - F.normalize(expected, dim=-1)).abs().max() < 1e-6
        assert relative_error(found, F.normalize(encoded(open_clip.create_model(folders[kind]).eval(), inputs), dim=-1)) > 0.01
    photo = Image.effect_noise((90, 70), 60).convert("RGB")
    monkeypatch.setattr(halves, "_shrinks", lambda *_: (1.0, 1.0))  # (what is shrunk much is within 1 of 255 of it)
    assert torch.equal(preprocess(photo), towers.image.transform(photo))


@torch.no_grad()
def test_whole_networks_are_written_as_tails_are_and_the_rest_stays(folders: dict[str, str], tmp_path: Path) -> None:
    towers = load_towers(block(folders, "CLIP"))
    network = towers.text.network().eval()
    randomised(network, 4)
    write_open_clip_folder(block(folders, "CLIP"), network.to_native(), tmp_path / "tuned")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'tuned'}").eval()
    assert relative_error(encoded(model, tokens(towers)), network(towers.text.given(tokens(towers)))) < 1e-6
    assert relative_error(encoded(model, images(model)), towers.image.embed(images(model))) < 1e-6
    assert float(model.logit_scale) == towers.logit_scale and model.logit_bias is None


def test_what_is_written_is_loaded_as_two_towers_again(folders: dict[str, str], tmp_path: Path) -> None:
    for kind in KINDS:
        may_move = write_open_clip_folder(block(folders, kind), {}, tmp_path / kind)
        assert may_move == (kind != "BERT"), "its text tower is described by a folder"
        before, after = load_towers(block(folders, kind)), load_towers(OpenClip(name=f"local-dir:{tmp_path / kind}"))
        assert after.image.weights_hash() == before.image.weights_hash()
        assert after.text.weights_hash() == before.text.weights_hash()
        assert after.image.transform_id() == before.image.transform_id()
        assert after[2:] == before[2:]


@pytest.mark.parametrize(
    ("native", "message"),
    [
        ({"visual.nothing": torch.zeros(3)}, r"visual\.nothing \(3,\) does not fit the model, which has none of that name"),
        ({"text_projection": torch.zeros(3, 3)}, r"text_projection \(3, 3\) does not fit the model, which has \(16, 32\)"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_and_nothing_is_written(
    native: dict[str, Tensor], message: str, folders: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        write_open_clip_folder(block(folders, "CLIP"), native, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_a_text_tower_that_does_not_know_its_tokenizers_numbers_is_refused(tmp_path: Path) -> None:
    write_tiny_open_clip(tmp_path / "tiny")
    with pytest.raises(UserError, match="knows 64 tokens, and its tokenizer gave number 49407: its vocabulary is another"):
        load_towers(OpenClip(name=f"local-dir:{tmp_path / 'tiny'}"))
