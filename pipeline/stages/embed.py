"""Embeddings of a plain folder of images, without a configuration: one Parquet file with a row for each image.

It is the extraction's own computation (`images`, `features/forward`), in fp32: the same images in the same batches give the
same bits as a feature store. What is done is kept in FILE.parquet.parts/, small Parquet files that are written whole, at
least once a minute and when the run is interrupted; the same command goes on from there. When all images are done
FILE.parquet is written and the parts go. Both say in their metadata which weights and transform they are of.

Columns: file (path within the folder), width, height (pixels as they are stored, before an EXIF orientation is applied),
embedding (fixed-size list of float32, as the library gives it, not normalised) and error (why an image, or a folder, could
not be read; null for all others, and then width, height and embedding are null).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from pipeline import __version__
from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone as LoadedBackbone
from pipeline.backbones.named import parse_backbone
from pipeline.config.backbone import Backbone
from pipeline.config.decoding import Decoding
from pipeline.config.evaluation import Extract
from pipeline.config.identity import digest, plain
from pipeline.config.resources import Resources
from pipeline.config.trial import Config
from pipeline.data.dataset import BadImage
from pipeline.data.decoding import How
from pipeline.data.images import Loaded, blank_for, prepare_batches
from pipeline.data.notes import Notes, count, lines, together
from pipeline.data.opening import decode, find_images, how_of, read_image
from pipeline.device import choose_device, set_threads, to_device
from pipeline.disk.lease import Lease
from pipeline.disk.provenance import now
from pipeline.disk.reading import in_short
from pipeline.errors import NotFetched, UserError, WorkError
from pipeline.features.embeddings import File, Rows, about_of, count_bad, find_rows, is_sound, part_paths, write_whole
from pipeline.features.forward import compute_features
from pipeline.features.hashes import WeightsRecord, weights_record
from pipeline.progress import log
from pipeline.stages.encoding import check_weights, encoding

FORMAT = 2
"""Version of what the files mean; another one is another identity."""
UPRIGHT = Decoding(exif="apply")
"""How images are decoded unless asked otherwise."""
AS_BY_DEFAULT = Extract()
PART_SECONDS = 60.0
"""A part is written when the last one is this old: so much work a kill costs."""


@dataclass(frozen=True)
class Request:
    """What was asked for. `threads` decode images (None: one for each CPU that this process may use)."""

    folder: Path
    backbone: str
    out: Path
    batch_size: int = 64
    threads: int | None = None
    device: str = "auto"
    overwrite: bool = False
    decoding: Decoding = UPRIGHT
    extract: Extract = AS_BY_DEFAULT
    """How else images become features."""


@dataclass(frozen=True)
class Tuned:
    """A tower that is made of a backbone."""

    make: Callable[[LoadedBackbone], LoadedBackbone]
    identity: str
    """By hash: equal, and the same is made of the same backbone."""


@dataclass(frozen=True)
class Work:
    """What there is to embed, with what, and where it goes."""

    request: Request
    files: list[File]
    config: Config
    load: Callable[[], LoadedBackbone]
    """Loads the backbone when it is first needed."""
    weights: WeightsRecord
    tuned: Tuned | None = None
    """What is embedded with instead of the backbone as it was released."""

    @property
    def parts(self) -> Path:
        return self.request.out.with_name(f"{self.request.out.name}.parts")

    @property
    def identity(self) -> str:
        """Of weights and transform, and of how images are decoded."""
        weights, choices = self.weights, plain(self.request.decoding)
        reduced = [] if self.request.extract.decode == "exact" else [self.request.extract.decode]
        made_by = [
            weights.architecture,
            weights.weights,
            weights.transform,
            choices,
            *([self.tuned.identity] if self.tuned else []),
            *reduced,
        ]
        return digest([FORMAT, self.config.backbone.kind, *made_by])

    @property
    def about(self) -> dict[str, str]:
        """What FILE.parquet is of: equal values, equal content."""
        files = digest([[file.name, file.size, file.mtime] for file in self.files])
        return {"identity": self.identity, "files": files}

    def where(self, i: int) -> str:
        """The path of file i."""
        return str(self.request.folder / self.files[i].name)

    def told(self) -> dict[str, str]:
        """What a part tells of itself."""
        return {"identity": self.identity, "backbone": self.request.backbone, "carabid": __version__, "written": now()}


def run(request: Request) -> int:
    """Embed every image of the folder, or go on with it; how many could not be read: they are rows with an error. Raises
    UserError for a folder without images, a backbone that there is not, and for a file or parts that are there and of something
    else, unless `overwrite` is set."""
    if request.out.suffix != ".parquet":
        raise UserError(f"--out {request.out}: the file that is written is Parquet: name it *.parquet.")
    work = prepare(request, list_files(request.folder), parse_backbone(request.backbone))
    is_new = write(work)
    print(f"{request.out}: {len(work.files)} images{'' if is_new else ': it is up to date'}", flush=True)
    return count_bad(request.out)


def write(work: Work) -> bool:
    """Write the file, or go on with it; false if it is there. Raises what `run` raises."""
    device, request = choose_device(work.request.device), work.request
    set_threads()
    if _is_done(work):
        return False
    _check_out(work)
    lease = Lease(work.parts / "embed.lease", work.config.resources.lease_seconds)
    with lease.hold(partial(_is_done, work)) as held:
        if held:
            _check_out(work)  # again: another process may have written it meanwhile
            _embed_missing(work, device)
            write_whole(request.out, work.parts, work.files, work.told() | work.about)
            shutil.rmtree(work.parts)
    return bool(held)


def prepare(request: Request, files: list[File], backbone: Backbone) -> Work:
    """Find out which weights the files are to be embedded with. Raises WorkError where they are not to be had."""
    threads = request.threads or len(os.sched_getaffinity(0))
    config = bare_config(backbone, Resources(extract_batch=request.batch_size, decode_threads=threads))
    load = cache(partial(load_backbone, config.backbone))
    return Work(request, files, config, load, weights_of(config, load))


def bare_config(backbone: Backbone, resources: Resources | None = None) -> Config:
    """Of nothing but a backbone: a folder of images has neither task nor data, and nothing asks for them here."""
    values: dict[str, Any] = {"backbone": backbone, "resources": resources or Resources()}
    return Config.model_construct(**values)


def weights_of(config: Config, load: Callable[[], LoadedBackbone]) -> WeightsRecord:
    """The record of the weights as they are now. Raises WorkError where they are not to be had."""
    try:
        return weights_record(config, load)
    except NotFetched as error:  # its advice is about experiments
        raise WorkError(f"{error.why} Run this where there is internet, and HF_HUB_OFFLINE is not set.") from error


# ---------------------------------------------------------------- what is asked for
def parse_decoding(**choices: str | int) -> Decoding:
    """The choices of `data` of these names, as a person types them; a range may be `low,high`. Raises UserError."""
    span = str(choices.get("range", ""))
    ends: dict[str, list[str]] = {"range": span.strip("[]").split(",")} if "," in span else {}
    try:
        return Decoding.model_validate({**choices, **ends})
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        raise UserError(f"--{name.replace('_', '-')} {choices[name]}: {error.errors()[0]['msg']}") from None


def list_files(folder: Path) -> list[File]:
    """The images in a folder and its folders as they are now. Raises UserError."""
    found = find_images(folder)
    if others := found.passed_over():
        log(f"{folder}: {others}")
    return [file_at(folder, name) for name in found.names]


def file_at(folder: Path, name: str) -> File:
    """A file of a folder as it is now."""
    try:
        stat = (folder / name).stat()
    except OSError:  # a link that leads nowhere: reading it says so
        return File(name, 0, 0)
    return File(name, stat.st_size, stat.st_mtime_ns)


# ---------------------------------------------------------------- what is there
def _is_done(work: Work) -> bool:
    """Whether the file is of these images as they are; one that is damaged may be replaced if that is allowed."""
    about = about_of(work.request.out)
    is_of_these = about is not None and {name: about.get(name) for name in work.about} == work.about
    return is_of_these and (not work.request.overwrite or is_sound(work.request.out))


def _check_out(work: Work) -> None:
    """UserError for a file that is there and is not to be overwritten."""
    out, about = work.request.out, about_of(work.request.out)
    if work.request.overwrite or not out.exists():
        return
    if about is None:
        why = "was not written by `carabid embed`"
    elif about.get("identity") != work.identity:
        why = f"holds embeddings by another backbone ({about.get('backbone')}), or of images that were decoded otherwise"
    else:
        why = f"is of other images than now lie in {work.request.folder}, or some have changed since"
    raise UserError(f"{out} is there and {why}. Name another file with --out, or replace it with --overwrite.")


def _check_parts(work: Work) -> None:
    """Remove parts of another backbone if that is allowed, else UserError; and those that cannot be read."""
    for path in part_paths(work.parts):
        about = about_of(path)
        if about is None or not is_sound(path):
            log(f"{path} is damaged: its images are embedded again")
        elif about.get("identity") == work.identity:
            continue
        elif not work.request.overwrite:
            raise UserError(
                f"{work.parts} holds what another backbone ({about.get('backbone')}) has embedded, or from images that were "
                "decoded otherwise. Go on as it was begun, or begin anew with --overwrite, or name another file with --out."
            )
        path.unlink()


# ---------------------------------------------------------------- the work
def _embed_missing(work: Work, device: torch.device) -> None:
    """Embed the files that no part has as they are now, and try the bad ones again; what is done stays if this is stopped."""
    _check_parts(work)
    kept = find_rows(work.parts)
    fresh = [i for i, file in enumerate(work.files) if file not in kept]
    bad = [i for i, file in enumerate(work.files) if file in kept and kept[file].is_bad]
    if not fresh and not bad:
        return
    check_weights(work.config, work.load, work.weights)
    size = work.request.batch_size
    log(f"embed: {len(fresh) + len(bad)} of {len(work.files)} images, {work.request.backbone}")
    _embed(work, device, [todo[k : k + size] for todo in (fresh, bad) for k in range(0, len(todo), size)])


def _embed(work: Work, device: torch.device, chunks: list[list[int]]) -> None:
    backbone = (work.tuned.make(work.load()) if work.tuned else work.load()).to(device)
    rows = Rows(work.parts, work.told(), backbone.embed_dim)
    how = how_of(work.request.decoding, enough=backbone.enough(work.request.extract.decode))
    load = partial(_load, work, backbone, how)
    threads = work.config.resources.decode_threads
    batches = prepare_batches(load, chunks, blank_for(backbone.pixels), threads, keep_bad=True)
    shown = encoding("embed", sum(map(len, chunks)), device, lambda x: _features(work, backbone, x, device), work.where)
    told: Notes = {}
    with closing(batches), shown as encode:
        try:
            for batch, features in encode(batches):
                for i, embedding in zip(batch.positions, features.numpy(), strict=True):
                    rows.add(work.files[i], batch.sizes.get(i), embedding, batch.bad.get(i))
                told = together([told, count((work.files[i].name, notes) for i, notes in batch.notes.items())])
                if time.monotonic() - rows.since >= PART_SECONDS:
                    rows.write()
        finally:
            rows.write()
            for line in lines(told):
                log(f"embed: {line}")


def _load(work: Work, backbone: LoadedBackbone, how: How, i: int) -> Loaded:
    """One image as network input. Raises BadImage with what is wrong with it."""
    try:
        decoded = decode(read_image(Path(work.where(i))), how)
        return Loaded(backbone.pixels(decoded.picture), decoded.size, decoded.notes)
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise errors of many kinds on damaged files
        raise BadImage(in_short(error)) from error


def _features(work: Work, backbone: LoadedBackbone, images: Tensor, device: torch.device) -> Tensor:
    """Embeddings [B, E] of images as the network reads them. Raises WorkError where they do not fit on the GPU."""
    try:
        return compute_features(backbone, to_device(images, device), "pooled")
    except torch.cuda.OutOfMemoryError as error:
        raise WorkError(f"{work.request.batch_size} images do not fit on the GPU: set --batch-size lower.") from error
