"""Each script of benchmarks/ in a short form: that it runs, and that the two ways it sets side by side say the same."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from benchmarks import (
    adapters,
    biomass,
    decoding,
    extraction,
    forecasts,
    gpu,
    gpu_heads,
    grid16,
    head_training,
    heads_together,
    ranks,
    report,
    ridge,
    ridge_stack,
    shifted,
    silhouettes,
    start,
    tails,
)
from pipeline.disk.layout import PROJECT
from tests import conftest


def test_every_script_has_a_short_form_here() -> None:
    scripts = {path.stem for path in (PROJECT / "benchmarks").glob("*.py")} - {"__init__", "figure"}
    known = (
        adapters,
        biomass,
        decoding,
        extraction,
        forecasts,
        gpu,
        gpu_heads,
        grid16,
        head_training,
        heads_together,
        ranks,
        report,
        ridge,
        ridge_stack,
        shifted,
        silhouettes,
        start,
        tails,
    )
    assert scripts == {module.__name__.rpartition(".")[2] for module in known}


def test_decoding_says_what_the_sample_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIZE", "LARGE"):
        monkeypatch.setattr(decoding, name, (900, 600))
    found = {figure.what: figure for figure in decoding.measure(short=True)}
    apart = [figure for what, figure in found.items() if what.startswith("greatest difference of a pixel, exact")]
    assert len(apart) == 2 and all(figure.is_met() for figure in apart)
    assert found["least cosine, fast beside exact"].value > 0.99


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


def test_the_ridge_stack_says_what_scikit_learn_says(capsys: pytest.CaptureFixture[str]) -> None:
    ridge_stack.main(40, 3, 6)
    found = re.search(r"carabid \d+\.\d s, scikit-learn \d+\.\d s\nratio .* at most (.*)", capsys.readouterr().out)
    assert found and float(found[1]) < 1e-8


def test_start_loads_a_module_each_way(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["start.py", "1", "yaml"])
    start.main()
    assert re.fullmatch(r"yaml: plain \d\.\d\d s, carabid \d\.\d\d s: ratio \d+\.\d\d\n", capsys.readouterr().out)


def test_a_report_of_many_trials_is_written_and_opened(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report.py", "5"])
    monkeypatch.setenv("CARABID_ROOT", "")
    report.main()
    assert re.search(r"5 trials: written in .* MB, opened in (\d\.\d\d s|no browser here)\n$", capsys.readouterr().out)


def test_ridge_finds_the_same_weights_both_ways() -> None:
    assert all(figure.value > 0 and figure.at_least for figure in ridge.measure(short=True))


def test_heads_are_trained_together_where_there_is_no_gpu_too() -> None:
    (figure,) = gpu_heads.measure(short=True)
    assert figure.at_most == 2 and figure.value > 0
    assert [each.at_least for each in heads_together.measure(short=True)] == [1]


@pytest.mark.jobs
def test_a_grid_from_raw_images_has_results_both_ways() -> None:
    (figure,) = grid16.measure(short=True)
    assert figure.at_least == 10 and "1 of 1 runs measured" in figure.about


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
    network = biomass.TRAINED["two-stream"]
    one = replace(biomass.FROZEN["one"], overrides=(*biomass.FROZEN["one"].overrides, "model.head.folds=3"))
    quick = ("train.epochs=1", "train.head_first=null", "optim.ema=0", "backbone.views.sizes=[32]", *biomass.POSES)
    tables = {
        "frozen": {"stack": one, "no-sums": replace(one, label="bare", overrides=(*one.overrides, "data.sums={}"))},
        "trained": {"two-stream": replace(network, overrides=quick), "flips": biomass.TRAINED["flips"]},
    }
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
