"""The HTML page of experiments: what it says is what results say, it asks no network for anything, its charts stand alone; in a
real browser it renders, sorts and filters by keyboard, and axe finds no serious fault."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from pipeline.disk.layout import ExperimentDir
from pipeline.disk.writing import read_json
from pipeline.errors import UserError
from pipeline.experiments.reading import load_experiment
from pipeline.metrics.charts.chart import MOST_POINTS, Chart, sampled
from pipeline.metrics.charts.classes import class_charts
from pipeline.metrics.charts.drawing import INK, to_png, to_svg
from pipeline.metrics.charts.numbers import number_charts
from pipeline.metrics.charts.retrieval import retrieval_charts
from pipeline.metrics.retrieval import neighbours
from pipeline.reporting.page import grid as grid_section
from pipeline.reporting.page import page
from pipeline.reporting.page.generalising import frontier
from pipeline.reporting.page.section import Table, number, text
from pipeline.reporting.results import Row
from pipeline.reporting.results import collect as collect_rows
from pipeline.stages import collect, evaluate, extract, train
from pipeline.tasks import load_task
from tests.conftest import Assets, carabid
from tests.test_open_clip_folder import with_simple_tokens
from tests.towers import write_model

RNG = np.random.default_rng(0)
HOSTILE = '<script>alert("1")</script>&'


# ---------------------------------------------------------------- charts
def of_numbers(n: int = 60, target: str = "y") -> list[Chart]:
    truth = RNG.normal(size=n)
    groups = pd.DataFrame({"group": [f"g{i}" for i in range(n)], "domain": [f"D{i % 9}" for i in range(n)], "target": target,
                           "n": RNG.integers(1, 40, n), "truth": truth, "mean": truth + RNG.normal(size=n) / 3})  # fmt: skip
    images = groups.rename(columns={"mean": "prediction"}).assign(id=groups["group"], species=[f"s{i % 3}" for i in range(n)])
    images = images.assign(site=[f"site {i % 2}" for i in range(n)], date=[f"2018-{1 + i % 12:02d}-03" for i in range(n)])
    groups = groups.assign(mu=groups["mean"], sigma=1 / 3)
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
    ranks = {name: {"accuracy": share, "probability": share / 2} for name, share in (("species", 0.2), ("genus", 0.6))}
    figures = {"id.i2t_map": 0.6, "ood.i2t_map": 0.2, "few.i2i_map": None}
    return list(retrieval_charts(classes, {"figures": figures, "ranks": ranks}))


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
        assert to_svg.__wrapped__(chart) == svg, "the same again"
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


def test_of_many_classes_those_that_have_rows_count_and_images_of_one_individual_apart() -> None:
    rows = [("a", 0, "x", 1, 0.6), ("a", 0, "y", 0, 0.4), ("a", 1, "z", 1, 0.1), ("a", 1, "y", 0, 0.7), ("b", 0, "y", 1, 0.9)]
    images = pd.DataFrame(rows, columns=["id", "nth", "name", "truth", "prediction"])
    images = images.assign(group=images["id"], target="label=" + images["name"]).drop(columns="name")
    confusion, reliability = class_charts(images)  # of what is not kept, nobody knows at what price it is found
    assert confusion.table.loc["z", "y"] == 1 and confusion.table.to_numpy().sum() == 3
    assert reliability.table["n"].sum() == 3 and np.isfinite(reliability.table.to_numpy()).all()


def test_what_cannot_be_drawn_is_said_and_hides_nothing_else() -> None:
    def fail(axes: Any, table: Any) -> None:
        raise ZeroDivisionError("mine")

    broken = Chart("broken", "Broken", "It shows nothing.", pd.DataFrame({"x": [1]}), fail)
    html = page.render("title", "about", [page.Section("a", "A", charts=[broken, CHARTS["retrieval"][0]])])
    assert "It cannot be drawn: ZeroDivisionError: mine" in html and html.count("<svg ") == 1


def test_charts_of_one_section_are_called_differently() -> None:
    section = page.Section("a", "A", charts=[*of_numbers(20, "A/B"), *of_numbers(20, "A-B")])
    names = [chart.name for chart in page._with_own_names(section).charts]
    assert len(set(names)) == len(names) and "observed-A-B" in names and "observed-A-B-2" in names


def test_groups_without_a_domain_are_drawn_too() -> None:
    groups = pd.DataFrame({"group": list("abcd"), "domain": ["D1", None, "D2", None], "n": 1, "target": "y",
                           "truth": [1.0, 2, 3, 4], "mean": [1.0, 2, 3, 5]})  # fmt: skip
    assert set(next(iter(number_charts(None, groups, {}))).table["domain"]) == {"D1", "D2", "unknown"}
    assert list(number_charts(None, groups.assign(mean=np.nan), {})) == []


def test_a_page_replaces_no_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "notes.html").write_text("mine")
    for name, words in (("notes.html", "is no page of Carabid's"), ("notes.json", "name a file that ends in .html")):
        with pytest.raises(UserError, match=words):
            page.check_place(tmp_path / name)


def test_a_large_scatter_is_sampled_and_says_so() -> None:
    table, said = sampled(pd.DataFrame({"x": range(5 * MOST_POINTS)}))
    assert len(table) == MOST_POINTS and said == " 2,000 of 10,000 points, drawn at random."
    assert sampled(pd.DataFrame({"x": range(5)}))[1] == ""


def test_the_frontier_holds_what_no_other_beats_in_both() -> None:
    table = pd.DataFrame({"known": [1.0, 2.0, 3.0, 3.0, 0.5], "new": [5.0, 4.0, 1.0, 2.0, 3.0]})
    assert frontier(table, lower=False).index.tolist() == [0, 1, 3]
    assert frontier(-table, lower=True).sort_index().index.tolist() == [0, 1, 3]


def test_two_axes_that_no_trial_has_both_of_are_not_set_over_one_another() -> None:
    """The penalty of one classifier and the neighbours of another."""
    svc = [{"head": "svc", "C": c, "value": 0.5} for c in (1, 10)]
    table = pd.DataFrame([*svc, *({"head": "knn", "k": k, "value": 0.6} for k in (3, 7))])
    assert grid_section._pairs(table, ["C", "k", "head"]) == []
    both = [{"lr": lr, "wd": wd, "value": 0.5} for lr in (1, 2) for wd in (3, 4)]
    assert grid_section._pairs(pd.DataFrame(both), ["lr", "wd"]) == [("lr", "wd")]


def test_seasons_are_in_the_order_of_the_year() -> None:
    (chart,) = [each for each in CHARTS["numbers"] if each.name.endswith("by-season")]
    assert list(chart.table["season"].cat.categories) == ["Dec–Feb", "Mar–May", "Jun–Aug", "Sep–Nov"]
    assert set(chart.table["season"].value_counts()) == {15}


def test_the_nearest_images_of_a_query_are_others_and_in_order() -> None:
    images = RNG.normal(size=(40, 6)).astype("float32")
    labels = np.repeat(np.arange(8), 5)
    found = neighbours(images, labels, 5, 3)
    assert [labels[query] for query, _ in found] == sorted({labels[query] for query, _ in found}) and len(found) == 5
    whole = images / np.linalg.norm(images, axis=1, keepdims=True)
    for query, near in found:
        cosines = whole @ whole[query]
        cosines[query] = -2
        assert [i for i, _ in near] == np.argsort(-cosines)[:3].tolist() and near[0][1] == pytest.approx(cosines.max(), abs=1e-5)
    assert neighbours(images, labels, 5, 3) == found and neighbours(images[:1], labels[:1], 5, 3) == [(0, [])]


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
        self.links: list[str] = []
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
        found = self.links if tag == "a" else self.fetched
        found += [place for place in places if not place.startswith("#") and place != "data:,"]
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
def test_the_page_of_a_collection_says_what_results_say_and_fetches_nothing(studied: tuple[Path, ExperimentDir]) -> None:
    root, experiment = studied
    html = experiment.report_html.read_text()
    seen = Reader(html)
    assert seen.sections == ["leaderboard", "grid-quadrats", "tested-quadrats", "courses", "costs", "origin"], seen.sections
    assert {place[:15] for place in seen.fetched} == {"data:image/webp"} and len(seen.fetched) == 20
    assert len(seen.links) == 20 and all((root / "quadrats" / "train" / Path(link).name).is_file() for link in seen.links)
    assert len(set(seen.ids)) == len(seen.ids) and seen.scripts == 1
    rows = [row for row in collect_rows([experiment]) if row.state == "done"]
    best = max(rows, key=lambda row: row.figures["score"] or -np.inf)
    assert f"{best.figures['score']:.3f}" in seen.cells[1] and len(rows) == 7
    for words in ("optim.lr", "train.batch_size", "All axes at once", "The worst cases", "predicted against observed", "7 of "):
        assert words in html, words
    last = read_json(experiment.trial(rows[0].trial).provenance)["train"]
    assert f"torch {last['packages']['torch']}" in html
    assert len(html) < 3_000_000


def test_what_people_called_things_is_text_and_no_markup() -> None:
    sections = [page.Section("a", HOSTILE, [HOSTILE], [Table(HOSTILE, (HOSTILE,), [[text(HOSTILE)]])])]
    html = page.render(HOSTILE, HOSTILE, sections)
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


@pytest.mark.parametrize(("error", "is_kept"), [(RuntimeError("no font"), False), (UserError("is no page"), True)])
def test_no_page_of_earlier_results_is_left_where_none_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, is_kept: bool
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(page, "write", fail)
    experiment = ExperimentDir(tmp_path)
    experiment.report_html.write_text("of before")
    collect._report(experiment, collect_rows([experiment]) or [Row("e", "t", "done")])
    assert experiment.report_html.exists() == is_kept and f"no report: {error}" in capsys.readouterr().err


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


# ---------------------------------------------------------------- in a browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PIXELS = ("backbone={}", "backbone.kind=pixels", "backbone.size=4")
QUICK = ("device=cpu", "features.dtype=fp32", "train.precision=fp32")
STUDIES: dict[str, tuple[str, Sequence[str]]] = {
    "beetles": ("beetles/pixels.yaml", ("backbone.size=4,8",)),
    "butterflies": ("butterflies/logistic.yaml", (*PIXELS, "data.split.n=3", "model.head.kind=logistic,knn")),
    "species": ("species/baseline.yaml", ("data.split.seed=0,1",)),
    "generic": ("generic/classify.yaml", (*PIXELS, "data.split.n=3", "data.label=hybrid_stat", "data.split.fold=0,1,2")),
}


@pytest.fixture(scope="module")
def pages(studied: tuple[Path, ExperimentDir], assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The report that collection has written of quadrats and each of STUDIES."""
    root = tmp_path_factory.mktemp("reports")
    for task, scale in (("butterflies", 0.1), ("species", 0.1)):
        load_task(task).generate(root / task, scale=scale)
    write_model(root / "clip", with_simple_tokens("ViT-B-32"))
    table = f"data.source={root / 'butterflies' / 'butterflies.csv'}"
    data = {
        "beetles": (f"data.source={assets.data}",),
        "butterflies": (table, "data.download={}"),
        "species": (f"data.source={root / 'species'}", f"backbone.name=local-dir:{root / 'clip'}"),
        "generic": (table, f"data.images={root / 'butterflies' / 'images'}"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARABID_ROOT", str(root))
        made = {name: study(name, config, (*data[name], *how)) for name, (config, how) in STUDIES.items()}
        return {"biomass": studied[1].report_html, **made}


def study(name: str, config: str, overrides: Sequence[str]) -> Path:
    """Trains, evaluates and collects; returns the page."""
    experiment = load_experiment(f"configs/{config}", (*QUICK, *overrides, f"experiment={name}"))
    for trial in experiment.trials:
        folder = experiment.dir.trial(trial.name)
        extract.ensure(trial.config)
        train.run(trial.config, folder)
        evaluate.run(trial.config, folder)
    collect.run(experiment.config)
    return experiment.dir.report_html


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is installed: {', '.join(BROWSERS)}")
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser: Browser, pages: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page that has been opened from disk, offline; at its end, that it has asked for nothing and complained of nothing."""
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
    page, said, asked = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address := pages[request.param].as_uri())
    yield page
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert said == []
    context.close()


@pytest.mark.jobs
def test_folds_are_shown_as_one_and_no_lucky_one_of_them(pages: dict[str, Path]) -> None:
    html, root = pages["generic"].read_text(), pages["generic"].parents[2]
    n = len(pd.read_csv(root / "butterflies" / "butterflies.csv"))
    assert f"Each image by the fold that has not learnt from it (3 folds): {n} images of the test split." in html
    assert f"{n} images by class (rows)" in html and "Each of the 3 trials that are taken together" in html
    assert "What its figures are worth" in html and "always saying how frequent each class is" in html


every = pytest.mark.parametrize("opened", ["biomass", *STUDIES], indirect=True)


@pytest.mark.jobs
@every
def test_a_report_has_no_serious_fault_for_whoever_cannot_see_it_in_the_light_and_in_the_dark(opened: Page) -> None:
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found = Axe().run(opened).response["violations"]
        serious = [(each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")]
        assert serious == [], scheme


@pytest.mark.jobs
@every
def test_a_report_shows_its_charts_and_small_pictures_and_fits_a_telephone(opened: Page) -> None:
    charts = opened.locator("figure svg")
    assert charts.count() >= 2
    assert all(box["width"] > 100 and box["height"] > 50 for box in map(box_of, charts.all()))
    images = opened.locator("td img")
    assert images.count() >= 10
    assert opened.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    opened.set_viewport_size({"width": 390, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390


def box_of(element: Any) -> Any:
    return element.bounding_box()


@pytest.mark.jobs
@every
def test_a_table_is_sorted_and_filtered_by_keyboard(opened: Page) -> None:
    box = opened.locator("[data-table]", has_text="The worst cases")
    column = f"td:nth-child({1 + box.locator('th').all_inner_texts().index('error')})"
    errors = [float(text) for text in box.locator(f"tbody tr {column}").all_inner_texts()]
    assert errors == sorted(errors, reverse=True)
    box.get_by_role("button", name="error").focus()
    for order in (errors, errors[::-1]):
        opened.keyboard.press("Enter")
        assert [float(text) for text in box.locator(f"tbody tr {column}").all_inner_texts()] == order
    assert box.locator("th[aria-sort=ascending]").count() == 1
    first = box.locator("tbody tr").first.locator("td").first.inner_text().strip()
    box.get_by_role("searchbox").focus()
    opened.keyboard.type(first)
    shown = box.locator("tbody tr:visible")
    assert 1 <= shown.count() < 10 and all(first in text for text in shown.all_inner_texts())
    assert box.get_by_role("status").inner_text() == f"{shown.count()} of 10"


@pytest.mark.jobs
@pytest.mark.parametrize("opened", ["beetles"], indirect=True)
def test_the_first_step_by_keyboard_leads_to_the_content(opened: Page) -> None:
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.textContent") == "To the content"
    opened.keyboard.press("Enter")
    assert opened.evaluate("location.hash") == "#main"
