"""Species and what is known of them: ranks as numbers, names for texts, columns known by their names, folders of images."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.config.data import Columns, Data
from pipeline.config.texts import Texts
from pipeline.data.dataset import Dataset
from pipeline.data.known_columns import find, recognised
from pipeline.data.sources import open_source
from pipeline.data.species import load_species
from pipeline.data.table import load_classes
from pipeline.data.taxonomy import Taxonomy, scientific_name, taxonomy_of
from pipeline.data.texts import class_texts, fill, image_texts, same_texts, texts_of
from pipeline.data.truth import LABEL
from pipeline.disk.layout import PROJECT
from pipeline.errors import UserError

SHARED = PROJECT.parent / "shared" / "data"


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return folder / "table.csv"


def load(source: Path, split: dict[str, Any] | None = None, **more: Any) -> Dataset:
    columns = {"image": "file"} | more.pop("columns", {})
    values = {"source": str(source), "label": "auto", "columns": columns, "split": split or {"kind": "folds", "n": 3}}
    return load_species(Data.model_validate(values | more))


# ---------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("Carabus nemoralis Müller, 1764", "Carabus nemoralis"),
        ("Carabus nemoralis", "Carabus nemoralis"),
        ("Carabus_nemoralis", "Carabus nemoralis"),
        ("Carabus (Archicarabus) nemoralis O.F.Müller, 1764", "Carabus nemoralis"),
        ("Heliconius erato lativitta (Butler, 1877)", "Heliconius erato lativitta"),
        ("Amara aenea (De Geer, 1774)", "Amara aenea"),
        ("Amara aenea de Geer, 1774", "Amara aenea"),
        ("Carabus arvensis von Baehr, 1990", "Carabus arvensis"),
        ("Bellis perennis L.", "Bellis perennis"),
        ("Poa alpina subsp. vivipara (L.) Arcang.", "Poa alpina subsp. vivipara"),
        ("Carabus auratus x nemoralis", "Carabus auratus x nemoralis"),
        ("Carabus sp.", "Carabus sp."),
        ("Carabus cf. nemoralis", "Carabus cf. nemoralis"),
        ("notabilis x lativitta", "notabilis x lativitta"),
        ("advena", "advena"),
        ("  Carabus   nemoralis ", "Carabus nemoralis"),
    ],
)
def test_a_name_loses_its_author_and_nothing_else(label: str, name: str) -> None:
    assert scientific_name(label) == name


@given(st.text(max_size=60))
def test_any_label_has_a_name_that_stays(label: str) -> None:
    assert scientific_name(scientific_name(label)) == scientific_name(label)


# ---------------------------------------------------------------- ranks
TABLE = """file,family,genus,species,common
1.jpg,Carabidae,Carabus,Carabus nemoralis,bronze beetle
2.jpg,Carabidae,,Carabus nemoralis,bronze carabid
3.jpg,Carabidae,Carabus,Carabus auratus,bronze carabid
4.jpg,,Blaps,Blaps mucronata,
5.jpg,Tenebrionidae,Blaps,Blaps mucronata,
6.jpg,,,Nomen dubium,
7.jpg,Carabidae,Carabus,Carabus nemoralis,bronze carabid
8.jpg,,,Nomen nudum,
"""


def test_ranks_are_whole_numbers_a_column_each_the_species_last_and_what_is_unknown_minus_one(tmp_path: Path) -> None:
    found, doubts = taxonomy_of(load(write(tmp_path, TABLE)))
    assert found.species == ("Blaps mucronata", "Carabus auratus", "Carabus nemoralis", "Nomen dubium", "Nomen nudum")
    assert found.ranks == ("family", "genus") and doubts == []
    assert found.codes.tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 2], [-1, -1, 3], [-1, -1, 4]]
    assert found.common == (None, "bronze carabid", "bronze carabid", None, None)


def test_a_species_of_two_genera_is_refused_by_both_rows(tmp_path: Path) -> None:
    table = write(tmp_path, TABLE + "9.jpg,Carabidae,Amara,Carabus auratus,\n")
    with pytest.raises(UserError) as caught:
        load(table)
    assert f"Carabus auratus is of the genus Carabus at {table}, line 4, and of Amara at {table}, line 10" in str(caught.value)


SPECIMENS = "file,genus,species,common,specimen\n" + "".join(
    f"{i}.jpg,{genus if i % 2 else ''},{genus} ater,{f'black {genus}' if i % 2 else ''},s{i // 2}\n"
    for i, genus in enumerate(["Abax"] * 2 + ["Blaps"] * 2 + ["Carabus"] * 4 + ["Dyschirius"] * 2)
)
"""Each of two images, of which the second alone tells genus and common name."""


@pytest.mark.parametrize(("text", "columns"), [(TABLE, {}), (SPECIMENS, {"group": "specimen"})], ids=["images", "specimens"])
def test_permuted_species_take_their_ranks_and_common_names_along(tmp_path: Path, text: str, columns: dict[str, str]) -> None:
    plain, permuted = (load(write(tmp_path, text), columns=dict(columns), permute_targets=on) for on in (False, True))
    assert taxonomy_of(permuted) == taxonomy_of(plain) and plain.source.data.columns.ranks and "common" in plain.table
    assert permuted.table[LABEL].tolist() != plain.table[LABEL].tolist()


def test_a_genus_in_two_families_and_two_classes_of_one_name_are_said(tmp_path: Path) -> None:
    more = "9.jpg,Carabidae,Blaps,Blaps gigas,\n10.jpg,,,Nomen nudum Smith 1900,\n"
    warnings = load(write(tmp_path, TABLE + more)).warnings
    assert any(
        "1 taxa at the rank genus stand in two of the rank above: Blaps (in Carabidae and Tenebrionidae)" in w for w in warnings
    )
    assert any("no text tells apart: Nomen nudum and Nomen nudum Smith 1900" in w for w in warnings)


def test_without_ranks_the_species_are_all_there_is(tmp_path: Path) -> None:
    rows = "file,species\n" + "".join(f"{i}.jpg,sp{i % 4}\n" for i in range(8))
    found, _ = taxonomy_of(load(write(tmp_path, rows)))
    assert found.codes.tolist() == [[0], [1], [2], [3]]


def test_other_tables_have_no_further_columns(tmp_path: Path) -> None:
    rows = "file,species,genus\n" + "".join(f"{i}.jpg,sp{i % 4},g\n" for i in range(8))
    data = Data(source=str(write(tmp_path, rows)), columns=Columns(image="file"), label="species", split={"kind": "folds"})  # type: ignore[arg-type]
    assert not {"rank 0", "common", "sex", "view"} & set(load_classes(data).table)


# ---------------------------------------------------------------- columns known by their names
HEADERS = {
    "GBIF": ("gbifID,kingdom,class,order,family,genus,species,scientificName,sex", "species", "kingdom class order family genus"),
    "Darwin Core": ("occurrenceID,family,genus,scientificName,vernacularName", "scientificName", "family genus"),
    "iNaturalist": ("id,scientific_name,common_name,taxon_family_name,taxon_genus_name,image_url", "scientific_name",
                    "taxon_family_name taxon_genus_name"),
    "epithets": ("filename,specific_epithet", "specific_epithet", ""),
    "a label called class": ("file,taxon_name,class", "taxon_name", "class"),
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_columns_are_known_by_their_names_and_it_is_said_which(header: tuple[str, str, str]) -> None:
    exist, label, ranks = header[0].split(","), header[1], tuple(header[2].split())
    data, said = recognised(Data(source="x", columns=Columns(image="f"), label="auto"), exist)
    assert (data.label, data.columns.ranks) == (label, ranks)
    assert f"data.label={label}" in said[0] and (not ranks or f"data.columns.ranks=[{', '.join(ranks)}]" in said[0])
    assert data.columns.common == find("common", exist) and data.columns.group == find("group", exist)


def test_what_the_configuration_names_is_taken_and_nothing_is_said_of_it() -> None:
    columns = Columns(image="f", ranks=("tribe",), common="c", sex="s", view="v", group="g")
    data = Data(source="x", columns=columns, label="taxon")
    assert recognised(data, ["species", "genus", "family", "sex", "tribe", "taxon"]) == (data, [])


def test_epithets_are_put_together_with_their_genus(tmp_path: Path) -> None:
    rows = "file,genus,specificEpithet\n" + "".join(f"{i}.jpg,{'AB'[i % 2]}mara,nigra\n" for i in range(8))
    assert taxonomy_of(load(write(tmp_path, rows)))[0].species == ("Amara nigra", "Bmara nigra")


def test_a_column_that_is_not_there_is_told_by_the_usual_name_of_another(tmp_path: Path) -> None:
    table = write(tmp_path, "filename,scientificName,taxon_genus_name\n1.jpg,A b,A\n")
    for more, said in (
        ({}, "'filename' is a usual name for it"),
        ({"columns": {"image": "filename"}, "label": "species"}, "'scientificName' is a usual name for it"),
        ({"columns": {"image": "filename", "ranks": ["genus"]}}, "'taxon_genus_name' is a usual name for it"),
    ):
        with pytest.raises(UserError, match=said):
            load(table, **more)
    table = write(tmp_path, "image_url,scientificName\nhttps://a,A b\n")
    with pytest.raises(UserError, match=r"'image_url' seems to hold addresses \(data\.download\.url\)"):
        load(table)
    with pytest.raises(UserError, match="no column is known to hold species"):
        load(write(tmp_path, "file,kind\n1.jpg,A\n"))
    with pytest.raises(UserError, match=r"name their column as data\.label, or data\.label=auto"):
        load_species(Data(source="x", columns=Columns(image="i"), targets=("y",)))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real beetles and wings are not beside the project")
@pytest.mark.parametrize(("name", "classes", "more"), [("neon-beetles", 12, {}), ("wing-patterns", 121, {"label": "subspecies"})])
def test_real_tables_are_read(name: str, classes: int, more: dict[str, Any]) -> None:
    folder = SHARED / name
    split = {"kind": "species", "name": "S29-42"}
    dataset = load(folder / "metadata.csv", split, images=str(folder / "images"), columns={"image": "filename"}, **more)
    assert len(taxonomy_of(dataset)[0].species) == classes and dataset.image(0).size[0] > 10
    assert any("data.label=specific_epithet" in warning for warning in dataset.warnings) == (name == "neon-beetles")


# ---------------------------------------------------------------- folders
FORMS = {
    "family/genus/species": (("Carabidae/Carabus/nemoralis", "Carabidae/Carabus/auratus", "Silphidae/Silpha/obscura"),
                             ["family", "genus"]),
    "family/genus/Genus_species": (("Carabidae/Carabus/Carabus_nemoralis", "Carabidae/Carabus/Carabus auratus",
                                    "Silphidae/Silpha/Silpha_obscura"), ["family", "genus"]),
    "genus/species": (("Carabus/nemoralis", "Carabus/auratus", "Silpha/obscura"), ["genus"]),
    "Genus_species": (("Carabus_nemoralis", "Carabus auratus", "Silpha_obscura"), ["genus"]),
    "train/Genus_species": (("train/Carabus_nemoralis", "train/Carabus auratus", "val/Silpha_obscura"), ["genus"]),
    "iNaturalist": (("00001_Animalia_Arthropoda_Insecta_Coleoptera_Carabidae_Carabus_nemoralis",
                     "00002_Animalia_Arthropoda_Insecta_Coleoptera_Carabidae_Carabus_auratus",
                     "00003_Animalia_Arthropoda_Insecta_Coleoptera_Silphidae_Silpha_obscura"),
                    ["kingdom", "phylum", "class", "order", "family", "genus"]),
}  # fmt: skip


def write_folders(root: Path, folders: tuple[str, ...], n: int = 4) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(n):
            (root / folder / f"{i}.png").write_bytes(picture())
    return root


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_folders_name_species_and_their_ranks(tmp_path: Path, form: tuple[tuple[str, ...], list[str]]) -> None:
    folders, ranks = form
    dataset = load(write_folders(tmp_path, folders))
    found, _ = taxonomy_of(dataset)
    assert found.species == ("Carabus auratus", "Carabus nemoralis", "Silpha obscura") and list(found.ranks) == ranks
    assert [taxa[-1] for taxa in found.taxa] == ["Carabus", "Carabus", "Silpha"]
    assert len(dataset) == 12 and dataset.image(5).size == (4, 4)
    assert any("taken from the names of folders" in warning for warning in dataset.notes)
    assert set(dataset.table["source_split"]) == ({"train", "validation"} if folders[0].startswith("train") else {"train"})


def test_a_folder_is_known_again_until_an_image_comes_or_goes(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "a", ("Carabus_nemoralis", "Carabus_auratus"))
    data = Data(source=str(root), columns=Columns(image="file"), label="species")
    before = open_source(data).signature()
    assert open_source(data).signature() == before
    (root / "Carabus_auratus" / "new.png").write_bytes(picture())
    assert open_source(data).signature() != before


def test_images_at_different_depths_or_in_no_folder_are_refused(tmp_path: Path) -> None:
    root = write_folders(tmp_path / "a", ("Carabus_nemoralis", "Carabidae/Carabus/auratus"), 1)
    with pytest.raises(UserError, match=r"Carabus_nemoralis/0\.png lies in 1 folders, and Carabidae/Carabus/auratus/0\.png in 3"):
        load(root)
    root = write_folders(tmp_path / "b", ("Carabus_nemoralis", "Silpha_obscura"), 1)
    (root / "lost.png").write_bytes(picture())
    with pytest.raises(UserError, match=r"lost\.png lies in 0 folders"):
        load(root)
    with pytest.raises(UserError, match=r"no folders of images that name species"):
        load(write_folders(tmp_path / "c", (".",), 2))


# ---------------------------------------------------------------- texts
KNOWN = Taxonomy(
    ("Carabus nemoralis Müller, 1764", "advena"), ("family", "genus"), (("Carabidae", "Carabus"), ("Carabidae", None)),
    ("bronze carabid", None),
)  # fmt: skip


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("a photo of $SCI$", ("a photo of Carabus nemoralis", "a photo of advena")),
        ("a photo of $COM$.", ("a photo of bronze carabid.", "a photo of advena.")),
        ("$TAX$, a $COM$", ("Carabidae Carabus nemoralis, a bronze carabid", "Carabidae advena, a advena")),
    ],
)  # fmt: skip
def test_classes_have_texts_of_what_is_known_of_them(template: str, texts: tuple[str, str]) -> None:
    assert class_texts(KNOWN, template) == texts


def test_every_distinct_text_of_images_stands_there_once(tmp_path: Path) -> None:
    rows = "file,species,sex,view\n" + "".join(
        f"{i}.jpg,Carabus {('nemoralis', 'auratus')[i % 2]},{('male', 'female', '')[i % 3]},{('dorsal', 'ventral')[i // 6]}\n"
        for i in range(12)
    )
    dataset = load(write(tmp_path, rows))
    taxonomy, _ = taxonomy_of(dataset)
    found = image_texts(dataset.table, taxonomy, ("a photo of $SCI$", "a $SEX$ $SCI$, $POS$ view"))
    assert found.of_image.shape == (12, 2) and len(found.texts) == len(set(found.texts)) == 2 + 12
    labels, sexes, views = (dataset.table[name].tolist() for name in ("label", "sex", "view"))
    for row, (label, sex, view) in enumerate(zip(labels, sexes, views, strict=True)):
        plain, own = (found.texts[place] for place in found.of_image[row])
        assert plain == f"a photo of {label}" and own == " ".join(f"a {sex or ''} {label}, {view} view".split())


@pytest.mark.parametrize(
    ("common", "said"),
    [
        (("toad", "toad", "frog"), "2 classes share their text .texts.evaluation. with another one, .*: A b, C d are 'a toad'"),
        (
            ("toad", "toad", "toad"),
            "3 classes share their text .texts.evaluation. with another one, .*: A b, C d, E f are 'a toad'",
        ),
        (("toad", "frog", None), None),
    ],
)
def test_classes_of_one_text_are_said(common: tuple[str | None, ...], said: str | None, tmp_path: Path) -> None:
    names = ("A b", "C d", "E f")
    rows = "".join(f"{i}.jpg,{names[i % 3]},{common[i % 3] or ''}\n" for i in range(6))
    dataset = load(write(tmp_path, "file,species,vernacularName\n" + rows))
    found = texts_of(dataset, Texts(evaluation="a $COM$"))
    told = list(same_texts(found, dataset.targets))
    assert len(told) == bool(said) and all(re.fullmatch(str(said), each) for each in told)


@pytest.mark.parametrize(
    ("template", "known", "text"),
    [
        ("a photo of $SCI$, $SEX$", {}, "a photo of A b"),
        ("a photo of $SCI$, $SEX$.", {}, "a photo of A b."),
        ("$SCI$, $SEX$, $POS$ view", {"POS": "dorsal"}, "A b, dorsal view"),
        ("$SCI$, $SEX$, $POS$", {"SEX": "male"}, "A b, male"),
        ("$SCI$, $SEX$, $POS$", {}, "A b"),
        ("$SCI$, $SEX$ $POS$", {}, "A b"),
        ("$SEX$, $POS$: $SCI$", {}, "A b"),
        ("$SEX$ $SCI$", {}, "A b"),
        ("$SCI$ ($SEX$)", {}, "A b"),
        ("$SCI$ ($SEX$, $POS$)", {}, "A b"),
        ("$SCI$ ($SEX$, $POS$)", {"POS": "dorsal"}, "A b (dorsal)"),
        ("$SCI$ ($SEX$, $POS$)", {"SEX": "male"}, "A b (male)"),
        ("$SCI$ [$SEX$] seen", {}, "A b seen"),
        ("$SCI$, $SEX$, $POS$", {"SEX": "male", "POS": "dorsal"}, "A b, male, dorsal"),
        ("$SCI$ (), $SEX$", {"SEX": "male"}, "A b (), male"),
        ("$SCI$ ($SEX$).", {}, "A b."),
        ("$SCI$ ($SEX$), $POS$", {"POS": "dorsal"}, "A b, dorsal"),
        ("$SCI$ [$SEX$, $POS$]: seen", {}, "A b: seen"),
        ("$SCI$, $SEX$!", {}, "A b!"),
        ("is it $SCI$ $SEX$?", {}, "is it A b?"),
    ],
)
def test_what_is_unknown_leaves_no_comma_and_no_brackets(template: str, known: dict[str, str], text: str) -> None:
    assert fill(template, {"SCI": "A b", "SEX": None, "POS": None} | known) == text


def test_what_is_unknown_leaves_no_double_blank() -> None:
    assert fill("a $SEX$ $SCI$ seen $POS$", {"SCI": "A b", "SEX": None}) == "a A b seen"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"templates": ["a photo of $SIC$"]}, "SIC.* stands for nothing here"),
        ({"templates": ["a photo"]}, "is the same text for all"),
        ({"templates": ["a $SEX$ beetle"]}, "is the same text for all species: name them by one of .SCI., .COM., .TAX."),
        ({"templates": ["$SCI$", "$SEX$"]}, "is the same text for all species"),
        ({"templates": ["$POS$ view, $SEX$"]}, "is the same text for all species"),
        ({"evaluation": "a $SEX$ $SCI$"}, "SEX.* stands for nothing here"),
        ({"templates": []}, "at least 1"),
    ],
)
def test_a_template_that_says_nothing_of_an_image_is_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Texts.model_validate(values)


def test_codes_have_one_row_a_class(tmp_path: Path) -> None:
    assert KNOWN.codes.dtype == np.int64 and KNOWN.codes.tolist() == [[0, 0, 0], [0, -1, 1]]
