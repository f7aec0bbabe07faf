"""Probabilities of classes and of what they belong to: equal to a whole softmax, in chunks of any size and bounded memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.metrics.ranks import UNKNOWN, level_figures, probabilities, rank_figures
from pipeline.metrics.retrieval import cosines
from pipeline.metrics.similarity import SIMILARITIES
from pipeline.models.pairs import similarity as trained

Array = Any


def drawn(n: int, n_classes: int, seed: int, width: int = 4) -> tuple[Array, Array, Array, dict[str, Array]]:
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(n_classes, width))
    labels = rng.integers(n_classes, size=n)
    parents = {"genus": rng.integers(-1, 4, size=n_classes), "family": rng.integers(-1, 2, size=n_classes)}
    return (classes[labels] + rng.normal(size=(n, width))).astype("float32"), labels, classes.astype("float32"), parents


def softmax(logits: Array) -> Array:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@given(
    st.integers(1, 8),
    st.integers(1, 30),
    st.integers(0, 50),
    st.sampled_from([1, 200, 600, 10**6]),
    st.sampled_from([1.0, 100.0]),
)
def test_probabilities_are_those_of_a_whole_softmax(n: int, n_classes: int, seed: int, cells: int, scale: float) -> None:
    images, labels, classes, parents = drawn(n, n_classes, seed)
    said, found = probabilities(images, labels, classes, parents, scale, cells)
    p = softmax(scale * cosines(images, classes).astype("float64"))
    assert said.p_true == pytest.approx(p[np.arange(n), labels], rel=1e-4, abs=1e-30)
    assert (p[np.arange(n), said.most_probable] >= p.max(axis=1) * (1 - 1e-4)).all()
    for rank, codes in parents.items():
        sums = np.stack([p[:, codes == code].sum(axis=1) for code in range(4)], axis=1)
        for i, label in enumerate(labels):
            expected = np.nan if codes[label] == UNKNOWN else sums[i, codes[label]]
            assert found[rank].p_true[i] == pytest.approx(expected, rel=1e-4, abs=1e-30, nan_ok=True)
            assert sums[i, found[rank].most_probable[i]] >= sums[i].max() * (1 - 1e-4) - 1e-30


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_probabilities_are_of_the_similarity_that_was_trained(similarity: str) -> None:
    images, labels, classes, parents = drawn(6, 20, 3)
    said, _ = probabilities(images, labels, classes, parents, 9.0, 600, similarity)
    p = softmax(9.0 * SIMILARITIES[similarity](cosines(images, classes).astype("float64")))
    assert said.p_true == pytest.approx(p[np.arange(6), labels], rel=1e-4)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_similarity_is_the_same_in_figures_as_in_training(similarity: str) -> None:
    assert SIMILARITIES.keys() == trained.SIMILARITIES.keys()
    c = np.concatenate([np.linspace(-1, 1, 201), [-1.0000001, 1.0000001]]).astype("float32")
    (expected,) = trained.SIMILARITIES[similarity](torch.from_numpy(c)[None]).numpy()
    assert SIMILARITIES[similarity](c) == pytest.approx(expected, abs=1e-6)


def test_a_large_scale_neither_overflows_nor_divides_by_nothing() -> None:
    """The first chunk holds what is least like the image."""
    classes = np.stack([np.full(300, -1.0), np.linspace(0, 0.1, 300)], axis=1)
    classes[-1] = (1, 0)
    image, parents = np.array([[1.0, 0.0]]), {"genus": np.arange(300)}
    said, found = probabilities(image, np.array([299]), classes, parents, 1e4, cells=128 * 7)
    assert said.p_true == pytest.approx(1) and found["genus"].p_true == pytest.approx(1)
    assert found["genus"].most_probable.tolist() == [299]


def test_figures_tell_the_right_genus_with_the_wrong_species() -> None:
    """Four species in two genera, and one of which the genus is not known."""
    classes, parents = np.eye(5), {"genus": np.array([0, 0, 1, 1, UNKNOWN])}
    said, labels = np.array([0, 1, 2, 3, 0, 4]), np.array([0, 0, 0, 3, 2, 4])
    of_classes, above = probabilities(classes[said], labels, classes, parents, 100.0)
    found = rank_figures(of_classes, above, labels, parents)
    assert level_figures(of_classes, labels)["accuracy"] == 3 / 6
    assert found["genus"] == {"accuracy": 3 / 5, "probability": pytest.approx(3 / 5), "wrong_within": 1 / 5}
    nothing = {"genus": np.full(5, UNKNOWN)}
    assert set(
        rank_figures(*probabilities(classes, np.arange(5), classes, nothing, 1.0), np.arange(5), nothing)["genus"].values()
    ) == {None}


def test_memory_is_bounded_by_the_cells_and_not_by_the_table() -> None:
    images, labels, classes, parents = drawn(400, 20_000, 0, 8)  # 32 MB of cosines
    tracemalloc.start()
    probabilities(images, labels, classes, parents, 100.0, cells=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6_000_000
