"""The page of what can be imported, from docstrings (mkdocstrings reads the source, and imports nothing)."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).parents[2]
PATH = "reference/python.md"
PUBLIC = ("carabid",)
"""Modules for everyone, of which those that there are stand first."""
FOR_AUTHORS = (
    "pipeline.tasks.base.Task",
    "pipeline.tasks.numbers.Numbers",
    "pipeline.tasks.classes.Classes",
    "pipeline.tasks.retrieval.Retrieval",
    "pipeline.metrics.figures.Figure",
    "pipeline.backbones.base.Backbone",
    "pipeline.models.base.Model",
)
"""What a lab's own file builds on (docs/adding.md)."""


def page() -> str:
    """What runs and reads experiments, then what tasks, backbones and heads of one's own are made from."""
    public = [name for name in PUBLIC if _is_here(name)]
    return "\n\n".join(
        [
            "# Python",
            *map(_shown, public),
            "## For tasks, backbones and heads of your own",
            "[How to add one](../adding.md) shows them in use; what a YAML says of each kind is a class of `pipeline.config`.",
            *map(_shown, FOR_AUTHORS),
        ]
    )


def _is_here(name: str) -> bool:
    place = PROJECT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def _shown(name: str) -> str:
    return f"::: {name}"
