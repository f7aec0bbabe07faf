"""Every method's model on the tiny backbones: what learns, what the adapters reach, domains, saving and loading."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone
from pipeline.config.identity import token_kind
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import write_text
from pipeline.errors import UserError, WorkError
from pipeline.features.forward import compute_features
from pipeline.models.base import Facts
from pipeline.models.learner import (
    SCALES,
    DomainEmbedding,
    Learner,
    SpeciesEmbedding,
    load_trained_state,
    make_mlp,
    trained_state,
)
from pipeline.models.metadata import Metadata, Names
from pipeline.models.pooling import Sets
from pipeline.models.saved import load_model, make_model, save_model
from pipeline.training.optimiser import make_optimizer, without_gradient

METHODS = ("frozen", "finetune", "baseline", "dinov2", "augmentation", "lora", "combined", "baseline of sets")
SMALL_LORA = ("model.encoder.r=4", "model.encoder.alpha=4")
OF_SETS = ("model.species_embedding=true", "model.pool=attention", "train.sample=groups", "loss.kind=crps")
"""A method with every part that another method lacks."""
DOMAINS = ("1", "3", "7")
SPECIES = ("Carabus nemoralis", "Harpalus affinis", "Harpalus rufipes")
NAMES = Names(DOMAINS, SPECIES)
MakeConfig = Callable[..., Config]


def build(config: Config) -> tuple[Learner, Facts, Backbone]:
    backbone = load_backbone(config.backbone)
    kind, blocks = token_kind(config)
    cut = backbone.cut_before(blocks) if kind == "cut" else None
    facts = Facts(config.data.targets, NAMES, backbone.embed_dim, backbone.weights_hash(), cut, "key")
    return make_model(config, facts, backbone), facts, backbone


def features_of(config: Config, backbone: Backbone, n: int = 6) -> Tensor:
    images = torch.rand(n, 3, backbone.image_size, backbone.image_size, generator=torch.Generator().manual_seed(1))
    kind, blocks = token_kind(config)
    return compute_features(backbone, images, kind, backbone.cut_before(blocks) if blocks else 0).clone()


def small(config_of: MakeConfig, method: str, *overrides: str) -> Config:
    """A method's configuration, its adapters small."""
    more = SMALL_LORA if method in ("lora", "combined") else OF_SETS if method.endswith(" of sets") else ()
    return config_of(method.removesuffix(" of sets"), *more, *overrides)


def of_domains(*domains: str | None) -> Metadata:
    """Specimens of these domains, of which nothing else is known."""
    return NAMES.metadata({"domain": domains})


def said(model: Learner, features: Tensor, metadata: Metadata | None = None) -> Tensor:
    """What the head says of each target's location [B, n_targets]."""
    parameters: Tensor = model(features, metadata).parameters
    return parameters[..., 0]


def loss_of(model: Learner, features: Tensor, metadata: Metadata | None) -> Tensor:
    """Of two groups of three images each."""
    sets = Sets(torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 3]))
    return model.losses(model(features, metadata), torch.ones(6, 3), sets)[0].mean()


def step(model: Learner, optimizer: torch.optim.Optimizer, features: Tensor, metadata: Metadata) -> None:
    optimizer.zero_grad()
    loss_of(model, features, metadata).backward()
    optimizer.step()


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_reaches_every_trainable_parameter(config_of: MakeConfig, method: str) -> None:
    config = small(config_of, method)
    model, _, backbone = build(config)
    metadata = of_domains("1", "3", "7", None, "new", "1") if model.domain else None
    loss_of(model, features_of(config, backbone), metadata).backward()
    assert list(without_gradient(model)) == []
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_every_trainable_tensor_moves_by_more_than_weight_decay_explains(config_of: MakeConfig, method: str) -> None:
    config = small(config_of, method, "optim.lr=1e-3")
    model, _, backbone = build(config)
    features = features_of(config, backbone)
    metadata = of_domains("1", "3", "7", None, "1", "3")
    before = {name: tensor.clone() for name, tensor in trained_state(model).items()}
    optimizer = make_optimizer(model, config)
    for _ in range(3):
        step(model, optimizer, features, metadata)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or name.endswith("k_proj.bias"):
            continue  # the softmax does not see a key's bias
        decay = 3 * rates[id(parameter)] * config.optim.weight_decay * before[name].abs()
        moved = (parameter.detach() - before[name]).abs()
        assert (moved > 2 * decay + 1e-9).any(), name


@pytest.mark.parametrize("method", METHODS)
def test_everything_trainable_is_in_exactly_one_optimiser_group(config_of: MakeConfig, method: str) -> None:
    config = small(config_of, method)
    model, _, _ = build(config)
    grouped = [id(p) for group in make_optimizer(model, config).param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("target", ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"])
def test_an_adapter_on_each_of_the_six_projections_changes_the_output(config_of: MakeConfig, target: str) -> None:
    config = config_of("lora", f"model.encoder.targets=[{target}]", *SMALL_LORA)
    model, _, backbone = build(config)
    features = features_of(config, backbone)
    before = said(model.eval(), features)
    adapted = [(n, p) for n, p in model.named_parameters() if "lora_B" in n]
    assert adapted and all(target in name for name, _ in adapted)
    with torch.no_grad():
        for _, parameter in adapted:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert (said(model, features) - before).abs().max() > 1e-4


@pytest.mark.parametrize("dora", ["true", "false"])
@pytest.mark.parametrize("rslora", ["true", "false"])
def test_a_new_adapter_leaves_the_backbone_as_it_was(config_of: MakeConfig, dora: str, rslora: str) -> None:
    config = config_of("lora", f"model.encoder.dora={dora}", f"model.encoder.rslora={rslora}", *SMALL_LORA)
    model, _, backbone = build(config)
    features = features_of(config, backbone)
    tail = backbone.make_tail(backbone.cut_before(6))
    encoder = model.encoder.eval().double()
    with torch.no_grad():
        for layer in (each for each in encoder.modules() if len(getattr(each, "lora_magnitude_vector", ()))):
            (magnitude,) = layer.lora_magnitude_vector.values()
            single = magnitude.weight.clone()
            magnitude.weight.copy_(layer.get_base_layer().weight.norm(dim=1))  # not rounded to single precision
            torch.testing.assert_close(magnitude.weight, single, rtol=1e-6, atol=0)
    torch.testing.assert_close(encoder(features.double()), tail.double()(features.double()), rtol=1e-6, atol=1e-6)


def test_an_unknown_domain_and_none_use_the_unknown_row(config_of: MakeConfig) -> None:
    config = config_of("baseline")
    model, _, backbone = build(config)
    features = features_of(config, backbone)
    model.eval()
    unknown = said(model, features, of_domains(*["never seen"] * 6))
    torch.testing.assert_close(unknown, said(model, features, of_domains(*[None] * 6)))
    torch.testing.assert_close(unknown, said(model, features, None))
    assert not torch.allclose(unknown, said(model, features, of_domains(*["1"] * 6)))


def test_the_unknown_row_is_not_a_padding_row_and_learns() -> None:
    embedding = DomainEmbedding(2, 8)
    assert embedding.table.padding_idx is None
    assert embedding.table.weight[-1].abs().sum() > 0
    embedding(None, 3).square().sum().backward()
    assert embedding.table.weight.grad is not None and embedding.table.weight.grad[-1].abs().sum() > 0


# ---------------------------------------------------------------- species
def of_species(*species: str | float | None) -> Metadata:
    return NAMES.metadata({"species": species})  # type: ignore[dict-item]


def with_species(width: int = 8) -> Learner:
    """A model whose head passes on what it reads: the embedding of names, the features being zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        species = SpeciesEmbedding(len(SPECIES), len(NAMES.genera), width)
    head = make_mlp([width, width])
    nn.init.eye_(head[0].weight), nn.init.zeros_(head[0].bias)
    return Learner(nn.Identity(), head, None, False, width, species=species)


def shift_of(model: Learner, *species: str | float | None) -> Tensor:
    return said(model, torch.zeros(len(species), 8), of_species(*species))


def test_a_species_never_seen_is_what_its_genus_tells() -> None:
    model = with_species()
    assert model.species is not None
    unseen, other, seen = shift_of(model, "Harpalus pensylvanicus", "Harpalus erraticus", "Harpalus affinis")
    torch.testing.assert_close(unseen, other)
    expected = model.species.mlp(model.species.species.weight[3] + model.species.genus.weight[1])
    torch.testing.assert_close(unseen, expected)
    assert not torch.allclose(unseen, seen) and not torch.allclose(unseen, shift_of(model, "Carabus auratus")[0])


@pytest.mark.parametrize("name", [None, float("nan"), "Pterostichus melanarius", "", " "])
def test_what_has_no_known_genus_is_the_last_row_of_both(name: str | float | None) -> None:
    model = with_species()
    metadata = of_species(name)
    assert (metadata.species.tolist(), metadata.genus.tolist()) == ([3], [2])
    torch.testing.assert_close(shift_of(model, name), said(model, torch.zeros(1, 8), None))


def test_a_name_is_known_by_its_row_and_its_first_word_whatever_stands_beside_it() -> None:
    names = Names.of({"domain": ["7", None, "3"], "species": ["Carabus b", None, "Carabus a", float("nan")]})  # type: ignore[list-item]
    assert names == Names(("3", "7"), ("Carabus a", "Carabus b"), ()) and names.genera == ("Carabus",)
    metadata = names.metadata({"domain": ["7", "x"], "species": ["Carabus b", "Carabus c"], "date": ["2020-12-31", None]})
    assert [row.tolist() for row in vars(metadata).values()] == [[1, 2], [1, 2], [0, 0], [0, 0], [366, -1]]
    assert {row.dtype for row in vars(names.metadata({})).values()} == {torch.int64} and len(names.metadata({})) == 0


def test_the_unknown_rows_of_species_and_genus_are_ordinary_rows_that_learn() -> None:
    """(as mistake 11: a padding row would stay as it is for ever)"""
    model = with_species()
    assert model.species is not None
    (shift_of(model, None, "Harpalus rufipes") * torch.arange(8.0)).sum().backward()
    for table in (model.species.species, model.species.genus):
        assert table.padding_idx is None and table.weight.grad is not None
        assert table.weight.grad[-1].abs().max() > 1e-4


# ---------------------------------------------------------------- on disk
@pytest.mark.parametrize("method", METHODS)
def test_a_saved_model_predicts_the_same_when_loaded(config_of: MakeConfig, tmp_path: Path, method: str) -> None:
    config = small(config_of, method)
    model, facts, backbone = build(config)
    features, metadata = features_of(config, backbone), of_domains("1", "3", "7", None, "new", "1")
    optimizer = make_optimizer(model, config)
    for _ in range(2):
        step(model, optimizer, features, metadata)
    save_model(model, facts, TrialDir(tmp_path))
    again = load_model(config, TrialDir(tmp_path), backbone)
    one, other = (vars(each.predict(features, metadata)) for each in (again, model.eval()))
    assert all(torch.equal(one[name], other[name]) for name in ("mean", "variance", "log_weights"))


def test_model_safetensors_holds_trained_tensors_only(config_of: MakeConfig, tmp_path: Path) -> None:
    """Not the backbone (mistake 6), and not the adapter, which has its own file."""
    config = config_of("lora", *SMALL_LORA)
    model, facts, _ = build(config)
    save_model(model, facts, TrialDir(tmp_path))
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {name.split(".")[0] for name in names} == {"head", "domain", *SCALES}
    assert (tmp_path / "adapter" / "adapter_config.json").exists()


def test_the_patch_convolutions_are_saved_and_loaded(config_of: MakeConfig, tmp_path: Path) -> None:
    """Mistake 5: the sample code neither trains nor saves them."""
    config = config_of("dinov2")
    model, facts, backbone = build(config)
    save_model(model, facts, TrialDir(tmp_path))
    again = load_model(config, TrialDir(tmp_path), backbone)
    saved, loaded = model.encoder.state_dict(), again.encoder.state_dict()
    assert saved.keys() == loaded.keys() and len(saved) == 4
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_the_adapter_loads_with_plain_peft_on_an_unadapted_tail(config_of: MakeConfig, tmp_path: Path) -> None:
    config = config_of("lora", *SMALL_LORA)
    model, facts, backbone = build(config)
    features = features_of(config, backbone)
    optimizer = make_optimizer(model, config)
    step(model, optimizer, features, of_domains(*["1"] * 6))
    save_model(model, facts, TrialDir(tmp_path))
    plain = PeftModel.from_pretrained(backbone.make_tail(backbone.cut_before(6)), tmp_path / "adapter")
    # In double precision: they round differently, and this network makes ten times as much of that.
    said, expected = plain.double()(features.double()), model.encoder.eval().double()(features.double())
    torch.testing.assert_close(said, expected)


def test_a_saved_adapter_replaces_the_one_before_as_a_whole(config_of: MakeConfig, tmp_path: Path) -> None:
    config = config_of("lora", *SMALL_LORA)
    model, facts, _ = build(config)
    trial = TrialDir(tmp_path / "trial")
    write_text(trial.adapter / "left by something else", "")
    save_model(model, facts, trial)
    assert {path.name for path in trial.adapter.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (trial.adapter / "left by something else").exists()
    assert {path.name for path in trial.path.iterdir()} == {"adapter", "model.safetensors"}


def test_a_failure_while_an_adapter_is_saved_keeps_the_one_before(
    config_of: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, facts, _ = build(config_of("lora", *SMALL_LORA))
    trial = TrialDir(tmp_path / "trial")
    save_model(model, facts, trial)
    before = {path.name: path.read_bytes() for path in trial.adapter.iterdir()}
    monkeypatch.setattr("pipeline.models.adapter.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(model, facts, trial)
    assert {path.name: path.read_bytes() for path in trial.adapter.iterdir()} == before
    assert {path.name for path in trial.path.iterdir()} == {"adapter", "model.safetensors"}


def test_a_model_is_not_loaded_onto_another_backbone(config_of: MakeConfig, tmp_path: Path) -> None:
    config = config_of("lora", *SMALL_LORA)
    model, facts, backbone = build(config)
    save_model(model, facts, TrialDir(tmp_path))
    with torch.no_grad():
        next(backbone.parameters()).add_(1)
    with pytest.raises(WorkError, match="trained on backbone weights"):
        load_model(config, TrialDir(tmp_path), backbone)


@pytest.mark.parametrize("method", ["finetune", "lora"])
def test_a_model_is_not_loaded_onto_another_cut(config_of: MakeConfig, tmp_path: Path, method: str) -> None:
    """PEFT itself loads an adapter of two blocks onto a tail of one without a warning."""
    config = small(config_of, method, "model.encoder.blocks=2")
    model, facts, backbone = build(config)
    save_model(model, facts, TrialDir(tmp_path))
    other = small(config_of, method, "model.encoder.blocks=1")
    with pytest.raises(WorkError, match="begins after block"):
        load_model(other, TrialDir(tmp_path), backbone)


def test_equal_models_give_equal_files(config_of: MakeConfig, tmp_path: Path) -> None:
    config = config_of("lora", *SMALL_LORA)
    for name in ("a", "b"):
        model, facts, _ = build(config)
        save_model(model, facts, TrialDir(tmp_path / name))
    for file in ("model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_more_blocks_than_the_backbone_has_is_a_clear_error(config_of: MakeConfig) -> None:
    config = config_of("finetune", "model.encoder.blocks=99")
    with pytest.raises(UserError, match=r"model\.encoder\.blocks"):
        build(config)


def test_building_a_model_leaves_the_global_random_state_alone(config_of: MakeConfig) -> None:
    config = config_of("baseline")
    state = torch.get_rng_state()
    build(config)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_trained_state_round_trips(config_of: MakeConfig) -> None:
    config = config_of("baseline")
    model, _, _ = build(config)
    state = {name: tensor + 1 for name, tensor in trained_state(model).items()}
    load_trained_state(model, state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in trained_state(model).items())


def test_standardised_features_reach_the_head_with_mean_0_and_sd_1_of_the_training_images_alone(
    config_of: MakeConfig, root: Path
) -> None:
    from pipeline.signals import StopFlag
    from pipeline.stages import extract
    from pipeline.stages.inputs import load_inputs, make_facts
    from pipeline.training.run import Run, Stop, set_scales

    config = config_of("forecast", "data.colour_card=false")
    extract.ensure(config)
    inputs = load_inputs(config)
    facts = make_facts(inputs)
    model = make_model(config, facts, None)
    assert isinstance(model, Learner)
    train, validation = (inputs.samples(facts, split, torch.device("cpu")) for split in ("train", "validation"))
    run = Run(TrialDir(root), "", "", config, Stop(StopFlag(), lambda: True), table=inputs.table("train"))
    set_scales(model, train, run)
    read = [model.embed(samples.select(torch.arange(len(samples)))[0], None, None) for samples in (train, validation)]
    torch.testing.assert_close(read[0].mean(0), torch.zeros(read[0].shape[1]), atol=1e-4, rtol=0)
    torch.testing.assert_close(read[0].std(0, correction=0), torch.ones(read[0].shape[1]), atol=1e-4, rtol=0)
    assert read[1].mean(0).abs().max() > 0.01
