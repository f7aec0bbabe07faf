"""An index of embeddings that is searched by cosine, in a folder: FAISS' own file, a table with a row for each image, and a
record of what they are of with the hash of both. Embeddings are of length 1: inner products are cosines. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from pipeline.disk.reading import Damaged, reading, sha256_of_file
from pipeline.disk.writing import atomic_folder, read_hashed, write_hashed, write_table, writing
from pipeline.errors import UserError
from pipeline.progress import progress

FORMAT = 1
"""Version of what the files mean."""
INDEX, ROWS, RECORD = "index.faiss", "rows.parquet", "index.json"
AGAIN = "`carabid index … --overwrite` makes it again."
LINKS, EFFORT, LOOKED_AT = 32, 200, 128
"""HNSW (Malkov and Yashunin 2016, arXiv 1603.09320): links of a point, and how many candidates are kept in mind while it is built
and while it is searched."""
NEIGHBOURS, SAMPLE, TIE = 10, 1000, 1e-6
"""Recall is of so many neighbours, of so many images at most; cosines as near as this are equal."""
ADDED = 20_000
"""Embeddings that are put into an index at once: often enough to see how far it is."""

Vectors = Float32[np.ndarray, "images width"]


def _hnsw(width: int) -> Any:
    index = faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = EFFORT, LOOKED_AT
    return index


KINDS: dict[str, Callable[[int], Any]] = {"flat": faiss.IndexFlatIP, "hnsw": _hnsw}
"""Exact; and approximate, faster among more than some hundred thousand images."""


# ---------------------------------------------------------------- made
def write_index(folder: Path, kind: str, vectors: Vectors, rows: pd.DataFrame, about: dict[str, Any], replace: bool) -> None:
    """Write an index of these embeddings; `folder` appears, or is replaced, as a whole. `rows` has a column `row`, the place
    among the embeddings, empty for what has none; `about` is what the record tells beside."""
    index = build(vectors, kind)
    with atomic_folder(folder, replace=replace) as new:
        with writing(folder / INDEX):
            faiss.write_index(index, str(new / INDEX))
        write_table(new / ROWS, rows)
        said = {"format": FORMAT, "kind": kind, "width": vectors.shape[1], "n": len(vectors), "recall": None}
        if kind != "flat":
            said["recall"] = measured(index, vectors)
        files = {name: sha256_of_file(new / name) for name in (INDEX, ROWS)}
        write_hashed(new / RECORD, about | said | {"files": files})


def build(vectors: Vectors, kind: str) -> Any:
    """An index of one of the KINDS. Raises UserError for another."""
    if kind not in KINDS:
        raise UserError(f"--kind {kind}: choose {' or '.join(KINDS)}")
    index = KINDS[kind](vectors.shape[1])
    with progress(f"index, {kind}", len(vectors), "embeddings") as advance:
        for some in range(0, len(vectors), ADDED):
            index.add(np.ascontiguousarray(vectors[some : some + ADDED]))
            advance(len(vectors[some : some + ADDED]))
    return index


def measured(index: Any, vectors: Vectors, seed: int = 0) -> dict[str, float | int]:
    """Which share of the nearest neighbours of some of its own embeddings, themselves left out, an approximate index finds: a
    neighbour is found if what is there instead is as near."""
    k = min(NEIGHBOURS, len(vectors) - 1)
    if k < 1:
        return {"k": 0, "queries": 0, "recall": 1.0}
    chosen = np.random.default_rng(seed).choice(len(vectors), min(SAMPLE, len(vectors)), replace=False)
    exact, found = (_others(each, vectors[chosen], chosen, k) for each in (build(vectors, "flat"), index))
    return {"k": k, "queries": len(chosen), "recall": float((found >= exact[:, -1:] - TIE).mean())}


def _others(index: Any, queries: Vectors, own: Int64[np.ndarray, " queries"], k: int) -> Float32[np.ndarray, "queries k"]:
    """Cosines of the k nearest but for themselves, the nearest first; −2 where fewer are found."""
    cosines, places = index.search(np.ascontiguousarray(queries), k + 1)
    cosines = np.where((places == own[:, None]) | (places < 0), -2, cosines)
    return np.sort(cosines, axis=1)[:, :0:-1]


# ---------------------------------------------------------------- read
@dataclass(frozen=True)
class Index:
    """An index on disk, whose files are known to hold what was written."""

    folder: Path
    record: dict[str, Any]

    @cached_property
    def vectors(self) -> Any:
        """FAISS' index. Raises Damaged."""
        with reading(self.folder / INDEX, AGAIN):
            index = faiss.read_index(str(self.folder / INDEX))
            if (index.d, index.ntotal) != (self.record["width"], self.record["n"]):
                raise ValueError("it is of other embeddings than its record.")
        return index

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The images in the index, in the order of their embeddings: file, species, width, height. Raises Damaged."""
        with reading(self.folder / ROWS, AGAIN):
            table = pd.read_parquet(self.folder / ROWS)
            table = table[table["row"].notna()].sort_values("row")
            if table["row"].tolist() != list(range(self.record["n"])):
                raise ValueError("its rows are not those of the index.")
        return table.astype({"species": object}).where(table.notna(), None).reset_index(drop=True)

    def nearest(self, query: Float32[np.ndarray, " width"], k: int) -> list[tuple[int, float]]:
        """Row and cosine of the k nearest to an embedding of length 1, the nearest first; fewer where there are no more."""
        cosines, places = self.vectors.search(query[None], min(k, self.record["n"]))
        return [(int(i), float(c)) for i, c in zip(places[0], cosines[0], strict=True) if i >= 0]


def read_record(folder: Path) -> dict[str, Any]:
    """What an index says of itself. Raises UserError where there is none, Damaged for another version's too."""
    if not (folder / RECORD).is_file():
        raise UserError(
            f"{folder} is no index: there is no {RECORD} in it. `carabid index TRIAL IMAGES --out {folder}` makes one."
        )
    with reading(folder / RECORD, AGAIN):
        record = read_hashed(folder / RECORD)
        if record["format"] != FORMAT:
            raise ValueError(f"it is of format {record['format']}, and this version reads {FORMAT}.")
    return record


def open_index(folder: Path) -> Index:
    """An index, every byte of which is checked. Raises UserError where there is none, Damaged where it holds something else."""
    record = read_record(folder)
    for name in (INDEX, ROWS):
        if not (folder / name).is_file():
            raise Damaged(f"damaged: {folder / name}: it is gone. {AGAIN}")
        with reading(folder / RECORD, AGAIN):
            expected = record["files"][name]
        if sha256_of_file(folder / name) != expected:
            raise Damaged(f"damaged: {folder / name}: its content is not what was written. {AGAIN}")
    return Index(folder, record)
