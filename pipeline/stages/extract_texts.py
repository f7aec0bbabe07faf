"""Extraction of texts: every distinct text of a data set through the frozen part of the text tower, once, into a store of its
own. One process makes it: ten thousand names take seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import pandas as pd
import torch
from torch import Tensor

from pipeline.backbones import load_towers
from pipeline.backbones.texts import TextTower, Towers
from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.data.notes import Notes, count
from pipeline.data.texts import ClassTexts, texts_of
from pipeline.device import choose_device, gpu_name
from pipeline.disk.layout import store_dir
from pipeline.disk.lease import Lease
from pipeline.disk.provenance import provenance
from pipeline.features.forward import check_finite, compute_features
from pipeline.features.store import FeatureStore, is_complete
from pipeline.features.text_hashes import TextWeights, keep_texts, known_text_key, text_ingredients, text_weights
from pipeline.progress import log
from pipeline.stages.encoding import clear
from pipeline.tasks import load_task


@dataclass(frozen=True)
class Work:
    """What there is to extract, and into which store."""

    config: Config
    texts: ClassTexts
    weights: TextWeights
    load: Callable[[], Towers]
    """Loads the towers when they are first needed."""
    store: FeatureStore


def run(config: Config) -> None:
    """`ensure`, after every byte of what is there has been checked, and damaged shards put out of the way."""
    work = prepare(config)
    clear(work.store, range(work.store.n_shards))
    _make(work)


def ensure(config: Config) -> None:
    """The complete store of the texts' features. If it is not there this process makes it, or waits for the one that does."""
    key = known_text_key(config)
    if key is None or not is_complete(config, key):
        _make(prepare(config))


def prepare(config: Config) -> Work:
    """Load the table, bring the records up to date, and find out which store to fill."""
    dataset: Dataset = load_task(config.task).load(config.data)
    texts, load = texts_of(dataset, config.texts), cache(partial(load_towers, config.backbone))
    weights = text_weights(config, load)
    made_of = text_ingredients(config, texts.content, weights)
    keep_texts(config, dataset.signature(), texts)
    return Work(config, texts, weights, load, FeatureStore(store_dir(config, made_of.key()), made_of, len(texts.texts)))


def _make(work: Work) -> None:
    config, store = work.config, work.store
    store.dir.path.mkdir(parents=True, exist_ok=True)
    with Lease(store.dir.lease, config.resources.lease_seconds).hold(partial(is_complete, config, store.key)) as held:
        if held:
            about = {"embed_dim": work.weights.embed_dim, "provenance": provenance()}
            _extract(config, store, work.texts, work.load().text)
            store.write_manifest(_table(work.texts), work.texts.hashes, about)


def _extract(config: Config, store: FeatureStore, texts: ClassTexts, tower: TextTower) -> None:
    device = choose_device(config.device)
    tower = tower.to(device)
    for shard in store.missing():
        positions = store.positions(shard)
        chunks = torch.tensor(positions).split(config.resources.extract_batch)
        features = torch.cat([_embed(config, store, tower, [texts.texts[i] for i in chunk.tolist()], device) for chunk in chunks])
        check_finite(features.flatten(1), positions, lambda i: f"the text {texts.texts[i]!r}")
        notes = _notes([texts.texts[i] for i in positions], tower)
        about = {"images": len(features), "seconds": 0.0, "device": _name(device)} | ({"notes": notes} if notes else {})
        store.write_shard(shard, features.contiguous(), {}, about)
    log(f"features/{store.key}: {store.n} texts, on {_name(device)}")


def _notes(texts: Sequence[str], tower: TextTower) -> Notes:
    """What is to be told of texts."""
    full = f"as long as the {tower.context_length} tokens that the text tower reads, or longer: what is behind is not read"
    return count((repr(text), [full]) for text in texts if tower.fills(text))


def _embed(config: Config, store: FeatureStore, tower: TextTower, texts: list[str], device: torch.device) -> Tensor:
    made_of = store.ingredients
    tokens = torch.stack([tower.transform(text) for text in texts]).to(device)
    return compute_features(tower, tokens, made_of.kind, made_of.cut, made_of.dtype).cpu()


def _table(texts: ClassTexts) -> pd.DataFrame:
    return pd.DataFrame({"id": texts.texts, "source_split": "texts", "row": range(len(texts.texts))})


def _name(device: torch.device) -> str:
    return gpu_name(device) or "cpu"
