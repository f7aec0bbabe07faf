"""The files of a feature store: shards that vouch for themselves, a Parquet index, and a manifest. Shards (`shard.py`) are
written whole under a temporary name and renamed, so two jobs that write the same one cannot harm each other: one of them wins,
and what stands there is always of one piece. The small JSON file beside a shard says where and how fast it was made, for people
and the manifest; nothing depends on it. The manifest is written last: it is the record that the store is complete."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.config.trial import Config
from pipeline.data.notes import lines, together
from pipeline.disk.layout import StoreDir, store_dir
from pipeline.disk.reading import reading
from pipeline.disk.writing import atomic_path, read_json, read_record, write_json, write_tensors
from pipeline.errors import MissingFeatures, UserError
from pipeline.features.key import FORMAT, Ingredients
from pipeline.features.shard import DTYPES, DamagedShard, Shard, digest, read_header, sha256_of

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

State = Literal["missing", "damaged", "done"]
DAY = 86_400
READERS = 4
"""Threads that read shards: they wait for the disk most of the time."""


@dataclass(frozen=True)
class FeatureStore:
    """One store, features/<key>/, complete or on the way: `n` images in shards of `ingredients.shard_size`. Position i of the
    store is row i of `Dataset.table`."""

    dir: StoreDir
    ingredients: Ingredients
    n: int

    @property
    def key(self) -> str:
        return self.ingredients.key()

    @property
    def n_shards(self) -> int:
        return math.ceil(self.n / self.ingredients.shard_size)

    def positions(self, shard: int) -> range:
        """Positions of the images in a shard."""
        begin = shard * self.ingredients.shard_size
        return range(begin, min(begin + self.ingredients.shard_size, self.n))

    def path(self, shard: int) -> Path:
        return self.dir.shard(shard, self.n_shards)

    # ------------------------------------------------------------ reading
    def shard(self, number: int) -> Shard:
        """A shard's header. Raises FileNotFoundError, or DamagedShard if size, header or shape are wrong."""
        shard = read_header(self.path(number))
        wanted = {"key": self.key, "shard": number, "dtype": DTYPES[self.ingredients.dtype]}
        found = {name: shard.about.get(name) for name in wanted}
        if found != wanted:
            raise DamagedShard(f"{shard.path} belongs to another store: {found} instead of {wanted}")
        if shard.shape[0] != len(self.positions(number)):
            raise DamagedShard(f"{shard.path} holds {shard.shape[0]} images instead of {len(self.positions(number))}")
        return shard

    def state(self, number: int, thorough: bool = False) -> State:
        """Whether a shard is there and right: by size, header and shape; thoroughly, by every byte."""
        try:
            shard = self.shard(number)
            return "damaged" if thorough and sha256_of(shard) != shard.sha256 else "done"
        except FileNotFoundError:
            return "missing"
        except DamagedShard:
            return "damaged"

    def missing(self) -> list[int]:
        """Shards that are not there or damaged (by the quick check)."""
        return [number for number in range(self.n_shards) if self.state(number) != "done"]

    def verify(self) -> None:
        """Every byte of every shard against its sha256: what a disk or a copy has changed must not be learned from. Raises
        MissingFeatures naming the first damaged shard. Reads the whole store, which warms the system's cache."""
        self.verify_shards(range(self.n_shards))

    def verify_shards(self, numbers: Sequence[int]) -> None:
        """`verify` of some shards."""
        for number, state in self.unsound(numbers).items():
            raise MissingFeatures(
                f"{self.path(number)} is {state}: run `carabid extract` with this configuration, which makes it again."
            )

    def unsound(self, numbers: Sequence[int]) -> dict[int, State]:
        """Those of these shards that are missing or damaged; every byte of them is read."""
        with ThreadPoolExecutor(READERS) as pool:  # hashlib lets go of the GIL
            states = pool.map(partial(self.state, thorough=True), numbers)
            return {number: state for number, state in zip(numbers, states, strict=True) if state != "done"}

    def state_of_files(self) -> tuple[tuple[int, int, int], ...]:
        """Number, size and time of every shard's file that is there: what is the same was not written anew."""
        paths = [self.path(number) for number in range(self.n_shards)]
        return tuple(((stat := path.stat()).st_ino, stat.st_size, stat.st_mtime_ns) for path in paths if path.exists())

    @cached_property
    def shards(self) -> list[Shard]:
        """All headers, in order."""
        return [self.shard(number) for number in range(self.n_shards)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's features: [E], [P, D], [T, D], or that of a network's input, mostly [3, H, W]."""
        return self.shards[0].shape[1:]

    @property
    def bad(self) -> dict[int, str]:
        """Position of each image that could not be read → the message that says where it lies and why."""
        return {position: error for shard in self.shards for position, error in shard.bad.items()}

    def images(self) -> list[str]:
        """`content_of` every image as the index tells it; "" for one that was not there. Raises MissingFeatures if it is
        damaged."""
        import pandas as pd

        with reading(self.dir.index, "Remove it and run `carabid extract`.", MissingFeatures):
            return [str(each) for each in pd.read_parquet(self.dir.index, columns=["image_sha256"])["image_sha256"]]

    @property
    def notes(self) -> list[str]:
        """What was told of images as they were decoded, or of texts, a line for each kind."""
        return lines(together([read_record(self.dir.manifest).get("notes", {})]), self.ingredients.tower)

    # ------------------------------------------------------------ writing
    def write_shard(self, number: int, features: Tensor, bad: dict[int, str], made: dict[str, Any]) -> None:
        """Write features [n, …] (CPU, contiguous, in the store's dtype); `made` says how, for the JSON beside it."""
        from torch import uint8

        about = {"key": self.key, "shard": number, "dtype": DTYPES[self.ingredients.dtype], "shape": list(features.shape)}
        about["bad"] = {str(position): error for position, error in bad.items()}  # JSON knows no other keys
        sha256 = digest(about, [features.view(uint8).numpy().data])
        # One entry only: safetensors writes several in a random order, and equal shards should be equal files.
        metadata = {"carabid": json.dumps({**about, "sha256": sha256})}
        write_tensors(self.path(number), {"features": features}, metadata)
        write_json(self.dir.shard_record(number, self.n_shards), made)

    def discard(self, number: int) -> None:
        """Remove a damaged shard; the manifest goes first, because the store is no longer complete."""
        self.dir.manifest.unlink(missing_ok=True)
        self.path(number).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove temporary files that killed jobs have left: those so old that nobody can be writing them."""
        for path in self.dir.path.glob(".*.tmp"):
            if path.stat().st_mtime < time.time() - DAY:
                path.unlink(missing_ok=True)

    def write_manifest(self, table: pd.DataFrame, images: list[str], about: dict[str, Any]) -> None:
        """Write index and manifest of a store whose shards are all there. `table` has columns id, source_split, row [n]; `images`
        are their sha256 [n]; `about` goes into the manifest."""
        self._write_index(table, images)
        bad = [{"position": i, "id": table["id"].iat[i], "error": error} for i, error in self.bad.items()]
        manifest = {"key": self.key, "ingredients": self.ingredients.as_dict(), "n": self.n, "n_shards": self.n_shards}
        manifest |= {"shape": list(self.shape), "n_bad": len(bad), "bad": bad}
        write_json(self.dir.manifest, manifest | self._made() | about)

    def _write_index(self, table: pd.DataFrame, images: list[str]) -> None:
        index = table[["id", "source_split", "row"]].reset_index(drop=True)
        index.insert(0, "position", range(self.n))
        index["image_sha256"] = images
        index["shard"], index["offset"] = divmod(index["position"], self.ingredients.shard_size)
        bad = self.bad
        index["ok"] = [position not in bad for position in range(self.n)]
        index["error"] = [bad.get(position) for position in range(self.n)]
        with atomic_path(self.dir.index) as temporary:
            index.to_parquet(temporary, index=False)

    def _made(self) -> dict[str, Any]:
        """Images a second of one task, over all shards, the devices that computed them, and what was told of images."""
        records = [self.dir.shard_record(number, self.n_shards) for number in range(self.n_shards)]
        made = [read_json(path) for path in records if path.exists()]
        seconds, notes = sum(record["seconds"] for record in made), together(record.get("notes", {}) for record in made)
        return {
            "images_per_second": round(sum(record["images"] for record in made) / seconds, 1) if seconds else None,
            "devices": sorted({record["device"] for record in made}),
            **({"notes": notes} if notes else {}),
        }


# ---------------------------------------------------------------- opening
def open_key(config: Config, key: str) -> FeatureStore:
    """The complete store of this key, checked by size, header and shape of every shard. Raises MissingFeatures if it is not
    complete, UserError if images in it could not be read and the policy forbids that."""
    store = load_store(store_dir(config, key))
    if incomplete := store.missing():
        others = f" (so are {len(incomplete) - 1} more shards)" if len(incomplete) > 1 else ""
        raise MissingFeatures(
            f"{store.path(incomplete[0])} is missing or damaged {others}: run "
            "`carabid extract` with this configuration, which makes what is missing."
        )
    if config.data.on_bad_image == "error":
        refuse_bad(store.bad, "these features")
    return store


def is_complete(config: Config, key: str) -> bool:
    """Whether `open_key` would find the store complete. Raises UserError as it does."""
    try:
        open_key(config, key)
    except MissingFeatures:
        return False
    return True


def load_store(directory: StoreDir) -> FeatureStore:
    """The store in a folder as its manifest describes it. Raises MissingFeatures if there is no manifest that can be used."""
    try:
        with reading(directory.manifest, "Remove it and run `carabid extract`.", MissingFeatures):
            manifest = read_json(directory.manifest)
            store = FeatureStore(directory, Ingredients(**manifest["ingredients"]), manifest["n"])
            key = store.ingredients.key()
    except FileNotFoundError:
        raise MissingFeatures(
            f"{directory.path}: these features are not there, or not all: run `carabid extract` on this configuration."
        ) from None
    if store.ingredients.format != FORMAT or key != manifest.get("key"):
        raise MissingFeatures(f"{directory.manifest} does not describe its own store: remove it and run `carabid extract`.")
    return store


def refuse_bad(bad: dict[int, str], where: str) -> None:
    """UserError for the first of these bad images, if there is one, with the number of others in `where`."""
    if bad:
        first, *others = bad.values()
        raise UserError(f"{first} ({len(others)} more in {where} cannot be read either.)" if others else first)
