"""Every key that a biomass configuration may set changes what is trained or evaluated, or is refused: keys for augmentation, for
the weights of losses and for views of test-time augmentation that did nothing were mistakes of others."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from pipeline.config.identity import flatten, told
from pipeline.config.idle import check_read
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError
from pipeline.stages import evaluate, extract, train
from pipeline.tasks import load_task

pytestmark = pytest.mark.long

Tree = dict[str, Any]
BLOCKS = (
    "backbone.",
    "model.",
    "loss.",
    "risk.",
    "augment.",
    "optim.",
    "schedule.",
    "train.",
    "select.",
    "calibrate.",
    "data.split.",
)
KEYS = ("seed", "features.dtype", "data.targets", "data.sums", "data.auxiliary", "data.long", "evaluate.tta")
EVERYTHING: Tree = {
    "backbone": {
        "kind": "timm", "name": "test_vit", "poolings": ["cls", "mean"], "taps": [-1, -2],
        "views": {"crops": ["left", "right"], "tiles": [1, 2], "poses": ["hflip"], "draws": 1,
                  "augment": {"rotation": 20, "brightness": 0.3},
                  "masks": [[0.0, 0.8, 0.3, 1.0]], "sizes": [32]},
    },
    "model": {
        "encoder": {"kind": "end_to_end", "lr_scale": 0.5, "layer_decay": 0.9}, "fuse": {"kind": "film"}, "normalize": False,
        "head": {"kind": "per_target", "hidden": 5}, "outputs": {"kind": "each", "positive": True}, "standardize_targets": True,
    },
    "loss": {"kind": "smooth_l1", "beta": 0.1, "weights": [0.5, 0.2, 0.1]},
    "augment": {
        "image_dropout": 0.1, "poses": 0.5, "mixup_alpha": 0.4, "noise": 0.1, "warmup": 0.5,
        "mixup": {"of": "embedding", "probability": 0.7, "keeps_most": True},
        "images": {"flip": True, "flip_vertical": True, "quarter_turns": 0.5, "rotation": 10, "scale": 0.1, "shift": 0.1,
                   "brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.1, "colour_probability": 0.8, "erase": 0.3},
    },
    "optim": {"kind": "adamw", "lr": 3e-3, "weight_decay": 0.1, "clip": 0.5, "ema": 0.6},
    "schedule": {"kind": "cosine", "warmup": 1, "hold": 1, "floor": 0.1},
    "train": {"epochs": 6, "batch_size": 4, "accumulate": 2, "head_first": {"epochs": 2, "lr": 1e-2},
              "precision": "fp32"},
    "data": {"auxiliary": [{"kind": "number", "column": "Height_Ave_cm"}]},
    "select": {"epoch": "last"},
    "evaluate": {"tta": [2, 1]},
}  # fmt: skip
FROZEN: Tree = {
    "backbone": {
        **EVERYTHING["backbone"],
        "views": {"crops": ["left", "right"], "tiles": [1, 2], "poses": ["hflip"], "sizes": [32, 64]},
    },
    "model": {"head": {"kind": "ridge_stack", "folds": 3}, "normalize": False},
    "data": {"split": {"kind": "folds", "n": 3, "stratify": "GDM_g"}},
    "evaluate": {"tta": [2, 1]},
}
BASES = {"everything": EVERYTHING, "ridge stack": FROZEN}
OTHERS: Tree = {
    "backbone.name": "test_vit2",
    "backbone.pretrained": None,  # (weights of the Hub)
    "backbone.poolings": ["cls", "max"],
    "backbone.taps": [-1, -3],
    "backbone.views.crops": ["left", "whole"],
    "backbone.views.tiles": [2, 2],
    "backbone.views.sizes": [48],
    "backbone.views.poses": ["vflip"],
    "backbone.views.augment.quarter_turns": 0.9,
    "backbone.views.augment.colour_probability": 0.1,
    "backbone.views.augment.erase": 0.9,
    "backbone.views.masks": [[0.5, 0.5, 1.0, 1.0]],
    "backbone.kind": None,  # (another kind has other keys: test_views, test_config)
    "backbone.image_size": 64,
    "model.encoder.kind": None,
    "model.fuse.kind": None,
    "model.head.kind": None,
    "model.outputs.kind": None,
    "model.text.kind": None,
    "model.pool": "attention",
    "loss.kind": None,
    "loss.weights": [0.1, 0.2, 0.5],
    "risk.kind": "coral",
    "augment.mixup.of": "features",
    "optim.kind": "adam",
    "optim.betas": [0.8, 0.99],
    "optim.decays": "matrices",
    "optim.eps": 1e-2,
    "schedule.kind": "constant",
    "schedule.hold": 2,
    "schedule.per": "step",
    "train.sample": "groups",
    "train.samples": 50,
    "train.precision": "bf16",
    "train.head_first": None,
    "train.batches.kind": "classes",
    "select.epoch": "best",
    "train.patience": 2,
    "select.metric": "MAE",
    "calibrate.kind": "spread",
    "data.targets": ["GDM_g", "Dry_Total_g", "Dry_Green_g"],
    "data.auxiliary": [{"kind": "number", "column": "Pre_GSHH_NDVI"}],
    "data.split.kind": "source",
    "data.split.by": ["State"],
    "data.split.stratify": "Dry_Green_g",
    "features.dtype": "bf16",
    "evaluate.tta": [1, 1],
}
NO_MATTER = {
    "backbone.seed": "weights are random here, and drawn from it: tried below",
    "data.long": "how the table is written: tests/test_biomass.py",
}
SOLVED = {"train.precision": "nothing is trained: fp32, whatever a cluster's profile says for all"}
"""What does not matter where the head is solved."""


def another(key: str, value: Any) -> Any:
    if key in OTHERS:
        return OTHERS[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value * 0.5 + 0.001 if isinstance(value, float) else f"{value}x"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated quadrats, shrunk: only what changes is of interest."""
    folder = tmp_path_factory.mktemp("made")
    load_task("biomass").generate(folder / "large", scale=0.1)
    (folder / "train").mkdir()
    for path in (folder / "large" / "train").iterdir():
        with Image.open(path) as image:
            image.resize((128, 64)).save(folder / "train" / path.name)
    with (folder / "large" / "train.csv").open() as file:
        rows = list(csv.reader(file))
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def tree_of(base: Tree, folder: Path) -> Tree:
    columns = {"image": "image_path", "id": "sample_id", "date": "Sampling_Date", "species": "Species"}
    targets = ["Dry_Total_g", "GDM_g", "Dry_Green_g"]
    data = {"source": str(folder / "train.csv"), "long": {}, "columns": columns, "targets": targets}
    split = {"kind": "folds", "n": 3, "by": ["Sampling_Date"]}
    plain = {"task": "biomass", "experiment": "keys", "device": "cpu", "features": {"dtype": "fp32"}, "seed": 1}
    return Config.model_validate({**plain, **base, "data": {**data, "split": split, **base.get("data", {})}}).model_dump(
        mode="json"
    )


def keys_of(tree: Tree) -> Iterator[tuple[str, Any]]:
    config = Config.model_validate(tree)
    no_matter = NO_MATTER | ({} if config.model.head.descends else SOLVED)
    flat = flatten(told(config)) | {"evaluate.tta": list(config.evaluate.tta)}
    return ((key, value) for key, value in flat.items() if (key.startswith(BLOCKS) or key in KEYS) and key not in no_matter)


def changed(tree: Tree, key: str, value: Any) -> Config | None:
    """The configuration with this key set; None where it is refused."""
    *blocks, last = key.split(".")
    tree = Config.model_validate(tree).model_dump(mode="json")
    place = tree
    for block in blocks:
        place = place[block]
    place[last] = value
    try:
        return Config.model_validate(tree)
    except ValidationError:
        return None


def outcome(config: Config, folder: Path) -> str:
    """What a trial comes to: its tensors and its figures. (That features are others proves nothing: they may not be used.)"""
    trial = TrialDir(folder)
    folder.mkdir(parents=True)
    extract.ensure(config)
    train.run(config, trial)
    figures = evaluate.run(config, trial)
    tensors = b"".join(name.encode() + tensor.numpy().tobytes() for name, tensor in sorted(load_file(trial.model).items()))
    shown = {key: value for key, value in figures.items() if key not in ("config_hash", "evaluation", "feature_key")}
    return hashlib.sha256(tensors + repr(sorted(shown["figures"].items())).encode()).hexdigest()


@pytest.mark.parametrize("base", BASES)
def test_every_key_changes_the_run_or_is_refused(base: str, small: Path, root: Path, tmp_path: Path) -> None:
    tree = tree_of(BASES[base], small)
    before = outcome(Config.model_validate(tree), tmp_path / "base")
    assert before == outcome(Config.model_validate(tree), tmp_path / "again")
    dead, tried, refused = [], [], []
    for i, (key, value) in enumerate(keys_of(tree)):
        other = another(key, value)
        if (other is None and key not in ("train.head_first",)) or other == value:
            continue
        config = changed(tree, key, other)
        try:
            check_read({key: [other]}, [config or Config.model_validate(tree)], "here")
            if config is None or outcome(config, tmp_path / str(i)) != before:
                (refused if config is None else tried).append(key)
            else:
                dead.append(key)
        except UserError:
            refused.append(key)
    print(f"{base}: {len(tried)} change the run, {len(refused)} are refused: {', '.join(refused)}")
    assert not dead and len(tried) > (60 if base == "everything" else 12)
