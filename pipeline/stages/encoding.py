"""What extraction of images, of texts, and `embed` do alike: damaged shards out of the way, weights as they are on record, images
through the frozen part of a backbone batch by batch."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.backbones.base import Backbone
from pipeline.config.trial import Config
from pipeline.data.images import DecodedImages
from pipeline.device import gpu_name
from pipeline.errors import WorkError
from pipeline.features.forward import check_finite
from pipeline.features.hashes import WeightsRecord, weights_record
from pipeline.features.store import FeatureStore
from pipeline.progress import log, progress

Encode = Callable[[Iterable[DecodedImages]], Iterator[tuple[DecodedImages, Tensor]]]
"""Each of some batches with its features."""


def clear(store: FeatureStore, shards: Iterable[int]) -> list[int]:
    """Which of `shards` to make, with damaged ones out of the way; every byte of the others has been checked."""
    store.dir.path.mkdir(parents=True, exist_ok=True)
    store.sweep()
    todo = []
    for shard in shards:
        state = store.state(shard, thorough=True)
        if state == "damaged":
            log(f"{store.path(shard)} is damaged: it is made again")
            store.discard(shard)
        if state != "done":
            todo.append(shard)
    return todo


def check_weights(config: Config, load: Callable[[], Backbone], recorded: WeightsRecord) -> None:
    """WorkError unless the loaded weights are those that what is there was made with; records of them can be out of date."""
    now = weights_record(config, load, again=True)
    if (now.weights, now.architecture, now.transform) != (recorded.weights, recorded.architecture, recorded.transform):
        raise WorkError(f"The weights of {config.backbone.display_name} are not those on record. Run this again.")


def _computed(
    batches: Iterable[DecodedImages], forward: Callable[[Tensor], Tensor], device: torch.device
) -> Iterator[tuple[DecodedImages, Tensor]]:
    """Each batch with what `forward` makes of its images. A GPU is given the next one before who asks waits for the last: it does
    not stand still while that is fetched and the next is put together."""
    ahead = 1 if device.type == "cuda" else 0
    waiting: deque[tuple[DecodedImages, Tensor]] = deque()
    for batch in batches:
        waiting.append((batch, forward(batch.images)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


@contextmanager
def encoding(
    what: str, total: int, device: torch.device, forward: Callable[[Tensor], Tensor], where: Callable[[int], str]
) -> Iterator[Encode]:
    """What the block is given makes the features [B, …], on the CPU, of batches; how far that is of `total` images is shown, and
    at the end how fast it was. It raises WorkError where features are not finite; `where` names the image at a position."""
    n, began = 0, time.monotonic()
    with progress(what, total) as advance:

        def encode(batches: Iterable[DecodedImages]) -> Iterator[tuple[DecodedImages, Tensor]]:
            nonlocal n
            for batch, features in _computed(batches, forward, device):
                check_finite(features, batch.positions, where)
                n += len(batch.positions)
                advance(len(batch.positions))
                yield batch, features.cpu()

        yield encode
    if n:
        log(f"{what}: {n} images, {n / (time.monotonic() - began):.1f} images/s on {gpu_name(device) or 'the CPU'}")
