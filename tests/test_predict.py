"""Predictions for new image files: what cannot be read is a user's mistake, named with the file, whatever PIL says of it."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.backbones import load_backbone
from pipeline.cli import app, main
from pipeline.config.identity import config_hash
from pipeline.config.trial import Config
from pipeline.data.decoding import NARROW, TURNED
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import read_json, write_json, write_text
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import dump_config
from pipeline.models.base import Facts
from pipeline.models.metadata import Names
from pipeline.models.saved import make_model, save_model
from pipeline.stages import predict
from pipeline.stages.predict import Origin


@pytest.fixture
def trial(config_of: Callable[..., Config], tmp_path: Path) -> TrialDir:
    """A trial with a model, as it was drawn."""
    return drawn(config_of("frozen"), Names(("1", "3")), tmp_path / "trial")


def drawn(config: Config, names: Names, path: Path) -> TrialDir:
    folder, backbone = TrialDir(path), load_backbone(config.backbone)
    facts = Facts(config.data.targets, names, backbone.embed_dim, backbone.weights_hash(), None, "key")
    save_model(make_model(config, facts, backbone), facts, folder)
    write_text(folder.config, dump_config(config))
    write_json(folder.trained, {"config_hash": config_hash(config)})
    return folder


CALIBRATION = {
    target: {part: {"shared": 0.5, "own": 0.5, "bias": 0.0, "slope": 1.0} for part in ("in_domain", "out_of_domain")}
    for target in ("SPEI_30d", "SPEI_1y", "SPEI_2y")
}


def encoded(form: str) -> bytes:
    stream = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(stream, form)
    return stream.getvalue()


def refusal(trial: TrialDir, file: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(predict.predict_files(trial.path, [file], Origin(), "cpu"))
    assert str(file) in str(caught.value)
    return str(caught.value)


def test_files_are_predicted_in_the_order_given(trial: TrialDir, tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.tiff"]
    for file, form in zip(files, ("PNG", "TIFF"), strict=True):
        file.write_bytes(encoded(form))
    Image.new("RGB", (90, 70), "red").save(tmp_path / "c.png")
    a, b, c = predict.predict_files(trial.path, [*files, tmp_path / "c.png"], Origin("3"), "cpu")
    assert a == b != c and list(a) == ["SPEI_30d", "SPEI_1y", "SPEI_2y"]


def test_a_configuration_that_was_edited_after_training_is_not_predicted_with(trial: TrialDir, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    text = trial.config.read_text()
    trial.config.write_text(text.replace("normalize: true", "normalize: false"))
    with pytest.raises(WorkError, match=r"config\.yaml has been changed since"):
        list(predict.predict_files(trial.path, [tmp_path / "a.png"], Origin(), "cpu"))
    trial.config.write_text(text)
    trial.trained.unlink()
    with pytest.raises(WorkError, match="has not finished"):
        list(predict.predict_files(trial.path, [tmp_path / "a.png"], Origin(), "cpu"))


def test_pixels_that_are_floating_point_numbers_are_refused(trial: TrialDir, tmp_path: Path) -> None:
    """Pillow clips them to 0 … 255, so that an image of numbers from 0 to 1 is nearly black."""
    Image.new("F", (40, 30), 0.5).save(tmp_path / "a.tiff")
    assert "floating-point" in refusal(trial, tmp_path / "a.tiff")


def damaged_chunk() -> bytes:
    """A PNG whose pixels' length is wrong: PIL raises SyntaxError."""
    content = bytearray(encoded("PNG"))
    content[content.index(b"IDAT") - 1] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", damaged_chunk(), encoded("PNG")[:-400], encoded("TIFF")[:400], encoded("JPEG")[:400]],
    ids=["empty", "text", "damaged PNG", "truncated PNG", "truncated TIFF", "truncated JPEG"],
)
def test_a_damaged_file_is_refused_and_named(trial: TrialDir, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "beetle.png"
    file.write_bytes(content)
    message = refusal(trial, file)
    assert "is not a readable image" in message and "BytesIO" not in message


def test_an_image_that_claims_to_be_enormous_is_refused_and_named(config_of: Callable[..., Config], tmp_path: Path) -> None:
    trial = drawn(config_of("frozen", "data.max_pixels=65535"), Names(("1",)), tmp_path / "trial")
    (tmp_path / "bomb.tiff").write_bytes(encoded("TIFF"))
    message = refusal(trial, tmp_path / "bomb.tiff")
    assert "is not a readable image" in message and "it has 256 × 256 pixels, and data.max_pixels allows 65,535" in message


def test_a_file_that_does_not_exist_and_a_folder_are_told_apart(trial: TrialDir, tmp_path: Path) -> None:
    assert "does not exist" in refusal(trial, tmp_path / "none.jpg")
    assert "is not a readable image" in refusal(trial, tmp_path)


def test_photographs_of_iphones_are_refused_with_what_reads_them(trial: TrialDir, tmp_path: Path) -> None:
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    assert "pip install pillow-heif" in refusal(trial, tmp_path / "a.HEIC")


# ---------------------------------------------------------------- the command goes on
def typed(*arguments: str | Path) -> tuple[int, list[str], str]:
    """Status, lines and messages of `carabid predict`, as a person sees them."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        patch.setattr(sys, "argv", ["carabid", "predict", *map(str, arguments), "--device", "cpu"])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0), out.getvalue().splitlines(), err.getvalue()


@pytest.fixture
def four(tmp_path: Path) -> list[Path]:
    """Good, empty, good, good."""
    files = [tmp_path / "photos" / f"{name}.png" for name in "abcd"]
    files[0].parent.mkdir()
    for file, content in zip(files, (encoded("PNG"), b"", encoded("JPEG"), encoded("TIFF")), strict=True):
        file.write_bytes(content)
    return files


def test_bad_images_are_named_the_others_predicted_and_the_status_tells(trial: TrialDir, four: list[Path]) -> None:
    status, out, err = typed(trial.path, *four)
    assert status == 1 and [line.partition("\t")[0] for line in out] == [str(four[i]) for i in (0, 2, 3)]
    assert f"{four[1]} is not a readable image" in err and "1 of 4 images cannot be read" in err and "Traceback" not in err
    status, out, err = typed(trial.path, four[0], four[0].with_name("none.png"), four[2])
    assert status == 1 and len(out) == 2 and "none.png does not exist" in err
    assert typed(trial.path, four[0], four[2])[::2] == (0, "")


def test_a_folder_is_its_images(trial: TrialDir, four: list[Path]) -> None:
    folder = four[0].parent
    (folder / "deep").mkdir()
    (folder / "deep" / "E.JFIF").write_bytes(encoded("JPEG"))
    (folder / "notes.txt").write_text("none")
    status, out, err = typed(trial.path, folder)
    assert status == 1 and "1 of 5 images" in err
    assert [line.partition("\t")[0] for line in out] == [
        str(folder / name) for name in ("a.png", "c.png", "d.png", "deep/E.JFIF")
    ]
    four[1].unlink()
    assert typed(trial.path, folder, four[0])[0] == 0
    (folder.parent / "empty").mkdir()
    status, out, err = typed(trial.path, folder.parent / "empty")
    assert status == 2 and "holds no image" in err


def test_each_name_stays_with_its_image_where_another_is_bad(of_species: TrialDir, four: list[Path]) -> None:
    names = ("Carabus nemoralis", "Harpalus affinis", "Harpalus affinis", "Carabus nemoralis")
    options = [option for name in names for option in ("--species", name)]
    _, out, _ = typed(of_species.path, *four, *options)
    _, alone, _ = typed(of_species.path, four[2], "--species", "Harpalus affinis")
    assert out[1] == alone[0]


def test_the_others_of_a_group_answer_for_a_bad_image(trial: TrialDir, four: list[Path]) -> None:
    write_json(trial.trained, read_json(trial.trained) | {"calibration": CALIBRATION})
    status, out, err = typed(trial.path, "--group", *four)
    assert status == 1 and len(out) == 1 and "±" in out[0] and f"{four[1]} is not" in err and "1 of 4 images" in err
    whole = typed(trial.path, "--group", *(four[i] for i in (0, 2, 3)))
    assert whole[0] == 0 and whole[1] == out
    status, out, err = typed(trial.path, "--group", four[1])
    assert status == 2 and out == [] and "none of the group's images can be read" in err


# ---------------------------------------------------------------- decoded as the trial's
@pytest.mark.parametrize(
    ("choice", "note"), [("data.range=image", NARROW), ("data.background=black", ""), ("data.exif=apply", TURNED)]
)
def test_new_images_are_decoded_as_the_trials_and_what_is_told_is_said_once(
    config_of: Callable[..., Config], tmp_path: Path, choice: str, note: str
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    half = Image.new("RGBA", (90, 70), (9, 90, 200, 255))
    half.paste((0, 0, 0, 0), (0, 0, 45, 70))
    for i in range(2):
        lying.save(photos / f"lying{i}.jpg", exif=exif)
        Image.fromarray((np.arange(4096) // (1 + i)).reshape(64, 64).astype(np.uint16)).save(photos / f"narrow{i}.png")
        half.save(photos / f"half{i}.png")
    plain, chosen = (drawn(config_of("frozen", *how), Names(("1",)), tmp_path / f"{len(how)}") for how in ((), (choice,)))
    files = sorted(photos.iterdir())
    (_, before, told), (_, after, quiet) = (typed(trial.path, *files) for trial in (plain, chosen))
    changed = [file.name for file, one, other in zip(files, before, after, strict=True) if one != other]
    kind = {"data.range=image": "narrow", "data.background=black": "half", "data.exif=apply": "lying"}[choice]
    assert changed == [f"{kind}0.{'jpg' if kind == 'lying' else 'png'}", f"{kind}1.{'jpg' if kind == 'lying' else 'png'}"]
    assert told.count(NARROW) == told.count(TURNED) == 1 and (not note or note not in quiet)


def test_running_out_of_memory_is_not_blamed_on_the_image(
    trial: TrialDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(encoded: bytes, how: Any) -> Image.Image:
        raise MemoryError

    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(predict, "decode", run_out)
    with pytest.raises(MemoryError):
        list(predict.predict_files(trial.path, [tmp_path / "x.png"], Origin(), "cpu"))


def predicted(folder: Path, tmp_path: Path, domain: str | None = None) -> list[dict[str, float]]:
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    return list(predict.predict_files(folder, [tmp_path / "x.png"], Origin(domain), "cpu"))


def test_a_domain_that_was_not_trained_on_is_predicted_as_unknown_and_said_once(
    trial: TrialDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = predicted(trial.path, tmp_path)
    assert capsys.readouterr().err == ""
    assert predicted(trial.path, tmp_path, "nowhere") == unknown
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "nowhere" in line and "1, 3" in line] == said and len(said) == 1
    predicted(trial.path, tmp_path, "3")
    assert capsys.readouterr().err == ""


@pytest.fixture
def of_species(config_of: Callable[..., Config], tmp_path: Path) -> TrialDir:
    """A trial whose model knows two species, as it was drawn."""
    names = Names(("1",), ("Carabus nemoralis", "Harpalus affinis"))
    return drawn(config_of("frozen", "model.species_embedding=true"), names, tmp_path / "of species")


def said_of(trial: TrialDir, tmp_path: Path, n: int, *species: str) -> list[float]:
    """The first target of the same image, n times, called these names by the command line."""
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    named = [option for name in species for option in ("--species", name)]
    arguments = ["predict", str(trial.path), *[str(tmp_path / "x.png")] * n, *named, "--device", "cpu"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [float(re.findall(r"SPEI_30d=(-?[\d.]+)", line)[0]) for line in done.stdout.splitlines()]


def test_one_name_is_of_all_images_and_several_are_of_each(of_species: TrialDir, tmp_path: Path) -> None:
    carabus, harpalus = "Carabus nemoralis", "Harpalus affinis"
    one, same = said_of(of_species, tmp_path, 2, carabus)
    assert one == same
    first, second = said_of(of_species, tmp_path, 2, carabus, harpalus)
    assert first == one != second and said_of(of_species, tmp_path, 1, harpalus) == [second]
    assert said_of(of_species, tmp_path, 1) == said_of(of_species, tmp_path, 1, "Pterostichus melanarius")
    assert said_of(of_species, tmp_path, 1)[0] not in (first, second)


@pytest.mark.parametrize("group", [False, True])
def test_another_number_of_names_than_of_images_is_refused(trial: TrialDir, tmp_path: Path, group: bool) -> None:
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    with pytest.raises(UserError, match="2 names for 3 images: give one --species for all, or one for each"):
        how = predict.predict_group if group else predict.predict_files
        list(how(trial.path, [tmp_path / "x.png"] * 3, Origin(species=("Carabus a", "Carabus b")), "cpu"))


def test_a_trial_is_found_from_any_folder(trial: TrialDir, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = root / "trained" / "exp" / "seed=0"
    moved.parent.mkdir(parents=True)
    trial.path.rename(moved)
    (root / "elsewhere").mkdir()
    for here, name in ((moved.parent, "seed=0"), (root / "elsewhere", "trained/exp/seed=0"), (tmp_path, "exp/seed=0")):
        monkeypatch.chdir(here)
        assert predicted(Path(name), tmp_path)


def test_a_trial_that_is_nowhere_is_refused_with_the_places_looked_in(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        predicted(Path("exp/seed=0"), tmp_path)
    for place in (tmp_path, root, root / "trained"):
        assert str(place / "exp" / "seed=0") in str(caught.value)


def test_a_folder_that_is_no_trial_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a trial's folder"):
        list(predict.predict_files(tmp_path, [], Origin(), "cpu"))
