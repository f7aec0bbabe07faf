"""Images as batches of network input, decoded and transformed by threads a few batches ahead of whoever consumes them.

Threads, not processes: decoders and resizing release the GIL. Each has one decoded image at a time, however large:
what waits in batches is transformed already. For a caller that wants to know of all bad images, a bad one is part of its batch
(zeros and a message) instead of an exception.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from pipeline.data.dataset import BadImage, Dataset, content_of
from pipeline.data.decoding import Decoded, Picture
from pipeline.errors import WorkError

AHEAD = 3
"""Batches in preparation."""


@dataclass(frozen=True)
class Loaded:
    """One image, ready for the network."""

    input: Shaped[Tensor, ...]
    size: tuple[int, int]
    """Width and height as stored."""
    notes: tuple[str, ...]
    """What is to be told of it."""


@dataclass(frozen=True)
class DecodedImages:
    """Some images of a data set, ready for the network."""

    positions: Sequence[int]
    """Rows of `Dataset.table`."""
    images: Shaped[Tensor, "batch ..."]
    """On the CPU, as `Backbone.pixels` gives them, mostly [B, 3, H, W] in 8 bits; zeros for a bad image."""
    bad: dict[int, str]
    """Position of each image that could not be read → why, naming file, row and column."""
    sizes: dict[int, tuple[int, int]]
    """Position of each of the others → width and height as stored."""
    notes: dict[int, tuple[str, ...]]
    """Position of each image of which there is something to be told → what."""


class ChangedImage(WorkError):
    """An image is not the one that its record describes."""


def load_batches(
    dataset: Dataset,
    chunks: Iterable[Sequence[int]],
    prepare: Callable[[Picture], Tensor],
    threads: int,
    hashes: Sequence[str] | None = None,
    keep_bad: bool = False,
) -> Generator[DecodedImages]:
    """One batch per chunk of positions, in order; chunks are asked for as they are needed. `hashes` [n] are what `content_of` the
    images should be ("" for one that is not there). Raises ChangedImage where they differ, and BadImage for an image that cannot
    be read unless `keep_bad` is set."""

    def load(i: int) -> Loaded:
        decoded = _read(dataset, i, None if hashes is None else hashes[i])
        return Loaded(prepare(decoded.picture), decoded.size, decoded.notes)

    return prepare_batches(load, chunks, blank_for(prepare), threads, keep_bad)


def blank_for(prepare: Callable[[Picture], Tensor]) -> Tensor:
    """Zeros of the shape that `Backbone.pixels` gives (mostly [3, H, W]): what stands in a batch for a bad image."""
    return torch.zeros_like(prepare(Image.new("RGB", (64, 64))))


def prepare_batches(
    load: Callable[[int], Loaded], chunks: Iterable[Sequence[int]], blank: Tensor, threads: int, keep_bad: bool
) -> Generator[DecodedImages]:
    """`load_batches` of whatever `load` makes of a position, shaped as `blank`; threads call it, and it raises BadImage."""
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[Sequence[int], list[Future[Loaded]]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((chunk, [pool.submit(load, i) for i in chunk]))
                if len(waiting) > AHEAD:
                    yield _batch(*waiting.popleft(), blank, keep_bad)
            while waiting:
                yield _batch(*waiting.popleft(), blank, keep_bad)
        finally:
            pool.shutdown(cancel_futures=True)


def _read(dataset: Dataset, i: int, sha256: str | None) -> Decoded:
    """Image i, decoded and corrected. Raises BadImage, or ChangedImage if its bytes are not those expected."""
    try:
        encoded = dataset.encoded(i)
    except BadImage as error:
        if sha256:
            raise ChangedImage(f"{error} It could be read when the data were hashed.") from error
        raise
    if sha256 is not None and content_of(encoded) != sha256:
        what = "the image is" if len(dataset.image_columns) == 1 else "image, colour card or scale bar is"
        raise ChangedImage(f"{dataset.where(i)}: {what} not what was there when the data were hashed.")
    return dataset.decode(i, encoded)


def _batch(positions: Sequence[int], futures: Sequence[Future[Loaded]], blank: Tensor, keep_bad: bool) -> DecodedImages:
    loaded, bad = dict[int, Loaded](), dict[int, str]()
    for i, future in zip(positions, futures, strict=True):
        try:
            loaded[i] = future.result()
        except BadImage as error:
            if not keep_bad:
                raise
            bad[i] = str(error)
    images = torch.stack([loaded[i].input if i in loaded else blank for i in positions])
    sizes = {i: each.size for i, each in loaded.items()}
    return DecodedImages(positions, images, bad, sizes, {i: each.notes for i, each in loaded.items() if each.notes})
