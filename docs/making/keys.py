"""Pages of the keys of a configuration, from the models themselves: a page for each block, a section for each kind, a row for
each key with what it takes, its default and its line of documentation."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from docs.making.tables import cell, table
from pipeline.config.kinds import Kind, blocks_in
from pipeline.config.section import Section
from pipeline.config.trial import Config
from pipeline.experiments.cluster import Profile

FOLDER = "reference/keys/"
TOP = "trial"
CLUSTER = "cluster"
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
ENDLESS = 2**62
"""A bound that is the computer's, not a reader's."""
PLAIN = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text"}
GRID = """
An experiment's YAML may have three keys more. `base:` names another YAML, relative to it, of which it says only what differs.
`grid:` lists values of keys, `{optim.lr: [1e-4, 3e-4]}`, and each cell is a trial; so does a comma on the command line,
`optim.lr=1e-4,3e-4`. `variants:` names methods that make no product, each with keys and axes of its own;
`variants=a,b` chooses some.
"""


def pages() -> list[tuple[str, str]]:
    """Title and path of each page."""
    blocks = [name for name, field in Config.model_fields.items() if blocks_in(field.annotation)]
    return [(name, f"{FOLDER}{name}.md") for name in (TOP, *blocks, CLUSTER)]


def page(path: str) -> str:
    """The text of one."""
    name = path.removeprefix(FOLDER).removesuffix(".md")
    if name == TOP:
        return f"# The whole configuration\n{GRID}\n{_rows(Config, '')}"
    if name == CLUSTER:
        return f"# A cluster profile\n\n{_doc(Profile)}\n\n{_rows(Profile, '')}\n{_below(Profile, '', 2, {})}"
    field = Config.model_fields[name]
    said = _lines(Config).get(name, "")
    return f"# `{name}` {{: #{name} }}\n\n{said}\n\n{_blocks(field.annotation, name, 2, {})}"


def _blocks(annotation: Any, at: str, level: int, told: dict[Any, str]) -> str:
    """The blocks that may stand at a key: one, or a section for each kind, if these are not `told` at another key already."""
    blocks = tuple(blocks_in(annotation, of_lists=True))
    if blocks in told:
        return f"As [`{told[blocks]}`](#{_anchor(told[blocks])})."
    told[blocks] = at
    if len(blocks) == 1:
        return f"{_doc(blocks[0])}\n\n{_rows(blocks[0], at)}\n{_below(blocks[0], at, level, told)}"
    return "\n".join(_kind(block, at, level, told) for block in blocks)


def _kind(block: Any, at: str, level: int, told: dict[Any, str]) -> str:
    names = " | ".join(map(str, get_args(block.model_fields["kind"].annotation)))
    heading = f"{'#' * level} `{at}.kind: {names}`"
    return f"{heading}\n\n{_doc(block)}\n\n{_rows(block, at)}\n{_below(block, at, level + 1, told)}"


def _below(block: Any, at: str, level: int, told: dict[Any, str]) -> str:
    """The blocks within a block."""
    return "".join(
        f"\n{'#' * level} `{_key(at, name)}` {{: #{_anchor(_key(at, name))} }}\n\n"
        f"{_blocks(field.annotation, _key(at, name), min(level + 1, 6), told)}\n"
        for name, field in block.model_fields.items()
        if (blocks := tuple(blocks_in(field.annotation, of_lists=True))) and told.get(blocks) != _key(at, name)
    )


def _anchor(key: str) -> str:
    return key.replace(".", "-")


def _rows(block: Any, at: str) -> str:
    lines = _lines(block)
    rows = [
        (f"`{_key(at, name)}`", _takes(field), _default(field), lines.get(name, ""))
        for name, field in block.model_fields.items()
        if name != "kind"  # which its heading says
    ]
    return f'<div class="keys" markdown>\n\n{table(("key", "takes", "default", ""), rows)}\n</div>\n' if rows else ""


def _key(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


# ---------------------------------------------------------------- words
def _takes(field: FieldInfo) -> str:
    limits = [(sign, getattr(each, name, None)) for each in field.metadata for name, sign in BOUNDS.items()]
    bounds = [f"{sign}\N{NO-BREAK SPACE}{value:g}" for sign, value in limits if value is not None and value < ENDLESS]
    return ", ".join([_words(field.annotation), *bounds])


def _words(annotation: Any) -> str:
    """What may stand at a key so annotated."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is NoneType:
        return "`null`"
    if annotation in PLAIN:
        return PLAIN[annotation]
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "a block, by its kind" if Kind in annotation.__bases__ else "a block"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, arguments)))
    if origin is tuple:
        return (
            f"list of {_words(arguments[0])}"
            if arguments[-1] is Ellipsis
            else f"list of {len(arguments)}: {_words(arguments[0])}"
        )
    if origin is dict:
        return f"mapping to {_words(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        return _takes(FieldInfo.from_annotation(annotation))
    return str(getattr(annotation, "__name__", annotation))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be named"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Section):
        return f"`{{kind: {kind}}}`" if (kind := getattr(value, "kind", None)) else "as below"
    return f"`{_yaml(value)}`" if value != "" else ""


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_yaml, value))}]"
    return str(value)


# ---------------------------------------------------------------- documentation
def _doc(block: Any) -> str:
    return inspect.cleandoc(block.__doc__ or "")


@cache
def _lines(block: Any) -> dict[str, str]:
    """The line of documentation of each key, of the class that says it last."""
    found: dict[str, str] = {}
    for each in reversed([each for each in block.__mro__ if issubclass(each, Section) and each is not Section]):
        found |= _own_lines(each)
    return found


def _own_lines(block: Any) -> dict[str, str]:
    """Of its own keys: the strings behind them in its source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(block))).body
    assert isinstance(body, ast.ClassDef)
    return {
        key.target.id: cell(said.value.value)
        for key, said in zip(body.body, body.body[1:], strict=False)
        if isinstance(key, ast.AnnAssign) and isinstance(key.target, ast.Name)
        if isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant) and isinstance(said.value.value, str)
    }
