"""What is learnt beside numbers: numbers, names and ranges of targets, by heads of their own that predictions leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from pipeline.config.auxiliary import Auxiliary
from pipeline.config.trial import Config
from pipeline.data.truth import BESIDE
from pipeline.disk.layout import PROJECT, TrialDir
from pipeline.errors import UserError
from pipeline.experiments.reading import load_experiment
from pipeline.models.beside import Beside
from pipeline.models.saved import load_facts, load_model, make_model
from pipeline.stages import evaluate, extract, train
from pipeline.stages.inputs import load_inputs, make_facts
from pipeline.tasks import load_task
from tests.lab import write_images, write_table

HEADER = ("filename", "target", "height", "state")
BLOCKS: list[dict[str, Any]] = [
    {"kind": "number", "column": "height", "weight": 0.5},
    {"kind": "name", "column": "state", "weight": 0.2},
    {"kind": "bins", "target": "target", "n": 3, "weight": 0.1},
]


def blocks(*values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(Auxiliary.parse(each) for each in values or BLOCKS)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Thirty images; some heights and states are not known."""
    rng = np.random.default_rng(0)
    names = write_images(tmp_path, 30)
    rows = [
        (
            name,
            f"{rng.normal():.3f}",
            "" if i % 7 == 0 else f"{rng.normal(20, 5):.2f}",
            "NA" if i % 5 == 0 else ["Tas", "Vic", "WA"][i % 3],
        )
        for i, name in enumerate(names)
    ]
    return write_table(tmp_path, rows, HEADER)


def config_of(table: Path, **changes: str) -> Config:
    listed = ", ".join("{" + ", ".join(f"{k}: {v}" for k, v in each.items()) + "}" for each in BLOCKS)
    plain = {
        "data.targets": "[target]", "model.head": "{kind: mlp, hidden: [4]}", "data.split.n": "3", "train.epochs": "2",
        "loss.kind": "mse", "select.metric": "MAE", "data.auxiliary": f"[{listed}]", "backbone": "{kind: pixels}",
        "device": "cpu", "data.source": str(table),
    }  # fmt: skip
    overrides = [f"{key}={value}" for key, value in (plain | changes).items()]
    return load_experiment(PROJECT / "configs" / "generic" / "regress.yaml", overrides).config


# ---------------------------------------------------------------- the table
def test_a_table_has_numbers_and_the_places_of_names_where_they_are_known(table: Path) -> None:
    dataset = load_inputs_table(table)
    height, state = (dataset.table[f"{BESIDE}{i}"] for i in range(2))
    assert height.isna().sum() == 5 and (state == -1).sum() == 6 and set(state) == {-1, 0, 1, 2}
    assert dataset.truth.learnt == ("target", f"{BESIDE}0", f"{BESIDE}1") and dataset.truth.beside == (0, 3)


def load_inputs_table(table: Path, **changes: str) -> Any:
    config = config_of(table, **changes)
    return load_task(config.task).load(config.data)


def test_a_cell_that_is_no_number_is_refused_and_a_column_that_is_not_there_named(table: Path) -> None:
    text = table.read_text().splitlines()
    text[3] = ",".join([*text[3].split(",")[:2], "tall", "Tas"])
    table.write_text("\n".join(text))
    with pytest.raises(UserError, match=r"column height \(data.auxiliary\) holds 'tall', which is no number"):
        load_inputs_table(table)
    with pytest.raises(UserError, match=r"no column 'ndvi' \(data.auxiliary\)"):
        load_inputs_table(table, **{"data.auxiliary": "[{kind: number, column: ndvi}]"})


# ---------------------------------------------------------------- losses
def test_losses_are_those_of_their_kinds_and_what_is_not_known_says_nothing() -> None:
    torch.manual_seed(0)
    beside = Beside(blocks(), (0, 3, 0), 6, ("target",))
    truth = torch.arange(9.0)[:, None]
    known = torch.stack([torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8, float("nan")]), torch.tensor([0.0, 1, 2, -1, 0, 1, 2, 0, 1])], 1)
    beside.set_scales(truth, known)
    embedding = torch.randn(9, 6)
    number, name, bins = (layer(embedding) for layer in beside.layers)
    sd = known[:8, 0].std(correction=0)
    wanted = 0.5 * ((number[:, 0] - (known[:, 0] - 4.5) / sd).square()).nan_to_num()
    wanted = wanted + 0.2 * F.cross_entropy(name, known[:, 1].long(), ignore_index=-1, reduction="none")
    wanted = wanted + 0.1 * F.cross_entropy(bins, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2]), reduction="none")
    torch.testing.assert_close(beside.losses(embedding, truth, known), wanted)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"model.head": "{kind: ridge}"}, "auxiliary.0.kind number is learnt by gradient descent"),
        ({"augment.mixup_alpha": "0.4"}, "name is a name, which cannot be mixed"),
        ({"data.auxiliary": "[{kind: bins, target: moss}]"}, "moss is no target"),
        ({"data.auxiliary": "[{kind: colour, column: x}]"}, "auxiliary"),
    ],
)
def test_what_cannot_be_learnt_beside_is_refused_in_words(table: Path, overrides: dict[str, str], said: str) -> None:
    with pytest.raises((UserError, ValidationError), match=said):
        config_of(table, **overrides)


# ---------------------------------------------------------------- all the way
@pytest.mark.jobs
def test_every_layer_learns_and_nothing_of_it_is_predicted(table: Path, root: Path, tmp_path: Path) -> None:
    config = config_of(table)
    extract.ensure(config)
    inputs = load_inputs(config)
    before = make_model(config, make_facts(inputs), None)
    trial = TrialDir(tmp_path / "trial")
    trial.path.mkdir()
    train.run(config, trial)
    assert load_facts(trial).targets == ("target",)
    after = load_model(config, trial, None)
    moved = {name: not torch.equal(p, after.get_parameter(name)) for name, p in before.named_parameters()}
    assert sum(name.startswith("beside.") for name in moved) == 6 and all(moved.values())
    results = evaluate.run(config, trial)
    assert "target" in results and "height" not in results and results["figures"]["MAE"] is not None


@pytest.mark.jobs
def test_what_is_learnt_beside_changes_what_an_encoder_learns(table: Path, root: Path, tmp_path: Path) -> None:
    network = {"backbone": "{kind: timm, name: test_resnet, image_size: 32}", "model.encoder": "{kind: end_to_end}"}
    states = []
    for i, more in enumerate(({}, {"data.auxiliary": "[]"})):
        config, trial = config_of(table, **network, **more), TrialDir(tmp_path / f"trial {i}")
        trial.path.mkdir()
        extract.ensure(config)
        train.run(config, trial)
        states.append(load_model(config, trial, load_inputs(config).backbone).state_dict())
    same = [
        torch.equal(states[0][name], states[1][name])
        for name in states[1]
        if name.startswith("encoder.") and states[1][name].ndim > 1
    ]
    assert len(same) > 5 and not all(same)  # (of some blocks the last norm begins as 0: nothing reaches their insides yet)
