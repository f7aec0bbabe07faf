"""A feature store's copy on this node: training reads features again and again, and a node's own disk is nearer. Processes on one
node share the copy: one makes it while the others wait. Files come whole or not at all, and one that is there and right is not
copied again. Nobody removes a copy, so `paths.stage` best names a folder that goes with the job. This module loads no torch."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.amounts import format_bytes
from pipeline.config.trial import Config
from pipeline.disk.layout import StoreDir
from pipeline.disk.lease import Lease
from pipeline.disk.writing import atomic_path, sweep
from pipeline.errors import UserError
from pipeline.features.shard import DamagedShard
from pipeline.features.store import READERS, FeatureStore
from pipeline.progress import log, progress

VARIABLE = re.compile(r"\$(\w+)|\$\{([^}]*)\}")


@dataclass(frozen=True)
class StagedStore(FeatureStore):
    """The copy of `origin` in a folder of this node."""

    origin: FeatureStore

    def verify(self) -> None:
        """As for any store; a shard that is damaged in the copy alone is copied again."""
        again = list(self.unsound(range(self.n_shards)))
        self.origin.verify_shards(again)
        for number in again:
            log(f"{self.path(number)} is damaged: it is copied again")
            copy(self.origin.path(number), self.path(number))
        self.verify_shards(again)

    def lacking(self) -> list[int]:
        """Shards that are not here, or not those of the origin: it may have been made again since."""
        return [number for number in range(self.n_shards) if not self._has(number)]

    def is_whole(self) -> bool:
        return not self.lacking() and self.dir.manifest.exists()

    def _has(self, number: int) -> bool:
        try:
            mine, other = self.shard(number), self.origin.shards[number]
        except (FileNotFoundError, DamagedShard):
            return False
        return (mine.sha256, mine.about) == (other.sha256, other.about)


def staged(store: FeatureStore, config: Config) -> FeatureStore:
    """The store's copy on this node, made if it is not there, where `paths.stage` asks for one; else the store itself. The store
    itself also where there is no room for a copy, which is said. Raises UserError for a folder that cannot be meant."""
    if config.paths.stage is None:
        return store
    copied = StagedStore(StoreDir(node_folder(config.paths.stage) / store.key), store.ingredients, store.n, store)
    lease = Lease(copied.dir.path / "copy.lease", config.resources.lease_seconds)
    try:
        copied.dir.path.mkdir(parents=True, exist_ok=True)
        with lease.hold(copied.is_whole) as held:
            if held:
                _fill(copied)
    except OSError as error:
        log(f"features are read from {store.dir.path}, and not copied to {copied.dir.path}: {error.strerror or error}")
        return store
    return copied


def node_folder(path: str) -> Path:
    """The folder that `paths.stage` means on this node. Raises UserError for a variable that is not set here."""
    names = [one or other for one, other in VARIABLE.findall(path)]
    if unset := [name for name in names if not os.environ.get(name)]:
        raise UserError(
            f"paths.stage {path}: {unset[0]} is not set on {socket.gethostname()}. Name a folder or a variable that jobs "
            "have there, or set paths.stage=null to read features where they are."
        )
    folder = Path(os.path.expanduser(os.path.expandvars(path)))
    if not folder.is_absolute():
        raise UserError(f"paths.stage {path}: write an absolute path (it is {folder}): jobs start in other folders.")
    return folder


def _fill(copied: StagedStore) -> None:
    """Copy what is lacking; the manifest last. Raises OSError, with nothing left of this attempt."""
    origin, folder = copied.origin, copied.dir.path
    sources = [origin.path(number) for number in copied.lacking()]
    for source in sources:
        sweep(folder / source.name)  # what a killed process has left
    needed, free = sum(path.stat().st_size for path in sources), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"it needs {format_bytes(needed)}, and {format_bytes(free)} are free", str(folder))
    try:
        with ThreadPoolExecutor(READERS) as pool, progress(f"copy to {folder}", len(sources), "shards") as advance:
            for _ in pool.map(copy, sources, [folder / source.name for source in sources]):
                advance(1)
        for source in (origin.dir.index, origin.dir.manifest):
            copy(source, folder / source.name)
    except OSError:
        for source in sources:  # a full disk is not to stay full of what nobody reads
            (folder / source.name).unlink(missing_ok=True)
        raise
    log(f"features/{origin.key}: copied to {folder}")


def copy(source: Path, target: Path) -> None:
    """Copy a file, atomically."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
