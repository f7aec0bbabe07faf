"""The hashes of a submission's files, in its submission.json: written with them, checked wherever they are read.

This file stands alone: `carabid export` copies it beside `network.py`, which refuses on the platform what is not as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "submission.json"
AGAIN = "its content is not what was exported. Copy or export it again"


def seal(folder: Path, spec: Mapping[str, Any]) -> None:
    """Write submission.json: `spec` with the sha256 of every other file of the folder, and of itself."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FILE)
    content = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
    sealed = json.loads(json.dumps({**spec, "content": content}))
    (folder / FILE).write_text(json.dumps({**sealed, "sha256": _digest(sealed)}, indent=2) + "\n")


def opened(folder: Path) -> dict[str, Any]:
    """What submission.json says, once it and all files that it names are known to hold what was exported.

    Raises ValueError that names the first that does not. (One of before there were hashes, or somebody's own, names none.)
    """
    try:
        spec = dict(json.loads((folder / FILE).read_bytes()))
        is_sealed = "sha256" in spec
        is_whole = not is_sealed or spec.pop("sha256") == _digest(spec)
    except (ValueError, TypeError, RecursionError) as error:  # (the last: its values lie too deep in one another)
        raise ValueError(f"damaged: {FILE}: {AGAIN}") from error
    if not is_whole:
        raise ValueError(f"damaged: {FILE}: {AGAIN}")
    for name, sha256 in spec["content"].items() if is_sealed else ():
        if not (folder / name).is_file():
            raise ValueError(f"damaged: {name}: it is gone")
        if _sha256(folder / name) != sha256:
            raise ValueError(f"damaged: {name}: {AGAIN}")
    return spec


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):  # (file_digest is of Python 3.11)
            digest.update(part)
    return digest.hexdigest()


def _digest(spec: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()
