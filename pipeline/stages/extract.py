"""Extraction: every image through the frozen part of the backbone, once, into the feature store. Shards are independent: the job
tasks of an array share them out, a finished shard is skipped, a damaged one is made again, and whoever finds all of them done
writes index and manifest. While one shard is written the next one is computed."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone
from pipeline.config.identity import towers_of
from pipeline.config.trial import Config
from pipeline.data.dataset import Dataset
from pipeline.data.images import ChangedImage, DecodedImages, load_batches
from pipeline.data.notes import Notes, count, lines, together
from pipeline.device import choose_device, gpu_name, set_threads, to_device
from pipeline.disk.layout import store_dir
from pipeline.disk.lease import Lease
from pipeline.disk.provenance import provenance
from pipeline.errors import WorkError
from pipeline.features import hashes
from pipeline.features.archives import archived
from pipeline.features.forward import compile_for, compute_features
from pipeline.features.hashes import DataRecord, WeightsRecord
from pipeline.features.store import FeatureStore, is_complete, open_key, refuse_bad
from pipeline.progress import log
from pipeline.stages import extract_texts
from pipeline.stages.encoding import Encode, check_weights, clear, encoding
from pipeline.tasks import load_task


@dataclass(frozen=True)
class Work:
    """What there is to extract, and into which store."""

    config: Config
    dataset: Dataset
    data: DataRecord
    weights: WeightsRecord
    load: Callable[[], Backbone]
    """Loads the backbone when it is first needed."""
    store: FeatureStore
    device: torch.device


class Made(NamedTuple):
    """A shard in memory: features [n, …] on the CPU, the bad images among them, what is told of others, and how long it took."""

    shard: int
    features: Tensor
    bad: dict[int, str]
    notes: Notes
    seconds: float


def run(config: Config, rank: int = 0, n_ranks: int = 1) -> FeatureStore | None:
    """Make the shards of rank `rank` of `n_ranks`, this job task's; the store if it is complete then, else None. Raises UserError
    for an image that cannot be read where data.on_bad_image is error."""
    work = prepare(config)
    extract(work, range(rank, work.store.n_shards, n_ranks))
    if rank == 0 and "text" in towers_of(config):
        extract_texts.run(config)
    return finish(work)


def ensure(config: Config) -> FeatureStore:
    """The complete store. If it is not there this process extracts it, or waits for the one that does; so with that of texts."""
    if "text" in towers_of(config):
        extract_texts.ensure(config)
    key = hashes.known_feature_key(config)
    if key is None or not is_complete(config, key):
        work = prepare(config)
        key = work.store.key
        lease = Lease(work.store.dir.lease, config.resources.lease_seconds)
        while not is_complete(config, key):
            with lease.hold(partial(is_complete, config, key)) as held:
                if held and extract(work, range(work.store.n_shards), held.still_mine):
                    finish(work)
    return open_key(config, key)


def prepare(config: Config) -> Work:
    """Load the table, bring the records up to date, and find out which store to fill."""
    device = choose_device(config.device)
    set_threads()
    dataset: Dataset = archived(config, load_task(config.task).load(config.data))
    load = cache(partial(load_backbone, config.backbone))
    data, weights = hashes.data_record(config, dataset), hashes.weights_record(config, load)
    made_of = hashes.ingredients(config, data, weights)
    store = FeatureStore(store_dir(config, made_of.key()), made_of, data.n)
    return Work(config, dataset, data, weights, load, store, device)


def extract(work: Work, shards: Iterable[int], go_on: Callable[[], bool] = lambda: True) -> bool:
    """Make those of `shards` that are missing or damaged; false if it stopped because `go_on` said no."""
    todo = clear(work.store, shards)
    if not todo:
        return True
    check_weights(work.config, work.load, work.weights)
    told: list[Notes] = []
    with ThreadPoolExecutor(1) as writer, closing(_compute(work, todo)) as computed:
        writing: Future[None] | None = None
        for made in computed:
            if writing:
                writing.result()
            if not go_on():
                return False
            writing = writer.submit(_write, work, made)
            told.append(made.notes)
        if writing:
            writing.result()
    for line in lines(together(told)):
        log(f"features/{work.store.key}: {line}")
    return True


def finish(work: Work) -> FeatureStore | None:
    """Write index and manifest if all shards are there, whoever made them; the complete store, or None."""
    if missing := work.store.missing():
        log(f"features/{work.store.key}: {work.store.n_shards - len(missing)} of {work.store.n_shards} shards are done")
        return None
    if not is_complete(work.config, work.store.key):
        about = {"embed_dim": work.weights.embed_dim, "provenance": provenance()}
        work.store.write_manifest(work.dataset.table, work.data.images, about)
    return open_key(work.config, work.store.key)


# ---------------------------------------------------------------- the work
def _compute(work: Work, todo: Sequence[int]) -> Generator[Made]:
    """Each shard's features, in order; shards that another job has made meanwhile are left out."""
    resources, made_of = work.config.resources, work.store.ingredients
    backbone = work.load().to(work.device)
    if work.config.extract.compile:
        compile_for(backbone, made_of.kind, work.device)

    def forward(images: Tensor) -> Tensor:
        return compute_features(backbone, to_device(images, work.device), made_of.kind, made_of.cut, made_of.dtype)

    chunks = _chunks(work.store, todo, resources.extract_batch)
    dataset = work.dataset.seen_at(backbone.enough(work.config.extract.decode))
    batches = load_batches(dataset, chunks, backbone.pixels, resources.decode_threads, work.data.images, keep_bad=True)
    total = sum(len(work.store.positions(shard)) for shard in todo)
    what, began = f"features/{work.store.key}", time.monotonic()
    with closing(batches), encoding(what, total, work.device, forward, work.dataset.where) as encode:
        for shard, group in itertools.groupby(_known(work, batches), lambda b: b.positions[0] // made_of.shard_size):
            features, bad, notes = _compute_shard(work, shard, group, encode)
            before, began = began, time.monotonic()
            yield Made(shard, features, bad, notes, began - before)


def _chunks(store: FeatureStore, todo: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Positions of one forward pass each; always cut at the same places, so that a shard comes out the same."""
    for shard in todo:
        if store.state(shard) != "done":
            positions = store.positions(shard)
            yield from (positions[i : i + size] for i in range(0, len(positions), size))


def _known(work: Work, batches: Iterator[DecodedImages]) -> Iterator[DecodedImages]:
    """The batches; an image that is not the one on record makes the record void."""
    try:
        yield from batches
    except ChangedImage as error:
        hashes.forget_data(work.config, work.data)
        raise WorkError(f"{error} Run this again: the data are then hashed anew.") from error


def _compute_shard(
    work: Work, shard: int, batches: Iterable[DecodedImages], encode: Encode
) -> tuple[Tensor, dict[int, str], Notes]:
    """One shard's features [n, …] (zeros for bad images), its bad images, and what is told of others. Raises UserError where the
    policy says so."""
    parts: list[Tensor] = []
    bad: dict[int, str] = {}
    told: dict[int, tuple[str, ...]] = {}
    for batch, computed in encode(batches):
        parts.append(computed)
        bad |= batch.bad
        told |= batch.notes
    if work.config.data.on_bad_image == "error":
        refuse_bad(bad, f"the same shard of {len(work.store.positions(shard))} images")
    features = torch.cat(parts)
    features[[position - work.store.positions(shard)[0] for position in bad]] = 0
    return features, bad, count((work.dataset.where(i), notes) for i, notes in told.items())


def _write(work: Work, made: Made) -> None:
    about: dict[str, Any] = {"images": len(made.features), "seconds": round(made.seconds, 3)}
    about |= {"device": gpu_name(work.device) or "cpu", "host": socket.gethostname()}
    about |= {"notes": made.notes} if made.notes else {}
    work.store.write_shard(made.shard, made.features, made.bad, about)
