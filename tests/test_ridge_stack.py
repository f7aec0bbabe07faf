"""Stacked ridge regressions: what scikit-learn says of the same, and predictions that add up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler

from pipeline.config.trial import Config
from pipeline.config.views import Views
from pipeline.disk.layout import TrialDir
from pipeline.errors import UserError
from pipeline.metrics.sums import Sums
from pipeline.models.ridge_stack import RidgeStack, in_spaces, take_over
from pipeline.models.saved import load_model
from pipeline.stages import evaluate, extract, train
from pipeline.stages.inputs import load_inputs
from pipeline.training.ridge_stack import fit
from tests.small import small_config

ADD_UP = {"all": ("green", "dead"), "green": ("grass", "clover")}
TARGETS = ("grass", "clover", "dead", "green", "all")


def draw(n: int = 60, parts: int = 4, width: int = 7, seed: int = 0) -> tuple[Any, Any, Any]:
    """Parts [N, P, D] of unlike scales, targets that depend on them and add up, and folds."""
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, parts, width)) * np.logspace(-1, 1, width)).astype("float32")
    leaves = np.exp(features[:, :, 0].mean(1, keepdims=True) + rng.normal(size=(n, 3)))
    targets = leaves @ Sums.of(TARGETS, ADD_UP).matrix.T
    return features, targets, rng.permutation(np.arange(n) % 5)


def stacked(features: Any, targets: Any, folds: Any, sums: Sums | None = None, share: float = 0.5) -> RidgeStack:
    model = RidgeStack((features.shape[1], features.shape[2], targets.shape[1]), share, sums)
    model.views = Views(crops=("whole", "left", "right", "top"))
    parts = list(features.astype("float64").transpose(1, 0, 2))
    take_over(model, fit(parts, in_spaces(targets), folds, 5.0, 1.0))
    return model


def of_sklearn(features: Any, targets: Any, folds: Any, new: Any, share: float = 0.5) -> Any:
    """The same, as a person would write it, target by target."""
    said = []
    for values in targets.T:
        spaces = []
        for y, back in ((values, lambda z: z), (np.log1p(values), np.expm1)):
            recipe = make_pipeline(RobustScaler(), Ridge(5.0))
            columns = range(features.shape[1])
            left_out = [
                cross_val_predict(recipe, features[:, p].astype("float64"), y, cv=PredefinedSplit(folds)) for p in columns
            ]
            fitted = [recipe.fit(features[:, p].astype("float64"), y).predict(new[:, p].astype("float64")) for p in columns]
            stack = Ridge(1.0).fit(np.stack(left_out, 1), y)
            spaces.append(back(stack.predict(np.stack(fitted, 1))))
        said.append((1 - share) * spaces[0] + share * spaces[1])
    return np.stack(said, 1)


@pytest.mark.parametrize(
    ("share", "shape"), [(0.0, (60, 4, 7)), (0.5, (60, 4, 7)), (1.0, (60, 4, 7)), (0.5, (30, 4, 40))], ids=str
)
def test_it_says_what_scikit_learn_says(share: float, shape: tuple[int, int, int]) -> None:
    features, targets, folds = draw(*shape)
    new = draw(*shape, seed=1)[0]
    found = stacked(features, targets, folds, share=share)
    with torch.no_grad():
        scaled = (found.parts_of(torch.from_numpy(new)) - found.centre) / found.scale
        of_parts = torch.einsum("npd,pdo->npo", scaled, found.part_weights) + found.part_bias
        raw, log = (torch.einsum("npo,po->no", of_parts, found.stack_weights) + found.stack_bias).chunk(2, 1)
    mean = (1 - share) * raw + share * torch.expm1(log)
    np.testing.assert_allclose(mean.numpy(), of_sklearn(features, targets, folds, new, share), atol=1e-8, rtol=1e-8)


def test_nothing_is_below_0_and_sums_hold_where_targets_add_up() -> None:
    features, targets, folds = draw()
    new = torch.from_numpy(draw(200, seed=2)[0] * 3)
    clipped = stacked(features, targets, folds).predict(new).mean
    assert clipped.min() == 0
    sums = Sums.of(TARGETS, ADD_UP)
    model = stacked(features, targets, folds, sums)
    scaled = (model.parts_of(new) - model.centre) / model.scale
    of_parts = torch.einsum("npd,pdo->npo", scaled, model.part_weights) + model.part_bias
    said = model.consistent(torch.einsum("npo,po->no", of_parts, model.stack_weights) + model.stack_bias)
    assert said.min() >= 0 and sums.apart(said.numpy()).max() <= 1e-9
    assert (clipped.numpy() - said.numpy()).max() > 0.01


def test_an_image_unlike_all_others_is_said_to_be_no_more_than_half_a_range_beyond_them() -> None:
    features, targets, folds = draw()
    new = torch.from_numpy(draw(200, seed=3)[0] * 1e4)
    for sums in (None, Sums.of(TARGETS, ADD_UP)):
        said = stacked(features, targets, folds, sums).predict(new).mean.numpy()
        highest = targets.max(0) + 0.5 * np.ptp(targets, axis=0)
        assert np.isfinite(said).all() and said.max() > targets.max()
        assert (said <= (highest if sums is None else highest.sum()) + 1e-9).all()
        assert sums is None or sums.apart(said).max() <= 1e-9


def test_a_model_of_before_limits_were_kept_has_none() -> None:
    features, targets, folds = draw()
    fitted, new = stacked(features, targets, folds), torch.from_numpy(features)
    older = RidgeStack((4, 7, 5), 0.5, None)
    older.views = fitted.views
    state = {name: tensor for name, tensor in fitted.own_state().items() if name not in ("low", "high")}
    older.restore(state)
    assert older.own_state().keys() == state.keys()
    torch.testing.assert_close(older.predict(new).mean, fitted.predict(new).mean)
    assert older.predict(new * 1e6).mean.max() > fitted.predict(new * 1e6).mean.max()


@pytest.fixture
def trial_config(table: Path, clip: Path, root: Path) -> Config:
    targets = ["SPEI_30d", "SPEI_1y"]
    rows = table.read_text().splitlines()
    header = rows[0].split(",")
    places = [header.index(name) for name in targets]
    cells = [row.split(",") for row in rows[1:]]
    for row in cells:
        for place in places:
            row[place] = f"{abs(float(row[place])):.4f}"
    positive = table.parent / f"positive-{root.parent.name}.csv"
    positive.write_text("\n".join([rows[0], *map(",".join, cells)]))
    return small_config(
        positive,
        clip,
        root,
        data={"source": str(positive), "targets": targets, "columns": {"group": None}},
        backbone={"views": {"crops": ["left", "right"]}, "taps": [0, -1], "poolings": ["mean", "gem"]},
        model={"head": {"kind": "ridge_stack", "folds": 3}, "normalize": False},
    )


@pytest.mark.jobs
def test_a_trial_is_fitted_saved_and_evaluated(trial_config: Config, tmp_path: Path) -> None:
    trial, store = TrialDir(tmp_path / "trial"), extract.ensure(trial_config)
    trial.path.mkdir()
    train.run(trial_config, trial)
    results = evaluate.run(trial_config, trial)
    assert results["figures"]["MAE"] is not None and store.shape[0] == 2
    model = load_model(trial_config, trial, None)
    assert isinstance(model, RidgeStack) and model.centre.shape == (2 * 4, store.shape[1] // 4)
    assert model.centre.dtype == torch.float64 and results["split"] == "test"
    inputs = load_inputs(trial_config)
    assert inputs.task.metric(None) == "r2"


@pytest.mark.jobs
def test_too_few_groups_for_its_folds_are_said(trial_config: Config, tmp_path: Path) -> None:
    head = trial_config.model.head.model_copy(update={"folds": 90})
    config = trial_config.model_copy(update={"model": trial_config.model.model_copy(update={"head": head})})
    extract.ensure(config)
    trial = TrialDir(tmp_path / "trial")
    trial.path.mkdir()
    with pytest.raises(UserError, match=r"model.head.folds is 90, and data.split leaves \d+ groups"):
        train.run(config, trial)
