"""Nested blocks of values: one laid on top of another, what differs between two, and which block has which kind."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from pipeline.config.identity import changes, flatten
from pipeline.config.kinds import blocks_in
from pipeline.config.trial import Config

Tree = dict[str, Any]


def _default_kinds(model: type[BaseModel]) -> Tree:
    """The kind of each block with several, where a YAML names none: {"backbone": {"kind": "open_clip"}, …}."""
    kinds: Tree = {}
    for name, info in model.model_fields.items():
        blocks = blocks_in(info.annotation)
        if len(blocks) > 1:
            kinds[name] = {"kind": info.default.kind}
        elif blocks and (inner := _default_kinds(blocks[0])):
            kinds[name] = inner
    return kinds


DEFAULT_KINDS = _default_kinds(Config)
KIND_KEYS = set(flatten(DEFAULT_KINDS))


def merge(base: Tree, over: Tree, place: str = "") -> Tree:
    """`over` on top of `base`, block by block; a block of another kind replaces the block where its keys are others."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _is_switched(f"{place}{key}", old, value):
            out[key] = merge(old, value, f"{place}{key}.")
        else:
            out[key] = value
    return out


def _is_switched(place: str, old: Tree, new: Tree) -> bool:
    """Whether `new` makes the block at `place` one of another kind. (`optim.kind` is a plain key: all share their keys.)"""
    return f"{place}.kind" in KIND_KEYS and "kind" in new and new["kind"] != old.get("kind")


def override(values: Tree, overrides: Tree) -> Tree:
    """`values` with dotted overrides: whole blocks before their keys, kinds before the keys that only they have."""
    for key, value in sorted(overrides.items(), key=lambda item: (item[0].count("."), not item[0].endswith(".kind"))):
        values = merge(values, nested(key, value))
    return values


def nested(key: str, value: Any) -> Tree:
    """`a.b`, 1 → {"a": {"b": 1}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def differences(old: Tree, new: Tree) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each dotted key that differs; of a block that is of another kind the kind alone."""
    before, after = changes(old, new), changes(new, old)
    keys = dict.fromkeys((*after, *before))
    switched = tuple(key.removesuffix("kind") for key in keys if key in KIND_KEYS)
    return {k: (before.get(k), after.get(k)) for k in keys if k in KIND_KEYS or not k.startswith(switched)}
