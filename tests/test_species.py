"""Species through every stage, on generated beetles and small models of two towers: as released, few shots, projections, the last
blocks of both towers, adapters on both; what is cached, saved, resumed and predicted."""

from __future__ import annotations

import gc
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pipeline.backbones import load_towers
from pipeline.backbones.base import Tail
from pipeline.config.trial import Config
from pipeline.data.taxonomy import scientific_name
from pipeline.data.tree import read_tree
from pipeline.disk.layout import PROJECT, TrialDir, experiment_dir
from pipeline.errors import Interrupted, MissingFeatures, UserError, WorkError
from pipeline.experiments.reading import load_experiment
from pipeline.launch.doctor import capacity
from pipeline.launch.watching import estimates
from pipeline.launch.watching.preflight import preflight
from pipeline.models.encoders import recompute
from pipeline.models.interpolation import bare, between, plain, soup
from pipeline.models.saved import load_facts, load_model, make_model, read_trained
from pipeline.models.towers import TwoTowers
from pipeline.reporting.comparison import candidates, compare
from pipeline.signals import StopFlag
from pipeline.stages import evaluate, extract, fetch, interpolate, text_inputs, train
from pipeline.stages.inputs import changed, load_inputs, make_facts
from pipeline.stages.predict import Origin, predict_files
from pipeline.tasks import load_task
from pipeline.training import loop, towers
from pipeline.training.optimiser import set_rates
from pipeline.training.samples import Samples, TextSamples, predict
from pipeline.training.towers import embed_classes
from tests.test_open_clip_folder import with_simple_tokens
from tests.towers import write_model

pytestmark = [pytest.mark.jobs, pytest.mark.usefixtures("one_vocabulary")]
QUICK = (
    "data.split.attempts=20",  # (of so few species no draw has its share)
    "device=cpu", "train.precision=fp32", "features.dtype=fp32", "resources.lease_seconds=1", "train.batch_size=16",
)  # fmt: skip
Make = Callable[..., tuple[Config, TrialDir]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of species, a small CLIP, and a root that all of this file's trials share."""
    folder = tmp_path_factory.mktemp("species")
    load_task("species").generate(folder / "data", scale=0.1)
    write_model(folder / "clip", with_simple_tokens("ViT-B-32"))
    return folder


@pytest.fixture
def make(place: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("CARABID_ROOT", str(place / "root"))

    def trial_of(
        method: str, *overrides: str, quick: tuple[str, ...] = QUICK, clip: str = "clip", table: str = "metadata.csv"
    ) -> tuple[Config, TrialDir]:
        """The first trial of a configuration of species, and its folder."""
        trains = method not in ("baseline", "few_shot")
        quick = tuple(each for each in quick if trains or not each.startswith("train.batch_size"))
        own = (f"data.source={place / 'data' / table}", f"backbone.name=local-dir:{place / clip}", *quick)
        experiment = load_experiment(PROJECT / "configs/species" / f"{method}.yaml", (*own, *overrides))
        trial = experiment.trials[0]
        return trial.config, experiment_dir(trial.config).trial(trial.name)

    return trial_of


def done(config: Config, trial: TrialDir) -> dict[str, Any]:
    """The results of a trial that goes through every stage."""
    extract.ensure(config)
    train.run(config, trial)
    return evaluate.run(config, trial)


LORA = "{kind: lora, blocks: 1, r: 2}"
WHOLE = ("train.epochs=2", "optim.lr=1e-3", "model.encoder={kind: end_to_end}", "model.text={kind: end_to_end}")
METHODS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "few_shot": ("data.shots=2",),
    "projection": ("train.epochs=3", "optim.lr=1e-2"),
    "finetune": ("train.epochs=2", "optim.lr=1e-3", "model.encoder.blocks=1", "model.text.blocks=2"),
    "lift": ("train.epochs=3", "optim.lr=1e-2", "model.encoder={kind: lora, blocks: 1, r: 2}"),
    "lora": (
        "train.epochs=2",
        "optim.lr=1e-2",
        "model.encoder={kind: lora, blocks: 1, r: 2}",
        "model.text={kind: lora, blocks: 1, r: 2}",
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_from_photographs_to_results_of_species_known_and_new(method: str, make: Make) -> None:
    config, trial = make(method, *METHODS[method])
    results = done(config, trial)
    assert results["split"] == "validation", "the test is opened on purpose alone"
    for part in ("id", "ood"):
        assert 0 < results[part]["i2t_map"] <= 1 and results[part]["n"] > 0
    assert {"genus", "family"} <= results["ranks"].keys() and {"few", "medium", "many"} & results["buckets"].keys()
    classes = pd.read_parquet(trial.groups)
    assert len(classes) and {"i2t_map", "n_train"} <= set(classes)


@pytest.mark.parametrize("method", ["projection", "finetune", "lift"])
def test_what_a_training_held_is_free_again_when_it_has_ended(method: str, make: Make) -> None:
    """Without the collector of cycles, which seldom looks (`sweeps.py`): the next one in this process needs the memory."""
    config, trial = make(method, *(each for each in METHODS[method] if "epochs" not in each), "train.epochs=1", "seed=5")
    extract.ensure(config)
    gc.collect()
    before = {id(each) for each in gc.get_objects() if type(each) in (Samples, TextSamples)}  # of other tests' modules
    gc.disable()
    try:
        train.run(config, trial)
        assert not [each for each in gc.get_objects() if type(each) in (Samples, TextSamples) and id(each) not in before]
    finally:
        gc.enable()
    assert trial.trained.exists()


def test_what_is_read_again_says_the_same_and_reads_no_trunk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of two adapters from its folder: the same embeddings of images and classes; both trunks stay where they are."""
    config, trial = make("lora", *METHODS["lora"])
    done(config, trial)
    inputs = load_inputs(config)
    text = inputs.text_tower
    assert text is not None and inputs.texts is not None
    model = load_model(config, trial, inputs.backbone, text)
    for tower in (inputs.backbone, text):
        monkeypatch.setattr(tower, "trunk", lambda *_: pytest.fail("a trunk ran"))
    said = predict(model, inputs.samples(load_facts(trial), "validation", torch.device("cpu")))
    tokens = torch.stack([text.transform(inputs.texts.texts.texts[i]) for i in inputs.texts.texts.of_class])
    monkeypatch.undo()
    with torch.no_grad():
        classes = F.normalize(model.text_encoder(text.trunk(tokens, text.n_blocks - 1)), dim=-1)  # type: ignore[operator]
    assert np.abs(said.classes - classes.numpy()).max() < 1e-5
    moved = [name for name, p in model.named_parameters() if "lora_B" in name and p.abs().max() > 0]
    assert any(name.startswith("encoder.") for name in moved) and any(name.startswith("text_encoder.") for name in moved)


def test_towers_learn_as_a_whole_the_embeddings_of_words_too(make: Make) -> None:
    """From token ids, which bf16 would round."""
    quick = tuple(each for each in QUICK if not each.startswith("features.dtype"))
    config, trial = make("finetune", *WHOLE, "features.dtype=bf16", quick=quick)
    results = done(config, trial)
    inputs = load_inputs(config)
    text = inputs.text_tower
    assert 0 < results["ood"]["i2t_map"] <= 1 and text is not None and inputs.texts is not None
    model = load_model(config, trial, inputs.backbone, text)
    said = predict(model, inputs.samples(load_facts(trial), "validation", torch.device("cpu")))
    tokens = torch.stack([text.transform(inputs.texts.texts.texts[i]) for i in inputs.texts.texts.of_class])
    assert int(tokens.max()) > 256
    networks = [model.text_encoder, text.network().eval()]
    with torch.no_grad():
        tuned, released = (F.normalize(network(text.given(tokens)), dim=-1) for network in networks)  # type: ignore[operator]
    assert np.abs(said.classes - tuned.numpy()).max() < 1e-5 < (tuned - released).abs().max()
    before = dict(text.network().named_parameters())
    moved = [name for name, p in model.text_encoder.named_parameters() if not torch.equal(p, before[name])]
    assert any("token_embedding" in name for name in moved) and any("positional_embedding" in name for name in moved)


def test_released_towers_are_open_clips_own(make: Make, place: Path) -> None:
    config, trial = make("baseline")
    done(config, trial)
    inputs, towers = load_inputs(config), load_towers(config.backbone)
    model = load_model(config, trial, None)
    said = predict(model, inputs.samples(make_facts(inputs), "validation", torch.device("cpu")))
    assert inputs.texts is not None
    texts = torch.stack([towers.text.transform(inputs.texts.texts.texts[i]) for i in inputs.texts.texts.of_class])
    images = torch.stack([towers.image.transform(inputs.dataset.image(i)) for i in inputs.positions("validation")])
    with torch.inference_mode():
        for mine, own in ((said.classes, towers.text.embed(texts)), (said.mean, towers.image.embed(images))):
            assert np.abs(mine - F.normalize(own, dim=-1).numpy()).max() < 1e-5
    assert said.scale == pytest.approx(np.exp(towers.logit_scale), rel=1e-6)


class StopAfter(StopFlag):
    """Asked to stop once so many epochs have begun."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.left = epochs

    def asked(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("batches", ["shuffled", "classes", "neighbours, by: embedding", "balanced"])
def test_stopped_and_gone_on_it_ends_with_the_same_bits(batches: str, make: Make, tmp_path: Path) -> None:
    more = ("train.epochs=4", f"train.batches={{kind: {batches}}}", "texts.templates=['a photo of $SCI$','$COM$','$TAX$ $SEX$']")
    config, _ = make("projection", *more, "optim.lr=1e-2", "loss={kind: pair_bce, targets: hierarchical}")
    extract.ensure(config)
    whole, parts = TrialDir(tmp_path / "whole"), TrialDir(tmp_path / "parts")
    train.run(config, whole)
    with pytest.raises(Interrupted):
        train.run(config, parts, StopAfter(2))
    train.run(config, parts)
    assert whole.model.read_bytes() == parts.model.read_bytes()


@pytest.mark.parametrize("batches", ["shuffled", "classes", "views"])
def test_by_the_step_a_rate_is_set_at_even_steps_to_the_end_of_the_epoch(
    batches: str, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    at: list[float] = []
    monkeypatch.setattr(loop, "set_rates", lambda *about: at.append(about[2]) or set_rates(*about))
    per_step = ("train.epochs=2", "data.columns.view=view", f"train.batches={{kind: {batches}}}", "schedule.per=step")
    config, _ = make("projection", *per_step, "loss={kind: infonce, images: {weight: 0.5}}")
    extract.ensure(config)
    train.run(config, TrialDir(tmp_path))
    steps = np.array([x for x in at if 0 < x < 1 or 1 < x < 2] + [0.0, 1.0])
    assert len(steps) > 4 and sorted(steps) == pytest.approx(np.arange(len(steps)) * 2 / len(steps))


@pytest.mark.parametrize(
    ("batches", "size", "why"),
    [
        ("shuffled", 100000, r"and there are \d+ images to train on"),
        ("views", 70, r"and of no view .* are there more than \d+ images"),
        ("classes", 100, r"for 50 classes with 2 images of each .* and there are \d+ classes to train on"),
    ],
)
def test_batches_that_no_images_fill_are_refused_before_anything_is_queued(batches: str, size: int, why: str, make: Make) -> None:
    ways = ("data.columns.view=view", f"train.batches={{kind: {batches}}}", f"train.batch_size={size}")
    config, _ = make("projection", *ways, quick=QUICK[:-1])
    with pytest.raises(UserError, match=f"metadata.csv: train.batch_size is {size}, {why}"):
        preflight([config])


@pytest.mark.parametrize(
    ("batches", "size", "n", "refused"),
    [("shuffled", 3, 4, True), ("shuffled", 4, 4, False), ("classes", 5, 5, True), ("classes", 5, 4, False)],
)
def test_more_processes_than_a_batch_has_images_are_refused_before_anything_is_queued(
    batches: str, size: int, n: int, refused: bool, make: Make
) -> None:
    ways = (f"train.batches={{kind: {batches}}}", f"train.batch_size={size}", f"train.processes={n}")
    config, _ = make("projection", *ways, quick=QUICK[:-1])
    if not refused:
        preflight([config])
        return
    with pytest.raises(UserError, match=rf"train\.processes is {n}, and they share out batches of {n - 1} images"):
        preflight([config])


@pytest.mark.parametrize(
    ("loss", "reads"),
    [
        ("{kind: infonce, targets: hierarchical}", True),
        ("{kind: infonce, second: {kind: pair_bce, weight: 0.5, targets: hierarchical}}", True),
        ("{kind: infonce, targets: multipositive}", False),
    ],
)
def test_targets_by_ranks_are_refused_where_the_data_have_none(
    loss: str, reads: bool, make: Make, place: Path, tmp_path: Path
) -> None:
    table, more = pd.read_csv(place / "data" / "metadata.csv"), (f"loss={loss}", "train.epochs=1")
    table.drop(columns="family").rename(columns={"genus": "g"}).to_csv(place / "data" / "no_ranks.csv", index=False)
    config, _ = make("projection", *more, table="no_ranks.csv")
    if not reads:
        extract.ensure(config)
        train.run(config, TrialDir(tmp_path))
        return
    with pytest.raises(UserError, match=r"reads the ranks of classes, and no column .* \(data\.columns\.ranks"):
        preflight([config])
    preflight([make("projection", *more, "data.columns.ranks=[g]", table="no_ranks.csv")[0]])


@pytest.mark.parametrize(("lacking", "n"), [("apart", 2), ("graft", 0)])
def test_species_that_stand_nowhere_in_the_tree_are_told_apart_from_those_at_its_root(
    lacking: str, n: int, make: Make, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So the control shuffles those of the tree alone, and the deepest of these is what shares are of."""
    text, table = (place / "data" / "tree.nwk").read_text(), pd.read_csv(place / "data" / "metadata.csv")
    for i, name in enumerate(table["scientificName"].drop_duplicates()[:2]):
        text, n_there = re.subn("[_ ]".join(scientific_name(name).split()), f"Other_one{'s' * i}", text)
        assert n_there == 1
    (place / "data" / "fewer.nwk").write_text(text)
    tree = (f"data.tree={place / 'data' / 'fewer.nwk'}", f"data.not_in_tree={lacking}", "data.columns.ranks=[family,genus]")
    config, _ = make("projection", *tree)
    extract.ensure(config)
    inputs = load_inputs(config)
    facts = inputs.samples(make_facts(inputs), "train", CPU).texts.facts  # type: ignore[union-attr]
    assert facts.tree is not None and int(facts.tree.isnan().all(1).sum()) == n
    said = {"apart": "and like no other", "graft": "and grafted where their genus or the next rank is"}[lacking]
    assert re.search(rf"fewer\.nwk: 2 of \d+ classes \(.*\) are not in the tree, {said}\n", capsys.readouterr().out)
    assert int(facts.tree.diagonal().isnan().sum()) == n and torch.equal(facts.tree.isnan(), facts.tree.T.isnan())


@pytest.mark.parametrize("order", ["of the folders", "backwards", "drawn"])
def test_the_loss_on_validation_does_not_follow_the_order_of_rows(order: str, make: Make) -> None:
    config, _ = make("projection", "train.batch_size=7", quick=QUICK[:-1])
    extract.ensure(config)
    inputs = load_inputs(config)
    assert inputs.texts is not None
    facts, table = make_facts(inputs), inputs.dataset.table
    of = {"of the folders": table.sort_values("class"), "backwards": table[::-1], "drawn": table.sample(frac=1, random_state=1)}
    dataset = replace(inputs.dataset, table=of[order])
    other = replace(inputs, dataset=dataset, texts=replace(inputs.texts, dataset=dataset))
    model = make_model(config, facts, inputs.encoder_backbone, inputs.text_tower)
    found = []
    for each in (inputs, other):
        train_on, validation = (each.samples(facts, split, CPU) for split in ("train", "validation"))
        loss = config.loss.make(train_on.n_targets)
        loss.prepare(train_on.texts.facts, 7)
        assert len(validation) % 7 and len(validation) > 14, "several batches, and some images are left over"
        found.append(towers.Lesson(model, train_on, validation, config, loss).validate()[1])
    assert found[0] == pytest.approx(found[1], rel=1e-6)


CAPPED = "{kind: infonce, weight: 0.5, clamp_scale: true}"


@pytest.mark.parametrize(
    ("loss", "similarity", "scale"),
    [
        ("{kind: infonce}", "cosine", math.exp(6)),
        ("{kind: infonce, clamp_scale: true}", "cosine", 100.0),
        (
            "{kind: pair_bce, similarity: geodesic, second: {kind: infonce, weight: 0.5, clamp_scale: true}}",
            "geodesic",
            math.exp(6),
        ),
    ],
)
def test_probabilities_are_of_the_first_losss_similarity_and_of_its_capped_scale(
    loss: str, similarity: str, scale: float, make: Make
) -> None:
    config, _ = make("projection", f"loss={loss}")
    extract.ensure(config)
    inputs = load_inputs(config)
    facts = make_facts(inputs)
    model = make_model(config, facts, inputs.encoder_backbone, inputs.text_tower)
    assert isinstance(model, TwoTowers)
    model.logit_scale.data.fill_(6.0)
    said = predict(model, inputs.samples(facts, "validation", CPU))
    assert (said.similarity, said.scale) == (similarity, pytest.approx(scale))


@pytest.mark.parametrize(("batches", "more"), [("shuffled", 0), ("neighbours, by: tree", 0), ("neighbours, by: embedding", 2)])
def test_classes_are_embedded_when_an_epoch_begins_only_where_their_embeddings_are_asked_for(
    batches: str, more: int, make: Make, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Beside that, by each epoch's validation and at the end."""
    done_so: list[int] = []
    monkeypatch.setattr(towers, "embed_classes", lambda *about: done_so.append(1) or embed_classes(*about))
    tree = f"data.tree={place / 'data' / 'tree.nwk'}"
    config, _ = make("projection", "train.epochs=2", tree, f"train.batches={{kind: {batches}}}")
    extract.ensure(config)
    train.run(config, TrialDir(tmp_path))
    assert len(done_so) == 2 + 1 + more


@pytest.mark.parametrize(("method", "reads"), [("projection", 1), ("baseline", 0), ("lift", 0)])
def test_a_tree_is_read_once_and_only_where_pairs_are_compared(
    method: str, reads: int, make: Make, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(text_inputs, "read_tree", lambda path: read.append(path) or read_tree(path))
    config, trial = make(method, *METHODS[method], f"data.tree={place / 'data' / 'tree.nwk'}")
    extract.ensure(config)
    train.run(config, trial)
    assert len(read) == reads
    evaluate.run(config, trial)
    assert len(read) == reads


def test_a_template_is_part_of_the_texts_features_and_of_no_images(make: Make, place: Path) -> None:
    config, trial = make("baseline")
    done(config, trial)
    stores = {path.name for path in (place / "root" / "features").iterdir()}
    other, _ = make("baseline", "texts.evaluation=$COM$")
    extract.ensure(other)
    added = {path.name for path in (place / "root" / "features").iterdir()} - stores
    told = [json.loads((place / "root" / "features" / name / "manifest.json").read_text()) for name in added]
    assert [each["ingredients"]["tower"] for each in told] == ["text"]


def rescaled(folder: Path, scale: float) -> None:
    """The model in a folder, with another scale of its logits."""
    path = folder / "open_clip_model.safetensors"
    save_file(load_file(path) | {"logit_scale": torch.tensor(scale)}, path)


def test_models_that_differ_in_the_scale_of_logits_alone_share_texts_and_each_has_its_own_scale(make: Make, place: Path) -> None:
    shutil.copytree(place / "clip", other := place / "rescaled")
    rescaled(other, 1.25)
    found = {}
    for folder in (other, place / "clip"):
        config, trial = make("baseline", clip=folder.name)
        done(config, trial)
        texts = load_inputs(config).texts
        assert texts is not None
        found[folder] = texts.store.key, texts.facts.logit_scale
    assert found[other] == (found[place / "clip"][0], 1.25) and found[place / "clip"][1] != 1.25


def test_a_trial_is_of_the_scale_of_logits_that_its_weights_had(make: Make, place: Path) -> None:
    """One that was trained before this was told stays valid."""
    shutil.copytree(place / "clip", other := place / "scaled later")
    config, trial = make("baseline", clip=other.name)
    done(config, trial)
    record = read_trained(trial)
    assert changed(record, load_inputs(config)) == []
    rescaled(other, 0.5)
    assert changed(record, load_inputs(config)) == ["the scale or bias of the model's logits"]
    del record["logits"]
    assert changed(record, load_inputs(config)) == []


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ("$SCI$ " + " ".join(["beetle"] * 80), "tokens that the text tower reads, or longer"),
        ("$COM$", "classes share"),
        ("$SCI$", None),
    ],
)
def test_texts_longer_than_the_context_and_shared_ones_are_told_in_the_results(
    evaluation: str, words: str | None, make: Make, place: Path
) -> None:
    rows = pd.read_csv(place / "data" / "metadata.csv", dtype=str)
    rows.assign(vernacularName="a beetle").to_csv(place / "data" / "common.csv", index=False)
    config, trial = make("baseline", f"texts.evaluation={evaluation}", "texts.templates=[$SCI$]", table="common.csv")
    warnings = done(config, trial)["summary"]["warnings"]
    told = [each for each in warnings if "tokens that" in each or "classes share" in each]
    assert told == [each for each in told if words and words in each] and bool(told) == bool(words)


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flipped, lambda path: path.write_bytes(path.read_bytes()[:-1]), Path.unlink])
def test_damaged_shards_of_texts_are_made_again(damage: Callable[[Path], object], make: Make) -> None:
    """By what the error says to run."""
    config, _ = make("projection", "texts.evaluation=the $SCI$", "features.shard_size=7")
    extract.run(config)
    texts = load_inputs(config).texts
    assert texts is not None and texts.store.n_shards > 1
    before = {file.name: file.read_bytes() for file in texts.store.dir.path.glob("*.safetensors")}
    damage(texts.store.path(1))
    with pytest.raises(MissingFeatures, match="run `carabid extract`"):
        load_inputs(config).verify()
    extract.run(config)
    load_inputs(config).verify()
    assert before == {file.name: file.read_bytes() for file in texts.store.dir.path.glob("*.safetensors")}


def test_predict_names_species_and_a_tree_shapes_a_loss(make: Make, place: Path) -> None:
    tree = f"data.tree={place / 'data' / 'tree.nwk'}"
    config, trial = make("projection", "train.epochs=2", tree, "loss={kind: infonce, targets: phylogenetic}")
    done(config, trial)
    photo = next((place / "data" / "images").iterdir())
    (said,) = predict_files(trial.path, [photo], Origin(), "cpu")
    assert len(said) == len(load_facts(trial).targets) and all(-1.0001 <= value <= 1.0001 for value in said.values())


def test_a_batch_that_no_images_fill_is_refused(make: Make) -> None:
    config, trial = make("projection", "train.batch_size=100000", quick=QUICK[:-1])
    extract.ensure(config)
    with pytest.raises(UserError, match=r"train\.batch_size is 100000, and there are \d+ images"):
        train.run(config, trial)


@pytest.mark.parametrize("method", ["projection", "lora", "lift"])
def test_between_released_and_tuned_the_ends_are_these_to_the_bit(method: str, make: Make) -> None:
    config, trial = make(method, *METHODS[method])
    results = done(config, trial)
    released = done(*make("baseline"))
    inputs = load_inputs(config)
    base = plain(make_model(config, load_facts(trial), inputs.encoder_backbone, inputs.text_tower)).state_dict()
    tuned = plain(load_model(config, trial, inputs.encoder_backbone, inputs.text_tower)).state_dict()
    for alpha, end in ((0.0, base), (1.0, tuned)):
        assert all(torch.equal(tensor, end[name]) for name, tensor in between(base, tuned, alpha).items())
    assert not torch.equal(base["logit_scale"], tuned["logit_scale"])
    assert float(base["logit_scale"]) == pytest.approx(load_towers(config.backbone).logit_scale)
    found = interpolate.run([trial.path], [0.0, 0.5, 1.0], "cpu")
    ends = [found.rows[0]["id.i2t_map"], found.rows[-1]["id.i2t_map"]]
    assert ends[0] == pytest.approx(released["id"]["i2t_map"], abs=1e-6)
    trained = {name: value for name, value in results["figures"].items() if name != "selection"}
    assert {name: found.rows[-1][name] for name in trained} == trained, "not merged: to the bit"
    assert all(path.exists() for path in found.files) and all(f"α {a}" in found.files[1].read_text() for a in (0, 1))
    trial.model.write_bytes(trial.model.read_bytes()[:-1])
    train.run(config, trial)
    assert not any(path.exists() for path in found.files), "they are of another model"


def test_a_released_model_is_bare_of_adapters_that_learnt_nothing(make: Make) -> None:
    """Merged, those of DoRA would round every weight that they stand beside."""
    dora = "{kind: lora, dora: true, blocks: 1, r: 2}"
    (with_dora, _), (without, _) = (
        make("lora", f"model.encoder={kind}", f"model.text={kind}") for kind in (dora, "{kind: finetuned, blocks: 1}")
    )
    extract.ensure(with_dora)
    states = []
    for config in (with_dora, without):
        inputs = load_inputs(config)
        model = make_model(config, make_facts(inputs), inputs.encoder_backbone, inputs.text_tower)
        states.append(bare(model).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_buckets_part_where_the_configuration_says_and_make_no_other_model(make: Make) -> None:
    config, trial = make("baseline")
    done(config, trial)
    other = make("baseline", "evaluate.buckets=[2,4]")
    assert other[1].path == trial.path
    results = evaluate.run(other[0], trial)
    counts = pd.read_parquet(trial.groups).query("n > 0 and n_train > 0")["n_train"]
    assert results["buckets"]["few"]["n_classes"] == int((counts <= 2).sum()) != int((counts <= 20).sum())
    batches = [make("projection", f"train.batches={{kind: buckets, cuts: [{cuts}]}}")[1].path for cuts in ("2,4", "2,5")]
    assert batches[0] != batches[1], "what a model learns from is part of what it is"


def test_a_soup_is_the_mean_of_its_trials_and_not_of_unlike_ones(make: Make) -> None:
    (one, first), (two, second) = (make("projection", *METHODS["projection"], "model.head.lr_scale=" + s) for s in ("1", "2"))
    for config, trial in ((one, first), (two, second)):
        done(config, trial)
    inputs = load_inputs(one)
    states = [load_model(one, trial, inputs.encoder_backbone, inputs.text_tower).state_dict() for trial in (first, second)]
    mean = soup(states)
    assert all(torch.allclose(mean[name], (states[0][name] + states[1][name]) / 2, atol=1e-7) for name in mean)
    assert len(interpolate.run([first.path, second.path], [1.0], "cpu").rows) == 1
    with pytest.raises(UserError, match="not the same encoders"):
        soup([states[0], {"encoder.weight": torch.zeros(1)}])
    config, released = make("baseline")
    done(config, released)
    with pytest.raises(UserError, match="tunes no towers"):
        interpolate.run([released.path], [0.0], "cpu")


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ("data.split={kind: species, name: D10-3}", "targets, groups or splits"),
        ("texts.templates=[$COM$]", "the texts' features"),
        ("data.tree=tree.nwk", "the tree"),
    ],
)
def test_a_soup_is_of_trials_that_learnt_from_the_same(other: str, what: str, make: Make, place: Path) -> None:
    """Else species that one holds out were trained on by the other, and pass for new."""
    trials = [
        make("projection", "train.epochs=1", *more) for more in ((), (other.replace("tree.nwk", str(place / "data/tree.nwk")),))
    ]
    for config, trial in trials:
        extract.ensure(config)
        train.run(config, trial)
    with pytest.raises(UserError, match=f"not of the first trial are {what}"):
        interpolate.run([trial.path for _, trial in trials], [1.0], "cpu")


def test_a_trial_whose_table_has_changed_is_not_interpolated(make: Make, place: Path) -> None:
    table = place / "data" / "regrouped.csv"
    table.write_text((place / "data" / "metadata.csv").read_text())
    config, trial = make("projection", "train.epochs=1", table=table.name)
    extract.ensure(config)
    train.run(config, trial)
    rows = pd.read_csv(table, dtype=str)
    rows.assign(specimenID=rows["specimenID"] + "x").to_csv(table, index=False)
    with pytest.raises(WorkError, match="targets, groups or splits changed since it was trained"):
        interpolate.run([trial.path], [1.0], "cpu")


def test_trials_are_compared_by_the_figures_of_their_report_and_told_where_their_weights_came_from(
    make: Make, place: Path
) -> None:
    more = ("experiment=compared",)
    trials = [make("baseline", *more), make("projection", *METHODS["projection"], *more)]
    results = [done(*each) for each in trials]
    found = candidates([experiment_dir(trials[0][0])])
    for name in (None, "ood.i2i_map", "composite"):
        lines = compare(found, name).lines
        said = sorted(each["figures"][name or "id.i2t_map"] for each in results)
        assert sorted(line.test or 0 for line in lines) == pytest.approx(said)
    origin = json.loads(trials[1][1].provenance.read_text())["train"]["weights"]
    assert origin == [{"path": str(place / "clip")}]


SMALL = ("backbone.pretrained=null", "optim.lr=1e-3", "model.encoder.lr_scale=0.1", "model.text.lr_scale=0.1")


@pytest.mark.parametrize(
    ("preset", "lengths"),
    [("readme_2025", ("train.epochs=2",)), ("head_2026", ("train.samples=200", "schedule.warmup_samples=40"))],
)
def test_a_preset_trains_both_towers_to_results(preset: str, lengths: tuple[str, ...], make: Make, place: Path) -> None:
    config, trial = make(preset, *SMALL, *lengths, f"data.tree={place / 'data' / 'tree.nwk'}")
    results = done(config, trial)
    assert results["summary"]["selection"]["metric"] == "composite" and results["id"]["i2t_map"] > 0
    n, record = len(load_inputs(config).positions("train")), json.loads(trial.trained.read_text())
    assert record["epochs"] == (2 if preset == "readme_2025" else math.ceil(200 / (n - n % 16)))
    names = {name.partition(".")[0] for name in load_file(trial.model)}
    assert names == {"encoder", "text_encoder", "logit_scale", "logit_bias", "classes"}


# ---------------------------------------------------------------- light tuning
def test_a_classifier_starts_at_the_texts_and_moves_those_of_species_that_are_trained_on(make: Make) -> None:
    config, trial = make("lift", *METHODS["lift"])
    results, released = done(config, trial), done(*make("baseline"))
    inputs = load_inputs(config)
    assert inputs.texts is not None
    model = load_model(config, trial, inputs.backbone, None)
    texts = inputs.texts.samples(np.arange(1), tuple(inputs.dataset.truth.counts(inputs.table("train")).values()), CPU)
    before = F.normalize(texts.bank.gather(texts.of_class).float(), dim=-1)
    same = (model.classes == before).all(dim=1)  # type: ignore[operator]
    assert torch.equal(same, texts.facts.counts == 0) and 0 < int(same.sum()) < len(same)
    assert float(model.logit_scale.exp()) == pytest.approx(25)  # type: ignore[operator]
    assert results["id"]["i2t_map"] > released["id"]["i2t_map"]


def test_a_classifier_on_a_frozen_tower_reads_pooled_embeddings_and_no_text_tower(make: Make) -> None:
    config, trial = make("lift", "model.encoder={kind: frozen}", "train.epochs=2", "model.head.scale=null", "optim.lr=1e-2")
    done(config, trial)
    assert load_inputs(config).store.shape == (32,)
    with safe_open(trial.model, "pt") as file:
        assert set(file.keys()) == {"classes", "logit_scale", "logit_bias"}
        assert file.get_tensor("logit_scale").item() == pytest.approx(load_facts(trial).text.logit_scale)  # type: ignore[union-attr]


def test_a_classifier_that_was_stopped_ends_with_the_same_bits(make: Make, tmp_path: Path) -> None:
    config, _ = make("lift", *METHODS["lift"], "augment={mixup_alpha: 0.2, noise: 0.1, image_dropout: 0.1}")
    extract.ensure(config)
    whole, parts = TrialDir(tmp_path / "whole"), TrialDir(tmp_path / "parts")
    train.run(config, whole)
    with pytest.raises(Interrupted):
        train.run(config, parts, StopAfter(1))
    train.run(config, parts)
    assert whole.model.read_bytes() == parts.model.read_bytes()


# ---------------------------------------------------------------- which tower learns, and how
@pytest.mark.parametrize("frozen", ["encoder", "text"])
def test_a_frozen_tower_does_not_move_and_the_other_does(frozen: str, make: Make) -> None:
    """Either may be frozen: its parameters are in no file of the trial, and it says what the released one says."""
    learns = {"encoder": "text", "text": "encoder"}[frozen]
    config, trial = make(
        "finetune", "train.epochs=2", "optim.lr=1e-3", f"model.{learns}.blocks=1", f"model.{frozen}={{kind: frozen}}"
    )
    done(config, trial)
    with safe_open(trial.model, "pt") as file:
        parts = {name.partition(".")[0] for name in file.keys()} - {"classes", "logit_scale", "logit_bias"}  # noqa: SIM118
    assert parts == {{"encoder": "encoder", "text": "text_encoder"}[learns]}
    inputs, (other, base) = load_inputs(config), make("baseline")
    done(other, base)
    mine = predict(load_model(config, trial, inputs.encoder_backbone, inputs.text_tower), _samples(config, trial))
    released = predict(load_model(other, base, None), _samples(other, base))
    same = (np.array_equal(mine.mean, released.mean), np.array_equal(mine.classes, released.classes))
    assert same == (frozen == "encoder", frozen == "text")


def _samples(config: Config, trial: TrialDir) -> Any:
    return load_inputs(config).samples(load_facts(trial), "validation", CPU)


@pytest.mark.parametrize("method", ["finetune", "lora", "lift"])
def test_gradient_checkpointing_is_no_other_trial_and_learns_the_same(method: str, make: Make, tmp_path: Path) -> None:
    plainly, again = (make(method, *METHODS[method], f"resources.gradient_checkpointing={on}") for on in ("false", "true"))
    assert plainly[1].path == again[1].path
    extract.ensure(plainly[0])
    tensors = []
    for name, config in (("plainly", plainly[0]), ("again", again[0])):
        trial = TrialDir(tmp_path / name)
        train.run(config, trial)
        files = {file.relative_to(trial.path): load_file(file) for file in trial.path.rglob("*.safetensors")}
        tensors.append({f"{file} {key}": value for file, found in files.items() for key, value in found.items()})
    assert tensors[0].keys() == tensors[1].keys() and len(tensors[0]) > 5
    assert all(torch.allclose(tensors[0][name], tensors[1][name], atol=1e-6) for name in tensors[0])


def test_gradient_checkpointing_reaches_adapters_and_gives_the_same_gradients(make: Make) -> None:
    config, _ = make("lora", *METHODS["lora"])
    extract.ensure(config)
    inputs = load_inputs(config)
    model = make_model(config, make_facts(inputs), inputs.encoder_backbone, inputs.text_tower)
    features = inputs.samples(make_facts(inputs), "train", CPU).select(torch.arange(8))[0]
    gradients = []
    for again in (False, True):
        if again:
            recompute(model)
        model.zero_grad()
        model.embed(features)[:, 0].sum().backward()  # type: ignore[operator]
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert [module.recomputes for module in model.modules() if isinstance(module, Tail)] == [True, True]
    assert gradients[0] and all(torch.allclose(*pair, atol=1e-6) for pair in zip(*gradients, strict=True))


def test_tails_of_both_towers_compute_in_bf16_and_their_weights_stay_in_fp32(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tuple(each for each in QUICK if not each.startswith("train.precision"))
    config, trial = make("finetune", *METHODS["finetune"], "train.precision=bf16", quick=quick)
    seen: set[tuple[str, torch.dtype]] = set()
    embed = {"image": TwoTowers.embed, "text": TwoTowers.embed_texts}

    def watched(tower: str) -> Any:
        def call(model: TwoTowers, features: torch.Tensor) -> torch.Tensor:
            part = model.encoder if tower == "image" else model.text_encoder
            if model.training:
                seen.add((tower, part(features).dtype))
            return embed[tower](model, features)

        return call

    monkeypatch.setattr(TwoTowers, "embed", watched("image"))
    monkeypatch.setattr(TwoTowers, "embed_texts", watched("text"))
    extract.ensure(config)
    train.run(config, trial)
    assert seen == {("image", torch.bfloat16), ("text", torch.bfloat16)}
    assert {tensor.dtype for tensor in load_file(trial.model).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (("backbone={kind: pixels}",), "has no text tower"),
        (("model.head={kind: logistic}", "model.text={kind: projection}"), "reads no texts"),
        (
            ("model.text={kind: patch_convs}", "model.head={kind: contrastive}", "loss={kind: infonce}"),
            "texts, which have no patches",
        ),
        (("model.head={kind: contrastive}",), "embeds images and texts"),
        (("loss={kind: pair_bce}",), "compares images with texts"),
        (("model.encoder={kind: projection}",), "tunes nothing"),
        (
            ("model.head={kind: contrastive}", "loss={kind: infonce}"),
            r"model\.head\.kind contrastive tunes towers, and both are frozen: set model\.encoder\.kind or model\.text\.kind",
        ),
        (("model.head={kind: lift}", "model.text={kind: projection}"), "starts from the texts as they are"),
        (("train.batches={kind: classes}",), "does not compare the images of a batch"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_read(overrides: tuple[str, ...], why: str) -> None:
    with pytest.raises(UserError, match=why):
        load_experiment(PROJECT / "configs/species/baseline.yaml", overrides)


def test_both_towers_count_in_what_a_trial_is_estimated_to_need(make: Make, place: Path) -> None:
    config, trial = make("finetune", *METHODS["finetune"])
    done(config, trial)
    inputs, known = load_inputs(config), capacity._known(config)
    assert known is not None and known[2] is not None and inputs.texts is not None
    weights, n, texts = known
    sizes = {len(inputs.store.images()): inputs.store.shape, len(inputs.texts.texts.texts): inputs.texts.store.shape}
    written = sum(4 * rows * math.prod(shape) for rows, shape in sizes.items())
    assert estimates.features_bytes(config, weights, n, texts) == written
    trained = sum(tensor.numel() for name, tensor in load_file(trial.model).items() if "encoder." in name)
    assert estimates.trained_parameters(config, weights, texts) == pytest.approx(trained, rel=0.1)
    alone = estimates.training_bytes(config, weights, n)
    assert estimates.training_bytes(config, weights, n, None, texts) == alone + 16 * config.model.text.n_trained(texts.tower)
    small = replace(weights, n_parameters=1, n_blocks=0, n_inputs=1)
    assert estimates.extraction_bytes(config, small, texts) > estimates.extraction_bytes(config, small)


def test_what_the_texts_need_is_known_once_they_are_fetched_and_not_before(make: Make, tmp_path: Path) -> None:
    config, _ = make("projection", f"paths.features={tmp_path}")
    assert capacity._known(config) is None
    fetch.run([config])
    known = capacity._known(config)
    assert known is not None and known[2] is not None and known[2].n > 10


def test_fetch_loads_the_text_tower_and_its_tokenizer_too(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config, _ = make("baseline")
    fetch.run([config])
    said = capsys.readouterr().out
    assert "texts: local-dir:" in said and "the tower and its tokenizer load" in said
