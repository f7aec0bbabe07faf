"""Banks: the features of some images, held where they fit, handed out in batches. The same values from everywhere. `device`: one
tensor on the device. `host`: one tensor in host memory, pinned if the device is a GPU, each row copied to the device on its own,
without waiting. `mmap`: the shards' files themselves, for what fits no memory. `auto` takes the first of these that fits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pipeline.amounts import format_bytes
from pipeline.errors import WorkError
from pipeline.features.memory import SHARE, free_host_memory
from pipeline.features.store import READERS, FeatureStore

Residence = Literal["device", "host", "mmap"]
# numpy has no bfloat16: its bits travel as integers.
FORMATS = {"bf16": (torch.bfloat16, torch.int16, np.int16), "fp32": (torch.float32, torch.float32, np.float32)}
CHUNK_BYTES = 64 << 20


class Bank(ABC):
    """Features of n images, numbered 0 … n − 1 in the order of the positions the bank was made of."""

    residence: Residence
    device: torch.device

    @abstractmethod
    def __len__(self) -> int:
        """n."""

    @abstractmethod
    def gather(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        """Features of the images `indices`, on the device, in the stored number format. Indices on the device suit a bank on the
        device; for the others indices on the CPU spare a synchronisation."""


def make_bank(
    store: FeatureStore,
    positions: Sequence[int] | NDArray[np.int64],
    device: torch.device,
    residence: Literal["auto", "device", "host", "mmap"] = "auto",
    processes: int = 1,
) -> Bank:
    """A bank of the images at these positions of a complete store, in each of so many processes on this machine.

    Raises ValueError for positions that are not in the store or whose image could not be read (their features are zeros),
    WorkError if the features do not fit the memory that `residence` asks for."""
    chosen = np.asarray(positions, dtype=np.int64)
    _check(store, chosen)
    rows = _Rows(store, chosen)
    where = choose_residence(rows.n_bytes, device, processes) if residence == "auto" else residence
    return _MappedBank(rows, device) if where == "mmap" else TensorBank(_load(rows, device, where), device, where)


def choose_residence(n_bytes: int, device: torch.device, processes: int = 1) -> Residence:
    """The first of device, host and mmap where so many bytes fit; on the host those of each of so many processes."""
    on_gpu = device.type == "cuda"
    if n_bytes <= SHARE * (torch.cuda.mem_get_info(device)[0] if on_gpu else free_host_memory() // processes):
        return "device"
    # torch rounds a pinned block up to a power of two.
    if on_gpu and 1 << (n_bytes - 1).bit_length() <= SHARE * free_host_memory() // processes:
        return "host"
    return "mmap"


class TensorBank(Bank):
    """One tensor, on the device or in host memory."""

    def __init__(self, features: Float[Tensor, "images ..."], device: torch.device, residence: Residence) -> None:
        self.features, self.device, self.residence = features, device, residence

    def __len__(self) -> int:
        return len(self.features)

    def gather(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        if self.features.device.type == self.device.type:
            return self.features.index_select(0, indices.to(self.features.device))
        # Rows of tokens are large: the GPU fetches each from pinned memory, and the CPU copies nothing.
        out = torch.empty((len(indices), *self.features.shape[1:]), dtype=self.features.dtype, device=self.device)
        for row, index in zip(out, indices.tolist(), strict=True):
            row.copy_(self.features[index], non_blocking=True)
        return out


class _MappedBank(Bank):
    """The shards' files, read as they are needed; the system keeps in memory what it has room for."""

    residence = "mmap"

    def __init__(self, rows: _Rows, device: torch.device) -> None:
        self._rows, self.device = rows, device

    def __len__(self) -> int:
        return len(self._rows.positions)

    def gather(self, indices: Int[Tensor, " batch"]) -> Float[Tensor, "batch ..."]:
        batch = self._rows.empty(len(indices), pin=self.device.type == "cuda")
        self._rows.read(indices.cpu().numpy(), batch)
        # torch's cache of pinned memory reuses `batch` only after this copy has ended.
        return batch.to(self.device, non_blocking=True)


class _Rows:
    """Rows of a store's shards, by number in `positions`, straight from the files."""

    def __init__(self, store: FeatureStore, positions: NDArray[np.int64]) -> None:
        self.positions = positions
        self.dtype, self._bits, kind = FORMATS[store.ingredients.dtype]
        self.shape = store.shape
        self._shard_size = store.ingredients.shard_size
        self._maps = [np.memmap(s.path, kind, "r", s.offset, s.shape) for s in store.shards]

    @property
    def n_bytes(self) -> int:
        """Size of all rows."""
        return int(np.prod(self.shape)) * self.dtype.itemsize * len(self.positions)

    def empty(self, n: int, device: torch.device | str = "cpu", pin: bool = False) -> Tensor:
        """Room for n rows."""
        return torch.empty((n, *self.shape), dtype=self.dtype, device=device, pin_memory=pin)

    def read(self, indices: NDArray[np.int64], out: Tensor) -> None:
        """Copy rows `indices` [B] into `out` [B, …] on the CPU."""
        target = out.view(self._bits).numpy()
        for slot, position in enumerate(self.positions[indices].tolist()):
            shard, offset = divmod(position, self._shard_size)
            target[slot] = self._maps[shard][offset]


def _load(rows: _Rows, device: torch.device, residence: Residence) -> Tensor:
    """All rows as one tensor [n, …], read in chunks by several threads."""
    features = _room(rows, device, residence)
    per_chunk = max(1, CHUNK_BYTES * len(rows.positions) // max(1, rows.n_bytes))

    def fill(begin: int) -> None:
        part = features[begin : begin + per_chunk]
        buffer = part if part.device.type == "cpu" else rows.empty(len(part))
        rows.read(np.arange(begin, begin + len(part)), buffer)
        if buffer is not part:
            part.copy_(buffer)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(fill, range(0, len(features), per_chunk)))
    return features


def _room(rows: _Rows, device: torch.device, residence: Residence) -> Tensor:
    try:
        is_here = residence == "device"
        return rows.empty(len(rows.positions), device if is_here else "cpu", not is_here and device.type == "cuda")
    except RuntimeError as error:  # torch's out-of-memory errors, of the GPU and of the host
        raise WorkError(
            f"The features ({format_bytes(rows.n_bytes)}) do not fit with resources.residence={residence}: "
            f"{str(error).splitlines()[0]} Set resources.residence=mmap, or auto."
        ) from error


def _check(store: FeatureStore, positions: NDArray[np.int64]) -> None:
    if len(positions) and not 0 <= positions.min() <= positions.max() < store.n:
        raise ValueError(f"positions {positions.min()} to {positions.max()} are not all in a store of {store.n} images")
    if bad := sorted(set(store.bad).intersection(positions.tolist())):
        raise ValueError(f"position {bad[0]} has no features, its image could not be read; leave such positions out")
