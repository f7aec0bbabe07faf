"""A key that is added later with a default that keeps the old behaviour leaves what was trained before valid."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.config import identity
from pipeline.config.identity import config_hash, digest, features_of, images_of, only_science, plain, science
from pipeline.config.kinds import Kind, blocks_in
from pipeline.config.section import LATER
from pipeline.config.trial import Config
from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.writing import read_json
from pipeline.experiments.documents import read_document
from pipeline.experiments.names import HASH_DIGITS
from pipeline.experiments.reading import load_config, saved_science
from pipeline.features.store import is_complete
from pipeline.reporting.state import trial_state
from pipeline.stages.ensemble import update_ensembles
from tests.fixtures.write import ENSEMBLE, FOLDER
from tests.fixtures.write import identity as identity_of
from tests.small import named

ADDED = "added_later"
TRIALS: list[dict[str, Any]] = [
    {"model": {"encoder": {"kind": "lora"}}, "data": {"split": {"kind": "folds"}}},
    {"backbone": {"kind": "concat"}, "evaluate": {"split": "test"}},
    {"backbone": {"kind": "dinov2"}, "model": {"encoder": {"kind": "patch_convs"}}, "loss": {"kind": "crps"}},
    {"backbone": {"kind": "pixels"}, "model": {"head": {"kind": "ridge"}}},
    {"data": {"label": "kind"}, "loss": {"kind": "cross_entropy"}, "model": {"head": {"kind": "svc"}}},
]


def blocks() -> list[type[BaseModel]]:
    """Every block of a configuration, each after those that it holds."""
    found: dict[type[BaseModel], None] = {}
    visited: set[type[BaseModel]] = set()  # parts of a concatenation are backbones, as it is one

    def visit(block: type[BaseModel]) -> None:
        visited.add(block)
        for info in block.model_fields.values():
            for inner in blocks_in(info.annotation, of_lists=True):
                if inner not in visited:
                    visit(inner)
        found[block] = None

    visit(Config)
    return list(found)


BLOCKS = blocks()


@cache
def holding(changed: frozenset[type[BaseModel]]) -> list[type[BaseModel]]:
    """These blocks and all that hold one of them, in the order of BLOCKS."""
    held = {each for each in BLOCKS if changed & {inner for info in each.model_fields.values() for inner in _blocks(info)}}
    return [each for each in BLOCKS if each in changed] if held <= changed else holding(changed | held)


def _blocks(info: FieldInfo) -> Iterable[type[BaseModel]]:
    return blocks_in(info.annotation, of_lists=True)


@contextmanager
def another_key(block: type[BaseModel]) -> Iterator[None]:
    """The block, and kinds that inherit from it, with one more key that is LATER."""
    changed = [each for each in BLOCKS if issubclass(each, block)]
    for each in changed:
        each.__pydantic_fields__[ADDED] = FieldInfo.from_annotated_attribute(Annotated[int, LATER], 7)  # type: ignore[arg-type]
    made = [value for each in BLOCKS for info in each.model_fields.values() for value in _within(info.default)]
    for value in made:  # defaults are instances, made before the key was added
        if type(value) in changed:
            value.__dict__[ADDED] = 7
    _rebuild(changed)
    try:
        yield
    finally:
        for value in made:
            value.__dict__.pop(ADDED, None)
        for each in changed:
            del each.__pydantic_fields__[ADDED]
        _rebuild(changed)


def _within(value: Any) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
    inner = value.__dict__.values() if isinstance(value, BaseModel) else value if isinstance(value, tuple) else ()
    for each in inner:
        yield from _within(each)


def _rebuild(changed: Iterable[type[BaseModel]]) -> None:
    for each in holding(frozenset(changed)):
        each.model_rebuild(force=True)
    identity._steps.cache_clear()


def identities(values: dict[str, Any]) -> list[Any]:
    config = Config.model_validate(named({"experiment": "x", **values}))
    saved = digest(only_science(config.model_dump(mode="json")))
    assert saved == config_hash(config)
    return [saved, digest(images_of(config.data)), digest(features_of(config)), plain(config.evaluate)]


def _valid(tree: dict[str, Any]) -> Config | None:
    try:
        return Config.model_validate(tree)
    except ValidationError:  # a head that has no use for options of a loss
        return None


def _set(values: Any, block: type[BaseModel], model: Any) -> bool:
    """Put another value of the added key into the first block of this class in a dump; whether there is one."""
    if type(model) is block:
        values[ADDED] = 8
        return True
    inner = [(values[name], getattr(model, name)) for name in type(model).model_fields if name in values]
    pairs = [pair for v, m in inner for pair in (zip(v, m, strict=True) if isinstance(m, tuple) else [(v, m)])]
    return any(_set(v, block, m) for v, m in pairs if isinstance(m, BaseModel))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_a_key_that_is_added_to_any_block_changes_no_identity_while_it_is_as_by_default(block: type[BaseModel]) -> None:
    before = [identities(values) for values in TRIALS]
    configs = [Config.model_validate(named({"experiment": "x", **values})) for values in TRIALS]
    trees = [config.model_dump(mode="json") for config in configs]
    with another_key(block):
        assert [identities(values) for values in TRIALS] == before
        for config, tree in zip(configs, trees, strict=True):
            old = science(Config.model_validate(tree))
            if _set(tree, block, config) and (new := _valid(tree)):
                is_science = science(new) != old
                module = block.__module__.rpartition(".")[2]
                block_is_science = module not in ("resources", "tracking") and block.__name__ not in ("Evaluate", "Download")
                assert is_science == block_is_science
    assert [identities(values) for values in TRIALS] == before
    assert not issubclass(block, Kind) or block.kinds


def test_a_trial_with_a_default_of_earlier_code_is_the_one_with_that_of_today() -> None:
    """What was saved with all defaults written out stays what it was."""
    before = ["NA", "N/A", "#N/A", "nan", "NULL", "None", "NaT", "<NA>", "-", "?"]
    for values in TRIALS:
        saved = {**values, "data": {**values.get("data", {}), "missing": before}}
        assert identities(saved) == identities(values)
        assert identities({**saved, "data": {**saved["data"], "missing": before[1:]}})[0] != identities(values)[0]


# ---------------------------------------------------------------- trials of earlier code
KEPT = sorted(path.parent for path in FOLDER.glob("*/*/identity.json"))
FAMILIES: dict[str, Callable[[Config], Any]] = {
    "backbone": lambda config: config.backbone,
    "encoder": lambda config: config.model.encoder,
    "head": lambda config: config.model.head,
    "loss": lambda config: config.loss,
    "risk": lambda config: config.risk,
    "split": lambda config: config.data.split,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trial_of_each_kind_is_kept(family: str) -> None:
    blocks = [FAMILIES[family](Config.model_validate(_values(folder))) for folder in KEPT]
    base: Any = next(each for each in type(blocks[0]).__mro__ if Kind in each.__bases__)
    own = {kind for kind, block in base.kinds.items() if block.__module__.startswith("pipeline.")}
    assert {block.kind for block in blocks} == own and len(own) > 2


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.name)
def test_a_trial_of_earlier_code_is_known_again_and_done(folder: Path, tmp_path: Path) -> None:
    _is_known_again(folder)
    trial, config = TrialDir(tmp_path), load_config(folder / "config.yaml")
    shutil.copy(folder / "trained.json", trial.trained)
    assert trial_state(trial, config).state == "trained" and config == Config.model_validate(_values(folder))


def test_an_ensemble_of_earlier_code_is_not_made_again(tmp_path: Path) -> None:
    _ensemble_is_kept(tmp_path / "x")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.__name__)
def test_trials_of_earlier_code_are_done_when_a_key_is_added(block: type[BaseModel], tmp_path: Path) -> None:
    with another_key(block):
        for folder in KEPT:
            _is_known_again(folder)
        _ensemble_is_kept(tmp_path / "x")


@cache
def _values(folder: Path) -> dict[str, Any]:
    """What stands in its config.yaml: parsing it takes longer than all else here."""
    return read_document(folder / "config.yaml", ()).values


def _is_known_again(folder: Path) -> None:
    config, saved = Config.model_validate(_values(folder)), saved_science(folder / "config.yaml")
    assert identity_of(config) == read_json(folder / "identity.json")
    assert digest(saved) == config_hash(config) and folder.name.rpartition("-")[2] == config_hash(config)[:HASH_DIGITS]
    assert trial_state(TrialDir(folder), config).state == "done"
    here = config.model_copy(update={"paths": config.paths.model_copy(update={"features": str(FOLDER / "features")})})
    assert is_complete(here, read_json(folder / "trained.json")["feature_key"])


def _ensemble_is_kept(copy: Path) -> None:
    shutil.copytree(FOLDER / ENSEMBLE, copy)
    experiment = ExperimentDir(copy)
    (before,) = experiment.ensembles()
    assert not update_ensembles(experiment)
    assert experiment.ensembles() == [before] and len(read_json(before.results)["made_from"]) == 2
