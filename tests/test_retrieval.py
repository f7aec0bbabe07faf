"""Rankings by cosine: equal to naive loops, torchmetrics, pytorch-metric-learning and scikit-learn, in chunks of any size."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score
from torchmetrics.retrieval import RetrievalMAP, RetrievalPrecision, RetrievalRecall

from pipeline.metrics import retrieval
from pipeline.metrics.retrieval import DEEP, KS, Ranked, by_chance, class_means, cosines, harmonic_mean, mean, rank, unit

Array = Any
GRID = st.integers(-2, 2)
"""Of such coordinates many vectors are equal, and many cosines."""


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array, Array, Array]:
    """Queries with labels and a gallery with labels, with many ties."""
    n, m, width = draw(st.integers(1, 6)), draw(st.integers(1, 12)), draw(st.integers(1, 3))
    vectors = draw(st.lists(GRID, min_size=(n + m) * width, max_size=(n + m) * width))
    labels = draw(st.lists(st.integers(0, 3), min_size=n + m, max_size=n + m))
    x, y = np.array(vectors, "float32").reshape(n + m, width), np.array(labels)
    return x[:n], y[:n], x[n:], y[n:]


def drawn(n: int, n_classes: int, seed: int = 0, width: int = 5) -> tuple[Array, Array]:
    """Embeddings that know something of their labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(n_classes, size=n)
    return (rng.normal(size=(n_classes, width))[labels] + rng.normal(size=(n, width))).astype("float32"), labels


def naive(scores: Array, is_relevant: Array) -> dict[str, float]:
    """All figures of one query by a loop over its ranking, the wrong ones first among equal scores."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], is_relevant[i]))
    n, found, precisions, deep = int(is_relevant.sum()), 0, [], []
    for place, i in enumerate(order, 1):
        if is_relevant[i]:
            found += 1
            precisions.append(found / place)
            deep += [found / place] if place <= DEEP else []
    first = {k: sum(is_relevant[i] for i in order[:k]) for k in KS}
    figures = {"ap": np.mean(precisions), "ap_deep": sum(deep) / min(DEEP, n)} if n else {"ap": np.nan, "ap_deep": np.nan}
    shares = {f"precision {k}": first[k] / k if n else np.nan for k in KS} | {
        f"recall {k}": first[k] / n if n else np.nan for k in KS
    }
    return {**figures, **shares, "n": n}


def row(ranked: Ranked, i: int) -> dict[str, float]:
    at_k = {f"{name} {k}": getattr(ranked, name)[i, j] for name in ("precision", "recall") for j, k in enumerate(KS)}
    return {"ap": ranked.ap[i], "ap_deep": ranked.ap_deep[i], **at_k, "n": ranked.n_relevant[i]}


def same(a: Ranked, b: Ranked) -> bool:
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(vars(a).values(), vars(b).values(), strict=True))


# ---------------------------------------------------------------- one query after another
@given(cases())
def test_a_ranking_is_that_of_a_naive_loop_also_with_ties(case: tuple[Array, Array, Array, Array]) -> None:
    queries, labels, gallery, of = case
    found, scores = rank(queries, labels, gallery, of), cosines(queries, gallery)
    for i in range(len(labels)):
        assert row(found, i) == pytest.approx(naive(scores[i], of == labels[i]), nan_ok=True)


@given(cases())
def test_a_query_is_left_out_of_its_own_gallery(case: tuple[Array, Array, Array, Array]) -> None:
    _, _, x, y = case
    found, scores = rank(x, y, x, y, np.arange(len(y))), cosines(x, x)
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        assert row(found, i) == pytest.approx(naive(scores[i, others], y[others] == y[i]), nan_ok=True)


@given(cases(), st.sampled_from([1, 7, 130, 1000]))
def test_the_size_of_chunks_changes_no_bit(case: tuple[Array, Array, Array, Array], cells: int) -> None:
    queries, labels, x, y = case
    assert same(rank(queries, labels, x, y), rank(queries, labels, x, y, cells=cells))
    assert same(rank(x, y, x, y, np.arange(len(y))), rank(x, y, x, y, np.arange(len(y)), cells))


def test_more_than_one_chunk_of_queries_and_of_the_gallery_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = drawn(500, 20)
    whole = rank(x, y, x, y, np.arange(500))
    monkeypatch.setattr(retrieval, "LEAST_ROWS", 16)
    assert retrieval._chunk(500, 40, 16 * 30) == (12, 30)
    assert same(whole, rank(x, y, x, y, np.arange(500), 16 * 30))


@given(cases(), st.randoms(use_true_random=False))
def test_the_order_of_files_changes_nothing(case: tuple[Array, Array, Array, Array], random: Any) -> None:
    queries, labels, x, y = case
    order = list(range(len(y)))
    random.shuffle(order)
    assert same(rank(queries, labels, x, y), rank(queries, labels, x[order], y[order]))
    own = rank(x, y, x, y, np.arange(len(y)))
    again = rank(x[order], y[order], x[order], y[order], np.arange(len(y)))
    assert np.array_equal(own.ap[order], again.ap, equal_nan=True)


def test_embeddings_that_are_all_the_same_find_nothing_first() -> None:
    same_for_all, labels = np.ones((6, 3)), np.array([0, 0, 0, 1, 1, 1])
    found = rank(same_for_all, labels, same_for_all, labels, np.arange(6))
    assert (found.precision[:, 0] == 0).all() and found.ap == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_of_vectors_without_a_length_the_cosine_is_0_and_of_a_large_one_no_overflow_is_made() -> None:
    assert unit(np.array([[0, 0], [3e30, 4e30]], "float32")).tolist() == [[0, 0], pytest.approx([0.6, 0.8])]


def test_the_check_value_of_image_to_image_holds() -> None:
    x = np.array([(1.3, 0.01, 1), (-1.1, 0.01, 1), (-1.3, 0.01, 1), (1.1, 0.01, 1), (1, 0.01, 1), (-1, 0.01, 1)])
    y = np.array([0, 1, 1, 0, 1, 0])
    assert mean(rank(x, y, x, y, np.arange(6)).ap) == pytest.approx(0.5805555555, abs=1e-9)


# ---------------------------------------------------------------- oracles
@pytest.mark.parametrize("seed", range(3))
def test_torchmetrics_finds_the_same(seed: int) -> None:
    (x, y), (gallery, of) = drawn(40, 8, seed), drawn(60, 6, seed)
    found, scores = rank(x, y, gallery, of), torch.from_numpy(cosines(x, gallery)).flatten() + 2  # (it takes no score below 0)
    relevant = torch.from_numpy(y[:, None] == of).flatten()
    indexes = torch.arange(40).repeat_interleave(60)
    assert not (y[:, None] == of).any(axis=1).all(), "some queries have nothing to find"
    expected = RetrievalMAP(empty_target_action="skip")(scores, relevant, indexes=indexes)
    assert mean(found.ap) == pytest.approx(float(expected), abs=1e-6)
    for i, k in enumerate(KS):
        for metric, values in ((RetrievalPrecision, found.precision), (RetrievalRecall, found.recall)):
            expected = metric(empty_target_action="skip", top_k=k)(scores, relevant, indexes=indexes)
            assert mean(values[:, i]) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("macro", [False, True])
def test_pytorch_metric_learning_finds_the_same_of_images_among_themselves(macro: bool) -> None:
    x, y = drawn(80, 30)
    names = ("mean_average_precision", "precision_at_1")
    calculator = AccuracyCalculator(
        include=names, k=79, avg_of_avgs=macro, knn_func=CustomKNN(CosineSimilarity()), device=torch.device("cpu")
    )
    expected = calculator.get_accuracy(torch.from_numpy(x), torch.from_numpy(y))
    found = rank(x, y, x, y, np.arange(80))
    assert (found.n_relevant == 0).any(), "an image that is alone in its class"
    for name, values in zip(names, (found.ap, found.precision[:, 0]), strict=True):
        value = mean(class_means(values, y, 30)) if macro else mean(values)
        assert value == pytest.approx(expected[name], abs=1e-6)


@given(cases())
def test_scikit_learn_finds_the_same_once_ties_are_broken(case: tuple[Array, Array, Array, Array]) -> None:
    queries, labels, gallery, of = case
    found, scores = rank(queries, labels, gallery, of), cosines(queries, gallery).astype("float64")
    places = np.arange(len(of))
    for i in np.flatnonzero(found.n_relevant):
        relevant = of == labels[i]
        assert found.ap[i] == pytest.approx(average_precision_score(relevant, scores[i] - 1e-9 * relevant * (1 + places)))


def test_ap_at_50_is_inquires() -> None:
    """Its code: scikit-learn's figure of the first 50, times what is relevant there, over min(relevant in all, 50)."""
    (x, y), (gallery, of) = drawn(12, 4), drawn(400, 4, 1)
    found, scores = rank(x, y, gallery, of), cosines(x, gallery)
    few = rank(x, y, gallery[:60], of[:60])
    assert found.n_relevant.min() > DEEP > few.n_relevant.max()
    for i in range(12):
        for ranked, n in ((found, 400), (few, 60)):
            first = np.argsort(-scores[i, :n])[:DEEP]
            hits = of[first] == y[i]
            part = average_precision_score(hits, scores[i, first]) if hits.any() else 0.0
            expected = part * hits.sum() / min((of[:n] == y[i]).sum(), DEEP)
            assert ranked.ap_deep[i] == pytest.approx(expected)


# ---------------------------------------------------------------- chance
@pytest.mark.parametrize(("n_relevant", "n"), [(1, 1), (1, 6), (2, 5), (3, 6), (6, 6), (0, 4)])
def test_chance_is_the_mean_over_all_orders(n_relevant: int, n: int) -> None:
    flags = np.arange(n) < n_relevant
    every = [naive(-np.arange(n), flags[list(order)]) for order in permutations(range(n))]
    expected = {name: np.mean([each[name] for each in every]) for name in every[0]}
    assert row(by_chance(np.array([n_relevant]), n), 0) == pytest.approx(expected, nan_ok=True)


def test_chance_is_what_random_embeddings_get_on_average() -> None:
    rng = np.random.default_rng(0)
    labels, runs = np.repeat(np.arange(4), 30), []
    for _ in range(60):
        x = rng.normal(size=(120, 16))
        runs.append(rank(x, labels, x, labels, np.arange(120)))
    expected = by_chance(np.full(120, 29), 119)
    for name in ("ap", "ap_deep", "precision", "recall"):
        values = np.array([getattr(run, name).mean(axis=0) for run in runs])
        error = values.std(axis=0, ddof=1) / np.sqrt(len(runs))
        assert (np.abs(values.mean(axis=0) - getattr(expected, name).mean(axis=0)) < 4 * error + 1e-12).all(), name


def test_of_nothing_chance_finds_nothing() -> None:
    assert np.isnan(by_chance(np.array([0]), 0).ap).all()


# ---------------------------------------------------------------- means
@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.floats(0, 1)), max_size=20))
def test_means_are_of_what_is_defined(pairs: list[tuple[int, float | None]]) -> None:
    labels = np.array([label for label, _ in pairs], "int64")
    values = np.array([np.nan if value is None else value for _, value in pairs], "float64")
    defined = [value for _, value in pairs if value is not None]
    assert mean(values) == (pytest.approx(np.mean(defined)) if defined else None)
    for c, value in enumerate(class_means(values, labels, 5)):
        own = [v for label, v in pairs if label == c and v is not None]
        assert value == pytest.approx(np.mean(own) if own else np.nan, nan_ok=True)


@pytest.mark.parametrize(
    ("values", "expected"),
    [({"a": 0.5, "b": 1.0}, 2 / 3), ({"a": 0.5, "b": None}, 0.5), ({"a": 0.0, "b": 1.0}, 0.0), ({"a": None}, None)],
)
def test_a_harmonic_mean_is_0_where_one_is_and_of_what_is_defined(
    values: dict[str, float | None], expected: float | None
) -> None:
    assert harmonic_mean(values) == (None if expected is None else pytest.approx(expected))
