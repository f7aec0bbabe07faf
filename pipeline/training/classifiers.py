"""Fitting classifiers of scikit-learn as heads: penalties chosen and scored on validation, or by folds of a trial's own."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from pipeline.config.classifiers import ClassifierHead
from pipeline.data.truth import class_name
from pipeline.errors import UserError
from pipeline.metrics.classification import FIGURES
from pipeline.metrics.groups import Prediction
from pipeline.models.classifiers import Classifier
from pipeline.models.estimators import Array, Folds, Labels, OfSome, Recipe, Rows
from pipeline.models.one_class import UNKNOWN
from pipeline.progress import log
from pipeline.training.checkpoint import Progress
from pipeline.training.run import Choice, Fitted, Run
from pipeline.training.samples import Samples, embeddings

NAMED = 5
"""Classes that a warning names."""
CALIBRATION_FOLDS = 5
"""That probabilities are calibrated on, or fewer where a class has not so many groups."""


def fit_classifier(model: Classifier, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Fit every candidate (of logistic regression: each of its penalties), leave `model` with the best by `select.metric`.

    Without `select.folds` they are fitted on `train` and scored on `validation`. With it they are fitted on both together and
    scored by what they say of the images that a fold leaves out, which is returned as well. The Progress' `epoch` counts the
    candidates; `best_epoch` is the best one's place in `Cs`.

    Raises UserError if the head does not fit the number of images or the classes that are there, or if groups are too few to
    fold.
    """
    config, head, choice, folds = run.config, model.head, run.choice, run.config.select.folds
    rows, held_out = make_rows(model, train), make_rows(model, validation)
    if folds is not None:
        rows = held_out = _joined(rows, held_out)
    names = [class_name(target) or target for target in model.classes]
    with _warnings_said_once(head.kind):
        fits = fit_path(head, rows, names, config.seed)
        if folds is None:
            scored = [fit.predict_proba(held_out.x) for fit in fits]
        else:
            scored = _out_of_fold(head, rows, names, folds, config.seed)
    values = [_score(choice, held_out, said, train.counts) for said in scored]
    best = min(range(len(fits)), key=lambda i: _rank(choice, values[i], held_out.labels, scored[i]))
    progress = Progress(epoch=len(fits), best_epoch=best, best_metric=values[best])
    model.estimator = fits[best]
    return Fitted(progress, None if folds is None else scored[best])


def _score(choice: Choice, held_out: Rows, said: Array, counts: Sequence[int]) -> float | None:
    return choice.task.score(choice.metric, held_out.labels, Prediction.of(said), held_out.groups, counts)


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
    """Both; groups are numbered from 0 in each, and no group is in two splits."""
    parts = ([getattr(rows, field.name) for rows in (first, second)] for field in fields(Rows))
    x, labels, parents, (before, after) = map(list, parts)
    groups = np.concatenate([before, after + before.max() + 1])
    return Rows(np.concatenate(x), np.concatenate(labels), np.concatenate(parents), groups)


def _out_of_fold(head: ClassifierHead, rows: Rows, classes: Sequence[str], n: int, seed: int) -> list[Array]:
    """What each candidate says of every image when it was not fitted on it [N, C]."""
    said: list[Array] = []
    for kept, left_out in grouped_folds(rows, classes, n, seed):
        fits = fit_path(head, rows[kept], classes, seed)
        said = said or [np.zeros((len(rows), len(classes))) for _ in fits]
        for each, fit in zip(said, fits, strict=True):
            each[left_out] = fit.predict_proba(rows.x[left_out])
    return said


def fit_path(head: ClassifierHead, rows: Rows, classes: Sequence[str], seed: int) -> list[OfSome]:
    """The head's candidates, fitted: of logistic regression one for each penalty, of every other head one. Classes that are not
    there, or have too few groups to calibrate their probabilities, are left out, which is said.

    Raises UserError as `fit_classifier` does.
    """
    recipe: Recipe = head.recipe()
    present = _fitted_classes(recipe, rows, classes)
    known = rows[np.flatnonzero(np.isin(rows.labels, present))]
    counts = np.bincount(known.labels, minlength=len(classes)).tolist()
    if misfit := head.misfit(dict(zip(classes, counts, strict=True))):
        raise UserError(f"model.head.kind {head.kind} {misfit}: choose another head, or other splits (data.split)")
    known = replace(known, labels=np.searchsorted(present, known.labels))
    names = [classes[i] for i in present]
    folds = grouped_folds(known, names, CALIBRATION_FOLDS, seed) if recipe.calibrated else ()
    return [OfSome(fit, tuple(present.tolist()), len(classes)) for fit in recipe.fit(known, folds, seed % 2**32)]


def _fitted_classes(recipe: Recipe, rows: Rows, classes: Sequence[str]) -> Labels:
    """Those that can be fitted; warns of the others."""
    present, why = np.unique(rows.labels), "are not among the images to fit on"
    if recipe.calibrated and len(several := _several(rows, len(classes))) > 1:
        present, why = several, "have fewer than the two groups that it takes to calibrate probabilities"
    names = [classes[i] for i in np.setdiff1d(np.arange(len(classes)), present)]
    if names:
        some = f"{', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}"
        warnings.warn(f"{some} {why}: what is so is taken for something else", stacklevel=2)
    return present


def _several(rows: Rows, n: int) -> Labels:
    """The classes, of n, with more than one group."""
    return np.flatnonzero([len(np.unique(rows.groups[rows.labels == row])) > 1 for row in range(n)])


# ---------------------------------------------------------------- folds
def grouped_folds(rows: Rows, classes: Sequence[str], n: int, seed: int) -> Folds:
    """Folds stratified by class, no group in two of them: n, or fewer where a class has not so many groups. A class of one group
    is in one fold, and not among what is kept when that is left out.

    Raises UserError if not two classes have several groups, or share them so that no two folds have all of these.
    """
    counts = [len(np.unique(rows.groups[rows.labels == row])) for row in range(len(classes))]
    several = _several(rows, len(classes))
    for folds in range(min(n, *(counts[row] for row in several)) if len(several) > 1 else 1, 1, -1):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
        found = list(splitter.split(rows.x, rows.labels, rows.groups))
        if all(np.isin(several, rows.labels[kept]).all() for kept, _ in found):
            return found
    fewest = int(np.argmin(counts))
    raise UserError(
        f"{classes[fewest]} has too few groups to leave some out and fit on the others ({counts[fewest]}): it takes two "
        "at least, and one more with select.folds; add some, or choose a head that is not calibrated (logistic, lda, knn)"
    )
