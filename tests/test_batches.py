"""Which images make up the batches: properties of each way to draw them."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.batches import Batches
from pipeline.training import batches

labels_of_many = st.lists(st.integers(0, 6), min_size=8, max_size=80).map(lambda values: np.array(values, dtype=np.int64))
seeds = st.integers(0, 2**32)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(labels_of_many, st.integers(1, 9), seeds)
def test_a_batch_is_of_one_view_and_an_image_stands_in_one_at_most(views: np.ndarray, size: int, seed: int) -> None:
    drawn = list(batches.of_one_view(views, size, rng(seed)))
    assert all(len(set(views[rows])) == 1 and len(rows) == size for rows in drawn)
    assert max(Counter(np.concatenate([*drawn, [-1]]).tolist()).values()) == 1
    assert len(drawn) == sum(n // size for n in Counter(views.tolist()).values())


@given(labels_of_many, st.integers(1, 4), st.integers(1, 4), seeds)
def test_a_batch_has_so_many_classes_with_so_many_images_each(labels: np.ndarray, n: int, k: int, seed: int) -> None:
    for rows in batches.of_classes(labels, n, k, rng(seed)):
        assert list(Counter(labels[rows].tolist()).values()) == [k] * n


@given(st.integers(2, 6), st.integers(1, 4), st.integers(1, 5), seeds)
def test_where_classes_are_of_one_size_every_image_is_seen(n_classes: int, k: int, sets: int, seed: int) -> None:
    labels = np.repeat(np.arange(n_classes), k * sets)
    seen = np.concatenate(list(batches.of_classes(labels, n_classes, k, rng(seed))))
    assert sorted(seen.tolist()) == list(range(len(labels)))


def test_classes_are_drawn_alike_by_power_0_and_as_they_come_by_power_1() -> None:
    labels = np.repeat([0, 1], [900, 100])
    share = {}
    for power in (0.0, 0.5, 1.0):
        rows = np.concatenate(list(batches.balanced(labels, 10, power, rng(0))))
        share[power] = float((labels[rows] == 1).mean())
    assert share[0.0] == pytest.approx(0.5, abs=0.05) and share[1.0] == pytest.approx(0.1, abs=0.03)
    assert share[0.5] == pytest.approx(0.25, abs=0.05)


@given(labels_of_many, st.integers(3, 8), seeds)
def test_every_bucket_has_its_share_of_every_batch(buckets: np.ndarray, size: int, seed: int) -> None:
    present = len(set(buckets.tolist()))
    for rows in batches.of_buckets(buckets, size, rng(seed)):
        counts = [int((buckets[rows] == b).sum()) for b in set(buckets.tolist())]
        assert len(rows) == size and max(counts) - min(counts) <= 1 and len(counts) == present


def test_a_batch_of_neighbours_is_of_the_classes_likest_to_one_of_them() -> None:
    labels, place = np.repeat(np.arange(12), 5), np.arange(12)
    likeness = -np.abs(place[:, None] - place).astype("float64")
    drawn = list(batches.of_neighbours(labels, likeness, 9, 3, rng(1)))
    assert len(drawn) == 60 // 9
    for rows in drawn:
        there = sorted(set(labels[rows].tolist()))
        assert len(rows) == 9 and len(there) == 3 and there[-1] - there[0] == 2


@pytest.mark.parametrize("kind", ["shuffled", "views", "classes", "balanced", "buckets", "neighbours"])
@given(labels=labels_of_many, views=labels_of_many, size=st.integers(2, 40), seed=seeds)
def test_that_images_fill_no_batch_is_known_before_they_are_drawn(
    kind: str, labels: np.ndarray, views: np.ndarray, size: int, seed: int
) -> None:
    views = np.resize(views, len(labels))
    of = SimpleNamespace(labels=labels, views=views, buckets=lambda _: labels % 3, likeness=lambda: np.eye(7))
    way = Batches.parse({"kind": kind})
    why = way.misfit(np.bincount(labels, minlength=9).tolist(), np.unique(views, return_counts=True)[1].tolist(), size)
    assert bool(why) == (not list(way.draw(of, size, rng(seed)))), why


def test_of_a_long_tail_most_images_of_its_long_classes_are_dropped_and_others_in_each_epoch() -> None:
    labels = np.repeat(np.arange(121), [268, 200, 150, 130, 117, *[3] * 116])
    epochs = [list(batches.of_classes(labels, 64, 2, rng(seed))) for seed in range(2)]
    seen = [set(np.concatenate(drawn).tolist()) for drawn in epochs]
    assert all(len(drawn) < len(labels) // 128 for drawn in epochs) and all(len(each) < len(labels) / 2 for each in seen)
    assert len(seen[0] & seen[1]) < len(seen[0])


def test_more_images_of_a_class_than_a_batch_has_are_refused() -> None:
    assert "per_class is 4, and train.batch_size 3" in Batches.parse({"kind": "classes", "per_class": 4}).misfit([9, 9], [18], 3)


@given(labels_of_many, seeds)
def test_one_seed_draws_one_epoch(labels: np.ndarray, seed: int) -> None:
    likeness = np.eye(7)
    for draw in (
        lambda g: batches.of_one_view(labels, 3, g),
        lambda g: batches.of_classes(labels, 2, 2, g),
        lambda g: batches.balanced(labels, 3, 0.5, g),
        lambda g: batches.of_buckets(labels, 3, g),
        lambda g: batches.of_neighbours(labels, likeness, 4, 2, g),
    ):
        once, again = (np.concatenate([[0], *islice(draw(rng(seed)), 5)]).tolist() for _ in range(2))
        assert once == again
