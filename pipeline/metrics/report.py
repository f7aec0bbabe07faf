"""The figures in results.json: of each target, in-domain and out-of-domain apart, and their means over targets.

Those of points (MAE, RMSE per image, R² per group), and those of forecasts (CRPS, coverage, PIT, sigma per group).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pipeline.metrics.probabilistic import LEVELS, MIN_SIGMA, coverage, crps, pit, pit_histogram, rms
from pipeline.metrics.regression import mae, r2, rmse

Figures = dict[str, Any]
FIGURES = ("r2", "MAE", "RMSE")
FORECAST_FIGURES = ("CRPS", "sigma")
PARTS = ("in_domain", "out_of_domain")


@dataclass(frozen=True)
class Training:
    """What was trained on: its domains, and each target's mean and sd over its groups."""

    domains: Sequence[str]
    means: Mapping[str, float]
    sds: Mapping[str, float]


def make_report(images: pd.DataFrame, groups: pd.DataFrame, targets: Sequence[str], train: Training) -> Figures:
    """Figures of points from a row per image, and of forecasts from a row per group, in one block for each target.

    `summary.rms` is the challenge's score: over the mean CRPS of each target, in-domain and out-of-domain.
    """
    report = regression_report(images, groups, targets, train)
    forecasts = {target: _forecast_target(groups, target, train) for target in targets}
    for target in targets:
        _merge(report[target], forecasts[target])
    summary = report["summary"]
    for part in ("", *PARTS, "mean_predictor"):
        blocks = [report[target][part] if part else report[target] for target in targets]
        _merge(summary, {part: _means(blocks, FORECAST_FIGURES)} if part else _means(blocks, FORECAST_FIGURES))
    for block, of in ((summary, ()), (summary["mean_predictor"], ("mean_predictor",))):
        block["rms"] = rms([_dig(report[target], (*of, part))["CRPS"] for target in targets for part in PARTS])
    return report


def _merge(into: Figures, more: Figures) -> None:
    """Add figures to a block, block by block."""
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _dig(block: Figures, path: Sequence[str]) -> Figures:
    for key in path:
        block = block[key]
    return block


def regression_report(images: pd.DataFrame, groups: pd.DataFrame, targets: Sequence[str], train: Training) -> Figures:
    """Figures of points of each target, and their means over the targets under `summary`.

    `images` has a row per image: `group` (its group), `domain` (None: unknown), and for each target its true value and as
    `<target>_prediction` the predicted one; `groups` a row per group, with `<target>_mean`. In-domain are the training's
    domains, out-of-domain any other; one that is not known is neither. Every result stands beside that of always predicting
    the training groups' mean.
    """
    whole = _Tables(images, groups)
    parts = whole.parts(train)
    report: Figures = {target: _target(whole, parts, target, train.means[target]) for target in targets}
    per_target = [report[target] for target in targets]
    summary: Figures = _means(per_target)
    for part in (*parts, "mean_predictor"):
        summary[part] = _means([figures[part] for figures in per_target])
    summary["mean_predictor"]["in_domain"] = _means([figures["mean_predictor"]["in_domain"] for figures in per_target])
    summary["warnings"] = [w for target in targets for w in _warnings(target, report[target])]
    return report | {"summary": summary}


@dataclass(frozen=True)
class _Tables:
    """Images and their groups."""

    images: pd.DataFrame
    groups: pd.DataFrame

    def parts(self, train: Training) -> dict[str, _Tables]:
        """Those of domains that were trained on, and those of others."""
        inside, outside = zip(*(_inside_and_outside(table, train) for table in (self.images, self.groups)), strict=True)
        return {"in_domain": _Tables(*inside), "out_of_domain": _Tables(*outside)}

    def guessing(self, target: str, value: float) -> _Tables:
        """The same with one prediction for all."""
        guess = {f"{target}_prediction": value, f"{target}_mean": value}
        return _Tables(self.images.assign(**guess), self.groups.assign(**guess))


def _inside_and_outside(table: pd.DataFrame, train: Training) -> tuple[pd.DataFrame, pd.DataFrame]:
    inside = table["domain"].isin(list(train.domains))
    return table[inside], table[~inside & table["domain"].notna()]


def _target(whole: _Tables, parts: Mapping[str, _Tables], target: str, train_mean: float) -> Figures:
    figures = _figures(whole, target) | {name: _figures(part, target) for name, part in parts.items()}
    in_domain = _figures(parts["in_domain"].guessing(target, train_mean), target)
    figures["mean_predictor"] = _figures(whole.guessing(target, train_mean), target) | {"in_domain": in_domain}
    return figures


def _figures(tables: _Tables, target: str) -> Figures:
    """MAE and RMSE per image, R² per group, counts. A figure that is not defined is None."""
    truth, prediction = (tables.images[name].to_numpy("float64") for name in (target, f"{target}_prediction"))
    of_groups, mean = (tables.groups[name].to_numpy("float64") for name in (target, f"{target}_mean"))
    finite = bool(np.isfinite(prediction).all())
    return {
        "MAE": mae(truth, prediction) if finite else None,
        "r2": r2(of_groups, mean) if np.isfinite(mean).all() else None,
        "RMSE": rmse(truth, prediction) if finite else None,
        "n": len(truth),
        "n_events": len(mean),
    }


def _means(parts: Sequence[Figures], names: Sequence[str] = FIGURES) -> Figures:
    return {name: _mean([part[name] for part in parts]) for name in names}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if numbers and len(numbers) == len(values) else None


def _warnings(target: str, figures: Figures) -> list[str]:
    """Why a figure is null."""
    lines = []
    for name, part in (
        ("all", figures),
        ("in_domain", figures["in_domain"]),
        ("out_of_domain", figures["out_of_domain"]),
    ):
        if part["n"] == 0:
            lines.append(f"{target}, {name}: no images")
        elif part["MAE"] is None:
            lines.append(f"{target}, {name}: predictions are not finite")
        elif part["r2"] is None:
            lines.append(f"{target}, {name}: R² is not defined for {part['n_events']} group(s) with the same target")
    return lines


# ---------------------------------------------------------------- forecasts of groups
def _forecast_target(groups: pd.DataFrame, target: str, train: Training) -> Figures:
    """A target's figures over all groups and in each part, and those of always forecasting the training groups' spread."""
    guess = groups.assign(**{f"{target}_mu": train.means[target], f"{target}_sigma": max(train.sds[target], MIN_SIGMA)})
    figures = _forecast_parts(groups, target, train)
    return figures | {"mean_predictor": _forecast_parts(guess, target, train)}


def _forecast_parts(groups: pd.DataFrame, target: str, train: Training) -> Figures:
    parts = dict(zip(PARTS, _inside_and_outside(groups, train), strict=True))
    return _forecast_figures(groups, target) | {name: _forecast_figures(part, target) for name, part in parts.items()}


def _forecast_figures(groups: pd.DataFrame, target: str) -> Figures:
    """CRPS, mean sigma, coverage of central intervals and histogram of PIT values; None where they are not defined."""
    truth, mu, sigma = (groups[f"{target}{end}"].to_numpy("float64") for end in ("", "_mu", "_sigma"))
    if not len(truth) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return {"CRPS": None, "sigma": None, "coverage": None, "PIT": None}
    return {
        "CRPS": float(crps(truth, mu, sigma).mean()),
        "sigma": float(sigma.mean()),
        "coverage": {f"{100 * level:g}": coverage(truth, mu, sigma, level) for level in LEVELS},
        "PIT": pit_histogram(pit(truth, mu, sigma)),
    }
