"""The cells of an experiment's grid: overrides from the command line, the axes of the grid, and those of its variants."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.identity import flatten
from pipeline.config.trial import Config
from pipeline.disk.secrets import hide
from pipeline.errors import UserError, nearest
from pipeline.experiments.documents import Axes, Document, read_value, refuse_secret
from pipeline.experiments.trees import Tree, override

MAX_TRIALS = 100_000  # a longer list is a slip, and nobody would wait for it


def split_overrides(overrides: Sequence[str], document: Document) -> Axes:
    """`key=value` → one value, `key=a,b` → an axis. A key given twice is refused: one of the two would be lost."""
    axes: Axes = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        for part in (key, value):
            refuse_secret(part, f"on the command line: {hide(key)}")
        if not equals or not key:
            raise UserError(f"override {text!r:.100}: write key=value, such as optim.lr=1e-4 (or optim.lr=1e-4,3e-4 for a grid)")
        if key in axes:
            raise UserError(f"override {text!r:.100}: {key} is given twice")
        try:
            axes[key] = [read_value(part) for part in split_commas(value)]
        except ValueError as error:
            raise UserError(f"override {text!r:.100} holds what is not a YAML value: {error}") from error
        document.places[key] = "on the command line"
    return axes


def split_commas(text: str) -> list[str]:
    """Split at commas outside brackets, braces and quotes; as in YAML, a quote inside a word is a letter (O'Brien)."""
    parts, depth, quote, escaped = [""], 0, "", False
    for char in text:
        if escaped:
            escaped = False
        elif quote:
            escaped = quote == '"' and char == "\\"
            quote = "" if char == quote else quote
        elif char in "'\"" and parts[-1].rstrip()[-1:] in ("", *"[{,:'"):
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def choose_variants(variants: dict[str, Axes], names: list[Any] | None, path: Path) -> dict[str, Axes]:
    """The variants of these names, or all; where there are none, one that changes nothing."""
    if names is None:
        return variants or {"": {}}
    for name in map(str, names):
        if name not in variants:
            raise UserError(f"on the command line: `variants`: {path} has no variant {name}; {nearest(name, variants)}")
    return {name: axes for name, axes in variants.items() if name in map(str, names)}


def _emptied(tree: Tree, place: str = "") -> Iterator[str]:
    """The dotted keys of blocks with nothing in them, which are no keys of a flattened tree."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _emptied(value, f"{place}{key}.") if value else [f"{place}{key}"]


def cells(values: Tree, axes: Axes, typed: Axes, validate: Callable[[Tree], Config]) -> Iterator[Config]:
    """Every cell of the grid `axes` under what was typed. The blocks in which nothing varies are those of the first one,
    validated already."""
    axes = axes | typed
    if (n := math.prod(map(len, axes.values()))) > MAX_TRIALS:
        longest = max(axes, key=lambda key: len(axes[key]))
        raise UserError(f"the grid has {n:,} trials, more than {MAX_TRIALS:,}: shorten its axes, such as {longest}")
    varying = {key.partition(".")[0] for key, choices in axes.items() if len(choices) > 1}
    shared: Tree = {}
    for choice in itertools.product(*axes.values()):
        cell = dict(zip(axes, choice, strict=True))
        emptied: Tree = {key: {} for key in _emptied(cell)}
        # Dotted keys, so that of a block that was typed each key wins over that key elsewhere.
        config = validate(override(values, flatten(cell) | flatten({key: cell[key] for key in typed}) | emptied) | shared)
        shared = shared or {name: getattr(config, name) for name in Config.model_fields if name not in varying}
        yield config
