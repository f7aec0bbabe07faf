"""A YAML merged with its parents, and where each of its dotted keys stands.

A list in `grid:` or in a variant is a grid axis. Each variant is a grid of its own beside the others:

    variants:
      pixels: {backbone: {kind: pixels, size: [16, 32]}, model.head.kind: ridge}
      network: {backbone.name: ViT-B-32, optim.lr: [1e-4, 3e-4]}
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent

from pipeline.config.identity import flatten
from pipeline.config.trial import Config
from pipeline.disk.layout import SHIPPED
from pipeline.disk.secrets import hide, hiding
from pipeline.errors import UserError
from pipeline.experiments.trees import DEFAULT_KINDS, Tree, merge

Axes = dict[str, list[Any]]
"""Dotted keys with the values that each of them takes, a fixed one has one."""
BLOCKS_OF_EXPERIMENT = ("base", "grid", "variants")
EXAMPLE_VARIANTS = "`variants: {small: {backbone.name: RN50}, large: {backbone.name: ViT-L-14, optim.lr: [1e-4, 3e-4]}}`"
SHARED_BY_TRIALS = {"experiment", "resources", "launch", "paths", "train.processes"}
"""What all trials of an experiment have in common: it is one folder, and its jobs ask for the same."""
MERGED = "a merged key"  # (`<<`)
INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")


MAX_CHARACTERS = 1_000_000  # of a YAML's values, aliases written out: a few hundred bytes of these can name gigabytes


DEEPEST = 1000
"""Blocks and lists in one another: libyaml reads them by recursion, whose end would be that of the process."""
BEGINNINGS = re.compile(r"(?:[\[{]\s*+(?:[a-z]+:\s*+)?+|[-?] )++")
"""Those that begin behind each other. (Of a run nothing is read twice: a megabyte of them takes no time.)"""


class _Yaml(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """SafeLoader, by libyaml if it is there, with YAML 1.2's scalars (1e-4 is a float, 10:00:00 and 2024-01-02 are text, 010 is
    ten)."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:int", INTEGER, list("-+0123456789"))
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?[0-9]+[eE][-+]?[0-9]+$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


class YamlDumper(yaml.SafeDumper):
    """Quotes the text that `_Yaml` would read as a number, and no other."""

    yaml_implicit_resolvers = _Yaml.yaml_implicit_resolvers


@dataclass(frozen=True)
class Layer:
    """Values that lie below an experiment's own (a cluster profile's), and where each dotted key stands."""

    values: Tree = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)


@dataclass
class Document:
    """A YAML merged with its parents, and where each dotted key stands."""

    values: Tree = field(default_factory=dict)
    grid: Axes = field(default_factory=dict)
    variants: dict[str, Axes] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def places_in(self, variant: str, typed: Axes) -> dict[str, str]:
        """Where the keys of a variant's trials stand: on the command line, in the variant, elsewhere."""
        prefix = f"variants.{variant}."
        own = {key.removeprefix(prefix): place for key, place in self.places.items() if key.startswith(prefix)}
        return self.places | own | {key: self.places[key] for key in typed}


def read_document(path: Path, children: tuple[Path, ...]) -> Document:
    if path in children:
        raise UserError(f"{path}: its base leads back to itself: {' → '.join(p.name for p in (*children, path))}")
    values, places = read_yaml(path)
    _check_blocks(values, places, path)
    grid = values.pop("grid", None) or {}
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        raise UserError(f"{path}: grid must map dotted keys to non-empty lists, such as `optim.lr: [1e-4, 3e-4]`")
    variants = _read_variants(values.pop("variants"), places, path) if "variants" in values else None
    for block in (values, grid, *(variants or {}).values()):
        if "task" in block:
            block["task"] = _task_files(block["task"], path)
    parent = Document(DEFAULT_KINDS)
    if base := values.pop("base", None):
        parent = read_document(_find_base(path, str(base), places.get("base", MERGED)), (*children, path))
    said, lower = flatten(values), {key: value for key, value in parent.values.items() if key != "experiment"}
    if variants is None:
        variants = {name: _without(axes, said | grid) for name, axes in parent.variants.items()}
    grid = _without(parent.grid, said) | grid
    places = {key.removeprefix("grid."): f"{path}, {line}" for key, line in places.items()}
    return Document(merge(lower, values), grid, variants, parent.places | places)


def _find_base(path: Path, base: str, line: str) -> Path:
    """A parent beside its child, else one that came with the package (`configs/beetles/lora.yaml`)."""
    for candidate in (path.parent / base, SHIPPED / base):
        if os.path.isfile(candidate):
            return candidate.resolve()
    raise UserError(f"{path}, {line}: base {base} does not exist (looked for {(path.parent / base).resolve()})")


def _task_files(task: Any, path: Path) -> Any:
    """A task that is a file beside its YAML, or a list of such, as absolute paths; a stock task's name as it is."""
    if isinstance(task, list):
        return [_task_files(each, path) for each in task]
    own = path.parent / Path(str(task)).expanduser()
    return str(own.resolve()) if str(task).endswith(".py") and os.path.isfile(own) else task


def _without(axes: Axes, said: Tree) -> Axes:
    """A parent's axes but for the keys of which its child says something itself."""
    return {key: values for key, values in axes.items() if key not in said}


def read_yaml(path: Path) -> tuple[Tree, dict[str, str]]:
    """A YAML's values, and the line on which each dotted key stands. Raises UserError where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        hide_in = hiding()
        for number, line in enumerate(text.splitlines(), 1):  # comments too: the file is kept as it is
            refuse_secret(line, f"{path}, line {number}", hide_in)
        node, values = _parse(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    values = values if node else {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: an experiment is a mapping of keys to values, this is a {type(values).__name__}")
    return values, dict(_lines(node, path)) if node else {}


@lru_cache(maxsize=256)
def read_block(text: str) -> tuple[str, Any]:
    """A block of the top level, `key: value` with all that is indented below it."""
    key, _, value = text.partition(":")
    return key, read_value(value)


def read_value(text: str) -> Any:
    """A YAML value. Whole numbers are read by themselves: thousands of trials differ in their seeds alone. Raises ValueError."""
    return int(text) if INTEGER.match(text.strip()) else _parse(text)[1]


def _parse(text: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a YAML, and its values. Raises ValueError saying what is wrong with it."""
    try:
        if _is_deep(text):
            raise RecursionError
        loader = _Yaml(text)
        node = loader.get_single_node()
        _have_text_for_keys(node, set())
        if node and _size(node, {}) > MAX_CHARACTERS:
            raise ValueError(f"its values are longer than {MAX_CHARACTERS:,} characters, aliases written out")
        return node, loader.construct_document(node) if node else None
    except Exception as error:  # PyYAML raises errors of many kinds on text that is meant for no YAML
        is_deep = isinstance(error, RecursionError)
        raise ValueError("its values lie too deep in one another, or one in itself" if is_deep else f"{error}") from error


def _is_deep(text: str) -> bool:
    """Whether blocks and lists lie too deep in one another, each of which begins with one of five characters. Told by the events
    that libyaml reads: for these it does not go into itself, as it does to make nodes of them, until its stack ends."""
    if sum(map(text.count, "[{-?:")) <= DEEPEST:
        return False
    events = yaml.parse(text, Loader=_Yaml)
    steps = (isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent) for event in events)
    try:
        return any(depth > DEEPEST for depth in accumulate(steps))
    except yaml.YAMLError:  # it looks a thousand characters ahead for the end of a key, and finds more of the same
        if any(sum(map(run.count, "[{-?")) >= DEEPEST // 2 for run in BEGINNINGS.findall(text)):
            return True
        raise


def _have_text_for_keys(node: yaml.Node | None, seen: set[int]) -> None:
    """`on: 1` and `7: 1` have text for keys; but `<<` merges."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    for part in node.value:
        key, value = part if isinstance(part, tuple) else (None, part)
        if key is not None and key.tag != "tag:yaml.org,2002:merge":
            key.tag = "tag:yaml.org,2002:str"
        _have_text_for_keys(value, seen)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Characters of a node's values with those below it. Raises ValueError for one that no file or name can have."""
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value or node.value != node.value.encode(errors="replace").decode():
            raise ValueError(f"line {node.start_mark.line + 1}: {node.value!r:.100} holds a character that no name can have")
        return len(node.value) + 1
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _lines(node: yaml.Node, path: Path, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Each dotted key of a YAML node with `line N`; a key that stands twice is an error, not a silent winner."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        line = key.start_mark.line + 1
        if key.value in seen:
            raise UserError(f"{path}, line {line}: {prefix}{key.value} stands twice in one block: keep one")
        seen.add(key.value)
        yield f"{prefix}{key.value}", f"line {line}"
        yield from _lines(value, path, f"{prefix}{key.value}.")


def _check_blocks(values: Tree, places: dict[str, str], path: Path) -> None:
    """Refuse a mistyped name of a block that is of an experiment and not of a trial: no model knows it."""
    for key in map(str, values):
        near = difflib.get_close_matches(key, BLOCKS_OF_EXPERIMENT, n=1, cutoff=0.8)
        if near and key not in (*near, *Config.model_fields):
            raise UserError(f"{path}, {places.get(key, MERGED)}: `{key}` does not exist, but `{near[0]}` does")


def _read_variants(variants: Any, places: dict[str, str], path: Path) -> dict[str, Axes]:
    """The axes of each variant, by its name. Raises UserError where they are none."""
    found: dict[str, Axes] = {}
    for name, block in _mapping(variants, f"{path}, {places.get('variants', MERGED)}: variants").items():
        place = f"{path}, {places.get(f'variants.{name}', places.get('variants', MERGED))}: variant {name!r}"
        found[str(name)] = _axes_of(_mapping(block, place), place)
    return found


def _mapping(value: Any, place: str) -> Tree:
    """A mapping, or nothing at all: what is none is refused with an example."""
    if isinstance(value, dict | None):
        return value or {}
    raise UserError(f"{place} must map names to keys with their values, such as {EXAMPLE_VARIANTS}")


def _axes_of(block: Tree, place: str) -> Axes:
    """A variant's blocks and dotted keys, all as dotted keys: a list is an axis, a plain value one of length 1."""
    axes: Axes = {}
    for key, value in [pair for item in block.items() for pair in flatten(dict([item])).items()]:
        if {key, key.partition(".")[0]} & SHARED_BY_TRIALS:
            raise UserError(f"{place}: all trials of an experiment share {key}: set it outside of the variants")
        if key in axes:
            raise UserError(f"{place}: {key} stands twice in it: keep one")
        if value == []:
            raise UserError(f"{place}: {key} is a list of no values; a list that is a value is written in a list: [[]]")
        axes[key] = value if isinstance(value, list) else [value]
    return axes


def refuse_secret(text: str, place: str, hide_in: Callable[[str], str] = hide) -> None:
    """Configurations are kept with results, and overrides with the commands that made them."""
    if hide_in(text) != text:
        raise UserError(
            f"{place}: a token or password must not stand in a configuration. Remove it; the Hub's token is read from "
            "HF_TOKEN in the environment, or from where `hf auth login` keeps it."
        )
