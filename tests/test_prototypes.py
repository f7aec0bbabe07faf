"""Few-shot heads: equal to scikit-learn where it has them, to zero-shot where nothing is learnt, and their losses fall."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from pipeline.metrics.retrieval import cosines, rank
from pipeline.models import prototypes
from pipeline.models.prototypes import (
    Prototypes,
    clap,
    clap_multipliers,
    lp_plus_plus,
    simple_shot,
    text_logistic,
    unit,
    zero_shot,
)  # fmt: skip

Array = Any
SCALE = 20.0
HEADS: dict[str, Callable[[Array, Array, Array], Prototypes]] = {
    "SimpleShot": simple_shot,
    "LP++": lp_plus_plus,
    "text-initialised": lambda x, y, t: text_logistic(x, y, t, SCALE),
    "CLAP": lambda x, y, t: clap(x, y, t, SCALE),
}


def shots(
    n_classes: int = 6, k: int = 5, width: int = 12, seed: int = 0, noise: float = 0.6
) -> tuple[Array, Array, Array, Array]:
    """Shots with labels, texts that are somewhat like them, and other images of the same classes."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n_classes, width)) + 1.5  # a mean that all images share
    labels = np.repeat(np.arange(n_classes), k)
    x, others = (means[labels] + noise * rng.normal(size=(len(labels), width)) for _ in range(2))
    return x, labels, means + 1.5 * rng.normal(size=means.shape), others


def accuracy(head: Prototypes, images: Array, labels: Array) -> float:
    return float((head.logits(images).argmax(axis=1) == labels).mean())


# ---------------------------------------------------------------- what all have in common
@pytest.mark.parametrize("name", HEADS)
def test_shots_make_better_prototypes_than_the_texts_alone(name: str) -> None:
    x, labels, texts, others = shots()
    before = accuracy(zero_shot(texts, SCALE), others, labels)
    assert before < 0.9 and accuracy(HEADS[name](x, labels, texts), others, labels) > before + 0.05


@pytest.mark.parametrize("name", HEADS)
def test_the_same_shots_make_the_same_bits_and_their_order_and_lengths_change_nothing(name: str) -> None:
    x, labels, texts, _ = shots()
    once, again = (HEADS[name](x, labels, texts) for _ in range(2))
    assert (once.weights == again.weights).all() and (once.bias == again.bias).all()
    order = np.random.default_rng(1).permutation(len(x))
    other = HEADS[name](3 * x[order], labels[order], 0.5 * texts)
    assert other.weights == pytest.approx(once.weights, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_a_class_without_shots_keeps_its_text_and_changes_no_other(name: str) -> None:
    x, labels, texts, _ = shots()
    extra = np.vstack([texts[:2], np.random.default_rng(5).normal(size=(1, 12)), texts[2:]])
    without = HEADS[name](x, labels, texts)
    found = HEADS[name](x, np.where(labels >= 2, labels + 1, labels), extra)
    assert np.delete(found.weights, 2, axis=0) == pytest.approx(without.weights)
    towards = extra[2:3] / np.linalg.norm(extra[2]) - (unit(texts).mean(axis=0) if name == "SimpleShot" else 0)
    assert cosines(found.weights[2:3], towards)[0, 0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_as_embeddings_classes_rank_by_their_logits_and_images_among_themselves_as_before(name: str) -> None:
    x, labels, texts, others = shots()
    head = HEADS[name](x, labels, texts)
    images, classes = head.embedded(others), head.as_embeddings()
    assert np.linalg.norm(images, axis=1) == pytest.approx(1) and np.linalg.norm(classes, axis=1) == pytest.approx(1)
    assert head.scale * (images @ classes.T) == pytest.approx(head.logits(others), abs=1e-9)
    centred = unit(others) - head.centre
    own = np.arange(len(labels))
    before, after = (rank(rows, labels, rows, labels, own).ap for rows in (centred, images))
    assert after == pytest.approx(before)


# ---------------------------------------------------------------- SimpleShot
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of one shot scikit-learn's spread is 0/0
@pytest.mark.parametrize("k", [1, 5])
def test_simple_shot_is_scikit_learns_nearest_centroid_of_centred_and_normalised_embeddings(k: int) -> None:
    x, labels, texts, others = shots(k=k)
    head, rows = simple_shot(x, labels, texts), unit(x)
    fitted = NearestCentroid().fit(unit(rows - rows.mean(axis=0)), labels)
    assert head.weights == pytest.approx(fitted.centroids_)
    assert (head.logits(others).argmax(axis=1) == fitted.predict(unit(unit(others) - rows.mean(axis=0)))).all()


# ---------------------------------------------------------------- LP++
def lp_loss(monkeypatch: pytest.MonkeyPatch, rounds: int, case: tuple[Array, Array, Array]) -> float:
    monkeypatch.setattr(prototypes, "ROUNDS", rounds)
    x, labels, texts = case
    logits = lp_plus_plus(x, labels, texts).logits(x)
    return float(
        np.mean(np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1) - logits[np.arange(len(x)), labels])
    )


def test_the_loss_of_lp_plus_plus_never_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, texts, _ = shots(noise=2.0)
    losses = [lp_loss(monkeypatch, rounds, (x, labels, texts)) for rounds in range(12)]
    assert all(after < before for before, after in pairwise(losses)), losses


def test_lp_plus_plus_starts_from_sums_of_shots_and_from_the_mean_cosine_with_their_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, labels, texts, _ = shots(k=3)
    monkeypatch.setattr(prototypes, "ROUNDS", 0)
    own = np.mean([unit(x)[i] @ unit(texts)[label] for i, label in enumerate(labels)])
    sums = np.stack([unit(x)[labels == c].sum(axis=0) for c in range(6)])
    assert lp_plus_plus(x, labels, texts).weights == pytest.approx(sums + 250 * own * unit(texts))


# ---------------------------------------------------------------- text-initialised logistic regression
def test_with_no_steps_or_held_by_all_means_it_is_zero_shot() -> None:
    x, labels, texts, others = shots()
    expected = zero_shot(texts, SCALE)
    assert (text_logistic(x, labels, texts, SCALE, steps=0).weights == expected.weights).all()
    assert clap(x, labels, texts, SCALE, steps=0).weights == pytest.approx(expected.weights)
    assert text_logistic(x, labels, texts, SCALE, penalty=1e9).logits(others) == pytest.approx(expected.logits(others), abs=1e-5)
    assert expected.logits(others) == pytest.approx(SCALE * cosines(others, texts), abs=1e-4)


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_held_by_nothing_but_0_it_is_scikit_learns_logistic_regression(penalty: float) -> None:
    x, labels, _, _ = shots()
    found = text_logistic(x, labels, np.zeros((6, 12)), SCALE, penalty)
    fitted = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(unit(x), labels)
    assert found.weights == pytest.approx(fitted.coef_, abs=1e-4)


# ---------------------------------------------------------------- CLAP
def test_claps_multipliers_are_the_mean_probability_of_the_own_class() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.1, 0.1, 0.8], [0.2, 0.4, 0.4]]))
    assert clap_multipliers(logits, np.array([0, 0, 2, 1])) == pytest.approx([0.6, 0.4, 0.8])


def test_clap_stands_at_a_minimum_of_its_objective_and_keeps_well_told_classes_near_their_texts() -> None:
    import torch

    x, labels, texts, _ = shots(noise=2.0)
    head, t = clap(x, labels, texts, SCALE), torch.from_numpy(unit(texts))
    multipliers = torch.from_numpy(clap_multipliers(SCALE * unit(x) @ unit(texts).T, labels))

    def objective(weights: torch.Tensor) -> torch.Tensor:
        logits = SCALE * torch.from_numpy(unit(x)) @ torch.nn.functional.normalize(weights).T
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
        return loss + (multipliers * (weights - t).square().sum(1)).mean()

    directions = torch.from_numpy(head.weights / SCALE)
    lengths = torch.ones(len(t), 1, dtype=torch.float64, requires_grad=True)  # what was divided out
    optimiser = torch.optim.LBFGS([lengths], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = objective(lengths * directions)
        value.backward()
        return value

    optimiser.step(closure)
    at = (lengths * directions).detach().requires_grad_()
    objective(at).backward()
    assert at.grad is not None and at.grad.abs().max() < 1e-5
    assert objective(at) < objective(t)
