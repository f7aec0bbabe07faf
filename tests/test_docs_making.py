"""Pages that are made from the code: every key and every command is there, with what people are told of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs.making import commands, keys, notebooks
from docs.making.tables import cell
from pipeline.cli.commands import COMMANDS
from pipeline.config.kinds import blocks_in
from pipeline.config.section import Section
from pipeline.config.trial import Config

PAGES = {title: keys.page(path) for title, path in keys.pages()}


def keys_below(block: type[Section], at: str, seen: tuple[Any, ...] = ()) -> Iterator[str]:
    """Every key that may stand in a block, at least once; but for `kind`, which headings have."""
    for name, field in block.model_fields.items():
        key = f"{at}.{name}" if at else name
        if name != "kind":
            yield key
        for below in blocks_in(field.annotation, of_lists=True):
            if below not in seen:
                yield from keys_below(below, key, (*seen, below))


KEYS = {
    name: [key for below in blocks_in(field.annotation) for key in keys_below(below, name, (below,))]
    for name, field in Config.model_fields.items()
    if blocks_in(field.annotation)
}
"""Of each block; now, before another test defines kinds of its own."""


def test_every_block_has_a_page() -> None:
    named = {name for name, field in Config.model_fields.items() if blocks_in(field.annotation)}
    assert set(PAGES) == named | {keys.TOP, keys.CLUSTER}


@pytest.mark.parametrize("block", KEYS)
def test_every_key_of_a_block_has_a_row_or_stands_where_the_page_says(block: str) -> None:
    page = PAGES[block]
    told = dict(re.findall(r"`(\S+)` \{: #\S+ \}\n\nAs \[`(\S+)`\]", page))
    for key in KEYS[block]:
        elsewhere = next((key.replace(mine, other, 1) for mine, other in told.items() if key.startswith(f"{mine}.")), key)
        assert f"| `{key}` |" in page or f"| `{elsewhere}` |" in page, key


def test_a_row_says_what_a_key_takes_its_default_and_its_line_of_documentation() -> None:
    row = next(line for line in PAGES["optim"].splitlines() if line.startswith("| `optim.lr` |"))
    assert row == (
        "| `optim.lr` | number, >\N{NO-BREAK SPACE}0 | `0.0001` | Base learning rate; parts of the model scale it "
        "(`encoder.lr_scale`, `head.lr_scale`, …). |"
    )


def test_a_kind_has_a_section_with_what_it_inherits() -> None:
    section = PAGES["schedule"].partition("`schedule.kind: exponential`")[2].partition("\n## ")[0]
    assert "| `schedule.gamma` |" in section and "Epochs of linear warm-up." in section


def test_every_command_and_its_options_have_their_place() -> None:
    page = commands.page()
    assert re.findall(r"^## `(\w+)`$", page, re.M) == [command.__name__ for command in COMMANDS]
    assert "| `--dry-run` |  | Show every script, queue nothing. |" in page
    assert "| `--check`, `--no-check` | `--check` |" in page


def test_no_text_ends_a_cell_of_a_table() -> None:
    assert cell("a | b\n<c>") == "a \\| b &lt;c>"


def test_a_notebook_becomes_a_page_of_its_texts_code_and_what_was_printed(tmp_path: Path) -> None:
    printed = {"output_type": "stream", "text": ["2\n"]}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [printed]},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    assert notebooks.page(tmp_path / "a.ipynb") == "# Title\nwords\n\n```python\n1 + 1\n```\n\n```text\n2\n```"
    assert notebooks.page_of("a.ipynb") == "a.md" and notebooks.page_of("b.md") == "b.md"
