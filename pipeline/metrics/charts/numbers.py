"""Charts of numbers that were predicted: against what was observed, what is left over, how sure forecasts are. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtri

from pipeline.metrics.charts.chart import Chart, sampled
from pipeline.metrics.charts.drawing import QUIET, SERIES, draw_boxes, labelled
from pipeline.metrics.summaries import in_order, seasons

if TYPE_CHECKING:
    import pandas as pd

MOST_DOMAINS = 6
"""That are told apart by colour; the others are one."""
MOST_BOXES = 14
COLUMNS = ("domain", "site", "season")
"""By which errors are shown, beside the species."""
INTERVAL = 0.8
MOST_BINS = 5
OTHERS, UNKNOWN = "others", "unknown"


def number_charts(images: pd.DataFrame | None, groups: pd.DataFrame, results: Mapping[str, Any]) -> Iterator[Chart]:
    """Of each target, in the order in which it stands in `groups`; `results` are those of results.json. Images tell species, site
    and date of their groups."""
    groups = groups if images is None else _placed(groups, images)
    for target in dict.fromkeys(groups["target"]):
        mine = groups[groups["target"] == target]
        if mine[["truth", "mean"]].dropna().empty:
            continue
        yield observed(mine, str(target))
        for column in COLUMNS:
            if column in mine and mine[column].nunique() > 1:
                yield left_over(mine, str(target), column)
        if images is not None and "species" in images and images["species"].nunique() > 1:
            yield left_over(images[images["target"] == target].rename(columns={"prediction": "mean"}), str(target), "species")
        block = results.get(target) or {}
        if (counts := block.get("PIT")) and block.get("coverage"):
            yield calibration(counts, block["coverage"], str(target))
            if mine["n"].nunique() > 1:
                yield coverage_by_n(mine, str(target))


def _placed(groups: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Groups with the site and the season of their first image, where these are known."""

    known = [name for name in ("site", "date") if name in images]
    table = groups.join(images.groupby("group")[known].first(), on="group")
    if "date" in table:
        table["season"] = seasons(table["date"])
    return table


def observed(groups: pd.DataFrame, target: str) -> Chart:
    """Predicted against observed, a point for each group, by domain."""
    table, more = sampled(groups[["group", "domain", "truth", "mean"]].dropna(subset=["truth", "mean"]))
    common = table["domain"].value_counts().index[:MOST_DOMAINS]
    table = table.assign(domain=table["domain"].where(table["domain"].isin(common) | table["domain"].isna(), OTHERS))
    table = table.assign(domain=table["domain"].fillna(UNKNOWN)) if len(common) else table
    said = f"Predicted against observed {target}, a point for each of {len(groups):,} groups; on the line they are equal.{more}"
    return Chart(f"observed-{target}", f"{target}: predicted against observed", said, table, _observed, (4.4, 4.0))


def _observed(axes: Any, table: pd.DataFrame) -> None:
    domains = [name for name in dict.fromkeys(table["domain"]) if isinstance(name, str)]
    for color, name in zip((*SERIES, *[QUIET] * len(domains)), sorted(domains) or [""], strict=False):
        of = table[table["domain"] == name] if domains else table
        axes.scatter(of["truth"], of["mean"], s=9, alpha=0.65, color=color, label=labelled(name), linewidths=0)
    low, high = (float(f(table[["truth", "mean"]].to_numpy())) for f in (np.min, np.max))
    axes.plot([low, high], [low, high], color=QUIET, linewidth=1, zorder=0)
    axes.set(xlabel="observed", ylabel="predicted", aspect="equal")
    if domains:
        axes.legend(title="domain", loc="upper left", markerscale=1.6, handletextpad=0.2)


def left_over(of: pd.DataFrame, target: str, column: str) -> Chart:
    """What is left over, predicted less observed, in each domain, site, season or species."""
    table = of[[column, "truth", "mean"]].dropna().assign(left=lambda each: each["mean"] - each["truth"])
    common = table[column].value_counts()
    table = table[table[column].isin(common.index[:MOST_BOXES])]
    more = f" The {MOST_BOXES} most common of {len(common)}." if len(common) > MOST_BOXES else ""
    said = f"Predicted less observed {target} by {column}: median, quartiles and range; 0 is right.{more}"
    draw = partial(_left_over, column=column)
    height = 1.1 + 0.26 * min(len(common), MOST_BOXES)
    return Chart(f"left-over-{target}-by-{column}", f"{target}: error by {column}", said, table, draw, (5.0, height))


def _left_over(axes: Any, table: pd.DataFrame, column: str) -> None:
    draw_boxes(axes, table[column], table["left"], in_order(table[column]))
    axes.axvline(0, color=QUIET, linewidth=1, zorder=0)
    axes.set(xlabel="predicted − observed")


def calibration(counts: list[int], coverage: Mapping[str, float], target: str) -> Chart:
    """Whether observations fall where forecasts say: the histogram of their probability integral transform, flat where sigma is
    right (Gneiting et al. 2007), and how many lie within central intervals."""
    import pandas as pd

    shares = np.array(counts) / max(sum(counts), 1)
    table = pd.DataFrame({"from": np.arange(len(counts)) / len(counts), "share": shares})
    within = ", ".join(f"{100 * share:.0f} % in the {level} % interval" for level, share in coverage.items())
    said = f"Where observed {target} lies in its forecasts, in tenths; flat is right. {within}."
    return Chart(f"calibration-{target}", f"{target}: calibration", said, table, _calibration, (5.0, 2.6))


def _calibration(axes: Any, table: pd.DataFrame) -> None:
    width = 1 / len(table)
    axes.bar(table["from"], table["share"], width=0.94 * width, align="edge", color=SERIES[0])
    axes.axhline(width, color=QUIET, linewidth=1)
    axes.set(xlabel="quantile of the forecast", ylabel="share of groups", xlim=(0, 1))


def coverage_by_n(groups: pd.DataFrame, target: str) -> Chart:
    """How many observations lie in the central 80 % interval, by how many images a group has: calibration of one number for all
    group sizes may be right on average alone."""
    import pandas as pd

    of = groups[["n", "truth", "mu", "sigma"]].dropna()
    half = float(ndtri(0.5 + INTERVAL / 2))
    bins = pd.qcut(of["n"], min(MOST_BINS, of["n"].nunique()), duplicates="drop")
    inside = ((of["truth"] - of["mu"]).abs() <= half * of["sigma"]).groupby(bins, observed=True)
    sizes = of["n"].groupby(bins, observed=True)
    table = pd.DataFrame({"from": sizes.min(), "to": sizes.max(), "groups": sizes.size(), "inside": inside.mean()}).reset_index(
        drop=True
    )
    said = "; ".join(f"{_range(row)} images: {100 * row['inside']:.0f} % of {row['groups']:.0f}" for _, row in table.iterrows())
    said = f"How many groups lie in the central {100 * INTERVAL:.0f} % interval of their forecast of {target}. {said}."
    return Chart(f"coverage-by-n-{target}", f"{target}: coverage by images of a group", said, table, _coverage_by_n, (5.0, 2.6))


def _range(row: Any) -> str:
    low, high = int(row["from"]), int(row["to"])
    return str(low) if low == high else f"{low}–{high}"


def _coverage_by_n(axes: Any, table: pd.DataFrame) -> None:
    axes.bar(range(len(table)), table["inside"], width=0.6, color=SERIES[0])
    axes.axhline(INTERVAL, color=QUIET, linewidth=1)
    axes.set_xticks(range(len(table)), [_range(row) for _, row in table.iterrows()])
    axes.set(xlabel="images of the group", ylabel=f"share in the {100 * INTERVAL:.0f} % interval", ylim=(0, 1))
