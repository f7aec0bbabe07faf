"""Methods on the images that all of them tested: which was chosen on validation, and by how much it is better than each.

A method is what its trials share beside hyperparameters, seed and fold: backbone, encoder and head. In each fold the trial with
the best validation figure stands for it, and of all methods the best one is the chosen one: test figures choose nothing.
Loads no torch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Any

import numpy as np

from pipeline.config.identity import digest
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.reading import Damaged, reading
from pipeline.disk.secrets import complain
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.experiments.reading import saved_science
from pipeline.metrics.figures import Figure
from pipeline.metrics.intervals import central, draws
from pipeline.reporting.results import cells_to_markdown, check_results, hash_results, is_optimistic
from pipeline.reporting.state import AGAIN
from pipeline.reporting.terminal import print_cells
from pipeline.tasks import load_task
from pipeline.tasks.base import Array, Tested

DRAWS = 1000
CHOSEN = "chosen on validation"
HEADER = ("method", "validation", "test", "folds", "chosen − this", "95 % interval")
Folds = dict[int, "Candidate"]
"""Fold → the trial that stands for a method, or for all, in it."""


@dataclass(frozen=True)
class Candidate:
    """A trial with results: what it was, and how good on validation."""

    name: str
    """experiment/trial"""
    trial: TrialDir
    method: str
    data: str
    """Hash of what it was trained and tested on, but for the fold."""
    fold: int
    metric: str
    """What candidates are chosen by, and its value on validation."""
    value: float
    lower_is_better: bool
    """Of that figure."""
    task: str
    figure: str
    """The first of its headline, by its full name."""
    chosen_on: str
    """What the value is of: validation, or cross-validation inside the trial."""
    split: str
    """Where its figures are from; `optimistic` if it was chosen there."""
    optimistic: bool
    results_hash: str


@dataclass(frozen=True)
class Line:
    """A method: its means over folds, and how much better the chosen ones are in the same folds."""

    method: str
    validation: float
    test: float | None
    sd: float | None
    trials: dict[int, str]
    """Fold → the trial that stands for it."""
    missing_folds: list[int]
    difference: float | None = None
    """The chosen trials' figure minus this method's, and its 95 % interval."""
    interval: list[float] | None = None


@dataclass(frozen=True)
class Comparison:
    """All methods, best on validation first."""

    figure: str
    metric: str
    split: str
    folds: list[int]
    n: int
    n_groups: int
    of: str
    """What the n are: images, which are drawn by group, or classes."""
    draws: int
    chosen: Line
    lines: list[Line]
    warnings: list[str]


@dataclass(frozen=True)
class _Figure:
    """A figure of a trial's test images, and of each draw of them [D]."""

    value: float | None
    drawn: Array


# ---------------------------------------------------------------- who takes part
def candidates(experiments: Iterable[ExperimentDir], say: Callable[[str], None] = complain) -> list[Candidate]:
    """The trials that have results which tell by what they were chosen; not those of permuted targets. Which results are
    damaged is said, and the others are found."""
    found: list[Candidate | None] = []
    for experiment in experiments:
        for trial in experiment.trials():
            try:
                found.append(_candidate(experiment, trial))
            except Damaged as error:
                say(str(error))
    return [candidate for candidate in found if candidate]


def _candidate(experiment: ExperimentDir, trial: TrialDir) -> Candidate | None:
    with suppress(OSError), reading(trial.results, AGAIN):
        results, science = read_json(trial.results), saved_science(trial.config)
        if not science or results["config_hash"] != digest(science) or science["data"]["permute_targets"]:
            return None
        check_results(results)
        selection = results["summary"].get("selection") or {}
        if selection.get("value") is None:
            return None
        return Candidate(
            name=f"{experiment.path.name}/{trial.path.name}",
            trial=trial,
            method=method_of(science),
            data=digest({**science["data"], "split": {**science["data"]["split"], "fold": None}}),
            fold=science["data"]["split"].get("fold", 0),
            metric=selection["metric"],
            value=float(selection["value"]),
            lower_is_better=selection["metric"] in results["lower_is_better"],
            task=science["task"],
            figure=next(iter(results["headline"])),
            chosen_on=results["selected_on"],
            split=results["split"],
            optimistic=is_optimistic(results),
            results_hash=hash_results(trial),
        )
    return None


def method_of(science: Mapping[str, Any]) -> str:
    """`timm resnet18, end_to_end, mlp`: backbone, encoder unless it is frozen, head."""
    model = science["model"]
    parts = (_backbone(science["backbone"]), model["encoder"]["kind"], model["head"]["kind"])
    return ", ".join(part for part in parts if part != "frozen")


def _backbone(block: Mapping[str, Any]) -> str:
    """Kind and the last part of the name, or the size; of a backbone made of several, theirs."""
    if "parts" in block:
        return " + ".join(map(_backbone, block["parts"]))
    name = str(block.get("name", block.get("size", ""))).rstrip("/").rpartition("/")[2]
    return f"{block['kind']} {name.removeprefix('local-dir:')}".strip()


# ---------------------------------------------------------------- the comparison
def compare(found: Sequence[Candidate], name: str | None = None) -> Comparison:
    """Compare methods by a figure of their task, if no other is named the first of its headline, on what they tested; images of a
    group are drawn together.

    Raises UserError if there is no such figure, or nobody to compare; if trials were chosen by different figures; or if those of
    a fold did not test the same images.
    """
    _check(found)
    able, shown = load_task(found[0].task).compared(), found[0].figure
    name = name or (shown if shown in able else shown.rpartition(".")[2])
    methods: dict[str, Folds] = {}
    experiments = {trial.name.partition("/")[0] for trial in found}
    apart = len(experiments) > 1 and len({trial.data for trial in found}) > 1  # one method on other data is another line
    for trial in sorted(found, key=_rank):  # the best on validation stands for its method and fold
        method = f"{trial.name.partition('/')[0]}: {trial.method}" if apart else trial.method
        methods.setdefault(method, {}).setdefault(trial.fold, trial)
    chosen = {fold: min(them, key=_rank) for fold, them in _by_fold(methods).items()}
    tested = {trial: _read(trial, name) for trials in methods.values() for trial in trials.values()}
    for them in _by_fold(methods).values():
        _check_same_images({trial: tested[trial] for trial in them})
    figures = _figures(able[name], tested)
    lines = [_line(method, trials, chosen, figures) for method, trials in methods.items()]
    groups = [group for trial in chosen.values() for _, group in tested[trial].index]
    return Comparison(
        figure=name,
        metric=found[0].metric,
        split=found[0].split,
        folds=list(chosen),
        n=len(groups),
        n_groups=len(set(groups)),
        of=tested[next(iter(chosen.values()))].of,
        draws=DRAWS,
        chosen=_line(CHOSEN, chosen, chosen, figures),
        lines=sorted(lines, key=lambda line: _order(found[0].lower_is_better, line.validation, line.method)),
        warnings=_warnings(tested, lines),
    )


def _check(found: Sequence[Candidate]) -> None:
    if not found:
        raise UserError("nothing to compare: no trial has results that say by what it was chosen")
    for what, values in (
        ("were chosen by different figures", {trial.metric: trial.name for trial in found}),
        ("were chosen on different images", {trial.chosen_on: trial.name for trial in found}),
        ("were evaluated on different splits", {trial.split: trial.name for trial in found}),
        ("are of different tasks", {trial.task: trial.name for trial in found}),
    ):
        if len(values) > 1:
            examples = "; ".join(f"{shorten(value, 80)}: {trial}" for value, trial in list(values.items())[:3])
            raise UserError(f"the trials cannot be compared: they {what} ({examples}). Name experiments that share it.")


def _rank(trial: Candidate) -> tuple[float, str]:
    return _order(trial.lower_is_better, trial.value, trial.name)


def _order(lower_is_better: bool, value: float, name: str) -> tuple[float, str]:
    """The best first; equals by name."""
    return value if lower_is_better else -value, name


def _by_fold(methods: Mapping[str, Folds]) -> dict[int, list[Candidate]]:
    found: dict[int, list[Candidate]] = {}
    for fold, trial in sorted((item for trials in methods.values() for item in trials.items()), key=lambda i: i[0]):
        found.setdefault(fold, []).append(trial)
    return found


def _read(trial: Candidate, figure: str) -> Tested:
    """What a trial said. Raises UserError if that is damaged, or if the figure cannot be compared."""
    again = f"It cannot be compared: evaluate {trial.name} again."
    try:
        with reading(trial.trial.path, again, UserError):
            return load_task(trial.task).tested(trial.trial, figure)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}. {again}") from error


def _check_same_images(tested: Mapping[Candidate, Tested]) -> None:
    """Of one fold: without the same images, of the same classes, a difference says nothing."""
    first, *others = tested
    expected = tested[first]
    for trial in others:
        them = tested[trial]
        if them.index != expected.index or them.names != expected.names or not np.array_equal(them.truth, expected.truth):
            n = len(set(them.index) ^ set(expected.index))
            what = f"{n} images were tested by one of them alone" if n else "what is true of them is another thing"
            raise UserError(f"fold {trial.fold}: {first.name} and {trial.name} did not test the same: {what}")


def _figures(figure: Figure, tested: Mapping[Candidate, Tested]) -> dict[Candidate, _Figure]:
    """The figure of each trial, and of draws of groups from all folds together: each draw is the same for all trials."""
    indices = {trial.fold: them.index for trial, them in tested.items()}
    folds = sorted(indices)
    _check_apart({fold: indices[fold] for fold in folds})
    ends = np.cumsum([len(indices[fold]) for fold in folds])
    parts: dict[Candidate, list[Array]] = {trial: [] for trial in tested}
    for weights in draws([group for fold in folds for _, group in indices[fold]], seed=0, n=DRAWS):
        of_fold = dict(zip(folds, np.split(weights, ends[:-1]), strict=True))
        for trial, them in tested.items():
            parts[trial].append(them.drawn(figure, of_fold[trial.fold]))
    return {trial: _Figure(them.value(figure), np.concatenate(parts[trial])) for trial, them in tested.items()}


def _check_apart(indices: Mapping[int, Sequence[tuple[str, str]]]) -> None:
    """UserError where an image is tested in two folds: they are not of one cross-validation."""
    seen: dict[tuple[str, str], int] = {}
    for fold, index in indices.items():
        for image in index:
            if seen.setdefault(image, fold) != fold:
                raise UserError(
                    f"the trials cannot be compared: image {image[0]} is tested in fold {seen[image]} and in fold {fold}, so "
                    "these are not folds of one cross-validation (data.split.n, data.split.seed). Name experiments that share it."
                )


def _line(method: str, trials: Folds, chosen: Folds, figures: Mapping[Candidate, _Figure]) -> Line:
    """A method's means over its folds; what it is compared with are the chosen trials of these folds."""
    folds = [fold for fold in chosen if fold in trials]
    mine, best = ([figures[them[fold]] for fold in folds] for them in (trials, chosen))
    values = [each.value for each in mine if each.value is not None]
    better = _mean(best) if method != CHOSEN else None
    test = _mean(mine)
    gaps = np.mean([b.drawn - m.drawn for b, m in zip(best, mine, strict=True)], axis=0)
    return Line(
        method=method,
        validation=statistics.fmean(trials[fold].value for fold in folds),
        test=test,
        sd=statistics.stdev(values) if len(values) == len(mine) > 1 else None,
        trials={fold: trials[fold].name for fold in folds},
        missing_folds=[fold for fold in chosen if fold not in trials],
        difference=better - test if better is not None and test is not None else None,
        interval=central(gaps) if better is not None else None,
    )


def _mean(figures: Sequence[_Figure]) -> float | None:
    values = [each.value for each in figures if each.value is not None]
    return statistics.fmean(values) if len(values) == len(figures) else None


def _warnings(trials: Iterable[Candidate], lines: Iterable[Line]) -> list[str]:
    """What makes figures less than they seem."""
    found = [
        f"{line.method} has no results of fold {', '.join(map(str, line.missing_folds))}: its figures are of the others"
        for line in lines
        if line.missing_folds
    ]
    if any(trial.optimistic for trial in trials):
        found.append("figures are of the split that trials were chosen on: they are optimistic (set evaluate.split=test)")
    return found


# ---------------------------------------------------------------- as text
def cells(found: Comparison) -> list[tuple[str, ...]]:
    """A row for the chosen trials, then one for each method, under HEADER."""
    return [_cells(line) for line in (found.chosen, *found.lines)]


def _cells(line: Line) -> tuple[str, ...]:
    test = _number(line.test) + (f" ± {line.sd:.3f}" if line.sd is not None else "")
    without = f" (not {', '.join(map(str, line.missing_folds))})" if line.missing_folds else ""
    interval = f"{line.interval[0]:+.3f} to {line.interval[1]:+.3f}" if line.interval else "–"
    difference = _number(line.difference, "+.3f")
    return line.method, _number(line.validation), test, f"{len(line.trials)}{without}", difference, interval


def _number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


def notes(found: Comparison) -> list[str]:
    """What the table is of, in sentences; which trial was chosen in each fold; warnings."""
    chosen = [f"Chosen in fold {fold}: {name}." for fold, name in found.chosen.trials.items()]
    of, drawn = (f"images of {found.n_groups} groups", "groups") if found.of == "images" else (found.of, found.of)
    return [
        f"Validation: {found.metric}. Test: {found.figure} on {found.split}, mean ± sd over folds, of {found.n} {of}. "
        f"Intervals: {found.draws} draws of {drawn}, the same for both sides.",
        *chosen,
        *(f"Note: {warning}." for warning in found.warnings),
    ]


def print_table(found: Comparison) -> None:
    """The table for a terminal."""
    print_cells(HEADER, cells(found))
    print("\n".join(notes(found)))


def to_markdown(found: Comparison) -> str:
    """The table in Markdown."""
    return cells_to_markdown(HEADER, cells(found)) + "\n" + "\n".join(f"- {note}" for note in notes(found)) + "\n"


def to_json(found: Comparison) -> str:
    """All that is known, as an object."""
    return json.dumps(asdict(found), indent=1, ensure_ascii=False, allow_nan=False)
