"""A search in an index of images: for what a text says, or for what is like an image."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from pipeline.config.texts import OF_CLASS, PLACEHOLDER
from pipeline.data.opening import how_of, suffixes
from pipeline.data.texts import fill
from pipeline.device import choose_device, set_threads
from pipeline.errors import UserError
from pipeline.features.vectors import open_index
from pipeline.models.tuned import embed_each
from pipeline.stages.predict import open_file
from pipeline.stages.tuned import Embedder, same_model

NEAR = 1e-5
"""Cosines that differ by no more are equal: a batch of another size sums in another order."""
EQUALS = 100
"""So many images are looked at, that one with copies is found among them."""

Vector = Float32[np.ndarray, " width"]


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    index: Path
    query: str
    top: int = 10
    template: str | None = None
    """What a text is put into, in the place of $SCI$, $COM$ or $TAX$."""
    trial: Path | None = None
    """Where the index's trial is now, if it has moved."""
    device: str = "auto"


@dataclass(frozen=True)
class Hit:
    """An image that was found."""

    rank: int
    score: float
    """Cosine of its embedding and the query's."""
    species: str | None
    file: str


def run(request: Request) -> list[Hit]:
    """The images that are nearest to the query, the nearest first; of equally near ones the query itself comes first. A path that
    exists is an image, all else a text. Raises UserError for a query that is neither, what `open_index` raises, and WorkError for
    a trial that is not the one that the index was made with."""
    set_threads()
    is_file = _is_file(request.query)
    index = open_index(request.index)
    model = same_model(index.record["model"], request.trial)
    query = (_image if is_file else _text)(request, model)
    folder, files, species = Path(index.record["images"]), index.rows["file"], index.rows["species"]
    hits = [(score, species[row], str(folder / files[row])) for row, score in index.nearest(query, max(request.top, EQUALS))]
    if is_file:
        near = hits[0][0] - NEAR
        hits.sort(key=lambda hit: not (hit[0] >= near and _is_same(hit[2], request.query)))  # stable: all others as they were
    return [Hit(rank, *hit) for rank, hit in enumerate(hits[: request.top], 1)]


# ---------------------------------------------------------------- the query
def _is_file(query: str) -> bool:
    """Whether it is an image file; else it is a text. Raises UserError for an empty text, a folder, and a path without a file."""
    path = Path(query).expanduser()
    try:
        if path.is_file():
            return True
        is_folder = path.is_dir()
    except (OSError, ValueError):  # longer than a name may be, or with a NUL in it
        is_folder = False
    if not query.strip() or "\0" in query:
        raise UserError("the query is empty: give a text, or an image file")
    if is_folder:
        raise UserError(f"{query} is a folder: search for one image of it, or for a text")
    if path.suffix.lower() in suffixes() or (os.sep in query and not any(map(str.isspace, query))):
        raise UserError(f"{query}: there is no such file, and for a text it looks like a path: check it, or write it with blanks")
    return False


def _image(request: Request, model: Embedder) -> Vector:
    if request.template is not None:
        raise UserError(f"--template is for texts, and {request.query} is an image")
    device, backbone = choose_device(request.device), model.images()
    decoded = open_file(Path(request.query).expanduser(), how_of(model.decoding, enough=backbone.enough(model.extract.decode)))
    return np.asarray(embed_each(backbone, [backbone.transform(decoded.image)], device)[0].numpy())


def _text(request: Request, model: Embedder) -> Vector:
    text = _filled(request.query, request.template)
    device, tower = choose_device(request.device), model.texts()
    return np.asarray(embed_each(tower, [tower.transform(text)], device)[0].numpy())


def _filled(text: str, template: str | None) -> str:
    """The text in its template."""
    if template is None:
        return text
    if not set(PLACEHOLDER.findall(template)) & set(OF_CLASS):
        raise UserError(f"--template {template!r}: write $SCI$ where the text is to stand")
    return fill(template, dict.fromkeys(OF_CLASS, text))


def _is_same(file: str, query: str) -> bool:
    """Whether two paths lead to one file."""
    try:
        return os.path.samefile(file, os.path.expanduser(query))
    except OSError:  # it has gone since it was indexed
        return False
