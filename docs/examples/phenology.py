"""Flowering stages, from 0 (bud) to 4 (over), told from photographs of plants: numbers whose order counts."""

import numpy as np
from sklearn.metrics import cohen_kappa_score

from pipeline.metrics.figures import Figure
from pipeline.tasks.numbers import Numbers

LAST = 4


def stages(values: np.ndarray) -> np.ndarray:
    """The nearest stage to each number [N]."""
    return np.clip(np.rint(values), 0, LAST).astype("int64")


def kappa(truth: np.ndarray, prediction: np.ndarray) -> float | None:
    """Cohen's kappa with squared weights (Cohen 1968): 1 if all agree, 0 by chance; None where all are of one stage."""
    a, b = stages(truth), stages(prediction)
    return None if len({*a, *b}) < 2 else float(cohen_kappa_score(a, b, weights="quadratic"))


def within_one(truth: np.ndarray, prediction: np.ndarray) -> float:
    """How many images are told to a stage, or one beside it."""
    return float((np.abs(stages(truth) - stages(prediction)) <= 1).mean())


class Phenology(Numbers):
    """Numbers, and figures of stages."""

    figures = Numbers.figures | {
        "kappa": Figure("weighted kappa", kappa, selectable=True),
        "within_one": Figure("within one stage", within_one),
    }
    headline = ("kappa", "within_one", "MAE")


TASK = Phenology()
