"""The page of commands, from what typer knows of them."""

from __future__ import annotations

import inspect
from typing import Any

import typer

from docs.making.tables import cell, table
from pipeline.cli.commands import app

PATH = "reference/commands.md"
INTRODUCTION = """# Commands

Exit status: 0 done, 1 the work failed (the message says what to do), 2 the request was wrong.
`carabid COMMAND --help` says the same in a terminal.
"""


def page() -> str:
    """In the order of `carabid --help`."""
    found = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return "\n".join([INTRODUCTION, *(_section(name, command) for name, command in found.items())])


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if not each.opts[0].startswith("-")]
    options = [each for each in command.params if each not in arguments and "--help" not in each.opts]
    rows = [
        *((f"`{_called(each)}`", "", _help(each)) for each in arguments),
        *((_flags(each), _default(each), _help(each)) for each in options),
    ]
    usage = " ".join(["carabid", name, *map(_called, arguments), *(["[OPTIONS]"] if options else [])])
    text = inspect.cleandoc(command.help or "")
    return f"## `{name}`\n\n```text\n{usage}\n```\n\n{text}\n\n" + (table(("", "default", ""), rows) if rows else "")


def _called(argument: Any) -> str:
    called = (argument.metavar or argument.name.upper()).strip("[]")
    many = "" if argument.nargs == 1 or called.endswith("…") else " …"
    return f"{called}{many}" if argument.required else f"[{called}{many}]"


def _flags(option: Any) -> str:
    metavar = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    return ", ".join(f"`{name}{metavar}`" for name in (*option.opts, *option.secondary_opts))


def _default(option: Any) -> str:
    """What counts where it is not given; of a switch nothing, but where it is on."""
    if option.is_flag:
        return f"`{option.opts[0]}`" if option.default else ""
    return "" if option.default in (None, "") else f"`{option.default}`"


def _help(each: Any) -> str:
    return cell(each.help or "")
