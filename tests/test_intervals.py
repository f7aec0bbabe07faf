"""Bootstrap intervals: of images, not of photographs; the same for the same seed; as wide as theory says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.metrics.intervals import Interval, Rows, bootstrap


def mean_of(values: np.ndarray):  # type: ignore[no-untyped-def]
    return lambda rows: float(values[rows].mean())


def test_the_interval_of_a_mean_is_about_as_wide_as_its_standard_error_says() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap(mean_of(values), [str(i) for i in range(400)], seed=1)
    assert found is not None and found.n == 2000
    half = 1.96 * values.std() / np.sqrt(400)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)


def test_photographs_of_one_image_make_it_no_surer() -> None:
    values = np.random.default_rng(0).normal(size=50)
    names = [str(i) for i in range(50)]
    once, often = (bootstrap(mean_of(np.repeat(values, k)), np.repeat(names, k).tolist(), seed=2) for k in (1, 7))
    assert once is not None and often is not None
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20), st.integers(0, 99))
def test_every_draw_has_whole_images_and_as_many_as_there_are(images: list[str], seed: int) -> None:
    of = np.array(images)
    sizes = {name: images.count(name) for name in images}

    def whole(rows: Rows) -> float:
        counts = {name: int((of[rows] == name).sum()) for name in set(images)}
        assert all(count % sizes[name] == 0 for name, count in counts.items())
        assert sum(count // sizes[name] for name, count in counts.items()) == len(sizes)
        return 1.0

    assert bootstrap(whole, images, seed, n=20) == Interval(1, 1, 0.95, 20)
    assert bootstrap(mean_of(np.arange(len(of))), images, seed, n=20) == bootstrap(
        mean_of(np.arange(len(of))), images, seed, n=20
    )


def test_draws_in_which_the_figure_is_not_defined_are_left_out() -> None:
    hybrid = np.array([True, False, False])
    share = lambda rows: float(hybrid[rows].mean()) if hybrid[rows].any() else None  # noqa: E731
    found = bootstrap(share, ["a", "b", "c"], seed=3, n=300)
    assert found is not None and 150 < found.n < 250 and found.low > 0
    assert bootstrap(lambda rows: None, ["a"], seed=3, n=5) is None
