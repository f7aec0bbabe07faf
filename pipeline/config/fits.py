"""What goes with what. A block declares what it needs of other blocks (`fits`); here that is checked, and said.

So a rule stands beside the key or the kind that brings it, a lab's own kind brings its rules along, and all are said in one way:
what asks, why it does not go, what to set instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from typing import Any, get_args

from pydantic import BaseModel

from pipeline.config.kinds import blocks_in
from pipeline.config.section import Section

GIVEN: tuple[Any, ...] = ("given",)
"""Any value but none."""
PLAIN: tuple[Any, ...] = ("plain",)
"""A block whose keys, but for its kind, all are as by default."""


@dataclass(frozen=True)
class Fit:
    """What a block needs of another; see `check` for how it is said."""

    key: str
    """The dotted key that must be so, or an attribute of a block: `model.head.descends`."""
    of: tuple[Any, ...]
    """The values that fit (where there are several at `key`, one of them must), or GIVEN, or PLAIN."""
    why: str
    """Why others do not go, after the name of what asks; `{loss.kind}` becomes that value."""
    when: str = "kind"
    """The block's own key or attribute that asks for it."""
    at: tuple[Any, ...] = ()
    """The values at which it does; (): all but null, 0, false and a block that is PLAIN."""
    hint: str = ""
    """What to set, where key and values do not tell."""

    def is_asked_by(self, value: Any) -> bool:
        """Whether the block needs this with that value at `when`."""
        return value in self.at if self.at else bool(value) and not _is_plain(value)

    def takes(self, value: Any) -> bool:
        """Whether that value at `key` fits."""
        if self.of is GIVEN:
            return value not in (None, ())
        several = value if isinstance(value, tuple | frozenset) else (value,)
        return _is_plain(value) if self.of is PLAIN else any(each in self.of for each in several)


def check(config: Section) -> None:
    """Raises ValueError with a line for each need that is not met: `what asks, why it does not go: set this, or that`."""
    lines: dict[str, None] = {}
    for path, block in _blocks(config):
        fits = (*_fits_of(type(block)), *ELSEWHERE.get(path, ()))
        for fit in fits:
            asking = _attribute(block, f"{path}.{fit.when}")
            if fit.is_asked_by(asking) and not fit.takes(_value(config, fit.key)):
                why = re.sub(r"\{([\w.]+)\}", lambda match: str(_value(config, match[1])), fit.why)
                remedies = filter(None, (_other(config, fit), _own(config, path, fit, fits)))
                lines[f"{_name(config, path, fit)} {why}: set {', or '.join(remedies)}"] = None
    if lines:
        raise ValueError("\n".join(lines))


@cache
def _fits_of(block: type[Section]) -> tuple[Fit, ...]:
    """What a kind declares, and what its family does for all of them."""
    return tuple(fit for each in block.__mro__ for fit in vars(each).get("fits", ()))


def _blocks(block: Section, path: str = "") -> Iterator[tuple[str, Section]]:
    """Every block with its dotted place, in the order of the configuration."""
    if path:
        yield path, block
    for name in _inner(type(block)):
        value, place = getattr(block, name), f"{path}.{name}" if path else name
        for n, each in enumerate(value) if isinstance(value, tuple) else ((None, value),):
            if isinstance(each, Section):
                yield from _blocks(each, place if n is None else f"{place}.{n}")


@cache
def _inner(block: type[Section]) -> list[str]:
    """The keys of a block that hold blocks, or lists of them."""
    return [name for name, info in block.model_fields.items() if blocks_in(info.annotation, of_lists=True)]


def _value(config: Section, key: str) -> Any:
    """What stands at a dotted key, or what an attribute of its block says."""
    return _attribute(_at(config, key.rpartition(".")[0]), key)


def _attribute(block: Section | type[BaseModel], key: str) -> Any:
    """What the last part of a key says of a block, or of a class of blocks."""
    return getattr(block, key.rpartition(".")[2], None)


def _at(config: Section, path: str) -> Any:
    def inner(block: Any, part: str) -> Any:
        return block[int(part)] if part.isdigit() else getattr(block, part)

    return reduce(inner, path.split(".") if path else (), config)


def _is_plain(value: Any) -> bool:
    if not isinstance(value, Section):
        return False
    fields = type(value).model_fields.items()
    return all(getattr(value, name) == info.default for name, info in fields if name != "kind")


# ---------------------------------------------------------------- in words
def _name(config: Section, path: str, fit: Fit) -> str:
    """What asks: `model.pool attention`, `model.species_embedding`, `risk.kind coral`."""
    block = _at(config, path)
    key = fit.when if fit.when in type(block).model_fields else "kind"
    value = getattr(block, key)
    return f"{path}.{key}" + ("" if value is True or isinstance(value, Section) else f" {value}")


def _other(config: Section, fit: Fit) -> str:
    """How the other block is made to fit; nothing where it cannot be told."""
    path, _, name = fit.key.rpartition(".")
    block = _at(config, path)
    if fit.hint:
        return fit.hint
    if fit.of is GIVEN:
        return f"{fit.key} to the column that holds it"
    if fit.of is PLAIN:
        return f"{fit.key} to nothing"
    if name in type(block).model_fields:
        return f"{fit.key} {_either(fit.of)}"
    return _kinds(path, [kind for kind, value in _of_kinds(config, fit.key).items() if fit.takes(value)])


def _own(config: Section, path: str, fit: Fit, fits: Sequence[Fit]) -> str:
    """How what asks would ask no longer: by its default, or by another kind of its family."""
    if fit.when != "kind" and (info := type(_at(config, path)).model_fields.get(fit.when)):
        return f"{path}.{fit.when} " + ("to nothing" if isinstance(info.default, Section) else _either((info.default,)))
    if not fit.at:
        return _kinds(path, [kind for kind, own in _of_kinds(config, f"{path}.fits").items() if fit not in own])
    alike = [each for each in fits if (each.key, each.when) == (fit.key, fit.when) and not each.takes(_value(config, fit.key))]
    asking = _of_kinds(config, f"{path}.{fit.when}").items()
    return _kinds(path, [kind for kind, value in asking if not any(each.is_asked_by(value) for each in alike)])


def _kinds(path: str, names: list[str]) -> str:
    return f"{path}.kind {_either(tuple(names))}" if names else ""


def _of_kinds(config: Section, key: str) -> dict[str, Any]:
    """The value of a class' attribute for each kind that may stand in its place."""
    *blocks, name, last = re.sub(r"\.\d+\.", ".", key).split(".")
    found: dict[str, Any] = {}
    for block in blocks_in(type(_at(config, ".".join(blocks))).model_fields[name].annotation, of_lists=True):
        for kind in get_args(block.model_fields["kind"].annotation) if "kind" in block.model_fields else ():
            found[kind] = kind if last == "kind" else _attribute(block, key)
    return found


def _either(values: tuple[Any, ...]) -> str:
    """`a`, `a or b`, `a, b or c`, as they are written in a YAML."""
    words = [v if isinstance(v, str) else f"{v:g}" if isinstance(v, float) else json.dumps(v) for v in values]
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


# ---------------------------------------------------------------- of blocks
TRUTHS = tuple(
    Fit("data.truth", (truth,), "does not fit {data.truth_in_words}", "of", (truth,)) for truth in ("numbers", "classes")
)
SOLVED = "is not trained by gradient descent"
NOT_DESCENDING: dict[tuple[str, tuple[Any, ...]], str] = {
    ("model.encoder.kind", ("frozen",)): SOLVED,
    ("model.pool", ("mean",)): SOLVED,
    ("model.domain_embedding", (False,)): SOLVED,
    ("model.species_embedding", (False,)): SOLVED,
    ("loss.kind", ("mse", "cross_entropy")): "has no use for loss.kind {loss.kind}",
    ("loss", PLAIN): "has no use for options of loss",
    ("risk.kind", ("mean",)): "has no use for risk.kind {risk.kind}",
    ("train.sample", ("images",)): "has no use for train.sample {train.sample}",
    ("augment", PLAIN): "has no use for augment",
    ("select.epoch", ("best",)): "has no epochs",
}
READ = {"patches": "patch tokens", "cut": "tokens at a cut", "images": "images through a network"}
LACKS = "backbone.kind {backbone.kind} {backbone.lacks}"
NOT_LEARNT = "which loss.kind {loss.kind} does not learn"
MIXES = "augment.mixup_alpha mixes them"
NONE = "last hidden layer, and there is none"
ELSEWHERE: dict[str, tuple[Fit, ...]] = {
    "model": (
        Fit("data.columns.species", GIVEN, "learns from names", "species_embedding"),
        Fit("train.sample", ("groups",), "learns from sets of images", "pool", ("attention",)),
        Fit("loss.learns_variance", (True,), f"needs a variance of each image, {NOT_LEARNT}", "pool", ("precision",)),
        Fit("data.truth", ("numbers",), "scales numbers: {data.truth_in_words} have no scale", "standardize_targets"),
        Fit("model.encoder.learns", (False,), "scales what does not learn", "standardize_features"),
        Fit("model.head.descends", (True,), "is for heads that do not scale it themselves", "standardize_features"),
    ),
    "model.encoder": tuple(
        Fit("backbone.offers", (each,), f"reads {words}, and {LACKS}", "reads", (each,)) for each, words in READ.items()
    ),
    "model.head": (*TRUTHS, *(Fit(key, of, why, "descends", (False,)) for (key, of), why in NOT_DESCENDING.items())),
    "loss": (*TRUTHS, Fit("data.columns.auxiliary", GIVEN, "is the weight of labels beside the class", "auxiliary")),
    "risk": (
        Fit("data.columns.domain", GIVEN, "tells domains apart", "tells_domains", (True,)),
        Fit("augment.mixup_alpha", (0.0,), f"tells domains apart, and {MIXES}", "tells_domains", (True,)),
        Fit(
            "model.has_hidden_layer",
            (True,),
            f"acts on the {NONE}",
            "reads_hidden",
            (True,),
            "model.head.hidden to one width or more",
        ),
    ),
}
