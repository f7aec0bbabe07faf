"""Predictions for new image files: what cannot be read is a user's mistake, named with the file, whatever PIL says of it."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from pipeline.backbones import load_backbone
from pipeline.cli import app
from pipeline.config.identity import config_hash
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir
from pipeline.disk.writing import write_json, write_text
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


def test_an_image_that_claims_to_be_enormous_is_refused_and_named(
    trial: TrialDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb.tiff").write_bytes(encoded("TIFF"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "is not a readable image" in refusal(trial, tmp_path / "bomb.tiff")


def test_a_file_that_does_not_exist_and_a_folder_are_told_apart(trial: TrialDir, tmp_path: Path) -> None:
    assert "does not exist" in refusal(trial, tmp_path / "none.jpg")
    assert "is not a readable image" in refusal(trial, tmp_path)


def test_running_out_of_memory_is_not_blamed_on_the_image(
    trial: TrialDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(encoded: bytes) -> Image.Image:
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
