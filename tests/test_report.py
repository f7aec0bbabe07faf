"""The HTML page of experiments: what it says is what results say, it asks no network for anything, and its charts stand alone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.disk.layout import ExperimentDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.experiments.reading import load_experiment
from pipeline.metrics.charts.chart import MOST_POINTS, Chart, sampled
from pipeline.metrics.charts.classes import class_charts
from pipeline.metrics.charts.drawing import INK, to_png, to_svg
from pipeline.metrics.charts.numbers import number_charts
from pipeline.metrics.charts.retrieval import retrieval_charts
from pipeline.reporting.page import page
from pipeline.reporting.page.section import Table, number, text
from pipeline.reporting.results import collect as collect_rows
from pipeline.stages import collect, evaluate, extract, train
from pipeline.tasks import load_task
from tests.conftest import carabid

RNG = np.random.default_rng(0)
HOSTILE = '<script>alert("1")</script>&'


# ---------------------------------------------------------------- charts
def of_numbers(n: int = 60, target: str = "y") -> list[Chart]:
    truth = RNG.normal(size=n)
    groups = pd.DataFrame({"group": [f"g{i}" for i in range(n)], "domain": [f"D{i % 9}" for i in range(n)], "target": target,
                           "truth": truth, "mean": truth + RNG.normal(size=n) / 3})  # fmt: skip
    images = groups.rename(columns={"group": "id", "mean": "prediction"}).assign(species=[f"s{i % 3}" for i in range(n)])
    block = {"PIT": [3, 5, 4, 6, 2, 7, 5, 4, 3, 6], "coverage": {"50": 0.5, "80": 0.75}}
    return list(number_charts(images, groups, {target: block}))


def of_classes(names: tuple[str, ...], n: int = 80) -> list[Chart]:
    labels = RNG.integers(0, max(len(names), 2), n)
    said = RNG.dirichlet(np.ones(max(len(names), 2)), n)
    rows = [
        {"id": f"i{i}", "target": f"label={name}", "truth": float(labels[i] == place), "prediction": said[i, place]}
        for i in range(n)
        for place, name in enumerate(names)
    ]
    return list(class_charts(pd.DataFrame(rows)))


def of_retrieval() -> list[Chart]:
    classes = pd.DataFrame({"class": list("abcd"), "n_train": [0, 1, 20, 300], "i2t_map": [0.1, 0.4, 0.7, np.nan]})
    return list(retrieval_charts(classes, {"figures": {"id.i2t_map": 0.6, "ood.i2t_map": 0.2, "few.i2i_map": None}}))


CHARTS = {
    "numbers": of_numbers(),
    "two classes": of_classes(("hybrid",)),
    "three classes": of_classes(("a", "b=c", "d")),
    "retrieval": of_retrieval(),
}


@pytest.mark.parametrize("of", CHARTS)
def test_a_chart_is_one_svg_in_the_ink_of_its_page_whose_ids_are_its_own_and_a_png(of: str) -> None:
    for chart in CHARTS[of]:
        svg = to_svg(chart)
        ElementTree.fromstring(svg)
        ids = re.findall(r'\sid="([^"]*)"', svg)
        assert len(set(ids)) == len(ids) and all(each.startswith(f"{chart.name}-") for each in ids)
        assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg)) <= set(ids)
        assert "currentColor" in svg and INK not in svg and "<metadata" not in svg
        assert not re.search(r"(?:src|href)=\"(?!#)", svg)
        assert to_svg(chart) == svg, "the same again"
        assert to_png(chart).startswith(b"\x89PNG") and len(chart.table) and chart.said.endswith((".", "equal."))
    assert len({chart.name for chart in CHARTS[of]}) == len(CHARTS[of])


@pytest.mark.parametrize("target", [HOSTILE, "../../y", 'a" onload="x', "price in $ of $1", "Dry weight (g)"])
def test_a_target_may_be_called_anything(target: str) -> None:
    for chart in of_numbers(30, target):
        svg = to_svg(chart)
        ElementTree.fromstring(svg)
        assert "<script" not in svg and 'onload="' not in svg and "/" not in chart.name and " " not in chart.name


def test_a_confusion_counts_the_most_probable_class() -> None:
    (confusion, *_) = CHARTS["three classes"]
    assert confusion.table.to_numpy().sum() == 80 and list(confusion.table.index) == ["a", "b=c", "d"]
    share = np.trace(confusion.table.to_numpy()) / 80
    assert f"{100 * share:.1f} % are right" in confusion.said


def test_a_large_scatter_is_sampled_and_says_so() -> None:
    table, said = sampled(pd.DataFrame({"x": range(5 * MOST_POINTS)}))
    assert len(table) == MOST_POINTS and said == " 2,000 of 10,000 points, drawn at random."
    assert sampled(pd.DataFrame({"x": range(5)}))[1] == ""


def test_a_column_is_of_numbers_where_all_that_is_known_is() -> None:
    table = Table("", ("a", "b"), [[number(1.5), text("x")], [number(None), text("y")]])
    assert [table.numeric(i) for i in (0, 1)] == [True, False] and table.rows[1][0].text == "–"


# ---------------------------------------------------------------- the page
class Reader(HTMLParser):
    """What a page is made of, and what it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.fetched: list[str] = []
        self.cells: list[list[str]] = []
        self.ids: list[str] = []
        self.scripts, self.open_cell = 0, False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        of = dict(attributes)
        self.ids += [of["id"]] if of.get("id") else []
        self.sections += [of["id"] or ""] if tag == "section" else []
        self.scripts += tag == "script"
        places = [of[name] or "" for name in ("src", "href", "xlink:href") if name in of]
        self.fetched += [place for place in places if not place.startswith(("#", "data:"))]
        if tag == "tr":
            self.cells.append([])
        if tag == "td":
            self.cells[-1].append("")
            self.open_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.open_cell &= tag != "td"

    def handle_data(self, data: str) -> None:
        if self.open_cell:
            self.cells[-1][-1] += data


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExperimentDir]:
    """A grid of two heads and two rates over generated quadrats, of which one trial has failed."""
    root = tmp_path_factory.mktemp("report")
    load_task("biomass").generate(root / "quadrats", scale=0.08)
    columns = {"image": "image_path", "id": "sample_id", "date": "Sampling_Date", "species": "Species"}
    values: dict[str, Any] = {
        "task": "biomass",
        "experiment": "quadrats",
        "device": "cpu",
        "data": {"source": str(root / "quadrats" / "train.csv"), "long": {}, "columns": columns,
                 "targets": ["Dry_Total_g", "GDM_g", "Dry_Green_g"], "split": {"kind": "folds", "n": 3, "by": ["Sampling_Date"]}},
        "backbone": {"kind": "pixels", "size": 4},
        "features": {"dtype": "fp32"},
        "train": {"epochs": 3, "precision": "fp32"},
        "loss": {"kind": "mse"},
    }  # fmt: skip
    (root / "quadrats.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARABID_ROOT", str(root))
        grid = ("optim.lr=1e-3,1e-2", "train.batch_size=4,8", "optim.weight_decay=0,0.1")
        experiment = load_experiment(root / "quadrats.yaml", grid)
        for trial in experiment.trials[:-1]:
            extract.ensure(trial.config)
            train.run(trial.config, experiment.dir.trial(trial.name))
            evaluate.run(trial.config, experiment.dir.trial(trial.name))
        last = experiment.dir.trial(experiment.trials[-1].name)
        last.path.mkdir()
        collect.run(experiment.config)
        return root, experiment.dir


@pytest.mark.jobs
def test_a_page_says_what_results_say_and_fetches_nothing(studied: tuple[Path, ExperimentDir], tmp_path: Path) -> None:
    _, experiment = studied
    html = page.write([experiment], tmp_path / "page.html").read_text()
    seen = Reader(html)
    assert seen.sections == ["leaderboard", "grid-quadrats", "tested-quadrats", "courses", "costs", "origin"], seen.sections
    assert seen.fetched == [] and len(set(seen.ids)) == len(seen.ids) and seen.scripts == 1
    rows = [row for row in collect_rows([experiment]) if row.state == "done"]
    best = max(rows, key=lambda row: row.figures["score"] or -np.inf)
    assert f"{best.figures['score']:.3f}" in seen.cells[1] and len(rows) == 7
    for words in ("optim.lr", "train.batch_size", "All axes at once", "The worst cases", "predicted against observed", "7 of "):
        assert words in html, words
    last = read_json(experiment.trial(rows[0].trial).provenance)["train"]
    assert f"torch {last['packages']['torch']}" in html
    assert len(html) < 3_000_000


@pytest.mark.jobs
def test_what_people_called_things_is_text_and_no_markup(studied: tuple[Path, ExperimentDir], tmp_path: Path) -> None:
    _, experiment = studied
    sections = [page.Section("a", HOSTILE, [HOSTILE], [Table(HOSTILE, (HOSTILE,), [[text(HOSTILE)]])])]
    html = page.render([experiment], [], sections)
    assert HOSTILE not in html and Reader(html).scripts == 1
    assert [cell for row in Reader(html).cells for cell in row] == [HOSTILE]


@pytest.mark.jobs
def test_the_command_writes_the_page_beside_the_results_and_pictures_where_they_are_asked_for(
    studied: tuple[Path, ExperimentDir], tmp_path: Path
) -> None:
    root, experiment = studied
    figures = tmp_path / "figures"
    said = carabid("report", "quadrats", "--figures", figures, root=root).stdout
    assert said.strip() == str(experiment.report_html) and experiment.report_html.is_file()
    names = {path.suffix: {each.stem for each in figures.glob(f"*{path.suffix}")} for path in figures.iterdir()}
    assert set(names) == {".svg", ".png", ".csv"} and len({frozenset(each) for each in names.values()}) == 1
    observed = pd.read_csv(figures / "tested-quadrats-observed-Dry_Total_g.csv")
    assert {"truth", "mean"} <= set(observed) and "currentColor" not in next(figures.glob("*.svg")).read_text()
    with pytest.raises(UserError, match="exists: name another folder for --figures"):
        page.write([experiment], tmp_path / "page.html", figures)
    with pytest.raises(UserError, match="name the experiments"):
        page.write([], tmp_path / "page.html")


@pytest.mark.jobs
def test_a_trial_whose_metrics_cannot_be_read_has_no_course(studied: tuple[Path, ExperimentDir], tmp_path: Path) -> None:
    from pipeline.reporting.page.courses import courses

    _, experiment = studied
    rows = collect_rows([experiment])
    whole = courses([experiment], rows)
    trial = experiment.trial(next(row.trial for row in rows if row.state == "done"))
    kept = trial.metrics.read_text()
    try:
        trial.metrics.write_text(json.dumps({"epoch": 0})[:-3])
        assert len(courses([experiment], rows).charts[0].table) < len(whole.charts[0].table)
    finally:
        trial.metrics.write_text(kept)
