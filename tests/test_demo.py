"""What the demo promises: every method, on generated beetles with a signal, a domain shift, and nothing where there is none."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipeline import demo
from pipeline.backbones.lite0 import find_weights
from pipeline.disk.layout import PROJECT

SEEDS = 2


pytestmark = pytest.mark.jobs
WHOLE = tuple(name for name in demo.METHODS if name != "pretrained" or find_weights())
FORMS = {"frozen alone": ("frozen",), "whole": WHOLE}
"""Methods that the demo trains, beside the plain baselines and the control; the pretrained network where it is installed."""
ONLY = "import sys; from pathlib import Path; from pipeline import demo; "
ONLY += "demo.METHODS = {name: demo.METHODS[name] for name in sys.argv[2:]}; demo.SCALE = 0.5; demo.find_weights = lambda: None; "
ONLY += "demo.run(Path(sys.argv[1]))"


@dataclass(frozen=True)
class Demo:
    """The folder of a demo that ran; what it printed lies beside it."""

    folder: Path
    methods: tuple[str, ...]

    def run(self) -> str:
        """Run it, or again; what it prints."""
        command = [sys.executable, "-c", ONLY, str(self.folder), *self.methods]
        if self.methods == FORMS["whole"]:
            command = [sys.executable, "-m", "pipeline.cli", "demo", "--out", str(self.folder)]
        environ = {name: value for name, value in os.environ.items() if name != "CARABID_ROOT"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environ, timeout=1200)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module", params=["frozen alone", pytest.param("whole", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    made = Demo(tmp_path_factory.mktemp("demo"), FORMS[request.param])
    (made.folder / "output.txt").write_text(made.run())
    return made


def summaries(place: Demo, experiment: str) -> list[dict[str, Any]]:
    found = place.folder.glob(f"trained/{experiment}/*/results.json")
    return [json.loads(path.read_text())["summary"] for path in found]


def mean_r2(place: Demo, experiment: str, part: str = "in_domain") -> float:
    return statistics.fmean(summary[part]["r2"] for summary in summaries(place, experiment))


def test_the_methods_two_plain_baselines_and_the_control_stand_in_the_table(place: Demo) -> None:
    counts = {name: len(summaries(place, f"beetles-{name}")) for name in (*place.methods, "frozen-permuted", *demo.PLAIN)}
    assert counts == dict.fromkeys([*place.methods, "frozen-permuted"], SEEDS) | dict.fromkeys(demo.PLAIN, 1)
    table = (place.folder / "output.txt").read_text()
    assert all(f"beetles-{name} " in table for name in counts) and "The mean predictor" in table
    assert f"as one page, to open in a browser: {place.folder / 'report.html'}" in table
    page = (place.folder / "report.html").read_text()
    assert all(f"What was predicted: beetles-{name}" in page for name in counts)


def test_the_frozen_head_learns_loses_out_of_domain_and_learns_nothing_from_permuted_targets(place: Demo) -> None:
    inside = mean_r2(place, "beetles-frozen")
    assert 0.3 <= inside <= 0.8
    assert mean_r2(place, "beetles-frozen", "out_of_domain") <= inside - 0.15
    assert mean_r2(place, "beetles-frozen-permuted") <= 0.05


def test_every_method_beats_the_mean_predictor_in_domain(place: Demo) -> None:
    for method in place.methods:
        for summary in summaries(place, f"beetles-{method}"):
            assert summary["in_domain"]["r2"] > summary["mean_predictor"]["in_domain"]["r2"], method


def test_again_it_has_nothing_to_do_and_shows_the_same_table(place: Demo) -> None:
    again, first = place.run(), (place.folder / "output.txt").read_text()
    assert "done" not in again and again.partition("minutes")[0].rpartition("\n")[0] in first


def test_the_table_is_shown_and_the_failure_said_where_a_trial_failed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = root / "trained" / "beetles-frozen" / "seed=0-00000000"
    trial.mkdir(parents=True)
    (trial / "config.yaml").write_text("")
    (trial / "failure.json").write_text('{"stage": "train", "message": "the loss became nan"}')
    demo.show()
    assert "the loss became nan" in capsys.readouterr().out
