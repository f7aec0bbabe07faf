"""What a task is: all that is particular to a scientific problem, and that nothing outside of this folder asks a kind for.

A stock task (`numbers.Numbers`, `classes.Classes`, `retrieval.Retrieval`) does all of it; a problem's own file says what differs.
Loads no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError, nearest
from pipeline.metrics.figures import Figure, Of, Training, mean_of_all

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.calibration import Kind
    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.groups import Prediction
    from pipeline.metrics.summaries import Summary

Array = NDArray[Any]
Groups = NDArray[np.int64]


class HasImages(Protocol):
    """What a task keeps predictions in; who has them from it gives them back to it, and looks at the table of images alone."""

    @property
    def images(self) -> pd.DataFrame: ...


P = TypeVar("P", bound=HasImages)
UNNAMED = ("summary", "classes", "challenge", "buckets", "ranks")
"""Blocks of results.json that do not stand in the names of the figures in them."""
ASIDE = ("by_species", "by_domain", "majority", "intervals", "selection", "at_k")
"""Blocks whose figures stand in results.json alone, and in no table."""
SCOPES = {
    "in_domain": "in-domain",
    "out_of_domain": "out-of-domain",
    "by_group": "by group",
    "id": "ID",
    "ood": "OOD",
    "full": "in the full gallery",
    "random": "by chance",
}


@dataclass(frozen=True)
class Tested:
    """What a trial said of the N images or groups that it was tested on, in the order of their names."""

    index: list[tuple[str, str]]
    """Name and group of each."""
    names: tuple[str, ...]
    """What is predicted."""
    truth: Array
    """Numbers [N, T], or labels [N]."""
    said: Array
    """Predictions [N, T], or probabilities [N, C]."""
    of: str = "images"
    """What the N are: where they are classes, each is a group of its own."""
    together: bool = False
    """Whether the figure that they were read for is of all numbers of an image at once."""

    def pairs(self) -> list[tuple[Array, Array]]:
        """What figures are made of, true and said: labels [N] and probabilities [N, C], or numbers [N] of each target, or of all
        together [N, T]."""
        whole = self.together or self.truth.ndim == 1
        return [(self.truth, self.said)] if whole else list(zip(self.truth.T, self.said.T, strict=True))

    def value(self, figure: Figure) -> float | None:
        """A figure, of several targets the mean of theirs."""
        return mean_of_all(figure.value(*pair) for pair in self.pairs())

    def drawn(self, figure: Figure, weights: Float[np.ndarray, "n draws"]) -> Float[np.ndarray, " draws"]:
        """The figure for each weighting of the rows; NaN where it is not defined."""
        return np.asarray(np.mean([figure.drawn(*pair, weights=weights) for pair in self.pairs()], axis=0))


@dataclass(frozen=True)
class Kept:
    """What a trained and evaluated trial says, read from its folder, for ensembles."""

    names: tuple[str, ...]
    validation: pd.DataFrame
    groups: pd.DataFrame
    images: pd.DataFrame


class Task(ABC, Generic[P]):
    """One scientific problem."""

    figures: ClassVar[Mapping[str, Figure]]
    """Every figure that its reports have, by name."""
    headline: ClassVar[Sequence[str]]
    """What tables show, the first sorts them: names of figures, `in_domain.r2` of those in a block; `selection` is the figure on
    validation that the model was chosen by. The first that is selectable chooses models unless `select.metric` does."""
    instead: ClassVar[Mapping[str, str]] = {}
    """For a figure that may not be defined for a whole table the one that is shown and sorts it then."""
    of_classes: ClassVar[bool] = False
    """Whether predictions.parquet has a row per image and class, `label=class`, with its truth 0 or 1; else one per target."""
    ensembles: ClassVar[bool] = False
    """Whether trials that differ in the seed alone, or in the fold alone, are taken together as well (`kept`, `combine`,
    `out_of_fold`)."""
    hub_task: ClassVar[str | None] = None
    """What the Hub calls such a task (`pipeline_tag` of a card); None: it has no name for it."""
    challenge: ClassVar[str | None] = None
    """Whose platform `carabid export` writes for, one of `export/platforms.py`; None: no platform takes what it predicts."""

    # ---------------------------------------------------------------- data
    @abstractmethod
    def load(self, data: Data) -> Dataset:
        """The data set that the configuration names, checked. Raises UserError naming file, row and column."""

    def generate(
        self, out: Path, seed: int = 0, scale: float = 1.0, form: Literal["parquet", "csv", "disk"] = "parquet"
    ) -> dict[str, int]:
        """Write made-up data in the task's schema to the folder `out`; the number of images per split.

        Raises UserError where there are none for this task, and for a form, a seed or a scale that there is not.
        """
        raise NotImplementedError

    @abstractmethod
    def training(self, dataset: Dataset, table: pd.DataFrame) -> Training:
        """What the training rows `table` of a data set are like."""

    def overview(self, dataset: Dataset) -> Iterable[Summary | Chart]:
        """Tables and pictures of what is to be predicted, before anything is trained, for `carabid inspect`."""
        return ()

    def sheets(self, dataset: Dataset) -> Mapping[str, pd.Series]:
        """By what samples of images are shown on sheets: what a sheet is of → of each image the name of its sheet, None: on none;
        in the order of sheets."""
        domains = dataset.table["domain"]
        return {"domain": domains} if domains.notna().any() else {}

    # ---------------------------------------------------------------- predictions
    @abstractmethod
    def predictions(self, table: pd.DataFrame, truth: Array | None, names: Sequence[str], said: Prediction) -> P:
        """What a model says of the images of `table` ([N, T] each), beside what is true of them, where that is known."""

    def calibrate(self, held_out: P, training: Training, kind: Kind) -> dict[str, Any]:
        """Calibrations as JSON, from predictions for images that the model was not fitted to; {}: nothing is calibrated."""
        return {}

    def forecast(self, predictions: P, training: Training) -> P:
        """The predictions with calibrated forecasts of their groups."""
        return predictions

    @abstractmethod
    def answer(self, predictions: P, members: Sequence[P]) -> dict[str, tuple[float, float | None]]:
        """What is said of the first group of calibrated predictions, and was by the members that they are of: name → value, and
        its sd where it has one."""

    @abstractmethod
    def validation_table(self, predictions: P) -> pd.DataFrame | None:
        """What is kept of held-out groups, for ensembles and exports; None: nothing."""

    @abstractmethod
    def tables(self, predictions: P) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The content of predictions.parquet and of groups.parquet."""

    def completed(self, said: pd.DataFrame) -> pd.DataFrame:
        """What is said of images, a column of each target, with what follows from it."""
        return said

    # ---------------------------------------------------------------- figures
    @abstractmethod
    def report(self, predictions: P, training: Training) -> dict[str, Any]:
        """The task's blocks of results.json. `summary` must be there, with `warnings`; where a figure stands makes its name."""

    @abstractmethod
    def score(
        self, metric: str, truth: Array, said: Prediction, groups: Groups, counts: Sequence[int] = (), names: Sequence[str] = ()
    ) -> float | None:
        """A figure of validation images [N], by which the best epoch is known; None where it is not defined.

        `said` is the model's, `groups` [N] are numbers of the images' groups; of classes `counts` says how many images of each
        are trained on, where that is known; of numbers `names` are those of the targets.
        """

    def course(self, truth: Array, said: Prediction, groups: Groups, names: Sequence[str]) -> dict[str, float]:
        """Figures of validation that metrics.jsonl and trackers show of every epoch, beside that which chooses."""
        return {}

    def metric(self, wanted: str | None) -> str:
        """The figure that a model is chosen by. Raises UserError for one that none can be chosen by."""
        able = [name for name in (*self.headline, *self.figures) if name in self.figures and self.figures[name].selectable]
        if wanted is None or wanted in able:
            return wanted or able[0]
        able = list(dict.fromkeys(able))
        raise UserError(f"select.metric: this task's models are not chosen by {wanted!r}; {nearest(wanted, able)}")

    def check(self) -> None:
        """Raises UserError where the task itself cannot be right: a headline that names no figure, a figure of nothing."""
        who = type(self).__name__
        for last in {name.rpartition(".")[2] for name in self.headline} - {"selection", *self.figures}:
            raise UserError(f"{who}: headline names {last!r}, and there is no such figure; {nearest(last, [*self.figures])}")
        for name, figure in self.figures.items():
            if "." in name or figure.of not in get_args(Of):
                raise UserError(f"{who}: figure {name!r} has a dot in its name, or is of {figure.of!r}, none of {get_args(Of)}")

    def describe(self, blocks: Mapping[str, Any]) -> dict[str, Any]:
        """What tables need of results, for results.json: the figures by name, which of them are the headline with their titles,
        of which less is better, and which with its title stands in for another."""
        values = dict(self._named(blocks, "")) | {"selection": blocks["summary"].get("selection", {}).get("value")}
        lower = [name for name, figure in self.figures.items() if figure.lower_is_better]
        headline = {name: self.title(name) for name in self.headline}
        instead = {name: (other, self.title(other)) for name, other in self.instead.items()}
        return {"figures": values, "headline": headline, "lower_is_better": lower, "instead": instead}

    def title(self, name: str) -> str:
        """What people call a figure: `in_domain.r2` → R² in-domain."""
        *scopes, last = name.split(".")
        if name == "selection":
            return "validation"
        return " ".join([self.figures[last].title, *(SCOPES.get(scope, scope) for scope in scopes)])

    def _named(self, block: Mapping[str, Any], prefix: str) -> Any:
        for key, value in block.items():
            if key in self.figures and not isinstance(value, dict):
                yield f"{prefix}{key}", value
            elif isinstance(value, dict) and key not in ASIDE and not (key == "mean_predictor" and prefix):
                yield from self._named(value, prefix if key in UNNAMED else f"{prefix}{key}.")

    def charts(self, images: pd.DataFrame | None, groups: pd.DataFrame, results: Mapping[str, Any]) -> Iterable[Chart]:
        """Pictures of what a trial or an ensemble said, for `carabid report`: from its predictions.parquet, with the columns site
        and date where the data tell them (None: it keeps no images), its groups.parquet and its results.json."""
        return ()

    # ---------------------------------------------------------------- comparisons and ensembles
    def tested(self, trial: TrialDir, figure: str) -> Tested:
        """What a trial said, from its folder, for a figure that can be compared.

        Raises OSError, ValueError or LookupError if a file is damaged, UserError if the figure cannot be compared.
        """
        if figure not in (able := [*self.compared()]):
            raise UserError(f"--figure {figure}: there is no such figure to compare by; {nearest(figure, able)}")
        return self.read_tested(trial, figure)

    def compared(self) -> Mapping[str, Figure]:
        """The figures that trials can be compared by, by name."""
        return {name: each for name, each in self.figures.items() if each.is_computed and each.of != "forecasts"}

    @abstractmethod
    def read_tested(self, trial: TrialDir, figure: str) -> Tested:
        """The same for a figure that is computed of images or groups."""

    def kept(self, trial: TrialDir) -> Kept:
        """What ensembles are made of, from a trial's folder. Raises what pandas raises of damaged files."""
        raise NotImplementedError

    def together(self, members: Sequence[P]) -> P:
        """What several models that differ in the seed alone say together of the same images; of one what it says."""
        (one,) = members
        return one

    def combine(self, members: Sequence[Kept], training: Training, kind: Kind) -> tuple[P, Training]:
        """What several models say together that differ in the seed alone, and the training with the calibration that is theirs.

        Raises WorkError if they are not of the same images.
        """
        raise NotImplementedError

    def out_of_fold(self, members: Sequence[Kept], trainings: Sequence[Training], kind: Kind) -> tuple[P, Training]:
        """What models of all folds say, each of the images of its own fold, and the training that they have in common with the
        calibration of all of them as one model.

        Raises WorkError if one image is of two folds.
        """
        raise NotImplementedError


def read_wide(path: Path, column: str) -> tuple[list[tuple[str, str]], pd.DataFrame, pd.DataFrame]:
    """What predictions.parquet or groups.parquet tells of N images or groups: name and group of each; what is true, and what
    `column` says, [N, T], of each target in a column of its name, NaN where no row tells it.

    Raises OSError, ValueError or LookupError if the file is damaged.
    """
    import pandas as pd

    frame = pd.read_parquet(path)
    frame["id"] = frame["id" if "id" in frame else "group"]
    if "nth" not in frame:  # (an id may be an individual's)
        frame["nth"] = frame.groupby(["id", "group", "target"]).cumcount()
    wide: Any = frame.pivot(index=["id", "group", "nth"], columns="target", values=["truth", column])
    return [(f"{name} {nth}", str(group)) for name, group, nth in wide.index], wide["truth"], wide[column]
