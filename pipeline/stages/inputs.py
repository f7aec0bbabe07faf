"""What training and evaluation start from: the data's table, its features, and the backbone where one is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone
from pipeline.backbones.texts import TextTower
from pipeline.config.identity import config_hash, digest, features_of, towers_of
from pipeline.config.own import content_hash
from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset, known_signature, rows_signature
from pipeline.data.suspects import left_out
from pipeline.data.texts import same_texts
from pipeline.data.truth import Numbers
from pipeline.features.bank import Bank, make_bank
from pipeline.features.hashes import data_record, ingredients, known_feature_key, weights_record
from pipeline.features.staging import staged
from pipeline.features.store import FeatureStore, open_key
from pipeline.models.base import Facts
from pipeline.models.metadata import Names
from pipeline.progress import log
from pipeline.stages.shared import Shared
from pipeline.stages.text_inputs import TextInputs, load_texts
from pipeline.tasks import check, load_task
from pipeline.tasks.base import Task
from pipeline.training.demands import check_table
from pipeline.training.samples import Samples, columns, make_samples

Split = Literal["train", "validation", "test"]
TOLD_SINCE = ("logits",)
"""Keys of `identity` that were added while there were trained trials without them, which stay valid."""


@dataclass(frozen=True)
class Inputs:
    """One trial's inputs. Row i of the table is row i of the store."""

    config: Config
    dataset: Dataset
    store: FeatureStore
    looks: str
    """The data's signature from before they were read: what changed since is not in here."""
    copies: Sequence[int] = ()
    """Rows of copies of images that are left out (data.on_duplicate)."""
    texts: TextInputs | None = None
    """For a head that reads texts."""
    shared: Shared = field(default_factory=Shared)
    """What trials of this process have loaded."""

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone, on the CPU, loaded when it is first asked for: seconds, and gigabytes. What is drawn for a model that is
        made from it is drawn where it lies."""
        load = partial(load_backbone, self.config.backbone)
        loaded: Backbone = self.shared.get("backbone", self.config.backbone, load)
        return loaded.cpu()

    @cached_property
    def task(self) -> Task[Any]:
        return load_task(self.config.task)

    @property
    def encoder_backbone(self) -> Backbone | None:
        """The backbone if the encoder is built from it; None for one that reads the embedding as it is."""
        return self.backbone if self.config.model.encoder.learns else None

    @property
    def text_tower(self) -> TextTower | None:
        """The text tower if its encoder is built from it."""
        return None if self.texts is None else self.texts.encoder_tower

    @property
    def notes(self) -> list[str]:
        """What was told of images and texts when their features were made."""
        return [*self.store.notes, *(self.texts.store.notes if self.texts else [])]

    def positions(self, split: Split) -> pd.Index:
        """Rows of a split whose image could be read, and is no copy to be left out; of train all that are trained on."""
        table, splits = self.dataset.table, self.config.data.split.trained if split == "train" else (split,)
        return table.index[table["split"].isin(splits) & ~table.index.isin([*self.store.bad, *self.copies])]

    def verify(self) -> None:
        """Every byte of the features, once for all trials of this process. Raises MissingFeatures naming the first damaged
        shard."""
        for kind, store in (("images", self.store), *([("texts", self.texts.store)] if self.texts else [])):
            self.shared.get(f"verified {kind}", (store.dir.path, store.state_of_files()), store.verify)

    def table(self, split: Split) -> pd.DataFrame:
        return self.dataset.table.loc[self.positions(split)]

    def samples(self, facts: Facts, split: Split, device: torch.device) -> Samples:
        """A split's features and truth for a model."""
        bank = self._bank(split, device)
        counts = tuple(self.dataset.truth.counts(self.table("train")).values())
        samples = make_samples(bank, self.table(split), facts, self.dataset.truth, device, counts)
        if self.texts is None:
            return samples
        return replace(samples, texts=self.texts.samples(self.positions(split).to_numpy(), counts, device))

    def _bank(self, split: Split, device: torch.device) -> Bank:
        positions = self.positions(split).to_numpy()
        where = device, self.config.resources.residence, self.config.train.processes
        key = self.store.dir.path, self.store.state_of_files(), positions.tobytes(), where
        bank: Bank = self.shared.get(f"bank of {split}", key, lambda: make_bank(self.store, positions, *where))
        return bank


def load_inputs(config: Config, shared: Shared | None = None) -> Inputs:
    """Read the table and open the features, which must be there; this node's copy of them where `paths.stage` asks for it. What
    trials of this process have `shared` is not read again."""
    shared = shared or Shared()
    check(config)
    loaded: Inputs = shared.get("inputs", _read_by(config), partial(_load, config))
    inputs = replace(loaded, config=config, shared=shared)
    for warning in (*inputs.dataset.notes, *inputs.dataset.warnings):
        log(f"{config.data.source}: {warning}")
    check_table(config, inputs.task, inputs.dataset.truth, {split: inputs.table(split) for split in get_args(Split)})
    return inputs


def _read_by(config: Config) -> str:
    """What two trials must have in common for their inputs to be the same: the table's files too, which may have been corrected
    while this process ran."""
    of_texts = [config.model, config.train] if "text" in towers_of(config) else []
    blocks = [config.data, config.texts, config.resources, config.paths, *of_texts]
    known = [config.task, content_hash(config.task), rows_signature(config.data), *features_of(config)]
    return digest([*known, *(block.model_dump(mode="json") for block in blocks)])


def _load(config: Config) -> Inputs:
    before = known_signature(config.data)
    dataset = load_task(config.task).load(config.data)
    looks = before or dataset.signature()
    store = staged(open_key(config, feature_key(config, dataset, looks)), config)
    copies, warnings = left_out(dataset, config.data, store.images())
    texts = load_texts(config, dataset) if "text" in towers_of(config) else None
    warnings = [*warnings, *(same_texts(texts.texts, dataset.targets) if texts else [])]
    dataset = replace(dataset, warnings=(*dataset.warnings, *warnings))
    return Inputs(config, dataset, store, looks, copies, texts)


def feature_key(config: Config, dataset: Dataset, looks: str | None = None) -> str:
    """Key of this configuration's features: from records, or by reading images and weights where these are out of date. `looks`
    is the data's signature, for a caller that has it.

    A new version of a library, or of this code, makes records void and mostly leaves the features as they were.
    """
    known = known_feature_key(config, looks)
    if known is not None:
        return known
    weights = weights_record(config, partial(load_backbone, config.backbone))
    return ingredients(config, data_record(config, dataset), weights).key()


def make_facts(inputs: Inputs) -> Facts:
    """What a new model is built for."""
    encoder, backbone = inputs.config.model.encoder, inputs.encoder_backbone
    cut = backbone.cut_before(encoder.tail_blocks) if encoder.tail_blocks and backbone else None
    width, made = backbone.embed_dim if backbone else inputs.store.shape[-1], inputs.store.ingredients
    names, dataset = Names.of(columns(inputs.table("train"))), inputs.dataset
    text = inputs.texts.facts if inputs.texts else None
    beside = dataset.truth.beside if isinstance(dataset.truth, Numbers) else ()
    return Facts(dataset.targets, names, width, made.weights, cut, made.key(), dataset.truth.auxiliary, text, beside)


def identity(inputs: Inputs) -> dict[str, str]:
    """What a trained model is a function of: its configuration, its features, and the table of the splits it learns from."""
    table_hash, key = inputs.dataset.learned_from, inputs.store.ingredients.key()
    known = {"config_hash": config_hash(inputs.config), "feature_key": key, "table_hash": table_hash}
    task, tree = content_hash(inputs.config.task), inputs.config.data.tree
    known |= {"text_key": inputs.texts.store.ingredients.key(), "logits": inputs.texts.weights.logits} if inputs.texts else {}
    known |= {"tree_hash": hashlib.sha256(Path(tree).read_bytes()).hexdigest()} if tree else {}
    return known | ({"task_hash": task} if task else {})


def changed(record: Mapping[str, Any], inputs: Inputs, besides: Collection[str] = ()) -> list[str]:
    """What has changed since a model with this record was trained, in words, `besides` these keys of `identity`; nothing if the
    record holds. A record of before there was a key of TOLD_SINCE says nothing of that."""
    words = {
        "config_hash": "the configuration",
        "feature_key": "the features",
        "text_key": "the texts' features",
        "logits": "the scale or bias of the model's logits",
        "table_hash": "targets, groups or splits",
        "task_hash": "the task's file",
        "tree_hash": "the tree (data.tree)",
    }
    left_out = {*besides, *(key for key in TOLD_SINCE if key not in record)}
    now = identity(inputs)
    return [said for key, said in words.items() if key not in left_out and record.get(key) != now.get(key)]
