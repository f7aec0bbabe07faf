"""Named figures: what people call one, which direction is better, what it is of, and how it is computed; and what training was
like, which they are told beside."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Shaped
from numpy.typing import NDArray

from pipeline.config.evaluation import Evaluate
from pipeline.errors import UserError

Array = NDArray[Any]
Of = Literal["images", "groups", "forecasts"]


@dataclass(frozen=True)
class Figure:
    """A number that a report gives.

    `compute` makes it of what is true and what was said of N images or groups, both in the same order: of numbers of one target
    at a time, truth and prediction [N] (of forecasts mean and sigma [N] instead of a prediction), of classes of all at once,
    labels [N] and probabilities [N, C]; of several `targets` together truth and prediction [N, T]. It returns None (or NaN) where
    it is not defined. `weighted` does the same for D
    weightings [N, D] of the rows at once, [D] with NaN where it is not defined; without it a bootstrap repeats rows, which takes
    longer. A figure with neither is one that a report makes of others.
    """

    title: str
    compute: Callable[..., float | None] | None = None
    lower_is_better: bool = False
    of: Of = "images"
    selectable: bool = False
    """Whether it may choose the best epoch or classifier (`select.metric`)."""
    weighted: Callable[..., Array] | None = None
    targets: tuple[str, ...] = ()
    """Of numbers: the targets that it is of together, in the order of the columns it is computed of; (): of each by itself."""

    @property
    def is_computed(self) -> bool:
        """Whether it is made of truth and predictions, and not by a report of other figures."""
        return self.compute is not None or self.weighted is not None

    def value(self, truth: Array, *said: Array) -> float | None:
        """The figure of these rows; None where it is not defined, or what was said is not finite."""
        if not len(truth) or not all(np.isfinite(each).all() for each in said):
            return None
        try:
            found = self.compute(truth, *said) if self.compute else self._weighted(truth, *said, np.ones((len(truth), 1)))[0]
            return None if found is None or not np.isfinite(found) else float(found)
        except Exception as error:  # of whatever kind: it may be a lab's own code
            at = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{at.filename}, line {at.lineno}"
            raise UserError(f"the figure {self.title!r} cannot be computed ({where}): {type(error).__name__}: {error}") from error

    @property
    def _weighted(self) -> Callable[..., Array]:
        assert self.weighted is not None, f"{self.title} is made by its report"
        return self.weighted

    def drawn(
        self, truth: Shaped[np.ndarray, "n ..."], *said: Shaped[np.ndarray, "n ..."], weights: Float[np.ndarray, "n draws"]
    ) -> Float[np.ndarray, " draws"]:
        """The figure of each draw, by how often it has each row; NaN where it is not defined."""
        if not len(truth) or not all(np.isfinite(each).all() for each in said):
            return np.full(weights.shape[1], np.nan)
        if self.weighted is not None:
            return self.weighted(truth, *said, weights)
        rows = (np.repeat(np.arange(len(truth)), draw.astype("int64")) for draw in weights.T)
        values = (self.value(truth[some], *(each[some] for each in said)) for some in rows)
        return np.array([np.nan if value is None else value for value in values], "float64")


@dataclass(frozen=True)
class Training:
    """What was trained on, and what calibrates its forecasts."""

    domains: Sequence[str]
    means: Mapping[str, float] | None = None
    """Of each target over the training groups; of classes their shares."""
    sds: Mapping[str, float] | None = None
    calibration: Mapping[str, Any] | None = None
    """Of each target: part → calibration, as JSON."""
    n: int | None = None
    """How many images; None where nobody has told."""
    evaluate: Evaluate = field(default_factory=Evaluate)
    """How what was trained on them is evaluated."""

    @classmethod
    def of(cls, record: Mapping[str, Any], evaluate: Evaluate | None = None) -> Training:
        """What trained.json tells of it."""
        means, sds, calibration, n = map(record.get, ("train_means", "train_sds", "calibration", "n_train"))
        return cls(record["train_domains"], means, sds, calibration, n, evaluate or Evaluate())


def mean_of_all(values: Iterable[float | None]) -> float | None:
    """The mean of a figure over targets or folds; None where one is not defined, or there is none."""
    found = list(values)
    defined = [value for value in found if value is not None]
    return float(np.mean(defined)) if defined and len(defined) == len(found) else None
