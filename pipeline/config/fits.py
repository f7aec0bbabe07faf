"""What goes with what. A block declares what it needs of other blocks (`fits`); here that is checked, and said.

So a rule stands beside the key or the kind that brings it, a lab's own kind brings its rules along, and all are said in one way:
what asks, why it does not go, what to set instead.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Any

from pipeline.config.per_block import PerBlock
from pipeline.config.section import Section

GIVEN: tuple[Any, ...] = ("given",)
"""Any value but none."""
PLAIN: tuple[Any, ...] = ("plain",)
"""A block whose keys, but for its kind, all are as by default."""
OWN: tuple[Any, ...] = ("own",)
"""What the asking block has at `Fit.when`."""


@dataclass(frozen=True)
class Fit:
    """What a block needs of another; see `check` for how it is said."""

    key: str
    """The dotted key that must be so, or an attribute of a block: `model.head.descends`."""
    of: tuple[Any, ...]
    """The values that fit (where there are several at `key`, one of them must), or GIVEN, or PLAIN, or OWN."""
    why: str
    """Why others do not go, after the name of what asks; `{loss.kind}` becomes that value."""
    when: str = "kind"
    """The block's own key or attribute that asks for it."""
    at: tuple[Any, ...] = ()
    """The values at which it does; (): all but null, 0, false and a block that is PLAIN."""
    hint: str = ""
    """What to set, where key and values do not tell."""
    called: str = ""
    """The block's own key that is named, where `when` is an attribute that follows from it."""

    def asks(self, asking: Any) -> bool:
        """Whether a block that has this at `when` asks for anything."""
        return asking in self.at if self.at else bool(asking) and not _is_plain(asking)

    def goes(self, asking: Any, value: Any) -> bool:
        """Whether `value` at `key` fits a block that has `asking` at `when`, or that one does not ask for it."""
        if not self.asks(asking):
            return True
        if self.of is GIVEN or self.of is PLAIN:
            return value not in (None, ()) if self.of is GIVEN else _is_plain(value)
        several = value if isinstance(value, tuple | frozenset) else (value,)
        return any(each in ((asking,) if self.of is OWN else self.of) for each in several)


Need = tuple[str, Section, Fit, Any]
"""The dotted place of a block, the block, what it needs, and what of it asks for that."""


def check(config: Section, needs: Iterable[Need] | None = None) -> None:
    """Raises ValueError with a line for each need that is not met: `what asks, why it does not go: set this, or that`.

    With `needs` of these alone: where the others are known to be met.
    """
    lines: dict[str, None] = {}
    for path, block, fit, asking in _all_needs(config) if needs is None else needs:
        if not fit.goes(asking, attrgetter(fit.key)(config)):
            remedies = filter(None, (_other(config, fit, asking), _own(config, path, block, fit)))
            lines[f"{_name(path, block, fit)} {fit.why.format(**vars(config))}: set {', or '.join(remedies)}"] = None
    if lines:
        raise ValueError("\n".join(lines))


def _all_needs(config: Section) -> Iterator[Need]:
    return (need for name, value in vars(config).items() if isinstance(value, Section) for need in needs_in(name, value))


def needs_on(config: Section, names: Collection[str]) -> list[Need]:
    """What other fields of a configuration need of those of these names, or of an attribute that may follow from them."""
    others = {name: value for name, value in vars(config).items() if isinstance(value, Section) and name not in names}
    needs = [need for name, value in others.items() for need in needs_in(name, value)]
    asked = [need[2].key.partition(".")[0] for need in needs]
    return [need for need, key in zip(needs, asked, strict=True) if key in names or key not in vars(config)]


def _needs_in(name: str, value: Any) -> list[Need]:
    """Every need of the blocks in a field."""
    blocks = [(path, block, fit) for path, block in _blocks(value, name) for fit in _fits_of(type(block))]
    found = [(path, block, fit, _asking(block, fit.when)) for path, block, fit in blocks]
    return [need for need in found if need[2].asks(need[3])]


needs_in = PerBlock(_needs_in)


def _asking(block: Section, name: str) -> Any:
    """What a block has there; True for a block that stands where there is none by default."""
    value, info = getattr(block, name), type(block).model_fields.get(name)
    return True if isinstance(value, Section) and info and info.default is None else value


@cache
def _fits_of(block: type[Section]) -> tuple[Fit, ...]:
    """What a kind declares, and what its family does for all of them."""
    return tuple(fit for each in block.__mro__ for fit in vars(each).get("fits", ()))


def _blocks(values: Any, path: str = "") -> Iterator[tuple[str, Section]]:
    """Every block with its dotted place, in the order of the configuration."""
    if isinstance(values, Section):
        yield path, values
    for name, inner in vars(values).items() if isinstance(values, Section) else enumerate(values):
        if isinstance(inner, Section | tuple):
            yield from _blocks(inner, f"{path}.{name}".removeprefix("."))


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Section):
        return False
    fields = type(value).model_fields.items()
    return all(getattr(value, name) == info.default for name, info in fields if name != "kind")


# ---------------------------------------------------------------- in words
def _name(path: str, block: Section, fit: Fit) -> str:
    """What asks: `model.pool attention`, `model.species_embedding`, `risk.kind coral`."""
    key = fit.called or (fit.when if fit.when in type(block).model_fields else "kind")
    value = getattr(block, key)
    is_block = isinstance(value[0] if isinstance(value, tuple) and value else value, Section)
    return f"{path}.{key}" + ("" if value is True or is_block else f" {value}")


def _other(config: Section, fit: Fit, asking: Any) -> str:
    """How the other block is made to fit; nothing where it cannot be told."""
    path, _, name = fit.key.rpartition(".")
    block = type(attrgetter(path)(config) if path else config)
    if fit.hint:
        return fit.hint
    if fit.of is GIVEN or fit.of is PLAIN:
        return f"{fit.key} to {'the column that holds it' if fit.of is GIVEN else 'nothing'}"
    if name in block.model_fields:
        return f"{fit.key} {_either(fit.of)}"
    family: dict[str, type[Section]] = getattr(block, "kinds", {})
    return _kinds(path, [kind for kind, each in family.items() if fit.goes(asking, getattr(each, name))])


def _own(config: Section, path: str, block: Section, fit: Fit) -> str:
    """How what asks would ask no longer: by its default, or by another kind of its family if all that it asks then goes."""
    family: dict[str, type[Section]] = getattr(block, "kinds", {})
    own = fit.called or fit.when
    info = type(block).model_fields.get(own)
    if info and (own != "kind" or not family):
        return f"{path}.{own} " + ("to nothing" if isinstance(info.default, Section) else _either((info.default,)))

    def goes(kind: str) -> bool:
        asked = [each for each in _fits_of(family[kind]) if each.when == fit.when]
        return all(each.goes(getattr(family[kind], each.when, kind), attrgetter(each.key)(config)) for each in asked)

    return _kinds(path, list(filter(goes, family)))


def _kinds(path: str, names: list[str]) -> str:
    return f"{path}.kind {_either(tuple(names))}" if names else ""


def _either(values: tuple[Any, ...]) -> str:
    """`a`, `a or b`, `a, b or c`, as they are written in a YAML."""
    words = [v if isinstance(v, str) else f"{v:g}" if isinstance(v, float) else json.dumps(v) for v in values]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
