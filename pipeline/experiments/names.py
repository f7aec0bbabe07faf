"""What each trial's folder is called: the values that distinguish it from its YAML, its seed, and a short hash."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from typing import Any

from pipeline.config.identity import changes, config_hashes, flatten, told, told_of
from pipeline.config.per_block import PerBlock, distinct
from pipeline.config.trial import Config
from pipeline.disk.layout import experiment_dir
from pipeline.errors import UserError
from pipeline.experiments.trees import KIND_KEYS, Tree, differences

Kinds = tuple[tuple[str, Any], ...]
"""The kind of each block that has one."""
MAX_LABEL = 96
HASH_DIGITS = 8
"""Among 1,000 trials of an experiment two share eight digits once in 8,000 experiments; six, once in 34."""
UNNAMED = {"seed", "data.source", "data.images"}
"""Not part of what a folder's name tells: the seed has its own place at the end, a place on disk says nothing."""


def name_trials(configs: list[Config], plain: Config) -> list[tuple[str, Config]]:
    """Name each trial by what distinguishes it from the YAML, and by its hash; a folder of that hash keeps its name."""
    existing = {name.rpartition("-")[2]: name for name in sorted(experiment_dir(configs[0]).folders())}
    by_hash: dict[str, tuple[str, Config]] = {}
    blocks = distinct(configs)
    labels = _Labels(configs, plain, blocks)
    hashes = config_hashes(configs, {name for name, of in blocks.items() if len(of) > 1})
    for config, full in zip(configs, hashes, strict=True):
        if full not in by_hash:
            short = full[:HASH_DIGITS]
            by_hash[full] = existing.get(short) or f"{labels.of(config)}-{short}", config
        elif (twin := by_hash[full][1]) != config:
            differ = ", ".join(differences(twin.model_dump(mode="json"), config.model_dump(mode="json")))
            raise UserError(
                f"two trials of the grid differ in {differ} alone, which makes no other model: both would have one folder. "
                "Give one value at a time."
            )
    return list(by_hash.values())


class _Labels:
    """What tells trials apart, beside their hash: a field of the configuration at a time, for most trials share most blocks."""

    def __init__(self, configs: Sequence[Config], plain: Config, blocks: dict[str, list[Any]]) -> None:
        self._configs, self._base = configs, told(plain)
        self._known = flatten(self._base)  # (the YAML may have another value of a key that both kinds have)
        self._changed, self._flat = PerBlock(self._changed_in), PerBlock(_flat_of)
        self._kinds_in = PerBlock(self._kinds_of)
        self._varying = cache(self._varying_among)
        self._telling = [name for name, of in blocks.items() if any(self._changed(name, value) for value in of)]

    def of(self, config: Config) -> str:
        """What differs from the YAML, but for what is new with another kind and as by default. `loss.kind` is called `loss`.

        Where that is too long, of what is not a kind or a name only what differs among the trials of these kinds.
        """
        changed: Tree = {}
        for name in self._telling:
            changed |= self._changed(name, getattr(config, name))
        parts = _parts(changed, config.seed)
        if len(",".join(parts)) > MAX_LABEL:
            differ = self._varying(self._kinds(config))
            kept = {k: v for k, v in changed.items() if k in differ | KIND_KEYS or k.endswith(".name")}
            parts = _parts(kept, config.seed)
        label = ",".join(parts)
        return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - len(parts[-1]) - 3].rstrip(",") + "..," + parts[-1]

    def _changed_in(self, name: str, value: Any) -> Tree:
        """What differs from the YAML in one field, by dotted key."""
        values = told_of(name, value)
        changed = {key: value for key, value in changes(values, self._base).items() if key not in UNNAMED}
        for key in [key for key in changed if key in KIND_KEYS]:
            block = key.removesuffix("kind")
            inner = block.partition(".")[2].removesuffix(".")
            section = attrgetter(inner)(value) if inner else value
            ordinary = flatten(type(section)(kind=section.kind).model_dump(mode="json"))
            changed = {
                k: v
                for k, v in changed.items()
                if k == key or k in self._known or ordinary.get(k.removeprefix(block)) != v or not k.startswith(block)
            }
        return changed

    def _kinds(self, config: Config) -> Kinds:
        return tuple(kind for name in Config.model_fields for kind in self._kinds_in(name, getattr(config, name)))

    def _kinds_of(self, name: str, value: Any) -> Kinds:
        return tuple((key, flat[key]) for key in sorted(KIND_KEYS) if key in (flat := self._flat(name, value)))

    def _varying_among(self, kinds: Kinds) -> set[str]:
        """The keys in which trials differ that are of these kinds: all of a variant's are, mostly, and of no other's."""
        alike = [config for config in self._configs if self._kinds(config) == kinds]
        found = set()
        for name, blocks in distinct(alike).items():
            flat = [self._flat(name, block) for block in blocks]
            found |= {key for key, value in flat[0].items() if any(other.get(key) != value for other in flat[1:])}
        return found


def _flat_of(name: str, value: Any) -> Tree:
    return flatten(told_of(name, value))


def _parts(changed: Tree, seed: int) -> list[str]:
    """Each key is called by its last part, with the block before it where two have that in common."""
    words = _words(tuple(changed))
    return [f"{word}={_short(value)}" for word, value in zip(words, changed.values(), strict=True)] + [f"seed={seed}"]


@cache
def _words(keys: tuple[str, ...]) -> list[str]:
    parts = [key.removesuffix(".kind").split(".") for key in keys]
    last = Counter(part[-1] for part in parts)
    return [".".join(part[-2:] if last[part[-1]] > 1 else part[-1:]) for part in parts]


def _short(value: Any) -> str:
    """A value as it may stand in a folder's name: 3e-4, not 0.0003; the last part of a path; no other characters."""
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, dict):  # a block in a list of blocks
        return _short(value.get("name") or value.get("kind"))
    text = "x".join(map(_short, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text.rstrip("/").rpartition("/")[2])[:40]


@cache
def _short_float(value: float) -> str:
    if value != 0 and abs(value) < 0.01:
        mantissa, exponent = f"{value:e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:g}"


def written(value: Any) -> str:
    """A value as a person would write it in a YAML: 3e-4, null, [512, 128]."""
    if isinstance(value, float):
        short = _short_float(value)
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
