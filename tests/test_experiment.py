"""From a YAML and overrides to trials: parents, kinds, the grid, names, and errors that show the place."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import pipeline.experiments.reading as experiment_module
from pipeline.config.augment import ImageAugment
from pipeline.config.data import RESULT_KEYS
from pipeline.config.identity import changes, config_hash, digest, flatten, plain, science
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT
from pipeline.disk.secrets import is_secret
from pipeline.disk.writing import write_text
from pipeline.errors import UserError
from pipeline.experiments import reading
from pipeline.experiments.documents import INTEGER, Document
from pipeline.experiments.grid import split_commas, split_overrides
from pipeline.experiments.names import written
from pipeline.experiments.reading import Experiment, dump_config, find_config, load_config, saved_science
from pipeline.experiments.trees import merge
from tests.small import load_named as load_experiment
from tests.small import named

LORA = PROJECT / "configs" / "beetles" / "lora.yaml"
FROZEN = PROJECT / "configs" / "beetles" / "frozen.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root and current folder: no folder of this machine may look like a data set's or a trial's name."""
    monkeypatch.setenv("CARABID_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str | Path, text: str) -> Path:
    path = Path(path)
    path.write_text(text)
    return path


def refusal(source: str | Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_experiment(source, overrides)
    return str(caught.value)


def only(source: str | Path, *overrides: str) -> Config:
    (trial,) = load_experiment(source, overrides).trials
    return trial.config


def seeds_and_rates(experiment: Experiment) -> list[tuple[int, float]]:
    return [(trial.config.seed, trial.config.optim.lr) for trial in experiment.trials]


# ---------------------------------------------------------------- parents
def test_a_yaml_says_only_what_differs_from_its_base() -> None:
    write("base.yaml", "optim: {lr: 1e-3, weight_decay: 0.1}\nseed: 7\n")
    write("child.yaml", "base: base.yaml\noptim: {lr: 5e-3}\n")
    config = only("child.yaml")
    assert (config.optim.lr, config.optim.weight_decay, config.seed) == (5e-3, 0.1, 7)


def test_a_base_may_have_a_base_and_lies_beside_its_child_wherever_the_command_is_typed(here: Path) -> None:
    folder = here / "a" / "b"
    folder.mkdir(parents=True)
    write(here / "a" / "root.yaml", "seed: 3\ntrain: {epochs: 9}\n")
    write(folder / "middle.yaml", "base: ../root.yaml\nseed: 4\n")
    write(folder / "leaf.yaml", "base: middle.yaml\n")
    config = only("a/b/leaf.yaml")
    assert (config.seed, config.train.epochs) == (4, 9)


def test_an_experiment_is_not_named_after_its_base() -> None:
    write("base.yaml", "experiment: mine\n")
    write("child.yaml", "base: base.yaml\n")
    assert only("base.yaml").experiment == "mine"
    assert only("child.yaml").experiment == "beetles-child"


def test_a_base_that_leads_back_to_itself_is_an_error_that_shows_the_circle() -> None:
    write("a.yaml", "base: b.yaml\n")
    write("b.yaml", "base: a.yaml\n")
    assert "a.yaml → b.yaml → a.yaml" in refusal("a.yaml")


def test_a_base_that_does_not_exist_is_named_with_its_line() -> None:
    path = write("a.yaml", "seed: 1\nbase: nosuch.yaml\n")
    message = refusal("a.yaml")
    assert f"{path.resolve()}, line 2" in message and "nosuch.yaml" in message


@pytest.mark.parametrize(
    ("text", "problem"), [("seed: 1\nseed: 2\n", "seed"), ("optim:\n  lr: 1\n  kind: adam\n  lr: 2\n", "optim.lr")]
)
def test_a_key_that_stands_twice_is_refused_with_file_and_line(text: str, problem: str) -> None:
    path = write("a.yaml", text)
    message = refusal("a.yaml")
    assert f"{problem} stands twice" in message
    assert str(path.resolve()) in message and f"line {text.count(chr(10))}" in message


# ---------------------------------------------------------------- what must be named
def test_what_has_no_default_is_asked_for_and_the_tasks_are_listed() -> None:
    path = write("a.yaml", "seed: 1\ndata: {targets: [y]}\n").resolve()
    with pytest.raises(UserError) as caught:
        experiment_module.load_experiment("a.yaml")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}: `task`: this must be named") and "beetles, biomass, butterflies, classify" in lines[0]
    assert [line.partition("`: ")[0] for line in lines[1:]] == [f"{path}, line 2: `data.source", f"{path}, line 2: `data.columns"]


def test_a_task_may_be_a_file_beside_the_yaml_that_names_it(here: Path) -> None:
    (here / "own").mkdir()
    task = write(here / "own" / "phenology.py", "")
    write(here / "own" / "base.yaml", "task: ./phenology.py\n")
    write("child.yaml", "base: own/base.yaml\n")
    config = only("child.yaml")
    assert (config.task, config.experiment) == (str(task), "phenology-child")
    write("child.yaml", "base: own/base.yaml\ngrid: {task: [own/phenology.py, beetles]}\n")
    assert [trial.config.task for trial in load_experiment("child.yaml").trials] == [str(task), "beetles"]
    assert only("child.yaml", "task=own/phenology.py").task == str(task)
    assert "line 1: `task`: there is no file phenologie.py" in refusal(write("a.yaml", "task: phenologie.py\n"))


# ---------------------------------------------------------------- kinds
def test_another_kind_replaces_the_block_because_its_keys_are_others() -> None:
    write("base.yaml", "model: {encoder: {kind: lora, r: 8}, normalize: false}\n")
    write("child.yaml", "base: base.yaml\nmodel: {encoder: {kind: finetuned, blocks: 3}}\n")
    model = only("child.yaml").model
    assert plain(model.encoder) == {"kind": "finetuned", "blocks": 3, "lr_scale": 0.01}
    assert model.normalize is False


def test_of_a_block_of_another_kind_stays_what_every_kind_has() -> None:
    write("base.yaml", "backbone: {kind: dinov2, pooling: cls_mean, views: {crops: [left, right], tiles: [2, 2]}}\n")
    write("child.yaml", "base: base.yaml\nbackbone: {kind: timm, name: convnext_atto, views: {sizes: [64]}}\n")
    backbone = only("child.yaml").backbone
    assert (backbone.kind, backbone.views.crops, backbone.views.tiles, backbone.views.sizes) == (
        "timm", ("left", "right"), (2, 2), (64,)
    )  # fmt: skip
    assert only("child.yaml", "backbone.kind=pixels", "backbone.views.sizes=[]").backbone.views.tiles == (2, 2)
    assert "pixels reads images of 8 pixels alone: set backbone.views.sizes to []" in refusal(
        "child.yaml", "backbone.kind=pixels"
    )
    write("base.yaml", "schedule: {kind: cosine, warmup: 3, floor: 0.1}\n")
    assert plain(only("base.yaml", "schedule.kind=one_cycle").schedule)["warmup"] == 3


def test_a_block_that_is_set_to_nothing_is_emptied() -> None:
    write("a.yaml", "model: {encoder: {kind: end_to_end}}\naugment: {images: {flip: true, rotation: 5}}\n")
    assert only("a.yaml").augment.images.flip
    assert only("a.yaml", "augment.images={}").augment.images == ImageAugment()
    assert only("a.yaml", "augment.images={}", "augment.images.rotation=7").augment.images == ImageAugment(rotation=7)
    trials = load_experiment("a.yaml", ["augment.images={},{rotation: 6}"]).trials
    assert [trial.config.augment.images.flip for trial in trials] == [False, True]
    for blocks in ("augment={}", "augment={images: {}}"):
        assert not only("a.yaml", blocks).augment.images.flip
    write("b.yaml", "backbone: {kind: timm, name: resnet18}\nschedule: {kind: exponential}\nloss: {kind: mse}\n")
    emptied = only("b.yaml", "backbone={}", "schedule={}", "loss={}")
    assert plain(emptied) | {"experiment": ""} == plain(only("a.yaml", "model={}", "augment={}")) | {"experiment": ""}


def test_the_same_kind_keeps_the_block() -> None:
    write("base.yaml", "model: {encoder: {kind: lora, r: 8}}\n")
    write("child.yaml", "base: base.yaml\nmodel: {encoder: {kind: lora, blocks: 3}}\n")
    encoder = only("child.yaml").model.encoder
    assert encoder.kind == "lora" and (encoder.r, encoder.blocks) == (8, 3)


def test_another_optimiser_or_schedule_keeps_the_keys_that_all_of_them_share() -> None:
    """`optim` and `schedule` have one set of keys for every kind: nothing may fall back to a default unasked."""
    write("a.yaml", "optim: {lr: 3e-3, weight_decay: 0.2}\nschedule: {warmup: 7}\n")
    config = only("a.yaml", "optim.kind=adamw", "schedule.kind=cosine")
    assert (config.optim.kind, config.optim.lr, config.optim.weight_decay) == ("adamw", 3e-3, 0.2)
    assert (config.schedule.kind, config.schedule.warmup) == ("cosine", 7)


def test_saying_the_default_kind_aloud_keeps_the_block() -> None:
    write("a.yaml", "model: {head: {hidden: [8]}}\n")
    assert only("a.yaml", "model.head.kind=mlp") == only("a.yaml")


def test_a_key_of_the_default_kind_can_be_set_without_naming_the_kind() -> None:
    split = only(FROZEN, "data.split.train=training").data.split
    assert split.kind == "source" and split.train == "training"


@pytest.mark.parametrize(
    "overrides",
    itertools.permutations(["model.encoder.kind=finetuned", "model.encoder.blocks=4", "optim.kind=adam", "optim.lr=1"]),
)
def test_overrides_mean_the_same_in_any_order(overrides: tuple[str, ...]) -> None:
    config = only(LORA, *overrides)
    assert config.model.encoder.kind == "finetuned" and config.model.encoder.blocks == 4
    assert (config.optim.kind, config.optim.lr) == ("adam", 1.0)


def test_a_grid_over_kinds_does_not_lose_a_key_that_all_of_them_have() -> None:
    experiment = load_experiment(LORA, ["model.encoder.kind=lora,finetuned", "model.encoder.blocks=3"])
    assert [getattr(t.config.model.encoder, "blocks", None) for t in experiment.trials] == [3, 3]


# ---------------------------------------------------------------- values
def test_numbers_are_read_as_people_write_them() -> None:
    write("a.yaml", "optim: {lr: 1e-4, weight_decay: .5}\nresources: {train: {time: 10:00:00, mem: 200G}}\nseed: 010\n")
    config = only("a.yaml")
    assert (config.optim.lr, config.optim.weight_decay) == (1e-4, 0.5)
    assert config.resources.train.time == "10:00:00"
    assert config.seed == 10


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", "+1e-4", ".0001"])
def test_a_rate_is_the_same_number_however_it_is_written(text: str) -> None:
    assert only(LORA, f"optim.lr={text}").optim.lr == 1e-4


@pytest.mark.parametrize("text", ["08", "0123456", "2024-01-02", "2024-13-45", "12:30"])
def test_text_that_resembles_a_number_or_a_date_stays_text(text: str) -> None:
    assert only(LORA, f"data.revision={text}").data.revision == text


def test_brackets_and_quotes_protect_commas() -> None:
    config = only(LORA, "data.targets=[a,b]", "data.source='x,y'", "optim={lr: 0.5, kind: adam}")
    assert (config.data.targets, config.data.source, config.optim.lr) == (("a", "b"), "x,y", 0.5)


def test_null_and_an_empty_value_switch_a_key_off() -> None:
    assert only(LORA, "data.columns.domain=null", "data.columns.group=").data.columns.model_dump(include={"domain", "group"}) == {
        "domain": None,
        "group": None,
    }


def test_a_value_may_hold_equals_signs() -> None:
    assert only(LORA, "data.source=a=b").data.source == "a=b"


# ---------------------------------------------------------------- the grid
def test_comma_lists_make_every_combination_the_last_axis_fastest() -> None:
    experiment = load_experiment(LORA, ["seed=0,1", "optim.lr=1e-3,3e-3"])
    assert seeds_and_rates(experiment) == [(0, 1e-3), (0, 3e-3), (1, 1e-3), (1, 3e-3)]


def test_a_list_of_lists_is_an_axis_of_lists() -> None:
    experiment = load_experiment(LORA, ["model.head.hidden=[8],[16,4]"])
    assert [trial.config.model.head.model_dump()["hidden"] for trial in experiment.trials] == [(8,), (16, 4)]


def test_a_grid_block_gives_the_same_trials_as_comma_lists() -> None:
    write("a.yaml", f"base: {LORA}\nexperiment: x\ngrid: {{optim.lr: [1e-3, 3e-3], seed: [0, 1]}}\n")
    write("b.yaml", f"base: {LORA}\nexperiment: x\n")
    assert load_experiment("a.yaml").trials == load_experiment("b.yaml", ["optim.lr=1e-3,3e-3", "seed=0,1"]).trials


def test_the_command_line_wins_over_the_grid_block_and_the_grid_block_over_the_yaml() -> None:
    write("a.yaml", "seed: 9\noptim: {lr: 9}\ngrid: {seed: [0, 1], optim.lr: [1, 2]}\n")
    assert seeds_and_rates(load_experiment("a.yaml", ["seed=5"])) == [(5, 1.0), (5, 2.0)]
    assert seeds_and_rates(load_experiment("a.yaml", ["seed=5,6", "optim.lr=3"])) == [(5, 3.0), (6, 3.0)]


def test_a_child_inherits_the_grid_of_its_base_and_replaces_it_key_by_key() -> None:
    write("base.yaml", "grid: {seed: [0, 1], optim.lr: [1, 2]}\n")
    write("child.yaml", "base: base.yaml\ngrid: {optim.lr: [3]}\n")
    assert seeds_and_rates(load_experiment("child.yaml")) == [(0, 3.0), (1, 3.0)]


def test_a_value_in_the_child_wins_over_the_grid_of_its_base() -> None:
    write("base.yaml", "grid: {seed: [0, 1], optim.lr: [1, 2]}\n")
    write("child.yaml", "base: base.yaml\noptim: {lr: 3}\n")
    assert seeds_and_rates(load_experiment("child.yaml")) == [(0, 3.0), (1, 3.0)]


@pytest.mark.parametrize("grid", ["seed: 1", "seed: []", "[seed]", "optim: {lr: [1, 2]}", "3"])
def test_a_grid_that_is_no_grid_is_refused_with_an_example(grid: str) -> None:
    path = write("a.yaml", f"grid: {{{grid}}}\n" if ":" in grid else f"grid: {grid}\n")
    message = refusal("a.yaml")
    assert str(path.resolve()) in message and "optim.lr: [1e-4, 3e-4]" in message


def test_a_value_given_twice_on_one_axis_is_one_trial() -> None:
    assert [t.config.seed for t in load_experiment(LORA, ["seed=0,0,1"]).trials] == [0, 1]


@pytest.mark.parametrize("axis", ["evaluate.split=validation,test", "experiment=a,b", "resources.train.time=1,2"])
def test_an_axis_that_makes_no_other_model_is_refused_and_not_silently_collapsed(axis: str) -> None:
    assert axis.partition("=")[0] in refusal(LORA, "seed=0,1", axis)


def test_a_wrong_value_anywhere_in_a_grid_is_refused_where_it_stands() -> None:
    """Blocks that no axis reaches are not validated again; those that one reaches are, in every cell."""
    path = write("a.yaml", "optim: {lr: 1e-3}\ngrid:\n  seed: [0, 1]\n  optim.clip: [1, 2, 0]\n")
    assert refusal("a.yaml").startswith(f"{path.resolve()}, line 4: `optim.clip`: Input should be greater than 0")
    assert refusal("a.yaml", "optim.clip=1", "seed=0,1,x").startswith("on the command line: `seed`: ")
    refused = refusal(FROZEN, "backbone.kind=open_clip,pixels", "model.encoder.kind=lora")
    assert refused.startswith("on the command line: model.encoder.kind lora reads cut features, and pixels has")


def test_the_cells_of_a_grid_share_the_blocks_that_no_axis_reaches(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand cells are planned in a second because of this."""
    looked_up: list[str] = []
    resolve = experiment_module._resolve
    monkeypatch.setattr(experiment_module, "_resolve", lambda bases, name: looked_up.append(name) or resolve(bases, name))
    (here / "data").mkdir()
    trials = load_experiment(LORA, ["data.source=data", "data.split={kind: folds}", "data.split.fold=0,1,2"]).trials
    assert [trial.config.data.source for trial in trials] == [str(here / "data")] * 3
    assert all(trial.config.model is trials[0].config.model for trial in trials)
    assert len(looked_up) == len(set(looked_up))


def test_cells_that_choose_alike_in_a_block_share_it_and_are_the_trials_that_each_is_alone() -> None:
    axes = {"optim.lr": ("1e-4", "1e-3"), "loss.kind": ("mse", "crps"), "seed": ("0", "1")}
    trials = load_experiment(FROZEN, [f"{key}={','.join(choices)}" for key, choices in axes.items()]).trials
    for trial, choice in zip(trials, itertools.product(*axes.values()), strict=True):
        alone = [f"{key}={value}" for key, value in zip(axes, choice, strict=True)]
        (other,) = load_experiment(FROZEN, alone).trials
        assert (trial.config, trial.name) == (other.config, other.name)
        assert config_hash(trial.config) == digest(science(trial.config))
    assert len({id(trial.config.optim) for trial in trials}) == len({id(trial.config.loss) for trial in trials}) == 2


def test_a_cell_whose_blocks_do_not_go_together_is_refused_though_each_of_them_goes_with_others() -> None:
    """The last of four: its encoder and its backbone have each been validated before."""
    refused = refusal(FROZEN, "backbone.kind=open_clip,pixels", "model.encoder.kind=frozen,lora")
    assert refused.startswith("on the command line: model.encoder.kind lora reads cut features, and pixels has")


@given(st.from_regex(INTEGER, fullmatch=True).map(str.strip) | st.integers().map(str))
def test_a_whole_number_is_what_yaml_makes_of_it(text: str) -> None:
    assert split_overrides([f"seed={text}"], Document()) == {"seed": [yaml.safe_load(text)]}


axis_values = {
    "seed": st.integers(0, 99).map(str),
    "optim.lr": st.floats(1e-6, 1).map(repr),
    "train.epochs": st.integers(1, 99).map(str),
    "model.head.hidden": st.lists(st.integers(1, 9), min_size=1, max_size=3).map(str),
    "augment.noise": st.floats(0, 1).map(repr),
    "optim.kind": st.sampled_from(["adam", "adamw"]),
}
grids = st.lists(st.sampled_from(sorted(axis_values)), unique=True, max_size=3).flatmap(
    lambda keys: st.fixed_dictionaries({k: st.lists(axis_values[k], min_size=1, max_size=3, unique=True) for k in keys})
)


def overrides_of(grid: dict[str, list[str]]) -> list[str]:
    return [f"{key}={','.join(values)}" for key, values in grid.items()]


@given(grids)
@settings(deadline=None, max_examples=40)
def test_a_grid_is_the_product_of_its_axes_with_a_folder_for_each_cell(grid: dict[str, list[str]]) -> None:
    trials = load_experiment(LORA, overrides_of(grid)).trials
    assert len({trial.name for trial in trials}) == len({config_hash(trial.config) for trial in trials}) == len(trials)
    cells = [overrides_of({k: [v] for k, v in zip(grid, cell, strict=True)}) for cell in itertools.product(*grid.values())]
    alone = [load_experiment(LORA, cell).trials[0] for cell in cells]
    assert [(t.name, t.config) for t in trials] == list({t.name: (t.name, t.config) for t in alone}.values())


# ---------------------------------------------------------------- names
def test_a_trial_is_named_by_what_distinguishes_it_and_a_short_hash() -> None:
    (trial,) = load_experiment(LORA, ["optim.lr=3e-4", "seed=1"]).trials
    assert trial.name == f"lr=3e-4,seed=1-{config_hash(trial.config)[:8]}"


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.lr=0.0003", "seed=1"],
        ["seed=1", "optim.lr=3e-4"],
        ["seed=0,1", "optim.lr=1e-4,3e-4"],
        ["optim={lr: 3.0e-4}", "seed=1"],
        ["seed=1", "optim.lr=3e-4", "resources.train.mem=1G", "evaluate.split=validation", "device=cpu"],
        ["seed=1", "optim.lr=3e-4", "model.encoder.kind=lora"],
    ],
    ids=" ".join,
)
def test_a_trial_has_one_name_whichever_way_it_is_asked_for(overrides: list[str]) -> None:
    (asked,) = load_experiment(LORA, ["optim.lr=3e-4", "seed=1"]).trials
    assert asked.name in [trial.name for trial in load_experiment(LORA, overrides).trials]


def test_another_kind_is_called_by_its_block_and_brings_no_defaults_into_the_name() -> None:
    overrides = ["data.columns.domain=domainID", "data.split={kind: domains, n: 4}", "loss.kind=crps,quantiles"]
    names = [trial.name.rpartition("-")[0] for trial in load_experiment(LORA, overrides).trials]
    assert names == [f"split=domains,n=4,loss={loss},seed=0" for loss in ("crps", "quantiles")]


def test_kinds_and_what_they_have_in_common_tell_the_trials_of_a_grid_apart() -> None:
    """`pairwise` is the default of one kind, and what the YAML chooses for the other is `multipositive`."""
    grid = ("loss.kind=infonce,pair_bce", "loss.targets=pairwise,multipositive", "seed=0")
    names = [trial.name.rpartition("-")[0] for trial in reading.load_experiment("configs/species/projection.yaml", grid).trials]
    assert sorted(names) == sorted(
        ["targets=pairwise,seed=0", "seed=0", "targets=pairwise,loss=pair_bce,seed=0", "loss=pair_bce,seed=0"]
    )


@pytest.mark.parametrize(
    ("config", "override", "said"),
    [
        ("species/lift", "loss.logit_adjustment=0", "logit_adjustment=0"),
        ("species/lora", "model.text.kind=frozen", "text=frozen"),
        ("species/head_2026", "schedule.warmup_samples=null", "warmup_samples=None"),
    ],
)
def test_what_the_yaml_chooses_and_an_override_sets_back_to_its_default_is_in_the_name(
    config: str, override: str, said: str
) -> None:
    (trial, *_) = reading.load_experiment(f"configs/{config}.yaml", (override,)).trials
    assert said in trial.name.split(",")


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.split.kind=domains"],
        ["data.split.kind=domains", "data.split.fold=0,1"],
        ["data.split={kind: domains, n: 5, held_out: 0.1}"],
    ],
    ids=" ".join,
)
def test_a_default_of_another_kind_gives_the_trial_no_other_name(overrides: list[str]) -> None:
    column = "data.columns.domain=domainID"
    (asked,) = load_experiment(LORA, [column, "data.split.kind=domains"]).trials
    assert asked.name.startswith("split=domains,seed=0-")
    assert asked.name == load_experiment(LORA, [column, *overrides]).trials[0].name


def test_a_folder_keeps_its_name_when_the_yaml_changes_what_is_ordinary() -> None:
    write("a.yaml", "optim: {lr: 1e-3}\n")
    first = load_experiment("a.yaml", ["optim.lr=5e-3"])
    (trial,) = first.trials
    first.dir.trial(trial.name).path.mkdir(parents=True)
    write("a.yaml", "optim: {lr: 5e-3}\n")
    assert [t.name for t in load_experiment("a.yaml").trials] == [trial.name] != ["seed=0"]


def test_the_config_in_a_trials_folder_asks_for_that_trial() -> None:
    experiment = load_experiment(LORA, ["optim.lr=5e-3", "seed=2"])
    (trial,) = experiment.trials
    saved = experiment.dir.trial(trial.name).config
    write_text(saved, dump_config(trial.config))
    again = load_experiment(saved)
    assert again.trials == experiment.trials and again.dir == experiment.dir


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2", ["1", "2"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("'a,b',c", ["'a,b'", "c"]),
        ("'it''s, x',c", ["'it''s, x'", "c"]),
        (r'"a\",b",c', [r'"a\",b"', "c"]),
        (r'["\"","}"],c', [r'["\"","}"]', "c"]),
        ("O'Brien,Smith", ["O'Brien", "Smith"]),
        ("{a: 'x,y', b: 2},z", ["{a: 'x,y', b: 2}", "z"]),
    ],
)
def test_commas_separate_values_outside_brackets_and_quotes_alone(text: str, parts: list[str]) -> None:
    assert split_commas(text) == parts


# No target may have the names of results.json's own keys; and what looks like a password after the name of one is taken for it.
awkward = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(
    lambda text: text not in RESULT_KEYS and not is_secret(text, "Qx7" * 8)
)


@given(awkward, st.lists(awkward, min_size=1, max_size=30, unique=True))
@settings(deadline=None, max_examples=60)
@example("0", ['"', '}"', "\\", "a\\"])
@example("0", ["pwd", "<"])
@example("0", ["strip_token", "tail_length"])
def test_a_trials_name_is_a_plain_folder_name_whatever_its_values(source: str, targets: list[str]) -> None:
    quoted = [yaml.safe_dump(v, default_style='"', width=10**6, allow_unicode=True).strip() for v in (source, *targets)]
    (trial,) = load_experiment(LORA, [f"data.source={quoted[0]}", f"data.targets=[{','.join(quoted[1:])}]"]).trials
    assert re.fullmatch(r"[A-Za-z0-9._+=,-]{1,120}", trial.name), trial.name


def test_a_name_that_would_be_too_long_is_cut_but_keeps_seed_and_hash() -> None:
    (trial,) = load_experiment(FROZEN, ["model.encoder.kind=lora", "seed=3"]).trials
    assert len(trial.name) < 110 and trial.name.endswith(f",seed=3-{config_hash(trial.config)[:8]}")
    assert re.fullmatch(r"[A-Za-z0-9._+=,-]+", trial.name)


# ---------------------------------------------------------------- errors for people
@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("optim.lrr", "optim.lr"),
        ("lr", "optim.lr"),
        ("epochs", "train.epochs"),
        ("train.epoch", "train.epochs"),
        ("model.encoder.rank", "model.encoder.r"),
        ("resources.train.partitions", "resources.train.partition"),
        ("augment.mixup_alfa", "augment.mixup_alpha"),
        ("seeds", "seed"),
        ("modle.encoder.r", "model.encoder.r"),
        ("model.encodr.targts", "model.encoder.targets"),
        ("datta.columns.grup", "data.columns.group"),
    ],
)
def test_a_mistyped_key_is_refused_with_the_nearest_name_that_exists(key: str, nearest: str) -> None:
    message = refusal(LORA, f"{key}=1")
    assert message.startswith(f"on the command line: `{key}` does not exist") and f"`{nearest}`" in message


def test_the_message_for_the_issues_own_example() -> None:
    assert refusal(LORA, "optim.lrr=1") == "on the command line: `optim.lrr` does not exist, but `optim.lr` does"


def test_a_mistyped_key_in_a_file_is_shown_with_file_and_line() -> None:
    path = write("a.yaml", "seed: 1\noptim:\n  lr: 1e-3\n  lrr: 2\n")
    assert refusal("a.yaml").startswith(f"{path.resolve()}, line 4: `optim.lrr` does not exist")


def test_a_mistyped_key_in_a_base_is_shown_where_it_stands() -> None:
    base = write("base.yaml", "train:\n  epoch: 3\n")
    write("child.yaml", "base: base.yaml\ntrain:\n  batch_size: 4\n")
    assert refusal("child.yaml").startswith(f"{base.resolve()}, line 2: `train.epoch` does not exist")


def test_a_mistyped_key_in_the_grid_block_is_shown_where_it_stands() -> None:
    path = write("a.yaml", "optim:\n  lr: 1\ngrid:\n  seed: [0]\n  optim.lrr: [1, 2]\n")
    assert refusal("a.yaml").startswith(f"{path.resolve()}, line 5: `optim.lrr` does not exist")


def test_all_mistakes_are_named_at_once() -> None:
    message = refusal(LORA, "optim.lrr=1", "train.epochs=0")
    assert "`optim.lrr` does not exist" in message and "`train.epochs`" in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "key", "allowed"),
    [
        ("optim.kind=sgd", "optim.kind", "'adam' or 'adamw' (given: 'sgd')"),
        ("optim.lr=-1", "optim.lr", "greater than 0 (given: -1)"),
        ("optim.lr=fast", "optim.lr", "valid number"),
        ("optim.lr=.inf", "optim.lr", "finite number"),
        ("train.epochs=2.5", "train.epochs", "valid integer"),
        ("seed=", "seed", "valid integer"),
        ("model.normalize=maybe", "model.normalize", "valid boolean"),
        ("model.encoder.kind=loar", "model.encoder.kind", "did you mean lora? there are: frozen, projection, finetuned, lora"),
        ("model.encoder.targets=[q_proj,qkv]", "model.encoder.targets.1", "'q_proj', 'k_proj'"),
        ("data.split={kind: folds, fold: 5}", "data.split", "folds count from 0 to 4"),
        ("optim=3", "optim", "this is a block of keys: kind, lr, weight_decay, betas, eps, decays, clip, ema (given: 3)"),
        ("model=5", "model", "this is a block of keys: encoder, fuse, normalize, "),
        ("model.encoder=5", "model.encoder", "this is a block of keys: kind, "),
        ("data.targets=SPEI_30d", "data.targets", "write a list: [SPEI_30d]"),
        ("model.head.hidden=512", "model.head.hidden", "write a list: [512]"),
        ("data.targets=", "data.targets", "write a list: [a, b] (given: None)"),
        ("seed.x=3", "seed", "valid integer"),
    ],
)
def test_a_wrong_value_is_refused_and_says_what_is_allowed(override: str, key: str, allowed: str) -> None:
    message = refusal(LORA, override)
    assert message.startswith(f"on the command line: `{key}`: ") and allowed in message
    assert len(message.splitlines()) == 1 and "pydantic" not in message


def test_a_mistyped_block_is_refused_by_its_own_name_and_not_by_that_of_a_key_elsewhere() -> None:
    path = write("a.yaml", "seed: 1\nmodle:\n  encoder: {kind: lora, r: 4}\n")
    assert refusal("a.yaml") == f"{path.resolve()}, line 2: `modle` does not exist, but `model` does"


def test_a_key_of_another_kind_is_refused_with_the_kind_that_has_it() -> None:
    assert "`model.encoder.r` does not exist here: it is a key of `model.encoder.kind` lora" in refusal(
        FROZEN, "model.encoder.r=4"
    )


def test_a_key_that_resembles_none_is_refused_with_what_exists_in_its_block() -> None:
    assert refusal(LORA, "xyz.y.z=3").endswith("`xyz.y.z` does not exist; here exist: " + ", ".join(Config.model_fields))


def test_a_word_that_is_also_a_kind_is_named_as_it_was_written() -> None:
    assert "`optim.adam` does not exist" in refusal(LORA, "optim.adam=1")


def test_a_wrong_value_in_a_file_is_shown_with_file_and_line_even_inside_a_kind() -> None:
    path = write("a.yaml", "model:\n  encoder:\n    kind: lora\n    r: 0\n")
    assert refusal("a.yaml").startswith(f"{path.resolve()}, line 4: `model.encoder.r`: ")


@pytest.mark.parametrize("text", ["optim.lr", "=3", "", "--seed"])
def test_an_override_without_key_or_value_is_refused_with_an_example(text: str) -> None:
    assert "optim.lr=1e-4" in refusal(LORA, text)


def test_a_key_given_twice_is_refused_because_one_value_would_be_lost() -> None:
    assert "seed is given twice" in refusal(LORA, "seed=1", "seed=2")
    assert "seed is given twice" in refusal(LORA, "seed=1,2", "seed=3")


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", "- 1\n- 2\n", "\x01", "x: !!python/object:os.system {}"])
def test_a_file_that_is_no_experiment_is_named(text: str) -> None:
    path = write("a.yaml", text)
    assert str(path.resolve()) in refusal("a.yaml")


def test_a_binary_file_is_refused_and_named(here: Path) -> None:
    (here / "model.safetensors").write_bytes(b"\xd0\xff\x00")
    assert "model.safetensors" in refusal("model.safetensors")


def test_a_kind_that_does_not_exist_is_refused_with_the_nearest_that_does() -> None:
    with pytest.raises(UserError, match=r"there is no such kind; did you mean knn\? there are: "):
        load_experiment(LORA, ("model.head.kind=kn",))


def test_a_config_of_this_folder_is_nearer_than_one_that_came_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taxon.yaml").write_text("task: classify")
    for name in ("taxon", "taxon.yml", "taxn.yaml"):
        with pytest.raises(UserError, match=r"did you mean taxon\.yaml\?$"):
            load_experiment(name)


def test_a_config_that_does_not_exist_is_refused_with_the_nearest_that_does() -> None:
    for mistyped in ("configs/beetles/loar.yaml", "beetles/lora"):
        assert refusal(mistyped).endswith("; did you mean configs/beetles/lora.yaml?")
    for mistyped in ("lora", "lora.yaml"):
        assert refusal(mistyped).endswith(
            "; did you mean configs/beetles/lora.yaml or configs/butterflies/lora.yaml or configs/species/lora.yaml?"
        )
    assert "configs/beetles/baseline.yaml, " in refusal("xyz/qqq/0")


def test_a_config_is_found_from_any_folder_and_the_current_one_comes_first(here: Path) -> None:
    assert find_config("configs/beetles/lora.yaml") == LORA
    mine = here / "configs" / "beetles" / "lora.yaml"
    mine.parent.mkdir(parents=True)
    write(mine, "seed: 3\n")
    assert find_config("configs/beetles/lora.yaml") == mine


@pytest.mark.jobs
@given(st.text(max_size=20))
@example("{a: 1")
@example("!!timestamp 2024-13-45")
@example("~nosuchuser/x")
@example("*anchor")
@example("!!bool perhaps")
@example("!!int ''")
@example("x" * 5000)
@settings(deadline=None, max_examples=150)
def test_no_override_ends_in_anything_but_trials_or_an_error_for_people(value: str) -> None:
    for key in ("data.source", "optim.lr", "model.encoder", ""):
        try:
            load_experiment(LORA, [f"{key}={value}"])
        except UserError as error:
            assert str(error)


# ---------------------------------------------------------------- the resolved config
times = st.sampled_from(["30", "90:00", "4:00:00", "1-0", "2-12:30:00"])
memories = st.sampled_from(["0", "512", "1.5G", "32GB", "2T"])
texts = awkward.filter(lambda text: len(text) <= 12) | st.sampled_from(
    ["1e-4", "10:00:00", "null", "yes", "010", "2024-01-02", "0x1f", "~", "1_000", "#a", "a: b", "12e5"]
)


@given(
    st.fixed_dictionaries(
        {
            "experiment": st.just("x"),
            "seed": st.integers(0, 2**63 - 1),
            "data": st.fixed_dictionaries({"revision": texts, "targets": st.lists(texts, min_size=1, unique=True)}),
            "optim": st.fixed_dictionaries({"lr": st.floats(0, exclude_min=True, allow_infinity=False)}),
            "model": st.sampled_from(
                [
                    {"encoder": {"kind": "lora", "r": 3}},
                    {"encoder": {"kind": "finetuned"}},
                    {"head": {"kind": "ridge", "alphas": [1e-5, 1e16]}},
                ]
            ),
            "resources": st.fixed_dictionaries({"train": st.fixed_dictionaries({"time": times, "mem": memories})}),
        }
    )
)
@settings(deadline=None)
def test_loading_a_resolved_config_gives_the_same_trial(values: dict[str, Any]) -> None:
    config = Config.model_validate(named(values))
    write("config.yaml", dump_config(config))
    loaded = load_config(Path("config.yaml").resolve())
    assert loaded == config and config_hash(loaded) == config_hash(config)
    assert saved_science(Path("config.yaml")) == science(config)


@pytest.mark.parametrize("method", [path.stem for path in LORA.parent.glob("*.yaml")])
def test_every_methods_resolved_config_gives_the_same_trial(method: str) -> None:
    for trial in load_experiment(LORA.parent / f"{method}.yaml").trials:
        write("config.yaml", dump_config(trial.config))
        assert load_config(Path("config.yaml").resolve()) == trial.config
        assert saved_science(Path("config.yaml")) == science(trial.config)


def test_local_data_and_weights_become_absolute_so_that_a_job_elsewhere_reads_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("data", "photos", "weights"):
        (here / name).mkdir()
    write("tower.safetensors", "")
    overrides = ["data.source=data", "data.images=photos", "backbone.name=local-dir:weights"]
    config = only(LORA, *overrides, "backbone.pretrained=tower.safetensors")
    assert (config.data.source, config.data.images) == (str(here / "data"), str(here / "photos"))
    assert config.backbone.model_dump(include={"name", "pretrained"}) == {
        "name": f"local-dir:{here / 'weights'}",
        "pretrained": str(here / "tower.safetensors"),
    }
    write("config.yaml", dump_config(config))
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert load_config(here / "config.yaml") == config


def test_relative_data_is_looked_for_under_the_root_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "data").mkdir()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert only(LORA, "data.source=data").data.source == str(here / "data")


def test_names_on_the_hub_stay_as_they_are() -> None:
    config = only(LORA)
    assert config.data.source == "imageomics/sentinel-beetles"
    assert config.backbone.model_dump()["name"] == "hf-hub:imageomics/bioclip-2"


# ---------------------------------------------------------------- merge and flatten
scalars = st.integers() | st.text(max_size=3) | st.none() | st.lists(st.integers(), max_size=2)
keys = st.text("abc", min_size=1, max_size=2)
trees = st.recursive(st.dictionaries(keys, scalars, max_size=3), lambda t: st.dictionaries(keys, scalars | t, max_size=3))
forests = trees.filter(lambda tree: all(value != {} for value in flatten_with_empty(tree)))


def flatten_with_empty(tree: dict[str, Any]) -> list[Any]:
    """Every value of a tree, blocks included."""
    return [v for value in tree.values() for v in [value, *(flatten_with_empty(value) if isinstance(value, dict) else [])]]


def blocks_alike(x: Any, y: Any) -> bool:
    """Whether no key is a block in one tree and a value in the other."""
    if isinstance(x, dict) != isinstance(y, dict):
        return False
    return not isinstance(x, dict) or all(blocks_alike(x[k], y[k]) for k in x.keys() & y.keys())


@given(trees)
def test_merging_nothing_changes_nothing(tree: dict[str, Any]) -> None:
    assert merge(tree, {}) == tree == merge({}, tree) == merge(tree, tree)


@given(trees, trees)
def test_merging_leaves_its_arguments_alone(base: dict[str, Any], over: dict[str, Any]) -> None:
    before = repr((base, over))
    merge(base, over)
    assert repr((base, over)) == before


@given(forests, forests)
def test_merged_keys_are_the_upper_trees_first_and_the_lower_trees_where_it_is_silent(
    base: dict[str, Any], over: dict[str, Any]
) -> None:
    merged, top = flatten(merge(base, over)), flatten(over)
    assert {key: merged[key] for key in top} == top
    assert {k: v for k, v in merged.items() if k not in top}.items() <= flatten(base).items() or any(
        isinstance(v, list) for v in flatten(base).values()
    )


@given(trees, trees, trees)
def test_merging_three_trees_does_not_depend_on_which_two_are_merged_first(
    a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    # A scalar between two blocks hides the lower one: only then does the order matter.
    if blocks_alike(a, b) and blocks_alike(b, c) and blocks_alike(a, c):
        assert merge(merge(a, b), c) == merge(a, merge(b, c))


@given(forests, forests)
def test_changes_are_the_flattened_keys_that_differ(tree: dict[str, Any], since: dict[str, Any]) -> None:
    assume(blocks_alike(tree, since))
    before = flatten(since)
    assert changes(tree, since) == {key: value for key, value in flatten(tree).items() if before.get(key) != value}


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans() | st.none())
@example(0.1 + 0.2)
def test_a_value_is_written_so_that_yaml_reads_it_again(value: Any) -> None:
    assert split_overrides([f"x={written(value)}"], Document()) == {"x": [value]}


@given(forests)
def test_flattened_keys_lead_back_to_every_value(tree: dict[str, Any]) -> None:
    for dotted, value in flatten(tree).items():
        place: Any = tree
        for part in dotted.split("."):
            place = place[part]
        assert place == value and not isinstance(value, dict)


def test_what_is_hashed_has_plain_json_values_only() -> None:
    kinds = {type(value) for value in flatten(science(only(LORA))).values()}
    assert kinds <= {str, int, float, bool, list, type(None)}


def test_a_trial_whose_tasks_file_is_gone_can_be_read_and_not_be_queued(tmp_path: Path) -> None:
    own, source, saved = tmp_path / "own.py", tmp_path / "own.yaml", tmp_path / "config.yaml"
    own.write_text("")
    source.write_text("task: own.py")
    config = load_experiment(source).config
    saved.write_text(dump_config(config))
    own.unlink()
    assert load_config(saved) == config
    with pytest.raises(UserError, match=r"own\.yaml, line 1: `task`: there is no file own\.py beside its YAML"):
        load_experiment(source)
