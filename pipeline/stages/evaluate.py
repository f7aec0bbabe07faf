"""The evaluation stage: rebuild a trial's model from its folder, predict, write predictions, provenance and results."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.config.identity import config_hash, plain
from pipeline.config.trial import Config
from pipeline.device import choose_device, gpu_name, make_deterministic, set_threads
from pipeline.disk.attempts import spent, this_attempt
from pipeline.disk.layout import TrialDir
from pipeline.disk.provenance import loaded_code, provenance
from pipeline.disk.writing import write_json, write_table, write_text
from pipeline.errors import WorkError
from pipeline.metrics.figures import Training
from pipeline.metrics.groups import Prediction
from pipeline.models.base import Facts, Model
from pipeline.models.saved import load_facts, load_model, read_trained
from pipeline.progress import progress
from pipeline.reporting.cards import Told, model_card
from pipeline.stages.inputs import Inputs, Split, changed, load_inputs
from pipeline.stages.predict import Models, predict_images
from pipeline.stages.shared import Shared
from pipeline.tasks.base import Task
from pipeline.training.samples import predict

SCHEMA_VERSION = 1
ADAPTED = ", adapted"
"""What follows the split's name in all that shows figures of a model that was adapted to its images."""


def run(config: Config, trial: TrialDir, shared: Shared | None = None) -> dict[str, Any]:
    """Evaluate one trained trial; results.json is written last, so that where it stands, the files beside it are complete.
    `shared` is what trials before it in this process have loaded.

    Raises WorkError if the trial is not trained, or its model does not fit the backbone or the features.
    """
    started = time.monotonic()
    loaded_code()  # now: it may be edited while this runs
    set_threads()
    make_deterministic()
    if not trial.trained.exists():
        raise WorkError(f"{trial.path}: not evaluated, because its training has not finished (no trained.json)")
    inputs, record = load_inputs(config, shared), read_trained(trial)
    if why := changed(record, inputs):
        raise WorkError(f"{trial.path}: not evaluated: {' and '.join(why)} changed since it was trained; train it again")
    inputs.verify()
    split, device, task = choose_split(config, inputs), choose_device(config.device), inputs.task
    backbone = inputs.backbone if config.evaluate.inputs == "images" else inputs.encoder_backbone
    model, facts = load_model(config, trial, backbone, inputs.text_tower).to(device), load_facts(trial)
    table, training = inputs.table(split), Training.of(record, config.evaluate)
    said, cached = _predict_split(config, inputs, model, facts, split, device)
    predictions, blocks = _report(inputs, table, said, training)
    if cached is not None:
        apart = float(np.abs(said.mean - cached.mean).max())
        other = task.describe(_report(inputs, table, cached, training)[1])["figures"]
        blocks["summary"]["features_difference"] = {"max_abs": apart, **_difference(task, blocks, other)}
    results = make_results(blocks, inputs, table, split, record)
    attempt = this_attempt(gpu_name(device), time.monotonic() - started)
    origin = {"train": record["provenance"], "evaluate": provenance(**spent([attempt]))}
    write_evaluation(trial, task.tables(predictions), results, origin, model_card(Told(trial, config, record, results)))
    return results


def choose_split(config: Config, inputs: Inputs) -> Split:
    """The split to evaluate; auto is test where there is one, and it is not to be opened on purpose alone."""
    wanted = config.evaluate.split
    if wanted == "auto":
        wanted = "test" if config.data.split.opens_test and len(inputs.positions("test")) else "validation"
    if wanted == "validation" and config.select.folds is not None:
        raise WorkError(
            "select.folds fits validation images too, and there is no test split: nothing is left to evaluate on. Name one "
            "(data.split), or set select.folds=null"
        )
    if not len(inputs.positions(wanted)):
        raise WorkError(f"evaluate.split is {wanted}, but the data have no such images; set evaluate.split=validation")
    return wanted


def make_results(
    blocks: dict[str, Any], inputs: Inputs, table: pd.DataFrame, split: str, record: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of results.json: the task's blocks of figures, which of them tables show, and what they are figures of."""
    config, summary = inputs.config, blocks["summary"]
    bad = inputs.dataset.table.loc[sorted(inputs.store.bad), "id"].tolist()
    summary["warnings"] += [*inputs.dataset.warnings, *inputs.notes]
    summary |= {"inputs": config.evaluate.inputs, "features_dtype": config.features.dtype}
    summary["selection"] = {"metric": inputs.task.metric(config.select.metric), "value": record["best_metric"]}
    summary |= {"n_bad_images": len(bad), "bad_images": bad, "permuted_targets": config.data.permute_targets}
    counts = {"n_images": len(table), "n_events": int(table["group"].nunique())}
    keys = {key: record[key] for key in ("feature_key", "task_hash") if key in record} | {"config_hash": config_hash(config)}
    data = {"data_signature": inputs.looks, "evaluation": plain(config.evaluate), "schema_version": SCHEMA_VERSION}
    of = {"split": split + ADAPTED * (config.evaluate.adapt is not None), "selected_on": record["selected_on"]}
    return blocks | inputs.task.describe(blocks) | of | counts | keys | data


def write_evaluation(
    trial: TrialDir, tables: tuple[pd.DataFrame, pd.DataFrame], results: dict[str, Any], origin: dict[str, Any], card: str
) -> None:
    """predictions.parquet, groups.parquet, provenance.json, README.md, and last results.json; older results go first."""
    if trial.results.exists():
        print(f"{trial.results} is there already: evaluated again, replaced", flush=True)
        trial.results.unlink()
    for path, table in zip((trial.predictions, trial.groups), tables, strict=True):
        write_table(path, table)
    write_json(trial.provenance, origin)
    write_text(trial.card, card)
    write_json(trial.results, results)


def _predict_split(
    config: Config, inputs: Inputs, model: Model, facts: Facts, split: Split, device: torch.device
) -> tuple[Prediction, Prediction | None]:
    """What the model says of the split's images; if that comes from the images, also what it says of cached features."""
    samples = inputs.samples(facts, split, device)
    if config.evaluate.adapt is not None:
        config.model.head.adapt(model, samples, config, config.evaluate.adapt)
    with progress("evaluate", len(samples)) as advance:
        cached = predict(model, samples, advance)
    if config.evaluate.inputs == "features":
        return cached, None
    models = Models(model, inputs.backbone.to(device), device)
    return predict_images(config, models, facts, inputs.dataset, inputs.table(split)), cached


def _report(inputs: Inputs, table: pd.DataFrame, said: Prediction, training: Training) -> tuple[Any, dict[str, Any]]:
    """The task's predictions, with forecasts, and its blocks of figures."""
    task, truth = inputs.task, inputs.dataset.truth.of(table)
    predictions = task.forecast(task.predictions(table, truth, inputs.dataset.targets, said), training)
    return predictions, task.report(predictions, training)


def _difference(task: Task[Any], blocks: dict[str, Any], other: Mapping[str, float | None]) -> dict[str, float | None]:
    """How far the figures that models are chosen by are from those of another report, by name."""
    figures, metric = task.describe(blocks)["figures"], task.metric(None)
    pairs = {name: (value, other[name]) for name, value in figures.items() if name.rpartition(".")[2] == metric}
    return {name: None if a is None or b is None else abs(a - b) for name, (a, b) in pairs.items()}
