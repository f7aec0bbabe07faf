"""From a YAML and `key=value` overrides to trials: parents, overrides, grid, variants, names, and errors that show the place.

Precedence, weakest first: the models' defaults, the cluster profile's resources and paths, the YAML's parents (`base:`),
the YAML, its `grid:` block, its `variants:` block, the command line. A comma list on the command line, or a list in `grid:` or
in a variant, is a grid axis; `key=[a,b]` is a list value, not an axis. Each variant is a grid of its own beside the others:

    variants:
      pixels: {backbone: {kind: pixels, size: [16, 32]}, model.head.kind: ridge}
      network: {backbone.name: ViT-B-32, optim.lr: [1e-4, 3e-4]}

This module loads no torch.
"""

from __future__ import annotations

import difflib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.identity import changes, digest, flatten, only_science, science
from pipeline.config.trial import Config
from pipeline.disk.layout import PROJECT, ExperimentDir, experiment_dir, root
from pipeline.disk.secrets import hide
from pipeline.errors import UserError
from pipeline.experiments.explain import blocks_in, explain

Tree = dict[str, Any]
Axes = dict[str, list[Any]]
"""Dotted keys with the values that each of them takes, a fixed one has one."""
Absolute = Callable[[str], str]
Kinds = tuple[tuple[str, Any], ...]
"""The kind of each block that has one."""
S = TypeVar("S", bound=BaseModel)
MAX_LABEL = 96
HASH_DIGITS = 8
"""Among 1,000 trials of an experiment two share eight digits once in 8,000 experiments; six, once in 34."""
UNNAMED = {"seed", "data.source", "data.images"}
"""Not part of what a folder's name tells: the seed has its own place at the end, a place on disk says nothing."""
BLOCKS_OF_EXPERIMENT = ("base", "grid", "variants")
EXAMPLE_VARIANTS = (
    "`variants: {small: {backbone.name: RN50}, large: {backbone.name: ViT-L-14, optim.lr: [1e-4, 3e-4]}}`"
)
SHARED_BY_TRIALS = {"experiment", "resources", "paths"}
"""What all trials of an experiment have in common: it is one folder, and its jobs ask for the same."""
INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")
BLOCKS = re.compile(r"^(?=[a-z])", re.M)
"""Where a block of the top level begins in what `dump_config` writes: all that belongs to it is indented."""


class _Yaml(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's scalars: 1e-4 is a float, 10:00:00 and 2024-01-02 are text, 010 is not the octal 8."""


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


class _YamlDumper(yaml.SafeDumper):
    """Quotes the text that `_Yaml` would read as a number, and no other."""

    yaml_implicit_resolvers = _Yaml.yaml_implicit_resolvers


@dataclass(frozen=True)
class Trial:
    """One grid cell: a config and the name of its folder."""

    name: str
    config: Config


@dataclass(frozen=True)
class Experiment:
    """One YAML with its overrides: N trials."""

    source: Path
    overrides: tuple[str, ...]
    trials: list[Trial]

    @property
    def config(self) -> Config:
        """The first trial's configuration, for what all trials share."""
        return self.trials[0].config

    @property
    def dir(self) -> ExperimentDir:
        return experiment_dir(self.config)


@dataclass(frozen=True)
class Layer:
    """Values that lie below an experiment's own (a cluster profile's), and where each dotted key stands."""

    values: Tree = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)


@dataclass
class _Document:
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


def load_experiment(source: str | Path, overrides: Sequence[str] = (), below: Layer | None = None) -> Experiment:
    """Read a YAML, put it on top of `below`, apply overrides, expand grid and variants, and validate every cell.

    The trials of one variant after those of another, each the product of the grid's axes and the variant's own.
    Raises UserError naming the dotted key, its file and line, and the nearest valid name or the allowed values.
    """
    path = find_config(source)
    document = _read_document(path, ())
    if below:
        document.values = merge(below.values, document.values)
        document.places = {**below.places, **document.places}
    typed = _split_overrides(overrides, document)
    variants = _choose_variants(document.variants, typed.pop("variants", None), path)
    document.values.setdefault("experiment", f"{document.values.get('task', 'beetles')}-{path.stem}")
    validate = partial(_validate, path=path, absolute=_path_finder())
    plain = validate(document.values, document.places)
    cells: list[Config] = []
    for name, own in variants.items():
        check = partial(validate, places=document.places_in(name, typed))
        cells += _cells(document.values, document.grid | own, typed, check)
    return Experiment(path, tuple(overrides), _name_trials(cells, plain))


def load_config(path: Path) -> Config:
    """Read a trial's resolved config.yaml."""
    document = _read_document(path, ())
    return _validate(document.values, document.places, path, _path_finder())


def saved_science(path: Path) -> Tree | None:
    """The science in a trial's config.yaml as it stands there, not validated; None if there is none that can be read.

    It is read block by block: most blocks of an experiment's trials are the same text, so a second does for thousands.
    """
    try:
        blocks = dict(_read_block(text) for text in BLOCKS.split(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError, LookupError):
        return None
    return only_science({key: value for key, value in blocks.items() if key in Config.model_fields})


def differences(old: Tree, new: Tree) -> dict[str, tuple[Any, Any]]:
    """Old and new value of each dotted key that differs; of a block that is of another kind the kind alone."""
    before, after = changes(old, new), changes(new, old)
    keys = dict.fromkeys((*after, *before))
    switched = tuple(key.removesuffix("kind") for key in keys if key in KIND_KEYS)
    return {k: (before.get(k), after.get(k)) for k in keys if k in KIND_KEYS or not k.startswith(switched)}


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; loading it gives the same trial."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_YamlDumper, sort_keys=False)


def find_config(source: str | Path) -> Path:
    """The YAML meant by `source`: relative to the current folder, else to the project, so that jobs work from anywhere."""
    path = Path(source).expanduser()
    for candidate in (Path.cwd() / path, PROJECT / path):
        if candidate.is_file():
            return candidate.resolve()
    known = sorted((PROJECT / "configs").rglob("*.yaml"))
    stems = difflib.get_close_matches(path.stem, {p.stem for p in known}, n=1)
    alike = [p for p in known if p.stem in stems]
    near = [str(p.relative_to(PROJECT)) for p in alike if p.parent.name == path.parent.name] or [
        str(p.relative_to(PROJECT)) for p in alike
    ]
    every = ", ".join(str(p.relative_to(PROJECT)) for p in known)
    hint = f"; did you mean {' or '.join(near)}?" if near else f"; there are: {every}"
    places = dict.fromkeys((str(Path.cwd()), str(PROJECT)))
    raise UserError(f"there is no config {source} (looked in {' and '.join(places)}){hint}")


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


# ---------------------------------------------------------------- reading
def _read_document(path: Path, children: tuple[Path, ...]) -> _Document:
    if path in children:
        raise UserError(f"{path}: its base leads back to itself: {' → '.join(p.name for p in (*children, path))}")
    values, places = read_yaml(path)
    _check_blocks(values, places, path)
    grid = values.pop("grid", None) or {}
    _check_grid(grid, path)
    variants = _read_variants(values.pop("variants"), places, path) if "variants" in values else None
    parent = _Document(DEFAULT_KINDS)
    if base := values.pop("base", None):
        parent_path = (path.parent / str(base)).resolve()
        if not parent_path.is_file():
            raise UserError(f"{path}, {places['base']}: base {base} does not exist (looked for {parent_path})")
        parent = _read_document(parent_path, (*children, path))
    said, lower = flatten(values), {key: value for key, value in parent.values.items() if key != "experiment"}
    if variants is None:
        variants = {name: _without(axes, said | grid) for name, axes in parent.variants.items()}
    grid = _without(parent.grid, said) | grid
    return _Document(merge(lower, values), grid, variants, parent.places | _with_file(places, path))


def _without(axes: Axes, said: Tree) -> Axes:
    """A parent's axes but for the keys of which its child says something itself."""
    return {key: values for key, values in axes.items() if key not in said}


def read_yaml(path: Path) -> tuple[Tree, dict[str, str]]:
    """A YAML's values, and the line on which each dotted key stands. Raises UserError where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):  # comments too: the file is kept as it is
            _refuse_secret(line, f"{path}, line {number}")
        loader = _Yaml(text)
        node = loader.get_single_node()
        values = loader.construct_document(node) if node else {}
    except (yaml.YAMLError, ValueError, LookupError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: an experiment is a mapping of keys to values, this is a {type(values).__name__}")
    return values, dict(_lines(node, path)) if node else {}


@lru_cache(maxsize=256)
def _read_block(text: str) -> tuple[str, Any]:
    """A block of the top level, `key: value` with all that is indented below it."""
    key, _, value = text.partition(":")
    return key, _read_value(value)


def _read_value(text: str) -> Any:
    """A YAML value. Whole numbers are read by themselves: thousands of trials differ in their seeds alone."""
    return int(text) if INTEGER.match(text.strip()) else _Yaml(text).get_single_data()


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


def _with_file(places: dict[str, str], path: Path) -> dict[str, str]:
    return {key.removeprefix("grid."): f"{path}, {line}" for key, line in places.items()}


def _check_blocks(values: Tree, places: dict[str, str], path: Path) -> None:
    """Refuse a mistyped name of a block that is of an experiment and not of a trial: no model knows it."""
    for key in map(str, values):
        near = difflib.get_close_matches(key, BLOCKS_OF_EXPERIMENT, n=1, cutoff=0.8)
        if near and key not in (*near, *Config.model_fields):
            raise UserError(f"{path}, {places.get(key, 'a merged key')}: `{key}` does not exist, but `{near[0]}` does")


def _check_grid(grid: Any, path: Path) -> None:
    if not isinstance(grid, dict) or not all(isinstance(v, list) and v for v in grid.values()):
        raise UserError(f"{path}: grid must map dotted keys to non-empty lists, such as `optim.lr: [1e-4, 3e-4]`")


def _read_variants(variants: Any, places: dict[str, str], path: Path) -> dict[str, Axes]:
    """The axes of each variant, by its name. Raises UserError where they are none."""
    found: dict[str, Axes] = {}
    for name, block in _mapping(variants, f"{path}, {places['variants']}: variants").items():
        place = f"{path}, {places.get(f'variants.{name}', places['variants'])}: variant {name!r}"
        found[str(name)] = _axes_of(_mapping(block, place), place)
    return found


def _mapping(value: Any, place: str) -> Tree:
    """A mapping, or nothing at all: what is none is refused with an example."""
    if not isinstance(value, dict | None):
        raise UserError(f"{place} must map names to keys with their values, such as {EXAMPLE_VARIANTS}")
    return value or {}


def _axes_of(block: Tree, place: str) -> Axes:
    """A variant's blocks and dotted keys, all as dotted keys: a list is an axis, a plain value one of length 1."""
    axes: Axes = {}
    for key, value in [pair for item in block.items() for pair in flatten(dict([item])).items()]:
        if key.partition(".")[0] in SHARED_BY_TRIALS:
            raise UserError(f"{place}: all trials of an experiment share {key}: set it outside of the variants")
        if key in axes:
            raise UserError(f"{place}: {key} stands twice in it: keep one")
        if value == []:
            raise UserError(f"{place}: {key} is a list of no values; a list that is a value is written in a list: [[]]")
        axes[key] = value if isinstance(value, list) else [value]
    return axes


# ---------------------------------------------------------------- overrides, the grid and variants of it
def _split_overrides(overrides: Sequence[str], document: _Document) -> Axes:
    """`key=value` → one value, `key=a,b` → an axis. A key given twice is refused: one of the two would be lost."""
    axes: Axes = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        _refuse_secret(text, f"on the command line: {hide(key)}")
        if not equals or not key:
            raise UserError(
                f"override {text!r}: write key=value, such as optim.lr=1e-4 (or optim.lr=1e-4,3e-4 for a grid)"
            )
        if key in axes:
            raise UserError(f"override {text!r}: {key} is given twice")
        axes[key] = [_parse_value(part, text) for part in _split_commas(value)]
        document.places[key] = "on the command line"
    return axes


def _refuse_secret(text: str, place: str) -> None:
    """Configurations are kept with results, and overrides with the commands that made them."""
    if hide(text) != text:
        raise UserError(
            f"{place}: a token or password must not stand in a configuration. Remove it; the Hub's token is read from "
            "HF_TOKEN in the environment, or from where `hf auth login` keeps it."
        )


def _parse_value(text: str, override: str) -> Any:
    try:
        return _read_value(text)
    except (yaml.YAMLError, ValueError, LookupError) as error:
        raise UserError(f"override {override!r}: {text!r} is not a YAML value: {error}") from error


def _split_commas(text: str) -> list[str]:
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


def _choose_variants(variants: dict[str, Axes], names: list[Any] | None, path: Path) -> dict[str, Axes]:
    """The variants of these names, or all; where there are none, one that changes nothing."""
    if names is None:
        return variants or {"": {}}
    for name in map(str, names):
        if name not in variants:
            near = difflib.get_close_matches(name, variants, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(variants) or 'none'}"
            raise UserError(f"on the command line: `variants`: {path} has no variant {name}; {hint}")
    return {name: axes for name, axes in variants.items() if name in map(str, names)}


def _cells(values: Tree, axes: Axes, typed: Axes, validate: Callable[[Tree], Config]) -> Iterator[Config]:
    """Every cell of the grid `axes` under what was typed. The blocks in which nothing varies are those of the first one,
    validated already."""
    axes = axes | typed
    varying = {key.partition(".")[0] for key, choices in axes.items() if len(choices) > 1}
    shared: Tree = {}
    for choice in itertools.product(*axes.values()):
        cell = dict(zip(axes, choice, strict=True))
        # Dotted keys, so that of a block that was typed each key wins over that key elsewhere.
        config = validate(_override(values, flatten(cell) | flatten({key: cell[key] for key in typed})) | shared)
        shared = shared or {name: getattr(config, name) for name in Config.model_fields if name not in varying}
        yield config


def _override(values: Tree, overrides: Tree) -> Tree:
    """`values` with dotted overrides: whole blocks before their keys, kinds before the keys that only they have."""
    for key, value in sorted(overrides.items(), key=lambda item: (item[0].count("."), not item[0].endswith(".kind"))):
        values = merge(values, _nested(key, value))
    return values


def _nested(key: str, value: Any) -> Tree:
    """`a.b`, 1 → {"a": {"b": 1}}."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


# ---------------------------------------------------------------- names
def _name_trials(configs: list[Config], plain: Config) -> list[Trial]:
    """Name each trial by what distinguishes it from the YAML, and by its hash; a folder of that hash keeps its name."""
    base = science(plain)
    existing = {name.rpartition("-")[2]: name for name in sorted(experiment_dir(configs[0]).folders())}
    by_hash: dict[str, Trial] = {}
    varying = cache(partial(_varying, configs))
    for config in configs:
        values = science(config)
        full = digest(values)
        if full not in by_hash:
            short = full[:HASH_DIGITS]
            by_hash[full] = Trial(existing.get(short) or f"{_label(config, base, varying)}-{short}", config)
        elif (twin := by_hash[full].config) != config:
            raise _one_model_twice(twin, config)
    return list(by_hash.values())


def _one_model_twice(a: Config, b: Config) -> UserError:
    first, second = flatten(a.model_dump(mode="json")), flatten(b.model_dump(mode="json"))
    differ = [key for key in first if first[key] != second.get(key)]
    return UserError(
        f"two trials of the grid differ in {', '.join(differ)} alone, which makes no other model: both would have one "
        "folder. Give one value at a time."
    )


def _varying(configs: Sequence[Config], kinds: Kinds) -> set[str]:
    """The keys in which trials differ that are of these kinds: all of a variant's are, mostly, and of no other's."""
    flat = [values for values in (flatten(science(config)) for config in configs) if _kinds(values) == kinds]
    return {key for key, value in flat[0].items() if any(other.get(key) != value for other in flat[1:])}


def _kinds(flat: Tree) -> Kinds:
    return tuple((key, flat[key]) for key in sorted(KIND_KEYS) if key in flat)


def _label(config: Config, base: Tree, varying: Callable[[Kinds], set[str]]) -> str:
    """What differs from the YAML, but for what comes with another kind by default. `loss.kind` is called `loss`.

    Where that is too long, of what is not a kind or a name only what differs among the trials of these kinds (`varying`).
    """
    values = science(config)
    changed = {key: value for key, value in changes(values, base).items() if key not in UNNAMED}
    for key in [key for key in changed if key in KIND_KEYS]:
        block = key.removesuffix("kind")
        ordinary = _defaults_of(config, block)
        changed = {
            k: v
            for k, v in changed.items()
            if k == key or ordinary.get(k.removeprefix(block)) != v or not k.startswith(block)
        }
    parts = _parts(changed, values)
    if len(",".join(parts)) > MAX_LABEL:
        differ = varying(_kinds(flatten(values)))
        parts = _parts({k: v for k, v in changed.items() if k in differ | KIND_KEYS or k.endswith(".name")}, values)
    label = ",".join(parts)
    return label if len(label) <= MAX_LABEL else label[: MAX_LABEL - len(parts[-1]) - 3].rstrip(",") + "..," + parts[-1]


def _parts(changed: Tree, values: Tree) -> list[str]:
    words = _words(changed)
    return [f"{words[key]}={_short(value)}" for key, value in changed.items()] + [f"seed={values['seed']}"]


def _words(keys: Iterable[str]) -> dict[str, str]:
    """What each key is called in a name: by its last part, with the block before it where two have that in common."""
    parts = {key: key.removesuffix(".kind").split(".") for key in keys}
    last = Counter(part[-1] for part in parts.values())
    return {key: ".".join(part[-2:] if last[part[-1]] > 1 else part[-1:]) for key, part in parts.items()}


def _defaults_of(config: Config, block: str) -> Tree:
    """The keys of a block such as `data.split.`, flat, as they are by default in one of its kind."""
    section: Any = config
    for part in block.removesuffix(".").split("."):
        section = getattr(section, part)
    return flatten(type(section)(kind=section.kind).model_dump(mode="json"))


def _short(value: Any) -> str:
    """A value as it may stand in a folder's name: 3e-4, not 0.0003; the last part of a path; no other characters."""
    if isinstance(value, float):
        return _short_float(value)
    if isinstance(value, dict):  # a block in a list of blocks
        return _short(value.get("name") or value.get("kind"))
    text = "x".join(map(_short, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^A-Za-z0-9._+-]", "_", text.rstrip("/").rpartition("/")[2])[:40]


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


# ---------------------------------------------------------------- validation with errors for people
def _validate(values: Tree, places: dict[str, str], path: Path, absolute: Absolute) -> Config:
    try:
        return _resolve_paths(Config.model_validate(values), absolute)
    except ValidationError as error:
        lines = [explain(details, places, path) for details in error.errors(include_url=False)]
        raise UserError("\n".join(dict.fromkeys(lines))) from error


def _resolve_paths(config: Config, absolute: Absolute) -> Config:
    """Local folders and files become absolute, so that a job that starts elsewhere reads the same ones."""
    data = _with(config.data, source=absolute(config.data.source))
    data = _with(data, images=_folder_of_images(data.source, data.images, absolute) if data.images else None)
    return _with(config, data=data, backbone=config.backbone.located(absolute))


def _folder_of_images(source: str, images: str, absolute: Absolute) -> str:
    """A relative folder is the one beside the table; else, if it is there, the one in the current folder; else to be made beside
    the table."""
    place = Path(source).expanduser()
    if Path(images).expanduser().is_absolute() or not place.exists():
        return absolute(images)
    beside = (place if place.is_dir() else place.parent).resolve() / images
    here = absolute(images)
    return here if Path(here).is_absolute() and not beside.exists() else str(beside)


def _with(section: S, **values: Any) -> S:
    """The section with these values; itself if it has them: most blocks of a grid's cells are shared."""
    same = all(getattr(section, name) == value for name, value in values.items())
    return section if same else section.model_copy(update=values)


def _path_finder() -> Absolute:
    """`_resolve` from here. It looks each name up once: every cell of a grid asks for the same ones."""
    return cache(partial(_resolve, (Path.cwd(), root())))


def _resolve(bases: tuple[Path, ...], name: str) -> str:
    """A path that exists in the current folder, else under the root, as an absolute one; any other name as it is."""
    for base in bases:
        candidate = base / os.path.expanduser(name)  # (Path's own raises for a user that does not exist)
        if os.path.exists(candidate):
            return str(candidate.resolve())
    return name


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
