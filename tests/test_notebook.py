"""docs/quickstart.ipynb runs from its first cell to its last, on data that it generates itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from pipeline.disk.layout import PROJECT

NOTEBOOK = PROJECT / "docs" / "quickstart.ipynb"


def test_it_is_kept_without_what_was_printed() -> None:
    """Outputs hold paths of whoever ran it last."""
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert len(cells) > 5 and all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.jobs
def test_every_cell_runs_and_shows_what_the_text_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [key for output in outputs for key in output.get("data", {})]
    assert "image/svg+xml" in shown and shown.count("text/html") >= 4
    assert "'report.html'" in [output.get("data", {}).get("text/plain") for output in outputs]
    assert (tmp_path / "quickstart" / "trained" / "beetles-pixels" / "report.html").is_file()
