"""Tasks that predict classes: probabilities, figures of images with intervals over groups, per class, species and domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from pipeline.metrics.figures import Figure
from pipeline.metrics.regression_report import Training
from pipeline.tasks.base import Array, Groups, Task, Tested

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.groups import Prediction

TOP = 5
"""Classes of each image that are kept where there are MANY; and the true one."""
OF_ONE_CLASS = {"recall": Figure("recall"), "precision": Figure("precision")}
FROM_TOP = ("accuracy", "balanced_accuracy", "log_loss")
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

    figures: ClassVar[Mapping[str, Figure]] = {**FIGURES, **OF_ONE_CLASS}
    headline: ClassVar[Sequence[str]] = ("roc_auc", "average_precision", "balanced_accuracy", "log_loss", "selection")

    def load(self, data: Data) -> Dataset:
        return load_classes(data)

    def training(self, dataset: Dataset, table: pd.DataFrame) -> Training:
        labels = dataset.truth.of(table.drop_duplicates("group"))
        shares = np.bincount(labels, minlength=len(dataset.targets)) / len(labels)
        return Training(sorted(set(table["domain"].dropna())), dict(zip(dataset.targets, shares.tolist(), strict=True)))

    # ---------------------------------------------------------------- predictions
    def predictions(self, table: pd.DataFrame, truth: Array | None, names: Sequence[str], said: Prediction) -> Probabilities:
        known = [name for name in ("id", "group", "domain", "species") if name in table]
        return Probabilities(tuple(names), table[known], truth, said.only(len(names)))

    def answer(self, predictions: Probabilities) -> dict[str, tuple[float, float | None]]:
        first = self._groups(predictions).iloc[0]
        return {name: (float(first[f"{name}_mean"]), None) for name in predictions.names}

    def validation_table(self, predictions: Probabilities) -> pd.DataFrame | None:
        return self._groups(predictions) if len(predictions.names) <= MANY else None

    def tables(self, predictions: Probabilities) -> tuple[pd.DataFrame, pd.DataFrame]:
        from pipeline.metrics.groups import groups_long_form, images_long_form

        if len(predictions.names) > MANY:
            return _top_form(predictions.images, predictions), _top_form(*self._means(predictions))
        names, labels = predictions.names, predictions.labels
        assert labels is not None
        truth = dict(zip(names, one_hot(labels, len(names)).T, strict=True))
        said = {f"{name}_prediction": column for name, column in zip(names, predictions.p.T, strict=True)}
        return images_long_form(predictions.images.assign(**truth, **said), names), groups_long_form(
            self._groups(predictions), names
        )

    def _groups(self, predictions: Probabilities) -> pd.DataFrame:
        """A row per group, as `metrics/groups.group_table` has it."""
        from pipeline.metrics.groups import group_table, image_table

        table, names = predictions.images, predictions.names
        if predictions.labels is not None:
            table = table.assign(**dict(zip(names, one_hot(predictions.labels, len(names)).T, strict=True)))
        return group_table(image_table(table, names, predictions.said), names)

    def _means(self, predictions: Probabilities) -> tuple[pd.DataFrame, Probabilities]:
        """The groups, and their pooled probabilities."""
        import pandas as pd

        from pipeline.metrics.groups import Prediction, pool_groups

        images, said, labels = predictions.images, predictions.said, predictions.labels
        numbers, names = pd.factorize(images["group"])
        parts = [each.astype("float64") for each in (said.mean, said.variance, said.log_weights)]
        mean, variance = pool_groups(parts[0], parts[1], parts[2], numbers.astype("int64"))
        firsts = np.unique(numbers, return_index=True)[1]
        groups = pd.DataFrame({"group": names, "domain": images["domain"].to_numpy()[firsts], "n": np.bincount(numbers)})
        pooled = Prediction(mean, variance, np.zeros_like(mean))
        return groups, Probabilities(predictions.names, groups, None if labels is None else labels[firsts], pooled)

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

    def score(self, metric: str, truth: Array, said: Array, groups: Groups, log_weights: Array | None = None) -> float | None:
        weights = np.zeros(1) if log_weights is None else log_weights
        return self.figures[metric].value(truth, said.astype("float64")) if np.isfinite(weights).all() else None

    # ---------------------------------------------------------------- comparisons
    def tested(self, trial: TrialDir, figure: str) -> Tested:
        import pandas as pd

        able = [name for name, each in self.figures.items() if each.compute or each.weighted]
        if figure not in able:
            raise self.refuse(figure, able)
        frame = pd.read_parquet(trial.predictions, columns=["id", "group", "target", "truth", "prediction"])
        frame["nth"] = frame.groupby(["id", "group", "target"]).cumcount()  # (an id may be an individual's)
        wide = frame.pivot(index=["id", "group", "nth"], columns="target", values=["truth", "prediction"])
        if wide.isna().to_numpy().any() and figure not in FROM_TOP:
            raise UserError(f"--figure {figure}: of so many classes only the first are kept; choose {', '.join(FROM_TOP)}")
        place = {name: i for i, name in enumerate(read_json(trial.results)["summary"]["classes"])}
        names = tuple(sorted(set(frame["target"]), key=lambda name: place[class_name(name)]))
        truth, p = (wide[part][list(names)].fillna(0).to_numpy("float64") for part in ("truth", "prediction"))
        return Tested([(f"{name} {nth}", str(group)) for name, group, nth in wide.index], truth.argmax(axis=1), p, names)

    def value(self, figure: str, tested: Tested) -> float | None:
        return self.figures[figure].value(tested.truth, tested.said)

    def drawn(self, figure: str, tested: Tested, weights: Array) -> Array:
        return self.figures[figure].drawn(tested.truth, tested.said, weights=weights)


def _top_form(rows: pd.DataFrame, said: Probabilities) -> pd.DataFrame:
    """One row per image or group and each of its TOP classes, and its true one: a table of a column per class would be as long as
    there are species."""
    import pandas as pd

    p = said.p
    assert said.labels is not None
    top = np.argsort(-p, axis=1, kind="stable")[:, :TOP]
    pairs = np.stack([np.repeat(np.arange(len(p)), TOP + 1), np.column_stack([top, said.labels]).ravel()], axis=1)
    i, j = np.unique(pairs, axis=0).T
    of = pd.DataFrame({"target": np.array(said.names)[j], "truth": (said.labels[i] == j) * 1.0, "prediction": p[i, j]})
    found: pd.DataFrame = pd.concat([rows.iloc[i].reset_index(drop=True), of], axis=1)
    return found
