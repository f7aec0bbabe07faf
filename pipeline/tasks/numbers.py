"""Tasks that predict numbers: calibrated forecasts of groups, figures in-domain and out-of-domain apart, ensembles over seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pipeline.config.data import Data
from pipeline.data.dataset import Dataset
from pipeline.data.other_columns import coordinates
from pipeline.data.table import load_numbers
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError, WorkError
from pipeline.metrics.figures import Figure, Training, mean_of_all
from pipeline.metrics.regression import group_means
from pipeline.metrics.regression_report import FIGURES, regression_report
from pipeline.tasks.base import Array, Groups, Kept, Task, Tested, read_wide

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.metrics.calibration import Kind
    from pipeline.metrics.charts.chart import Chart
    from pipeline.metrics.groups import Prediction
    from pipeline.metrics.summaries import Summary

MOST_SHOWN = 6
"""Targets of which there are pictures of data."""


@dataclass(frozen=True)
class Tables:
    """Predictions of numbers, as `metrics/groups.py` has them: a row per image, and a row per group."""

    names: tuple[str, ...]
    images: pd.DataFrame
    groups: pd.DataFrame


class Numbers(Task[Tables]):
    """Numeric targets, which the images of a group share."""

    figures: ClassVar[Mapping[str, Figure]] = FIGURES
    instead: ClassVar[Mapping[str, str]] = {"rms": "CRPS"}  # (of which rms is made; it needs known and new domains)
    ensembles = True
    challenge = "beetles"
    headline: ClassVar[Sequence[str]] = ("r2", "in_domain.r2", "out_of_domain.r2", "MAE", "rms")

    def load(self, data: Data) -> Dataset:
        return load_numbers(data)

    def training(self, dataset: Dataset, table: pd.DataFrame) -> Training:
        groups = table.groupby("group")[list(dataset.targets)].first()
        means = {name: float(groups[name].mean()) for name in dataset.targets}
        sds = {name: float(groups[name].std(ddof=0)) for name in dataset.targets}
        return Training(sorted(set(table["domain"].dropna())), means, sds)

    def overview(self, dataset: Dataset) -> Iterable[Summary | Chart]:
        """Of targets and what follows from them: how they are spread and go together, where, when and of what they are others."""
        from pipeline.metrics.charts.overview import boxes, mapped, spread, together
        from pipeline.metrics.summaries import mean_summary, number_summary

        each, names, of = self.known_truth(dataset)
        yield number_summary(each, names, of)
        yield mean_summary(each, names, "split", of)
        known = [name for name in ("domain", "season", "species") if each[name].nunique() > 1]
        for column in known:
            yield mean_summary(each, names, column, of)
        for name in names[:MOST_SHOWN]:
            yield spread(each, name, of)
            yield from (boxes(each, name, column, of) for column in known)
        if 1 < len(names) <= MOST_SHOWN:
            yield together(each, names)
        if (places := coordinates(dataset)) is not None:
            yield from (mapped(each[[name]].join(places), name, of) for name in names[:MOST_SHOWN] if name not in places)

    def known_truth(self, dataset: Dataset) -> tuple[pd.DataFrame, list[str], str]:
        """A row for each group, or for each image where all are of their own: which of the two; with all that is true of it, in
        columns of these names."""
        from pipeline.metrics.summaries import of_each, seasons

        truth = self.completed(dataset.table[list(dataset.targets)])
        each, of = of_each(dataset.table.drop(columns=list(dataset.targets)).join(truth))
        return each if "season" in each else each.assign(season=seasons(each["date"])), list(map(str, truth)), of

    def sheets(self, dataset: Dataset) -> Mapping[str, pd.Series]:
        """By fifths of the first target as well."""
        import pandas as pd

        name = dataset.targets[0]
        fifths = pd.qcut(dataset.table[name], 5, duplicates="drop")
        edges = [(place.left, place.right) for place in fifths.cat.categories]
        digits = next((n for n in range(3, 15) if len({f"{right:.{n}g}" for _, right in edges}) == len(edges)), 15)
        named = [f"{name} {left:.{digits}g} to {right:.{digits}g}" for left, right in edges]
        of_value = dict(zip(fifths.cat.categories, named, strict=True))
        return {name: fifths.cat.rename_categories(of_value), **super().sheets(dataset)}

    # ---------------------------------------------------------------- predictions
    def predictions(self, table: pd.DataFrame, truth: Array | None, names: Sequence[str], said: Prediction) -> Tables:
        from pipeline.metrics.groups import group_table, image_table

        known = table.assign(**dict(zip(names, truth.T, strict=True))) if truth is not None else table
        images = image_table(known, names, said)
        return Tables(tuple(names), images, group_table(images, names))

    def calibrate(self, held_out: Tables, training: Training, kind: Kind) -> dict[str, Any]:
        from pipeline.metrics.groups import fit_calibrations

        fitted = fit_calibrations(held_out.groups, held_out.names, training, kind)
        return {name: {part: asdict(one) for part, one in parts.items()} for name, parts in fitted.items()}

    def forecast(self, predictions: Tables, training: Training) -> Tables:
        from pipeline.metrics.calibration import load_calibration
        from pipeline.metrics.groups import add_forecasts

        assert training.calibration is not None
        calibrations = {
            name: {part: load_calibration(values) for part, values in parts.items()}
            for name, parts in training.calibration.items()
        }
        groups = add_forecasts(predictions.groups, calibrations, training.domains, predictions.names)
        return Tables(predictions.names, predictions.images, groups)

    def answer(self, predictions: Tables, members: Sequence[Tables]) -> dict[str, tuple[float, float | None]]:
        """What follows from the targets is the mean of what follows from each member's."""
        first, names = predictions.groups.iloc[0], list(predictions.names)
        said = {name: (float(first[f"{name}_mu"]), float(first[f"{name}_sigma"])) for name in names}
        import pandas as pd

        follows = pd.concat([self._of(member.groups[:1], names, "_mean") for member in members]).mean()
        return said | {str(name).removesuffix("_mean"): (float(value), None) for name, value in follows.items()}

    def validation_table(self, predictions: Tables) -> pd.DataFrame:
        return predictions.groups

    def tables(self, predictions: Tables) -> tuple[pd.DataFrame, pd.DataFrame]:
        from pipeline.metrics.groups import groups_long_form, images_long_form

        names = predictions.names
        return images_long_form(predictions.images, names), groups_long_form(predictions.groups, names)

    # ---------------------------------------------------------------- figures
    def derive(self, targets: pd.DataFrame) -> pd.DataFrame:
        """Further targets [N, K], computed from the targets [N, T] and in the same way from what is predicted for them; they have
        figures of points, and no forecasts."""
        return targets[[]]

    def completed(self, said: pd.DataFrame) -> pd.DataFrame:
        return said.join(self.derive(said))

    def report(self, predictions: Tables, training: Training) -> dict[str, Any]:
        everything, train = self._derived(predictions, training)
        report = regression_report(everything.images, everything.groups, everything.names, train, self.figures)
        report["summary"]["warnings"] += _borrowed(predictions.groups, training)
        return report

    def _derived(self, predictions: Tables, training: Training) -> tuple[Tables, Training]:
        """Predictions and training with the derived targets behind the others."""
        names, images, groups = list(predictions.names), predictions.images, predictions.groups
        more = self.derive(images[names])
        if more.empty:
            return predictions, training
        for end in ("", "_prediction"):
            images = images.join(self._of(images, names, end))
        for end in ("", "_mean"):
            groups = groups.join(self._of(groups, names, end))
        import pandas as pd

        means = dict(training.means or {})
        means |= {str(name): float(mean) for name, mean in self.derive(pd.DataFrame([means])).iloc[0].items()}
        return Tables((*names, *more), images, groups), Training(training.domains, means, training.sds, training.calibration)

    def _asked(self, figure: Figure, names: Sequence[str], values: Array) -> Array | None:
        """The targets [N, K] that a figure is of together, from those that are predicted [N, T]; None where one is not there."""
        import pandas as pd

        frame = self.completed(pd.DataFrame(values, columns=list(names)))
        return frame[list(figure.targets)].to_numpy("float64") if set(figure.targets) <= set(frame) else None

    def _of(self, table: pd.DataFrame, names: Sequence[str], end: str) -> pd.DataFrame:
        columns = {f"{name}{end}": name for name in names}
        return self.derive(table[list(columns)].rename(columns=columns)).add_suffix(end)

    def score(
        self, metric: str, truth: Array, said: Prediction, groups: Groups, counts: Sequence[int] = (), names: Sequence[str] = ()
    ) -> float | None:
        """The figure of images, or of groups after averaging (with weights) their images: of all targets together, or its mean
        over them."""
        figure, means = self.figures[metric], said.mean
        if not (np.isfinite(means).all() and np.isfinite(said.log_weights).all()):
            return None
        if figure.of == "groups":
            truth, means = group_means(truth, groups), group_means(means, groups, said.log_weights)
        if figure.targets:
            true, said_of_all = (self._asked(figure, names, values) for values in (truth, means))
            return None if true is None or said_of_all is None else figure.value(true, said_of_all)
        return mean_of_all(figure.value(t, p) for t, p in zip(truth.T, means.T, strict=True))

    def course(self, truth: Array, said: Prediction, groups: Groups, names: Sequence[str]) -> dict[str, float]:
        """`r2_<target>` of each target and of what follows from them, of groups."""
        import pandas as pd

        figure, means = self.figures.get("r2", FIGURES["r2"]), said.mean
        if not (np.isfinite(means).all() and np.isfinite(said.log_weights).all()):
            return {}
        pair = (group_means(truth, groups), group_means(means, groups, said.log_weights))
        true, mean = (self.completed(pd.DataFrame(values, columns=list(names))) for values in pair)
        found = {f"r2_{name}": figure.value(true[name].to_numpy(), mean[name].to_numpy()) for name in true}
        return {name: value for name, value in found.items() if value is not None}

    def charts(self, images: pd.DataFrame | None, groups: pd.DataFrame, results: Mapping[str, Any]) -> Iterable[Chart]:
        from pipeline.metrics.charts.numbers import number_charts

        images = None if images is None else self.longer(images, "prediction")
        return number_charts(images, self.longer(groups, "mean"), results)

    def longer(self, table: pd.DataFrame, said: str) -> pd.DataFrame:
        """predictions.parquet or groups.parquet with the derived targets behind the others: of these truth and what the column
        `said` says."""
        import pandas as pd

        of = {str(target): rows.reset_index(drop=True) for target, rows in table.groupby("target", sort=False)}
        first = next(iter(of.values())).drop(columns=["mu", "sigma"], errors="ignore")
        truth, mean = (self.derive(pd.DataFrame({name: rows[each] for name, rows in of.items()})) for each in ("truth", said))
        more = [first.assign(target=str(name), truth=truth[name]).assign(**{said: mean[name]}) for name in truth]
        return pd.concat([table, *more], ignore_index=True) if more else table

    # ---------------------------------------------------------------- comparisons and ensembles
    def read_tested(self, trial: TrialDir, figure: str) -> Tested:
        asked = self.figures[figure]
        index, *tables = read_wide(*((trial.groups, "mean") if asked.of == "groups" else (trial.predictions, "prediction")))
        names, truth, said = tuple(map(str, tables[0])), *(table.to_numpy("float64") for table in tables)
        if not asked.targets:
            return Tested(index, names, truth, said)
        true, of_all = (self._asked(asked, names, values) for values in (truth, said))
        if true is None or of_all is None:
            raise UserError(f"--figure {figure}: it is of {', '.join(asked.targets)}, and these trials do not predict all")
        return Tested(index, asked.targets, true, of_all, together=True)

    def kept(self, trial: TrialDir) -> Kept:
        import pandas as pd

        from pipeline.metrics.groups import SAID, SAID_OF_IMAGES, wide_form

        long = _trusted(pd.read_parquet(trial.groups), ["trust"])
        forecast = [name for name in ("mu", "sigma") if name in long]
        names = tuple(dict.fromkeys(long["target"]))
        said = [f"{name}_{end}" for name in names for end in SAID]
        validation = _trusted(pd.read_parquet(trial.validation), [f"{name}_trust" for name in names])
        images = wide_form(pd.read_parquet(trial.predictions), SAID_OF_IMAGES)
        groups = wide_form(long[["group", "domain", "n", "target", "truth", *SAID, *forecast]], (*SAID, *forecast))
        return Kept(names, validation[["group", "domain", "n", *names, *said]], groups, images)

    def together(self, members: Sequence[Tables]) -> Tables:
        from pipeline.metrics.ensembles import combine

        first, tables = members[0], [member.groups for member in members]
        known = [_trusted(table, [f"{name}_trust" for name in first.names]) for table in tables]
        return first if len(members) == 1 else replace(first, groups=combine(known, first.names))

    def combine(self, members: Sequence[Kept], training: Training, kind: Kind) -> tuple[Tables, Training]:
        from pipeline.metrics.ensembles import combine, combine_images

        names = members[0].names
        images = combine_images([member.images for member in members], names)
        held_out = Tables(names, images, combine([member.validation for member in members], names))
        calibrated = replace(training, calibration=self.calibrate(held_out, training, kind))
        together = Tables(names, images, combine([member.groups for member in members], names))
        return self.forecast(together, calibrated), calibrated

    def out_of_fold(self, members: Sequence[Kept], trainings: Sequence[Training], kind: Kind) -> tuple[Tables, Training]:
        """Known are domains that every fold was trained on. Forecasts are each fold's own; what calibrates all as one model is
        fitted to them."""
        import pandas as pd

        names = members[0].names
        images, groups = (pd.concat([getattr(each, of) for each in members], ignore_index=True) for of in ("images", "groups"))
        if twice := groups["group"][groups["group"].duplicated()].tolist():
            raise WorkError(f"group {twice[0]} is tested in several folds ({len(set(twice))} are in all)")
        domains = sorted(set.intersection(*(set(each.domains) for each in trainings)))
        means, sds = (
            {name: float(np.mean([(getattr(each, of) or {})[name] for each in trainings])) for name in names}
            for of in ("means", "sds")
        )
        together, training = Tables(names, images, groups), Training(domains, means, sds)
        return together, replace(training, calibration=self.calibrate(together, training, kind))


def _trusted(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """A table with these columns, of what is trusted wholly where it has them not."""
    return table.assign(**{column: 1.0 for column in columns if column not in table})


def _borrowed(groups: pd.DataFrame, training: Training) -> list[str]:
    """A warning where known or new domains are forecast and too few validation groups of theirs told how far off that is."""
    fitted = next(iter((training.calibration or {}).values()), None)
    known = groups["domain"].isin(list(training.domains))
    words = {
        "in_domain": (known, "known", "data.split.held_out holds more of them out"),
        "out_of_domain": (groups["domain"].notna() & ~known, "new", "data.split.kind=domains validates on new ones"),
    }
    return [
        f"sigma in {what} domains is that of all {fitted[part]['groups']} validation groups, because too few of them are of "
        f"{what} domains: it may be too small ({remedy})"
        for part, (there, what, remedy) in words.items()
        if fitted and there.any() and fitted[part]["of_all"]
    ]
