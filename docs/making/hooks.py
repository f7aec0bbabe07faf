"""What mkdocs is told beside mkdocs.yml: pages that are made from the code, pages of files that lie outside of docs/, links to
these. Nothing that is made is kept: `make docs` makes all of it, and each page of docs/ reads as it stands, too."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.making import commands, keys, notebooks, python

PROJECT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "trained/README.md": "trained.md",
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files outside of docs/ that are pages, and what these are called."""
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml"}
SOURCE = "source/"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A page of keys for each block, in the navigation where it says so."""
    named = [{title: path} for title, path in keys.pages()]
    config.nav = _with_keys(config.nav, named)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    made = {commands.PATH: commands.page(), python.PATH: python.page(), **{path: keys.page(path) for _, path in keys.pages()}}
    made |= {page: (PROJECT / path).read_text() for path, page in PAGES.items()}
    made |= {
        notebooks.page_of(file.src_uri): notebooks.page(PROJECT / "docs" / file.src_uri) for file in _written(files, ".ipynb")
    }
    texts = {
        page: (PROJECT / _origin(page)).read_text()
        for page in (*(file.src_uri for file in _written(files, ".md")), *PAGES.values())
    }
    linked = {path for page, text in texts.items() for path in _linked(page, text)}
    made |= {_source_page(path): _shown(path) for path in linked - set(PAGES) if not path.startswith("docs/")}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the forge follows them → links between pages."""
    at = page.file.src_uri
    if at not in PAGES.values() and not (PROJECT / _origin(at)).is_file():
        return markdown  # made here, with links of the site
    return LINK.sub(lambda found: _on_site(at, found[1]), markdown)


def _written(files: Files, suffix: str) -> list[File]:
    return [file for file in files if file.src_uri.endswith(suffix)]


def _origin(page: str) -> str:
    """The file of the project that a page is made from."""
    return next((path for path, name in PAGES.items() if name == page), f"docs/{page}")


def _linked(page: str, text: str) -> Iterator[str]:
    """Files of the project that a page links to."""
    for link in LINK.findall(text):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(_origin(page)), link))
        if (PROJECT / path).is_file():
            yield path


def _on_site(page: str, link: str) -> str:
    """A link of a page's origin as one of the page; what leads to no file stays as it is, for mkdocs to complain of."""
    path = next(_linked(page, f"]({link})"), None)
    if path is None:
        return link
    target = PAGES.get(path) or (
        notebooks.page_of(path.removeprefix("docs/")) if path.startswith("docs/") else _source_page(path)
    )
    return posixpath.relpath(target, posixpath.dirname(page) or ".")


def _source_page(path: str) -> str:
    return f"{SOURCE}{path}.md"


def _shown(path: str) -> str:
    """A page that shows a file."""
    return f"# {path}\n\n````{LANGUAGES.get(Path(path).suffix, 'text')}\n{(PROJECT / path).read_text()}````\n"


def _with_keys(nav: Any, named: list[dict[str, str]]) -> Any:
    """The navigation with these pages where it says `reference/keys/`."""
    if isinstance(nav, list):
        return [_with_keys(entry, named) for entry in nav]
    if isinstance(nav, dict):
        return {title: _with_keys(entry, named) for title, entry in nav.items()}
    return named if nav == keys.FOLDER else nav
