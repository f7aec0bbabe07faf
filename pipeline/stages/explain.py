"""Where a trained model looks: for each image a picture of what its figures come from, and whether that holds where cells are
taken away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipeline.data.decoding import as_image, to_rgb
from pipeline.device import make_deterministic, set_threads
from pipeline.disk.writing import atomic_folder, write_bytes, write_json, write_text
from pipeline.errors import UserError, WorkError, nearest
from pipeline.metrics.attribution import SHARE
from pipeline.metrics.charts.attribution import attribution_chart
from pipeline.metrics.charts.chart import slug
from pipeline.metrics.charts.drawing import to_png
from pipeline.models.saved import load_facts
from pipeline.progress import log, progress
from pipeline.stages.attribution import FILLS, GRADIENT, OCCLUSION, Asker, Attribution
from pipeline.stages.predict import Models, Origin, known_of, load_models, reader, trained_config, trial_at

METHODS = {"both": (OCCLUSION, GRADIENT), OCCLUSION: (OCCLUSION,), GRADIENT: (GRADIENT,)}
MOST_PIXELS = 600
"""Of the longer side of an image in a picture."""


@dataclass(frozen=True)
class Request:
    """What is to be explained, and how."""

    trial: Path
    files: Sequence[Path]
    out: Path
    targets: Sequence[str] = ()
    method: str = "both"
    fill: str = "mean"
    n_cells: int = 14
    origin: Origin = field(default_factory=Origin)
    device: str | None = None


@dataclass(frozen=True)
class Explained:
    """An image, its picture, and what was found."""

    file: Path
    picture: Path
    found: list[Attribution]


def run(request: Request, bad: list[Path]) -> list[Explained]:
    """Explain each image in turn: its picture; explain.csv, a row for each image, target and method, and explain.json, with the
    numbers of all cells, too. The folder comes whole or not at all. Images that cannot be read are told on stderr and put into
    `bad`.

    Raises WorkError where none can be read; UserError for a folder that holds something, for what cannot be explained and for a
    trial that looks at no image, and as `predict_files` does.
    """
    _check(request)
    set_threads()
    make_deterministic()
    trial = trial_at(request.trial)
    config, facts = trained_config(trial), load_facts(trial)
    read, known = reader(config, request.origin), known_of(trial, config, request.origin, len(request.files))
    models = load_models(trial, config, request.device)
    enough = models.backbone.enough(config.extract.decode)
    asker = Asker(config, models, facts.targets, _methods(request, models), request.fill, request.n_cells)
    targets = _targets(request, asker)
    done: list[Explained] = []
    names = _pictures(request.files)
    with atomic_folder(request.out) as folder, progress("explained", len(request.files)) as advance:
        for i, (file, name) in enumerate(zip(request.files, names, strict=True)):
            try:
                image = to_rgb(as_image(read(file, enough)))
            except UserError as error:
                log(f"carabid: {error}")
                bad.append(file)
            else:
                found = asker.attributions(image, known[i : i + 1], targets)
                done.append(_drawn(file, folder / name, image, found))
            advance(1)
        if not done:
            raise WorkError(f"none of {len(request.files)} images can be read: they are named above")
        _write(request, folder, trial.path, done)
    return [replace(each, picture=request.out / each.picture.name) for each in done]


def _check(request: Request) -> None:
    """Raises UserError for options that there are not, and for a folder that holds something."""
    for option, value, able in (("method", request.method, METHODS), ("fill", request.fill, FILLS)):
        if value not in able:
            raise UserError(f"--{option} {value}: {nearest(value, able, listed=True)}")
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise UserError(f"{request.out} exists, and is no empty folder: name another --out, or remove it")


def _methods(request: Request, models: Models) -> Sequence[str]:
    """Those that are asked for, of both as far as can be. Raises UserError where none can be."""
    kind = models.model
    if not kind.reads_images:
        raise UserError(f"{request.trial}: its head looks at no image, so that nothing in one explains it: name another trial")
    if request.method == OCCLUSION or not (why := _without_gradients(models)):
        return METHODS[request.method]
    if request.method == GRADIENT:
        raise UserError(f"--method {GRADIENT}: {why}: --method {OCCLUSION} works")
    log(f"carabid: explained by {OCCLUSION} alone: {why}")
    return (OCCLUSION,)


def _without_gradients(models: Models) -> str:
    """Why there are none; empty where there are."""
    return "" if models.model.has_gradients else f"the head ({type(models.model).__name__}) has no gradients"


def _targets(request: Request, asker: Asker) -> list[str]:
    """Those that are asked for, each once, as the trial calls them; of `label=class` the class will do. Raises UserError for one
    that there is not, or that gradients alone are to explain and do not reach."""
    names = asker.names()
    called = {name.partition("=")[2]: name for name in names} | {name: name for name in names}
    if (wrong := next((name for name in request.targets if name not in called), None)) is not None:
        raise UserError(f"--target {wrong}: the trial says nothing of that; {nearest(wrong, names)}")
    targets = list(dict.fromkeys(called[name] for name in request.targets))
    if follow := [name for name in targets if name not in asker.targets and GRADIENT in asker.methods]:
        why = f"{', '.join(follow)} follows from what the model says, and has no gradients"
        if OCCLUSION not in asker.methods:
            raise UserError(f"--method {GRADIENT}: {why}: --method {OCCLUSION} works")
        log(f"carabid: {why}: explained by {OCCLUSION} alone")
    return targets


def _pictures(files: Sequence[Path]) -> list[str]:
    """A name for the picture of each, none twice."""
    stems = [slug(file.stem) for file in files]
    seen: Counter[str] = Counter()
    names = []
    for stem in stems:
        seen[stem.lower()] += 1
        names.append(f"{stem}.png" if seen[stem.lower()] == 1 else f"{stem}~{seen[stem.lower()]}.png")
    return names


# ---------------------------------------------------------------- what is written and said
HEADER = ("image", "target", "predicted", "method", "changes without most", "without random", "draws beaten", "holds")


def lines(each: Explained) -> list[tuple[str, ...]]:
    """Of a table for people."""
    return [
        (
            each.file.name,
            one.target,
            f"{one.check.figure:.4g}",
            one.method,
            f"{one.check.without_most - one.check.figure:+.3g}",
            f"{float(np.mean(one.check.without_random)) - one.check.figure:+.3g}",
            f"{one.check.beaten} of {len(one.check.without_random)}",
            "yes" if one.check.holds else "NO",
        )
        for one in each.found
    ]


def _drawn(file: Path, picture: Path, image: Image.Image, found: list[Attribution]) -> Explained:
    small = image.copy()
    small.thumbnail((MOST_PIXELS, MOST_PIXELS))
    each = {(one.target, one.method): (one.cells, one.check) for one in found}
    write_bytes(picture, to_png(attribution_chart(picture.stem, file.name, np.asarray(small), each)))
    return Explained(file, picture, found)


def row(file: Path, one: Attribution) -> dict[str, Any]:
    """Of explain.csv."""
    check = one.check
    return {
        "file": str(file),
        "target": one.target,
        "predicted": check.figure,
        "method": one.method,
        "without_most": check.without_most,
        "without_random": float(np.mean(check.without_random)),
        "change": check.change,
        "change_by_chance": check.by_chance,
        "draws_beaten": check.beaten,
        "holds": check.holds,
    }


def _write(request: Request, folder: Path, trial: Path, done: Sequence[Explained]) -> None:
    rows = [row(each.file, one) for each in done for one in each.found]
    write_text(folder / "explain.csv", pd.DataFrame(rows).to_csv(index=False))
    how = {"trial": str(trial.resolve()), "fill": request.fill, "share": SHARE}
    images = [
        {"file": str(each.file), "picture": each.picture.name, "found": [_json(one) for one in each.found]} for each in done
    ]
    write_json(folder / "explain.json", {**how, "images": images})


def _json(one: Attribution) -> Mapping[str, Any]:
    """With the numbers of all cells, row by row."""
    drawn = one.check.without_random.tolist()
    known = {key: value for key, value in row(Path(), one).items() if key != "file"}
    return known | {"without_each_random": drawn, "cells": one.cells.tolist()}
