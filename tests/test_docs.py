"""What the documentation shows is what there is: code in it stands in the files that it names, and links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipeline.disk.layout import PROJECT

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
