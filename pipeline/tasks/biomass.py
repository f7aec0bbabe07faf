"""Biomass: the dry matter of a pasture in a photograph of a quadrat (CSIRO Image2Biomass, kaggle.com/competitions/csiro-biomass).

Five targets in grams, of which total = GDM (green dry matter) + dead and GDM = green + clover. Who predicts total, GDM and green
has the other two from them; who predicts all five has them as they are said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.other_columns import cells_of, names_of
from pipeline.errors import UserError
from pipeline.metrics.figures import Figure
from pipeline.metrics.regression import weighted_r2, weighted_r2_drawn
from pipeline.metrics.regression_report import FIGURES
from pipeline.metrics.sums import apart
from pipeline.tasks.numbers import Numbers

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.summaries import Summary

WEIGHTS = {"Dry_Green_g": 0.1, "Dry_Dead_g": 0.1, "Dry_Clover_g": 0.1, "GDM_g": 0.2, "Dry_Total_g": 0.5}
"""Of each target in the challenge's score."""
STATE = "State"
MEASURED = ("Height_Ave_cm", "Pre_GSHH_NDVI")
"""The challenge's columns beside the targets."""
NEEDED = ("Dry_Total_g", "GDM_g", "Dry_Green_g")
DERIVED = {"Dry_Dead_g": ("Dry_Total_g", "GDM_g"), "Dry_Clover_g": ("GDM_g", "Dry_Green_g")}
"""What follows: the first minus the second, and nothing below 0."""
PARTS = ("Dry_Green_g", "Dry_Clover_g", "Dry_Dead_g")
"""Of the total."""


class Biomass(Numbers):
    """Numbers, the targets that follow, and the challenge's score."""

    figures: ClassVar[Mapping[str, Figure]] = {
        "score": Figure(
            "weighted R²",
            partial(weighted_r2, weights=tuple(WEIGHTS.values())),
            selectable=True,
            weighted=partial(weighted_r2_drawn, weights=tuple(WEIGHTS.values())),
            targets=tuple(WEIGHTS),
        )
    } | FIGURES
    headline: ClassVar[Sequence[str]] = ("score", *(f"{name}.r2" for name in NEEDED), "MAE")

    def load(self, data: Data) -> Dataset:
        """Raises UserError also where one of the targets is missing that the others follow from, and where the table has the
        others and they do not follow."""
        if missing := [name for name in NEEDED if name not in data.targets]:
            raise UserError(
                f"data.targets: task=biomass predicts {', '.join(NEEDED)}, from which the other two follow, or all five; "
                f"{missing[0]} is missing"
            )
        dataset = super().load(data)
        _check_what_follows(dataset, data.source)
        return dataset

    def derive(self, targets: pd.DataFrame) -> pd.DataFrame:
        """Dead and clover, where they are not predicted themselves."""
        found = {
            name: (targets[whole] - targets[part]).clip(lower=0) for name, (whole, part) in DERIVED.items() if name not in targets
        }
        return targets[[]].assign(**found)

    def charts(self, images: pd.DataFrame | None, groups: pd.DataFrame, results: Mapping[str, Any]) -> Iterable[Chart]:
        from pipeline.metrics.charts.sums import composition

        yield composition(self.longer(groups, "mean"), NEEDED[0], PARTS)
        yield from super().charts(images, groups, results)

    def overview(self, dataset: Dataset) -> Iterable[Summary | Chart]:
        """By state as well, and against what was measured on the ground."""
        from pipeline.metrics.charts.overview import boxes, related
        from pipeline.metrics.summaries import mean_summary

        yield from super().overview(dataset)
        each, names, of = self.known_truth(dataset)
        if (states := names_of(dataset, STATE)) is not None and STATE not in each and states.nunique() > 1:
            each = each.assign(**{STATE: states})
            yield mean_summary(each, names, STATE, of)
            yield boxes(each, NEEDED[0], STATE, of)
        for measured in MEASURED:
            if (cells := cells_of(dataset, measured)) is not None and measured not in each:
                yield related(each.assign(**{measured: cells}), measured, NEEDED[0], of)

    def generate(
        self, out: Path, seed: int = 0, scale: float = 1.0, form: Literal["parquet", "csv", "disk"] = "csv"
    ) -> dict[str, int]:
        """Write generated quadrats to the folder `out`: train.csv, test.csv and images; `scale` multiplies their number.

        Raises UserError if `out` holds anything else than generated quadrats, and for a form, seed or scale that there is not.
        """
        from pipeline.synthetic.biomass import write  # drawing needs Pillow, which nothing else here does

        return write(out, seed, scale, form)


def _check_what_follows(dataset: Dataset, source: str) -> None:
    """The score is of dead and clover as they follow: where the table has its own, they must be these."""
    import pandas as pd

    for split in dataset.table["source_split"].unique():
        table = dataset.source.table(str(split))
        for name, (whole, part) in DERIVED.items():
            if name not in table:
                continue
            own, of, minus = (pd.to_numeric(table[each], errors="coerce").to_numpy("float64") for each in (name, whole, part))
            if wrong := apart(of, own + minus):
                raise UserError(
                    f"{source}: {whole} should be {part} + {name}, and is {wrong}: correct the table; or leave out "
                    f"{name}, which then is scored as {whole} less {part}"
                )


TASK = Biomass()
