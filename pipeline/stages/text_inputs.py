"""What training and evaluation of a head that reads texts start from beside images: the texts of images and classes, their
features, and what is known of the classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int64

from pipeline.backbones import load_towers
from pipeline.backbones.texts import TextTower
from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.data.species_splits import hashed, lasting
from pipeline.data.taxonomy import taxonomy_of
from pipeline.data.texts import ClassTexts, texts_of
from pipeline.data.tree import read_tree, shared_depths
from pipeline.features.bank import make_bank
from pipeline.features.store import FeatureStore, open_key
from pipeline.features.text_hashes import TextWeights, keep_texts, text_ingredients, text_weights
from pipeline.models.base import TextFacts
from pipeline.models.pairs.targets import ClassFacts
from pipeline.training.samples import TextSamples


@dataclass(frozen=True)
class TextInputs:
    """Row i of the store is text i."""

    config: Config
    dataset: Dataset
    texts: ClassTexts
    store: FeatureStore
    weights: TextWeights
    """Of the model as it is now: scale and bias are no part of what the store is of, and models share it that differ in these."""

    @cached_property
    def tower(self) -> TextTower:
        """The text tower, loaded when it is first asked for."""
        return load_towers(self.config.backbone).text

    @property
    def encoder_tower(self) -> TextTower | None:
        """The tower if the encoder of texts is built from it; None for one that reads the embedding as it is."""
        return self.tower if self.config.model.text.learns else None

    @cached_property
    def facts(self) -> TextFacts:
        """What a new model is built for."""
        encoder, made, weights = self.config.model.text, self.store.ingredients, self.weights
        cut = self.tower.cut_before(encoder.tail_blocks) if encoder.tail_blocks else None
        return TextFacts(made.weights, cut, made.key(), weights.logit_scale, weights.logit_bias)

    def samples(self, rows: Int64[np.ndarray, " rows"], counts: tuple[int, ...], device: torch.device) -> TextSamples:
        """The texts of these rows of the table, and of all classes."""
        bank = make_bank(
            self.store, np.arange(self.store.n), device, self.config.resources.residence, self.config.train.processes
        )
        of_image, of_class = torch.from_numpy(self.texts.of_image[rows]), torch.from_numpy(self.texts.of_class)
        order = np.argsort(hashed(lasting(self.dataset)["id"].loc[rows]), kind="stable")
        scale = math.exp(self.facts.logit_scale)
        return TextSamples(bank, of_image, of_class, partial(self._class_facts, counts), self._views(rows), order, scale)

    def _class_facts(self, counts: tuple[int, ...]) -> ClassFacts:
        data, (taxonomy, _) = self.config.data, taxonomy_of(self.dataset)
        tree = None
        if data.tree is not None:
            shared = shared_depths(read_tree(Path(data.tree)), taxonomy, data.not_in_tree)
            for note in shared.notes:
                print(f"{data.tree}: {note}", flush=True)  # (of several processes the main one is heard)
            tree = torch.from_numpy(shared.of_placed())
        ranks = torch.from_numpy(taxonomy.codes) if taxonomy.ranks else None
        return ClassFacts(torch.tensor(counts), ranks, tree)

    def _views(self, rows: Int64[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        if "view" not in self.dataset.table:
            return np.full(len(rows), -1, "int64")
        return pd.factorize(self.dataset.table["view"].loc[rows])[0].astype("int64")


def load_texts(config: Config, dataset: Dataset) -> TextInputs:
    """The data set's texts and their features, which must be there. Raises MissingFeatures where they are not."""
    texts = texts_of(dataset, config.texts)
    weights = text_weights(config, partial(load_towers, config.backbone))
    keep_texts(config, dataset.signature(), texts)
    store = open_key(config, text_ingredients(config, texts.content, weights).key())
    return TextInputs(config, dataset, texts, store, weights)
