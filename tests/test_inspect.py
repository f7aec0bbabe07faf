"""`carabid inspect`: what it finds in data that are damaged on purpose, what it shows of each task, and its page."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline.data.dataset import Dataset
from pipeline.data.near_duplicates import MOST, near_duplicates, shrunk
from pipeline.data.other_columns import coordinates
from pipeline.disk.layout import PROJECT
from pipeline.errors import NotFetched, UserError
from pipeline.experiments.reading import load_experiment
from pipeline.metrics.charts.overview import MOST_BARS, counted, long_tail
from pipeline.metrics.summaries import class_summary, in_order, mean_summary, number_summary, seasons, tail_summary
from pipeline.reporting.inspection.about_images import looked as opened
from pipeline.reporting.inspection.inspection import findings, inspect, to_html
from pipeline.reporting.inspection.look import Look, look
from pipeline.reporting.terminal import squeeze
from pipeline.tasks import load_task
from tests.small import image_files

HOSTILE = '<script>alert("1")<script>&'
GENERIC = "configs/generic/classify.yaml"


def looked(config: str, *overrides: str, most: int = 3000) -> Look:
    return look(load_experiment(config, overrides).config, most)


def text_of(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated butterflies, biomass and species."""
    folder = tmp_path_factory.mktemp("made")
    for task, scale in (("butterflies", 0.05), ("biomass", 0.03), ("species", 0.05)):
        load_task(task).generate(folder / task, scale=scale)
    return folder


def butterflies(folder: Path, *overrides: str, most: int = 3000) -> Look:
    data = (f"data.source={folder / 'butterflies.csv'}", f"data.images={folder / 'images'}", "data.download=null")
    return looked("configs/butterflies/logistic.yaml", *data, *overrides, most=most)


# ---------------------------------------------------------------- near-duplicates
def test_an_image_saved_again_at_another_quality_and_size_is_found_and_other_specimens_are_not(generated: Path) -> None:
    images = [Image.open(path).convert("RGB") for path in image_files(generated / "metadata.csv")[:120]]
    again = []
    for i, (quality, scale) in enumerate([(60, 1.0), (85, 0.8), (80, 1.5), (95, 1.0)]):
        image = images[7 * i].resize((round(images[7 * i].width * scale), round(images[7 * i].height * scale)))
        image.save(generated.parent / f"again-{i}.jpg", quality=quality)
        again.append(Image.open(generated.parent / f"again-{i}.jpg").convert("RGB"))
    found = near_duplicates(np.array([shrunk(image) for image in [*images, *again]]))
    assert {(0, 120), (7, 121), (14, 122), (21, 123)} == set(map(tuple, found.pairs.tolist())) and found.is_all


def test_near_duplicates_are_found_among_thousands_and_a_flood_of_them_ends() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4000, 16, 16, 3)).astype("uint8")
    small[3999] = small[17]
    assert near_duplicates(small).pairs.tolist() == [[17, 3999]]
    flood = near_duplicates(np.zeros((1000, 16, 16, 3), "uint8"))
    assert not flood.is_all and MOST < len(flood.pairs) < 1000 * 999 / 2 + 1
    assert len(near_duplicates(small[:0]).pairs) == len(near_duplicates(small[:1]).pairs) == 0


# ---------------------------------------------------------------- what is found
@pytest.fixture(scope="module")
def planted(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Butterflies with a column `split`, one image truncated, one no image, one not there, one of a hostile name, and copies: of
    a training image in validation, as it is; of another one in test, saved again; of a third, in training, of the other class."""
    import shutil

    folder = tmp_path_factory.mktemp("planted") / "butterflies"
    shutil.copytree(made / "butterflies", folder)
    table = pd.read_csv(folder / "butterflies.csv", dtype=str).drop_duplicates("CAMID", ignore_index=True)
    table["split"] = (["train"] * 3 + ["validation", "test"]) * (len(table) // 5) + ["train"] * (len(table) % 5)
    images = [folder / "images" / name for name in table["filename"]]
    images[0].write_bytes(images[0].read_bytes()[:900])
    images[1].write_text("no image")
    images[2].unlink()
    table.loc[7, "filename"] = f"{HOSTILE}.jpg"
    images[7] = images[7].rename(folder / "images" / f"{HOSTILE}.jpg")
    rows = []
    for name, row, split in (("copy", 6, "validation"), ("again", 7, "test"), ("other", 10, "train")):
        with Image.open(images[row]) as image:
            image.resize((192, 144)).save(folder / "images" / f"{name}.jpg", quality=80)
        rows.append({**table.loc[row], "filename": f"{name}.jpg", "CAMID": name, "split": split})
    shutil.copy(images[6], folder / "images" / "copy.jpg")
    rows[2]["hybrid_stat"] = {"hybrid": "non-hybrid"}.get(table.loc[10, "hybrid_stat"], "hybrid")
    pd.concat([table, pd.DataFrame(rows)]).to_csv(folder / "butterflies.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def damaged(planted: Path) -> Look:
    return butterflies(planted, "data.split={kind: source}")


def test_broken_images_and_copies_in_other_splits_are_found_and_named(damaged: Look) -> None:
    found = findings(damaged)
    n = len(damaged.dataset)
    for start in (
        f"1 image of {n} is not there. ",
        f"2 images of {n - 1} are there and cannot be opened. ",
        "1 pair of near-duplicates stands in train and validation",
        "1 pair of near-duplicates stands in train and test",
        "1 pair of near-duplicates stands in one split with different truths",
        "2 images are copies of one, byte for byte, in several splits",
    ):
        assert sum(line.startswith(start) for line in found) == 1, (start, found)
    assert all(f"butterflies.csv, line {line}:" in " ".join(found) for line in (2, 4))
    assert len(damaged.near.pairs) == 3 and damaged.expected.sum() == 0


def test_the_page_shows_copies_side_by_side_names_as_text_and_asks_no_network_for_anything(damaged: Look) -> None:
    html = to_html(damaged)
    row = next(row for row in re.findall(r"<tr>.*?</tr>", html, re.S) if "again.jpg" in row)
    assert row.count('src="data:image/webp;base64,') == 2
    assert HOSTILE not in html and "&lt;script&gt;alert(&#34;1&#34;)&lt;script&gt;&amp;.jpg" in row
    places = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert {place.split(":")[0] if ":" in place else place[:1] for place in places} <= {"data", "file", "#"}
    assert "url(http" not in html and "@import" not in html
    assert 10 < html.count("<img ") <= 200
    ids = re.findall(r'\sid="([^"]*)"', html)
    assert len(ids) == len(set(ids))


def test_copies_within_a_group_are_expected(planted: Path) -> None:
    twice = pd.read_csv(planted / "butterflies.csv", dtype=str)
    twice = pd.concat([twice, twice.iloc[[20]]])
    twice.to_csv(planted / "twice.csv", index=False)
    seen = looked(
        "configs/butterflies/logistic.yaml", f"data.source={planted / 'twice.csv'}", f"data.images={planted / 'images'}",
        "data.download=null", "data.split={kind: source}",
    )  # fmt: skip
    assert seen.expected.sum() == 1 and seen.leaks.sum() == 2


def test_some_images_are_the_same_ones_each_time_and_it_is_said(made: Path) -> None:
    some = [butterflies(made / "butterflies", most=20) for _ in range(2)]
    assert some[0].seen.images.index.tolist() == some[1].seen.images.index.tolist() and len(some[0].seen.images) == 20
    assert f"20 of {some[0].n_there:,} images were opened, drawn at random (seed 0)" in opened(some[0])


def test_without_images_the_table_is_shown(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load_experiment(
        GENERIC, (f"data.source={made / 'butterflies' / 'butterflies.csv'}", "data.label=hybrid_stat")
    ).config
    inspect(config, 3000, tmp_path / "page.html")
    said = capsys.readouterr().out
    assert "None of the images are there." in said and "Images by class" in said and "Near-duplicates" not in said
    inspect(config, 0)
    assert "images of" in capsys.readouterr().out.split("What stands out")[1]


# ---------------------------------------------------------------- what is shown
def test_beetles_events_are_shown_by_site_and_year_and_targets_by_domain(table: Path) -> None:
    seen = looked("configs/beetles/frozen.yaml", f"data.source={table}")
    html = text_of(to_html(seen))
    for words in ("Groups by site and year", "SPEI_30d by domain", "Events by how dry they were", "How targets go together",
                  "SPEI_1y: how it is spread", "Images of each group", "domain: 1 ("):  # fmt: skip
        assert words in html, words
    assert len(seen.near.pairs) == 0


def test_butterflies_classes_are_counted_by_subspecies_with_hybrids_at_both_parents(made: Path) -> None:
    seen = butterflies(made / "butterflies")
    summaries = {
        each.title: each.table
        for each in seen.task.overview(seen.dataset)
        if hasattr(each, "table") and not hasattr(each, "draw")
    }
    balance = summaries["Images by subspecies (of hybrids a parent's)"]
    kinds = seen.table["label"].value_counts()
    assert balance["hybrid"].sum() == 2 * kinds["hybrid"] and balance["non-hybrid"].sum() == kinds["non-hybrid"]
    assert "Hybrids by parent_subspecies_1 and parent_subspecies_2" in text_of(to_html(seen))


def test_biomass_is_shown_by_state_season_and_species_with_what_follows(made: Path) -> None:
    seen = looked("configs/biomass/two_stream.yaml", f"data.source={made / 'biomass' / 'train.csv'}")
    html = text_of(to_html(seen))
    for words in ("Dry_Total_g by State", "Dry_Total_g by season", "Dry_Clover_g by species", "Dry_Total_g by Height_Ave_cm",
                  "Mean of targets by State", "Dry_Total_g: "):  # fmt: skip
        assert words in html, words


def test_species_are_shown_as_a_long_tail(made: Path) -> None:
    seen = looked("configs/species/baseline.yaml", f"data.source={made / 'species' / 'metadata.csv'}")
    html = text_of(to_html(seen))
    assert "Images of each species" in html and "Ranks above the species" in html and "Number of images of each species" in html
    n = seen.table["label"].value_counts()
    tail = tail_summary(seen.table.assign(species=seen.table["label"]), "species").table
    assert tail["how many of these"].sum() == len(n) and tail["their images"].sum() == len(seen.table)
    chart = long_tail(seen.table.assign(species=seen.table["label"]), "species")
    assert chart.table["images"].tolist() == sorted(n, reverse=True)


def test_a_lab_s_own_table_is_shown_on_a_map_whatever_its_names_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (12, 10, 3)).astype("uint8")).save(tmp_path / f"{i}.png")
        where = {"decimalLatitude": 40 + i / 10, "decimalLongitude": -100 + i / 5}
        rows.append({"filename": f"{i}.png", HOSTILE: i % 7, "day": f"2020-{1 + i % 12:02}-03", "kind": "$x_1$", **where})
    pd.DataFrame(rows).to_csv(tmp_path / "targets.csv", index=False)
    own = (
        f"data.source={tmp_path / 'targets.csv'}",
        f"data.targets=['{HOSTILE}']",
        "data.columns.date=day",
        "data.columns.domain=kind",
    )
    seen = looked("configs/generic/regress.yaml", *own)
    html = to_html(seen)
    places = coordinates(seen.dataset)
    assert places is not None and places["longitude"].tolist() == [row["decimalLongitude"] for row in rows]
    assert HOSTILE not in html and "Map of images: split" in html and "by season" in html and "$x_1$" in html
    assert html.count("<script>") == 1


# ---------------------------------------------------------------- numbers
ALIKE = {"metres": range(1000, 1005), "years": range(2015, 2023), "far behind the point": [0.1234567 + i / 1e6 for i in range(9)]}


@pytest.mark.parametrize("of", ALIKE)
def test_fifths_of_numbers_that_are_much_alike_have_names_of_their_own(of: str) -> None:
    table = pd.DataFrame({"y": [float(value) for value in ALIKE[of]] * 3, "domain": None})
    fifths = load_task("regress").sheets(cast(Dataset, SimpleNamespace(targets=("y",), table=table)))["y"]
    assert fifths.notna().all() and len(set(fifths.cat.categories)) == fifths.nunique() == 5


def test_summaries_count_what_there_is() -> None:
    table = pd.DataFrame({"id": list("abcdef"), "group": list("aabbcd"), "split": ["train"] * 4 + ["test"] * 2,
                          "kind": ["x", "x", "y", "x", None, "y10"], "y": [0.0, 0.0, 1.0, 2.0, 3.0, 4.0]})  # fmt: skip
    (row,) = number_summary(table, ["y"], "images").table.to_dict("records")
    assert row == {"target": "y", "images": 6, "distinct": 5, "zero": 2, "min": 0, "25 %": 0.25, "median": 1.5, "75 %": 2.75,
                   "max": 4, "mean": pytest.approx(10 / 6), "sd": pytest.approx(table["y"].std())}  # fmt: skip
    assert mean_summary(table, ["y"], "split", "images").table.to_numpy().tolist() == [["train", 4, 0.75], ["test", 2, 3.5]]
    classes = class_summary(table, "kind").table
    assert classes[["kind", "images", "train", "test"]].to_numpy().tolist() == [["x", 3, 3, 0], ["y", 1, 1, 0], ["y10", 1, 0, 1]]
    assert classes["share"].tolist() == [0.6, 0.2, 0.2]
    assert in_order(pd.Series(["y10", "y9", "test", "x", "train"])) == ["train", "test", "x", "y9", "y10"]
    assert seasons(pd.Series(["2020-12-01", "2020-02-28", None, "2020-06-01"])).tolist()[:2] == ["Dec–Feb"] * 2
    many = pd.DataFrame({"kind": [f"k{i}" for i in range(40)], "split": "train"})
    assert len(counted(many, "kind").table) == MOST_BARS and "(40 in all)" in counted(many, "kind").said


def test_a_narrow_terminal_breaks_names_and_leaves_out_columns_but_breaks_no_number() -> None:
    header, rows = ["species", "mean", "sd"], [["Cyclotrachelus sigillatus", "-0.123", "0.0456"]]
    assert squeeze(header, rows, 100) == [25, 6, 6]
    assert squeeze(header, rows, 40) == [18, 6, 6] and squeeze(header, rows, 28) == [12, 6] and squeeze(header, rows, 5) == [12]


# ---------------------------------------------------------------- the command
def test_no_file_that_is_not_its_own_page_is_replaced(made: Path, tmp_path: Path) -> None:
    config = load_experiment(
        GENERIC, (f"data.source={made / 'butterflies' / 'butterflies.csv'}", "data.label=hybrid_stat")
    ).config
    own = tmp_path / "notes.html"
    own.write_text("<p>my notes</p>")
    for place, why in ((own, "is no page of Carabid's"), (tmp_path / "page.pdf", "ends in .html")):
        with pytest.raises(UserError, match=why):
            inspect(config, 0, place)
    assert own.read_text() == "<p>my notes</p>"
    page = tmp_path / "new" / "page.html"
    for _ in range(2):
        inspect(config, 0, page)
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_data_of_the_hub_that_are_not_here_are_to_be_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    with pytest.raises(NotFetched, match="carabid fetch"):
        looked("configs/beetles/frozen.yaml", "data.source=nobody/nothing-of-the-kind")


def test_the_command_loads_no_torch_and_ends_well_whatever_it_finds(planted: Path, root: Path, tmp_path: Path) -> None:
    code = "import sys; from pipeline.cli.commands import app; app(standalone_mode=False); sys.exit('torch' in sys.modules)"
    data = (f"data.source={planted / 'butterflies.csv'}", f"data.images={planted / 'images'}", "data.label=hybrid_stat")
    arguments = ("inspect", GENERIC, *data, "--out", str(tmp_path / "page.html"), "--images", "30")
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "What stands out\n- 1 image of" in done.stdout and done.stdout.endswith(f"wrote {tmp_path / 'page.html'}\n")
