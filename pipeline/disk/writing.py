"""How files come into being: whole, or not at all. Loads no torch by itself.

They are written under a temporary name in their own folder, synced, and renamed: a reader sees the old file or the new
one, never a part of either, whatever is killed when. So are folders whose files belong together.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.identity import digest
from pipeline.disk.secrets import hidden

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch import Tensor

LONGEST_INT = 300
"""Digits of a whole number that becomes a finite float."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in `path`'s folder (made if missing); on success it is synced and renamed to `path`, else removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _open_to_others([temporary])
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, replace: bool = False, to_sync: Callable[[Path], bool] = lambda _: True) -> Iterator[Path]:
    """A new folder beside `path` (whose parents are made); on success it is synced and renamed to `path`, else removed.

    `to_sync` chooses the files that are synced. What is at `path` already is kept, with an OSError, unless it is an empty
    folder, or `replace` is set: then it goes once the new folder is ready.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        _open_to_others(temporary.rglob("*"))
        for file in (*filter(to_sync, temporary.rglob("*")), temporary):
            sync(file)
        if replace:
            _replace_folder(path, temporary)
        else:
            os.rename(temporary, path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(path: Path, new: Path) -> None:
    """Rename `new` to `path`; the old folder steps aside, comes back if that fails, and is deleted last.

    No system call does this in one step everywhere: who is killed between two renames leaves nothing at `path`, never a
    mixture of both.
    """
    old = _temporary(path)
    with suppress(FileNotFoundError):
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old.exists():
            os.rename(old, path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` have left under temporary names; nobody else may be writing it now."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _open_to_others(files: Iterable[Path]) -> None:
    """Give private files the mode of ordinary ones: safetensors writes 0600, which a lab's other members cannot read.

    What is ordinary here (umask, the folder's default ACL) a new file shows: os.umask tells it only by changing it, for
    all threads.
    """
    private = [file for file in files if stat.S_IMODE(mode := file.lstat().st_mode) & 0o077 == 0 and stat.S_ISREG(mode)]
    if not private:
        return
    probe = _temporary(private[0])
    try:
        probe.touch()
        ordinary = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for file in private:
        file.chmod(ordinary)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON, atomically, without tokens and passwords; NaN and infinity are refused because they are not JSON."""
    write_text(path, json.dumps(hidden(value), indent=1, allow_nan=False) + "\n")


def write_table(path: Path, table: DataFrame) -> None:
    """Write a table without its index as Parquet, atomically."""
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, atomically. Raises OSError."""
    from safetensors.torch import save_file

    with atomic_path(path) as temporary, writing(path):
        save_file(tensors, temporary, metadata)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While a library writes: its error, for a full disk too, becomes an OSError that names the file."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"could not be written: {error}", str(path)) from error


def write_hashed(path: Path, record: dict[str, Any]) -> None:
    """Write a JSON object with the sha256 of itself, atomically."""
    record = hidden(json.loads(json.dumps(record)))  # before its hash is taken
    write_json(path, record | {"sha256": digest(record)})


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError, or ValueError where it is none that `write_json` may have written."""
    try:
        text = path.read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_refuse, parse_float=_float, parse_int=_int)
    except RecursionError as error:
        raise ValueError("its values lie too deep in one another") from error


def read_hashed(path: Path) -> dict[str, Any]:
    """What `write_hashed` wrote, without the hash. Raises OSError, or ValueError where it is something else by now. (What was
    written before there were hashes has none.)"""
    record = dict(read_json(path))
    if record.pop("sha256", None) not in (digest(record), None):
        raise ValueError("its content is not what was written.")
    return record


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _float(text: str) -> float:
    value = float(text)
    if value in (math.inf, -math.inf):
        raise ValueError(f"{text[:20]} is larger than any number that is computed with")
    return value


def _int(text: str) -> int:
    if len(text) > LONGEST_INT:
        raise ValueError(f"{text[:20]}… is larger than any number that is computed with")
    return int(text)


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one where the file is not there, damaged, or of something else."""
    with suppress(OSError, ValueError):
        content = read_json(path)
        return content if isinstance(content, dict) else {}
    return {}


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
