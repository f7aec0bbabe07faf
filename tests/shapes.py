"""Shapes that are checked while tests run: functions whose annotations say one, `Float[Tensor, "images targets"]`, are called
with nothing else. The tests' package installs this; outside of tests an annotation costs nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beartype import beartype
from jaxtyping import install_import_hook

PROJECT = Path(__file__).resolve().parent.parent
SHAPED = re.compile(r"\b(Float|Int|UInt|Bool|Num|Shaped)\d*\[")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its shaped arguments and results checked; what else its annotations say, mypy has read."""
    known = getattr(function, "__globals__", {})

    def says_shape(hint: object) -> bool:
        """By itself, or by a name that the module has for one."""
        return any(SHAPED.search(text) for text in (str(hint), *(str(known.get(name)) for name in re.findall(r"\w+", str(hint)))))

    hints = {name: hint for name, hint in function.__annotations__.items() if says_shape(hint)}
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype(function)


def install() -> None:
    """Have the modules of the package that say shapes checked, if they are imported from now on: to go through the hook's wrapper
    costs all other functions several times what they take themselves."""
    files = (path for path in (PROJECT / "pipeline").rglob("*.py") if "jaxtyping" in path.read_text())
    install_import_hook([".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in files], "tests.shapes.check")
