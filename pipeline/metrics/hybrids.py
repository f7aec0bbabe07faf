"""The butterflies' challenge's scores of hybrid detection (HDR Anomaly challenge 2024, organisers' scoring program).

Species A are the rows that are not mimics. A hybrid is called where its score is above a threshold: the lowest score that at
least 95 % of the species' non-hybrids do not exceed. Pure functions on arrays. The platform rounds scores to four decimals; what
`carabid export` submits keeps its order through that (`models/plain.spread`), so here nothing is rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.classification import average_precision
from pipeline.metrics.figures import Figure

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.floating]
Flags = NDArray[np.bool_]
SPECIFICITY = 0.95
"""Share of non-hybrids that must not be called hybrids."""
KINDS = ("major", "minor", "mimic")
FIGURES = {
    name: Figure(name.replace("_", " "))
    for name in (
        "A_score_major_recall", "A_score_minor_recall", "mimic_recall", "A_PRC_AUC", "A_PRC_AUC_major", "A_PRC_AUC_minor",
        "mimic_PRC_AUC", "challenge_score",
    )
}  # fmt: skip
"""Of the organisers' scores.json; the last is the challenge's headline."""


def hybrid_report(images: pd.DataFrame, is_hybrid: Flags, scores: Array) -> dict[str, float | None]:
    """The challenge's scores of a table with a row per image, whose `domain` says of which kind it is.

    Empty where the domains are no kinds; all None where a score is not finite.
    """
    kinds = images["domain"].fillna("").to_numpy(str)
    if not set(kinds) <= {*KINDS, ""} or not any(kinds):
        return {}
    return challenge_scores(scores, is_hybrid, kinds) if np.isfinite(scores).all() else dict.fromkeys(FIGURES)


def challenge_scores(scores: Array, is_hybrid: Flags, kinds: NDArray[np.str_]) -> dict[str, float | None]:
    """The content of the organisers' scores.json for scores [N], truth [N] and kinds [N] (major, minor, mimic).

    A figure of a kind without hybrids, or of a species without non-hybrids, is None, and so is the headline then.
    """
    major, minor, mimic = (kinds == kind for kind in KINDS)
    known = ~mimic
    recalls = {
        "A_score_major_recall": recall(scores, is_hybrid, known, major),
        "A_score_minor_recall": recall(scores, is_hybrid, known, minor),
        "mimic_recall": recall(scores, is_hybrid, mimic, mimic),
    }
    areas = {"A_PRC_AUC": known, "A_PRC_AUC_major": major, "A_PRC_AUC_minor": minor, "mimic_PRC_AUC": mimic}
    figures = recalls | {name: average_precision(is_hybrid[rows], scores[rows]) for name, rows in areas.items()}
    return figures | {"challenge_score": harmonic_mean(list(recalls.values()))}


def recall(scores: Array, is_hybrid: Flags, species: Flags, of: Flags) -> float | None:
    """Share of the hybrids in `of` [N] that are called hybrids by the threshold of their whole `species` [N]."""
    hybrids = scores[of & is_hybrid]
    if not len(hybrids) or not (species & ~is_hybrid).any():
        return None
    return float((hybrids > threshold(scores[species], is_hybrid[species])).mean())


def threshold(scores: Array, is_hybrid: Flags) -> float:
    """The lowest of the scores [N] that at least SPECIFICITY of the non-hybrids do not exceed. Needs a non-hybrid."""
    seen = np.unique(scores)
    below = np.searchsorted(np.sort(scores[~is_hybrid]), seen, side="right") / (~is_hybrid).sum()
    return float(seen[below >= SPECIFICITY][0])


def harmonic_mean(values: list[float | None]) -> float | None:
    """The harmonic mean; 0 if one of the values is, None if one is not defined."""
    defined = [value for value in values if value is not None]
    if not defined or len(defined) < len(values):
        return None
    return len(defined) / sum(1 / value for value in defined) if min(defined) > 0 else 0.0
