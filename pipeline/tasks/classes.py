"""Tasks that predict classes: probabilities, figures of images with intervals over groups, per class, species and domain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.table import load_classes
from pipeline.data.truth import class_name
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.metrics.classification import FIGURES, one_hot
from pipeline.metrics.classification_report import MANY, Said, classification_report
from pipeline.metrics.figures import Figure, Training
from pipeline.metrics.regression import group_means
from pipeline.tasks.base import Array, Groups, Task, Tested, read_wide

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.groups import Prediction
    from pipeline.metrics.summaries import Summary

TOP = 5
"""Classes of each image that are kept where there are MANY; and the true one."""
OF_ONE_CLASS = {"recall": Figure("recall"), "precision": Figure("precision")}
FROM_TOP = ("balanced_accuracy", "accuracy", "log_loss", "calibration_error")
"""Figures that the TOP classes and the true one tell."""


@dataclass(frozen=True)
class Probabilities:
    """What is said of N images: a row of `images` each, probabilities [N, C], labels [N] where they are known."""

    names: tuple[str, ...]
    images: pd.DataFrame
    labels: Array | None
    said: Prediction

    @property
    def p(self) -> Array:
        return self.said.mean.astype("float64")


class Classes(Task[Probabilities]):
    """One of several classes, which the images of a group share."""

    hub_task: ClassVar[str | None] = "image-classification"
    of_classes = True
    figures: ClassVar[Mapping[str, Figure]] = {**FIGURES, **OF_ONE_CLASS}
    challenge = "butterflies"
    headline: ClassVar[Sequence[str]] = ("roc_auc", "average_precision", "balanced_accuracy", "log_loss", "selection")

    def load(self, data: Data) -> Dataset:
        return load_classes(data)

    def training(self, dataset: Dataset, table: pd.DataFrame) -> Training:
        labels = dataset.truth.of(table.drop_duplicates("group"))
        shares = np.bincount(labels, minlength=len(dataset.targets)) / len(labels)
        return Training(sorted(set(table["domain"].dropna())), dict(zip(dataset.targets, shares.tolist(), strict=True)))

    def overview(self, dataset: Dataset) -> Iterable[Summary | Chart]:
        return class_overview(dataset, "class", len(dataset.targets) > MANY)

    def sheets(self, dataset: Dataset) -> Mapping[str, pd.Series]:
        """By class as well."""
        return {"class": dataset.table["label"], **super().sheets(dataset)}

    # ---------------------------------------------------------------- predictions
    def predictions(self, table: pd.DataFrame, truth: Array | None, names: Sequence[str], said: Prediction) -> Probabilities:
        known = [name for name in ("id", "group", "domain", "species") if name in table]
        return Probabilities(tuple(names), table[known], truth, said.only(len(names)))

    def answer(self, predictions: Probabilities, members: Sequence[Probabilities] = ()) -> dict[str, tuple[float, float | None]]:
        first = self._groups(predictions).iloc[0]
        return {name: (float(first[f"{name}_mean"]), None) for name in predictions.names}

    def validation_table(self, predictions: Probabilities) -> pd.DataFrame | None:
        return self._groups(predictions) if len(predictions.names) <= MANY else None

    def tables(self, predictions: Probabilities) -> tuple[pd.DataFrame, pd.DataFrame]:
        from pipeline.metrics.groups import groups_long_form, images_long_form

        images, names, said, labels = predictions.images, predictions.names, predictions.said, predictions.labels
        assert labels is not None
        if len(names) <= MANY:
            return images_long_form(self._images(predictions), names), groups_long_form(self._groups(predictions), names)
        together = images.groupby("group", sort=False)
        groups = together[["domain"]].first().assign(n=together.size()).reset_index()
        numbers = together.ngroup().to_numpy("int64")
        p, of = group_means(said.mean, numbers, said.log_weights), labels[np.unique(numbers, return_index=True)[1]]
        images = images.assign(nth=images.groupby(["id", "group"]).cumcount())  # (an id may be an individual's)
        return top_form(images, names, predictions.p, labels), top_form(groups, names, p, of)

    def _groups(self, predictions: Probabilities) -> pd.DataFrame:
        """A row per group, as `metrics/groups.py` has it."""
        from pipeline.metrics.groups import group_table

        return group_table(self._images(predictions), predictions.names)

    def _images(self, predictions: Probabilities) -> pd.DataFrame:
        """A row per image, as `metrics/groups.py` has it, with what is true where that is known."""
        import pandas as pd

        from pipeline.metrics.groups import image_table

        table, names, labels = predictions.images, list(predictions.names), predictions.labels
        if labels is not None:
            table = pd.concat([table, pd.DataFrame(one_hot(labels, len(names)), table.index, names)], axis=1)
        return image_table(table, names, predictions.said)

    # ---------------------------------------------------------------- figures
    def report(self, predictions: Probabilities, training: Training) -> dict[str, Any]:
        assert training.means is not None and predictions.labels is not None
        shares = [training.means[name] for name in predictions.names]
        said = Said(predictions.labels, predictions.p)
        classes = [class_name(name) for name in predictions.names]
        return classification_report(predictions.images, said, classes, shares, self.figures)

    def describe(self, blocks: Mapping[str, Any]) -> dict[str, Any]:
        """Of many classes each one's own figures stand in its block alone."""
        many = len(blocks["classes"]) > MANY
        return super().describe({key: block for key, block in blocks.items() if not (many and key == "classes")})

    def score(
        self, metric: str, truth: Array, said: Prediction, groups: Groups, counts: Sequence[int] = (), names: Sequence[str] = ()
    ) -> float | None:
        finite = np.isfinite(said.log_weights).all()
        return self.figures[metric].value(truth, said.mean.astype("float64")) if finite else None

    def charts(self, images: pd.DataFrame | None, groups: pd.DataFrame, results: Mapping[str, Any]) -> Iterable[Chart]:
        from pipeline.metrics.charts.classes import class_charts

        return () if images is None else class_charts(images)

    # ---------------------------------------------------------------- comparisons
    def read_tested(self, trial: TrialDir, figure: str) -> Tested:
        if len(read_json(trial.results)["summary"]["classes"]) > MANY and figure not in FROM_TOP:
            raise UserError(f"--figure {figure}: of so many classes only the first are kept; choose {', '.join(FROM_TOP)}")
        return read_classes(trial, 0.0)


def class_overview(dataset: Dataset, word: str, is_long: bool) -> Iterator[Summary | Chart]:
    """Of classes, which people call by this word: images and groups of each, by split; and as a long tail."""
    from pipeline.metrics.charts.overview import counted, long_tail
    from pipeline.metrics.summaries import class_summary, tail_summary

    table = dataset.table[["id", "group", "split"]].assign(**{word: dataset.table["label"]})
    if is_long:
        yield tail_summary(table, word)
        yield long_tail(table, word)
    yield class_summary(table, word)
    yield counted(table, word)


def read_classes(trial: TrialDir, absent: float) -> Tested:
    """What predictions.parquet tells of each image and class; `absent` of one that was not kept.

    Raises OSError, ValueError or LookupError if a file is damaged.
    """
    classes = tuple(read_json(trial.results)["summary"]["classes"])
    index, *tables = read_wide(trial.predictions, "prediction")
    truth, said = (table.rename(columns=class_name).reindex(columns=classes) for table in tables)
    if not (truth.sum(axis=1) == 1).all():
        raise ValueError("its images are not each of one of the classes in results.json")
    return Tested(index, classes, truth.fillna(0).to_numpy().argmax(axis=1), said.where(truth.notna(), absent).to_numpy())


def top_form(rows: pd.DataFrame, names: Sequence[str], p: Array, labels: Array) -> pd.DataFrame:
    """One row per image or group and each of its TOP classes by p [N, C], and its true one: not one per class."""
    import pandas as pd

    top = np.argsort(-p, axis=1, kind="stable")[:, :TOP]
    pairs = np.stack([np.repeat(np.arange(len(p)), top.shape[1] + 1), np.column_stack([top, labels]).ravel()], axis=1)
    i, j = np.unique(pairs, axis=0).T
    of = {"target": np.array(names)[j], "truth": (labels[i] == j) * 1.0, "prediction": p[i, j]}
    return pd.DataFrame(rows.iloc[i].reset_index(drop=True)).assign(**of)
