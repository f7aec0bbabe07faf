"""One shard: a safetensors file whose header vouches for it. The file holds one tensor, `features` [n, …], and in its header the
store's key, the shard's number, its bad images, and a sha256 over all of that and the tensor's bytes. Reading a header loads no
torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.disk.reading import Damaged, reading

DTYPES = {"bf16": "BF16", "fp32": "F32"}
"""Our name of a number format → safetensors' name."""
SIZES = {"BF16": 2, "F32": 4}
MAX_HEADER = 64 << 20
CHUNK = 1 << 22


class DamagedShard(Damaged):
    """A shard's file is not what its store needs; the message says why."""


@dataclass(frozen=True)
class Shard:
    """What a shard's header says."""

    path: Path
    offset: int
    """Byte at which the tensor begins."""
    shape: tuple[int, ...]
    """[n, …]."""
    bad: dict[int, str]
    """Position of each image that could not be read → why; its features are zeros."""
    about: dict[str, Any]
    """What the sha256 covers beside the tensor's bytes."""
    sha256: str


def read_header(path: Path) -> Shard:
    """The header of a shard, checked against the size of the file. Raises FileNotFoundError, DamagedShard."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise DamagedShard(f"{path} does not begin as a safetensors file")
        text = file.read(length)
    with reading(path, "Its header is of no shard.", DamagedShard):
        return _parse_header(path, json.loads(text), 8 + length)


def _parse_header(path: Path, header: dict[str, Any], offset: int) -> Shard:
    entry, about = header["features"], json.loads(header["__metadata__"]["carabid"])
    sha256 = about.pop("sha256")
    if (entry["shape"], entry["dtype"]) != (about["shape"], about["dtype"]):
        raise DamagedShard(f"{path} contradicts itself on its shape or number format")
    n_bytes = math.prod(entry["shape"]) * SIZES[entry["dtype"]]
    if entry["data_offsets"] != [0, n_bytes] or path.stat().st_size != offset + n_bytes:
        raise DamagedShard(f"{path} has {path.stat().st_size} bytes instead of {offset + n_bytes}")
    bad = {int(position): error for position, error in about["bad"].items()}
    return Shard(path, offset, tuple(entry["shape"]), bad, about, sha256)


def sha256_of(shard: Shard) -> str:
    """The sha256 that the shard's bytes have now, to compare with the one in its header."""
    with shard.path.open("rb") as file:
        file.seek(shard.offset)
        return digest(shard.about, iter(lambda: file.read(CHUNK), b""))


def digest(about: dict[str, Any], parts: Iterable[bytes | memoryview]) -> str:
    """sha256 over what a header says of the tensor and the tensor's bytes, in parts."""
    sha256 = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for part in parts:
        sha256.update(part)
    return sha256.hexdigest()
