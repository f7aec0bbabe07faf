"""What models gain where folds part what belongs together: figures out of fold by what folds are dealt. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations

from pipeline.config.identity import digest
from pipeline.disk.layout import ExperimentDir
from pipeline.disk.reading import Damaged, reading
from pipeline.experiments.reading import saved_science
from pipeline.reporting.results import MADE_AGAIN, read_ensemble

WORTH_SAYING = 0.05
"""How much worse a figure is where folds part less."""


@dataclass(frozen=True)
class _OutOfFold:
    """Figures out of fold, and by what folds were dealt."""

    trials: str
    """The same for trials that differ in that alone."""
    by: tuple[str, ...]
    """Columns; (): each group by itself."""
    title: str
    value: float
    """Of the first figure of the headline."""
    lower_is_better: bool

    @property
    def words(self) -> str:
        return " and ".join(self.by) or "each group by itself"

    def is_coarser(self, other: _OutOfFold) -> bool:
        """Whether its folds keep together what those of the other part."""
        return self.trials == other.trials and bool(self.by) and (not other.by or set(self.by) < set(other.by))

    def loses(self, other: _OutOfFold) -> float:
        """By how much it is worse."""
        return (other.value - self.value) * (-1 if self.lower_is_better else 1)


def warnings(experiments: Iterable[ExperimentDir]) -> list[str]:
    """A sentence for each pair of fold assignments of the same trials of which the coarser one is worse by more than
    WORTH_SAYING: what the finer one shows is what the model knows of those groups."""
    found = [each for experiment in experiments for each in _read(experiment)]
    return [
        f"{fine.title} is {fine.value:.3f} where folds are dealt by {fine.words}, and {coarse.value:.3f} by {coarse.words}: "
        f"images of one {coarse.words} are alike, and the higher figure is of such that the model has seen the like of"
        for fine, coarse in permutations(found, 2)
        if coarse.is_coarser(fine) and coarse.loses(fine) > WORTH_SAYING
    ]


def _read(experiment: ExperimentDir) -> Iterator[_OutOfFold]:
    for folder in experiment.ensembles():
        with suppress(OSError, Damaged), reading(folder.results, MADE_AGAIN):
            results = read_ensemble(folder)
            science = saved_science(experiment.trial(results["members"][0]).config)
            if results.get("of") != "folds" or not science:
                continue
            name, title = next(iter(results["headline"].items()))
            if (value := results["figures"][name]) is not None:
                by = tuple(science["data"]["split"].pop("by", ()))
                science["data"]["split"].pop("fold")
                lower = name.rpartition(".")[2] in results["lower_is_better"]
                yield _OutOfFold(digest(science), by, title, float(value), lower)
