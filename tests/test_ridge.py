"""Ridge in closed form: what sklearn says for each penalty, whatever the shape of the inputs, from one decomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.training import ridge
from pipeline.training.ridge import solve

ALPHAS = (0.01, 1.0, 100.0, 1e4)


def draw(n: int, width: int, seed: int = 0, n_targets: int = 2) -> tuple[Any, Any]:
    """Inputs of unlike scales and origins, and targets that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width)) * np.logspace(-2, 2, width) + rng.normal(0, 10, width)
    y = (x - x.mean(0)) @ rng.normal(size=(width, n_targets)) / np.logspace(-2, 2, width).sum() + rng.normal(size=(n, n_targets))
    return x.astype("float32"), y.astype("float32")


def solved(x: Any, y: Any, alphas: Any = ALPHAS) -> list[Any]:
    """Predictions for the inputs, for each penalty."""
    return [x.astype("float64") @ weights.T + bias for weights, bias in solve(x, y, alphas)]


def of_sklearn(x: Any, y: Any, alpha: float) -> Any:
    """(whose Ridge without a penalty divides by rounding errors where features repeat)"""
    model = make_pipeline(StandardScaler(), Ridge(alpha=alpha, solver="svd") if alpha else LinearRegression())
    return model.fit(x.astype("float64"), y.astype("float64")).predict(x.astype("float64"))


@settings(max_examples=25)
@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 999))
def test_each_penalty_gives_what_sklearn_gives_on_standardised_inputs(n: int, width: int, seed: int) -> None:
    x, y = draw(n, width, seed)
    for alpha, found in zip(ALPHAS, solved(x, y), strict=True):
        np.testing.assert_allclose(found, of_sklearn(x, y, alpha), rtol=1e-6, atol=1e-6)


def test_weights_are_of_the_inputs_as_they_come() -> None:
    x, y = draw(60, 5)
    scaler = StandardScaler().fit(x.astype("float64"))
    for alpha, (weights, bias) in zip(ALPHAS, solve(x, y, ALPHAS), strict=True):
        model = Ridge(alpha=alpha).fit(scaler.transform(x.astype("float64")), y.astype("float64"))
        np.testing.assert_allclose(weights, model.coef_ / scaler.scale_, rtol=1e-6)
        np.testing.assert_allclose(bias, model.intercept_ - weights @ scaler.mean_, rtol=1e-6)


@pytest.mark.parametrize(("n", "width"), [(30, 4), (10, 50)], ids=["more samples", "more features"])
def test_without_a_penalty_it_is_least_squares(n: int, width: int) -> None:
    """With more features than samples: the solution with the smallest weights, which fits the samples."""
    x, y = draw(n, width)
    (found,) = solved(x, y, [0.0])
    np.testing.assert_allclose(found, of_sklearn(x, y, 0.0), rtol=1e-5, atol=1e-5)
    if width > n:
        np.testing.assert_allclose(found, y, atol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 7.0, 0.1])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_features_that_do_not_vary_tell_nothing_and_those_that_repeat_share(alpha: float, constant: float) -> None:
    """(the mean of a hundred times 0.1 is not 0.1 to the last bit)"""
    x, y = draw(101, 4)
    x = np.column_stack([x, np.full(101, constant), x[:, 0]]).astype("float32")
    ((weights, bias),) = solve(x, y, [alpha])
    assert np.abs(weights[:, 4]).max() < 1e-12 and np.isfinite(bias).all()
    np.testing.assert_allclose(weights[:, 0], weights[:, 5], rtol=1e-6)
    np.testing.assert_allclose(x @ weights.T + bias, of_sklearn(x, y, alpha), rtol=1e-5, atol=1e-5)


def test_where_no_feature_varies_the_mean_is_said() -> None:
    _, y = draw(8, 1)
    for found in solved(np.full((8, 3), 0.1, "float32"), y, [0.0, 1.0]):
        np.testing.assert_allclose(found, np.tile(y.mean(0, dtype="float64"), (8, 1)), rtol=1e-6)


def test_one_decomposition_serves_all_penalties(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: calls.append(1) or real(matrix))
    assert len(list(solve(*draw(20, 3), np.logspace(-3, 3, 50).tolist()))) == 50 and len(calls) == 1


def test_what_is_solved_again_for_the_same_inputs_shares_their_decomposition_and_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []
    plain = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: made.append(1) or plain(matrix))
    (x, y), (_, other) = draw(30, 5, seed=77), draw(30, 5, seed=78)
    first, second, copied = solved(x, y), solved(x, other), solved(x.copy(), y)
    assert len(made) == 1 and all(map(np.array_equal, first, copied))
    ridge._known.clear()
    assert all(map(np.array_equal, second, solved(x, other)))
    changed = x.copy()
    changed[3, 2] += 1
    assert not np.array_equal(solved(changed, y)[0], first[0]) and len(made) == 3


def test_only_the_last_few_decompositions_are_kept() -> None:
    for seed in range(ridge.KEPT + 3):
        solved(*draw(20, 3, seed=seed))
    assert len(ridge._known) == ridge.KEPT
