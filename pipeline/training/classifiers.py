"""Fitting classifiers of scikit-learn as heads: penalties chosen and scored on validation, or by folds of a trial's own."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.head import (
    ClassifierHead,
    GaussianProcessHead,
    KnnHead,
    LogisticHead,
    OneClassHead,
    SgdHead,
    SvcHead,
)
from pipeline.config.trial import Config
from pipeline.errors import UserError
from pipeline.metrics.classification import FIGURES
from pipeline.models.classifiers import Array, Classifier, Folds, make_estimator
from pipeline.progress import log
from pipeline.training.checkpoint import Progress
from pipeline.training.one_class import UNKNOWN, fit_one_class
from pipeline.training.samples import Choice, Samples, embeddings

CALIBRATION_FOLDS = 5
"""That probabilities are calibrated on, or fewer where a class has not so many groups."""
MOST_OF_A_PROCESS = 4000
"""Images that a Gaussian process is fitted to: time grows with their cube, memory with their square (128 MB a matrix)."""
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """N images as scikit-learn takes them."""

    x: Array
    """Embeddings [N, E]."""
    labels: Labels
    """Place of each one's class [N]."""
    parents: Labels
    """Auxiliary class of each [N], UNKNOWN where none is told."""
    groups: Labels
    """Number of each one's group [N]."""

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Labels) -> Rows:
        return Rows(*(getattr(self, field.name)[rows] for field in fields(self)))


def fit_classifier(
    model: Classifier, train: Samples, validation: Samples, config: Config
) -> tuple[Progress, Array | None]:
    """Fit every candidate (of logistic regression: each of its penalties), leave `model` with the best by `select.metric`.

    Without `select.folds` they are fitted on `train` and scored on `validation`. With it they are fitted on both together and
    scored by what they say of the images that a fold leaves out, which is returned as well: probabilities [N, C] of the images of
    `train`, then of `validation`. The Progress' `epoch` counts the candidates; `best_epoch` is the best one's place in `Cs`.

    Raises UserError if a class has too few images or groups, or if the head does not fit their number or the classes'.
    """
    head, folds = config.model.head, config.select.folds
    choice = Choice.of(config)
    assert isinstance(head, ClassifierHead)
    rows, held_out = make_rows(model, train), make_rows(model, validation)
    if folds is not None:
        rows = held_out = _joined(rows, held_out)
    with _warnings_said_once(head.kind):
        fits = fit_path(head, rows, model.classes, config.seed)
        if folds is None:
            scored = [fit.predict_proba(held_out.x) for fit in fits]
        else:
            scored = _out_of_fold(head, rows, model.classes, folds, config.seed)
    values = [choice.task.score(choice.metric, held_out.labels, said, held_out.groups) for said in scored]
    best = min(range(len(fits)), key=lambda i: _rank(choice, values[i], held_out.labels, scored[i]))
    progress = Progress(epoch=len(fits), best_epoch=best, best_metric=values[best])
    model.estimator = fits[best]
    return progress, None if folds is None else scored[progress.best_epoch]


def _rank(choice: Choice, value: float | None, labels: Labels, said: Array) -> tuple[float, float]:
    """Lowest for the best candidate; of those that tell classes apart alike, for the one with the better probabilities."""
    sign = 1 if choice.lower_is_better else -1
    return (math.inf if value is None else sign * value), FIGURES["log_loss"].value(labels, said) or 0.0


@contextmanager
def _warnings_said_once(kind: str) -> Iterator[None]:
    """What scikit-learn warns of (a fit that has not converged, again in each fold) becomes a line of the log each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(f"{warning.message}".splitlines()[0] for warning in caught):
        log(f"model.head.kind {kind}: {text}")


def make_rows(model: Classifier, samples: Samples) -> Rows:
    """Samples as a classifier takes them; the auxiliary name that an image has the largest share of is its parent class."""
    x = embeddings(model, samples).astype("float64")
    auxiliary = samples.targets.dense()[:, samples.n_targets :].cpu().numpy()
    parents = np.full(len(x), UNKNOWN)
    if auxiliary.shape[1]:
        parents = np.where(auxiliary.max(1) > 0, auxiliary.argmax(1), UNKNOWN)
    return Rows(x, samples.truth, parents, samples.groups)


def _joined(first: Rows, second: Rows) -> Rows:
    """Both; groups are numbered from 0 in each, and none is in two splits."""
    parts = ([getattr(rows, field.name) for rows in (first, second)] for field in fields(Rows))
    x, labels, parents, (before, after) = map(list, parts)
    groups = np.concatenate([before, after + before.max() + 1])
    return Rows(np.concatenate(x), np.concatenate(labels), np.concatenate(parents), groups)


def _out_of_fold(head: ClassifierHead, rows: Rows, classes: Sequence[str], n: int, seed: int) -> list[Array]:
    """What each candidate says of every image when it was not fitted on it [N, C]."""
    n_candidates = len(head.Cs) if isinstance(head, LogisticHead) else 1
    said = [np.zeros((len(rows), len(classes))) for _ in range(n_candidates)]
    for kept, left_out in grouped_folds(rows, classes, n, seed):
        for each, fit in zip(said, fit_path(head, rows[kept], classes, seed), strict=True):
            each[left_out] = fit.predict_proba(rows.x[left_out])
    return said


# ---------------------------------------------------------------- one fit
def fit_path(head: ClassifierHead, rows: Rows, classes: Sequence[str], seed: int) -> list[Any]:
    """The head's candidates, fitted: of logistic regression one for each penalty, of every other head one.

    Raises UserError as `fit_classifier` does.
    """
    _check(head, rows, classes)
    folds: Folds = ()
    if isinstance(head, SvcHead | SgdHead | OneClassHead):
        folds = grouped_folds(rows, classes, CALIBRATION_FOLDS, seed)
    if isinstance(head, OneClassHead):
        return [fit_one_class(head, rows.x, rows.labels, rows.parents, folds)]
    estimator = make_estimator(head, seed, folds, rows.x.shape[1])
    if isinstance(head, LogisticHead):
        return list(_logistic_path(estimator, head, rows))
    estimator.fit(rows.x, rows.labels)
    if folds:
        estimator.set_params(cv=None)  # they have served; the model's file need not hold them
    return [estimator]


def _logistic_path(pipeline: Any, head: LogisticHead, rows: Rows) -> Iterator[Any]:
    """A fit for each penalty, the strongest first, which starts where the one before has ended."""
    from sklearn.pipeline import Pipeline

    (scaling, scaler), (name, model) = pipeline.steps
    z = scaler.fit_transform(rows.x)
    for C in head.Cs:
        model.set_params(C=C).fit(z, rows.labels)
        yield Pipeline([(scaling, scaler), (name, copy.deepcopy(model))])


def _check(head: ClassifierHead, rows: Rows, classes: Sequence[str]) -> None:
    """UserError where the head cannot be fitted to these images."""
    kind, n = head.kind, len(rows)
    if isinstance(head, OneClassHead) and len(classes) != 2:
        raise UserError(
            f"model.head.kind {kind} tells one class from all else, and here are {len(classes)} ({', '.join(classes)}): choose "
            "another head"
        )
    for name, count in zip(classes, np.bincount(rows.labels, minlength=len(classes)), strict=True):
        if not count:
            raise UserError(
                f"none of the {n} images to fit model.head.kind {kind} on is of {name}: remove the rows of so rare a class, or "
                "choose other splits (data.split), or head.kind mlp, which goes on without it"
            )
    if isinstance(head, GaussianProcessHead) and n > MOST_OF_A_PROCESS:
        raise UserError(
            f"model.head.kind gaussian_process takes the cube of the number of images, and {n} are more than "
            f"{MOST_OF_A_PROCESS}: choose another head"
        )
    if isinstance(head, KnnHead) and head.k > n:
        raise UserError(f"model.head.k {head.k} is more than the {n} images to fit on: lower it")


# ---------------------------------------------------------------- folds
def grouped_folds(rows: Rows, classes: Sequence[str], n: int, seed: int) -> Folds:
    """Folds stratified by class, no group in two of them: n, or fewer where a class has not so many groups.

    Raises UserError if a class has only one group, or shares its groups with others so that no two folds have all.
    """
    counts = [len(np.unique(rows.groups[rows.labels == row])) for row in range(len(classes))]
    for folds in range(min(n, *counts), 1, -1):
        found = _folds(rows, folds, seed)
        if all(len(np.unique(rows.labels[kept])) == len(classes) for kept, _ in found):
            return found
    fewest = int(np.argmin(counts))
    raise UserError(
        f"{classes[fewest]} has too few groups to leave some out and fit on the others ({counts[fewest]}): it takes two "
        "at least, and one more with select.folds; add some, or choose a head that is not calibrated (logistic, lda, knn)"
    )


def _folds(rows: Rows, n: int, seed: int) -> Folds:
    from sklearn.model_selection import StratifiedGroupKFold  # scikit-learn takes a second to import

    splitter = StratifiedGroupKFold(n, shuffle=True, random_state=seed % 2**32)
    return list(splitter.split(rows.x, rows.labels, rows.groups))
