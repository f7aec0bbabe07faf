"""Variants of an experiment: each a grid of its own, beside the grid that all share and below what is typed."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.identity import config_hash
from pipeline.config.trial import Config
from pipeline.disk.writing import write_text
from pipeline.errors import UserError
from pipeline.experiments.reading import Experiment, dump_config, load_config
from pipeline.launch.manifest.manifest import Terms, make_manifest, preview_manifest, sharing_features
from pipeline.launch.watching.plan import lines
from tests.small import load_named as load_experiment

THREE = """
data: {split: {kind: folds}}
model: {normalize: false}
grid:
  data.split.fold: [0, 1]
variants:
  ridge on pixels: {backbone: {kind: pixels, size: [16, 32]}, model.head.kind: ridge}
  small network: {backbone: {kind: open_clip, name: RN50}, optim.lr: [1e-3, 3e-3], model.head.hidden: [[], [64, 8]]}
  boosting: {backbone.kind: pixels, model.head: {kind: boosting}, model.head.lr: 0.1}
"""


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root and current folder."""
    monkeypatch.chdir(root)
    return root


def write(text: str, name: str = "a.yaml") -> Path:
    Path(name).write_text(text)
    return Path(name).resolve()


def configs(*overrides: str, source: str = "a.yaml") -> list[Config]:
    return [trial.config for trial in load_experiment(source, overrides).trials]


def refusal(*overrides: str, source: str = "a.yaml") -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(source, overrides)
    return str(caught.value)


def told(config: Config) -> tuple[Any, ...]:
    values = config.model_dump()
    backbone, head = values["backbone"], values["model"]["head"]
    return values["data"]["split"]["fold"], backbone.get("size", backbone.get("name")), head["kind"], config.optim.lr


# ---------------------------------------------------------------- which trials there are
def test_each_variant_is_a_product_of_its_own_beside_the_shared_grid() -> None:
    write(THREE)
    found = [told(config) for config in configs()]
    assert found[:4] == [(fold, size, "ridge", 1e-4) for fold in (0, 1) for size in (16, 32)]
    assert found[4:12:2] == [(fold, "RN50", "mlp", lr) for fold in (0, 1) for lr in (1e-3, 3e-3)]
    assert found[12:] == [(fold, 8, "boosting", 1e-4) for fold in (0, 1)]
    heads = [config.model.head.model_dump() for config in configs()]
    assert [head["hidden"] for head in heads[4:8]] == [(), (64, 8)] * 2 and heads[12]["lr"] == 0.1


def test_a_block_and_its_dotted_keys_say_the_same() -> None:
    write("variants: {a: {backbone: {kind: pixels, size: [4, 5]}, model: {head: {kind: ridge}}}}")
    write("variants: {a: {model.head.kind: ridge, backbone.size: [4, 5], backbone.kind: pixels}}", "b.yaml")
    assert [c.model_copy(update={"experiment": "x"}) for c in configs()] == [
        c.model_copy(update={"experiment": "x"}) for c in configs(source="b.yaml")
    ]


def test_a_trial_that_two_variants_have_in_common_is_one() -> None:
    write("variants: {a: {seed: [0, 1]}, b: {seed: [1, 2]}, as it is: }")
    assert [config.seed for config in configs()] == [0, 1, 2]


def test_a_variant_says_more_than_the_grid_that_all_share() -> None:
    write("grid: {seed: [0, 1], optim.lr: [1, 2]}\nvariants: {a: {optim.lr: 5}, b: {}}")
    assert [(c.seed, c.optim.lr) for c in configs()] == [(0, 5), (1, 5), (0, 1), (0, 2), (1, 1), (1, 2)]


def test_what_is_typed_wins_over_a_variant_and_an_axis_replaces_its_axis() -> None:
    write("variants: {a: {optim.lr: [1, 2], seed: 3}, b: {optim: {lr: 4, kind: adamw}}}")
    assert [(c.optim.lr, c.optim.kind) for c in configs("optim.lr=7")] == [(7, "adam"), (7, "adamw")]
    assert [c.optim.lr for c in configs("optim.lr=7,8", "seed=0")] == [7, 8, 7, 8]
    assert [(c.optim.lr, c.optim.kind) for c in configs("optim={lr: 7, kind: adamw}")] == [(7, "adamw"), (7, "adamw")]
    write("grid: {optim: [{lr: 1}]}\nvariants: {a: {optim.lr: 2}}")
    assert [c.optim.lr for c in configs()] == [2] and [c.optim.lr for c in configs("optim={lr: 7}")] == [7]


def test_a_typed_axis_is_an_axis_of_every_variant() -> None:
    write(THREE)
    assert len(configs("seed=0,1,2")) == 3 * len(configs())


def test_some_variants_can_be_chosen_by_name() -> None:
    write(THREE)
    assert {told(c)[2] for c in configs("variants=boosting,ridge on pixels")} == {"ridge", "boosting"}
    assert [told(c)[0] for c in configs("variants=boosting", "data.split.fold=4")] == [4]


def test_an_unknown_variant_is_refused_with_the_nearest_or_with_those_that_there_are() -> None:
    path = write(THREE)
    assert refusal("variants=bosting") == (
        f"on the command line: `variants`: {path} has no variant bosting; did you mean boosting?"
    )
    assert refusal("variants=x").endswith("there are: ridge on pixels, small network, boosting")
    write("seed: 1")
    assert refusal("variants=x").endswith("has no variant x; there are: none")


# ---------------------------------------------------------------- parents
def test_a_childs_variants_replace_its_parents() -> None:
    write(THREE, "base.yaml")
    write("base: base.yaml\nvariants: {small network: {backbone: {kind: pixels}, optim.lrr: 1}}")
    assert refusal().startswith(f"{Path('a.yaml').resolve()}, line 2: `optim.lrr` does not exist")
    write("base: base.yaml\nvariants: {a: {optim.lr: 5}}")
    assert [c.optim.lr for c in configs()] == [5, 5]
    write("base: base.yaml\nvariants: ")
    assert len(configs()) == 2


def test_a_child_inherits_its_parents_variants_but_for_what_it_says_itself() -> None:
    write("variants: {a: {optim.lr: [1, 2], seed: 1}, b: {seed: [2, 3], optim.clip: 1}}", "base.yaml")
    write("base: base.yaml\noptim: {lr: 9}\ngrid: {seed: [5]}")
    assert [(c.optim.lr, c.seed, c.optim.clip) for c in configs()] == [(9, 5, None), (9, 5, 1)]


# ---------------------------------------------------------------- errors
@pytest.mark.parametrize("text", ["variants: 3", "variants: [a]", "variants: {a: 3}", "variants: {a: [1]}"])
def test_what_is_no_variant_is_refused_with_an_example(text: str) -> None:
    path = write(f"seed: 1\n{text}")
    assert refusal().startswith(f"{path}, line 2: variant") and "such as `variants: {small: " in refusal()


@pytest.mark.parametrize(
    ("inside", "says"),
    [
        ("optim.lrr: 1", "line 4: `optim.lrr` does not exist, but `optim.lr` does"),
        ("optim.lr: [1, -1]", "line 4: `optim.lr`: Input should be greater than 0 (given: -1)"),
        ("optim: {lr: fast}", "line 4: `optim.lr`: Input should be a valid number"),
        ("model.head.hidden: [8, 4]", "line 4: `model.head.hidden`: write a list: [8]"),
        ("backbone.size: 3", "line 4: `backbone.size` does not exist here: it is a key of `backbone.kind` pixels"),
        ("optim.lr: []", "line 3: variant 'b': optim.lr is a list of no values"),
        ("optim: {lr: 1}\n    optim.lr: 2", "line 3: variant 'b': optim.lr stands twice in it"),
        ("optim.lr: 1\n    optim.lr: 2", "line 5: variants.b.optim.lr stands twice in one block"),
        ("resources.train.mem: 9G", "line 3: variant 'b': all trials of an experiment share resources.train.mem"),
        ("experiment: x", "line 3: variant 'b': all trials of an experiment share experiment"),
    ],
)
def test_a_mistake_in_a_variant_is_shown_where_it_stands(inside: str, says: str) -> None:
    path = write(f"variants:\n  a: {{optim.lr: 2}}\n  b:\n    {inside}\n")
    assert refusal().startswith(f"{path}, {says}")


@pytest.mark.parametrize(("mistyped", "name"), [("variant", "variants"), ("grids", "grid"), ("bases", "base")])
def test_a_mistyped_block_of_the_experiment_is_refused_with_its_name(mistyped: str, name: str) -> None:
    path = write(f"seed: 1\n{mistyped}: {{a: {{optim.lr: 1}}}}")
    assert refusal() == f"{path}, line 2: `{mistyped}` does not exist, but `{name}` does"


def test_the_same_key_is_shown_in_the_variant_in_which_it_is_wrong() -> None:
    path = write("optim: {lr: 1}\nvariants:\n  a: {optim.lr: 1}\n  b: {optim.lr: -1}\n")
    assert refusal().startswith(f"{path}, line 4: `optim.lr`")
    assert refusal("optim.lr=-1").startswith("on the command line: `optim.lr`")


# ---------------------------------------------------------------- names
def test_trials_of_variants_have_readable_names_that_lead_back_to_them() -> None:
    write(THREE)
    experiment = load_experiment("a.yaml")
    names = [trial.name.rpartition("-")[0] for trial in experiment.trials if "fold" not in trial.name]
    assert names == [
        "backbone=pixels,size=16,head=ridge,seed=0", "backbone=pixels,size=32,head=ridge,seed=0",
        "name=RN50,hidden=,lr=1e-3,seed=0", "name=RN50,hidden=64x8,lr=1e-3,seed=0",
        "name=RN50,hidden=,lr=3e-3,seed=0", "name=RN50,hidden=64x8,lr=3e-3,seed=0",
        "backbone=pixels,head=boosting,lr=0.1,seed=0",
    ]  # fmt: skip
    for trial in experiment.trials:
        saved = experiment.dir.trial(trial.name).config
        write_text(saved, dump_config(trial.config))
        assert load_config(saved) == trial.config and load_experiment(saved).trials == [trial]


def test_keys_of_one_word_are_told_apart_in_a_name_by_their_blocks() -> None:
    write("variants: {a: {model.head.lr_scale: 2, model.encoder: {kind: finetuned, lr_scale: 3}, optim.lr: 4}}")
    (trial,) = load_experiment("a.yaml").trials
    assert trial.name.startswith("encoder=finetuned,encoder.lr_scale=3,head.lr_scale=2,lr=4,seed=0-")


values = {
    "optim.lr": st.floats(1e-6, 1),
    "train.epochs": st.integers(1, 99),
    "augment.noise": st.floats(0, 1),
    "seed": st.integers(0, 9),
}
blocks = st.fixed_dictionaries({}, optional={k: v | st.lists(v, min_size=1, max_size=2) for k, v in values.items()})
grids = st.fixed_dictionaries({}, optional={k: st.lists(v, min_size=1, max_size=2) for k, v in values.items()})


def expected(grid: dict[str, list[Any]], variant: dict[str, Any]) -> list[list[str]]:
    """The cells of a variant, each as overrides of a YAML without any."""
    axes = grid | {key: value if isinstance(value, list) else [value] for key, value in variant.items()}
    return [[f"{k}={v!r}" for k, v in zip(axes, cell, strict=True)] for cell in itertools.product(*axes.values())]


@given(grids, st.dictionaries(st.text("ab .,", min_size=1, max_size=3), blocks, min_size=1, max_size=3))
@settings(max_examples=40)
def test_variants_are_the_trials_that_would_be_asked_for_one_by_one(grid: Any, variants: dict[str, Any]) -> None:
    write(yaml.safe_dump({"grid": grid, "variants": variants}, sort_keys=False))
    write("experiment: beetles-a", "plain.yaml")
    trials = load_experiment("a.yaml").trials
    cells = [cell for variant in variants.values() for cell in expected(grid, variant)]
    alone = [load_experiment("plain.yaml", cell).trials[0] for cell in cells]
    assert [(t.name, t.config) for t in trials] == list({t.name: (t.name, t.config) for t in alone}.values())
    assert len({trial.name for trial in trials}) == len({config_hash(trial.config) for trial in trials}) == len(trials)
    assert all(re.fullmatch(r"[A-Za-z0-9._+=,-]{1,120}", trial.name) for trial in trials)


# ---------------------------------------------------------------- planning several backbones at once
def planned() -> Experiment:
    write(THREE.replace("data: {", "data: {source: images.csv, "))
    write("file_path,public_id\n", "images.csv")
    return load_experiment("a.yaml")


def test_a_submission_makes_the_features_of_each_backbone_once() -> None:
    experiment = planned()
    manifest = preview_manifest(experiment, experiment.trials, Terms(pack=4))
    assert [e.features for e in manifest.entries] == [0, 1, 0, 1, *[2] * 8, 3, 3]
    assert manifest.extractions == [(number, 0, 1) for number in range(4)]
    backbones = [{trial.config.backbone for trial in sharing} for sharing in sharing_features(experiment.trials)]
    assert [len(them) for them in backbones] == [1] * 4
    for number, (them,) in enumerate(backbones):
        assert {trial.config.backbone for trial in manifest.reading(number)} == {them}


@pytest.mark.jobs
def test_a_manifest_gives_back_the_trials_of_every_variant_and_plan_shows_them() -> None:
    experiment = planned()
    manifest = make_manifest(experiment, experiment.trials)
    assert [manifest.trial(i) for i in range(len(experiment.trials))] == experiment.trials
    shown = list(lines(experiment, check=False))
    assert sum(line.startswith("missing") for line in shown) == len(experiment.trials) == 14
