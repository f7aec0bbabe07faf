"""What the demo promises: every method, on generated beetles with a signal, a domain shift, and nothing where there is none."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline import demo
from pipeline.disk.layout import PROJECT
from tests.conftest import carabid

SEEDS = 2


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole `carabid demo`; its output lies beside it."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "pipeline.cli", "demo", "--out", str(folder)]
    environ = {name: value for name, value in os.environ.items() if name != "CARABID_ROOT"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=environ, timeout=1200)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (folder / "output.txt").write_text(done.stdout)
    return folder


def summaries(place: Path, experiment: str) -> list[dict[str, Any]]:
    found = place.glob(f"trained/{experiment}/*/results.json")
    return [json.loads(path.read_text())["summary"] for path in found]


def mean_r2(place: Path, experiment: str, part: str = "in_domain") -> float:
    return statistics.fmean(summary[part]["r2"] for summary in summaries(place, experiment))


def test_seven_methods_two_plain_baselines_and_the_control_stand_in_the_table(place: Path) -> None:
    counts = {name: len(summaries(place, f"beetles-{name}")) for name in (*demo.METHODS, "frozen-permuted", *demo.PLAIN)}
    assert counts == dict.fromkeys([*demo.METHODS, "frozen-permuted"], SEEDS) | dict.fromkeys(demo.PLAIN, 1)
    table = (place / "output.txt").read_text()
    assert all(f"beetles-{name} " in table for name in counts) and "The mean predictor" in table


def test_the_frozen_head_learns_loses_out_of_domain_and_learns_nothing_from_permuted_targets(place: Path) -> None:
    inside = mean_r2(place, "beetles-frozen")
    assert 0.3 <= inside <= 0.8
    assert mean_r2(place, "beetles-frozen", "out_of_domain") <= inside - 0.15
    assert mean_r2(place, "beetles-frozen-permuted") <= 0.05


@pytest.mark.parametrize("method", demo.METHODS)
def test_every_method_beats_the_mean_predictor_in_domain(place: Path, method: str) -> None:
    for summary in summaries(place, f"beetles-{method}"):
        assert summary["in_domain"]["r2"] > summary["mean_predictor"]["in_domain"]["r2"]


def test_again_it_has_nothing_to_do_and_shows_the_same_table(place: Path) -> None:
    again = carabid("demo", "--out", place, root=place).stdout
    assert "done" not in again and again.partition("minutes")[0].rpartition("\n")[0] in (place / "output.txt").read_text()


def test_the_table_is_shown_and_the_failure_said_where_a_trial_failed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trial = root / "trained" / "beetles-frozen" / "seed=0-00000000"
    trial.mkdir(parents=True)
    (trial / "config.yaml").write_text("")
    (trial / "failure.json").write_text('{"stage": "train", "message": "the loss became nan"}')
    demo.show()
    assert "the loss became nan" in capsys.readouterr().out
