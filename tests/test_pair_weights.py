"""How much a pair counts: each weight against loops over pairs, and what its mean, or its sum, must be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.models.pairs import weights

counted = st.lists(st.integers(1, 500), min_size=1, max_size=6)
OF: dict[str, tuple[weights.Of, Callable[[float], float]]] = {
    "inverse_frequency": (partial(weights.inverse_frequency, gamma=0.7), lambda n: n**-0.7),
    "class_balanced": (partial(weights.class_balanced, beta=0.99), lambda n: (1 - 0.99) / (1 - 0.99**n)),
}
BATCH = 4
FEW = settings(max_examples=20)
"""For what is tried for each of several formulas."""


def naive_often(kind: str, counts: list[int], a: int, b: int) -> float:
    """How often two classes form a pair, by the formulas as they are published."""
    x, y, total = counts[a], counts[b], sum(counts)
    if kind == "doubled":
        return x * y * (1 if a == b else 2)
    others = max(total - 1, 1)
    return x / total * (1 + (BATCH - 1) * (x - 1) / others) if a == b else x / total * (BATCH - 1) * y / others


def often(kind: str, counts: list[int]) -> weights.Often:
    return weights.doubled if kind == "doubled" else partial(weights.pair_count, total=sum(counts), batch=BATCH)


# ---------------------------------------------------------------- classes
@pytest.mark.parametrize("name", OF)
@FEW
@given(counted)
def test_class_weights_are_their_formula_and_have_the_mean_one(name: str, counts: list[int]) -> None:
    of, formula = OF[name]
    plain = [formula(n) for n in counts]
    by_class = weights.class_weights(torch.tensor(counts), of).tolist()
    assert by_class == pytest.approx([w / (sum(plain) / len(plain)) for w in plain])
    by_sample = weights.class_weights(torch.tensor(counts), of, "samples").tolist()
    assert sum(n * w for n, w in zip(counts, by_sample, strict=True)) / sum(counts) == pytest.approx(1)
    assert [w / by_sample[0] for w in by_sample] == pytest.approx([w / by_class[0] for w in by_class])


@pytest.mark.parametrize("name", OF)
@pytest.mark.parametrize("mean_over", ["classes", "samples"])
def test_a_class_that_training_does_not_meet_weighs_as_one_of_a_single_image_and_changes_no_other(
    name: str, mean_over: weights.MeanOver
) -> None:
    of = OF[name][0]
    with_it = weights.class_weights(torch.tensor([50, 0, 7, 1]), of, mean_over).tolist()
    without = weights.class_weights(torch.tensor([50, 7, 1]), of, mean_over).tolist()
    assert with_it == pytest.approx([without[0], without[2], without[1], without[2]])


def test_class_balanced_weights_keep_their_digits_where_one_less_beta_to_the_n_has_none() -> None:
    n = torch.tensor([1, 2])
    assert weights.class_balanced(n, 1 - 1e-12).tolist() == pytest.approx([1, 0.5], rel=1e-9)
    assert weights.class_balanced(torch.tensor([10**9])).tolist() == pytest.approx([1e-4])


# ---------------------------------------------------------------- pairs of classes
@pytest.mark.parametrize("name", OF)
@FEW
@given(counted, st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_product_weights_are_those_of_both_classes_and_have_the_mean_one(name: str, counts: list[int], drawn: list[int]) -> None:
    classes, (of, formula) = [each % len(counts) for each in drawn], OF[name]
    plain = [formula(n) for n in counts]
    mean = sum(plain) / len(plain)
    found = weights.ProductWeights(torch.tensor(counts), of).block(torch.tensor(classes), torch.tensor(classes[:2])).tolist()
    for i, a in enumerate(classes):
        for j, b in enumerate(classes[:2]):
            assert found[i][j] == pytest.approx(plain[a] * plain[b] / mean**2, rel=1e-5)
    every = torch.arange(len(counts))
    assert float(weights.ProductWeights(torch.tensor(counts), of).block(every, every).mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("kind", ["doubled", "probability"])
@pytest.mark.parametrize("name", OF)
@pytest.mark.parametrize("mean_over", ["classes", "samples"])
@FEW
@given(counted, st.lists(st.integers(0, 5), min_size=1, max_size=5))
def test_pair_weights_are_their_formula_with_the_mean_one_over_the_upper_triangle(
    kind: str, name: str, mean_over: weights.MeanOver, counts: list[int], drawn: list[int]
) -> None:
    classes, (of, formula) = [each % len(counts) for each in drawn], OF[name]
    triangle = list(itertools.combinations_with_replacement(range(len(counts)), 2))
    pairs = {pair: naive_often(kind, counts, *pair) for pair in triangle}
    shares = {pair: 1.0 if mean_over == "classes" else n for pair, n in pairs.items()}
    mean = sum(shares[pair] * formula(n) for pair, n in pairs.items()) / sum(shares.values())
    all_pairs = weights.PairWeights(torch.tensor(counts), of, often(kind, counts), mean_over)
    found = all_pairs.block(torch.tensor(classes), torch.tensor(classes)).tolist()
    for i, a in enumerate(classes):
        for j, b in enumerate(classes):
            assert found[i][j] == pytest.approx(formula(pairs[min(a, b), max(a, b)]) / mean, rel=1e-5)


@given(counted)
def test_an_image_meets_as_many_texts_as_a_batch_has(counts: list[int]) -> None:
    """Over all images and classes: pair counts are those of a batch drawn from them."""
    if sum(counts) < BATCH:
        counts = [*counts, BATCH]
    n = torch.tensor(counts).double()
    met = weights.pair_count(n[:, None], n, torch.eye(len(counts)) > 0, float(n.sum()), BATCH)
    assert float(met.sum()) == pytest.approx(BATCH)


@pytest.mark.parametrize("mean_over", ["classes", "samples"])
@pytest.mark.parametrize("name", OF)
@given(counts=counted)
def test_weights_of_the_product_of_counts_have_the_mean_one_over_all_pairs_of_an_image_and_a_text(
    name: str, mean_over: weights.MeanOver, counts: list[int]
) -> None:
    (of, formula), classes = OF[name], torch.arange(len(counts))
    pairs = [(n, m) for n in counts for m in counts]
    mean = sum(formula(n * m) * (1 if mean_over == "classes" else n * m) for n, m in pairs)
    mean /= len(pairs) if mean_over == "classes" else sum(n * m for n, m in pairs)
    by_count = weights.PairWeights(torch.tensor(counts), of, weights.counted, mean_over, ordered=True).block(classes, classes)
    assert by_count.flatten().tolist() == pytest.approx([formula(n * m) / mean for n, m in pairs], rel=1e-5)
    if name == "inverse_frequency":
        torch.testing.assert_close(by_count, weights.ProductWeights(torch.tensor(counts), of, mean_over).block(classes, classes))


def test_pair_weights_leave_classes_out_of_the_mean_that_training_does_not_meet() -> None:
    of = OF["inverse_frequency"][0]
    with_it = weights.PairWeights(torch.tensor([50, 0, 7]), of, weights.doubled).block(
        torch.tensor([0, 2]), torch.tensor([0, 1, 2])
    )
    without = weights.PairWeights(torch.tensor([50, 7]), of, weights.doubled).block(torch.tensor([0, 1]), torch.tensor([0, 1]))
    torch.testing.assert_close(with_it[:, [0, 2]], without)
    assert with_it.isfinite().all() and (with_it[:, 1] > with_it[:, 2]).all()


# ---------------------------------------------------------------- pairs of a batch
@given(st.floats(-8, 8), st.floats(0, 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_focal_weights_are_their_formulas(logit: float, target: float, gamma: float) -> None:
    p = 1 / (1 + math.exp(-logit))
    told = {"likelihood": 1 - p + target * (2 * p - 1), "distance": 1 - abs(target - p)}
    for form, p_t in told.items():
        found = weights.focal(torch.tensor([[logit]]), torch.tensor([[target]]), gamma, form)  # type: ignore[arg-type]
        assert float(found) == pytest.approx((1 - p_t) ** gamma, rel=1e-4, abs=2e-3 if gamma < 1 else 1e-6)


@given(st.floats(-20, 20))
def test_both_forms_of_focus_are_one_for_targets_of_0_and_1(logit: float) -> None:
    x = torch.tensor([[logit, logit]], dtype=torch.float64)
    t = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(weights.focal(x, t, 2.0, "likelihood"), weights.focal(x, t, 2.0, "distance"))


@given(st.floats(1e-3, 20), st.sampled_from([1.0, 2.0]))
def test_the_focus_of_a_cross_entropy_is_that_of_the_probability_that_it_is_of(entropy: float, gamma: float) -> None:
    found = weights.focal_of_entropy(torch.tensor([entropy]), gamma)
    assert float(found) == pytest.approx((1 - math.exp(-entropy)) ** gamma, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focus_has_finite_gradients_where_all_is_told(gamma: float) -> None:
    x = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    entropies = torch.tensor([0.0, 1e-9, 50.0], requires_grad=True)
    for form in ("likelihood", "distance"):
        weights.focal(x, torch.tensor([[1.0, 0.0, 0.5]]), gamma, form).sum().backward()  # type: ignore[arg-type, no-untyped-call]
    weights.focal_of_entropy(entropies, gamma).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and entropies.grad is not None
    assert x.grad.isfinite().all() and entropies.grad.isfinite().all()


@given(st.integers(2, 6), st.integers(0, 99))
def test_balance_gives_what_is_alike_and_what_is_not_half_of_all_weights(n: int, seed: int) -> None:
    targets = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)).double()
    found = weights.balanced(targets, weights.balance(targets.sum(), n)).tolist()
    total = sum(itertools.chain(*targets.tolist()))
    plus, minus = n * n / (2 * total), n * n / (2 * (n * n - total))
    for i, j in itertools.product(range(n), repeat=2):
        t = float(targets[i, j])
        assert found[i][j] == pytest.approx(t * plus + (1 - t) * minus)
    assert plus * total == pytest.approx(minus * (n * n - total))


@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_without_negatives_is_not_balanced(n: int) -> None:
    targets = torch.ones(n, n)
    assert torch.equal(weights.balanced(targets, weights.balance(targets.sum(), n)), targets)


# ---------------------------------------------------------------- joined
def naive_join(name: str, factors: list[float]) -> float:
    k = len(factors)
    return {
        "product": math.prod(factors),
        "arithmetic": sum(factors) / k,
        "geometric": math.prod(factors) ** (1 / k),
        "harmonic": k / sum(1 / each for each in factors),
    }[name]


@pytest.mark.parametrize("name", weights.JOINS)
@FEW
@given(st.lists(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=2), min_size=1, max_size=4))
def test_weights_are_joined_by_their_product_or_mean_pair_by_pair(name: str, factors: list[list[float]]) -> None:
    found = weights.JOINS[name]([torch.tensor([each], dtype=torch.float64) for each in factors])
    assert found.shape == (1, 2)
    assert found[0].tolist() == pytest.approx([naive_join(name, [each[k] for each in factors]) for k in range(2)])


@pytest.mark.parametrize("name", weights.JOINS)
def test_joined_weights_have_finite_gradients_where_one_of_them_is_0(name: str) -> None:
    factors = [torch.tensor([[0.0, 1e-20, 1e-10, 1.0]], requires_grad=True) for _ in range(3)]
    weights.JOINS[name](factors).sum().backward()  # type: ignore[no-untyped-call]
    found: list[Tensor | Any] = [each.grad for each in factors]
    assert all(each.isfinite().all() for each in found)
