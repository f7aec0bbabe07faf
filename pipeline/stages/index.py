"""An index of images that `search` looks in: embedded with a trial's tuned image tower, or with a model as it was released, in
fp32.

Images are embedded as `carabid embed` does it, into DIR.parts/: what was done is used by the same command, and when DIR is
written, as a whole, it goes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from pipeline import __version__
from pipeline.config.identity import digest
from pipeline.data.collection import Collection, find_collection
from pipeline.disk.lease import Lease
from pipeline.disk.provenance import now
from pipeline.errors import UserError, WorkError
from pipeline.features.embeddings import read
from pipeline.features.vectors import KINDS, RECORD, Vectors, open_index, read_record, write_index
from pipeline.progress import log
from pipeline.stages import embed
from pipeline.stages.tuned import Embedder, find_model


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    model: str
    """A trial's folder, or a model's name."""
    images: Path
    out: Path
    kind: str = "flat"
    batch_size: int = 64
    threads: int | None = None
    device: str = "auto"
    overwrite: bool = False

    @property
    def parts(self) -> Path:
        out = self.out.absolute()  # a name such as . has none of its own
        return out.parent / f"{out.name}.parts"


@dataclass(frozen=True)
class Made:
    """An index that is there."""

    record: dict[str, Any]
    is_new: bool

    @property
    def n_bad(self) -> int:
        return int(self.record["n_bad"])


def run(request: Request) -> Made:
    """Write the index of a folder or a table of images, or find it up to date. Images that cannot be read are named on stderr and
    left out. Raises UserError for a model or images that there are not, and for a folder that holds something else."""
    if request.kind not in KINDS:
        raise UserError(f"--kind {request.kind}: choose {' or '.join(KINDS)}")
    model = find_model(request.model)
    collection = find_collection(request.images, model.data)
    if collection.passed_over:
        log(f"{request.images}: {collection.passed_over}")
    work = _prepare(request, model, collection)
    about = _about(work, model, collection)
    if found := _there(request, about):
        return Made(found, False)
    lease = Lease(request.parts / "index.lease", work.config.resources.lease_seconds)
    with lease.hold(partial(_is_there, request, about)) as held:
        if held:
            embed.write(work)
            _write(request, work, about, collection)
            shutil.rmtree(request.parts)
    return Made(read_record(request.out), True)


def _prepare(request: Request, model: Embedder, collection: Collection) -> embed.Work:
    """What there is to embed."""
    files = [embed.file_at(collection.folder, name) for name in collection.species]
    out = request.parts / "embeddings.parquet"
    asked = embed.Request(collection.folder, model.name, out, request.batch_size, request.threads, request.device)
    asked = replace(asked, overwrite=request.overwrite, decoding=model.decoding, extract=model.extract)
    return replace(embed.prepare(asked, files, model.block), tuned=model.tuning)


def _about(work: embed.Work, model: Embedder, collection: Collection) -> dict[str, Any]:
    """What the record tells of model and images; where `made_from` is equal, the index is the same."""
    of = {"weights": work.weights.weights, "transform": work.weights.transform}
    folder = str(collection.folder.resolve())
    images = digest([folder, work.about["files"], list(collection.species.values())])
    return {"model": model.record() | of, "images": folder, "made_from": {"model": work.identity, "images": images}}


def _there(request: Request, about: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the index if it is there and the same; None if it is to be written. Raises UserError for something else."""
    if not request.out.exists() or (request.out.is_dir() and not any(request.out.iterdir())):
        return None
    if not (request.out / RECORD).is_file():
        raise UserError(f"{request.out} is there and is no index: name another folder with --out")
    if request.overwrite:
        return None
    record = open_index(request.out).record
    then, here = record["made_from"], about["made_from"]
    words = {"model": "by another model", "images": "of other images"}
    differs = [said for key, said in words.items() if then[key] != here[key]]
    differs += [f"of kind {record['kind']}"] if record["kind"] != request.kind else []
    if differs:
        raise UserError(f"{request.out} is an index {' and '.join(differs)}: name another folder with --out, or add --overwrite")
    return record


def _is_there(request: Request, about: dict[str, Any]) -> bool:
    """For who has waited while another process wrote it."""
    return not request.overwrite and _there(request, about) is not None


def _write(request: Request, work: embed.Work, about: dict[str, Any], collection: Collection) -> None:
    """The index, from the embeddings. Raises WorkError where no image could be read."""
    table = read(work.request.out)
    rows = table.drop_columns(["embedding"]).to_pandas()
    good = rows["error"].isna()
    for file, error in rows.loc[~good, ["file", "error"]].itertuples(index=False):
        log(f"{collection.folder / file}: {error}")
    if not good.any():
        raise WorkError(f"none of the images of {request.images} can be read: they are named above")
    places = pd.Series(np.cumsum(good) - 1, dtype="Int64").where(good)
    rows = rows.assign(row=places, species=pd.Series([collection.species[name] for name in rows["file"]], dtype=object))
    written = {"n_bad": int((~good).sum()), "carabid": __version__, "written": now()}
    write_index(request.out, request.kind, _vectors(table), rows, about | written, request.overwrite)


def _vectors(table: pa.Table) -> Vectors:
    """The embeddings that there are, of length 1."""
    column = table.column("embedding").drop_null().combine_chunks()
    vectors = np.array(column.flatten().to_numpy(zero_copy_only=False), "float32").reshape(len(column), -1)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)  # (a black image is nothing but zeros to a backbone of pixels)
