"""Both towers of open_clip's models: tails equal the library's own outputs at every cut, learn in every tensor, and go back into
the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from pipeline.backbones.base import Tail, Tower
from pipeline.backbones.open_clip_text import OpenClipTextTower
from pipeline.backbones.texts import TextTower, without_marks
from pipeline.config.encoder import Lora
from pipeline.errors import UserError
from pipeline.models.adapter import add_adapter
from tests.test_backbones import TARGETS, randomised, relative_error
from tests.towers import FAMILIES, LENGTH, build, encoded, hugging_face, ids, images, make_towers, shrunk, small_kinds, towers_of

Case = tuple[Any, Tower, Tensor]
IMAGES = (*FAMILIES, "timm with registers, attention", "timm with registers, average")
OTHERS = ("custom blocks", "eos", "first", "QuickGELU", "CLIPA", "CoCa", "BERT", "BERT with pooler", "XLM-R")
TEXTS = (*FAMILIES, *OTHERS)
CASES = [*(f"image {name}" for name in IMAGES), *(f"text {name}" for name in TEXTS)]
ADAPTED = [*(f"{which} {name}" for which in ("image", "text") for name in FAMILIES), "text BERT", "text custom blocks"]
WHOLE = ["image ViT-B-32", "image SigLIP", "image ViTamin", "text ViT-B-32", "text SigLIP", "text CoCa", "text BERT"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return small_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture
def case(request: pytest.FixtureRequest, kinds: dict[str, dict[str, Any]]) -> Case:
    """open_clip's model, one of its towers, and what that reads."""
    which, _, name = request.param.partition(" ")
    model, towers = make_towers(kinds[name])
    return model, towers.image if which == "image" else towers.text, images(model) if which == "image" else ids()


@pytest.mark.parametrize("case", CASES, indirect=True)
@torch.no_grad()
def test_trunk_and_tail_give_the_librarys_own_embedding_at_every_cut(case: Case) -> None:
    model, tower, inputs = case
    expected = encoded(model, inputs)
    assert relative_error(tower.embed(inputs), expected) < 1e-6
    assert tower.n_blocks >= 3
    for cut in range(tower.n_blocks + 1):
        assert relative_error(tower.make_tail(cut)(tower.trunk(inputs, cut)), expected) < 1e-5


def learn(module: Any, inputs: Tensor, steps: int = 3) -> None:
    """Some steps of an optimiser towards a random embedding."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, 0.01)
    with torch.no_grad():
        goal = torch.randn(module(inputs).shape, generator=torch.Generator().manual_seed(3))
    for _ in range(steps):
        optimiser.zero_grad()
        (module(inputs) - goal).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_all_of_a_tail_learns_and_all_that_learns_is_in_its_state(case: Case) -> None:
    _, tower, inputs = case
    before, tokens = tower.weights_hash(), tower.trunk(inputs, 1)
    tail = tower.make_tail(1).eval()
    start = {name: tensor.clone() for name, tensor in tail.state_dict().items()}
    assert [name for name, _ in tail.named_parameters()] == list(start)
    learn(tail, tokens)
    assert not [name for name, tensor in tail.state_dict().items() if torch.equal(tensor, start[name])]
    assert tower.weights_hash() == before


def loaded(model: Any, native: dict[str, Tensor]) -> Any:
    """open_clip's model with these tensors in it; every other name than its own is refused."""
    own = model.state_dict()
    assert set(native) <= set(own)
    model.load_state_dict({**own, **native}, strict=True)
    return model


@pytest.mark.parametrize("case", CASES, indirect=True)
@torch.no_grad()
def test_tuned_tails_give_the_same_embedding_back_in_open_clip(case: Case) -> None:
    model, tower, inputs = case
    tail = tower.make_tail(1).eval()
    randomised(tail, seed=5)
    expected = tail(tower.trunk(inputs, 1))
    assert relative_error(encoded(model, inputs), expected) > 0.01
    assert relative_error(encoded(loaded(model, tail.to_native()), inputs), expected) < 1e-5


@pytest.mark.parametrize("case", ADAPTED, indirect=True)
def test_an_adapter_learns_on_every_projection_of_every_block_and_merges_into_open_clip(case: Case) -> None:
    model, tower, inputs = case
    tokens, tail = tower.trunk(inputs, 1), tower.make_tail(1)
    adapted = add_adapter(tail, Lora(kind="lora", blocks=2, r=2, alpha=2.0, dora=True)).eval()
    at = {name.split(".lora_A")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert len(at) == sum(len(tail.projections[name]) for name in TARGETS) * len(tail.blocks)
    assert all(".blocks." in name for name in at)
    for name in ("q_proj", "k_proj", "v_proj"):
        modules = tail.projections[name]
        assert sum(path.endswith(modules) for path in at) == len(tail.blocks)
    learn(adapted, tokens)
    unchanged = [name for name, p in adapted.named_parameters() if "lora_B" in name and not p.detach().any()]
    assert not unchanged
    with torch.no_grad():
        expected = adapted(tokens)
        merged = adapted.merge_and_unload()
        assert isinstance(merged, Tail)
        assert relative_error(encoded(loaded(model, merged.to_native()), inputs), expected) < 1e-5


@pytest.mark.parametrize(
    "case", ["image SigLIP", "image ViTamin", "image ViT-B-32", "text SigLIP", "text CoCa", "text BERT"], indirect=True
)
def test_computing_activations_again_changes_no_gradient(case: Case) -> None:
    _, tower, inputs = case
    modules = [(tower.make_tail(0), tower.trunk(inputs, 0)), (tower.network(), tower.given(inputs))]
    for module, given in modules:
        gradients = []
        for again in (False, True):
            torch.manual_seed(0)  # dropout draws the same
            module.set_grad_checkpointing(again)
            module.zero_grad()
            module.train()(given).square().mean().backward()
            gradients.append([p.grad.clone() for p in module.parameters() if p.grad is not None])
        assert gradients[0] and all(map(torch.allclose, *gradients))


@pytest.mark.parametrize("case", WHOLE, indirect=True)
def test_a_network_starts_as_its_tower_learns_and_goes_back_into_open_clip(case: Case) -> None:
    model, tower, inputs = case
    before, network = tower.weights_hash(), tower.network().eval()
    given = tower.given(inputs)
    assert relative_error(network(given).detach(), tower.embed(inputs)) < 1e-6
    learn(network, given)
    assert tower.weights_hash() == before
    with torch.no_grad():
        assert relative_error(encoded(model, inputs), network(given)) > 0.01
        assert relative_error(encoded(loaded(model, network.to_native()), inputs), network(given)) < 1e-5


# ---------------------------------------------------------------- what the cache holds of a text
@pytest.mark.parametrize("case", ["text ViT-B-32"], indirect=True)
def test_every_token_id_outlives_bf16(case: Case) -> None:
    """SigLIP2's vocabulary has 256,000."""
    _, tower, _ = case
    ids = torch.tensor([[0, 1, 255, 256, 257, 49_407, 65_535, 65_536, 255_999]])
    network = tower.network()
    network.backbone.embed = lambda texts: texts.double()  # type: ignore[method-assign,assignment]
    assert torch.equal(network(tower.given(ids).bfloat16()), ids.double())


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("text")], indirect=True)
@torch.no_grad()
def test_marks_outlive_bf16_and_all_else_is_near(case: Case) -> None:
    model, tower, inputs = case
    assert isinstance(tower, TextTower)
    tokens = tower.trunk(inputs, 1)
    assert tokens.shape == (5, tower.n_tokens, tower.width + 1)
    stored = tokens.bfloat16()
    assert torch.equal(stored[..., -1].float(), tokens[..., -1])
    assert relative_error(tower.make_tail(1)(stored.float()), encoded(model, inputs)) < 0.05


@torch.no_grad()
def test_marks_are_of_the_end_of_a_text_of_the_last_token_or_of_all_but_padding(kinds: dict[str, dict[str, Any]]) -> None:
    texts, at = ids(), torch.arange(LENGTH)
    expected = {
        "ViT-B-32": at == texts.argmax(dim=1, keepdim=True),
        "eos": at == (texts == 7).int().argmax(dim=1, keepdim=True),
        "SigLIP": (at == LENGTH - 1).expand(len(texts), -1),
        "first": (at == 0).expand(len(texts), -1),
        "BERT": texts != 0,
    }
    for name, marks in expected.items():
        _, towers = make_towers(kinds[name])
        assert torch.equal(without_marks(towers.text.trunk(texts, 2))[1], marks), name


@pytest.mark.parametrize("name", ["ViT-B-32", "BERT", "CoCa"])
@torch.no_grad()
def test_an_embedding_does_not_depend_on_the_texts_beside_it(name: str, kinds: dict[str, dict[str, Any]]) -> None:
    """The tail leaves out what lies behind the longest text of a batch."""
    _, towers = make_towers(kinds[name])
    tail, tokens = towers.text.make_tail(1).eval(), towers.text.trunk(ids(8), 1)
    alone = torch.cat([tail(tokens[i : i + 1]) for i in range(8)])
    assert relative_error(tail(tokens), alone) < 1e-5


@torch.no_grad()
def test_a_causal_tail_computes_no_token_behind_the_longest_text(kinds: dict[str, dict[str, Any]]) -> None:
    _, towers = make_towers(kinds["ViT-B-32"])
    seen: list[int] = []
    tail, texts = towers.text.make_tail(1), ids()
    tail.blocks[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    tail(towers.text.trunk(texts, 1))
    assert seen == [int(texts.argmax(dim=1).max()) + 1] and seen[0] < LENGTH


# ---------------------------------------------------------------- what cannot be cut, and identity
@torch.no_grad()
def test_a_text_tower_that_cannot_be_cut_embeds_and_says_so(tmp_path: Path) -> None:
    model, towers = make_towers(hugging_face(tmp_path / "bert"))
    assert isinstance(towers.text, OpenClipTextTower)
    tower = OpenClipTextTower(towers.text.text, towers.text.tokens, "this one", "text.", 24)
    assert relative_error(tower.embed(ids()), encoded(model, ids())) < 1e-6
    for call in (lambda: tower.trunk(ids(), 1), lambda: tower.make_tail(1), lambda: tower.cut_before(1)):
        with pytest.raises(UserError, match=r"this one cannot be cut .*model\.text\.kind"):
            call()


def test_a_cut_outside_the_blocks_is_refused() -> None:
    _, towers = make_towers(shrunk("ViT-B-32"))
    for call in (lambda: towers.text.trunk(ids(), 4), lambda: towers.text.make_tail(-1)):
        with pytest.raises(UserError, match="has 3 blocks"):
            call()
    with pytest.raises(UserError, match=r"model\.text\.blocks"):
        towers.text.cut_before(4)


@torch.no_grad()
def test_each_tower_has_weights_of_its_own() -> None:
    hashes = []
    for change in (None, "image", "text"):
        _, towers = make_towers(shrunk("ViT-B-32"))
        if change:
            next(getattr(towers, change).parameters()).flatten()[0] += 1e-3
        hashes.append((towers.image.weights_hash(), towers.text.weights_hash()))
    (image, text), (other_image, same_text), (same_image, other_text) = hashes
    assert (same_image, same_text) == (image, text)
    assert other_image != image and other_text != text


def test_architectures_are_told_apart_that_have_equal_modules(kinds: dict[str, dict[str, Any]]) -> None:
    names = ("ViT-B-32", "eos", "first", "custom blocks")
    described = {repr(make_towers(kinds[name])[1].text) for name in names}
    assert len(described) == len(names)
    plain = shrunk("ViT-B-32")
    heads = {**plain, "text_cfg": plain["text_cfg"] | {"heads": 4}}
    assert repr(make_towers(heads)[1].text) != repr(make_towers(plain)[1].text)


def test_a_clips_text_tower_holds_nothing_of_its_image_tower() -> None:
    model, towers = make_towers(shrunk("ViT-B-32"))
    whole = {name for name in model.state_dict() if not name.startswith(("visual.", "logit_"))}
    assert set(towers.text.to_native()) == whole
    assert isinstance(model, open_clip.CLIP)


NAMED = [
    *("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"),
    *("ViT-B-16-SigLIP", "ViT-B-16-SigLIP-384", "ViT-L-16-SigLIP-384", "ViT-SO400M-14-SigLIP", "ViT-SO400M-14-SigLIP-384"),
    *("ViT-B-16-SigLIP2", "ViT-B-16-SigLIP2-384", "ViT-L-16-SigLIP2-384", "ViT-SO400M-14-SigLIP2", "ViT-gopt-16-SigLIP2-384"),
    *("ViTamin-S", "ViTamin-B", "ViTamin-L", "ViTamin-L-384", "ViTamin-L2", "ViTamin-XL-256", "ViTamin-XL-384"),
]
"""Architectures that biologists name; BioCLIP is a ViT-B-16, BioCLIP-2 a ViT-L-14, BioCLIP-2.5 a ViT-H-14."""
NETWORKS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")


@pytest.mark.jobs
@pytest.mark.parametrize("name", [*NAMED, *NETWORKS])
def test_both_towers_of_what_people_name_can_be_cut_but_convolutions(name: str) -> None:
    with torch.device("meta"):  # no numbers, only shapes
        towers = towers_of(build(open_clip.get_model_config(name)))
        assert towers.text.n_blocks >= 12
        if name in NETWORKS:
            with pytest.raises(UserError, match="cannot be cut"):
                towers.image.make_tail(1)
        else:
            assert towers.image.n_blocks >= 12 and 0 not in towers.image.grid
