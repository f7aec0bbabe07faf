"""From predictions for images to calibrated forecasts of their groups, as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.errors import WorkError
from pipeline.metrics.calibration import AnyCalibration, Forecast, Kind, fit_parts
from pipeline.metrics.figures import Training
from pipeline.metrics.regression import group_means

Array = NDArray[np.float64]
Calibrations = Mapping[str, Mapping[str, AnyCalibration]]
"""Target → part (in_domain, out_of_domain) → calibration."""
SAID_OF_IMAGES = ("prediction",)
"""What is kept of each image and target, as `<target>_<…>`: all that figures of images start from."""
SCALE = 100.0
"""What CLIP multiplies cosines by for probabilities, as trained (Radford et al. 2021: at most 100)."""
SAID = ("mean", "variance", "spread", "trust")
"""What a group's images say of each target, as `<target>_<…>`: all that calibrating and ensembles start from. Trust is not there
where nobody can tell it (`models/novelty.py`), and is 1 then."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of N images, each [N, n_targets]: mean and variance in the targets' units, and how much each counts
    among those of its group (log weights, up to a constant)."""

    mean: NDArray[np.floating]
    variance: NDArray[np.floating]
    log_weights: NDArray[np.floating]
    trust: NDArray[np.floating] | None = None
    """How far each is to be relied on, within 0 … 1; None: wholly, or nobody can tell."""
    classes: NDArray[np.floating] | None = None
    """[n_classes, E], where what is said of an image is its embedding, `mean` [N, E]: the embeddings that it is compared with."""
    scale: float = SCALE
    """What cosines with these, or what `similarity` makes of them, are multiplied by for probabilities."""
    similarity: str = "cosine"
    """By its name in `metrics/similarity.py`."""

    @classmethod
    def of(cls, mean: NDArray[np.floating]) -> Prediction:
        """What is said, where nothing is known beside it."""
        return cls(mean, np.ones_like(mean), np.zeros_like(mean))

    def only(self, n: int) -> Prediction:
        """Of the first `n` targets; what a model learns beside them is left out. Of embeddings all."""
        if self.classes is not None:
            return self
        trust = None if self.trust is None else self.trust[:, :n]
        return Prediction(self.mean[:, :n], self.variance[:, :n], self.log_weights[:, :n], trust)


def image_table(table: pd.DataFrame, targets: Sequence[str], predicted: Prediction) -> pd.DataFrame:
    """A row per image: id, group, domain, species, and each target, as far as the table has them, and of each target
    `<target>_prediction`, `<target>_variance`, `<target>_weight` (its log weight) and, where it is told, `<target>_trust`."""
    known = [name for name in ("id", "group", "domain", "species", *targets) if name in table]
    said = {"prediction": predicted.mean, "variance": predicted.variance, "weight": predicted.log_weights}
    said |= {} if predicted.trust is None else {"trust": predicted.trust}
    parts = [_wide(values, targets, end, table.index) for end, values in said.items()]
    return pd.concat([table[known], *parts], axis=1)


def group_table(images: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """A row per group, in the order in which they appear: group, domain, n (images), each target that is known, and of each its
    pooled `<target>_mean`, `<target>_variance` (that of one image), `<target>_spread` (sd over images; NaN of one) and, where
    images have it, `<target>_trust`."""
    together = images.groupby("group", sort=False)
    known = [name for name in ("domain", *targets) if name in images]
    groups = together[known].first().assign(n=together.size()).reset_index()
    numbers = pd.factorize(images["group"])[0].astype("int64")
    said, variance, weights = (
        images[[f"{target}_{end}" for target in targets]].to_numpy("float64") for end in ("prediction", "variance", "weight")
    )
    spread = together[[f"{target}_prediction" for target in targets]].std(ddof=1).to_numpy("float64")
    pooled = {**dict(zip(("mean", "variance"), pool_groups(said, variance, weights, numbers), strict=True)), "spread": spread}
    if f"{targets[0]}_trust" in images:
        trust = images[[f"{target}_trust" for target in targets]].to_numpy("float64")
        pooled["trust"] = group_means(trust, numbers, weights)
    return pd.concat([groups, *(_wide(values, targets, end, groups.index) for end, values in pooled.items())], axis=1)


def _wide(values: NDArray[np.floating], targets: Sequence[str], end: str, index: pd.Index) -> pd.DataFrame:
    """[N, n_targets] as columns `<target>_<end>`."""
    columns = [f"{target}_{end}" for target in targets]
    return pd.DataFrame(values[:, : len(targets)].astype("float64"), index=index, columns=columns)


def pool_groups(mean: Array, variance: Array, log_weights: Array, groups: NDArray[np.int64]) -> tuple[Array, Array]:
    """Mean and variance of images [N, …] → a group's mean and the variance of one of its images [n_groups, …].

    Means weighted by the softmax of `log_weights` over a group's images, of the means and of the sds: as a model that is
    trained on groups pools its distribution (`models/pooling.py`). A value that is not finite makes its group's so.
    """
    return group_means(mean, groups, log_weights), np.square(group_means(np.sqrt(variance), groups, log_weights))


def fit_calibrations(
    groups: pd.DataFrame, targets: Sequence[str], training: Training, kind: Kind
) -> dict[str, dict[str, AnyCalibration]]:
    """Calibrations of each target from held-out groups. Raises WorkError if no prediction for them is finite."""
    assert training.means is not None
    known = groups["domain"].isin(list(training.domains)).to_numpy()
    new = ~known & groups["domain"].notna().to_numpy()
    fitted: dict[str, dict[str, AnyCalibration]] = {}
    for target in targets:
        forecast, truth = _forecast(groups, target), groups[target].to_numpy("float64")
        rows = np.isfinite(forecast.mean) & np.isfinite(forecast.variance)
        if not rows.any():
            raise WorkError(f"no prediction of {target} for the validation groups is finite: lower optim.lr")
        usual = training.means[target]
        fitted[target] = fit_parts(truth[rows], forecast[rows], known[rows], new[rows], kind, usual)
    return fitted


def add_forecasts(
    groups: pd.DataFrame, calibrations: Calibrations, train_domains: Sequence[str], targets: Sequence[str]
) -> pd.DataFrame:
    """`groups` with `<target>_mu` and `<target>_sigma`; a group whose domain was not trained on, or is not known, is new."""
    known = groups["domain"].isin(list(train_domains)).to_numpy()
    added: dict[str, Any] = {}
    for target in targets:
        forecast, parts = _forecast(groups, target), calibrations[target]
        inside, outside = parts["in_domain"](forecast), parts["out_of_domain"](forecast)
        added[f"{target}_mu"] = np.where(known, inside[0], outside[0])
        added[f"{target}_sigma"] = np.where(known, inside[1], outside[1])
    return groups.assign(**added)


def images_long_form(images: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """One row per image and target: id, group, domain, species, target, truth, prediction."""
    known = images[[name for name in ("id", "group", "domain", "species") if name in images]]
    parts = [known.assign(target=t, truth=images[t], prediction=images[f"{t}_prediction"]) for t in targets]
    return pd.concat(parts, ignore_index=True)


def groups_long_form(groups: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    """One row per group and target: group (group), domain, n (images), target, truth, what its images say (SAID), and
    of numbers the calibrated forecast (mu, sigma)."""
    ends = [end for end in (*SAID, "mu", "sigma") if f"{targets[0]}_{end}" in groups]
    parts = [
        groups[["group", "domain", "n"]].assign(target=t, truth=groups[t], **{end: groups[f"{t}_{end}"] for end in ends})
        for t in targets
    ]
    return pd.concat(parts, ignore_index=True)


def wide_form(long: pd.DataFrame, ends: Sequence[str]) -> pd.DataFrame:
    """A long form's way back: a row per image or group, with each target's truth as `<target>`, and the columns `ends` as
    `<target>_<end>`. Raises KeyError without one of them, ValueError if targets have not equally many rows.
    """
    parts = {str(target): rows.reset_index(drop=True) for target, rows in long.groupby("target", sort=False)}
    if len({len(rows) for rows in parts.values()}) != 1:
        raise ValueError("its targets have not equally many rows")
    same = next(iter(parts.values())).drop(columns=["target", "truth", *ends])
    columns = {t: rows["truth"] for t, rows in parts.items()}
    return same.assign(**columns, **{f"{t}_{end}": rows[end] for t, rows in parts.items() for end in ends})


def _forecast(groups: pd.DataFrame, target: str) -> Forecast:
    names = (f"{target}_mean", f"{target}_variance", "n", f"{target}_spread", f"{target}_trust")
    return Forecast(*(groups[name].to_numpy("float64") for name in names if name in groups))
