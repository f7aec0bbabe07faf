"""Predictions from images through the whole model (decode, transform, trunk, tail, head), and forecasts of their groups."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, Shaped
from PIL import Image
from torch import Tensor

from pipeline.backbones import load_backbone
from pipeline.backbones.base import Backbone
from pipeline.config.evaluation import Adapt
from pipeline.config.identity import config_hash, digest, token_kind
from pipeline.config.trial import Config
from pipeline.data.correction import balance, rescale
from pipeline.data.dataset import Dataset
from pipeline.data.decoding import Decoded, How, Picture
from pipeline.data.images import load_batches
from pipeline.data.opening import decode, find_images, how_of, read_image
from pipeline.device import choose_device, set_threads
from pipeline.disk.layout import ENSEMBLES, ExperimentDir, TrialDir, root, trained_root
from pipeline.disk.reading import in_short, is_number, reading
from pipeline.disk.writing import read_hashed
from pipeline.errors import NotFetched, UserError, WorkError
from pipeline.experiments.reading import load_config, saved_science
from pipeline.features.forward import as_stored, compute_features
from pipeline.metrics.figures import Training
from pipeline.metrics.groups import Prediction
from pipeline.models.base import Facts, Features, Model, Predicted
from pipeline.models.content import read_record
from pipeline.models.metadata import Metadata
from pipeline.models.saved import load_facts, load_model, read_trained
from pipeline.progress import progress
from pipeline.reporting.results import MADE_AGAIN, hash_results, read_ensemble
from pipeline.tasks import load_task
from pipeline.training.samples import columns, joined


@dataclass(frozen=True)
class Models:
    """All that a prediction from images needs, on one device."""

    model: Model
    backbone: Backbone
    device: torch.device


def predict_images(config: Config, models: Models, facts: Facts, dataset: Dataset, table: pd.DataFrame) -> Prediction:
    """What the model says of the rows of `table`, from their images: computed in fp32, features rounded as the store has them."""
    positions, size = table.index.tolist(), config.resources.extract_batch
    starts = range(0, len(positions), size)
    chunks = [positions[start : start + size] for start in starts]
    dataset = dataset.seen_at(models.backbone.enough(config.extract.decode))
    batches = load_batches(dataset, chunks, models.backbone.pixels, config.resources.decode_threads)
    metadata = facts.names.metadata(columns(table))
    said = []
    with progress("evaluate from images", len(positions)) as advance:
        for batch, start in zip(batches, starts, strict=True):
            said.append(predict_batch(config, models, batch.images, metadata[start : start + size]))
            advance(len(batch.images))
    return joined(said)


@dataclass(frozen=True)
class Origin:
    """What is known of new images beside what they show: one group's domain, and the scientific name of each, or of all."""

    domain: str | None = None
    species: tuple[str, ...] = ()
    colour_card: Path | None = None
    """The image of what was photographed beside the images, as is `scale_bar`."""
    scale_bar: Path | None = None

    def columns(self, n: int) -> dict[str, list[str | None]]:
        """The columns of `n` images. Raises UserError for another number of names."""
        if len(self.species) not in (0, 1, n):
            raise UserError(f"{len(self.species)} names for {n} images: give one --species for all, or one for each")
        given: list[str | None] = [*self.species] or [None]
        return {"domain": [self.domain] * n, "species": given if len(given) == n else given * n}

    def of(self, some: Sequence[int]) -> Origin:
        """What is known of some of the images."""
        return replace(self, species=tuple(self.species[i] for i in some) if len(self.species) > 1 else self.species)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """These files, and instead of a folder the images in it. Raises UserError for a folder without images."""
    return [file for path in paths for file in ([path / name for name in find_images(path).names] if path.is_dir() else [path])]


def predict_files(
    folder: Path, files: Sequence[Path], origin: Origin, device: str | None, bad: list[Path] | None = None
) -> Iterator[dict[str, float]]:
    """Predictions of a trained trial for new image files, one dict of target → value each, in the order given.

    The folder is looked for from the current one, then from the root, then as <experiment>/<trial> among what is trained.
    A domain that was not trained on is said on stderr and counts as unknown. A file that does not exist or is not a readable
    image is told on stderr, put into `bad`, and has an empty dict.
    Raises UserError for a folder that is not a trial, where the trial was trained on images corrected by a card or a bar that
    `origin` lacks, and at the first bad file if `bad` is None.
    """
    trial = trial_at(folder)
    config, targets = trained_config(trial), load_facts(trial).targets
    for said in _predict_each(trial, config, files, origin, device, bad):
        # Behind the targets stand auxiliary labels.
        yield {} if said is None else _completed(config, dict(zip(targets, said.values()[0].tolist(), strict=False)))


def _completed(config: Config, said: dict[str, float]) -> dict[str, float]:
    """With what follows from it."""
    completed = load_task(config.task).completed(pd.DataFrame([said])).iloc[0]
    return {str(name): float(value) for name, value in completed.items()}


def predict_group(
    folder: Path, files: Sequence[Path], origin: Origin, device: str | None, bad: list[Path] | None = None
) -> dict[str, tuple[float, float | None]]:
    """The forecast of a trained trial or an ensemble, target → (mu, sigma), of one group whose images these image files show; of
    classes, class → (probability, None). The others answer for those that are bad.

    Raises what `predict_files` raises, UserError for no file that can be read, and WorkError for an ensemble that is out of date.
    """
    if not files:
        raise UserError("a group is forecast from its images: name at least one")
    members, calibration = members_of(folder)
    said: list[Any] = []
    for trial in members:  # those after the first are not given what the first could not read
        predictions, files, origin = _predictions(trial, files, origin, device, bad if bad is None or not said else [])
        said.append(predictions)
    task, domains = load_task(trained_config(members[0]).task), [load_facts(trial).names.domains for trial in members]
    known = [domain for domain in domains[0] if all(domain in others for others in domains)]  # folds may train on unlike ones
    calibration = read_trained(members[0])["calibration"] if calibration is None else calibration
    return task.answer(task.forecast(task.together(said), Training(known, calibration=calibration)), said)


def embed_files(folder: Path, files: Sequence[Path], device: str | None) -> Float32[np.ndarray, "images width"]:
    """What the head of a trained trial reads of new image files: their embeddings after its encoder, before these are normalised,
    of several numbers each in a row. The folder is looked for as by `predict_files`.

    Raises UserError for the first bad file, no file, and for a trial that looks at no image, or at none without card or bar.
    """
    trial = trial_at(folder)
    config = trained_config(trial)
    read, models = reader(config, Origin()), load_models(trial, config, device)
    enough = models.backbone.enough(config.extract.decode)
    if not models.model.reads_images or not files:
        raise UserError(f"{trial.path.name} looks at no image" if files else "name at least one image to embed")
    rows = []
    for file in files:
        with torch.inference_mode():
            features = features_of(config, models, models.backbone.pixels(read(file, enough)).unsqueeze(0))
            rows.append(models.model.encode(features).float().flatten(1).cpu())
    return torch.cat(rows).numpy()


def _predictions(
    trial: TrialDir, files: Sequence[Path], origin: Origin, device: str | None, bad: list[Path] | None
) -> tuple[Any, list[Path], Origin]:
    """What a trial says of the images of one group, as its task keeps it; those that could be read, and what is known of them."""
    config = trained_config(trial)
    each = list(_predict_each(trial, config, files, origin, device, bad))
    good = [i for i, said in enumerate(each) if said is not None]
    if not good:
        raise UserError("none of the group's images can be read")
    files, origin = [files[i] for i in good], origin.of(good)
    predicted = joined([said for said in each if said is not None])
    table = pd.DataFrame({"id": list(map(str, files)), "group": ""})
    table["domain"] = pd.Series([origin.domain] * len(files), dtype=object)
    return load_task(config.task).predictions(table, None, load_facts(trial).targets, predicted), files, origin


def _predict_each(
    trial: TrialDir, config: Config, files: Sequence[Path], origin: Origin, device: str | None, bad: list[Path] | None
) -> Iterator[Predicted | None]:
    """What the model says of each file; None of a bad one, if it may be."""
    set_threads()
    read = reader(config, origin)
    metadata = known_of(trial, config, origin, len(files))
    models = load_models(trial, config, device)
    enough = models.backbone.enough(config.extract.decode)
    for i, file in enumerate(files):
        try:
            picture = read(file, enough)
        except UserError as error:
            if bad is None:
                raise
            print(f"carabid: {error}", file=sys.stderr, flush=True)
            bad.append(file)
            yield None
        else:
            yield predict_batch(config, models, models.backbone.pixels(picture).unsqueeze(0), metadata[i : i + 1])


def known_of(trial: TrialDir, config: Config, origin: Origin, n: int) -> Metadata:
    """What is known of `n` images, as the model knows it; what is otherwise than in the trial's results is said on stderr. Raises
    UserError for another number of names."""
    if config.evaluate.adapt is not None:
        print(
            f"carabid: {trial.path.name}: its results are of it adapted to the test; here it speaks as trained", file=sys.stderr
        )
    names = load_facts(trial).names
    metadata = names.metadata(origin.columns(n))
    if origin.domain is not None and origin.domain not in names.domains:
        known = ", ".join(names.domains) or "none at all"
        print(f"carabid: {origin.domain} is taken as an unknown domain; the training domains are: {known}", file=sys.stderr)
    return metadata


def load_models(trial: TrialDir, config: Config, device: str | None) -> Models:
    """A trained trial's, on this device or on that of its configuration. Raises NotFetched where the backbone's weights are not
    here, WorkError where they are others than it was trained on."""
    where = choose_device(device or config.device)
    try:
        backbone = load_backbone(config.backbone)
    except NotFetched as error:
        error.config = trial.config
        raise
    return Models(load_model(config, trial, backbone).to(where), backbone.to(where), where)


def trained_config(trial: TrialDir) -> Config:
    """The configuration a trial was trained with, and last evaluated. Raises WorkError if its config.yaml has been edited."""
    config = load_config(trial.config)
    if not trial.trained.exists():
        raise WorkError(f"{trial.path}: its training has not finished (no trained.json; see `carabid status`)")
    # (Of one that was published the names of what lies nowhere count as they stand, whatever is called so here.)
    if read_trained(trial)["config_hash"] not in (config_hash(config), digest(saved_science(trial.config))):
        raise WorkError(
            f"{trial.config} has been changed since the model beside it was trained, or that was by a version of Carabid with "
            "other keys: the two would not fit. Put it back, or train it again (`carabid submit`)."
        )
    return _as_evaluated(config, trial)


def _as_evaluated(config: Config, trial: TrialDir) -> Config:
    """With the weights of poses that its results are of, and how it was adapted: a trial may be evaluated again in other ways."""
    if not trial.results.exists():
        return config
    with reading(trial.results, "Delete it, and `carabid evaluate` makes it again."):
        of = read_hashed(trial.results).get("evaluation", {})
        how = {
            "tta": tuple(map(float, of.get("tta", ()))),
            "adapt": Adapt.model_validate(of["adapt"]) if of.get("adapt") else None,
        }
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update=how)})


def trial_at(folder: Path) -> TrialDir:
    """The trial that a person means by a path, looked for from here, the root, and what is trained. Raises UserError."""
    places = _places(folder)
    if (found := next((place for place in places if TrialDir(place).config.exists()), None)) is not None:
        return TrialDir(found)
    looked = " or ".join(map(str, places))
    raise UserError(
        f"{folder} is not a trial's folder: there is no config.yaml in {looked}. Trials lie at "
        "trained/<experiment>/<trial>/; `carabid status` lists them."
    )


def members_of(folder: Path) -> tuple[list[TrialDir], dict[str, Any] | None]:
    """The trials of an ensemble and what calibrates them together; a trial alone is calibrated by itself (None).

    Raises UserError for a folder that is neither, and WorkError for an ensemble that is damaged, or whose members have other
    results than it was made of.
    """
    if (ensemble := ensemble_at(folder)) is None:
        return [trial_at(folder)], None
    results = read_ensemble(ensemble)
    members = {name: ExperimentDir(ensemble.path.parent.parent).trial(name) for name in results["members"]}
    if not all(trial.results.is_file() for trial in members.values()) or results["made_from"] != {
        name: hash_results(trial) for name, trial in members.items()
    }:
        raise WorkError(f"{ensemble.path}: its members have other results now: `carabid collect` makes it again")
    record, _ = read_record(next(iter(members.values())))
    with reading(ensemble.results, MADE_AGAIN):
        if not _is_like(results["calibration"], record["calibration"]):  # (one of before there were hashes)
            raise ValueError("its calibration is not of the form of its members'.")
    return list(members.values()), results["calibration"]


def ensemble_at(folder: Path) -> TrialDir | None:
    """The ensemble that a person means by a path, if it is one: results among the ensembles of an experiment."""
    for place in _places(folder):
        if place.parent.name == ENSEMBLES and TrialDir(place).results.is_file():
            return TrialDir(place)
    return None


def _is_like(found: Any, expected: Any) -> bool:
    """Whether one calibration has all the numbers of another; it may have more, of later code."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(key in found and _is_like(found[key], expected[key]) for key in expected)
    return type(found) is type(expected) or (is_number(found) and is_number(expected))


def _places(folder: Path) -> list[Path]:
    return list(dict.fromkeys(base / folder.expanduser() for base in (Path.cwd(), root(), trained_root())))


def predict_batch(
    config: Config, models: Models, images: Shaped[Tensor, "images ..."], metadata: Metadata, gradients: bool = False
) -> Predicted:
    """Of images and metadata on the CPU, back on the CPU; `gradients`: with what its gradient is computed from."""
    with torch.inference_mode(not gradients):
        features = features_of(config, models, images, gradients)
        return models.model.predict(features, metadata.to(models.device)).cpu()


def features_of(config: Config, models: Models, images: Shaped[Tensor, "images ..."], gradients: bool = False) -> Features:
    """What the model reads of images, as `Backbone.pixels` or `transform` gives them, as the store has it."""
    (kind, blocks), backbone = token_kind(config), models.backbone
    cut = backbone.cut_before(blocks) if blocks else 0
    computed = compute_features(backbone, images.to(models.device), kind, cut, gradients=gradients)
    return as_stored(computed, config.features.dtype)


def reader(config: Config, origin: Origin) -> Callable[[Path, int], Picture]:
    """What decodes and corrects new image files as those that the trial was trained on, by their path and `Backbone.enough`; of
    each kind of note the first is said on stderr. Raises UserError where it lacks card or bar."""
    how = how_of(config.data.decoding, keeps_size=config.data.scale_bar)
    card, bar = (_reference(config, origin, name, how) for name in ("colour_card", "scale_bar"))
    told = set[str]()

    def read(file: Path, enough: int) -> Picture:
        decoded = open_file(file, replace(how, enough=enough))
        for note in decoded.notes:
            if note not in told:
                print(f"carabid: {file}: {note}", file=sys.stderr, flush=True)
        told.update(decoded.notes)
        if not (card or bar):
            return decoded.picture
        image = balance(decoded.image, card) if card else decoded.image
        return rescale(image, bar, config.data.canvas) if bar else image

    return read


def _reference(config: Config, origin: Origin, name: Literal["colour_card", "scale_bar"], how: How) -> Image.Image | None:
    """The card or the bar if the trial was trained with it. Raises UserError where it was and there is none."""
    used: bool = getattr(config.data, name)
    file: Path | None = getattr(origin, name)
    thing, option = name.replace("_", " "), f"--{name.replace('_', '-')}"
    if used and file is None:
        raise UserError(
            f"this trial was trained on images corrected by their {thing} (data.{name}): name the image of the one that was "
            f"photographed with these, {option} FILE, or predict with a trial that was trained without"
        )
    if file is not None and not used:
        print(f"carabid: {option} is not used: this trial was trained without it (data.{name})", file=sys.stderr)
    return open_file(file, how).image if used and file is not None else None


def open_file(file: Path, how: How) -> Decoded:
    """A decoded image file. Raises UserError where there is none, or one that cannot be read."""
    try:
        return decode(read_image(file), how)
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise errors of many kinds on damaged files
        what = "does not exist" if isinstance(error, FileNotFoundError) else "is not a readable image"
        why = error.strerror if isinstance(error, OSError) and error.strerror else in_short(error).removesuffix(".")
        raise UserError(f"{file} {what}: {why}. Name image files that can be read.") from error
