"""A head kind of a lab's own, joined by being defined: planned, estimated, trained, evaluated, loaded and predicted with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from pipeline.config.head import Head
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.experiments.reading import load_experiment
from pipeline.export.codabench import export
from pipeline.features.hashes import WeightsRecord
from pipeline.launch.watching import estimates
from pipeline.launch.watching.plan import plan
from pipeline.models.base import Model, Predicted
from pipeline.models.metadata import Metadata
from pipeline.models.saved import load_model
from pipeline.stages import evaluate, extract, train
from pipeline.stages.predict import Origin, predict_files
from pipeline.tasks import load_task
from pipeline.training.checkpoint import Progress
from pipeline.training.run import Fitted
from pipeline.training.samples import embeddings, predict
from tests.conftest import Assets

pytestmark = pytest.mark.jobs


class LeastSquares(Model):
    """A linear map of the embedding."""

    def __init__(self, width: int, n_targets: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, n_targets)

    def predict(self, features: Tensor, metadata: Metadata | None = None) -> Predicted:
        mean = self.linear(features)
        return Predicted(mean, torch.ones_like(mean), torch.zeros_like(mean))


class LeastSquaresHead(Head):
    """Ordinary least squares on the embedding."""

    kind: Literal["least_squares"]
    ridge: float = 1e-3

    def make_model(self, config: Any, facts: Any, encoder: Any) -> LeastSquares:
        return LeastSquares(facts.embed_dim, len(facts.targets))

    def fit(self, model: LeastSquares, train: Any, validation: Any, run: Any) -> Fitted:
        x = torch.nn.functional.pad(torch.from_numpy(embeddings(model, train)), (0, 1), value=1.0)
        gram = x.T @ x + self.ridge * torch.eye(x.shape[1])
        solved = torch.linalg.solve(gram, x.T @ torch.from_numpy(train.truth))
        model.linear.weight.data, model.linear.bias.data = solved[:-1].T.contiguous(), solved[-1].contiguous()
        metric = run.choice.score(validation, predict(model, validation))
        return Fitted(Progress(epoch=1, best_epoch=0, best_metric=metric))

    def n_parameters(self, width: int, n_targets: int) -> int:
        return (width + 1) * n_targets


OWN = "model.head={kind: least_squares, ridge: 0.01}"


def test_a_head_of_ones_own_is_a_trial_like_any_other(assets: Assets, root: Path, tmp_path: Path) -> None:
    experiment = load_experiment("configs/beetles/pixels.yaml", (*assets.overrides("pixels"), OWN))
    (entry,) = experiment.trials
    config, trial = entry.config, experiment.dir.trial(entry.name)
    assert isinstance(config.model.head, LeastSquaresHead) and config.model.head.ridge == 0.01
    extract.ensure(config)
    assert [state.state for state in plan(experiment)[1]] == ["missing"]
    train.run(config, trial)
    assert evaluate.run(config, trial)["SPEI_30d"]["n"] > 0
    assert [state.state for state in plan(experiment)[1]] == ["done"]
    model = load_model(config, trial, None)
    assert isinstance(model, LeastSquares) and model.linear.weight.abs().max() > 0
    weights = WeightsRecord(0, model.linear.in_features, 0, 0, 0, 0, "", "", "", "")
    assert estimates.model_bytes(config, weights) == 4 * sum(p.numel() for p in model.parameters())
    image = tmp_path / "beetle.png"
    load_task("beetles").load(config.data).image(0).save(image)
    (said,) = predict_files(trial.path, [image], Origin(), "cpu")
    assert all(abs(value) < 10 for value in said.values()) and len(said) == 3
    before = trial.model.read_bytes(), read_json(trial.trained)["best_metric"]
    trial.trained.unlink()
    train.run(config, trial)
    assert (trial.model.read_bytes(), read_json(trial.trained)["best_metric"]) == before and before[1] > -1
    with pytest.raises(UserError, match="nothing says how a LeastSquares is made again"):
        export([trial.path], tmp_path / "out", zipped=False, with_backbone=False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.kind=crps", "model.head.kind least_squares has no use for loss.kind crps"),
        ("model.pool=precision", "head.kind least_squares is not trained by gradient descent"),
        (
            "select.folds=3",
            "select.folds 3 fits again and again, for which model.head.kind least_squares is not made: set model.head.kind svc",
        ),
        ("model.head.rigde=1", "`model.head.ridge` does"),
        ("model.head.kind=least_cubes", r"did you mean least_squares\?"),
    ],
)
def test_what_goes_with_it_follows_from_what_it_declares(override: str, message: str, assets: Assets, root: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_experiment("configs/beetles/pixels.yaml", (*assets.overrides("pixels"), OWN, override))
