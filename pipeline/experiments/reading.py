"""From a YAML and `key=value` overrides to trials: parents, overrides, grid, variants, names, and errors that show the place.

Precedence, weakest first: the models' defaults, the cluster profile's resources and paths, the YAML's parents (`base:`),
the YAML, its `grid:` block, its `variants:` block, the command line. A comma list on the command line, or a list in `grid:` or
in a variant, is a grid axis; `key=[a,b]` is a list value, not an axis.

This module loads no torch.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.backbone import Backbone
from pipeline.config.data import Data
from pipeline.config.identity import flatten, only_science
from pipeline.config.idle import check_read
from pipeline.config.own import load_file
from pipeline.config.resources import yielding
from pipeline.config.trial import Config
from pipeline.disk.layout import SHIPPED, ExperimentDir, experiment_dir, root
from pipeline.errors import UserError
from pipeline.experiments.cluster import FOLDER, Profile
from pipeline.experiments.documents import Layer, YamlDumper, read_block, read_document
from pipeline.experiments.grid import cells, choose_variants, split_overrides
from pipeline.experiments.mistakes import explain
from pipeline.experiments.names import name_trials
from pipeline.experiments.trees import Tree, merge

MOST = 8  # errors that are told at once
Absolute = Callable[[str], str]
S = TypeVar("S", bound=BaseModel)
BLOCKS = re.compile(r"^(?=[a-z])", re.M)
"""Where a block of the top level begins in what `dump_config` writes: all that belongs to it is indented."""


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


def load_experiment(source: str | Path, overrides: Sequence[str] = (), below: Layer | None = None) -> Experiment:
    """Read a YAML, put it on top of `below`, apply overrides, expand grid and variants, and validate every cell.

    The trials of one variant after those of another, each the product of the grid's axes and the variant's own.
    Raises UserError naming the dotted key, its file and line, and the nearest valid name or the allowed values; and for a key on
    the command line or in the grid that no trial reads.
    """
    path = find_config(source)
    document = read_document(path, ())
    _check_kind(path, document.values)
    typed = split_overrides(overrides, document)
    if below:
        said = [*flatten(document.values), *document.grid, *typed]
        document.values = merge(_yielding(below.values, said), document.values)
        document.places = {**below.places, **document.places}
    variants = choose_variants(document.variants, typed.pop("variants", None), path)
    task = Path(str(document.values.get("task", ""))).stem
    document.values.setdefault("experiment", f"{task}-{path.stem}".lstrip("-"))
    # Each name is looked up once: every cell of a grid asks for the same ones.
    validate = partial(_validate, path=path, absolute=cache(partial(_resolve, (Path.cwd(), root()))))
    plain = validate(document.values, document.places)
    configs: list[Config] = []
    for name, own in variants.items():
        check = partial(validate, places=document.places_in(name, typed))
        found = list(cells(document.values, document.grid | own, typed, check))
        check_read(own, found, f"{path}, variant {name}")
        configs += found
    check_read(typed, configs, "on the command line")
    check_read(document.grid, configs, f"{path}, grid")
    return Experiment(path, tuple(overrides), [Trial(*named) for named in name_trials(configs, plain)])


def _yielding(below: Tree, said: Sequence[str]) -> Tree:
    """A profile's values without amounts of memory where the experiment says, by these keys, another one."""
    if not isinstance(below.get("resources"), dict):
        return below
    own = {
        stage: [key.rpartition(".")[2] for key in said if key.startswith(f"resources.{stage}.")] for stage in below["resources"]
    }
    return below | {"resources": {stage: yielding(job, own[stage]) for stage, job in below["resources"].items()}}


def load_config(path: Path) -> Config:
    """Read a trial's resolved config.yaml. A task's file that is gone is no error: results can be shown without it."""
    document = read_document(path, ())
    return _validate(document.values, document.places, path, partial(_resolve, (Path.cwd(), root())), must_run=False)


def saved_science(path: Path) -> Tree | None:
    """The science in a trial's config.yaml as it stands there, not validated; None if there is none that can be read.

    It is read block by block: most blocks of an experiment's trials are the same text, so a second does for thousands.
    """
    try:
        blocks = dict(read_block(text) for text in BLOCKS.split(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
    return only_science({key: value for key, value in blocks.items() if key in Config.model_fields})


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML; loading it gives the same trial."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=YamlDumper, sort_keys=False)


def find_config(source: str | Path) -> Path:
    """The YAML meant by `source`: relative to the current folder, else one that came with the package, so that jobs work from
    anywhere."""
    path = Path(source).expanduser()
    for candidate in (Path.cwd() / path, SHIPPED / path):
        if os.path.isfile(candidate):  # (Path's own raises for a name that is too long)
            return candidate.resolve()
    if os.path.isdir(path):
        inside = ", ".join(map(str, sorted(path.glob("*.yaml"))[:MOST])) or "it holds none"
        raise UserError(f"{source} is a folder, and a config is a YAML: {inside}")
    beside = [p for p in sorted(path.parent.glob("*.y*ml")) if p.resolve().parent != FOLDER]
    here = [p for p in beside if difflib.get_close_matches(path.stem, [p.stem], cutoff=0.8)]
    known = [p.relative_to(SHIPPED) for p in sorted((SHIPPED / "configs").rglob("*.yaml")) if p.parent != FOLDER]
    stems = difflib.get_close_matches(path.stem, {p.stem for p in known}, n=1)
    alike = [p for p in known if p.stem in stems]
    near = here or [p for p in alike if p.parent.name == path.parent.name] or alike
    hint = f"; did you mean {' or '.join(map(str, near))}?" if near else f"; there are: {', '.join(map(str, known))}"
    places = dict.fromkeys((str(Path.cwd()), str(SHIPPED)))
    raise UserError(f"there is no config {source} (looked in {' and '.join(places)}){hint}")


def _check_kind(path: Path, values: Tree) -> None:
    """Raises UserError where a YAML is a cluster profile."""
    if path.parent == FOLDER or ("task" not in values and values.keys() & Profile.model_fields.keys()):
        name = path.stem if path.parent == FOLDER else path
        raise UserError(f"{path} is a cluster profile: use it as --cluster {name}, beside the YAML of an experiment")


# ---------------------------------------------------------------- validation with errors for people
def _validate(values: Tree, places: dict[str, str], path: Path, absolute: Absolute, must_run: bool = True) -> Config:
    task = values.get("task")
    if isinstance(task, str) and task.endswith(".py"):
        values = values | {"task": absolute(task)}
        with nullcontext() if must_run else suppress(UserError):
            load_file(values["task"], places.get("task", str(path)))  # now: it may define kinds
    try:
        config = Config.model_validate(values)
        is_resolved = isinstance(values.get("data"), Data) and isinstance(values.get("backbone"), Backbone)  # of another cell
        return config if is_resolved else _resolve_paths(config, absolute)
    except ValidationError as error:
        lines = list(dict.fromkeys(explain(details, places, path) for details in error.errors(include_url=False)))
        more = [f"{path}: and {len(lines) - MOST} more"] * (len(lines) > MOST)
        raise UserError("\n".join(lines[:MOST] + more)) from error


def _resolve_paths(config: Config, absolute: Absolute) -> Config:
    """Local folders and files become absolute, so that a job that starts elsewhere reads the same ones."""
    data = _with(config.data, source=absolute(config.data.source))
    beside = partial(_beside_table, data.source, absolute=absolute)
    data = _with(data, images=beside(data.images) if data.images else None, tree=beside(data.tree) if data.tree else None)
    return _with(config, data=data, backbone=config.backbone.located(absolute))


def _beside_table(source: str, name: str, absolute: Absolute) -> str:
    """A relative folder or file is the one beside the table; else, if it is there, the one in the current folder; else to be made
    beside the table."""
    place = Path(source).expanduser()
    if Path(name).expanduser().is_absolute() or not os.path.exists(place):
        return absolute(name)
    beside = (place if place.is_dir() else place.parent).resolve() / name
    here = absolute(name)
    return here if Path(here).is_absolute() and not beside.exists() else str(beside)


def _with(section: S, **values: Any) -> S:
    """The section with these values; itself if it has them: most blocks of a grid's cells are shared."""
    same = all(getattr(section, name) == value for name, value in values.items())
    return section if same else section.model_copy(update=values)


def _resolve(bases: tuple[Path, ...], name: str) -> str:
    """A path that exists in the current folder, else under the root, as an absolute one; any other name as it is."""
    for base in bases:
        candidate = base / os.path.expanduser(name)  # (Path's own raises for a user that does not exist)
        if os.path.exists(candidate):
            return str(candidate.resolve())
    return name
