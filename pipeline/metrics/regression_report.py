"""The figures of numbers in results.json: of each target, in-domain and out-of-domain apart, and their means over targets.

Those of points (MAE, RMSE per image, R² per group), and those of forecasts (CRPS, coverage, PIT, sigma per group).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.metrics.figures import Figure, Training, mean_of_all
from pipeline.metrics.probabilistic import LEVELS, MIN_SIGMA, coverage, crps, pit, pit_histogram, rms
from pipeline.metrics.regression import mae, mae_drawn, r2, r2_drawn, rmse, rmse_drawn

if TYPE_CHECKING:
    import pandas as pd

Block = dict[str, Any]
PARTS = ("in_domain", "out_of_domain")
FIGURES: dict[str, Figure] = {
    "r2": Figure("R²", r2, of="groups", selectable=True, weighted=r2_drawn),
    "MAE": Figure("MAE", mae, lower_is_better=True, selectable=True, weighted=mae_drawn),
    "RMSE": Figure("RMSE", rmse, lower_is_better=True, selectable=True, weighted=rmse_drawn),
    "CRPS": Figure("CRPS", lambda truth, mu, sigma: float(crps(truth, mu, sigma).mean()), True, of="forecasts"),
    "sigma": Figure("sigma", lambda truth, mu, sigma: float(sigma.mean()), True, of="forecasts"),
    "rms": Figure("rms", lower_is_better=True),
}
"""Each is of one target; a summary has the mean over the targets, and figures of several together. `rms` is the beetles'
challenge's score, over all of them."""


@dataclass(frozen=True)
class _Tables:
    """A row per image and a row per group, of all domains or of some."""

    images: pd.DataFrame
    groups: pd.DataFrame

    def parts(self, train: Training) -> dict[str, _Tables]:
        """Those of domains that were trained on, and those of others; one that is not known is neither."""
        known = [table["domain"].isin(list(train.domains)) for table in (self.images, self.groups)]
        new = [~there & table["domain"].notna() for there, table in zip(known, (self.images, self.groups), strict=True)]
        return {name: _Tables(self.images[i], self.groups[g]) for name, (i, g) in zip(PARTS, (known, new), strict=True)}

    def guessing(self, target: str, train: Training) -> _Tables:
        """The same with one forecast for all: the mean and spread of the training groups."""
        assert train.means is not None
        mean, sd = train.means[target], (train.sds or {}).get(target, 0.0)
        said = {f"{target}_mean": mean, f"{target}_mu": mean, f"{target}_sigma": max(sd, MIN_SIGMA)}
        groups = self.groups.assign(**{name: value for name, value in said.items() if name in self.groups})
        return _Tables(self.images.assign(**{f"{target}_prediction": mean}), groups)


def regression_report(
    images: pd.DataFrame, groups: pd.DataFrame, targets: Sequence[str], train: Training, figures: Mapping[str, Figure] = FIGURES
) -> Block:
    """A block of figures for each target, and their means over the targets under `summary`.

    `images` has a row per image: `group`, `domain` (None: unknown), and for each target its true value and as
    `<target>_prediction` the predicted one; `groups` a row per group, with `<target>_mean` and of forecasts `<target>_mu` and
    `<target>_sigma`. In-domain are the training's domains, out-of-domain any other; one that is not known is neither. Every
    result stands beside that of always saying what the training groups were like. `summary.rms` is the challenge's score: over
    the mean CRPS of each target, in-domain and out-of-domain.
    """
    whole = _Tables(images, groups)
    report: Block = {target: _target(whole, target, train, figures) for target in targets}
    blocks = list(report.values())
    summary = _mean_blocks(blocks, [name for name, figure in figures.items() if figure.is_computed])
    if together := {name: figure for name, figure in figures.items() if figure.targets}:
        summary = _joined(_together(whole, targets, train, together), summary)
    if "rms" in figures and all("CRPS" in block for block in blocks):
        summary["rms"] = _rms(blocks)
        summary["mean_predictor"]["rms"] = _rms([block["mean_predictor"] for block in blocks])
    summary["warnings"] = [warning for target in targets for warning in _warnings(target, report[target])]
    return report | {"summary": summary}


def _target(whole: _Tables, target: str, train: Training, figures: Mapping[str, Figure]) -> Block:
    """A target's figures over all, in each part, and those of the mean predictor likewise."""

    def with_parts(tables: _Tables) -> Block:
        parts = {name: _block(part, target, figures) for name, part in tables.parts(train).items()}
        return _block(tables, target, figures) | parts

    return with_parts(whole) | {"mean_predictor": with_parts(whole.guessing(target, train))}


def _together(whole: _Tables, targets: Sequence[str], train: Training, figures: Mapping[str, Figure]) -> Block:
    """Figures of several targets together over all, in each part, and those of the mean predictor likewise."""

    def values(tables: _Tables) -> Block:
        return {name: _of_all(tables, figure) for name, figure in figures.items()}

    def with_parts(tables: _Tables) -> Block:
        return values(tables) | {name: values(part) for name, part in tables.parts(train).items()}

    guessed = whole
    for target in targets:
        guessed = guessed.guessing(target, train)
    return with_parts(whole) | {"mean_predictor": with_parts(guessed)}


def _of_all(tables: _Tables, figure: Figure) -> float | None:
    """A figure of several targets together; None where one of them is not predicted."""
    table, end = (tables.images, "_prediction") if figure.of == "images" else (tables.groups, "_mean")
    if not set(figure.targets) <= set(table):
        return None
    truth, said = (table[[f"{target}{each}" for target in figure.targets]].to_numpy("float64") for each in ("", end))
    return figure.value(truth, said)


def _joined(some: Block, others: Block) -> Block:
    """Blocks of equal layout as one; the first one's figures stand first."""
    inner = {key: _joined(block, others.get(key, {})) for key, block in some.items() if isinstance(block, dict)}
    return some | {key: value for key, value in others.items() if key not in some} | inner


def _block(tables: _Tables, target: str, figures: Mapping[str, Figure]) -> Block:
    """Figures and counts. A figure that is not defined is None."""
    forecasts = ("_mu", "_sigma") if f"{target}_mu" in tables.groups else None
    ends = {"images": ("_prediction",), "groups": ("_mean",), "forecasts": forecasts}
    block: Block = {}
    for name, figure in figures.items():
        if figure.is_computed and not figure.targets and (of := ends[figure.of]):
            table = tables.images if figure.of == "images" else tables.groups
            block[name] = figure.value(*(table[f"{target}{end}"].to_numpy("float64") for end in ("", *of)))
    block |= {"n": len(tables.images), "n_events": len(tables.groups)}
    return block | (_spread(tables.groups, target) if forecasts else {})


def _spread(groups: pd.DataFrame, target: str) -> Block:
    """Coverage of central intervals and histogram of PIT values; None where they are not defined."""
    truth, mu, sigma = (groups[f"{target}{end}"].to_numpy("float64") for end in ("", "_mu", "_sigma"))
    if not len(truth) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return {"coverage": None, "PIT": None}
    covered = {f"{100 * level:g}": coverage(truth, mu, sigma, level) for level in LEVELS}
    return {"coverage": covered, "PIT": pit_histogram(pit(truth, mu, sigma))}


def _mean_blocks(blocks: Sequence[Block], names: Sequence[str]) -> Block:
    """The means of figures over blocks of equal layout, and of the blocks within them; those of forecasts over the targets that
    have these."""
    means: Block = {name: mean_of_all(block[name] for block in blocks if name in block) for name in names if name in blocks[0]}
    inner = [name for name in (*PARTS, "mean_predictor") if name in blocks[0]]
    return means | {name: _mean_blocks([block[name] for block in blocks], names) for name in inner}


def _rms(blocks: Sequence[Block]) -> float | None:
    return rms([block[part]["CRPS"] for block in blocks for part in PARTS])


def _warnings(target: str, figures: Block) -> list[str]:
    """Why a figure is null."""
    lines = []
    for name, part in (("all", figures), *((part, figures[part]) for part in PARTS)):
        if part["n"] == 0:
            lines.append(f"{target}, {name}: no images")
        elif part.get("MAE", 0) is None:
            lines.append(f"{target}, {name}: predictions are not finite")
        elif part.get("r2", 0) is None:
            lines.append(f"{target}, {name}: R² is not defined for {part['n_events']} group(s) with the same target")
    return lines
