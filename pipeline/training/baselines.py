"""Fitting what looks at no image: climatology remembers the training groups, boosting grows trees on their metadata."""

from typing import Any

import numpy as np
import torch

from pipeline.models.baselines import Boosting, Climatology
from pipeline.training.checkpoint import Progress
from pipeline.training.run import Fitted, Run
from pipeline.training.samples import Samples, predict

CATEGORIES = [0, 1, 2]
"""Columns of `Boosting.columns` that are names."""
SAME = {"deterministic": True, "force_row_wise": True, "num_threads": 1, "verbose": -1}
"""One thread and rows in order, so that the same data grow the same trees on every machine."""


def fit_climatology(model: Climatology, train: Samples, validation: Samples, run: Run) -> Fitted:
    """Remember each training group once."""
    firsts = torch.from_numpy(np.unique(train.groups, return_index=True)[1]).to(train.targets.device)
    model.learn(train.metadata[firsts], train.targets[firsts])
    return Fitted(Progress(epoch=1, best_epoch=0, best_metric=run.choice.score(validation, predict(model, validation))))


def fit_boosting(model: Boosting, train: Samples, validation: Samples, run: Run) -> Fitted:
    """A model for each target; how many trees it has is chosen on validation, by squared error. Each group counts once, however
    many images it has. Fitted tells of the model with most trees how many were grown, and how many kept."""
    import lightgbm  # nothing else needs it

    head: Any = run.config.model.head
    shape = {"learning_rate": head.lr, "num_leaves": head.leaves, "min_data_in_leaf": head.min_leaf}
    parameters = {"objective": "regression", "seed": run.config.seed} | shape | SAME
    sets = []
    for samples in (train, validation):
        weights = 1 / np.bincount(samples.groups)[samples.groups]
        sets.append((model.columns(samples.metadata), samples.targets.dense().cpu().numpy(), weights))
    texts, grown, kept = [], 0, 0
    for target in range(train.n_targets):
        fit, held_out = (
            lightgbm.Dataset(x, y[:, target], weight=w, categorical_feature=CATEGORIES, params={"verbose": -1})
            for x, y, w in sets
        )
        stop = [lightgbm.early_stopping(head.patience, verbose=False)]
        booster = lightgbm.train(parameters, fit, head.rounds, valid_sets=[held_out], callbacks=stop)
        texts.append(booster.model_to_string(num_iteration=booster.best_iteration))
        grown, kept = max(grown, booster.current_iteration()), max(kept, booster.best_iteration)
    model.learn(texts)
    metric = run.choice.score(validation, predict(model, validation))
    return Fitted(Progress(epoch=grown, best_epoch=kept - 1, best_metric=metric))
