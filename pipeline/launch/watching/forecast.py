"""How long the trials that are still to be done will take, told from past trials on disk. Loads no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from statistics import fmean
from typing import Any

from pydantic import ValidationError

from pipeline.amounts import parse_time
from pipeline.config.data import Data
from pipeline.config.identity import token_kind, towers_of
from pipeline.config.per_block import sharing
from pipeline.config.trial import Config
from pipeline.data.dataset import known_number
from pipeline.disk.attempts import TOO_MANY
from pipeline.disk.layout import ExperimentDir, TrialDir, folders_in
from pipeline.disk.reading import Damaged, is_number, reading
from pipeline.disk.writing import read_json
from pipeline.experiments.reading import Experiment, Trial, saved_science
from pipeline.reporting.state import TrialState

MAX_READ = 24
"""Past trials that are read: more would tell little more, and a plan of ten thousand trials must not wait for them."""
MAX_OF_OTHER = 3
"""Trials that are looked at in each other experiment."""
SECONDS_OF_A_CLASSIFIER, SECONDS_OF_AN_EPOCH, SECONDS_OF_AN_EVALUATION = 20.0, 1.0, 10.0
"""What is taken for granted of a head that is solved, of an epoch of one on frozen features, and of an evaluation, before there
is a past trial: more than any takes on one core; of a head that is solved from so many images, else as its time grows."""
IMAGES_OF_A_CLASSIFIER, IMAGES = 2000, 20_000
"""The latter where it cannot be told how many there are."""
READ = ("task", "data", "backbone", "model", "train", "resources")
"""The fields of a configuration that its time depends on."""
Kind = tuple[Any, ...]
Schedule = tuple[int, int | None]
"""Epochs (or, of `train.samples`, images) and patience that are asked for."""


@dataclass(frozen=True)
class _Work:
    """What a trial still needs, as far as its time depends on it; many trials need the same."""

    kind: Kind
    schedule: Schedule
    gpus: tuple[int, int]
    """GPUs of training and of evaluation."""
    is_trained: bool


@dataclass(frozen=True)
class _Past:
    """What a past trial took, in seconds: its training, what lay around that, its evaluation (None: not evaluated)."""

    training: float
    around: float
    evaluation: float | None
    epochs: int
    """Epochs that were run; of `train.samples` these."""
    schedule: Schedule
    device: str

    def seconds(self, schedule: Schedule) -> float:
        """What training by this schedule would have taken: as long if it is the same, else as long an epoch or an image."""
        if schedule == self.schedule:
            return self.around + self.training
        return self.around + self.training / max(self.epochs, 1) * schedule[0]


def forecast(experiment: Experiment, states: Sequence[TrialState]) -> str:
    """GPU-hours of training and evaluation of the trials that are not done, in one line; empty if all are.

    `states` are those that the disk shows. A trial that was interrupted counts as a whole; extraction does not count.
    """
    pairs = zip(experiment.trials, states, strict=True)
    todo = _counted((t.config, state.state == "trained") for t, state in pairs if state.state != "done")
    if not todo:
        return ""
    unplanned = experiment.dir.folders() - {trial.name for trial in experiment.trials}
    past = _past(experiment.dir, unplanned, _of_plan(experiment, states), {work.kind for work in todo})
    known = {work: n for work, n in todo.items() if work.kind in past}
    if not known:
        return "forecast: no past trial to tell from"
    rest = todo.total() - sum(known.values())
    more = f"; no past trial to tell from for {_count(rest, 'more trial')}" if rest else ""
    return f"forecast: {_in_words(known, past)}{more}"


# ---------------------------------------------------------------- trials that share a job task
def job_task_sizes(experiment: Experiment, trials: Sequence[Trial]) -> tuple[tuple[int, int], ...]:
    """How many trials each job task trains one after another, and how many job tasks in turn have so many: as many as take about
    `launch.task_minutes`, within half of the walltime of training and of that of evaluation."""
    alike = [sharing(trial.config, READ) for trial in trials]
    works = {key: (trial.config, _work(trial.config, False)) for key, trial in dict(zip(alike, trials, strict=True)).items()}
    past = _past(experiment.dir, experiment.dir.folders(), (), {work.kind for _, work in works.values()})
    config = trials[0].config  # all of a submission share these
    longest = [parse_time(config.job(stage).time) / 2 for stage in ("train", "evaluate")]
    longest[0] = min(config.launch.task_minutes * 60, longest[0])
    number = cache(known_number)
    of_all = {key: _seconds_of(*of, past, number) for key, of in works.items()}
    shares = {key: [s / most for s, most in zip(seconds, longest, strict=True)] for key, seconds in of_all.items()}
    sizes, filled = list[int](), [math.inf] * 2
    for mine in (shares[key] for key in alike):
        filled = [a + b for a, b in zip(filled, mine, strict=True)]
        if max(filled) > 1 + 1e-9:  # (sums of decimals)
            sizes.append(0)
            filled = mine
        sizes[-1] += 1
    return tuple((size, len(list(those))) for size, those in groupby(sizes))


def _seconds_of(
    config: Config, work: _Work, past: Mapping[Kind, Sequence[_Past]], number: Callable[[Data], int | None]
) -> tuple[float, float]:
    """How long a trial trains and is evaluated, by past ones of its kind; where there is none, a guess on the safe side for what
    is cheap, and for ever for what may not be. `number` tells how many images there are."""
    if known := past.get(work.kind):
        evaluations = [one.evaluation for one in known if one.evaluation is not None]
        evaluation = fmean(evaluations) if evaluations else SECONDS_OF_AN_EVALUATION
        return fmean(one.seconds(work.schedule) for one in known), evaluation
    head = config.model.head
    if not head.descends:
        more = max((number(config.data) or IMAGES) / IMAGES_OF_A_CLASSIFIER, 1.0)
        return SECONDS_OF_A_CLASSIFIER * more**head.growth, SECONDS_OF_AN_EVALUATION
    training = math.inf if config.model.tunes_towers else SECONDS_OF_AN_EPOCH * config.train.epochs
    return training, SECONDS_OF_AN_EVALUATION


def _in_words(todo: dict[_Work, int], past: dict[Kind, list[_Past]]) -> str:
    hours, gpu_hours = 0.0, 0.0
    for work, n in todo.items():
        training, evaluation = _hours(work, past[work.kind])
        hours += n * (training + evaluation)
        gpu_hours += n * (training * work.gpus[0] + evaluation * work.gpus[1])
    used = [one for kind in {work.kind for work in todo} for one in past[kind]]
    devices = " and ".join(sorted({one.device for one in used}))
    total = f"{_rounded(gpu_hours)} GPU-hours" if gpu_hours else f"{_rounded(hours)} hours without a GPU"
    n = sum(todo.values())
    return (
        f"{_count(n, 'trial')} × {_rounded(hours / n)} h = {total} to train and evaluate "
        f"(from {_count(len(used), 'past trial')} on {devices})"
    )


def _hours(work: _Work, past: list[_Past]) -> tuple[float, float]:
    """Hours of training and of evaluation, the mean of what past trials tell."""
    training = 0.0 if work.is_trained else fmean(one.seconds(work.schedule) for one in past)
    evaluations = [one.evaluation for one in past if one.evaluation is not None]
    return training / 3600, (fmean(evaluations) if evaluations else 0.0) / 3600


def _rounded(hours: float) -> str:
    if hours < 0.001:
        return "less than 0.001"
    return f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


# ---------------------------------------------------------------- what takes equally long
def _counted(todo: Iterable[tuple[Config, bool]]) -> Counter[_Work]:
    """How many trials need the same, of configurations and whether they are trained."""
    alike: dict[tuple[Any, ...], tuple[Config, bool]] = {}
    n: Counter[tuple[Any, ...]] = Counter()
    for config, is_trained in todo:
        key = (*sharing(config, READ), is_trained)
        alike.setdefault(key, (config, is_trained))
        n[key] += 1
    counted: Counter[_Work] = Counter()
    for key, of in alike.items():
        counted[_work(*of)] += n[key]
    return counted


def _work(config: Config, is_trained: bool) -> _Work:
    gpus = config.job("train").gpus_per_node, config.job("evaluate").gpus_per_node
    return _Work(_kind(config), _schedule(config), gpus, is_trained)


def _kind(config: Config) -> Kind:
    """What two trials must share for one to tell how long an epoch of the other takes."""
    model = config.model
    by_samples = config.train.samples is not None
    reads = [token_kind(config, tower) for tower in towers_of(config)]
    kinds = model.encoder.kind, model.text.kind, model.head.kind
    return config.task, config.data.source, config.backbone, *kinds, *reads, by_samples


def _schedule(config: Config) -> Schedule:
    """Epochs and patience; one and the same for all that is not trained by gradient descent."""
    train = config.train
    return (train.samples or train.epochs, train.patience) if config.model.head.descends else (0, None)


# ---------------------------------------------------------------- past trials
def _past(
    experiment: ExperimentDir, unplanned: set[str], of_plan: Iterable[tuple[TrialDir, Config]], wanted: set[Kind]
) -> dict[Kind, list[_Past]]:
    """Past trials of each kind: of this plan, else of this experiment, else of another one beside it."""
    found: dict[Kind, list[_Past]] = {}
    of_experiment = islice(_saved(experiment, unplanned), MAX_READ)
    own = experiment.path
    others = [ExperimentDir(own.parent / name) for name in sorted(folders_in(own.parent) - {own.name})]
    of_others = (pair for other in others for pair in islice(_saved(other, other.folders()), MAX_OF_OTHER))
    for candidates in (of_plan, of_experiment, islice(of_others, MAX_READ)):
        if left := wanted - found.keys():
            found |= _read(candidates, left, max(1, MAX_READ // len(wanted)))
    return found


def _read(candidates: Iterable[tuple[TrialDir, Config]], wanted: set[Kind], most: int) -> dict[Kind, list[_Past]]:
    found: dict[Kind, list[_Past]] = {}
    for folder, config in candidates:
        kind = _kind(config)
        is_wanted = kind in wanted and len(found.get(kind, ())) < most
        if is_wanted and (one := _read_past(folder, config)):
            found.setdefault(kind, []).append(one)
    return found


def _read_past(folder: TrialDir, config: Config) -> _Past | None:
    """What a trial took, by the records of its training and evaluation; None if it was not trained."""
    evaluation = None
    with suppress(OSError, Damaged), reading(folder.provenance, ""):
        evaluation = _seconds(read_json(folder.provenance)["evaluate"])
    with suppress(OSError, Damaged), reading(folder.trained, ""):
        record = read_json(folder.trained)
        took, epochs = record["provenance"], config.train.samples or int(record["epochs"])
        training = _seconds(took, "training_seconds")
        # Each of its attempts began anew; of those of an old record, only the last one's time stands there.
        around = max(0.0, _seconds(took) - training) / max(1, len(took.get("attempts", ())))
        device = str(took["device"].get("gpu") or "CPU")
        return _Past(training, around, evaluation, epochs, _schedule(config), device)
    return None


def _seconds(record: Mapping[str, Any], name: str = "seconds") -> float:
    if not is_number(value := record[name]) or not 0 <= value < TOO_MANY:
        raise ValueError(f"{name} is no time.")
    return float(value)


def _of_plan(experiment: Experiment, states: Sequence[TrialState]) -> Iterator[tuple[TrialDir, Config]]:
    """Trials of the plan that have been trained, done or not."""
    directory = experiment.dir
    there = directory.folders()
    for trial, state in zip(experiment.trials, states, strict=True):
        if state.state in ("done", "trained", "stale") and trial.name in there:
            yield directory.trial(trial.name), trial.config


def _saved(experiment: ExperimentDir, names: set[str]) -> Iterator[tuple[TrialDir, Config]]:
    """The trials of these names whose configuration can be read."""
    for folder in map(experiment.trial, sorted(names)):
        with suppress(ValidationError):
            if values := saved_science(folder.config):
                yield folder, Config.model_validate({**values, "experiment": "past"})
