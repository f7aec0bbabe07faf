"""Experiments, trials and stores as they lie on disk, opened for notebooks and scripts: what `import carabid` gives. Nothing here
trains or queues anything: the command line does. Loads torch only where a model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, StoreDir, TrialDir, all_experiments, features_root, trained_root
from pipeline.disk.reading import reading
from pipeline.disk.writing import read_json
from pipeline.errors import UserError, nearest
from pipeline.experiments.reading import load_config
from pipeline.metrics.charts.chart import Chart
from pipeline.reporting.results import Row, by_look, collect, sort_rows, sorts
from pipeline.reporting.state import AGAIN

if TYPE_CHECKING:
    import pandas as pd

PathLike = str | Path


def experiments(trained: PathLike | None = None) -> list[Experiment]:
    """Every experiment in the folder `trained` (default: that of `$CARABID_ROOT`, else of the project), by name."""
    return [Experiment(each.path) for each in all_experiments(Path(trained) if trained else None)]


def open_experiment(name: PathLike, trained: PathLike | None = None) -> Experiment:
    """The experiment of this name, or in this folder. Raises UserError where there is none."""
    if Path(name).is_dir():
        return Experiment(Path(name).resolve())
    known = {each.name: each for each in experiments(trained)}
    if (found := known.get(str(name))) is None:
        raise UserError(f"there is no experiment {name} in {trained or trained_root()}; {nearest(str(name), known)}")
    return found


def open_trial(place: PathLike) -> Trial:
    """The trial in this folder, looked for from here, from the root, and as <experiment>/<trial> among what is trained. Raises
    UserError where there is none."""
    from pipeline.stages.predict import trial_at

    return Trial(trial_at(Path(place)).path)


def open_store(place: PathLike) -> Store:
    """The features in this folder, or of this key under `features/`. Raises MissingFeatures where they are not all there."""
    from pipeline.features.store import load_store

    folder = Path(place) if Path(place).is_dir() else features_root() / place
    load_store(StoreDir(folder))
    return Store(folder)


@dataclass(frozen=True)
class Experiment:
    """Trials of one YAML, in a folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def trials(self) -> list[Trial]:
        """All that have a folder, by name."""
        return [Trial(each.path) for each in self._folder.trials()]

    def trial(self, name: str) -> Trial:
        """The trial of this name, or the only one whose name holds it. Raises UserError for none and for several."""
        found = [each for each in self.trials if each.name == name] or [each for each in self.trials if name in each.name]
        if len(found) != 1:
            every = {each.name: each for each in self.trials}
            why = f"{len(found)} trials of {self.name} hold {name!r}" if found else f"no trial of {self.name} holds {name!r}"
            raise UserError(f"{why}; {nearest(name, every)}")
        return found[0]

    def results(self) -> pd.DataFrame:
        """A row for each trial that was ever planned, and for each ensemble of them: experiment, trial, state, reason, split,
        whether figures are optimistic, how many members; and every figure by its name (`r2`, `in_domain.r2`, `SPEI_30d.r2`)."""
        import pandas as pd

        told = ("experiment", "trial", "state", "reason", "split", "optimistic")
        rows = [{name: getattr(row, name) for name in told} | {"members": len(row.members)} | row.figures for row in self._rows()]
        return pd.DataFrame(rows, columns=None if rows else [*told, "members"])

    def best(self, figure: str | None = None) -> Trial:
        """The trial with the best figure (default: the headline's first). Raises UserError where no trial has results, and for a
        figure that there is not."""
        done = [row for row in self._rows() if row.state == "done" and not row.members]
        tables = by_look(done)
        if figure is not None and done and figure not in (known := {name: None for row in done for name in row.figures}):
            raise UserError(f"no trial of {self.name} has a figure {figure}; {nearest(figure, known)}")
        for look, by in sorts(tables, figure).items():
            return Trial(self.path / sort_rows(tables[look], by)[0].trial)
        raise UserError(f"no trial of {self.name} has results yet: `carabid status {self.name}` says why")

    def charts(self) -> dict[str, Chart]:
        """The charts of its report: name → a Chart, which a notebook shows, with what it is made of as `table` and in words as
        `said`."""
        from pipeline.reporting.page.page import sections_of

        made = sections_of([self._folder], self._rows())
        return {f"{section.name}-{chart.name}": chart for section in made for chart in section.charts}

    def report(self, out: PathLike | None = None) -> Path:
        """Writes its HTML page (default: report.html in its folder); returns where."""
        from pipeline.reporting.page.page import write

        return write([self._folder], Path(out) if out else self._folder.report_html)

    @property
    def _folder(self) -> ExperimentDir:
        return ExperimentDir(self.path)

    def _rows(self) -> list[Row]:
        return collect([self._folder])

    def _repr_html_(self) -> str:
        return str(self.results().to_html())


@dataclass(frozen=True)
class Trial:
    """A resolved configuration with what was trained by it, in a folder."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def config(self) -> Config:
        """Its configuration, every key of it. Raises UserError where it cannot be read."""
        return load_config(self._folder.config)

    @property
    def results(self) -> dict[str, Any]:
        """results.json. Raises UserError where it is not evaluated yet."""
        return self._read("results")

    @property
    def provenance(self) -> dict[str, Any]:
        """provenance.json: code, versions, devices, time, memory."""
        return self._read("provenance")

    def predictions(self) -> pd.DataFrame:
        """What it said of each image of the test: id, group, domain, species, target, truth, prediction."""
        return self._table("predictions")

    def groups(self) -> pd.DataFrame:
        """What it said of each group: group, domain, n (images), target, truth, mean, and of numbers mu and sigma of the
        forecast, in the target's unit."""
        return self._table("groups")

    def metrics(self) -> pd.DataFrame:
        """A row for each epoch: losses, rates, figures of validation. Raises UserError for what was not trained in epochs."""
        import pandas as pd

        if not self._folder.metrics.exists():
            raise UserError(f"{self.name} was not trained in epochs: it has no metrics.jsonl")
        return pd.read_json(self._folder.metrics, lines=True)

    def predict(
        self, images: Sequence[PathLike], domain: str | None = None, species: Sequence[str] = (), device: str | None = None
    ) -> pd.DataFrame:
        """What it says of new image files: a row for each, by its path, and a column for each target (in the target's unit) or
        class (a probability). `species` names that of each image, or of all.

        Raises UserError at the first file that is no image, and for a domain's or a species' number that does not fit.
        """
        import pandas as pd

        from pipeline.stages.predict import Origin, predict_files

        said = predict_files(self.path, [*map(Path, images)], Origin(domain, tuple(species)), device)
        return pd.DataFrame(list(said), index=pd.Index([*map(str, images)], name="image"))

    def predict_group(
        self, images: Sequence[PathLike], domain: str | None = None, species: Sequence[str] = (), device: str | None = None
    ) -> pd.DataFrame:
        """What it says of one group whose images these are: a row for each target, with its calibrated mean and sd, or for each
        class with its probability. Raises UserError as `predict` does."""
        import pandas as pd

        from pipeline.stages.predict import Origin, predict_group

        said = predict_group(self.path, [*map(Path, images)], Origin(domain, tuple(species)), device)
        return pd.DataFrame.from_dict(said, orient="index", columns=["mean", "sd"]).rename_axis("target")

    def embed(self, images: Sequence[PathLike], device: str | None = None) -> Float32[np.ndarray, "images width"]:
        """What its head reads of new image files: their embeddings after its encoder, before these are normalised. Raises
        UserError at the first file that is no image, and for a model that looks at none."""
        from pipeline.stages.predict import embed_files

        return embed_files(self.path, [*map(Path, images)], device)

    def store(self) -> Store:
        """The features that it was trained from. Raises MissingFeatures where they are gone."""
        return open_store(features_root(self.config) / self.results["feature_key"])

    @property
    def _folder(self) -> TrialDir:
        return TrialDir(self.path)

    def _read(self, name: str) -> dict[str, Any]:
        path = getattr(self._folder, name)
        self._check(path)
        with reading(path, AGAIN):
            return read_json(path)

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        path = getattr(self._folder, name)
        self._check(path)
        with reading(path, AGAIN):
            return pd.read_parquet(path)

    def _check(self, path: Path) -> None:
        if not path.exists():
            raise UserError(f"{self.name} has no {path.name}: it is not evaluated yet (`carabid status` says why)")


@dataclass(frozen=True)
class Store:
    """Features of all images of a data set, as a backbone made them once."""

    path: Path

    @property
    def about(self) -> dict[str, Any]:
        """Its manifest: what it is of, how many images, what could not be read, how fast it was made."""
        with reading(StoreDir(self.path).manifest, AGAIN):
            return read_json(StoreDir(self.path).manifest)

    def index(self) -> pd.DataFrame:
        """A row for each image, in the order of `array`: position, id, source_split, row, image_sha256, shard, offset, ok and
        error."""
        import pandas as pd

        with reading(StoreDir(self.path).index, AGAIN):
            return pd.read_parquet(StoreDir(self.path).index)

    def array(self) -> Float32[np.ndarray, "images ..."]:
        """The features as fp32 [N, E], [N, P, D] (patches), [N, T, D] (tokens at the cut) or, of several views, with V behind N;
        of an image that could not be read zeros. All of it in memory. Raises MissingFeatures where a shard is missing or
        damaged."""
        from safetensors.torch import load_file

        from pipeline.features.store import load_store

        store = load_store(StoreDir(self.path))
        store.verify()
        return np.concatenate([load_file(store.path(i))["features"].float().numpy() for i in range(store.n_shards)])
