"""Charts of targets that add up: what wholes are made of, observed and predicted. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.metrics.charts.chart import Chart
from pipeline.metrics.charts.drawing import SERIES

if TYPE_CHECKING:
    import pandas as pd

FIFTHS = 5


def composition(groups: pd.DataFrame, whole: str, parts: Sequence[str]) -> Chart:
    """The parts of a whole, means of the groups in each fifth of what was observed of it; `groups` is groups.parquet."""
    import pandas as pd

    truth, mean = (groups.pivot_table(index="group", columns="target", values=of, sort=False) for of in ("truth", "mean"))
    fifth = pd.qcut(truth[whole].rank(method="first"), min(FIFTHS, len(truth)), labels=False) + 1
    tables = [
        each[list(parts)].groupby(fifth).mean().assign(of=of).rename_axis("fifth").reset_index()
        for of, each in (("observed", truth), ("predicted", mean))
    ]
    said = (
        f"Means of {', '.join(parts)} in fifths of the groups by observed {whole}: left what was observed, right, paler, what "
        f"was predicted. Predictions that are drawn to the mean are too high on the left of the picture and too low on its right."
    )
    table = pd.concat(tables, ignore_index=True)
    return Chart(f"composition-{whole}", f"What {whole} is made of", said, table, partial(_composition, parts=parts), (5.4, 3.4))


def _composition(axes: Any, table: pd.DataFrame, parts: Sequence[str]) -> None:
    for place, (of, rows) in enumerate(table.groupby("of", sort=False)):
        below = rows["fifth"] * 0.0
        for color, part in zip(SERIES, parts, strict=False):
            label = part if of == "observed" else None
            across = rows["fifth"] + 0.4 * (place - 0.5)
            axes.bar(across, rows[part], 0.36, bottom=below, color=color, alpha=1 - 0.45 * place, label=label)
            below = below + rows[part]
    axes.set(xlabel="fifth of the groups", ylabel="mean")
    axes.legend()
