"""The butterflies' challenge's scores, against the organisers' own figures and what must hold for any scores."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.disk.layout import PROJECT
from pipeline.metrics.hybrids import SPECIFICITY, challenge_scores, harmonic_mean, recall, threshold

REFERENCE = PROJECT.parent / "shared" / "data" / "butterflies"
EXPECTED = {
    "val": {
        "A_score_major_recall": 0.6368421053,
        "A_score_minor_recall": 0.5882352941,
        "mimic_recall": 0.512,
        "A_PRC_AUC": 0.8531210683,
        "A_PRC_AUC_major": 0.9089710663,
        "A_PRC_AUC_minor": 0.6344392851,
        "mimic_PRC_AUC": 0.7301911208,
        "challenge_score": 0.5743415295,
    },
    "test": {
        "A_score_major_recall": 0.6438356164,
        "A_score_minor_recall": 0.6428571429,
        "mimic_recall": 0.5241935484,
        "A_PRC_AUC": 0.8553738115,
        "A_PRC_AUC_major": 0.9034797091,
        "A_PRC_AUC_minor": 0.6918748825,
        "mimic_PRC_AUC": 0.7477618637,
        "challenge_score": 0.5980337425,
    },
}
"""What the organisers' program says of `made_up` scores on their reference files."""
ROWS = st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=60)


def made_up(name: str, is_hybrid: int) -> float:
    share = int(hashlib.md5(name.encode()).hexdigest()[:8], 16) / 2**32
    return 0.65 * share + 0.35 * is_hybrid


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the organisers' reference files are not here")
@pytest.mark.parametrize("split", EXPECTED)
def test_the_scores_are_those_of_the_organisers_own_program(split: str) -> None:
    table = pd.read_csv(REFERENCE / f"ref_{split}.csv")
    scores = pd.Series(map(made_up, table["filename"], table["hybrid_stat"])).round(4).to_numpy()
    found = challenge_scores(scores, table["hybrid_stat"].to_numpy() == 1, table["ssp_indicator"].to_numpy(str))
    assert found == {name: pytest.approx(value, abs=1e-9) for name, value in EXPECTED[split].items()}


# ---------------------------------------------------------------- the threshold
@given(ROWS)
def test_the_threshold_is_the_lowest_score_that_calls_few_enough_non_hybrids_hybrids(rows: list[tuple[int, bool]]) -> None:
    scores, is_hybrid = (np.array(column) for column in zip(*rows, strict=True))
    if is_hybrid.all():
        return
    chosen, non_hybrids = threshold(scores.astype(float), is_hybrid), scores[~is_hybrid]
    assert (non_hybrids <= chosen).mean() >= SPECIFICITY and chosen in scores
    lower = scores[scores < chosen]
    assert not len(lower) or (non_hybrids <= lower.max()).mean() < SPECIFICITY


def test_scores_that_saturate_call_no_hybrid() -> None:
    """Ties cost: where hybrids share the score of the non-hybrids above which they must lie, none is found."""
    scores, is_hybrid = np.array([0.1] * 10 + [1.0] * 15), np.array([False] * 20 + [True] * 5)
    everything = np.ones(25, bool)
    assert recall(scores, is_hybrid, everything, everything) == 0


def test_the_threshold_of_minor_hybrids_is_that_of_their_whole_species() -> None:
    scores = np.array([*np.linspace(0, 0.9, 99), 0.95, 0.2, 0.96])
    is_hybrid = np.array([*[False] * 100, True, True])
    kinds = np.array([*["major"] * 100, "minor", "minor"])
    assert challenge_scores(scores, is_hybrid, kinds)["A_score_minor_recall"] == 0.5


# ---------------------------------------------------------------- what is not defined
def test_a_figure_of_what_is_not_there_is_none_and_so_is_the_headline() -> None:
    found = challenge_scores(np.array([0.1, 0.9]), np.array([False, True]), np.array(["major", "major"]))
    assert found["A_score_major_recall"] == 1 and found["A_PRC_AUC_major"] == 1
    assert found["mimic_recall"] is None and found["A_PRC_AUC_minor"] is None and found["challenge_score"] is None


def test_one_recall_of_zero_makes_the_headline_zero() -> None:
    assert harmonic_mean([0.9, 0.0, 0.8]) == 0
    assert harmonic_mean([0.5, 0.5, 0.5]) == pytest.approx(0.5)
    assert harmonic_mean([]) is None and harmonic_mean([0.5, None]) is None
