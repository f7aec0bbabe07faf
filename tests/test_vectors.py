"""The index of embeddings: exact where it says so, its recall measured where not, and damage noticed in every file of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pandas as pd
import pytest

from pipeline.disk.reading import Damaged
from pipeline.errors import UserError
from pipeline.features.vectors import KINDS, Vectors, build, measured, open_index, read_record, write_index


def unit(n: int, width: int = 16, seed: int = 0) -> Vectors:
    rows = np.random.default_rng(seed).normal(size=(n, width)).astype("float32")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rows_of(n: int) -> pd.DataFrame:
    """Rows of an index; behind the first stands an image that could not be read."""
    table = pd.DataFrame({"file": [f"{i}.jpg" for i in range(n)], "species": ["Carabus niger"] + [None] * (n - 1)})
    table = table.assign(row=pd.Series(range(n), dtype="Int64"), error=None)
    bad = pd.DataFrame(
        {"file": ["bad.jpg"], "species": [None], "row": pd.Series([None], dtype="Int64"), "error": ["it is no image"]}
    )
    return pd.concat([table.iloc[:1], bad, table.iloc[1:]], ignore_index=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_index(tmp_path / "index", "flat", unit(40), rows_of(40), {"of": "a test"}, replace=False)
    return tmp_path / "index"


# ---------------------------------------------------------------- what is found
def test_the_flat_index_finds_what_comparing_with_all_finds(folder: Path) -> None:
    vectors, index = unit(40), open_index(folder)
    for query in unit(5, seed=1):
        cosines = vectors @ query
        best = np.argsort(-cosines)[:7]
        found = index.nearest(query, 7)
        assert [row for row, _ in found] == best.tolist()
        assert [score for _, score in found] == pytest.approx(cosines[best], abs=1e-6)


def test_rows_are_those_of_the_embeddings_and_what_is_unknown_is_none(folder: Path) -> None:
    rows = open_index(folder).rows
    assert rows["file"].tolist() == [f"{i}.jpg" for i in range(40)], "the bad image has no embedding"
    assert rows["species"].tolist() == ["Carabus niger"] + [None] * 39


def test_no_more_than_there_are_are_found(folder: Path) -> None:
    assert len(open_index(folder).nearest(unit(1, seed=2)[0], 1000)) == 40


def test_recall_is_the_share_of_the_nearest_that_are_found() -> None:
    """Of an index that lacks half of the embeddings a known part is found; of an exact one all, copies or not."""
    vectors = unit(300)
    half = faiss.IndexFlatIP(16)
    half.add(vectors * (np.arange(300)[:, None] % 2 == 1))
    found = measured(half, vectors)
    cosines = vectors @ vectors.T - 3 * np.eye(300, dtype="float32")
    nearest = np.argsort(-cosines, axis=1)[:, :10]
    assert found["recall"] == pytest.approx((nearest % 2 == 1).mean(), abs=1e-6) and found["queries"] == 300
    copies = np.repeat(unit(30), 20, axis=0)
    assert measured(build(copies, "flat"), copies)["recall"] == 1.0


def test_an_approximate_index_records_its_recall_which_is_high(tmp_path: Path) -> None:
    write_index(tmp_path / "index", "hnsw", unit(2000), rows_of(2000), {}, replace=False)
    recall = read_record(tmp_path / "index")["recall"]
    assert (recall["k"], recall["queries"]) == (10, 1000) and 0.95 < recall["recall"] <= 1
    index = open_index(tmp_path / "index")
    hits = [index.nearest(vector, 1)[0][0] == i for i, vector in enumerate(unit(2000)[:50])]
    assert all(hits), "itself"


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_of_one_image_or_two_is_one(kind: str, n: int, tmp_path: Path) -> None:
    write_index(tmp_path / "index", kind, unit(n), rows_of(n), {}, replace=False)
    index = open_index(tmp_path / "index")
    assert index.nearest(unit(n)[0], 10)[0][0] == 0 and len(index.rows) == n


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="--kind tree: choose flat or hnsw"):
        build(unit(3), "tree")


# ---------------------------------------------------------------- damage
@pytest.mark.parametrize("name", ["index.faiss", "rows.parquet", "index.json"])
@pytest.mark.parametrize("how", ["cut", "changed", "empty"])
def test_damage_to_any_file_is_named(name: str, how: str, folder: Path) -> None:
    content = (folder / name).read_bytes()
    middle = len(content) // 2
    changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    (folder / name).write_bytes({"cut": content[:middle], "changed": changed, "empty": b""}[how])
    with pytest.raises(Damaged, match=rf"damaged: {folder / name}: .*`carabid index … --overwrite` makes it again"):
        open_index(folder)


@pytest.mark.parametrize("name", ["index.faiss", "rows.parquet"])
def test_a_file_that_is_gone_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(Damaged, match=f"damaged: {folder / name}: it is gone"):
        open_index(folder)


def test_a_folder_that_is_no_index_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no index: there is no index\.json in it"):
        open_index(tmp_path)


def test_an_index_of_a_later_version_is_not_read(folder: Path) -> None:
    record: dict[str, Any] = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(
        json.dumps({key: value for key, value in record.items() if key != "sha256"} | {"format": 2})
    )
    with pytest.raises(Damaged, match="it is of format 2, and this version reads 1"):
        open_index(folder)
