"""What pydantic says of a configuration that is wrong, in words for people: the place, the key, what is allowed.

A key that does not exist is answered with the nearest one that does. This module loads no torch.
"""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from pipeline.config.identity import flatten
from pipeline.config.kinds import blocks_in
from pipeline.config.trial import KNOWN_TASKS, Config
from pipeline.errors import nearest


def explain(error: ErrorDetails, places: dict[str, str], path: Path) -> str:
    """One error as `place: key: what is wrong`. `places` maps the dotted keys that were given to where they stand."""
    key = ".".join(map(str, error["loc"]))
    key += ".kind" if error["type"].startswith("union_tag") else ""
    place = _place(key, places, path)
    if error["type"] == "extra_forbidden":
        return f"{place}: {_unknown(key, error['input'])}"
    message = _in_words(key, error)
    given = "" if isinstance(error["input"], dict) or error["type"] == "missing" else f" (given: {error['input']!r:.100})"
    if not key:  # what does not fit what: each line begins with a key
        return "\n".join(f"{_place(line.partition(' ')[0], places, path)}: {line}" for line in message.splitlines())
    return f"{place}: `{key}`: {message}{given}"


def _in_words(key: str, error: ErrorDetails) -> str:
    """What is wrong with a value; pydantic's words where they are not Python's."""
    if error["type"] == "missing":
        return f"this must be named, it has no default{f': {KNOWN_TASKS}' if key == 'task' else ''}"
    if error["type"] == "tuple_type":
        example = error["input"] if isinstance(error["input"], str | int | float) else "a, b"
        return f"write a list: [{example}]"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"this is a block of keys: {', '.join(_names_in(key))}"
    if error["type"] == "union_tag_invalid":
        tag, kinds = (str(error["ctx"][name]) for name in ("tag", "expected_tags"))
        known = re.findall(r"'([^']+)'", kinds)
        return f"there is no such kind; {nearest(tag, known, listed=True)}"
    return error["msg"].removeprefix("Value error, ")


def _unknown(key: str, value: Any) -> str:
    """A key that does not exist; with one value below it, the value's key: `modle.encoder.r`, not `modle`."""
    below = list(flatten(value, f"{key}.")) if isinstance(value, dict) else []
    whole = below[0] if len(below) == 1 else key
    return f"`{whole}` does not exist{_nearest(whole)}"


def _place(key: str, places: dict[str, str], path: Path) -> str:
    """Where `key` stands, or the nearest block around it that stands somewhere."""
    while key:
        if key in places:
            return places[key]
        below = next((place for name, place in places.items() if name.startswith(f"{key}.")), None)
        if below:
            return below
        key = key.rpartition(".")[0]
    return str(path)


def _nearest(key: str) -> str:
    block, _, last = key.rpartition(".")
    having = [model.model_fields for model in _models_of(block) if {last, "kind"} <= model.model_fields.keys()]
    if kinds := sorted({kind for fields in having for kind in get_args(fields["kind"].annotation)}):
        return f" here: it is a key of `{block}.kind` {' or '.join(kinds)}"
    if corrected := _corrected(key):
        return f", but `{corrected}` does"
    names = sorted(set(field_names(Config)))
    same_last = [name for name in names if name.rpartition(".")[2] == last]
    longer = [name for name in names if name.startswith(key)]
    near = same_last or longer[:1] * (len(longer) == 1) or difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    if not near:
        while not _names_in(key):  # the innermost block that exists
            key = key.rpartition(".")[0]
        return f"; here exist: {', '.join(_names_in(key))}"
    verb = "does" if len(near) == 1 else "do"
    return f", but {' and '.join(f'`{name}`' for name in near)} {verb}"


def _names_in(block: str) -> list[str]:
    """The keys of a block, which may be an element of a list."""
    return list(dict.fromkeys(name for model in _models_of(block) for name in model.model_fields))


def _models_of(block: str) -> list[type[BaseModel]]:
    """What a block, which may be an element of a list, can be of."""
    models: list[type[BaseModel]] = [Config]
    for part in (part for part in block.split(".") if part and not part.isdigit()):
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [block for info in fields for block in blocks_in(info.annotation, of_lists=True)]
    return models


def _corrected(key: str) -> str | None:
    """The key that is meant if each of its parts resembles one that may stand there, block by block."""
    found = ""
    for part in key.split("."):
        near = [part] if part.isdigit() else difflib.get_close_matches(part, _names_in(found), n=1)
        if not near:
            return None
        found = f"{found}.{near[0]}".removeprefix(".")
    return found


def field_names(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted key there is, over all kinds of every union."""
    for name, info in model.model_fields.items():
        blocks = blocks_in(info.annotation)
        if not blocks:
            yield f"{prefix}{name}"
        for block in blocks:
            yield from field_names(block, f"{prefix}{name}.")
