"""Images that are all but the same: saved again at another quality or size, or taken twice. Loads no torch.

Photographs of one kind share ground and framing, and a hash of whole images takes half of them for one another. So each is shrunk
and the mean of all taken from it: what is left is what tells it apart. Of that a perceptual hash (the signs of the lowest
frequencies of its cosine transform, pHash: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions")
finds candidates, and how far they are apart decides. Mirrored, turned and cropped copies are not found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8, UInt64
from PIL import Image

SIDE = 16
"""Pixels of a shrunk image."""
LOW = 8
"""Frequencies in each direction that are hashed: 64 bits."""
BITS = 6
"""In which the hashes of candidates differ at most; those of near-duplicates were seen to differ in 5."""
NEAR = 0.015
"""How far near-duplicates are apart at most: squared difference by mean square. Photographs of some hundred pixels that are saved
again as JPEG at a quality of 60, or at 0.8 to 1.5 times their size, come to 0.015 at most, larger ones at a quality of 40 and
half their size to 0.006; different specimens of a species on one ground to 0.06 at least, their patterns as masks to 0.017."""
ROUNDING = 1.0
"""Levels (of 256) that are nothing, squared."""
BLOCK = 1 << 24
"""Pairs of hashes that are compared at once."""
CHUNK = 1 << 13
"""Pairs of images that are compared at once."""
MOST = 100_000
"""Pairs after which no more are looked for."""

Products = Float32[np.ndarray, " pairs"]
Small = UInt8[np.ndarray, "n side side 3"]


class NearDuplicates(NamedTuple):
    """Pairs of images."""

    pairs: Int64[np.ndarray, "pairs 2"]
    """Places of the two, the lower one first."""
    apart: Float32[np.ndarray, " pairs"]
    """How far they are apart, as NEAR has it."""
    is_all: bool
    """False: there may be more than MOST."""


def shrunk(image: Image.Image) -> UInt8[np.ndarray, "side side 3"]:
    """An RGB image of SIDE × SIDE. (Of Pillow's filters this one is disturbed least by another size of the image.)"""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def near_duplicates(small: Small) -> NearDuplicates:
    """Those among n shrunk images, without looking at all n² pairs one by one."""
    found, n = [(np.zeros((0, 2), "int64"), np.zeros(0, "float32"))], 0
    own = small - small.mean(axis=0, dtype="float32") if len(small) else small.astype("float32")
    for pairs in _candidates(_hashes(own)):
        apart = _apart(own, pairs)
        found.append((pairs[apart <= NEAR], apart[apart <= NEAR]))
        n += len(found[-1][0])
        if n > MOST:
            break
    all_pairs, distances = zip(*found, strict=True)
    return NearDuplicates(np.concatenate(all_pairs), np.concatenate(distances), n <= MOST)


def _hashes(own: Float32[np.ndarray, "n side side 3"]) -> UInt64[np.ndarray, " n"]:
    """The signs of the lowest frequencies, 64 bits an image."""
    from scipy.fft import dctn

    low = dctn(own.mean(axis=3), axes=(1, 2))[:, :LOW, :LOW].reshape(len(own), LOW * LOW)
    return np.packbits(low > 0, axis=1).view("uint64").ravel()


def _candidates(hashes: UInt64[np.ndarray, " n"]) -> Iterator[Int64[np.ndarray, "pairs 2"]]:
    """Pairs whose hashes differ in few bits, some at a time."""
    n = len(hashes)
    rows = max(1, BLOCK // max(n, 1))
    for start in range(0, n, rows):
        of, later = hashes[start : start + rows], hashes[start:]
        one, other = np.nonzero(np.bitwise_count(of[:, None] ^ later[None]) <= BITS)
        pairs = np.stack([one, other], axis=1)[other > one] + start
        yield from (pairs[at : at + CHUNK] for at in range(0, len(pairs), CHUNK))


def _apart(own: Float32[np.ndarray, "n side side 3"], pairs: Int64[np.ndarray, "pairs 2"]) -> Float32[np.ndarray, " pairs"]:
    """How far they are apart as they are, or without their mean colours, which come of the ground, where that is more."""
    one, other = (own[pairs[:, place]].reshape(len(pairs), SIDE * SIDE, 3) for place in (0, 1))
    alike = [np.einsum("nvc,nvc->n", *each) / one[0].size for each in ((one, one), (other, other), (one, other))]
    colours = [each.mean(axis=1) for each in (one, other)]
    ground = [(colours[a] * colours[b]).mean(axis=1) for a, b in ((0, 0), (1, 1), (0, 1))]
    return np.maximum(_ratio(*alike), _ratio(*(a - b for a, b in zip(alike, ground, strict=True))))


def _ratio(one: Products, other: Products, both: Products) -> Products:
    """From mean products of each of two images with itself, and of both: their squared difference by their mean square."""
    return (one + other - 2 * both) / ((one + other) / 2 + ROUNDING)
