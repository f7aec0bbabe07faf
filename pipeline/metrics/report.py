"""The regression part of results.json: each target's figures, in-domain and out-of-domain apart, and their means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.metrics.regression import event_r2, mae, rmse

Figures = dict[str, Any]
FIGURES = ("r2", "MAE", "RMSE")


def regression_report(
    frame: pd.DataFrame, targets: Sequence[str], train_domains: Sequence[str], train_means: Mapping[str, float]
) -> Figures:
    """Figures of each target, and their means over the targets under `summary`.

    `frame` has a row per specimen: `group` (its event), `domain` (None: unknown), and for each target its true value and,
    as `<target>_prediction`, the predicted one. In-domain are specimens of `train_domains`, out-of-domain those of any
    other domain; one whose domain is not known is neither. `train_means` is what the mean predictor says: every result
    stands beside that of always predicting the training events' mean.
    """
    inside = frame["domain"].isin(list(train_domains))
    parts = {"in_domain": frame[inside], "out_of_domain": frame[~inside & frame["domain"].notna()]}
    report: Figures = {target: _target(frame, parts, target, train_means[target]) for target in targets}
    per_target = [report[target] for target in targets]
    summary: Figures = _means(per_target)
    for part in (*parts, "mean_predictor"):
        summary[part] = _means([figures[part] for figures in per_target])
    summary["mean_predictor"]["in_domain"] = _means([figures["mean_predictor"]["in_domain"] for figures in per_target])
    summary["warnings"] = [w for target in targets for w in _warnings(target, report[target])]
    return report | {"summary": summary}


def _target(frame: pd.DataFrame, parts: Mapping[str, pd.DataFrame], target: str, train_mean: float) -> Figures:
    figures = _figures(frame, target) | {name: _figures(part, target) for name, part in parts.items()}
    guess = {f"{target}_prediction": train_mean}
    in_domain = _figures(parts["in_domain"].assign(**guess), target)
    figures["mean_predictor"] = _figures(frame.assign(**guess), target) | {"in_domain": in_domain}
    return figures


def _figures(frame: pd.DataFrame, target: str) -> Figures:
    """MAE and RMSE per specimen, R² per event, counts. A figure that is not defined is None."""
    truth, prediction = frame[target].to_numpy("float64"), frame[f"{target}_prediction"].to_numpy("float64")
    events = pd.factorize(frame["group"])[0].astype("int64")
    finite = bool(np.isfinite(prediction).all())
    return {
        "MAE": mae(truth, prediction) if finite else None,
        "r2": event_r2(truth, prediction, events) if finite else None,
        "RMSE": rmse(truth, prediction) if finite else None,
        "n": len(frame),
        "n_events": len(np.unique(events)),
    }


def _means(parts: Sequence[Figures]) -> Figures:
    return {name: _mean([part[name] for part in parts]) for name in FIGURES}


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
            lines.append(f"{target}, {name}: no specimens")
        elif part["MAE"] is None:
            lines.append(f"{target}, {name}: predictions are not finite")
        elif part["r2"] is None:
            lines.append(f"{target}, {name}: R² is not defined for {part['n_events']} event(s) with the same target")
    return lines
