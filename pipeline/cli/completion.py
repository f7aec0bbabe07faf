"""What the Tab key offers: commands, options, configs, their keys and values, experiments and trials. Loads no torch.

The shell's function asks `carabid` itself, with the words that are typed as arguments and `_CARABID_COMPLETE` in the environment,
and gets a line for each candidate. Whatever is wrong (a YAML that is none, a folder that may not be read), there are none, and
the shell offers files.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from typer.main import get_command

from pipeline.cli.arguments import use_cluster
from pipeline.disk.layout import SHIPPED, ExperimentDir, folders_in, trained_root
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from typer import Typer

ASKED = "_CARABID_COMPLETE"
"""The variable that holds the name of the shell that asks."""
OPEN = ("=", "/", ".")
"""What ends in one of these goes on: no space behind it."""
BREAKS = re.compile("[=:]+")
"""Where bash parts a word into several."""
PROFILES = SHIPPED / "configs" / "cluster"
CHOICES = {
    "device": "auto cuda cpu",
    "exif": "apply ignore",
    "explain.fill": "mean blur",
    "explain.method": "both gradient occlusion",
    "export.challenge": "beetles butterflies",
    "export.to": "codabench kaggle open_clip",
    "generate.form": "parquet csv disk folder",
    "generate.task": "beetles biomass butterflies species",
    "index.kind": "flat hnsw",
    "logs.stage": "extract train evaluate",
    "results.form": "table csv markdown json",
    "compare.form": "table markdown json",
    "search.form": "table csv json",
    "track.action": "sync",
}
"""What options and arguments take, of all commands or of one; their help says the same (tested)."""
SCRIPTS = {
    "bash": f"""\
_carabid() {{
    mapfile -t COMPREPLY < <({ASKED}=bash "$1" "${{COMP_WORDS[@]:1:COMP_CWORD}}" 2> /dev/null)
    if [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *[=/.] ]]; then compopt -o nospace 2> /dev/null; fi
}}
complete -o default -F _carabid carabid
""",
    "zsh": f"""\
#compdef carabid
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit -i }}
_carabid() {{
    local line
    local -a found whole open told
    found=("${{(@f)$({ASKED}=zsh ${{(Q)words[1]}} "${{(@Q)words[2,CURRENT]}}" 2> /dev/null)}}")
    for line in $found; do
        if [[ $line == *[=/.] ]]; then
            open+=($line)
        else
            whole+=("${{line%%$'\\t'*}}")
            told+=("${{line/$'\\t'/  -- }}")
        fi
    done
    if (( $#open + $#whole )); then
        compadd -S '' -a open
        if [[ $told == *' -- '* ]]; then compadd -l -d told -a whole; else compadd -a whole; fi
    else
        compset -P '*='
        _files
    fi
}}
compdef _carabid carabid
""",
}


# ---------------------------------------------------------------- the shells
def script(shell: str) -> str:
    """What makes a shell ask. Raises UserError for a shell that is not known."""
    if shell not in SCRIPTS:
        raise UserError(f"there is completion for {' and '.join(SCRIPTS)}, and none for {shell}")
    return SCRIPTS[shell]


def install(shell: str) -> str:
    """Write a shell's script below the home folder and name it in the file that the shell reads when it starts; says what was
    done, or that it was already. Raises UserError for a shell that is not known."""
    text, home = script(shell), Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    place, starts = data / "carabid" / f"completion.{shell}", _started(shell, home)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    line = f"source '{place}'"
    there = starts.read_text(errors="replace").splitlines() if starts.exists() else []
    if line not in there:
        with starts.open("a") as file:  # (a new file in its place would be no link any more, and another owner's)
            file.write(f"\n# completion of carabid\n{line}\n")
    return f"{place}, which {starts} {'names' if line in there else 'now names'}: it works in the next {shell}"


def _started(shell: str, home: Path) -> Path:
    """What a shell reads when it starts."""
    return Path(os.environ.get("ZDOTDIR") or home) / ".zshrc" if shell == "zsh" else home / ".bashrc"


def answer(app: Typer, shell: str, typed: Sequence[str]) -> str:
    """A line for each candidate for the last of the words that were typed behind `carabid`; in zsh with what it is, after a tab.
    Nothing, without a word, where anything is wrong."""
    typed = typed or [""]
    words = _joined(typed) if shell == "bash" else typed
    word = words[-1]
    with suppress(Exception, SystemExit), redirect_stderr(io.StringIO()):
        found = dict(candidates(app, words))
        kept = [(value, said) for value, said in sorted(found.items()) if value.startswith(word)]
        if shell == "bash":
            given = len(word) if BREAKS.fullmatch(typed[-1]) else len(word) - len(typed[-1])
            return "".join(f"{value[given:]}\n" for value, _ in kept)
        return "".join(f"{value}\t{said}\n" if said else f"{value}\n" for value, said in kept)
    return ""


def _joined(words: Sequence[str]) -> list[str]:
    """Words as they were typed, of the parts that bash makes of them: `optim.lr`, `=`, `1`."""
    joined: list[str] = []
    goes_on = False
    for word in words:
        is_break = BREAKS.fullmatch(word) is not None
        if joined and (is_break or goes_on):
            joined[-1] += word
        else:
            joined.append(word)
        goes_on = is_break
    return joined


# ---------------------------------------------------------------- the line
@dataclass
class Line:
    """A command with what is typed before the word that is completed."""

    name: str
    parameters: Sequence[Any]
    given: dict[str, list[str]] = field(default_factory=dict)
    """What is typed, by the name of its parameter."""
    waits: Any = None
    """The option whose value comes next, else the argument; None where no more is taken."""


def candidates(app: Typer, words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What may stand in place of the last word, and what it is; whatever that begins with."""
    group, (*before, word) = get_command(app), words
    commands: Mapping[str, Any] = group.commands  # type: ignore[attr-defined]
    name = next((each for each in before if each in commands), None)
    if name is None:
        line = _read("", group.params, before)
        if line.waits is None and not word.startswith("-"):
            yield from ((each, _first_sentence(command.help)) for each, command in commands.items())
            return
    else:
        line = _read(name, commands[name].params, before[before.index(name) + 1 :])
    option, is_value, _ = word.partition("=")
    if word.startswith("--") and is_value:
        line.waits = _options(line.parameters).get(option)
        yield from ((f"{option}={value}", "") for value in _values(line, word.partition("=")[2]))
    elif word.startswith("-") and getattr(line.waits, "param_type_name", "argument") == "argument":
        yield from ((each, _first_sentence(of.help)) for each, of in _options(line.parameters).items() if each.startswith("--"))
        yield "--help", "Show what there is to say."
    else:
        yield from ((value, "") for value in _values(line, word))


def _first_sentence(text: str | None) -> str:
    return re.split(r"(?<=[.:;])\s", " ".join((text or "").split()))[0].rstrip(":;")


def _options(parameters: Sequence[Any]) -> dict[str, Any]:
    return {name: each for each in parameters if each.param_type_name == "option" for name in (*each.opts, *each.secondary_opts)}


def _read(name: str, parameters: Sequence[Any], words: Sequence[str]) -> Line:
    """What is typed behind a command."""
    line, options = Line(name, parameters), _options(parameters)
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    waits = None
    for word in words:
        option, _, value = word.partition("=")
        found = waits or (options.get(option) if word.startswith("-") else next(iter(arguments), None))
        if found is None or (waits is None and found.param_type_name == "option" and found.is_flag):
            continue
        if waits is None and found.param_type_name == "option":
            if "=" not in word:
                waits = found
                continue
            word = value
        line.given.setdefault(found.name, []).append(word)
        if waits is None and found in arguments and found.nargs == 1:
            arguments.remove(found)
        waits = None
    line.waits = waits or next(iter(arguments), None)
    return line


def _values(line: Line, word: str) -> Iterable[str]:
    """What the parameter takes that comes next."""
    if line.waits is None:
        return ()
    name = line.waits.name
    if found := CHOICES.get(f"{line.name}.{name}") or CHOICES.get(name):
        return found.split()
    if name in ("trial", "trials") and "experiment" in line.given:
        name = "trials of an experiment"
    return VALUES.get(name, _nothing)(line, word)


def _nothing(line: Line, word: str) -> Iterable[str]:
    return ()


# ---------------------------------------------------------------- what is on disk
def _configs(line: Line, word: str) -> Iterator[str]:
    """The YAMLs and folders of the folder that is typed: below the current one, and of the project below configs/."""
    prefix = word[: word.rfind("/") + 1]
    for base in dict.fromkeys((Path.cwd(), SHIPPED)):
        if not prefix and base == SHIPPED:
            yield "configs/"
        with suppress(OSError), os.scandir(base / os.path.expanduser(prefix)) as entries:
            for entry in entries:
                is_folder, is_hidden = entry.is_dir(), entry.name.startswith(".")
                if (base == SHIPPED != Path.cwd() and not prefix) or is_hidden or Path(entry.path) == PROFILES:
                    continue
                if is_folder or entry.name.endswith((".yaml", ".yml")):
                    yield f"{prefix}{entry.name}{'/' * is_folder}"


def _profiles(line: Line, word: str) -> Iterator[str]:
    return (path.stem for path in PROFILES.glob("*.yaml"))


def _root(line: Line) -> Path:
    """Where experiments lie."""
    if os.environ.get("CARABID_CLUSTER"):
        use_cluster(None)
    return Path(line.given["trained"][-1]).expanduser() if "trained" in line.given else trained_root()


def _experiments(line: Line, word: str) -> Iterable[str]:
    return sorted(name for name in folders_in(_root(line)) if not name.startswith("."))


def _trials(line: Line, word: str) -> Iterator[str]:
    """Of the experiment that is named, those that have a folder and those of the last submission."""
    experiment = ExperimentDir(_root(line) / line.given["experiment"][-1])
    yield from (trial.path.name for trial in experiment.trials())
    for path in experiment.submission_records()[-1:]:
        yield from (trial["name"] for trial in json.loads(path.read_text())["trials"])


def _trial_folders(line: Line, word: str) -> Iterator[str]:
    """`experiment/`, and behind that its trials, as commands that take a trial's folder look for them."""
    name, _, rest = word.partition("/")
    if not rest and "/" not in word:
        yield from (f"{each}/" for each in _experiments(line, word))
    elif name not in ("", ".", "..", "~"):
        yield from (f"{name}/{trial.path.name}" for trial in ExperimentDir(_root(line) / name).trials())


# ---------------------------------------------------------------- keys and their values
def _overrides(line: Line, word: str) -> Iterator[str]:
    """The next part of a key, or behind `=` what it takes, if that can be listed; of a comma list its last value."""
    from pipeline.config.trial import TASKS
    from pipeline.experiments.documents import read_document
    from pipeline.experiments.reading import find_config

    document = read_document(find_config(line.given["config"][-1]), ())
    kinds = _kinds([document.values, document.grid, *document.variants.values()], line.given.get("overrides", ()))
    key, is_value, said = word.partition("=")
    if not is_value:
        yield from _keys(key, kinds)
        yield from ["variants="] * bool(document.variants)
        return
    before = f"{key}={said[: said.rfind(',') + 1]}"
    found = TASKS if key == "task" else document.variants if key == "variants" else _allowed(key, kinds)
    yield from (f"{before}{value}" for value in found)


def _kinds(trees: Sequence[Mapping[str, Any]], overrides: Sequence[str]) -> dict[str, set[str]]:
    """Which kinds each block has by the YAML and what is typed, by the dotted key of its kind."""
    from pipeline.config.identity import flatten

    found: dict[str, set[str]] = {}
    for tree in trees:
        for key, value in flatten(dict(tree)).items():
            if key.endswith(".kind"):
                found.setdefault(key, set()).update(map(str, value if isinstance(value, list) else [value]))
    typed = [override.partition("=") for override in overrides]
    return found | {key: set(value.split(",")) for key, _, value in typed if key.endswith(".kind")}


def _keys(key: str, kinds: Mapping[str, set[str]]) -> Iterator[str]:
    """`block.` and `key=` for what may stand after the last dot."""
    from pipeline.config.kinds import blocks_in

    place = key[: key.rfind(".") + 1]
    for model in _models(place.rstrip("."), kinds):
        for name, info in model.model_fields.items():
            is_block = bool(blocks_in(info.annotation))
            if is_block:
                yield f"{place}{name}."
            if not is_block or type(None) in get_args(info.annotation):
                yield f"{place}{name}="


def _models(place: str, kinds: Mapping[str, set[str]]) -> list[type[BaseModel]]:
    """What a block can be of, where its kind is named only those of that kind."""
    from pipeline.config.kinds import blocks_in
    from pipeline.config.trial import Config

    models: list[type[BaseModel]] = [Config]
    at = ""
    for part in filter(None, place.split(".")):
        at = f"{at}.{part}".lstrip(".")
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [block for info in fields for block in blocks_in(info.annotation)]
        named = kinds.get(f"{at}.kind", set())
        models = [model for model in models if named & set(_kind(model))] or models
    return models


def _kind(model: type[BaseModel]) -> tuple[str, ...]:
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _allowed(key: str, kinds: Mapping[str, set[str]]) -> Iterator[str]:
    """The values of a key that has a list of them; of a kind those of all its family."""
    block, _, name = key.rpartition(".")
    others = {place: of for place, of in kinds.items() if place != key}
    for model in _models(block, others):
        if name in model.model_fields:
            yield from _literals(model.model_fields[name].annotation)


def _literals(annotation: Any) -> Iterator[str]:
    if annotation is bool:
        yield from ("true", "false")
    elif annotation is type(None):
        yield "null"
    elif get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif get_origin(annotation) not in (tuple, list, dict):
        for argument in get_args(annotation):
            yield from _literals(argument)


VALUES: dict[str, Callable[[Line, str], Iterable[str]]] = {
    "config": _configs,
    "overrides": _overrides,
    "cluster": _profiles,
    "experiment": _experiments,
    "experiments": _experiments,
    "trials of an experiment": _trials,
    "trial": _trial_folders,
    "trials": _trial_folders,
    "model": _trial_folders,
    "install_completion": lambda line, word: SCRIPTS,
    "show_completion": lambda line, word: SCRIPTS,
}
"""What parameters take, by their names."""
