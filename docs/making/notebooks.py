"""Pages of notebooks: their texts, code, and what stands below it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def page_of(path: str) -> str:
    """What the page of a notebook is called; of anything else its own name."""
    return f"{path.removesuffix('.ipynb')}.md" if path.endswith(".ipynb") else path


def page(notebook: Path) -> str:
    cells = json.loads(notebook.read_text())["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell))


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    """A text as it is; code, and what it printed, where the notebook keeps that."""
    text = "".join(cell["source"])
    yield text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
    for output in cell.get("outputs", []):
        said = output.get("text") or output.get("data", {}).get("text/plain")
        if said:
            yield f"```text\n{''.join(said).rstrip()}\n```"
