"""The configuration: the defaults of every method, what it refuses, and what a trial's identity depends on."""

from __future__ import annotations

import contextlib
import copy
import pkgutil
import re
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.config.backbone import OpenClip
from pipeline.config.batches import Batches
from pipeline.config.encoder import EndToEnd, FineTuned, Frozen, Lora, PatchConvs
from pipeline.config.fuse import Fuse
from pipeline.config.head import Head
from pipeline.config.identity import NOT_SCIENCE, config_hash, digest, flatten, science, token_kind
from pipeline.config.loss import Loss
from pipeline.config.resources import Job
from pipeline.config.schedule import Schedule
from pipeline.config.split import FoldSplit
from pipeline.config.trial import STOCK, TASKS, Config
from pipeline.disk.layout import PROJECT
from pipeline.experiments.reading import load_experiment
from tests.small import named

Tree = dict[str, Any]
CLASSIFIER_KINDS = [kind for kind, head in Head.kinds.items() if head.of == "classes" and not head.reads_texts]
CONFIGS = PROJECT / "configs" / "beetles"

# Everything that the result of the plainest method depends on.
FROZEN: Tree = {
    "task": "beetles",
    "seed": 0,
    "data.source": "imageomics/sentinel-beetles",
    "data.revision": None,
    "data.images": None,
    "data.columns.image": "file_path",
    "data.columns.id": "public_id",
    "data.columns.group": "eventID",
    "data.columns.domain": "domainID",
    "data.columns.species": "scientificName",
    "calibrate.kind": "scale",
    "loss.kind": "mse",
    "risk.kind": "mean",
    "model.pool": "mean",
    "data.columns.site": "siteID",
    "data.columns.date": "collectDate",
    "data.columns.colour_card": "colorpicker_full_path",
    "data.columns.scale_bar": "scalebar_full_path",
    "data.columns.auxiliary": [],
    "data.label": None,
    "data.positive": None,
    "data.targets": ["SPEI_30d", "SPEI_1y", "SPEI_2y"],
    "data.split.kind": "source",
    "data.split.train": "train",
    "data.split.validation": "validation",
    "data.split.test": "test",
    "data.on_bad_image": "error",
    "data.colour_card": False,
    "data.scale_bar": False,
    "data.canvas": 5.0,
    "data.permute_targets": False,
    "backbone.kind": "open_clip",
    "backbone.name": "hf-hub:imageomics/bioclip-2",
    "backbone.pretrained": None,
    "backbone.seed": 0,
    "features.dtype": "bf16",
    "features.shard_size": 1024,
    "model.encoder.kind": "frozen",
    "model.normalize": True,
    "model.domain_embedding": False,
    "model.species_embedding": False,
    "model.head.kind": "mlp",
    "model.head.hidden": [512, 128, 32],
    "model.head.lr_scale": 1.0,
    "model.standardize_features": False,
    "model.standardize_targets": False,
    "augment.image_dropout": 0.0,
    "augment.images.flip": False,
    "augment.images.rotation": 0.0,
    "augment.images.scale": 0.0,
    "augment.images.shift": 0.0,
    "augment.images.brightness": 0.0,
    "augment.images.contrast": 0.0,
    "augment.images.erase": 0.0,
    "augment.mixup_alpha": 0.0,
    "augment.domain_dropout": 0.0,
    "augment.species_dropout": 0.0,
    "augment.noise": 0.0,
    "augment.warmup": 0.0,
    "optim.kind": "adam",
    "optim.lr": 1e-4,
    "optim.weight_decay": 0.0,
    "optim.betas": [0.9, 0.999],
    "optim.clip": None,
    "schedule.kind": "constant",
    "schedule.warmup": 0,
    "schedule.hold": 0,
    "schedule.floor": 0.01,
    "train.epochs": 500,
    "train.batch_size": 64,
    "train.sample": "images",
    "train.max_images": 16,
    "train.precision": "bf16",
    "train.patience": None,
    "select.epoch": "best",
    "select.metric": None,
    "select.folds": None,
}
FINETUNE = FROZEN | {"model.encoder.kind": "finetuned", "model.encoder.blocks": 2, "model.encoder.lr_scale": 0.01}
BASELINE = FINETUNE | {"model.domain_embedding": True, "augment.domain_dropout": 0.2}
AUGMENTATIONS = {
    "augment.image_dropout": 0.25,
    "augment.mixup_alpha": 0.2,
    "augment.domain_dropout": 0.35,
    "augment.noise": 0.02,
    "augment.warmup": 0.25,
}
LORA = {key: value for key, value in BASELINE.items() if not key.startswith("model.encoder.")} | {
    "model.encoder.kind": "lora",
    "model.encoder.blocks": 6,
    "model.encoder.r": 256,
    "model.encoder.alpha": 256.0,
    "model.encoder.dropout": 0.0,
    "model.encoder.rslora": True,
    "model.encoder.dora": True,
    "model.encoder.targets": ["q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"],
    "model.encoder.depth_gain": 0.5,
    "model.encoder.ln_scale": 0.5,
    "model.head.lr_scale": 1.5,
    "optim.kind": "adamw",
    "optim.weight_decay": 0.01,
    "schedule.kind": "cosine",
    "schedule.hold": "auto",
}
DINOV2 = {key: value for key, value in FROZEN.items() if not key.startswith("backbone.")} | {
    "backbone.kind": "dinov2",
    "backbone.name": "facebook/dinov2-base",
    "backbone.revision": None,
    "backbone.pooling": "cls",
    "model.encoder.kind": "patch_convs",
    "model.encoder.kernel": 5,
    "model.encoder.channels": 1024,
    "model.normalize": False,
}
PIXELS = {key: value for key, value in FROZEN.items() if not key.startswith(("backbone.", "model.head.", "model.normalize"))} | {
    "backbone.kind": "pixels",
    "backbone.size": 8,
    "model.normalize": False,
    "model.head.kind": "ridge",
    "model.head.alphas": [0.01, 0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0],
}
MEAN_RGB = PIXELS | {"backbone.size": 1}
NO_IMAGE = {key: value for key, value in MEAN_RGB.items() if not key.startswith("model.head.")}
METHODS = {
    "frozen": FROZEN,
    "finetune": FINETUNE,
    "baseline": BASELINE,
    "dinov2": DINOV2,
    "augmentation": BASELINE | AUGMENTATIONS,
    "lora": LORA,
    "combined": LORA | AUGMENTATIONS | {"optim.lr": 3e-3, "train.batch_size": 256},
    "mean_rgb": MEAN_RGB,
    "pixels": PIXELS,
    "forecast": FROZEN
    | {
        "data.colour_card": True,
        "model.standardize_features": True,
        "model.standardize_targets": True,
        "model.head.hidden": [],
        "loss.kind": "crps",
        "optim.kind": "adamw",
        "optim.lr": 1e-3,
        "optim.weight_decay": 0.1,
        "train.epochs": 30,
        "select.epoch": "last",
    },
    "climatology": NO_IMAGE | {"model.head.kind": "climatology", "model.head.window": 30, "model.head.min_groups": 5},
    "metadata": NO_IMAGE
    | {
        "model.head.kind": "boosting",
        "model.head.rounds": 500,
        "model.head.patience": 30,
        "model.head.lr": 0.05,
        "model.head.leaves": 15,
        "model.head.min_leaf": 20,
    },
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of this machine may look like a data set's or a trial's name."""
    monkeypatch.setenv("CARABID_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------- the methods
@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_exactly_the_defaults_that_were_published(method: str) -> None:
    (trial,) = load_experiment(CONFIGS / f"{method}.yaml").trials
    assert flatten(science(trial.config)) == METHODS[method]


def test_every_config_file_is_a_method_whose_defaults_are_tested() -> None:
    other_data = {"silhouettes"}  # an example of data that are not the challenge's
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(METHODS) | other_data


@pytest.mark.parametrize(
    ("config", "n_trials", "methods"),
    [
        ("butterflies/logistic", 1, {"open_clip frozen logistic"}),
        ("butterflies/lora", 1, {"open_clip lora mlp"}),
        ("butterflies/features", 180, {f"{b} frozen {h}" for b in ("open_clip", "dinov2", "concat") for h in CLASSIFIER_KINDS}),
        (
            "butterflies/classifiers",
            60,
            {f"pixels frozen {head}" for head in ("logistic", "svc", "knn", "lda", "hist_gradient_boosting")}
            | {"timm end_to_end mlp"},
        ),
        ("generic/classify", 1, {"open_clip frozen logistic"}),
        ("generic/regress", 1, {"open_clip frozen ridge"}),
    ],
)
def test_the_other_tasks_configs_are_the_methods_that_they_name(config: str, n_trials: int, methods: set[str]) -> None:
    configs = [trial.config for trial in load_experiment(PROJECT / "configs" / f"{config}.yaml").trials]
    assert len(configs) == n_trials
    assert {f"{c.backbone.kind} {c.model.encoder.kind} {c.model.head.kind}" for c in configs} == methods


def test_a_long_name_keeps_what_tells_the_trials_of_a_variant_apart() -> None:
    names = [trial.name for trial in load_experiment(PROJECT / "configs" / "butterflies" / "classifiers.yaml").trials]
    network = "backbone=timm,name=test_resnet,encoder=end_to_end,head=mlp"
    assert f"fold=4,{network},lr=5e-4,schedule=cosine,seed=0" in {name.rpartition("-")[0] for name in names}


def test_every_config_of_another_task_is_tested_here() -> None:
    folders = (PROJECT / "configs" / name for name in ("butterflies", "generic"))
    assert sum(len(list(folder.glob("*.yaml"))) for folder in folders) == 6


def test_an_experiment_is_named_after_its_task_and_file() -> None:
    assert load_experiment(CONFIGS / "lora.yaml").config.experiment == "beetles-lora"


def test_the_second_convolution_spans_what_the_first_leaves_of_dinov2s_grid() -> None:
    """768→768 with kernel 5, then 768→1024 with kernel 12, on 16×16 patches."""
    from pipeline.models.encoders import PatchConvs as Module

    encoder = load_experiment(CONFIGS / "dinov2.yaml").config.model.encoder
    assert isinstance(encoder, PatchConvs)
    first, _, second, _ = Module(8, (16, 16), encoder.kernel, encoder.channels).convs
    assert (first.kernel_size, second.kernel_size, second.out_channels) == ((5, 5), (12, 12), 1024)


def test_early_stopping_and_clipping_are_off_unless_asked_for() -> None:
    for method in METHODS:
        config = load_experiment(CONFIGS / f"{method}.yaml").config
        assert config.train.patience is None and config.optim.clip is None


# ---------------------------------------------------------------- science and resources
# Between them these name every key of every kind.
PLACES: Tree = {"domain": "domainID", "site": "siteID", "date": "collectDate"}
BESIDE: Tree = {"columns": {"colour_card": "card", "scale_bar": "bar"}}
LABELLED: Tree = {"experiment": "x", "data": {"label": "hybrid_stat"}, "loss": {"kind": "cross_entropy"}}
CLASSIFIERS: list[Tree] = [
    {**LABELLED, "backbone": {"kind": "pixels"}, "model": {"head": {"kind": kind}}} for kind in CLASSIFIER_KINDS
]
OF_TEXTS: Tree = {"task": "species", "data": {**LABELLED["data"], "tree": "tree.nwk", "columns": {"view": "view"}}}
CLASSES, PAIRS = {"kind": "cross_entropy"}, {"kind": "infonce"}
FROZEN_TOWERS = [kind for kind, head in Head.kinds.items() if head.reads_texts and not head.embeds_pairs]
PAIR_KINDS = [kind for kind, loss in Loss.kinds.items() if loss.of == "pairs"]
TUNED: Tree = {"encoder": {"kind": "projection"}, "text": {"kind": "projection"}, "head": {"kind": "contrastive"}}
EVERY = {"targets": "phylogenetic", "shuffle": 1, "weights": {"classes": "class_balanced", "focal": 2, "balance": True}}
EVERY_ROW = {"weights": {"classes": "inverse_frequency", "focal": 2}}
SECOND = {"kind": "pair_bce", "weight": 0.3, **EVERY}
DECAYING = [kind for kind in Schedule.kinds if kind not in ("constant", "cosine")]
VIEWS: Tree = {
    "crops": ["left", "right"],
    "tiles": [2, 3],
    "sizes": [64, 128],
    "poses": ["hflip", "vflip"],
    "masks": [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1, 1]],
}
DRAWN: Tree = {"draws": 2, "augment": {"flip": True, "rotation": 5}}
LONG: Tree = {
    "targets": ["green", "dead", "all"],
    "sums": {"all": ["green", "dead"]},
    "long": {},
    "split": {"kind": "folds", "by": ["State", "Sampling_Date"], "stratify": "green", "tests": False},
}
BESIDE_NUMBERS: Tree = {
    "targets": ["green", "dead"],
    "auxiliary": [
        {"kind": "number", "column": "height"},
        {"kind": "name", "column": "state"},
        {"kind": "bins", "target": "green"},
    ],
}
BASES: list[Tree] = [
    {
        "experiment": "x",
        "data": {"split": {"kind": "folds", "n": 7, "fold": 2}, **BESIDE},
        "backbone": {"kind": "open_clip"},
        "model": {"encoder": {"kind": "lora"}, "domain_embedding": True, "head": {"kind": "mlp"}},
        "texts": {"templates": ["$TAX$", "$SCI$"]},
        "extract": {"decode": "fast"},
    },
    {"experiment": "x", "backbone": {"kind": "dinov2"}, "model": {"encoder": {"kind": "finetuned"}}},
    {"experiment": "x", "backbone": {"kind": "dinov2"}, "model": {"encoder": {"kind": "patch_convs"}}},
    {"experiment": "x", "backbone": {"kind": "timm"}, "model": {"encoder": {"kind": "end_to_end"}}},
    {"experiment": "x", "backbone": {"kind": "dinov2"}, "model": {"encoder": {"kind": "token_pooling"}}, "data": BESIDE_NUMBERS},
    {"experiment": "x", "backbone": {"kind": "timm"}, "model": {"encoder": {"kind": "frozen"}}},
    {"experiment": "x", "backbone": {"kind": "concat"}, "model": {"encoder": {"kind": "frozen"}}},
    {"experiment": "x", "backbone": {"kind": "pixels"}, "model": {"head": {"kind": "ridge"}}},
    {"experiment": "x", "backbone": {"kind": "pixels"}, "model": {"head": {"kind": "climatology"}}},
    {"experiment": "x", "backbone": {"kind": "pixels"}, "model": {"head": {"kind": "boosting"}}},
    {
        "experiment": "x",
        "data": {"columns": {"domain": "domainID", "species": "scientificName"}},
        "model": {"species_embedding": True, "pool": "attention"},
        "loss": {"kind": "student_t"},
        "risk": {"kind": "coral"},
        "train": {"sample": "groups"},
        "augment": {"species_dropout": 0.1},
    },
    {
        "experiment": "x",
        "data": {"columns": {"domain": "domainID"}},
        "loss": {"kind": "quantiles"},
        "risk": {"kind": "group_dro"},
    },
    {"experiment": "x", "data": {"split": {"kind": "domains"}, "columns": PLACES}, "calibrate": {"kind": "emos"}},
    {"experiment": "x", "data": {"split": {"kind": "sites"}, "columns": PLACES, "download": {}}},
    {
        "experiment": "x",
        "data": {"label": "hybrid_stat", "positive": "hybrid", "columns": {"auxiliary": ["subspecies", "parent"]}},
        "loss": {"kind": "cross_entropy", "auxiliary": 0.5},
    },
    {
        "experiment": "x",
        "data": {"label": "species", "split": {"kind": "species", "name": "D10"}},
        "loss": {"kind": "cross_entropy"},
        "select": {"epoch": "last"},
        "evaluate": {"split": "test"},
    },
    {"experiment": "x", "data": BESIDE, "backbone": {"kind": "dinov2"}, "model": {"encoder": {"kind": "finetuned"}}},
    {"experiment": "x", "data": BESIDE, "backbone": {"kind": "dinov2"}, "model": {"encoder": {"kind": "patch_convs"}}},
    {"experiment": "x", "data": BESIDE, "backbone": {"kind": "pixels"}, "model": {"head": {"kind": "ridge"}}},
    *CLASSIFIERS,
    *({"experiment": "x", **OF_TEXTS, "model": {"head": {"kind": kind}}, "loss": CLASSES} for kind in FROZEN_TOWERS),
    *({"experiment": "x", **OF_TEXTS, "model": TUNED, "loss": {"kind": kind}} for kind in PAIR_KINDS),
    *(
        {"experiment": "x", **OF_TEXTS, "model": TUNED, "loss": {"kind": "infonce", "second": {"kind": kind, "weight": 0.3}}}
        for kind in PAIR_KINDS
    ),
    *(
        {"experiment": "x", **OF_TEXTS, "model": TUNED, "loss": PAIRS, "train": {"batches": {"kind": kind}}}
        for kind in Batches.kinds
    ),
    {
        "experiment": "x",
        **OF_TEXTS,
        "model": TUNED,
        "loss": {"kind": "pair_bce", **EVERY, "second": SECOND, "images": {"weight": 0.1}},
    },
    {
        "experiment": "x",
        **OF_TEXTS,
        "model": TUNED,
        "loss": {"kind": "infonce", **EVERY_ROW, "second": {"kind": "infonce", "weight": 0.3, **EVERY_ROW}},
    },
    *({"experiment": "x", "schedule": {"kind": kind}} for kind in ("cosine", *DECAYING)),
    *(
        {
            "experiment": "x",
            "backbone": {"kind": "timm", "views": VIEWS},
            "model": {"fuse": {"kind": kind}},
            "data": {**LONG, "sums": {}},
        }
        for kind in Fuse.kinds
    ),
    {
        "experiment": "x",
        "data": LONG,
        "backbone": {"kind": "timm"},
        "model": {
            "encoder": {"kind": "end_to_end", "layer_decay": 0.9},
            "head": {"kind": "per_target"},
            "outputs": {"kind": "parts"},
        },
        "loss": {"kind": "smooth_l1", "weights": [0.5, 0.3, 0.2]},
        "augment": {
            "mixup_alpha": 0.4,
            "mixup": {"of": "embedding", "probability": 0.5},
            "images": {"quarter_turns": 0.5, "saturation": 0.2, "hue": 0.1, "colour_probability": 0.5},
        },
        "optim": {"ema": 0.99},
        "train": {"head_first": {"epochs": 3}, "accumulate": 2},
    },
    {"experiment": "x", "data": LONG, "model": {"outputs": {"kind": "ratios"}}},
    {"experiment": "x", "data": {**LONG, "sums": {}}, "model": {"outputs": {"kind": "each", "log": True}}},
    {"experiment": "x", "backbone": {"kind": "dinov2", "views": {**VIEWS, **DRAWN}}, "augment": {"poses": 0.5}},
    {
        "experiment": "x",
        "backbone": {"kind": "dinov2", "taps": [3, 7], "poolings": ["cls", "mean"], "views": VIEWS},
        "model": {"head": {"kind": "ridge_stack"}, "normalize": False},
        "data": LONG,
        "evaluate": {"tta": [1, 1, 1]},
    },
]
for each in BASES:
    if "poses" in each.get("backbone", {}).get("views", {}):
        each.setdefault("evaluate", {"tta": [1, 1, 1]})
# What another value of a key may be, where its type does not tell.
OTHERS: Tree = {
    "task": "butterflies",
    "data.on_bad_image": "skip",
    "data.split.recipe": "S",
    "data.revision": "main",
    "data.images": "photos",
    "data.download": {},
    "data.download.md5": None,
    "data.columns.id": None,
    "features.dtype": "fp32",
    "backbone.pretrained": "openai",
    "backbone.revision": "main",
    "backbone.pooling": "cls_mean",
    "backbone.image_size": 64,
    "data.targets": ["dead", "all", "green"],
    "data.split.stratify": "dead",
    "model.head.hidden": 7,
    "augment.mixup.of": "features",
    "train.head_first": {"epochs": 2},
    "data.sums": [{"whole": "all", "parts": ["dead", "green"]}],
    "model.encoder.targets": ["q_proj"],
    "model.encoder.depth_gain": 0.25,
    "train.sample": "groups",
    "loss.levels": [0.1, 0.5, 0.9],
    "calibrate.kind": "spread",
    "train.batches.by": "tree",
    "train.batches.cuts": [10, 50],
    **{
        f"loss.{part}{key}": value
        for part in ("", "second.")
        for key, value in {
            "targets": "multipositive",
            "similarity": "geodesic",
            "weights.classes": "inverse_frequency",
            "weights.mean_over": "samples",
            "weights.pairs": "doubled",
            "weights.focal_form": "distance",
            "weights.join": "harmonic",
        }.items()
    },
    "model.pool": "precision",
    "optim.kind": "adamw",
    "optim.clip": 1.0,
    "schedule.hold": "auto",
    "schedule.per": "step",
    "extract.decode": "exact",
    "schedule.ratio": 2.0,
    "optim.decays": "matrices",
    "train.precision": "fp32",
    "train.patience": 5,
    "select.epoch": "last",
    "select.metric": "MAE",
    "select.folds": 5,
    "model.head.kernel": "linear",
    "model.head.gamma": 0.5,
    "model.head.weights": "distance",
    "model.head.length_scale": 2.0,
    "model.head.shrinkage": None,
    "model.head.Cs": [0.5, 2.0],
}
OTHER_KINDS: Tree = {
    "data.split": {
        "folds": {"kind": "source"},
        "source": {"kind": "folds"},
        "domains": {"kind": "years"},
        "sites": {"kind": "folds"},
        "species": {"kind": "folds"},
    },
    "backbone": {
        "open_clip": {"kind": "dinov2"},
        "dinov2": {"kind": "open_clip"},
        "timm": {"kind": "dinov2"},
        "concat": {"kind": "timm"},
        "pixels": {"kind": "open_clip"},
    },
    "model.encoder": {
        "lora": {"kind": "frozen"},
        "finetuned": {"kind": "frozen"},
        "patch_convs": {"kind": "frozen"},
        "token_pooling": {"kind": "frozen"},
        "end_to_end": {"kind": "frozen"},
        "projection": {"kind": "lora"},
        "frozen": None,
    },
    "model.head": {
        "mlp": None,
        "ridge": {"kind": "climatology"},
        "ridge_stack": {"kind": "ridge"},
        "per_target": {"kind": "mlp"},
        "climatology": {"kind": "boosting"},
        "boosting": {"kind": "mlp"},
        **{kind: {"kind": "mlp"} for kind in CLASSIFIER_KINDS},
        **{kind: {"kind": "logistic"} for kind in FROZEN_TOWERS},
        "contrastive": None,
    },
    "model.text": {"projection": {"kind": "finetuned"}, "finetuned": None, "frozen": None},
    "train.batches": {**dict.fromkeys(Batches.kinds), "classes": {"kind": "shuffled"}},
    "loss.second": {**dict.fromkeys(PAIR_KINDS), "infonce": {"kind": "pair_bce", "weight": 0.3}},
    "loss": {
        **dict.fromkeys(PAIR_KINDS),
        "infonce": {"kind": "pair_bce"},
        "cross_entropy": None,
        "mse": {"kind": "quantiles"},
        "smooth_l1": {"kind": "mse"},
        "student_t": {"kind": "crps"},
        "quantiles": {"kind": "nll"},
    },
    "schedule": {"constant": {"kind": "cosine"}, "cosine": {"kind": "plateau"}, **dict.fromkeys(DECAYING)},
    "model.outputs": {"each": {"kind": "parts"}, "parts": {"kind": "ratios"}, "ratios": {"kind": "parts"}},
    "model.fuse": {kind: {"kind": "mean" if kind == "concat" else "concat"} for kind in Fuse.kinds},
    "risk": {"mean": None, "coral": {"kind": "group_dro"}, "group_dro": {"kind": "mean"}},
}


def _with(tree: dict[str, Any], key: str, value: Any) -> Config:
    """The configuration of this tree with one dotted key set, validated."""
    *blocks, last = key.split(".")
    tree = copy.deepcopy(tree)
    place = reduce(getitem, blocks, tree)
    place[last] = value
    return Config.model_validate(tree)


def _another(key: str, value: Any) -> Any:
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, list):
        return value[::-1]
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.5 + 0.001
    return f"{value}x"


Change = tuple[str, Any, Config]
"""A dotted key, another value, and the configuration that has it."""


@cache
def _base(number: int) -> Config:
    return Config.model_validate(named(BASES[number]))


@cache
def _changes(number: int) -> list[Change]:
    """Another value for every scientific key of a base; whole blocks for kinds.

    Without what the rest of a base forbids (a domain embedding under a ridge, another loss than squares): see below.
    """
    tree, found = _base(number).model_dump(mode="json"), []
    for key, value in flatten(science(_base(number))).items():
        block = key.removesuffix(".kind")
        is_kind = block in OTHER_KINDS and block != key
        place, other = (block, OTHER_KINDS[block][value]) if is_kind else (key, _another(key, value))
        if other or not is_kind:
            found += [(place, other, made) for made in _possible(tree, place, other)]
    return found


def _possible(tree: dict[str, Any], key: str, value: Any) -> list[Config]:
    """What a base is with this value, if it may have it and has another."""
    with contextlib.suppress(ValidationError):
        made = _with(tree, key, value)
        return [made] if flatten(made.model_dump(mode="json")) != flatten(tree) else []
    return []


def test_every_scientific_key_of_every_kind_has_another_value_in_one_of_the_bases() -> None:
    found = [pair for number in range(len(BASES)) for pair in flatten(science(_base(number))).items()]
    changes = [change for number in range(len(BASES)) for change in _changes(number)]
    changed = {key for key, *_ in changes}
    assert {key for key, _ in found} - changed - {f"{key}.kind" for key in OTHER_KINDS} == set()
    assert set(OTHER_KINDS) <= changed
    kinds = {value for key, value in found if key.endswith("kind")} | {each["kind"] for each in BESIDE_NUMBERS["auxiliary"]}
    for key, value, _ in changes:
        kinds |= set(value.values()) if isinstance(value, dict) else {value} if key.endswith("kind") else set()
    declared = re.findall(
        r"    kind: Literal\[(.*?)\]",
        "".join(path.read_text() for path in (PROJECT / "pipeline" / "config").glob("*.py") if path.stem != "tracking"),
    )
    assert len(declared) > 15 and {kind for names in declared for kind in re.findall(r"\w+", names)} - kinds == set()


@pytest.mark.parametrize("number", range(len(BASES)))
def test_every_scientific_change_makes_another_trial(number: int) -> None:
    """Some forty changes of each base; a test for each of all these would take a minute to collect."""
    alike = [(key, value) for key, value, made in _changes(number) if config_hash(made) == config_hash(_base(number))]
    assert len(_changes(number)) > 20 and not alike


def test_the_task_is_part_of_a_trials_identity() -> None:
    before = Config.model_validate(named(BASES[0]))
    assert config_hash(before.model_copy(update={"task": "butterflies"})) != config_hash(before)


def test_every_key_of_the_configuration_is_either_science_or_named_as_not() -> None:
    config = Config.model_validate(named(BASES[0]))
    assert set(science(config)) | NOT_SCIENCE == set(Config.model_fields)
    assert not set(science(config)) & NOT_SCIENCE
    assert {"experiment", "evaluate", "tracking", "device", "resources", "launch", "paths"} == NOT_SCIENCE


counts = st.integers(1, 10_000)
names = st.none() | st.text("abc-_/", min_size=1, max_size=9)
jobs = st.fixed_dictionaries(
    {},
    optional={
        "partition": names,
        "account": names,
        "qos": names,
        "constraint": names,
        "gpus_per_node": st.integers(0, 8),
        "cpus_per_task": counts,
        "mem": st.sampled_from(["1G", "200G"]),
        "time": st.sampled_from(["10", "10:00:00", "2-00:00:00"]),
    },
)
everything_but_science = st.fixed_dictionaries(
    {},
    optional={
        "experiment": st.from_regex(r"[a-z][a-z0-9.-]{0,9}", fullmatch=True),
        "device": st.sampled_from(["auto", "cuda", "cpu"]),
        "paths": st.fixed_dictionaries({"features": names, "trained": names}),
        "evaluate": st.fixed_dictionaries(
            {"split": st.sampled_from(["auto", "validation", "test"]), "inputs": st.sampled_from(["features", "images"])}
        ),
        "resources": st.fixed_dictionaries(
            {},
            optional={
                **dict.fromkeys(("extract", "train", "evaluate", "collect"), jobs),
                **dict.fromkeys(("extract_tasks", "extract_batch", "decode_threads", "checkpoint_epochs"), counts),
                **dict.fromkeys(("checkpoint_seconds", "lease_seconds"), st.floats(1, 1e6)),
                "residence": st.sampled_from(["auto", "device", "host", "mmap"]),
            },
        ),
    },
)


@given(st.sampled_from(BASES), everything_but_science)
@settings(deadline=None)
def test_where_and_with_what_a_trial_runs_does_not_change_its_identity(base: Tree, changes: Tree) -> None:
    evaluate = {"evaluate": base.get("evaluate", {}) | changes.get("evaluate", {})}
    assert config_hash(Config.model_validate(named(base | changes | evaluate))) == config_hash(Config.model_validate(named(base)))


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=5))
def test_a_digest_does_not_depend_on_the_order_of_keys(tree: Tree) -> None:
    assert digest(tree) == digest(dict(reversed(tree.items())))


def test_equal_numbers_written_differently_are_the_same_trial() -> None:
    lora = Config.model_validate(named(BASES[0]))
    tree = lora.model_dump(mode="json")
    assert config_hash(_with(tree, "model.encoder.alpha", 256)) == config_hash(lora)
    assert config_hash(_with(tree, "optim.lr", 0.0001)) == config_hash(_with(tree, "optim.lr", 1e-4))


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lrr": 1}}, "Extra inputs"),
        ({"optim": {"lr": 0}}, "greater than 0"),
        ({"optim": {"lr": float("inf")}}, "finite"),
        ({"optim": {"betas": [0.9, 1.0]}}, "less than 1"),
        ({"model": {"encoder": {"kind": "lora", "targets": []}}}, "at least 1 item"),
        ({"model": {"head": {"kind": "ridge", "alphas": []}}}, "at least 1 item"),
        ({"model": {"head": {"kind": "ridge", "alphas": [-1]}}}, "greater than or equal to 0"),
        ({"optim": {"clip": 0}}, "greater than 0"),
        ({"model": {"head": {"kind": "logistic", "Cs": [1, 0.1]}}}, "Cs\n.*they must ascend"),
        ({"model": {"head": {"kind": "svc", "gamma": "auto"}}}, "'scale'"),
        ({"model": {"head": {"kind": "lda", "shrinkage": 2}}}, "less than or equal to 1"),
        (
            {"model": {"head": {"kind": "svc"}, "encoder": {"kind": "lora"}}},
            "svc is not trained by gradient descent: set model.encoder.kind frozen, or model.head.kind mlp",
        ),
        (
            {**LABELLED, "model": {"head": {"kind": "knn"}}, "select": {"epoch": "last"}},
            "knn has no epochs: set select.epoch best, or model.head.kind mlp",
        ),
        ({"model": {"head": {"kind": "knn"}}, "select": {"folds": 1}}, "greater than or equal to 2"),
        (
            {"model": {"head": {"kind": "knn"}}},
            "knn does not fit numbers .data.targets.: set model.head.kind mlp, per_target, ridge, ridge_stack, climatology",
        ),
        (
            {**LABELLED, "model": {"head": {"kind": "ridge"}}},
            "ridge does not fit classes .data.label.: set model.head.kind mlp, svc",
        ),
        (
            {**LABELLED, "loss": {"kind": "cross_entropy", "focal": 2}, "model": {"head": {"kind": "knn"}}},
            "knn has no use for options of loss: set loss to nothing, or model.head.kind mlp",
        ),
        (
            {"select": {"folds": 5}},
            "folds 5 fits again .* model.head.kind mlp is not made: set model.head.kind svc, sgd, knn,.* or select.folds null",
        ),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"seed": 2**63}, "less than"),
        ({"train": {"epochs": 0}}, "greater than or equal to 1"),
        ({"train": {"patience": 0}}, "greater than or equal to 1"),
        ({"augment": {"image_dropout": 1}}, "less than 1"),
        ({"augment": {"noise": -0.1}}, "greater than or equal to 0"),
        ({"model": {"encoder": {"kind": "lora", "targets": ["qkv"]}}}, "q_proj"),
        ({"data": {"targets": []}}, "at least one"),
        ({"data": {"targets": ["a", "a"]}}, "none of them twice"),
        ({"data": {"split": {"kind": "folds", "n": 4, "fold": 4}}}, "folds count from 0 to 3"),
        ({"data": {"split": {"kind": "folds", "n": 2}}}, "greater than or equal to 3"),
        (
            {"data": {"colour_card": True}},
            r"data\.colour_card reads images of their own: set data\.columns\.colour_card to the column",
        ),
        ({"data": {"scale_bar": True}}, r"data\.scale_bar reads images of their own: set data\.columns\.scale_bar to the column"),
        ({"data": {"canvas": 0}}, "greater than 0"),
        ({"task": "beatles"}, "the tasks are: beetles"),
        ({"experiment": "../elsewhere"}, "pattern"),
        ({"model": {"head": {"kind": "ridge"}, "encoder": {"kind": "lora"}}}, "set model.encoder.kind frozen"),
        (
            {"model": {"head": {"kind": "ridge"}, "domain_embedding": True}},
            "by gradient descent: set model.domain_embedding false, or model.head.kind mlp",
        ),
        (
            {"model": {"head": {"kind": "boosting"}, "species_embedding": True}},
            "boosting is not trained by gradient descent: set model.species_embedding false",
        ),
        (
            {"model": {"head": {"kind": "climatology"}, "pool": "attention"}},
            "climatology is not trained by gradient descent: set model.pool mean",
        ),
        (
            {"model": {"head": {"kind": "climatology"}}, "loss": {"kind": "nll"}},
            "has no use for loss.kind nll: set loss.kind mse or cross_entropy, or model.head.kind mlp",
        ),
        (
            {"model": {"head": {"kind": "ridge"}}, "risk": {"kind": "coral"}},
            "ridge has no use for risk.kind coral: set risk.kind mean",
        ),
        (
            {"model": {"head": {"kind": "boosting"}}, "train": {"sample": "groups"}},
            "no use for train.sample groups: set train.sample images",
        ),
        ({"model": {"pool": "attention"}}, "attention learns from sets of images: set train.sample groups, or model.pool mean"),
        (
            {"model": {"pool": "precision"}},
            "precision needs a variance of each image, which loss.kind mse does not learn: set loss.kind crps, nll, student_t",
        ),
        (
            {"augment": {"mixup_alpha": 0.2}, "train": {"sample": "groups"}},
            "mixup_alpha 0.2 mixes images: set train.sample images, or augment.mixup_alpha 0",
        ),
        (
            {"train": {"patience": 3}, "select": {"epoch": "last"}},
            "patience 3 waits for a better epoch: set select.epoch best, or train.patience null",
        ),
        ({"model": {"head": {"kind": "ridge"}}, "select": {"epoch": "last"}}, "ridge has no epochs: set select.epoch best"),
        (
            {"model": {"head": {"kind": "ridge"}, "standardize_features": True}},
            "standardize_features is for heads that do not scale it themselves: set model.head.kind mlp",
        ),
        (
            {"model": {"encoder": {"kind": "finetuned"}, "standardize_features": True}},
            "scales what does not learn: set model.encoder.kind frozen, or model.standardize_features false",
        ),
        (
            {"risk": {"kind": "group_dro"}, "augment": {"mixup_alpha": 0.2}, "data": {"columns": PLACES}},
            "group_dro tells domains apart, and augment.mixup_alpha mixes them: set augment.mixup_alpha 0, or risk.kind mean",
        ),
        (
            {"risk": {"kind": "coral"}, "model": {"head": {"kind": "mlp", "hidden": []}}, "data": {"columns": PLACES}},
            "coral acts on the last hidden layer, and there is none: set model.head.hidden to one width or more",
        ),
        ({"model": {"species_embedding": True}}, "species_embedding learns from names: set data.columns.species to the column"),
        ({"risk": {"kind": "coral"}}, "risk.kind coral tells domains apart: set data.columns.domain to the column"),
        ({"risk": {"kind": "group_dro"}}, "risk.kind group_dro tells domains apart: set data.columns.domain"),
        ({"risk": {"kind": "group_dro", "step": 0}}, "greater than 0"),
        ({"risk": {"kind": "coral", "weight": 0}}, "greater than 0"),
        ({"model": {"head": {"kind": "climatology", "min_groups": 1}}}, "greater than or equal to 2"),
        ({"model": {"head": {"kind": "climatology", "window": 184}}}, "less than or equal to 183"),
        ({"train": {"max_images": 0}}, "greater than or equal to 1"),
        ({"augment": {"species_dropout": 1.1}}, "less than or equal to 1"),
        ({"backbone": {"kind": "pixels"}, "model": {"encoder": {"kind": "finetuned"}}}, "has no blocks"),
        (
            {"backbone": {"kind": "timm"}, "model": {"encoder": {"kind": "lora"}}},
            "encoder.kind lora reads cut features, and timm cannot be cut: set backbone.kind open_clip(,| or) dinov2.*, "
            "or model.encoder.kind frozen, projection(,| or) end_to_end",
        ),
        ({"backbone": {"kind": "concat"}, "model": {"encoder": {"kind": "end_to_end"}}}, "concat is several networks"),
        ({"backbone": {"kind": "concat", "parts": [{"kind": "pixels"}]}}, "two backbones or more; one alone is written"),
        (
            {"augment": {"images": {"flip": True}}},
            "augment.images changes images, and model.encoder.kind frozen reads cached features: set model.encoder.kind end",
        ),
        ({"augment": {"images": {"rotation": 181}}}, "less than or equal to 180"),
        ({"augment": {"images": {"erase": 1.1}}}, "less than or equal to 1"),
        ({"augment": {"images": {"shift": -0.1}}}, "greater than or equal to 0"),
        ({"model": {"encoder": {"kind": "end_to_end", "lr_scale": 0}}}, "greater than 0"),
        ({"model": {"encoder": {"kind": "end_to_end"}, "head": {"kind": "ridge"}}}, "not trained by gradient descent"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_anything_is_queued(values: Tree, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Config.model_validate(named({"experiment": "x"} | values))


def test_a_configuration_cannot_be_changed_once_it_is_resolved() -> None:
    config = Config.model_validate(named(BASES[0]))
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 1.0  # type: ignore[misc]


def test_the_tasks_are_the_modules_of_the_tasks_folder() -> None:
    from pipeline import tasks

    modules = {module.name for module in pkgutil.iter_modules(tasks.__path__)}
    assert tasks.available() == TASKS == sorted(modules - STOCK) and modules > STOCK


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (Frozen(), ("pooled", 0)),
        (FineTuned(kind="finetuned", blocks=3), ("cut", 3)),
        (Lora(kind="lora", blocks=5), ("cut", 5)),
        (PatchConvs(kind="patch_convs"), ("patches", 0)),
        (EndToEnd(kind="end_to_end"), ("images", 0)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_an_encoder_reads_the_features_that_it_needs(encoder: Any, expected: tuple[str, int]) -> None:
    config = Config.model_validate(named({"experiment": "x", "model": {"encoder": encoder.model_dump()}}))
    assert token_kind(config) == expected


def test_collecting_asks_for_no_gpu() -> None:
    resources = Config.model_validate(named({"experiment": "x"})).resources
    assert resources.collect.gpus_per_node == 0
    assert all(job.gpus_per_node == 1 for job in (resources.extract, resources.train, resources.evaluate))
    assert isinstance(resources.train, Job)


def test_defaults_name_bioclip_2_and_source_splits() -> None:
    config = Config.model_validate(named({"experiment": "x"}))
    assert config.backbone == OpenClip(name="hf-hub:imageomics/bioclip-2")
    assert not isinstance(config.data.split, FoldSplit)
