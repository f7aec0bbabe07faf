"""The report of image–text retrieval, and the stock task that has it: partitions, galleries, buckets, chance, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline.config.evaluation import Evaluate
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json, write_json, write_table
from pipeline.errors import UserError
from pipeline.metrics.figures import Training
from pipeline.metrics.groups import Prediction
from pipeline.metrics.ranks import UNKNOWN
from pipeline.metrics.retrieval import by_chance, mean, rank
from pipeline.metrics.retrieval_compared import COLUMNS
from pipeline.metrics.retrieval_report import Embeddings, chosen_by, class_table, retrieval_report
from pipeline.models.base import Predicted
from pipeline.tasks.retrieval import Embedded, Retrieval
from pipeline.training.samples import joined
from tests.conftest import carabid

Array = Any
GALLERIES: tuple[Literal["stage"], Literal["all"]] = ("stage", "all")
COUNTS = np.array([150, 60, 60, 5, 1, 0, 0, 0, 9])
"""Training images of the classes; the last one is not evaluated on."""
IMAGES = np.array([6, 5, 4, 3, 1, 4, 3, 2, 0])
NAMES = tuple(f"species={name}" for name in "abcdefghi")
TASK = Retrieval()


def drawn(seed: int = 0, counts: Array = COUNTS, noise: float = 1.0) -> Embeddings:
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(len(IMAGES), 6)).astype("float32")
    labels = rng.permutation(np.repeat(np.arange(len(IMAGES)), IMAGES))
    images = (classes[labels] + noise * rng.normal(size=(len(labels), 6))).astype("float32")
    return Embeddings(images, labels, classes, counts)


def report(of: Embeddings, **more: Any) -> dict[str, Any]:
    return retrieval_report(of, {}, 50.0, **more)


# ---------------------------------------------------------------- partitions and galleries
@pytest.mark.parametrize(("part", "own"), [("id", range(5)), ("ood", range(5, 8))])
def test_each_partition_is_ranked_against_its_own_gallery_and_against_that_of_both(part: str, own: range) -> None:
    """Of a class that nothing is evaluated on there is no text in any gallery."""
    of = drawn()
    blocks = report(of)
    for block, among in ((blocks[part], list(own)), (blocks[part]["full"], list(range(8)))):
        rows, items = np.isin(of.labels, own), np.isin(of.labels, among)
        inside, outside = of.labels[rows], of.labels[items]
        i2t = rank(of.images[rows], inside, of.classes[among], np.array(among))
        places = np.searchsorted(np.flatnonzero(items), np.flatnonzero(rows))
        i2i = rank(of.images[rows], inside, of.images[items], outside, places)
        t2i = rank(of.classes[list(own)], np.array(own), of.images[items], outside)
        for name, found in (("i2t", i2t), ("i2i", i2i), ("t2i", t2i)):
            assert block[f"{name}_map"] == mean(found.ap), name
            assert block["at_k"][name]["recall_at_5"] == mean(found.recall[:, 1])
        assert block["acc"] == mean(i2t.precision[:, 0]) and block["t2i_map50"] == mean(t2i.ap_deep)
        by_class = [i2t.ap[inside == c].mean() for c in own]
        assert block["i2t_map_macro"] == pytest.approx(np.mean(by_class)) != block["i2t_map"]
        by_class = [np.nanmean(i2i.ap[inside == c]) for c in own if (inside == c).sum() > 1]
        assert block["i2i_map_macro"] == pytest.approx(np.mean(by_class))
    assert blocks[part]["full"]["i2t_map"] < blocks[part]["i2t_map"], "more to be mistaken for"
    assert (blocks[part]["n"], blocks[part]["n_classes"]) == (IMAGES[list(own)].sum(), len(own))


def test_composites_are_means_of_the_six_maps() -> None:
    blocks = report(drawn())
    maps = [blocks[part][f"{way}_map"] for part in ("id", "ood") for way in ("i2t", "i2i", "t2i")]
    assert blocks["summary"]["comp_map"] == pytest.approx(np.mean(maps))
    assert blocks["summary"]["composite"] == pytest.approx(6 / sum(1 / each for each in maps))
    assert blocks["id"]["harmonic_map"] == pytest.approx(3 / sum(1 / each for each in maps[:3]))
    shares = [blocks[part]["full"]["acc"] * blocks[part]["n"] for part in ("id", "ood")]
    assert blocks["summary"]["acc"] == pytest.approx(sum(shares) / blocks["summary"]["n"])


@pytest.mark.parametrize(
    ("counts", "there", "words"),
    [(np.maximum(COUNTS, 1), "id", "there are no OOD figures"), (0 * COUNTS, "ood", "there are no ID figures")],
)
def test_without_one_of_the_partitions_the_rest_is_told_and_the_lack_said(counts: Array, there: str, words: str) -> None:
    blocks = report(drawn(counts=counts))
    assert {"id", "ood"} & blocks.keys() == {there} and ("buckets" in blocks) == (there == "id")
    assert any(words in warning for warning in blocks["summary"]["warnings"])
    assert blocks["summary"]["composite"] == blocks[there]["harmonic_map"]
    full = {name: value for name, value in blocks[there].items() if name not in ("n", "n_classes", "full")}
    assert blocks[there]["full"] == full


@pytest.mark.parametrize(
    ("few", "words"),
    [
        ({"ood": 1}, ["OOD image→image have no query with anything to find: the composite is of 5 mAPs"]),
        (
            {"id": 1, "ood": 1},
            ["ID image→image and OOD image→image have no query with anything to find: the composite is of 4 mAPs"],
        ),
        ({}, []),
    ],
)
def test_a_composite_of_fewer_than_six_maps_is_said(few: dict[str, int], words: list[str]) -> None:
    of = drawn()
    nth = pd.Series(of.labels).groupby(of.labels).cumcount()
    most = np.where(COUNTS > 0, few.get("id", 99), few.get("ood", 99))
    kept = np.flatnonzero(nth < most[of.labels])
    summary = report(Embeddings(of.images[kept], of.labels[kept], of.classes, of.counts))["summary"]
    assert [warning for warning in summary["warnings"] if "composite" in warning] == words


def test_a_class_of_one_image_is_said_to_be_no_query_among_images() -> None:
    assert "1 classes have one image alone: it is no query of image→image" in report(drawn())["summary"]["warnings"]


def test_embeddings_that_are_not_finite_make_no_figure_and_a_warning() -> None:
    of = drawn()
    of.images[3, 2] = np.nan
    blocks = report(of)
    assert blocks["summary"]["composite"] is None and "id" not in blocks
    assert blocks["summary"]["warnings"] == ["embeddings of 1 of 28 images, or of classes, are not finite: no figure is given"]
    assert chosen_by("composite", of) is None and class_table(of, NAMES)["acc"].isna().all()


def test_a_class_that_nothing_is_evaluated_on_may_have_any_embedding() -> None:
    of = drawn()
    of.classes[8] = np.nan
    assert report(of)["summary"]["composite"] is not None


# ---------------------------------------------------------------- buckets, ranks, chance
@pytest.mark.parametrize(
    ("cuts", "classes"),
    [
        ({}, {"few": [3, 4], "medium": [1, 2], "many": [0]}),
        ({"few": 1, "medium": 60}, {"few": [4], "medium": [1, 2, 3], "many": [0]}),
    ],
)
def test_buckets_are_of_known_classes_by_how_many_images_were_trained_on(
    cuts: dict[str, int], classes: dict[str, list[int]]
) -> None:
    of = drawn()
    blocks, rows = report(of, **cuts), np.flatnonzero(np.isin(of.labels, range(5)))
    i2t = rank(of.images[rows], of.labels[rows], of.classes[:5], np.arange(5))
    i2i = rank(of.images[rows], of.labels[rows], of.images[rows], of.labels[rows], np.arange(len(rows)))
    for name, inside in classes.items():
        some, block = np.isin(of.labels[rows], inside), blocks["buckets"][name]
        assert (block["n"], block["n_classes"]) == (some.sum(), len(inside))
        assert block["i2t_map"] == mean(i2t.ap[some]) and block["acc"] == mean(i2t.precision[some, 0])
        assert block["i2i_map"] == mean(i2i.ap[some])
    assert report(of, few=150, medium=150)["buckets"]["many"] == {"n": 0, "n_classes": 0} | dict.fromkeys(
        ("i2t_map", "i2i_map", "t2i_map", "acc")
    )


def test_what_chance_gets_stands_beside_and_is_of_the_same_queries_and_galleries() -> None:
    of = drawn()
    found = report(of)["random"]
    assert found["id"]["acc"] == pytest.approx(1 / 5) and found["ood"]["acc"] == pytest.approx(1 / 3)
    assert found["acc"] == pytest.approx(1 / 8)
    assert found["id"]["t2i_map"] == pytest.approx(mean(by_chance(IMAGES[:5], IMAGES[:5].sum()).ap))
    own = by_chance(np.repeat(IMAGES[5:8] - 1, IMAGES[5:8]), IMAGES[5:8].sum() - 1)
    assert found["ood"]["i2i_map"] == pytest.approx(mean(own.ap))
    runs = [drawn(seed, noise=1e6).own for seed in range(60)]  # (images that know nothing)
    for part, way in (("id", "i2t"), ("ood", "i2i")):
        values = np.array([mean(run[part][way].ap) for run in runs])
        assert abs(values.mean() - found[part][f"{way}_map"]) < 4 * values.std(ddof=1) / np.sqrt(len(values)), (part, way)


# ---------------------------------------------------------------- the table of classes
def test_a_row_per_class_tells_what_its_queries_get() -> None:
    of = drawn()
    table, blocks = class_table(of, NAMES), report(of)
    assert table["class"].tolist() == list(NAMES[:8]) and table["n"].tolist() == IMAGES[:8].tolist()
    own = ["i2t_map", "i2i_map", "t2i_map", "acc", "i2i_map50", "t2i_map50"]
    assert list(table.columns) == ["class", "n_train", "n", *own, *(f"full_{name}" for name in own)]
    for part, rows in (("id", table[table["n_train"] > 0]), ("ood", table[table["n_train"] == 0])):
        assert blocks[part]["i2t_map_macro"] == pytest.approx(rows["i2t_map"].mean())
        assert blocks[part]["i2i_map_macro"] == pytest.approx(rows["i2i_map"].mean())
        assert blocks[part]["t2i_map"] == pytest.approx(rows["t2i_map"].mean())
        assert blocks[part]["acc"] == pytest.approx(np.average(rows["acc"], weights=rows["n"]))
    assert table["i2i_map"].isna().tolist() == (table["n"] == 1).tolist()


def test_the_full_gallery_may_hold_the_texts_of_every_class() -> None:
    """More to be mistaken for by an image's text; images, and all that the stage is told by, are as they were."""
    of = drawn()
    stage, every = (TASK.report(predicted(of), replace(trained(), evaluate=Evaluate(gallery=which))) for which in GALLERIES)
    for part, own in (("id", range(5)), ("ood", range(5, 8))):
        rows = np.isin(of.labels, own)
        found = rank(of.images[rows], of.labels[rows], of.classes, np.arange(len(NAMES)))
        full = every[part].pop("full")
        assert full["i2t_map"] == mean(found.ap) < stage[part]["full"]["i2t_map"]
        assert full["acc"] == mean(found.precision[:, 0]) and full["at_k"]["i2t"]["recall_at_5"] == mean(found.recall[:, 1])
        assert all(full[name] == stage[part]["full"][name] for name in ("i2i_map", "t2i_map", "t2i_map50"))
        del stage[part]["full"]
    assert every == stage
    alone = drawn(counts=COUNTS + 1)
    every = TASK.report(predicted(alone), replace(trained(COUNTS + 1), evaluate=Evaluate(gallery="all")))
    assert every["id"]["full"]["i2t_map"] < every["id"]["i2t_map"], "where there is one partition, too"


# ---------------------------------------------------------------- the task
def said_by(of: Embeddings, **more: Any) -> Prediction:
    return Prediction(of.images, np.ones_like(of.images), np.zeros_like(of.images), classes=of.classes, **more)


def trained(counts: Array = COUNTS) -> Training:
    shares = counts / max(1, counts.sum())
    return Training([], dict(zip(NAMES, shares.tolist(), strict=True)), n=int(counts.sum()))


def rows(of: Embeddings) -> pd.DataFrame:
    genus = np.array(["x", "x", "y", "y", "y", "x", "z", None, "z"], object)[of.labels]
    ids = [f"i{i // 2}" for i in range(len(of.labels))]
    return pd.DataFrame({"id": ids, "group": ids, "domain": None, "taxon genus": genus})


def predicted(of: Embeddings, **more: Any) -> Embedded:
    return TASK.forecast(TASK.predictions(rows(of), of.labels, NAMES, said_by(of, **more)), trained(of.counts))


def test_the_task_itself_is_right_and_chooses_by_the_composite() -> None:
    TASK.check()
    assert TASK.metric(None) == "composite" and TASK.metric("acc") == "acc"
    with pytest.raises(UserError, match="not chosen by 'i2t_map'"):
        TASK.metric("i2t_map")


def test_the_headline_is_in_the_report_and_has_titles() -> None:
    of = drawn()
    blocks = TASK.report(predicted(of), trained())
    described = TASK.describe(blocks)
    figures = described["figures"]
    assert all(figures[name] is not None for name in TASK.headline if name != "selection")
    assert described["headline"]["ood.i2t_map"] == "image→text mAP OOD"
    assert (
        figures["id.full.i2t_map"] == blocks["id"]["full"]["i2t_map"]
        and figures["few.i2t_map"] == blocks["buckets"]["few"]["i2t_map"]
    )
    assert figures["random.id.i2t_map"] == blocks["random"]["id"]["i2t_map"] and figures["genus.accuracy"] is not None
    assert not any("at_k" in name or "n_classes" in name for name in figures)
    assert {name.rpartition(".")[2] for name in figures} <= {*TASK.figures, "selection"}
    assert all(TASK.title(name) for name in figures)


def test_ranks_are_told_by_the_tables_columns() -> None:
    of = drawn()
    predictions = predicted(of)
    parents = TASK.parents(predictions)
    assert list(parents) == ["genus"] and parents["genus"].tolist() == [0, 0, 1, 1, 1, 0, 2, UNKNOWN, UNKNOWN]
    blocks = TASK.report(predictions, trained())
    genus = blocks["ranks"]["genus"]
    assert blocks["ranks"]["species"]["accuracy"] == pytest.approx(blocks["summary"]["acc"])
    assert 0 < genus["wrong_within"] < 1 - blocks["summary"]["acc"] and genus["probability"] > 0.3
    assert TASK.report(predicted(of, scale=1e-6), trained())["ranks"]["species"]["probability"] == pytest.approx(1 / 8, abs=1e-4)


@pytest.mark.parametrize("rank", ["species", "class", "genus"])
def test_no_rank_takes_the_place_of_what_classes_are(rank: str) -> None:
    """Classes are of the column `subspecies`, and a rank may be called as classes are elsewhere."""
    of, names = drawn(), tuple(name.replace("species", "subspecies") for name in NAMES)
    table = rows(of).rename(columns={"taxon genus": f"taxon {rank}"})
    blocks = TASK.report(TASK.predictions(table, of.labels, names, said_by(of)), Training([], dict.fromkeys(names, 1 / 9), n=9))
    assert list(blocks["ranks"]) == ["subspecies", rank]
    assert blocks["ranks"]["subspecies"]["accuracy"] == pytest.approx(blocks["summary"]["acc"])
    assert blocks["ranks"][rank]["accuracy"] > blocks["summary"]["acc"] and "wrong_within" in blocks["ranks"][rank]


def test_a_rank_that_is_the_label_itself_is_told_once() -> None:
    of = drawn()
    table = rows(of).assign(**{"taxon species": np.array(list("abcdefghi"), object)[of.labels]})
    found = TASK.report(TASK.predictions(table, of.labels, NAMES, said_by(of)), trained())["ranks"]
    assert list(found) == ["species", "genus"] and "wrong_within" not in found["species"]


@pytest.mark.parametrize("metric", ["composite", "comp_map", "acc"])
def test_the_figure_that_models_are_chosen_by_is_that_of_the_report(metric: str) -> None:
    of = drawn()
    summary = TASK.report(predicted(of), trained())["summary"]
    groups = np.arange(len(of.labels))
    assert TASK.score(metric, of.labels, said_by(of), groups, COUNTS.tolist()) == summary[metric]
    known = TASK.score(metric, of.labels, said_by(of), groups)
    assert known == TASK.report(predicted(drawn(counts=COUNTS + 1)), trained(COUNTS + 1))["summary"][metric]
    assert metric == "acc" or known != summary[metric]


def test_a_model_that_says_probabilities_is_ranked_by_them() -> None:
    """A classifier beside two towers, in one table."""
    of = drawn()
    p = np.random.default_rng(0).dirichlet(np.full(len(NAMES), 0.3), len(of.labels)).astype("float32")
    predictions = TASK.forecast(TASK.predictions(rows(of), of.labels, NAMES, Prediction.of(p)), trained())
    right = p[:, :8].argmax(axis=1) == of.labels  # (of the classes that are evaluated on)
    assert TASK.report(predictions, trained())["summary"]["acc"] == pytest.approx(right.mean())
    assert TASK.score("acc", of.labels, Prediction.of(p), np.arange(len(p))) == pytest.approx(right.mean())


def test_files_tell_the_first_classes_of_each_image_and_its_own(tmp_path: Path) -> None:
    of, trial = drawn(), TrialDir(tmp_path)
    predictions = predicted(of)
    images, classes = TASK.tables(predictions)
    assert classes["class"].tolist() == list("abcdefgh") and classes["n_train"].tolist() == COUNTS[:8].tolist()
    assert images["truth"].sum() == len(of.labels) and 5 * len(of.labels) <= len(images) <= 6 * len(of.labels)
    assert images["prediction"].between(-1.001, 1.001).all() and "taxon genus" not in images
    blocks = TASK.report(predictions, trained())
    write_json(trial.results, blocks | TASK.describe(blocks))
    write_table(trial.predictions, images.sample(frac=1, random_state=0))
    tested = TASK.tested(trial, "acc")
    assert tested.value(TASK.figures["acc"]) == pytest.approx(blocks["summary"]["acc"])
    with pytest.raises(UserError, match="no such figure to compare by"):
        TASK.tested(trial, "i2i_map")


@pytest.mark.parametrize("counts", [COUNTS, np.where(COUNTS > 0, 0, 3), COUNTS + 1])
def test_every_figure_that_the_report_names_but_of_ranks_and_chance_is_compared_by_classes(counts: Array, tmp_path: Path) -> None:
    of, trial = drawn(counts=counts), TrialDir(tmp_path)
    blocks = TASK.report(predicted(of), trained(counts))
    said = TASK.describe(blocks)
    write_json(trial.results, blocks | said | {"evaluation": {}})
    for path, table in zip((trial.predictions, trial.groups), TASK.tables(predicted(of)), strict=True):
        write_table(path, table.sample(frac=1, random_state=1))
    named = {name for name in said["figures"] if not name.startswith("random.") and name != "selection"} - RANKED
    assert named <= set(TASK.compared())
    for name in named:
        tested = TASK.tested(trial, name)
        assert tested.value(TASK.compared()[name]) == (v if (v := said["figures"][name]) is None else pytest.approx(v)), name


RANKED = {*(f"genus.{name}" for name in ("accuracy", "probability", "wrong_within")), "species.accuracy", "species.probability"}


@pytest.mark.parametrize("name", ["id.i2t_map", "ood.full.i2i_map", "medium.t2i_map", "id.acc_macro", "composite", "comp_map"])
def test_a_draw_of_classes_is_the_figure_of_their_rows_repeated(name: str, tmp_path: Path) -> None:
    figure, rng = TASK.compared()[name], np.random.default_rng(3)
    truth, said = np.array([5, 4, 1, -3, -1, 6]), np.column_stack([[0, 1, 1, -1, -1, 1], rng.random((6, len(COLUMNS)))])
    weights = rng.integers(0, 3, (6, 20)).astype("float64")
    found = figure.drawn(truth, said, weights=weights)
    for draw, value in zip(weights.T.astype("int64"), found, strict=True):
        rows = np.repeat(np.arange(6), draw)
        again = figure.value(truth[rows], said[rows])
        assert np.isnan(value) if again is None else value == pytest.approx(again)


def test_a_table_of_classes_of_before_is_told_apart(tmp_path: Path) -> None:
    trial = TrialDir(tmp_path)
    write_table(trial.groups, pd.DataFrame({"class": ["a"], "n_train": [1], "n": [2], "i2t_map": [1.0]}))
    with pytest.raises(UserError, match=r"has no i2i_map: it was written by an earlier version\. Evaluate this trial again"):
        TASK.tested(trial, "id.i2t_map")


def test_files_are_the_same_however_few_images_are_taken_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = TASK.tables(predicted(drawn()))
    monkeypatch.setattr("pipeline.tasks.retrieval.CELLS", 20)
    pd.testing.assert_frame_equal(whole, TASK.tables(predicted(drawn()))[0])


def test_of_two_classes_both_are_kept() -> None:
    of = Embeddings(np.eye(2)[[0, 1, 0]], np.array([0, 1, 0]), np.eye(2), np.array([1, 1]))
    table = pd.DataFrame({"id": list("abc"), "group": list("abc"), "domain": None})
    images, _ = TASK.tables(TASK.predictions(table, of.labels, NAMES[:2], said_by(of)))
    assert len(images) == 6 and images["truth"].sum() == 3


def test_the_answer_is_a_probability_of_each_class() -> None:
    of = drawn(noise=0.0)
    some = np.flatnonzero(of.labels == 2)
    answer = TASK.answer(
        TASK.predictions(rows(of), None, NAMES, said_by(Embeddings(of.images[some], of.labels[some], of.classes, COUNTS)))
    )
    assert sum(p for p, _ in answer.values()) == pytest.approx(1) and max(answer, key=lambda name: answer[name][0]) == NAMES[2]


def test_the_answer_and_the_ranks_are_of_the_similarity_that_was_trained() -> None:
    of = drawn(noise=2.0)
    by = {name: predicted(of, scale=9.0, similarity=name) for name in ("cosine", "geodesic")}
    answers = {name: np.array([p for p, _ in TASK.answer(each).values()]) for name, each in by.items()}
    assert not np.allclose(answers["cosine"], answers["geodesic"], atol=1e-3)
    reports = {name: TASK.report(each, trained(of.counts)) for name, each in by.items()}
    genus = {name: report["ranks"]["genus"]["probability"] for name, report in reports.items()}
    assert genus["cosine"] != pytest.approx(genus["geodesic"], abs=1e-3) and reports["cosine"]["id"] == reports["geodesic"]["id"]


# ---------------------------------------------------------------- what models say
def test_embeddings_pass_from_a_model_to_the_task_whole() -> None:
    images, classes = torch.randn(5, 4), torch.randn(3, 4)
    parts = [
        Predicted(some, torch.ones_like(some), torch.zeros_like(some), None, classes, 7.0, "geodesic").cpu()
        for some in images.split(2)
    ]
    said = joined(parts).only(2)
    assert said.mean.shape == (5, 4) and (said.scale, said.similarity) == (7.0, "geodesic") and said.classes is not None
    assert np.array_equal(said.classes, classes.numpy()) and np.array_equal(said.mean, images.numpy())
    expected = torch.nn.functional.cosine_similarity(images[:1], classes)
    assert parts[0].values()[0] == pytest.approx(expected)
    numbers = Predicted(images, images, images)
    assert numbers.values() is images and joined([numbers]).classes is None
    assert joined([numbers]).only(3).mean.shape == (5, 3)


# ---------------------------------------------------------------- from a table to results
@pytest.mark.jobs
def test_a_classifier_is_trained_chosen_and_reported_by_retrieval_with_classes_that_it_never_saw(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for i in range(80):
        species = "abcde"[i % 5]
        split = "test" if i >= 60 else "validation" if i >= 40 or species == "e" else "train"
        pixels = np.clip(rng.normal(COLOURS[i % 5], 20, (16, 16, 3)), 0, 255).astype("uint8")
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        rows.append((f"{i}.png", species, split))
    pd.DataFrame(rows, columns=["file", "species", "split"]).to_csv(tmp_path / "birds.csv", index=False)
    (tmp_path / "finding.py").write_text("from pipeline.tasks.retrieval import Retrieval\nTASK = Retrieval()\n")
    (tmp_path / "finding.yaml").write_text(YAML)
    carabid("submit", "finding.yaml", "device=cpu", "--cluster", "local", "--wait", root=tmp_path / "root", cwd=tmp_path)
    (results,) = (tmp_path / "root" / "trained" / "finding").glob("*/results.json")
    found = read_json(results)
    assert found["summary"]["selection"]["metric"] == "composite" and found["summary"]["selection"]["value"] > 0.3
    assert (found["id"]["n_classes"], found["ood"]["n_classes"]) == (4, 1)
    assert found["id"]["acc"] > 0.8 > found["random"]["id"]["acc"] and found["id"]["i2i_map"] > found["random"]["id"]["i2i_map"]
    assert found["figures"]["ood.i2t_map"] == 1.0, "of one class alone"
    classes = pd.read_parquet(results.parent / "groups.parquet").set_index("class")
    assert classes["n_train"].to_dict() == {"a": 8, "b": 8, "c": 8, "d": 8, "e": 0} and (classes["n"] == 4).all()
    shown = carabid("results", "--format", "markdown", root=tmp_path / "root", cwd=tmp_path).stdout
    assert "image→text mAP ID" in shown and "composite mAP" in shown


COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40), (220, 40, 220))
YAML = """
task: finding.py
experiment: finding
data:
  source: birds.csv
  columns: {image: file, id: file, group: file}
  label: species
  split: {kind: source, train: train, validation: validation, test: test}
backbone: {kind: pixels}
model: {head: {kind: logistic}}
loss: {kind: cross_entropy}
"""
