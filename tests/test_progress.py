"""Progress: lines in a log, a bar on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from pipeline import progress as module
from pipeline.progress import progress


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    with progress("work", 100) as advance:
        for _ in range(10):
            now += 7
            advance(10)
    told = capsys.readouterr().err.splitlines()
    assert told == ["work: 50 of 100 images, 1 images/s", "work: 100 of 100 images, 1 images/s"]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress("work", 100, "rows") as advance:
        advance(100)
    assert "work" in terminal.getvalue() and "100/100" in terminal.getvalue() and "rows/s" in terminal.getvalue()
