"""Bootstrap intervals: of groups, not of images; the same for the same seed; as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.intervals import central, draws


def drawn_means(values: np.ndarray, groups: list[str], seed: int, n: int = 2000) -> np.ndarray:
    weights = np.hstack(list(draws(groups, seed, n))).astype("float64")
    return values @ weights / weights.sum(axis=0)


def test_the_interval_of_a_mean_is_about_as_wide_as_its_standard_error_says() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    means = drawn_means(values, [str(i) for i in range(400)], seed=1)
    assert len(means) == 2000
    half = 1.96 * values.std() / np.sqrt(400)
    assert central(means) == pytest.approx([values.mean() - half, values.mean() + half], abs=0.05)


def test_images_of_one_group_make_it_no_surer() -> None:
    values = np.random.default_rng(0).normal(size=50)
    names = [str(i) for i in range(50)]
    once, often = (central(drawn_means(np.repeat(values, k), np.repeat(names, k).tolist(), seed=2)) for k in (1, 7))
    assert once is not None and often == pytest.approx(once)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20), st.integers(0, 99))
def test_every_draw_has_whole_groups_and_as_many_as_there_are(groups: list[str], seed: int) -> None:
    of = np.array(groups)
    (weights,) = draws(groups, seed, n=20)
    assert weights.shape == (len(groups), 20)
    firsts = np.unique(of, return_index=True)[1]
    assert (weights[firsts].sum(axis=0) == len(firsts)).all()
    assert all((weights[of == name] == weights[first]).all() for name, first in zip(np.unique(of), firsts, strict=True))
    assert (np.hstack(list(draws(groups, seed, n=20))) == weights).all()


def test_draws_in_which_the_figure_is_not_defined_are_left_out() -> None:
    shares = drawn_means(np.array([1.0, 0.0, 0.0]), ["a", "b", "c"], seed=3, n=300)
    shares[shares == 0] = np.nan
    found = central(shares)
    assert found is not None and 150 < np.isfinite(shares).sum() < 250 and found[0] > 0
    assert central(np.full(5, np.nan)) is None
