"""Nested blocks of values: one laid on top of another, what differs between two, and which block has which kind."""

from typing import Any

from pydantic import BaseModel

from pipeline.config.identity import changes, flatten
from pipeline.config.kinds import Kind, blocks_in
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


def _families(model: type[BaseModel], place: str = "") -> dict[str, type[Kind]]:
    """The family of each block with several kinds, by the dotted key of its kind."""
    found: dict[str, type[Kind]] = {}
    for name, info in model.model_fields.items():
        blocks = blocks_in(info.annotation)
        if len(blocks) > 1:
            found[f"{place}{name}.kind"] = next(each for each in blocks[0].__mro__ if Kind in each.__bases__)
        elif blocks:
            found |= _families(blocks[0], f"{place}{name}.")
    return found


FAMILIES = _families(Config)


def _replaces(key: str, old: Tree, new: Tree) -> bool:
    """Whether a block is of another class than the one that it is laid on: kinds of one class (crps and nll, a constant rate and
    a cosine) share their keys, and so do all of `optim`, whose kind is a plain key."""
    before, after = old.get("kind"), new.get("kind", old.get("kind"))
    if key not in FAMILIES or before == after:
        return False
    kinds = FAMILIES[key].kinds
    one, other = kinds.get(str(before)), kinds.get(str(after))
    return one is None or one is not other


def merge(base: Tree, over: Tree, place: str = "") -> Tree:
    """`over` on top of `base`, block by block; of a block under one of another kind with other keys stays what each
    of the family has (of a backbone its views)."""
    out = dict(base)
    for key, value in over.items():
        old, out[key] = out.get(key), value
        if isinstance(old, dict) and isinstance(value, dict):
            kind = f"{place}{key}.kind"
            stays = {k: old[k] for k in FAMILIES[kind].model_fields if k in old} if _replaces(kind, old, value) else old
            out[key] = merge(stays, value, f"{place}{key}.")
    return out


def _default_of(key: str) -> Tree:
    """A block as a YAML without it has it: the kinds alone."""
    block: Any = DEFAULT_KINDS
    for part in key.split("."):
        block = block.get(part, {}) if isinstance(block, dict) else {}
    return block if isinstance(block, dict) else {}


def override(values: Tree, overrides: Tree) -> Tree:
    """`values` with dotted overrides: whole blocks before their keys, kinds before the keys that only they have. A block that is
    set to {} is put back to what it is by default: to lay nothing on it would change nothing."""
    for key, value in sorted(overrides.items(), key=lambda item: (item[0].count("."), not item[0].endswith(".kind"))):
        if value == {}:
            values, value = override(values, {key: None}), _default_of(key)
        for part in reversed(key.split(".")):
            value = {part: value}
        values = merge(values, value)
    return values


def differences(old: Tree, new: Tree) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each dotted key that differs; of a block that is of another kind the kind alone."""
    before, after = changes(old, new), changes(new, old)
    keys = dict.fromkeys((*after, *before))
    switched = tuple(key.removesuffix("kind") for key in keys if key in KIND_KEYS)
    return {k: (before.get(k), after.get(k)) for k in keys if k in KIND_KEYS or not k.startswith(switched)}
