"""What a model is made of is hashed when it is written and checked when it is read: no byte of a trained trial can change, and a
prediction with it, without a word."""

from __future__ import annotations

import errno
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.disk.layout import ExperimentDir, TrialDir
from pipeline.disk.writing import read_json, write_json
from pipeline.errors import UserError, WorkError
from pipeline.export.check import check
from pipeline.export.clean import make_environment, run
from pipeline.export.seal import opened
from pipeline.models import content
from pipeline.models.saved import read_trained
from pipeline.stages.ensemble import update_ensembles
from pipeline.stages.predict import members_of
from tests.conftest import MakeOnce
from tests.fuzz import damage
from tests.fuzz.verdict import command

pytestmark = pytest.mark.jobs

FLIPS = pytest.mark.parametrize("flips", [1, pytest.param(4, marks=pytest.mark.long)])
"""Bytes of each file."""


@pytest.fixture(scope="module")
def whole(made_once: MakeOnce) -> damage.Trained:
    return damage.trained(made_once("damaged", damage.trained))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "beetle.png"
    Image.new("RGB", (40, 30), (200, 120, 30)).save(path)
    return path


def copy_of(trial: Path, folder: Path) -> TrialDir:
    return TrialDir(Path(shutil.copytree(trial, folder / trial.name)))


@FLIPS
def test_no_byte_of_a_trial_changes_a_prediction_silently(whole: damage.Trained, image: Path, tmp_path: Path, flips: int) -> None:
    refused = 0
    with damage.rooted(whole.root):
        for original in whole.trials(whole.root):
            said = command("predict", str(original), str(image))
            assert said.status == 0, said
            for path in sorted(path for path in original.rglob("*") if path.is_file()):
                refused += flip(path, original, said.out, image, tmp_path, flips)
    assert refused > 10 * flips


def test_no_byte_of_an_ensemble_changes_a_forecast_silently(whole: damage.Trained, image: Path, tmp_path: Path) -> None:
    with damage.rooted(whole.root):
        (original,) = whole.ensembles(whole.root)
        experiment = Path(shutil.copytree(original.parent.parent, tmp_path / "experiment", ignore=shutil.ignore_patterns("code")))
        ensemble = experiment / "ensembles" / original.name
        line = ("predict", str(ensemble), str(image), "--group")
        said = command(*line)
        assert said.status == 0, said
        path = ensemble / "results.json"
        content, draw = path.read_bytes(), random.Random(0)
        for i in [draw.randrange(len(content)) for _ in range(20)]:
            path.write_bytes(content[:i] + bytes([content[i] ^ 1 << draw.randrange(8)]) + content[i + 1 :])
            ended = command(*line)
            assert ended.status or ended.out == said.out, f"byte {i} of results.json changes what is forecast: {ended.out}"
            assert not ended.status or f"damaged: {path}: " in ended.err


ODD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a calibration that was edited": lambda found: found["calibration"]["SPEI_30d"]["out_of_domain"].update(floor=0.5),
    "no calibration": lambda found: found.update(calibration=None),
    "a calibration of nothing": lambda found: found.update(calibration={}),
    "a calibration that is none": lambda found: found.update(calibration="x"),
    "a number of members": lambda found: found.update(members=3),
    "members without a name": lambda found: found.update(members=[1]),
    "no members": lambda found: found.update(members=[], made_from={}),
    "a member of no name": lambda found: found.update(members=["a\0b"], made_from={"a\0b": ""}),
}


@pytest.mark.parametrize(
    ("change", "is_older"), [*((change, False) for change in ODD), *((change, True) for change in [*ODD][1:])]
)
def test_an_ensemble_that_was_edited_is_damaged_and_collected_again(
    whole: damage.Trained, tmp_path: Path, change: str, is_older: bool
) -> None:
    """One of before there were hashes is known by its form alone."""
    (original,) = whole.ensembles(whole.root)
    folder = Path(shutil.copytree(original.parent.parent, tmp_path / "experiment", ignore=shutil.ignore_patterns("code")))
    ensemble = TrialDir(folder / "ensembles" / original.name)
    before = read_json(ensemble.results)
    write_json(ensemble.results, {key: value for key, value in before.items() if key != "sha256" or not is_older})
    assert len(members_of(ensemble.path)[0]) == 2 and not update_ensembles(ExperimentDir(folder))
    edited = read_json(ensemble.results)
    ODD[change](edited)
    write_json(ensemble.results, edited)
    with pytest.raises(WorkError, match=rf"damaged: {ensemble.results}: .*carabid collect"):
        members_of(ensemble.path)
    if not is_older:
        assert update_ensembles(ExperimentDir(folder)) and read_json(ensemble.results) == before


def test_what_calibrates_a_submission_and_an_ensemble_is_hashed_too(whole: damage.Trained, tmp_path: Path) -> None:
    (original,) = (path for path in whole.trials(whole.root) if path.parent.name == "butterflies-logistic")
    trial = copy_of(original, tmp_path)
    content = trial.validation.read_bytes()
    for spoilt in (content[:-20], content[:400] + bytes([content[400] ^ 4]) + content[401:], b""):
        trial.validation.write_bytes(spoilt)
        with pytest.raises(WorkError, match=rf"damaged: {trial.validation}: its content is not what was written"):
            read_trained(trial)
        ended = command("export", str(trial.path), "--with-backbone", "--out", str(tmp_path / "out"))
        assert ended.status == 1 and f"damaged: {trial.validation}: " in ended.err


def test_what_calibrates_a_submission_is_named_where_it_is_older_than_hashes_and_damaged(
    whole: damage.Trained, tmp_path: Path
) -> None:
    (original,) = (path for path in whole.trials(whole.root) if path.parent.name == "butterflies-logistic")
    trial = copy_of(original, tmp_path)
    record = read_trained(trial)
    del record["content"]["validation.parquet"]
    write_json(trial.trained, record)
    assert read_trained(trial) == record
    trial.validation.write_bytes(trial.validation.read_bytes()[:-20])
    ended = command("export", str(trial.path), "--with-backbone", "--out", str(tmp_path / "out"))
    assert ended.status == 1 and f"damaged: {trial.validation}: " in ended.err


def test_an_ensemble_takes_no_member_whose_validation_is_damaged(
    whole: damage.Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (original,) = whole.ensembles(whole.root)
    folder = Path(shutil.copytree(original.parent.parent, tmp_path / "experiment", ignore=shutil.ignore_patterns("code")))
    shutil.rmtree(folder / "ensembles")
    path = TrialDir(folder / read_json(TrialDir(original).results)["members"][0]).validation
    content = path.read_bytes()
    path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert not update_ensembles(ExperimentDir(folder))
    assert f"damaged: {path}: its content is not what was written" in capsys.readouterr().err


def flip(path: Path, original: Path, said: str, image: Path, folder: Path, flips: int) -> int:
    """How many of `flips` changed bytes of a file are refused; the others change nothing that is said."""
    trial = copy_of(original, folder)
    place, content, refused = trial.path / path.relative_to(original), path.read_bytes(), 0
    draw = random.Random(path.name)
    for i in [draw.randrange(len(content)) for _ in range(flips)]:
        place.write_bytes(content[:i] + bytes([content[i] ^ 1 << draw.randrange(8)]) + content[i + 1 :])
        ended = command("predict", str(trial.path), str(image))
        assert ended.status or ended.out == said, f"byte {i} of {path.name} changes what is predicted: {ended.out}"
        refused += ended.status > 0
    shutil.rmtree(trial.path)
    return refused


@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_file_of_a_model_is_named(whole: damage.Trained, tmp_path: Path, name: str, how: str) -> None:
    (original,) = (path for path in whole.trials(whole.root) if (path / "adapter").exists())
    trial = copy_of(original, tmp_path)
    path = trial.path / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"16", b"32").replace(b"0.", b"1.") + b" ")
    with pytest.raises(WorkError, match=rf"damaged: {path}: it.* `carabid train`"):
        read_trained(trial)


@pytest.mark.parametrize("change", [{"calibration": {}}, {"train_means": {}}, {"config_hash": "0" * 64}, {"more": 1}])
def test_a_record_of_training_that_was_edited_is_damaged(
    whole: damage.Trained, tmp_path: Path, change: dict[str, object]
) -> None:
    trial = copy_of(whole.trials(whole.root)[0], tmp_path)
    write_json(trial.trained, read_json(trial.trained) | change)
    with pytest.raises(WorkError, match=r"damaged: .*trained\.json: its content is not what was written"):
        read_trained(trial)


def test_a_record_of_before_there_were_hashes_is_read(whole: damage.Trained, tmp_path: Path) -> None:
    trial = copy_of(whole.trials(whole.root)[0], tmp_path)
    record = read_trained(trial)
    older = {key: value for key, value in record.items() if key != "content"}
    write_json(trial.trained, older)
    assert read_trained(trial) == older


def test_what_the_disk_does_not_give_is_not_damaged_and_is_not_trained_again(
    whole: damage.Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = copy_of(whole.trials(whole.root)[0], tmp_path)

    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(content, "sha256_of_file", fail)
    with pytest.raises(OSError, match="Input/output error"):
        read_trained(trial)


@pytest.mark.parametrize("name", ["model.safetensors", "adapter/adapter_model.safetensors"])
def test_a_model_of_before_there_were_hashes_that_was_cut_short_is_damaged(
    whole: damage.Trained, tmp_path: Path, name: str
) -> None:
    (original,) = (path for path in whole.trials(whole.root) if (path / "adapter").exists())
    trial = copy_of(original, tmp_path)
    write_json(trial.trained, {key: value for key, value in read_trained(trial).items() if key != "content"})
    path = trial.path / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WorkError, match=rf"damaged: {path}: "):
        read_trained(trial)


# ---------------------------------------------------------------- submissions
FLIP = """
import contextlib, importlib, io, json, os, random, shutil, sys
from PIL import Image

def says(folder, challenge, image):
    for name in ("model", "network", "towers", "plain", "correction", "seal"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        model = importlib.import_module("model").Model()
        model.load()
        if challenge == "butterflies":
            return repr(model.predict(Image.open(image)))
        point = {"relative_img": Image.open(image), "domainID": 1, "scientificName": "Carabus goryi"}
        return repr(model.predict([point] * 2))
    finally:
        sys.path.remove(folder)

def attempt(*arguments):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return says(*arguments), None
    except BaseException as error:
        return None, f"{type(error).__name__}: {error}"

original, challenge, image, flips, folder = sys.argv[1:]
shutil.copytree(original, folder)
said, error = attempt(folder, challenge, image)
assert said, error
tried = []
for path, _, names in sorted(os.walk(folder)):
    for name in sorted(names):
        file, draw = os.path.join(path, name), random.Random(name)
        content = open(file, "rb").read()
        for i in [draw.randrange(len(content)) for _ in range(int(flips))]:
            changed = content[:i] + bytes([content[i] ^ 1 << draw.randrange(8)]) + content[i + 1 :]
            open(file, "wb").write(changed)
            tried.append([os.path.relpath(file, folder), i, said, *attempt(folder, challenge, image)])
        open(file, "wb").write(content)
assert attempt(folder, challenge, image)[0] == said
print(json.dumps(tried))
"""
"""Flips bytes of a submission's files, and lets it answer as the platform does after each."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_environment(tmp_path_factory.mktemp("clean") / "venv")


@FLIPS
@pytest.mark.parametrize("number", [0, 1, 2])
def test_no_byte_of_a_submission_changes_an_answer_silently(
    whole: damage.Trained, image: Path, clean: Path, tmp_path: Path, number: int, flips: int
) -> None:
    folder = whole.submissions(whole.root)[number]
    if folder.suffix == ".zip":
        shutil.unpack_archive(folder, tmp_path / "unpacked")
        folder = tmp_path / "unpacked"
    challenge = read_json(folder / "submission.json")["challenge"]
    done = run(clean, ["-c", FLIP, str(folder), challenge, str(image), str(flips), str(tmp_path / "copy")], tmp_path)
    assert done.returncode == 0, done.stderr
    tried = json.loads(done.stdout)
    assert {name for name, *_ in tried} == {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name, place, said, answer, error in tried:
        assert error or answer == said, f"byte {place} of {name} changes what is said: {answer}"
        # (What a flip makes of code may fail before the code that looks.)
        assert name.endswith((".py", ".json")) or f"damaged: {name}: " in error, (name, place, error)
    assert sum(error is not None for *_, error in tried) >= len(tried) - flips  # (a space of submission.json may become another)


@pytest.mark.parametrize("suffix", [".py", ".pt", ".json", ".txt"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_the_check_names_a_file_that_is_not_as_it_was_exported(
    whole: damage.Trained, tmp_path: Path, suffix: str, how: str
) -> None:
    folder = Path(shutil.copytree(whole.submissions(whole.root)[1], tmp_path / "submission"))
    for path in sorted(path for path in folder.rglob(f"*{suffix}") if how == "changed" or path.name != "submission.json"):
        content = path.read_bytes()
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(content.replace(b"0", b"1", 1) if b"0" in content else content + b"#")
        with pytest.raises(WorkError, match=rf"{folder}: damaged: {path.relative_to(folder)}: it"):
            check(folder)
        path.write_bytes(content)


def test_a_submission_of_before_there_were_hashes_is_read(whole: damage.Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole.submissions(whole.root)[1], tmp_path / "submission"))
    older = {key: value for key, value in read_json(folder / "submission.json").items() if key not in ("sha256", "content")}
    write_json(folder / "submission.json", older)
    (folder / "weights.pt").touch()
    assert opened(folder) == older


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[]]", "5", '{"sha256": {}}'])
def test_a_submission_that_tells_of_itself_no_more_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "submission.json").write_text(content)
    with pytest.raises(WorkError, match=r"damaged: submission\.json: its content is not what was exported"):
        check(tmp_path)


@pytest.mark.parametrize("length", [0, 100, -30])
def test_a_zip_that_was_cut_short_is_damaged(whole: damage.Trained, tmp_path: Path, length: int) -> None:
    path = tmp_path / "submission.zip"
    path.write_bytes(whole.submissions(whole.root)[2].read_bytes()[:length])
    with pytest.raises(WorkError, match=rf"damaged: {path}: it is no zip file, or only a part of one"):
        check(path)
    with pytest.raises(UserError, match="there is no folder or zip file of that name"):
        check(tmp_path / "another.zip")
