"""From predictions for specimens to calibrated forecasts of their events, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import WorkError
from pipeline.metrics.calibration import Calibration, Forecast, Kind, fit_parts
from pipeline.metrics.regression import event_means

Calibrations = Mapping[str, Mapping[str, Calibration]]
"""Target → part (in_domain, out_of_domain) → calibration."""


def specimen_table(table: pd.DataFrame, targets: Sequence[str], predictions: NDArray[np.float32]) -> pd.DataFrame:
    """A row per specimen: id, group (its event), domain, each target and `<target>_prediction` from [N, n_targets]."""
    frame = table[["id", "event", "domain", *targets]].rename(columns={"event": "group"})
    return frame.assign(**{f"{t}_prediction": predictions[:, i].astype("float64") for i, t in enumerate(targets)})


def event_table(specimens: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """A row per event, in the order in which they appear: group, domain, n (specimens), each target and `<target>_mean`."""
    groups = specimens.groupby("group", sort=False)
    events = groups[["domain", *targets]].first().assign(n=groups.size()).reset_index()
    predictions = specimens[[f"{target}_prediction" for target in targets]].to_numpy("float64")
    # Not pandas' mean, which would pass over a prediction that is no number.
    means = event_means(predictions, pd.factorize(specimens["group"])[0].astype("int64"))
    return events.assign(**{f"{target}_mean": means[:, i] for i, target in enumerate(targets)})


def fit_calibrations(
    events: pd.DataFrame, targets: Sequence[str], train_domains: Sequence[str], kind: Kind
) -> dict[str, dict[str, Calibration]]:
    """Calibrations of each target from held-out events. Raises WorkError if no prediction for them is finite."""
    known = events["domain"].isin(list(train_domains)).to_numpy()
    new = ~known & events["domain"].notna().to_numpy()
    fitted = {}
    for target in targets:
        forecast, truth = _forecast(events, target), events[target].to_numpy("float64")
        rows = np.isfinite(forecast.mean)
        if not rows.any():
            raise WorkError(f"no prediction of {target} for the validation events is finite: lower optim.lr")
        fitted[target] = fit_parts(truth[rows], forecast[rows], known[rows], new[rows], kind)
    return fitted


def add_forecasts(
    events: pd.DataFrame, calibrations: Calibrations, train_domains: Sequence[str], targets: Sequence[str]
) -> pd.DataFrame:
    """`events` with `<target>_mu` and `<target>_sigma`; an event whose domain was not trained on, or is not known, is new."""
    known = events["domain"].isin(list(train_domains)).to_numpy()
    added: dict[str, Any] = {}
    for target in targets:
        forecast, parts = _forecast(events, target), calibrations[target]
        inside, outside = parts["in_domain"](forecast), parts["out_of_domain"](forecast)
        added[f"{target}_mu"] = np.where(known, inside[0], outside[0])
        added[f"{target}_sigma"] = np.where(known, inside[1], outside[1])
    return events.assign(**added)


def _forecast(events: pd.DataFrame, target: str) -> Forecast:
    """A point model says nothing of its variance: 1, for the calibration to scale."""
    return Forecast(events[f"{target}_mean"].to_numpy("float64"), np.ones(len(events)), events["n"].to_numpy("float64"))
