"""The challenges' platforms: what each demands of a trial, and what submission.json tells it beside the members.

A task names its own (`Task.challenge`); a submission's model.py is this folder's file of the platform's name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.reading import reading
from pipeline.errors import UserError
from pipeline.metrics.probabilistic import MIN_SIGMA
from pipeline.models import plain
from pipeline.models.content import AGAIN
from pipeline.models.saved import read_trained

Spec = dict[str, Any]
KNOTS = 101
"""Quantiles of validation images' log odds, among which a butterfly's are told."""


class Platform(ABC):
    """What `carabid export` has to know of one."""

    @abstractmethod
    def says(self, trial: TrialDir, config: Config, targets: Sequence[str]) -> tuple[str, ...]:
        """What a trial with these targets says, in the platform's order. Raises UserError for a trial that it cannot take."""

    @abstractmethod
    def spec(self, trials: Sequence[TrialDir], says: Sequence[str], calibration: Spec | None) -> Spec:
        """Its part of submission.json, for trials that say the same, and an ensemble's own calibration."""


class Beetles(Platform):
    """Takes a forecast of three targets."""

    targets = ("SPEI_30d", "SPEI_1y", "SPEI_2y")

    def says(self, trial: TrialDir, config: Config, targets: Sequence[str]) -> tuple[str, ...]:
        if set(targets) != set(self.targets):
            raise UserError(f"{trial.path} predicts {', '.join(targets)}: the platform asks for {', '.join(self.targets)}")
        return self.targets

    def spec(self, trials: Sequence[TrialDir], says: Sequence[str], calibration: Spec | None) -> Spec:
        """Also what is forecast of an event of which no photograph decodes: mean and sd of the training events."""
        records = [read_trained(trial) for trial in trials]
        mu, sigma = (
            {t: float(np.mean([each[key][t] for each in records])) for t in says} for key in ("train_means", "train_sds")
        )
        unseen = {target: {"mu": mu[target], "sigma": max(sigma[target], MIN_SIGMA)} for target in says}
        return {"targets": list(says), "calibration": calibration, "unseen": unseen}


class Butterflies(Platform):
    """Takes a score of one of two classes."""

    def says(self, trial: TrialDir, config: Config, targets: Sequence[str]) -> tuple[str, ...]:
        if len(targets) != 2:
            raise UserError(f"{trial.path} tells {len(targets)} classes apart: the platform asks for a score of one of two")
        if config.data.positive is None:
            raise UserError(f"{trial.path}: nothing says which class the scores are of: train with data.positive")
        if config.data.colour_card or config.data.scale_bar:
            raise UserError(f"{trial.path} corrects images by a card or a bar, and the butterflies' platform has neither")
        return tuple(targets)

    def spec(self, trials: Sequence[TrialDir], says: Sequence[str], calibration: Spec | None) -> Spec:
        """Among which log odds an image's are told: ascending quantiles, each once, of the trials' means for the validation
        groups; and the neutral score, that of their median."""
        columns = []
        for trial in trials:
            with reading(trial.validation, AGAIN):
                p = pd.read_parquet(trial.validation).set_index("group")[f"{says[0]}_mean"].clip(plain.FEWEST, 1 - plain.FEWEST)
                columns.append(np.log(p) - np.log1p(-p))
        shared = pd.concat(columns, axis=1, join="inner").mean(axis=1)
        found = shared if len(shared) else columns[0]  # (of other splits: nothing can be said of both)
        knots = [float(value) for value in np.unique(np.quantile(found, np.linspace(0, 1, KNOTS)))]
        return {"knots": knots, "neutral": plain.spread(float(np.median(found)), knots)}


PLATFORMS: dict[str, Platform] = {"beetles": Beetles(), "butterflies": Butterflies()}
