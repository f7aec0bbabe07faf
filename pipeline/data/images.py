"""Images as batches of network input, decoded and transformed by threads a few batches ahead of whoever consumes them.

Threads, not processes: Pillow releases the GIL while it decodes and resizes. For a caller that wants to know of all bad
images, a bad one is part of its batch (zeros and a message) instead of an exception.

An EXIF orientation is not applied: a model sees pixels as they are stored, as in the challenge, which hands models
images as Pillow opens them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from pipeline.data.dataset import BadImage, Dataset, content_of
from pipeline.errors import WorkError

AHEAD = 3
"""Batches in preparation."""


@dataclass(frozen=True)
class DecodedImages:
    """Some images of a data set, ready for the network."""

    positions: Sequence[int]
    """Rows of `Dataset.table`."""
    images: Float[Tensor, "batch ..."]
    """fp32 on the CPU, as the backbone's transform gives them (mostly [B, 3, H, W]); zeros for a bad image."""
    bad: dict[int, str]
    """Position of each image that could not be read → why, naming file, row and column."""


class ChangedImage(WorkError):
    """An image is not the one that its record describes."""


def load_batches(
    dataset: Dataset,
    chunks: Iterable[Sequence[int]],
    transform: Callable[[Image.Image], Tensor],
    threads: int,
    hashes: Sequence[str] | None = None,
    keep_bad: bool = False,
) -> Generator[DecodedImages]:
    """One batch per chunk of positions, in order; chunks are asked for as they are needed. `hashes` [n] are what `content_of` the
    images should be ("" for one that is not there). Raises ChangedImage where they differ, and BadImage for an image that cannot
    be read unless `keep_bad` is set."""

    def load(i: int) -> Tensor:
        return transform(_read(dataset, i, None if hashes is None else hashes[i]))

    return prepare_batches(load, chunks, blank_for(transform), threads, keep_bad)


def blank_for(transform: Callable[[Image.Image], Tensor]) -> Tensor:
    """Zeros of the shape that a transform gives (mostly [3, H, W]): what stands in a batch for a bad image."""
    return torch.zeros_like(transform(Image.new("RGB", (64, 64))))


def prepare_batches(
    load: Callable[[int], Tensor], chunks: Iterable[Sequence[int]], blank: Tensor, threads: int, keep_bad: bool
) -> Generator[DecodedImages]:
    """`load_batches` of whatever `load` makes of a position, shaped as `blank`; threads call it, and it raises BadImage."""
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[tuple[Sequence[int], list[Future[Tensor]]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((chunk, [pool.submit(load, i) for i in chunk]))
                if len(waiting) > AHEAD:
                    yield _batch(*waiting.popleft(), blank, keep_bad)
            while waiting:
                yield _batch(*waiting.popleft(), blank, keep_bad)
        finally:
            pool.shutdown(cancel_futures=True)


def _read(dataset: Dataset, i: int, sha256: str | None) -> Image.Image:
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


def _batch(positions: Sequence[int], futures: Sequence[Future[Tensor]], blank: Tensor, keep_bad: bool) -> DecodedImages:
    images, bad = [], dict[int, str]()
    for i, future in zip(positions, futures, strict=True):
        try:
            images.append(future.result())
        except BadImage as error:
            if not keep_bad:
                raise
            images.append(blank)
            bad[i] = str(error)
    return DecodedImages(positions, torch.stack(images), bad)
