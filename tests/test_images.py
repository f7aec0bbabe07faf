"""Batches of images: in order, ahead by a bounded number, with bad images as the caller wants them."""

from __future__ import annotations

import hashlib
import io
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.dataset import BadImage, Dataset
from pipeline.data.images import AHEAD, ChangedImage, load_batches


def png(value: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 2), value).save(buffer, "PNG", **options)
    return buffer.getvalue()


class Photos(Dataset):
    """A data set that is a list of encoded images; None is one that is not there."""

    def __init__(self, encoded: list[bytes | None]) -> None:
        object.__setattr__(self, "files", encoded)
        object.__setattr__(self, "read", [])

    image_column = "photo"
    files: list[bytes | None]
    read: list[int]

    def where(self, i: int) -> str:
        return f"photo {i}"

    def image_bytes(self, i: int, column: str | None = None) -> bytes:
        self.read.append(i)
        found = self.files[i]
        if found is None:
            raise BadImage(f"photo {i} is not there")
        return found


def slow_transform(image: Image.Image) -> Tensor:
    time.sleep(random.random() / 500)
    return torch.from_numpy(np.array(image.convert("L"), dtype="float32"))[None].mean((1, 2), keepdim=True)


def pairs(n: int) -> Iterator[list[int]]:
    return ([i, i + 1] for i in range(0, n, 2))


def test_images_come_in_the_order_asked_for() -> None:
    batches = list(load_batches(Photos([png(i) for i in range(100)]), pairs(100), slow_transform, threads=8))
    assert [tuple(batch.positions) for batch in batches] == [tuple(pair) for pair in pairs(100)]
    assert torch.cat([batch.images for batch in batches]).flatten().tolist() == list(range(100))


def test_only_a_few_batches_are_prepared_ahead() -> None:
    photos = Photos([png(0)] * 100)
    batches = load_batches(photos, pairs(100), slow_transform, threads=8)
    next(batches)
    time.sleep(0.1)
    assert max(photos.read) < 2 * (AHEAD + 1)
    batches.close()


def test_threads_end_when_the_caller_stops_early() -> None:
    batches = load_batches(Photos([png(0)] * 100), pairs(100), slow_transform, threads=8)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_a_bad_image_is_zeros_and_a_message_for_who_wants_that_and_an_error_for_others() -> None:
    photos = Photos([png(7), None, png(8), png(9)[:-30], b""])
    (batch,) = load_batches(photos, [[0, 1, 2, 3]], slow_transform, 2, keep_bad=True)
    assert batch.images.flatten().tolist() == [7, 0, 8, 0]
    assert list(batch.bad) == [1, 3] and batch.bad[1] == "photo 1 is not there"
    assert batch.bad[3].startswith("photo 3: the image in column photo cannot be read: ")
    (all_bad,) = load_batches(photos, [[4, 1]], slow_transform, 2, keep_bad=True)
    assert all_bad.images.shape == (2, 1, 1, 1) and len(all_bad.bad) == 2
    with pytest.raises(BadImage, match="photo 1"):
        list(load_batches(photos, [[0], [1]], slow_transform, 2))


def test_an_image_that_is_not_the_recorded_one_is_an_error_and_no_bad_image() -> None:
    photos = Photos([png(1), None, png(2)])
    hashes = [hashlib.sha256(png(1)).hexdigest(), "", hashlib.sha256(png(3)).hexdigest()]
    (batch,) = load_batches(photos, [[0, 1]], slow_transform, 2, hashes, keep_bad=True)
    assert list(batch.bad) == [1]
    with pytest.raises(ChangedImage, match="photo 2"):
        list(load_batches(photos, [[2]], slow_transform, 2, hashes, keep_bad=True))
    with pytest.raises(ChangedImage, match="photo 1"):
        list(load_batches(photos, [[1]], slow_transform, 2, ["a", "b", "c"], keep_bad=True))


def test_the_orientation_in_exif_is_not_applied() -> None:
    exif = Image.Exif()
    exif[274] = 6  # turn by 90°
    shapes: list[tuple[int, int]] = []

    def transform(image: Image.Image) -> Tensor:
        shapes.append(image.size)
        return torch.zeros(1)

    list(load_batches(Photos([png(1, exif=exif)]), [[0]], transform, 1))
    assert shapes[-1] == (4, 2)
