"""Test-time training: off unless it is asked for, without a look at the truth, and labelled wherever its figures stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.writing import read_json, write_text
from pipeline.experiments.reading import dump_config
from pipeline.models.saved import load_facts, load_model
from pipeline.reporting import results as reading
from pipeline.stages import evaluate, extract, train
from pipeline.stages.inputs import load_inputs
from pipeline.stages.predict import Origin, predict_files
from pipeline.training.adapt import adapt
from pipeline.training.samples import predict
from tests.small import image_files, small_config

pytestmark = pytest.mark.jobs


@pytest.fixture
def make(table: Path, clip: Path, root: Path) -> Callable[..., Config]:
    def config(**sections: Any) -> Config:
        plain: dict[str, Any] = {
            "backbone": {"views": {"crops": ["left", "right"], "poses": ["hflip"]}},
            "model": {"head": {"kind": "mlp", "hidden": [8]}},
            "train": {"epochs": 3, "batch_size": 8},
            "select": {"metric": "MAE"},
            "augment": {"poses": 0.5, "noise": 0.1},
            "loss": {"kind": "mse"},
        }
        return small_config(table, clip, root, **{**plain, **sections})

    return config


@pytest.fixture
def trial(make: Callable[..., Config], tmp_path: Path) -> TrialDir:
    config, trial = make(), ExperimentDir(tmp_path / "small").trial("one")
    trial.path.mkdir(parents=True)
    extract.ensure(config)
    train.run(config, trial)
    return trial


def adapted(make: Callable[..., Config], **how: Any) -> Config:
    return make(evaluate={"adapt": {"epochs": 2, "lr": 1e-3, **how}})


def test_figures_of_an_adapted_model_say_so_wherever_they_stand(make: Callable[..., Config], trial: TrialDir) -> None:
    before = evaluate.run(make(), trial)
    after = evaluate.run(adapted(make), trial)
    assert before["split"] == "test" and after["split"] == "test, adapted" and before["figures"] != after["figures"]
    assert "Evaluated on test, adapted" in trial.card.read_text()
    write_text(trial.config, dump_config(adapted(make)))
    rows = reading.collect([ExperimentDir(trial.path.parent)])
    assert [row.split for row in rows] == ["test, adapted"] and "test, adapted" in reading.to_csv(rows)
    (table,) = reading.by_look(rows)
    assert "test, adapted" in reading.to_markdown({table: reading.summarize(rows, table.sort)})


def test_what_it_was_chosen_on_stays_optimistic(make: Callable[..., Config], trial: TrialDir) -> None:
    config = make(evaluate={"split": "validation", "adapt": {}})
    assert reading.is_optimistic(evaluate.run(config, trial)) and not reading.is_optimistic(
        {"split": "test", "selected_on": "validation"}
    )


def test_the_same_again_gives_the_same_and_the_trained_model_stays_as_it_is(make: Callable[..., Config], trial: TrialDir) -> None:
    held = trial.model.read_bytes()
    one, again = (evaluate.run(adapted(make), trial)["figures"] for _ in range(2))
    assert one == again and trial.model.read_bytes() == held
    assert evaluate.run(make(), trial)["figures"] == evaluate.run(make(), trial)["figures"] != one


def test_it_looks_at_no_truth_and_draws_what_is_said_of_poses_together(make: Callable[..., Config], trial: TrialDir) -> None:
    """With other truths the very same model comes of it; and mirrored images are said more alike than before."""
    config, inputs = make(), load_inputs(make())
    facts, cpu = load_facts(trial), torch.device("cpu")
    samples = inputs.samples(facts, "test", cpu)
    how = adapted(make, epochs=40).evaluate.adapt
    assert how is not None
    states, apart = [], []
    for wrong in (False, True):
        model = load_model(config, trial, None)
        codes = samples.targets.codes.clone()
        if wrong:
            samples.targets.codes.fill_(1e3)
        if not wrong:
            apart.append(between_poses(model, samples))
        adapt(model, samples, config, how)
        apart.append(between_poses(model, samples))
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        samples.targets.codes.copy_(codes)
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert apart[1] < 0.9 * apart[0] and apart[1] == apart[2]


def between_poses(model: Any, samples: Any) -> float:
    """How far apart predictions of the plain and of the mirrored images are."""
    said = []
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        model.tta = weights
        said.append(torch.from_numpy(predict(model, samples).mean))
    model.tta = ()
    return float((said[0] - said[1]).square().mean())


def test_what_cannot_be_adapted_is_refused_in_words(make: Callable[..., Config]) -> None:
    with pytest.raises(ValidationError, match=r"evaluate.* trains by gradient descent"):
        make(model={"head": {"kind": "ridge"}}, augment={}, evaluate={"adapt": {}, "tta": [1, 1]})
    with pytest.raises(ValidationError, match=r"evaluate.* learns from features"):
        make(evaluate={"adapt": {}, "inputs": "images"})


def test_predictions_of_new_images_say_that_they_are_not_adapted(
    make: Callable[..., Config], trial: TrialDir, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = image_files(table)[0]
    evaluate.run(make(), trial)
    plainly = next(predict_files(trial.path, [image], Origin(), "cpu"))
    assert "adapted" not in capsys.readouterr().err
    evaluate.run(adapted(make), trial)
    assert next(predict_files(trial.path, [image], Origin(), "cpu")) == plainly
    assert "one: its results are of it adapted to the test; here it speaks as trained" in capsys.readouterr().err


def test_it_is_no_part_of_a_trial(make: Callable[..., Config], trial: TrialDir) -> None:
    evaluate.run(make(), trial)
    assert "adapt" not in read_json(trial.results)["evaluation"]
    evaluate.run(adapted(make), trial)
    assert read_json(trial.results)["evaluation"]["adapt"] == {"epochs": 2, "lr": 1e-3}
