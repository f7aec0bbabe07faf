"""The cells of an experiment's grid: overrides from the command line, the axes of the grid, and those of its variants."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.fits import Need, needs_on
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
    """Every cell of the grid `axes` under what was typed. Cells that make the same choices in a block share it: it is read and
    validated once."""
    axes = axes | typed
    if (n := math.prod(map(len, axes.values()))) > MAX_TRIALS:
        longest = max(axes, key=lambda key: len(axes[key]))
        raise UserError(f"the grid has {n:,} trials, more than {MAX_TRIALS:,}: shorten its axes, such as {longest}")
    places: dict[str, list[int]] = {}
    for place, (key, choices) in enumerate(axes.items()):
        if len(choices) > 1:
            places.setdefault(key.partition(".")[0], []).append(place)
    first: Config | None = None
    needs: list[Need] = []
    known: dict[tuple[Any, ...], Any] = {}
    for choice in itertools.product(*(range(len(choices)) for choices in axes.values())):
        chosen = {name: (name, *(choice[place] for place in of)) for name, of in places.items()}
        blocks = {name: known[key] for name, key in chosen.items() if key in known}
        config = _joined(first, blocks, needs) if first and len(blocks) == len(chosen) else None
        if config is None:
            cell = {key: choices[i] for (key, choices), i in zip(axes.items(), choice, strict=True)}
            others = {name: getattr(first, name) for name in Config.model_fields if name not in places} if first else {}
            config = validate(_cell(values, cell, typed) | others | blocks)
            known |= {key: getattr(config, name) for name, key in chosen.items()}
        if first is None:
            first, needs = config, needs_on(config, places)
        yield config


def _joined(first: Config, blocks: Tree, needs: list[Need]) -> Config | None:
    """The first cell with other blocks that are validated; None where they do not go together, which `validate` says in words."""
    try:
        return first.holding(blocks, needs)
    except ValueError:
        return None


def _cell(values: Tree, cell: Tree, typed: Axes) -> Tree:
    """The values of one cell. Dotted keys, so that of a block that was typed each key wins over that key elsewhere."""
    emptied: Tree = {key: {} for key in _emptied(cell)}
    return override(values, flatten(cell) | flatten({key: cell[key] for key in typed}) | emptied)
