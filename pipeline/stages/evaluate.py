"""The evaluation stage: rebuild a trial's model from its folder, predict, write predictions, provenance and results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from pipeline.backbones.base import Backbone
from pipeline.config.identity import config_hash, plain
from pipeline.config.trial import Config
from pipeline.device import choose_device, gpu_name, make_deterministic, set_threads
from pipeline.disk.attempts import spent, this_attempt
from pipeline.disk.layout import TrialDir, atomic_path, write_json, write_text
from pipeline.disk.provenance import loaded_code, provenance
from pipeline.errors import WorkError
from pipeline.features.bank import make_bank
from pipeline.metrics.groups import Prediction, groups_long_form, image_table
from pipeline.metrics.regression import group_r2
from pipeline.metrics.report import Training
from pipeline.metrics.selection import chosen_by
from pipeline.models.saved import Facts, Model, load_facts, load_model, read_trained
from pipeline.stages.inputs import Inputs, Split, differences, load_inputs
from pipeline.stages.predict import Models, forecast_groups, predict_images
from pipeline.tasks import load_task
from pipeline.training.samples import make_samples, predict

SCHEMA_VERSION = 1
Predictions = NDArray[np.float32]
Tables = tuple[pd.DataFrame, pd.DataFrame]
"""A row per image, and a row per group."""


def run(config: Config, trial: TrialDir) -> dict[str, Any]:
    """Evaluate one trained trial; results.json is written last, so that where it stands, the files beside it are complete.

    Raises WorkError if the trial is not trained, or its model does not fit the backbone or the features.
    """
    started = time.monotonic()
    loaded_code()  # now: it may be edited while this runs
    set_threads()
    make_deterministic()
    if not trial.trained.exists():
        raise WorkError(f"{trial.path}: not evaluated, because its training has not finished (no trained.json)")
    inputs = load_inputs(config)
    record = _training_record(inputs, trial)
    inputs.store.verify()
    split = choose_split(config, inputs)
    device = choose_device(config.device)
    model = load_model(config, trial, _backbone(inputs)).to(device)
    frame, difference = _predict_split(config, inputs, model, load_facts(trial), split, device)
    groups = forecast_groups(frame, inputs.dataset.targets, record, _train_domains(inputs))
    results = make_results(config, inputs, (frame, groups), split, record)
    if difference is not None:
        results["summary"]["features_difference"] = difference
    attempt = this_attempt(gpu_name(device), time.monotonic() - started)
    write_evaluation(
        trial, (frame, groups), results, {"train": record["provenance"], "evaluate": provenance(**spent([attempt]))}
    )
    return results


def choose_split(config: Config, inputs: Inputs) -> Split:
    """The split to evaluate; auto is test where there is one."""
    wanted = config.evaluate.split
    if wanted == "auto":
        wanted = "test" if len(inputs.positions("test")) else "validation"
    if wanted == "validation" and config.select.folds is not None:
        raise WorkError(
            "select.folds fits validation images too, and there is no test split: nothing is left to evaluate on. Name one "
            "(data.split), or set select.folds=null"
        )
    if not len(inputs.positions(wanted)):
        raise WorkError(f"evaluate.split is {wanted}, but the data have no such images; set evaluate.split=validation")
    return wanted


def make_results(config: Config, inputs: Inputs, tables: Tables, split: str, record: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json: the task's figures for each target, and what they are figures of."""
    frame, groups = tables
    train = Training(_train_domains(inputs), record["train_means"], record["train_sds"])
    report: dict[str, Any] = load_task(config.task).evaluate(frame, groups, inputs.dataset.targets, train)
    bad = inputs.dataset.table.loc[sorted(inputs.store.bad), "id"].tolist()
    report["summary"]["warnings"] += inputs.dataset.warnings
    report["summary"]["warnings"] += _borrowed(record, groups, train.domains)
    report["summary"] |= {"inputs": config.evaluate.inputs, "features_dtype": config.features.dtype}
    report["summary"]["selection"] = {"metric": chosen_by(config), "value": record["best_metric"]}
    report["summary"] |= {"n_bad_images": len(bad), "bad_images": bad, "permuted_targets": config.data.permute_targets}
    return report | {
        "split": split,
        "selected_on": record["selected_on"],
        "n_images": len(frame),
        "n_events": int(frame["group"].nunique()),
        "config_hash": config_hash(config),
        "feature_key": record["feature_key"],
        "data_signature": inputs.dataset.signature(),
        "evaluation": plain(config.evaluate),
        "schema_version": SCHEMA_VERSION,
    }


def _train_domains(inputs: Inputs) -> list[str]:
    return sorted(set(inputs.table("train")["domain"].dropna()))


def _borrowed(record: dict[str, Any], groups: pd.DataFrame, train_domains: Sequence[str]) -> list[str]:
    """A warning where known or new domains are forecast and too few validation groups of theirs told how far off that is."""
    known = groups["domain"].isin(list(train_domains))
    new = groups["domain"].notna() & ~known
    words = {
        "in_domain": (known, "known", "data.split.held_out holds more of them out"),
        "out_of_domain": (new, "new", "data.split.kind=domains validates on new ones"),
    }
    fitted = next(iter(record["calibration"].values()), None)
    if fitted is None:  # classes
        return []
    return [
        f"sigma in {what} domains is that of all {fitted[part]['groups']} validation groups, because too few of them are of "
        f"{what} domains: it may be too small ({remedy})"
        for part, (there, what, remedy) in words.items()
        if there.any() and fitted[part]["of_all"]
    ]


def write_evaluation(trial: TrialDir, tables: Tables, results: dict[str, Any], origin: dict[str, Any]) -> None:
    """predictions.parquet, groups.parquet, provenance.json, README.md, and last results.json; older results go first."""
    frame, groups = tables
    if trial.results.exists():
        print(f"{trial.results} is there already: evaluated again, replaced", flush=True)
        trial.results.unlink()
    targets = [key.removesuffix("_prediction") for key in frame.columns if key.endswith("_prediction")]
    with atomic_path(trial.predictions) as temporary:
        long_form(frame, targets).to_parquet(temporary, index=False)
    with atomic_path(trial.groups) as temporary:
        groups_long_form(groups, targets).to_parquet(temporary, index=False)
    write_json(trial.provenance, origin)
    write_text(trial.card, model_card(trial, results, targets))
    write_json(trial.results, results)


def long_form(frame: pd.DataFrame, targets: list[str]) -> pd.DataFrame:
    """One row per image and target: id, group (group), domain, species, target, truth, prediction."""
    known = frame[[name for name in ("id", "group", "domain", "species") if name in frame]]
    parts = [known.assign(target=t, truth=frame[t], prediction=frame[f"{t}_prediction"]) for t in targets]
    return pd.concat(parts, ignore_index=True)


def model_card(trial: TrialDir, results: dict[str, Any], targets: list[str]) -> str:
    """A README for the trial's folder, for whoever finds it later."""
    lines = [
        f"# {trial.path.parent.name}: {trial.path.name}",
        "",
        f"Evaluated on {results['split']}, chosen on {results['selected_on']}.",
        "",
        *(_card_of_classes(results) if "classes" in results else _card_of_numbers(results, targets)),
    ]
    lines += [
        "`config.yaml` trains it again; `model.safetensors` holds the trained tensors, `adapter/` (if there) the adapter in"
    ]
    lines += ["PEFT's format, `classifier.skops` (if there) a classifier of scikit-learn.", ""]
    return "\n".join(lines)


def _card_of_classes(results: dict[str, Any]) -> list[str]:
    summary, classes = results["summary"], results["classes"]
    figures = ("roc_auc", "average_precision", "balanced_accuracy", "log_loss", "calibration_error")
    lines = ["| figure | of images |", "|---|---|"]
    lines += [f"| {name.replace('_', ' ')} | {_figure(summary[name])} |" for name in figures]
    lines += ["", "| class | images | recall | precision |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {of['n']} | {_figure(of['recall'])} | {_figure(of['precision'])} |" for name, of in classes.items()
    ]
    return [*lines, ""]


def _card_of_numbers(results: dict[str, Any], targets: list[str]) -> list[str]:
    figures = [("all", ""), ("in domain", "in_domain"), ("out of domain", "out_of_domain")]
    lines = ["| target | " + " | ".join(f"R² {name} | MAE {name}" for name, _ in figures) + " |", "|---" * 7 + "|"]
    for target in targets:
        parts = [results[target][part] if part else results[target] for _, part in figures]
        lines.append(f"| {target} | " + " | ".join(f"{_figure(p['r2'])} | {_figure(p['MAE'])}" for p in parts) + " |")
    return [*lines, "", "MAE per image, R² after averaging each group's images."]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _training_record(inputs: Inputs, trial: TrialDir) -> dict[str, Any]:
    """trained.json. Raises WorkError if the model is not of this configuration and these data."""
    record = read_trained(trial)
    if changed := differences(record, inputs):
        raise WorkError(
            f"{trial.path}: not evaluated: {' and '.join(changed)} changed since it was trained; train it again"
        )
    return record


def _backbone(inputs: Inputs) -> Backbone | None:
    """What the model is rebuilt on: the backbone, if predictions come from images or the encoder is built from it."""
    return inputs.backbone if inputs.config.evaluate.inputs == "images" else inputs.encoder_backbone


def _predict_split(
    config: Config, inputs: Inputs, model: Model, facts: Facts, split: Split, device: torch.device
) -> tuple[pd.DataFrame, dict[str, float | None] | None]:
    """The split's table with predictions, and where they come from images, how far those from features are off."""
    table = inputs.table(split)
    cached = _from_features(config, inputs, model, facts, split, device)
    if config.evaluate.inputs == "features":
        return image_table(table, facts.targets, cached), None
    images = predict_images(config, Models(model, inputs.backbone.to(device), device), facts, inputs.dataset, table)
    difference = {"max_abs": float(np.abs(images.mean - cached.mean).max())}
    r2s = {} if config.data.label is not None else _r2_difference(table, facts, images.mean, cached.mean)
    return image_table(table, facts.targets, images), {**difference, **r2s}


def _from_features(
    config: Config, inputs: Inputs, model: Model, facts: Facts, split: Split, device: torch.device
) -> Prediction:
    bank = make_bank(inputs.store, inputs.positions(split).to_numpy(), device, config.resources.residence)
    return predict(model, make_samples(bank, inputs.table(split), facts, device))


def _r2_difference(table: pd.DataFrame, facts: Facts, a: Predictions, b: Predictions) -> dict[str, float | None]:
    groups, out = pd.factorize(table["group"])[0].astype("int64"), {}
    for i, target in enumerate(facts.targets):
        truth = table[target].to_numpy("float64")
        first, second = group_r2(truth, a[:, i], groups), group_r2(truth, b[:, i], groups)
        out[f"{target}_r2"] = None if first is None or second is None else abs(first - second)
    return out
