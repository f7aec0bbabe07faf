"""Where whole species are held out the test is opened on purpose alone, a final fit trains on validation images too, and a model
is one of its tree."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from pipeline.config.trial import Config
from pipeline.stages.evaluate import choose_split
from pipeline.stages.inputs import Inputs, changed, identity

FINAL = {"select": {"epoch": "last"}, "evaluate": {"split": "test"}}


def config(split: dict[str, Any], data: dict[str, Any] | None = None, **more: Any) -> Config:
    values = {"source": "x", "label": "y", "columns": {"image": "i"}, "split": split} | (data or {})
    loss = {"kind": "cross_entropy"}
    return Config.model_validate({"task": "classify", "experiment": "x", "data": values, "loss": loss, **more})


def inputs(config: Config) -> Inputs:
    table = pd.DataFrame({"split": ["train", "validation", "test", "unused", "train"], "label": list("aabba")})
    store: Any = SimpleNamespace(bad={4: "bad"}, ingredients=SimpleNamespace(key=lambda: "key"))
    dataset: Any = SimpleNamespace(table=table, learned_from="")
    return Inputs(config, dataset, store, "")


@pytest.mark.parametrize(
    ("split", "evaluate", "opened"),
    [
        ({"kind": "species"}, "auto", "validation"),
        ({"kind": "species"}, "test", "test"),
        ({"kind": "folds"}, "auto", "test"),
        ({"kind": "source"}, "auto", "test"),
    ],
)
def test_auto_opens_no_test_where_species_are_held_out(split: dict[str, Any], evaluate: str, opened: str) -> None:
    each = config(split, evaluate={"split": evaluate})
    assert choose_split(each, inputs(each)) == opened


def test_a_final_fit_trains_on_the_rows_that_validate_too() -> None:
    plain, final = inputs(config({"kind": "species"})), inputs(config({"kind": "species", "trainval": True}, **FINAL))
    assert list(plain.positions("train")) == [0] and list(final.positions("train")) == [0, 1]
    assert list(plain.positions("validation")) == list(final.positions("validation")) == [1]
    assert list(final.positions("test")) == [2]


def test_a_model_is_trained_again_when_its_tree_has_changed(tmp_path: Path) -> None:
    tree = tmp_path / "tree.nwk"
    tree.write_text("(A_a:1,B_b:1);")
    with_tree = inputs(config({"kind": "species"}, {"tree": str(tree)}))
    before = identity(with_tree)
    assert changed(before, with_tree) == [] and "tree_hash" not in identity(inputs(config({"kind": "species"})))
    tree.write_text("(A_a:1,B_b:2);")
    assert changed(before, with_tree) == ["the tree (data.tree)"]
