"""Trials of two towers between the model as it was released and as it was tuned: what is gained where species were trained on
(ID), and what is lost where they were not (OOD)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config.trial import Config
from pipeline.device import choose_device, make_deterministic, set_threads
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import write_json, write_text
from pipeline.errors import UserError, WorkError
from pipeline.metrics.charts.drawing import to_svg_file
from pipeline.metrics.charts.retrieval import frontier
from pipeline.metrics.figures import Training
from pipeline.models.base import Facts
from pipeline.models.interpolation import bare, between, plain, soup
from pipeline.models.saved import load_facts, load_model, make_model, read_trained
from pipeline.models.towers import TwoTowers
from pipeline.stages.evaluate import choose_split
from pipeline.stages.inputs import Inputs, changed, load_inputs
from pipeline.stages.predict import trained_config, trial_at
from pipeline.training.samples import Samples, predict
from pipeline.training.towers import embed_classes, of_texts

SHOWN = ("id.i2t_map", "ood.i2t_map", "id.i2i_map", "composite", "acc")


@dataclass(frozen=True)
class Frontier:
    """Figures at each α, and where they were written."""

    rows: list[dict[str, float | None]]
    split: str
    files: tuple[Path, Path]


def run(folders: Sequence[Path], alphas: Sequence[float], device: str | None) -> Frontier:
    """Evaluate (1 − α)·released + α·tuned for each α, of one trial or of the soup of several, and write the figures and a picture
    into the first trial's folder. Raises UserError for trials without two tuned towers, or of unlike ones, WorkError where what
    the first was trained on has changed."""
    set_threads()
    make_deterministic()
    trials = [trial_at(folder) for folder in folders]
    config, facts, where = trained_config(trials[0]), load_facts(trials[0]), choose_device(device or "auto")
    if not _tunes(config):
        raise UserError(
            f"{trials[0].path}: model.head.kind {config.model.head.kind} tunes no towers: name a trial of contrastive or lift"
        )
    inputs = load_inputs(config)
    if why := changed(read_trained(trials[0]), inputs):
        raise WorkError(f"{trials[0].path}: {' and '.join(why)} changed since it was trained; train it again")
    inputs.verify()
    split = choose_split(config, inputs)
    loaded = [_tuned(trial, inputs).to(where) for trial in trials]
    samples, training = inputs.samples(facts, split, where), Training.of(read_trained(trials[0]), config.evaluate)
    figures = partial(_figures, samples=samples, inputs=inputs, split=split, training=training)
    models = _Between(bare(_base(config, facts, inputs)).to(where), loaded, samples)
    rows = [{"alpha": alpha, **figures(models.at(alpha))} for alpha in alphas]
    return _write(trials, rows, split)


class _Between:
    """Models between the released one and the tuned one, or the soup of several."""

    def __init__(self, base: TwoTowers, loaded: Sequence[TwoTowers], samples: Samples) -> None:
        self.model, self.loaded, self.texts = base, loaded, of_texts(samples)
        embed_classes(base, self.texts)
        self.released = {name: tensor.clone() for name, tensor in base.state_dict().items()}
        self.tuned = soup([plain(model).state_dict() for model in loaded])

    def at(self, alpha: float) -> TwoTowers:
        """(1 − α)·released + α·tuned; at 1 of a single trial its own model, whose adapters are not merged: merging rounds."""
        if alpha == 1 and len(self.loaded) == 1:
            return self.loaded[0]
        self.model.load_state_dict(between(self.released, self.tuned, alpha))
        if self.model.classes_are_texts:
            embed_classes(self.model, self.texts)
        return self.model


def _tunes(config: Config) -> bool:
    """Whether it learns from its towers on, by descent."""
    return config.model.head.embeds and config.model.head.descends


def _base(config: Config, facts: Facts, inputs: Inputs) -> TwoTowers:
    """The model before it was tuned."""
    made = make_model(config, facts, inputs.encoder_backbone, inputs.text_tower)
    assert isinstance(made, TwoTowers)
    return made


def _tuned(trial: TrialDir, inputs: Inputs) -> TwoTowers:
    """Raises UserError for a trial that has learnt from anything else than these inputs, or tunes no towers."""
    config = trained_config(trial)
    if not _tunes(config):
        raise UserError(f"{trial.path}: it tunes no towers: a soup is of trials of one experiment")
    if others := changed(read_trained(trial), inputs, besides=["config_hash"]):
        what = " and ".join(others)
        raise UserError(f"{trial.path}: not of the first trial are {what}: a soup is of trials that learnt from the same")
    loaded = load_model(config, trial, inputs.encoder_backbone, inputs.text_tower)
    assert isinstance(loaded, TwoTowers)
    return loaded


def _figures(model: TwoTowers, samples: Samples, inputs: Inputs, split: Any, training: Training) -> dict[str, float | None]:
    """The headline's figures, and all others by name."""
    table, task = inputs.table(split), inputs.task
    said = predict(model, samples)
    predictions = task.forecast(task.predictions(table, inputs.dataset.truth.of(table), inputs.dataset.targets, said), training)
    figures: dict[str, float | None] = task.describe({"summary": {}} | task.report(predictions, training))["figures"]
    return {name: figures.get(name) for name in (*SHOWN, *figures)}


def _write(trials: Sequence[TrialDir], rows: list[dict[str, float | None]], split: str) -> Frontier:
    first, names = trials[0], [trial.path.name for trial in trials]
    if first.interpolation.exists():
        print(f"{first.interpolation} is there already: replaced", flush=True)
    write_json(first.interpolation, {"trials": names, "split": split, "rows": rows})
    write_text(first.frontier, to_svg_file(frontier(rows)))
    return Frontier(rows, split, (first.interpolation, first.frontier))
