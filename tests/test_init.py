"""`carabid init`: from a table that nobody has described to a YAML that runs, without a guess that is not said."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from pipeline.data.roles import Wishes
from pipeline.disk.layout import SHIPPED
from pipeline.errors import UserError
from pipeline.experiments.reading import load_experiment
from pipeline.launch.drafting.beginning import Request, begin
from pipeline.launch.drafting.draft import name_of
from pipeline.launch.drafting.scripts import copy_scripts
from tests.conftest import carabid
from tests.lab import write_images, write_table

N = 30
ABC = tuple("abc"[i % 3] for i in range(N))
PIXELS = {"backbone": "pixels"}


def nobody(question: str, answers: Sequence[str], option: str) -> str:
    raise UserError(f"{question} Say it by {option}.")


@pytest.fixture
def init(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], str]]:
    """Draft a YAML of a table, where nobody can be asked: its values, and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(place: Path, ask: Any = nobody, **request: Any) -> tuple[dict[str, Any], str]:
        lines = list(begin(Request(place, Path("my.yaml"), **{**PIXELS, **request}), ask))
        return yaml.safe_load(Path("my.yaml").read_text()), "\n".join(lines)

    return run


def table(folder: Path, header: Sequence[str], row: Callable[[str, int], Sequence[Any]], separator: str = ",") -> Path:
    """A table of N images."""
    return write_table(folder, [row(name, i) for i, name in enumerate(write_images(folder, N))], header, separator, "tab.csv")


# ---------------------------------------------------------------- the whole way
@pytest.mark.jobs
def test_three_commands_lead_from_a_table_never_seen_to_a_report(root: Path, tmp_path: Path) -> None:
    """Semicolons, a byte order mark, ends of lines as Windows writes them, images in a folder that nothing names."""
    path = table(tmp_path, ("Foto Nr.", "Käferart", "Falle_ID"), lambda name, i: (name[7:], ABC[i // 2], f"F{i // 2}"), ";")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    carabid("init", "tab.csv", "--backbone", "pixels", "--out", "my.yaml", root=root, cwd=tmp_path)
    carabid("submit", "my.yaml", "--cluster", "local", root=root, cwd=tmp_path)
    carabid("report", "my", root=root, cwd=tmp_path)
    assert "balanced accuracy" in (root / "trained" / "my" / "report.html").read_text()


@pytest.mark.jobs
def test_who_is_at_a_terminal_is_asked_until_the_answer_is_one(root: Path, tmp_path: Path) -> None:
    table(tmp_path, ("f", "stage"), lambda name, i: (name, i % 3))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipeline.cli", "init", "tab.csv", "--backbone", "pixels"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path, env={**os.environ, "TERM": "dumb"}):
        os.write(ours, b"classs\nclasses\n")
    os.close(theirs)
    assert "did you mean classes?" in os.read(ours, 65536).decode()
    assert load_experiment(tmp_path / "tab.yaml").config.data.label == "stage"


# ---------------------------------------------------------------- what is understood
def test_images_of_one_animal_stay_in_one_split_where_each_has_a_number_of_its_own(
    init: Callable[..., Any], tmp_path: Path
) -> None:
    path = table(tmp_path, ("photo", "animal_id", "mass"), lambda name, i: (name, f"A{i // 2}", 0.5 + 1.37 * i))
    values, said = init(path)
    assert values["data"]["split"]["by"] == ["animal_id"] and "group" not in values["data"]["columns"]
    assert "kept in one split: 15, of 2.0 images each" in said
    values, _ = init(path, wishes=Wishes(label="animal_id"), overwrite=True)
    assert "by" not in values["data"]["split"]


def test_images_in_several_folders_are_said_with_how_many_are_where(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path, ("photo", "kind"), lambda name, i: (Path(name).name, ABC[i]))
    for i, image in enumerate(sorted((tmp_path / "images").iterdir())):
        (tmp_path / f"plate {i % 3}").mkdir(exist_ok=True)
        image.rename(tmp_path / f"plate {i % 3}" / image.name)
    with pytest.raises(UserError, match=r"lie in several folders: plate 0 \(10\), plate 1 \(10\), plate 2 \(10\) of 30"):
        init(path)


def test_a_proposal_can_be_pasted_into_a_shell(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path, ("photo", "kind", "mass mg"), lambda name, i: (name, ABC[i], 0.5 + 1.37 * i))
    assert "to predict it: --targets 'mass mg'" in init(path, wishes=Wishes(label="kind"))[1]


def test_every_choice_and_every_change_that_the_yaml_proposes_can_be_read(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(
        tmp_path,
        ("f", "kind", "plant_id", "site", "domain", "date", "day seen", "where: from #"),
        lambda name, i: (name, ABC[i // 2], i // 2, i % 4, i % 3, f"2021-7-{i % 28 + 1}", "3.7.2021", "x"),
    )
    values, said = init(path)
    assert values["data"]["columns"] == {
        "image": "f", "id": "f", "group": "plant_id", "domain": "domain", "site": "site", "date": "date",
    }  # fmt: skip
    assert values["data"]["label"] == "kind" and values["data"]["split"] == {"kind": "folds", "n": 5}
    assert re.search(r"day seen +left out: '3\.7\.2021' in all rows", said) and "plant_id       groups: 15" in said
    changes = re.findall(r"^#   (.*?)  +", Path("my.yaml").read_text(), re.M)
    assert len(changes) > 5 and any("sites" in change for change in changes)
    for change in changes:
        assert load_experiment("my.yaml", [change.strip("'")]).trials, change


def test_numbers_become_targets_and_where_it_was_taken_none(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path, ("f", "Biomasse [g]", "lat", "id"), lambda name, i: (name, i * 0.3, i + 0.5, i))
    values, _ = init(path)
    assert values["task"] == "regress" and values["data"]["targets"] == ["Biomasse [g]"]


@pytest.mark.parametrize("wishes", [Wishes(), Wishes(image="bar")])
def test_images_may_lie_in_the_table_itself(init: Callable[..., Any], tmp_path: Path, wishes: Wishes) -> None:
    images = [{"bytes": (tmp_path / name).read_bytes(), "path": name} for name in write_images(tmp_path, N)]
    pd.DataFrame({"photo": images, "bar": images, "kind": ABC}).to_parquet(tmp_path / "tab.parquet")
    assert init(tmp_path / "tab.parquet", wishes=wishes)[0]["data"]["columns"]["image"] == (wishes.image or "photo")


def test_folders_name_classes(init: Callable[..., Any], tmp_path: Path) -> None:
    for name in write_images(tmp_path, N):
        folder = tmp_path / "pics" / ABC[int(Path(name).stem)]
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).rename(folder / Path(name).name)
    values, said = init(tmp_path / "pics")
    assert values["data"]["source"] == str(tmp_path / "pics") and values["data"]["label"] == "species" and "a (10)" in said


def test_a_tables_own_splits_are_used_whatever_case_they_have(init: Callable[..., Any], tmp_path: Path) -> None:
    splits = ["Train"] * 14 + ["val"] * 8 + ["Test"] * 8
    path = table(tmp_path, ("f", "kind", "split"), lambda name, i: (name, ABC[i], splits[i]))
    assert init(path)[0]["data"]["split"] == {"kind": "source", "train": "Train", "validation": "val", "test": "Test"}


def test_splits_without_a_validation_are_said_not_to_be_used(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path, ("f", "kind", "split"), lambda name, i: (name, ABC[i], "train" if i < 20 else "test"))
    values, said = init(path)
    assert values["data"]["split"]["kind"] == "folds" and "splits train (20), test (10) are not used" in said


def test_images_at_addresses_are_to_be_fetched_first(init: Callable[..., Any], tmp_path: Path) -> None:
    rows = [(f"{i}.jpg", f"https://example.org/{i}", "0" * 31 + "abc"[i % 3], ABC[i]) for i in range(N)]
    values, said = init(write_table(tmp_path, rows, ("file", "where", "sum", "kind")))
    assert values["data"]["download"] == {"url": "where", "md5": "sum"} and values["data"]["images"] == "images"
    assert "carabid fetch my.yaml" in said


def test_what_is_asked_is_answered(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path, ("f", "stage", "colour"), lambda name, i: (name, i % 3, ABC[i]))
    answers = iter(("stage", "numbers"))
    values, said = init(path, lambda question, options, option: next(answers))
    assert values["data"]["targets"] == ["stage"] and "to predict it: --label colour" in said


# ---------------------------------------------------------------- what is refused
REFUSED: dict[str, tuple[Sequence[str], Callable[[str, int], Sequence[Any]], str, str]] = {
    "two that could be predicted": (("f", "a", "b"), lambda f, i: (f, i / 7, ABC[i]), ",", r"a \(numbers\), b \(3 names\).*--l"),
    "classes or numbers": (("f", "stage"), lambda f, i: (f, i % 3), ",", "--label stage or --targets stage"),
    "decimal commas": (("f", "g"), lambda f, i: (f, f"{i},5"), ";", "'0,5': write decimal points, 0.5"),
    "nothing to predict": (("f",), lambda f, i: (f,), ",", "none beside the images.*--label"),
    "no header": (("images/0.png", "a"), lambda f, i: (f, ABC[i]), ",", "line 1: .*is no name but an image.*filename,column2"),
    "addresses alone": (("u", "k"), lambda f, i: (f"http://e.org/{f}", ABC[i]), ",", "u holds addresses.*Add a column"),
    "names without endings": (("f", "k"), lambda f, i: (f[:-4], ABC[i]), ",", r"did you mean .*0\.png\? Write whole names"),
    "no images": (("k", "m"), lambda f, i: (ABC[i], f"{i}q"), ",", "no column names images that lie in .*--images"),
    "an image that is gone": (
        ("f", "k"), lambda f, i: (f if i else "images/gone.png", ABC[i]), ",", r"line 2: .*gone\.png.*--skip-bad-images.*written",
    ),
    "a row for each image and target": (
        ("f", "what", "target"), lambda f, i: (f"images/{i // 2}.png", "ab"[i % 2], i / 7), ",", r"one for each what \(2 names",
    ),
    "an empty label": (("f", "k"), lambda f, i: (f, ABC[i] if i else ""), ",", r"line 2: column k \(data\.label\) is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_be_trained_on_is_refused_in_words_and_nothing_written(
    init: Callable[..., Any], tmp_path: Path, case: str
) -> None:
    header, row, separator, says = REFUSED[case]
    path = table(tmp_path, header, row, separator)
    with pytest.raises(UserError, match=f"(?s){says}"):
        init(path)
    assert not Path("my.yaml").exists()


def test_missing_images_are_left_out_if_that_is_said(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path, ("f", "k"), lambda name, i: (name if i else "images/gone.png", ABC[i]))
    values, said = init(path, skip=True)
    assert values["data"]["on_bad_image"] == "skip" and "1 of 30 images are not there" in said


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        (Wishes(label="knd"), "--label knd: there is no such column; did you mean kind?"),
        (Wishes(label="kind", targets=("mass",)), "one of both"),
        (Wishes(group="none", label="kind"), ""),
        (Wishes(image="kind"), "--image-column"),
    ],
)
def test_a_wish_names_a_column_that_is_there(init: Callable[..., Any], tmp_path: Path, wishes: Wishes, says: str) -> None:
    path = table(tmp_path, ("f", "kind", "mass", "plant"), lambda name, i: (name, ABC[i // 2], i / 7, i // 2))
    if says:
        with pytest.raises(UserError, match=re.escape(says)):
            init(path, wishes=wishes)
    else:
        assert "group" not in init(path, wishes=wishes)[0]["data"]["columns"]


@pytest.mark.parametrize(
    ("backbone", "says"),
    [
        ("pixel", "has no weights. Write pixel:TAG"),
        ("local-dir:nowhere", "no such folder"),
        ("hf-hub:a/b/c", "no name on the Hub"),
        ("pixels:x", "such as pixels:8"),
    ],
)
def test_a_backbone_that_cannot_be_is_refused(init: Callable[..., Any], tmp_path: Path, backbone: str, says: str) -> None:
    path = table(tmp_path, ("f", "k"), lambda name, i: (name, ABC[i]))
    with pytest.raises(UserError, match=says):
        init(path, backbone=backbone)
    assert not Path("my.yaml").exists()


def test_weights_that_are_not_here_are_to_be_fetched(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path, ("f", "k"), lambda name, i: (name, ABC[i]))
    values, said = init(path, backbone="hf-hub:nobody/has-this")
    assert values["backbone"] == {"kind": "open_clip", "name": "hf-hub:nobody/has-this"}
    assert "carabid fetch my.yaml" in said and "the weights of hf-hub:nobody/has-this are not on this machine" in said


def test_a_file_that_is_there_is_kept_unless_that_is_said(init: Callable[..., Any], tmp_path: Path) -> None:
    path = table(tmp_path, ("f", "k"), lambda name, i: (name, ABC[i]))
    Path("my.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"my\.yaml exists already: .*--overwrite"):
        init(path)
    assert Path("my.yaml").read_text() == "mine"
    assert init(path, overwrite=True)[0]["task"] == "classify"


def test_several_tables_in_a_folder_are_named(init: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        write_table(tmp_path, [("x", "y")], name=name)
    with pytest.raises(UserError, match=r"several tables: a\.csv, b\.csv"):
        init(tmp_path)


def test_an_experiment_is_called_as_its_file_in_signs_that_a_folder_may_have() -> None:
    assert [name_of(Path(name)) for name in ("a b.yaml", "Käfer (2).yaml", "照片.yaml")] == ["a-b", "Kafer-2", "experiment"]


# ---------------------------------------------------------------- job scripts
def test_job_scripts_are_copied_and_an_edited_one_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert f"wrote {folder / 'setup.sh'}" in copy_scripts(folder)
    (folder / "setup.sh").write_text("edited")
    (folder / "train.sh").unlink()
    assert copy_scripts(folder)[0] == f"wrote {folder / 'train.sh'}"
    assert (folder / "setup.sh").read_text() == "edited"
    assert {path.name for path in folder.iterdir()} == {path.name for path in (SHIPPED / "jobs").glob("*.sh")}
