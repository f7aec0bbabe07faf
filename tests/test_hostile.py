"""Configurations that nobody means: each is refused at once, in words that name the place; what is merely odd is taken."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.experiments.cluster import load_cluster
from pipeline.experiments.documents import read_value
from pipeline.experiments.reading import load_experiment

BASE = "base: CONFIGS/beetles/frozen.yaml\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def load(folder: Path, text: str, *overrides: str) -> int:
    """How many trials a YAML with this text has."""
    path = folder / "mine.yaml"
    path.write_text(text.replace("CONFIGS", str(Path("configs").resolve())))
    return len(load_experiment(path, overrides).trials)


TOO_DEEP = r"mine\.yaml: not valid YAML: .*too deep"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: !!timestamp x\n", r"mine\.yaml: not valid YAML"),
        ("seed: !!python/object/apply:os.getpid []\n", r"mine\.yaml: not valid YAML: could not determine a constructor"),
        ("seed: !!bool maybe\n", r"mine\.yaml: not valid YAML"),
        ("grid: {true: [1]}\n", r"mine\.yaml, line 2: `true` does not exist"),
        ("1: 2\n", r"mine\.yaml, line 2: `1` does not exist"),
        ("? [a, b]\n: 1\n", r"(?s)mine\.yaml: not valid YAML: .*line 2"),
        ("optim: &o {lr: *o}\n", r"mine\.yaml: not valid YAML: .*in itself"),
        ("optim: " + "[" * 500 + "]" * 500 + "\n", r"mine\.yaml: (not valid YAML: .*too deep|line 2)"),
        *((deep * 100_000, TOO_DEEP) for deep in ("[", "- ", "? ", "{a: ")),
        *((f"{before}optim: {'[' * 100_000}", TOO_DEEP) for before in (f"# {']' * 100_000}\n", "#\u2028", "#\x85", "#\r")),
        (f"experiment: '{'}' * 100_000}'\noptim: {'{a: ' * 100_000}", TOO_DEEP),
        ("#\u2029" + "- " * 100_000, TOO_DEEP),
        ("optim:\n" + "".join(f"{' ' * i}- [\n" for i in range(1, 1100)), TOO_DEEP),
        (BOMB, r"mine\.yaml: not valid YAML: its values are longer than 1,000,000 characters"),
        ('experiment: "a\\0b"\n', r"mine\.yaml: not valid YAML: line 2: .*no name can have"),
        ('experiment: "a\\ud800b"\n', r"(?s)mine\.yaml: not valid YAML: .*invalid Unicode character.* line 2"),
        (f"optim: {{lr: {'9' * 5000}}}\n", r"mine\.yaml"),
    ],
)  # fmt: skip
def test_a_hostile_yaml_is_refused_by_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        load(tmp_path, BASE + text)
    assert len(str(refused.value)) <= 2000


@pytest.mark.parametrize("text", [("[" * 499 + "x ") * 2000, ("[ " * 499 + "] ") * 1000 + "}", ("{a: " * 499 + "x ") * 500])
def test_a_megabyte_of_beginnings_takes_no_long_time(text: str) -> None:
    began = time.process_time()
    with pytest.raises(ValueError, match="while"):
        read_value(text)
    assert time.process_time() - began < 3  # (nine seconds where every beginning was looked at five hundred times)


def test_what_is_indented_far_or_holds_many_brackets_is_not_deep(tmp_path: Path) -> None:
    lists = ", ".join(["[SPEI_30d]"] * 2000)
    text = f"{BASE}data:\n{' ' * 300}# [{{[{{\n  targets: {' ' * 300}[SPEI_30d]\ngrid:\n  data.targets: [{lists}]\n"
    assert load(tmp_path, text) == 1


@pytest.mark.parametrize("base", ['"a\\0b"', "a" * 5000, "..", "/", "[a]", "{a: b}"])
def test_a_base_that_is_no_file_is_refused(tmp_path: Path, base: str) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml"):
        load(tmp_path, f"base: {base}\n")


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("optim: &o {lr: 1e-3}\n", 1),
        ("x: &x [1e-3, 2e-3]\ngrid: {optim.lr: *x}\n", 0),
        ("grid: {seed: &s [0, 1], optim.lr: [1e-3, 2e-3]}\n", 4),
        ("<<: {seed: 3}\n", 1),
    ],
)
def test_anchors_and_merges_that_mean_something_are_taken(tmp_path: Path, text: str, n: int) -> None:
    if n == 0:
        with pytest.raises(UserError, match="`x` does not exist"):
            load(tmp_path, BASE + text)
    else:
        assert load(tmp_path, BASE + text) == n


@pytest.mark.parametrize("value", ["!!timestamp x", "&o {lr: *o}", "[" * 500, '"\\0"', "\x01", "!!int x", "*nowhere"])
def test_a_hostile_override_is_refused_by_its_own_words(tmp_path: Path, value: str) -> None:
    with pytest.raises(UserError, match=r"override 'seed=.*holds what is not a YAML value"):
        load(tmp_path, BASE, f"seed={value}")


def test_a_grid_of_millions_is_refused_at_once_and_names_an_axis(tmp_path: Path) -> None:
    lines = (f"{key}={','.join(map(str, values))}" for key, values in AXES.items())
    with pytest.raises(UserError, match=r"the grid has 8,000,000 trials, more than 100,000: .*optim\.lr"):
        load(tmp_path, BASE, *lines)


AXES = {"optim.lr": range(1, 201), "seed": range(200), "train.epochs": range(1, 201)}


@pytest.mark.parametrize(
    "text",
    [
        "resources: abc\n",
        "resources: [1]\n",
        "resources: 1.5\n",
        "resources: {all: 3}\n",
        "resources: {train: x}\n",
        "paths: 7\n",
    ],
)
def test_a_profile_whose_blocks_are_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"site\.yaml: paths, resources, .* are blocks of keys"):
        load_cluster(str(path))


def test_many_mistakes_are_told_in_few_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        load(tmp_path, BASE + "".join(f"mistake{i}: {i}\n" for i in range(60)))
    assert len(str(refused.value)) < 2000 and "and 52 more" in str(refused.value)


@given(st.text(max_size=30))
def test_any_text_is_a_value_or_no_value(text: str) -> None:
    try:
        read_value(text)
    except ValueError as error:
        assert str(error)
