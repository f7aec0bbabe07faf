"""Tasks that compare images with classes by embeddings: image–text retrieval, of classes that were trained on and of others.

What is said of an image is its embedding, beside those of the classes (of texts, or prototypes). A model that says probabilities
takes part as well: these are the embedding then, and a class is the one where it alone is certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.config.data import Data
from pipeline.config.evaluation import CUTS
from pipeline.data.dataset import Dataset
from pipeline.data.table import load_classes
from pipeline.data.truth import class_name, label_name
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.metrics.buckets import bucket_of
from pipeline.metrics.figures import Figure, Training
from pipeline.metrics.ranks import UNKNOWN
from pipeline.metrics.retrieval import CELLS, cosines, neighbours
from pipeline.metrics.retrieval_compared import COLUMNS, compared_figures
from pipeline.metrics.retrieval_report import FIGURES, Embeddings, chosen_by, class_table, retrieval_report
from pipeline.metrics.similarity import SIMILARITIES
from pipeline.tasks.base import Array, Groups, Task, Tested
from pipeline.tasks.classes import class_overview, read_classes, top_form

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.groups import Prediction
    from pipeline.metrics.summaries import Summary

TAXON = "taxon "
"""How the columns of a table begin that say to what an image's class belongs, from the most general rank; its name follows."""
QUERIES, NEAREST = 10, 5
"""Images of which the nearest others are kept, and how many of these."""
ABSENT = -2.0
"""The cosine that stands for one that was not kept: smaller than all."""


@dataclass(frozen=True)
class Embedded:
    """What is said of N images: a row of `images` each, embeddings [N, E], labels [N] where they are known; embeddings of the
    classes [C, E], and what their cosines, or what `similarity` makes of these, are multiplied by for probabilities."""

    names: tuple[str, ...]
    images: pd.DataFrame
    labels: Array | None
    embeddings: Array
    classes: Array
    scale: float
    similarity: str = "cosine"
    training: Training | None = None
    """Which classes were trained on; None: all."""

    @cached_property
    def ranked(self) -> Embeddings:
        """What figures are made of. Rankings are made once."""
        assert self.labels is not None
        every = self.training is not None and self.training.evaluate.gallery == "all"
        return Embeddings(self.embeddings, self.labels, self.classes, _counts(self.names, self.training), every)


class Retrieval(Task[Embedded]):
    """Images and classes that find each other."""

    hub_task: ClassVar[str | None] = "zero-shot-image-classification"
    of_classes = True
    figures: ClassVar[Mapping[str, Figure]] = FIGURES
    headline: ClassVar[Sequence[str]] = ("id.i2t_map", "ood.i2t_map", "id.i2i_map", "composite", "acc", "selection")
    called: ClassVar[str] = "class"
    """What people call a class."""

    def load(self, data: Data) -> Dataset:
        return load_classes(data)

    def training(self, dataset: Dataset, table: pd.DataFrame) -> Training:
        """Of each class its share of the training images: 0 of one that was not trained on."""
        shares = np.bincount(dataset.truth.of(table), minlength=len(dataset.targets)) / len(table)
        means = dict(zip(dataset.targets, shares.tolist(), strict=True))
        return Training(sorted(set(table["domain"].dropna())), means, n=len(table))

    def overview(self, dataset: Dataset) -> Iterable[Summary | Chart]:
        """Of classes: how many have how many images, and which are in which split."""
        return class_overview(dataset, self.called, is_long=True)

    def sheets(self, dataset: Dataset) -> Mapping[str, pd.Series]:
        """By class alone."""
        return {self.called: dataset.table["label"]}

    # ---------------------------------------------------------------- predictions
    def predictions(self, table: pd.DataFrame, truth: Array | None, names: Sequence[str], said: Prediction) -> Embedded:
        known = [name for name in ("id", "group", "domain", "species") if name in table]
        known += [name for name in map(str, table) if name.startswith(TAXON)]
        images, classes = _embeddings(said.only(len(names)))
        return Embedded(tuple(names), table[known], truth, images, classes, said.scale, said.similarity)

    def forecast(self, predictions: Embedded, training: Training) -> Embedded:
        """The same, with what was trained on: that tells ID from OOD."""
        return replace(predictions, training=training)

    def answer(self, predictions: Embedded, members: Sequence[Embedded] = ()) -> dict[str, tuple[float, float | None]]:
        """Of each class its probability, the mean over the images."""
        similar = SIMILARITIES[predictions.similarity]
        logits = predictions.scale * similar(cosines(predictions.embeddings, predictions.classes).astype("float64"))
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        means = (p / p.sum(axis=1, keepdims=True)).mean(axis=0)
        return {name: (float(mean), None) for name, mean in zip(predictions.names, means, strict=True)}

    def validation_table(self, predictions: Embedded) -> pd.DataFrame | None:
        return None

    def tables(self, predictions: Embedded) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The TOP classes of each image by cosine, of those that are evaluated on, and its own; and a row per class."""
        import pandas as pd

        images, labels = predictions.images, predictions.labels
        assert labels is not None
        present = np.flatnonzero(predictions.ranked.present)
        names, places = [predictions.names[i] for i in present], np.searchsorted(present, labels)
        images = images[[name for name in map(str, images) if not name.startswith(TAXON)]]
        images = images.assign(nth=images.groupby(["id", "group"]).cumcount())  # (an id may be an individual's)
        classes, n_rows, parts = predictions.classes[present], max(1, CELLS // max(1, len(present))), []
        for first in range(0, max(1, len(images)), n_rows):
            some = slice(first, first + n_rows)
            near = cosines(predictions.embeddings[some], classes)
            parts.append(top_form(images.iloc[some], names, near, places[some]))
        return pd.concat(parts, ignore_index=True), class_table(predictions.ranked, [*map(class_name, predictions.names)])

    # ---------------------------------------------------------------- figures
    def report(self, predictions: Embedded, training: Training) -> dict[str, Any]:
        if predictions.training is not training:
            predictions = self.forecast(predictions, training)
        called, parents = label_name(predictions.names[0]), self.parents(predictions)
        parents.pop(called, None)  # a rank that is the classes themselves
        ranked, (few, medium), how = predictions.ranked, training.evaluate.buckets, predictions.similarity
        blocks = retrieval_report(ranked, parents, predictions.scale, few, medium, called, how)
        present = np.flatnonzero(predictions.ranked.present)
        blocks["summary"]["classes"] = [class_name(predictions.names[i]) for i in present]
        return blocks | {"neighbours": self._neighbours(predictions)}

    def _neighbours(self, predictions: Embedded) -> list[dict[str, Any]]:
        """Of some images, each of another class, what they are and the nearest other images, for people to look at."""
        images, labels = predictions.images, predictions.labels
        assert labels is not None
        nth = images.groupby(["id", "group"]).cumcount()
        called = [class_name(predictions.names[label]) for label in labels]
        keys = zip(images["id"], images["group"], nth.tolist(), called, strict=True)
        told = [{"id": str(name), "group": str(group), "nth": int(n), "class": of} for name, group, n, of in keys]
        found = neighbours(predictions.embeddings, labels, QUERIES, NEAREST)
        return [told[query] | {"nearest": [told[i] | {"cosine": cosine} for i, cosine in near]} for query, near in found]

    def parents(self, predictions: Embedded) -> dict[str, Array]:
        """Of each rank that the images tell the number of what each class belongs to, UNKNOWN where they do not."""
        assert predictions.labels is not None
        found: dict[str, Array] = {}
        for column in [name for name in map(str, reversed(predictions.images.columns)) if name.startswith(TAXON)]:
            codes, names = predictions.images[column].factorize(sort=True)
            of = np.full(len(predictions.names), UNKNOWN)
            of[predictions.labels[codes >= 0]] = codes[codes >= 0]
            found |= {column.removeprefix(TAXON): of} if len(names) else {}
        return found

    def score(
        self, metric: str, truth: Array, said: Prediction, groups: Groups, counts: Sequence[int] = (), names: Sequence[str] = ()
    ) -> float | None:
        images, classes = _embeddings(said)
        known = np.array(counts or [1] * len(classes), "int64")
        return chosen_by(metric, Embeddings(images, truth, classes, known))

    def charts(self, images: pd.DataFrame | None, groups: pd.DataFrame, results: Mapping[str, Any]) -> Iterable[Chart]:
        from pipeline.metrics.charts.retrieval import retrieval_charts

        return retrieval_charts(groups, results)

    # ---------------------------------------------------------------- comparisons
    def compared(self) -> Mapping[str, Figure]:
        """Figures of what was said of each image, and of each class."""
        return {**super().compared(), **compared_figures()}

    def read_tested(self, trial: TrialDir, figure: str) -> Tested:
        return read_classes(trial, ABSENT) if figure in self.figures and self.figures[figure].is_computed else read_means(trial)


def read_means(trial: TrialDir) -> Tested:
    """What groups.parquet tells of each class, as `metrics/retrieval_compared.py` has it.

    Raises OSError, ValueError or LookupError if the file is damaged, UserError if it is of before there were all columns.
    """
    import pandas as pd

    table = pd.read_parquet(trial.groups).sort_values("class")
    if missing := [name for name in COLUMNS if name not in table]:
        raise UserError(f"{trial.groups} has no {missing[0]}: it was written by an earlier version. Evaluate this trial again.")
    cuts = read_json(trial.results).get("evaluation", {}).get("buckets", CUTS)
    buckets = bucket_of(table["n_train"].to_numpy("int64"), cuts)
    said = np.column_stack([buckets, table[list(COLUMNS)].fillna(0).to_numpy("float64")])
    names = table["class"].astype(str).tolist()
    truth = table["n"].to_numpy("int64") * np.where(table["n_train"] > 0, 1, -1)
    return Tested([(name, name) for name in names], COLUMNS, truth, said, of="classes")


def _embeddings(said: Prediction) -> tuple[Array, Array]:
    """Of images and of classes."""
    return said.mean, np.eye(said.mean.shape[1], dtype="float32") if said.classes is None else said.classes


def _counts(names: Sequence[str], training: Training | None) -> Array:
    """How many training images each class has, from its share; 1 where nobody has told how many there are in all."""
    if training is None or training.means is None:
        return np.ones(len(names), "int64")
    shares = np.array([training.means[name] for name in names])
    return np.rint(shares * training.n).astype("int64") if training.n else (shares > 0).astype("int64")
