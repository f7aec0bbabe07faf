"""What the documentation shows is what there is: code in it stands in the files that it names, and links lead to files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from pipeline.cli.commands import app
from pipeline.disk.layout import PROJECT
from pipeline.experiments.reading import load_experiment

BLOCKS = [
    (path, *found)
    for path in sorted((PROJECT / "docs").glob("*.md"))
    for found in re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", path.read_text(), re.M | re.S)
]


def test_there_is_code_to_hold() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize(
    ("page", "source", "code"), BLOCKS, ids=[f"{page.stem}-{source}-{i}" for i, (page, source, _) in enumerate(BLOCKS)]
)
def test_code_in_the_documentation_stands_in_the_file_that_it_names(page: Path, source: str, code: str) -> None:
    assert code in (PROJECT / source).read_text(), f"{page.name}: {source} has other code now"


@pytest.mark.parametrize("page", [*sorted((PROJECT / "docs").glob("*.md")), PROJECT / "README.md"], ids=lambda path: path.name)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


GUIDE = PROJECT / "docs" / "finetune-bioclip.md"
LINES = re.findall(r"^    carabid (.+)$", GUIDE.read_text(), re.M)


def test_there_are_command_lines_to_hold() -> None:
    assert {shlex.split(line)[0] for line in LINES} >= {"split", "submit", "results", "interpolate", "export", "index", "search"}


@pytest.mark.parametrize("line", LINES)
def test_a_command_line_of_the_guide_is_one_that_the_commands_take(line: str) -> None:
    """Its options are there, its YAML too, and its overrides name keys of it and values that go together."""
    name, *arguments = shlex.split(line)
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = commands[name].make_context(name, list(arguments)).params
    if str(config := found.get("config") or "").endswith(".yaml"):
        assert load_experiment(PROJECT / config, found["overrides"] or ()).trials


@pytest.mark.parametrize("line", re.findall(r"`((?:lora|finetune)\.yaml [^`]+=[^`]+)`", GUIDE.read_text()))
def test_a_way_that_the_guide_tells_the_needs_of_is_a_configuration(line: str) -> None:
    config, *overrides = line.split()
    assert load_experiment(PROJECT / "configs/species" / config, ("data.source=photos", *overrides)).trials
