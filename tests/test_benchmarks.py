"""Each script of benchmarks/ in a short form: that it runs, and that the two ways it sets side by side say the same."""

from __future__ import annotations

import csv
import platform
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import (
    adapters,
    bench,
    biomass,
    decoding,
    extraction,
    forecasts,
    gpu,
    head_training,
    ranks,
    shifted,
    silhouettes,
    tails,
)
from benchmarks.figure import Figure
from pipeline.disk.layout import PROJECT
from tests import conftest

ALONE = (biomass, forecasts, head_training, ranks, shifted, silhouettes)
"""Scripts that are run by themselves: each has a test of its own here."""
MEASURED = bench.existing((*bench.SCRIPTS, *bench.GPU_SCRIPTS))
SLOW = {"grid16", "growth", "many_trials", "report", "start", "warm_start"}


def test_every_script_has_a_short_form_here() -> None:
    scripts = {path.stem for path in (PROJECT / "benchmarks").glob("*.py")} - {"__init__", "bench", "figure"}
    assert scripts == {module.__name__.rpartition(".")[2] for module in ALONE} | set(MEASURED)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.jobs] * (name in SLOW)) for name in MEASURED])
def test_a_script_measures_something_in_its_short_form(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARABID_ROOT", "")
    figures = import_module(f"benchmarks.{name}").measure(short=True)
    assert len({each.what for each in figures}) == len(figures)
    assert figures or name == "gpu"  # (has a short form of its own below)
    assert all(np.isfinite(each.value) for each in figures), figures
    missed = [each for each in figures if each.unit == "" and not each.is_met()]  # by how much two ways differ: no time
    assert not missed, missed


def test_bench_runs_a_script_in_a_process_with_its_threads_and_shows_its_figures(capfd: pytest.CaptureFixture[str]) -> None:
    assert next(each.what for each in bench.run("ridge", short=True) or ()) == "ridge regression, seven penalties"
    assert "ridge, 1 thread(s)" in (out := capfd.readouterr().out) and "(goal: at least 3)" in out, out
    assert bench.run("figure", short=True) is None  # it has no `measure`
    assert "figure failed: CalledProcessError" in capfd.readouterr().out


def test_bench_measures_once_more_before_a_figure_counts_as_missed() -> None:
    runs = iter([[Figure("fast", 1.0, at_least=2), Figure("small", 3.0, at_most=2)], [Figure("fast", 2.5, at_least=2)]])
    fast, small = bench.rows_of("it", lambda _: next(runs))
    assert (fast.figure, fast.note, fast.is_met) == (Figure("fast", 2.5, at_least=2), "the better of two runs", True)
    assert (small.figure, small.note, small.is_met) == (Figure("small", 3.0, at_most=2), "", False)
    assert bench.rows_of("it", lambda _: [Figure("near", 1.91, at_least=2)])[0].note == ""  # within noise: once is enough


def test_a_missed_figure_and_a_script_that_fails_end_bench_with_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    met, near = bench.Row("it", Figure("met", 3.0, at_least=2)), bench.Row("it", Figure("near", 1.91, at_least=2))
    missed, failed = bench.Row("it", Figure("far", 1.8, at_least=2)), bench.rows_of("bad", lambda _: None)[0]
    assert bench.conclude([met, near]) == 0 and bench.conclude([met, missed]) == bench.conclude([failed]) == 1
    assert "missed: far: 1.8 × (goal: at least 2)" in (out := capsys.readouterr().out) and "missed: bad failed" in out
    table = bench.table([met, near, missed, failed], "a machine")
    verdicts = [line.split(" | ")[3] for line in table.splitlines() if line.endswith("` |")]
    assert verdicts == ["yes", "within noise", "no", "no"] and "4 figures, 2 missed" in table


def test_results_name_neither_the_machine_nor_a_path() -> None:
    told = bench.origin(None)
    assert platform.node() not in told and str(Path.home()) not in told and "torch" in told and "cores" in told, told


def test_bench_refuses_a_benchmark_that_is_not_there_and_measures_no_gpu_where_there_is_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        bench.main(["rigde"])
    assert "no such benchmark: rigde; there are" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert bench.main(["--gpu"]) == 1 and "There is no GPU here" in capsys.readouterr().err


def test_decoding_says_what_the_sample_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SIZE", (900, 600))
    found = {figure.what: figure for figure in decoding.measure(short=True)}
    apart = [figure for what, figure in found.items() if what.startswith("greatest difference of a pixel, exact")]
    assert len(apart) == 2 and all(figure.is_met() for figure in apart)
    fast = found["greatest 1 - cosine to exact, fast"]
    assert fast.value > 0 and fast.is_met()


def test_extraction_is_timed_beside_its_halves() -> None:
    assert [figure.value > 0 for figure in extraction.measure(short=True)] == [True, True]


def test_what_is_for_a_gpu_is_measured_on_one_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    gpu.main()
    assert capsys.readouterr().out == "no GPU that torch can use: nothing is measured\n"
    monkeypatch.setitem(gpu.NETWORKS, "tiny", (2, 64, 32, 32, 1))
    backbone = gpu.make_backbone("tiny")
    pixels = gpu.make_pixels(backbone, 3)
    features = [gpu.compute_features(backbone, pixels, "pooled", 0, dtype) for dtype in ("bf16", "fp32")]
    assert pixels.dtype == gpu.torch.uint8 and gpu.cosine(*features) > 0.9995


def test_head_training_learns_alike_both_ways() -> None:
    ratio, unaided, gathering = head_training.measure(short=True)
    assert ratio.at_least == 2.2 and unaided.value > 0 and 0 < gathering.value < 100


@pytest.mark.parametrize("script", [adapters, tails])
def test_a_step_says_the_same_both_ways(script: ModuleType) -> None:
    apart = [figure for figure in script.measure(short=True) if figure.at_most is not None]
    assert apart and all(figure.is_met() for figure in apart), apart


def test_ranks_says_the_same_both_ways_and_holds_no_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WIDTH": 16, "GENERA": 500, "FAMILIES": 20, "NOISE": 0.5}.items():
        monkeypatch.setattr(ranks, name, value)
    monkeypatch.setattr("sys.argv", ["ranks.py", "300", "20000"])
    ranks.main()
    told = re.findall(r"(\d+) MB.*?([\d.]+) % right", capsys.readouterr().out)
    assert len(told) == 2 and told[0][1] == told[1][1] and 0 < float(told[0][1]) < 100
    assert all(float(most) < 100 for most, _ in told)


def test_silhouettes_are_measured_as_by_hand(tmp_path: Path) -> None:
    mask = np.zeros((40, 50), np.uint8)
    mask[10:20, 5:45] = 255  # 10 high, 40 wide
    Image.fromarray(mask).convert("1").save(tmp_path / "a.png")
    assert silhouettes.write_csv(tmp_path, tmp_path / "shapes.csv") == 1
    with (tmp_path / "shapes.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["filename"] == "a.png"
    measured = [float(row[name]) for name in silhouettes.TARGETS]
    assert measured == pytest.approx([400 / 2000, 4.0, np.sqrt((10**2 - 1) / (40**2 - 1))])


@pytest.mark.jobs
def test_forecasts_compares_methods_over_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = {name: forecasts.MUST_BEAT[name] for name in ("forecast", "ridge")}
    quick["forecast"] = replace(quick["forecast"], overrides=(*forecasts.PIXELS, "train.epochs=2"))
    monkeypatch.setattr(forecasts, "MUST_BEAT", quick)
    monkeypatch.setattr(forecasts, "VARIANTS", {"forecast": quick["forecast"]})
    monkeypatch.setattr(forecasts, "carabid", small)
    monkeypatch.setattr("sys.argv", ["forecasts.py", str(tmp_path), "0"])
    forecasts.main()
    out = capsys.readouterr().out
    assert all(out.count(method.label) >= 2 for method in quick.values()), out
    assert "of 5 |" in out and "nan" not in out, out


@pytest.mark.jobs
def test_shifted_images_are_forecast_with_and_without_what_is_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shifted, "METHODS", {"ridge": shifted.METHODS["ridge"]})
    monkeypatch.setattr(shifted, "SHIFTS", {name: shifted.SHIFTS[name] for name in ("as they are", "white")})
    monkeypatch.setattr(shifted, "carabid", small)
    monkeypatch.setattr("sys.argv", ["shifted.py", str(tmp_path), "0"])
    shifted.main()
    lines = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "ridge, calibrated" in line]
    ordinary, white = ([float(cell.strip(" |")) for cell in line[2:]] for line in lines)
    assert abs(ordinary[0] - ordinary[1]) < 0.1 and white[1] > white[0] + 0.1 and white[3] < white[2], lines


@pytest.mark.jobs
def test_biomass_compares_methods_over_folds_and_evaluates_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = (*biomass.FROZEN["one"].overrides, "backbone.views.sizes=[32]", "model.head.folds=3")
    one = replace(biomass.FROZEN["one"], overrides=quick)
    posed = replace(one, label="bare", overrides=(*quick, "data.sums={}", *biomass.POSES))
    again = replace(biomass.TRAINED["flips"], config="ridge_stack")
    tables = {"frozen": {"stack": one, "no-sums": posed, "flips": again}}
    monkeypatch.setattr(biomass, "TABLES", tables)
    monkeypatch.setattr(biomass, "carabid", small)
    monkeypatch.setattr("sys.argv", ["biomass.py", str(tmp_path), "test_resnet"])
    biomass.main()
    out = capsys.readouterr().out
    assert all(out.count(method.label) == 1 for methods in tables.values() for method in methods.values()), out
    assert "nan" not in out and len(re.findall(r"[+-]\d\.\d{3} ± \d\.\d{3}, \d of 5 \|", out)) == 2, out


def small(*arguments: object, root: Path) -> None:
    """`carabid` on a tenth of the data, on the CPU."""
    more = ("--scale", 0.1) if arguments[0] == "generate" else ("device=cpu", "train.precision=fp32", "features.dtype=fp32")
    conftest.carabid(*map(str, (*arguments, *more)), root=root)
