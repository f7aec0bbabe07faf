"""`carabid index` and `carabid search`: a known image comes first, a text is answered with the tuned text tower, and another
model, other images, damage and bad images are noticed."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pipeline.backbones import load_towers
from pipeline.backbones.tiny import write_tiny_open_clip
from pipeline.config.identity import token_kind
from pipeline.disk.layout import PROJECT, TrialDir, experiment_dir
from pipeline.disk.reading import Damaged
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import load_experiment
from pipeline.features.kinds import KINDS
from pipeline.features.vectors import open_index
from pipeline.models.saved import load_model
from pipeline.stages import embed, evaluate, extract, index, search, train
from pipeline.stages.predict import trained_config
from pipeline.tasks import load_task
from tests.conftest import carabid
from tests.test_open_clip_folder import with_simple_tokens
from tests.towers import write_model

pytestmark = pytest.mark.jobs
WINGS = PROJECT.parent / "shared" / "data" / "wing-patterns"
QUICK = ("device=cpu", "train.precision=fp32", "features.dtype=fp32", "resources.lease_seconds=1")
TUNED: dict[str, tuple[str, ...]] = {
    "projection": ("train.epochs=2", "optim.lr=1e-2"),
    "lora": (
        "train.epochs=2",
        "optim.lr=1e-2",
        "model.encoder={kind: lora, blocks: 1, r: 2}",
        "model.text={kind: lora, blocks: 2, r: 2}",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of species, a small CLIP, and a root that all of this file's trials share."""
    folder = tmp_path_factory.mktemp("search")
    load_task("species").generate(folder / "data", scale=0.05)
    write_model(folder / "clip", with_simple_tokens("ViT-B-32"))
    return folder


@pytest.fixture
def trial_of(place: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrialDir]:
    monkeypatch.setenv("CARABID_ROOT", str(place / "root"))

    def trial(method: str, *overrides: str, clip: str = "clip") -> TrialDir:
        """A trial that is trained and evaluated, once for all tests."""
        own = (f"data.source={place / 'data' / 'metadata.csv'}", f"backbone.name=local-dir:{place / clip}", *QUICK)
        own += () if method in ("baseline", "few_shot") else ("train.batch_size=16",)
        experiment = load_experiment(PROJECT / "configs/species" / f"{method}.yaml", (*own, *TUNED.get(method, ()), *overrides))
        config, folder = experiment.trials[0].config, experiment_dir(experiment.trials[0].config).trial(experiment.trials[0].name)
        if not folder.results.exists():
            extract.ensure(config)
            train.run(config, folder)
            evaluate.run(config, folder)
        return folder

    return trial


@pytest.fixture
def tuned(trial_of: Callable[..., TrialDir]) -> TrialDir:
    return trial_of("lora")


@pytest.fixture
def photos(place: Path, tmp_path: Path) -> Path:
    """Twelve images in folders of two species."""
    source = sorted((place / "data" / "images").iterdir())[:12]
    for i, path in enumerate(source):
        target = tmp_path / "photos" / ("Carabus_niger", "Abax_ater")[i % 2] / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    return tmp_path / "photos"


def made(model: str | Path, images: Path, out: Path, **more: Any) -> index.Made:
    return index.run(index.Request(str(model), images, out, **{"device": "cpu", "threads": 2, "batch_size": 5, **more}))


def found(folder: Path, query: str | Path, top: int = 5, **more: Any) -> list[search.Hit]:
    return search.run(search.Request(folder, str(query), top, device="cpu", **more))


# ---------------------------------------------------------------- what is found
@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_every_known_image_comes_first_with_its_species(kind: str, tuned: TrialDir, photos: Path, tmp_path: Path) -> None:
    said = made(tuned.path, photos, tmp_path / "index", kind=kind)
    assert said.is_new and said.record["n"] == 12 and (said.record["recall"] is None) == (kind == "flat")
    assert not (tmp_path / "index.parts").exists()
    for path in sorted(photos.rglob("*.jpg")):
        first, *others = found(tmp_path / "index", path)
        assert (first.rank, Path(first.file)) == (1, path) and first.score == pytest.approx(1, abs=1e-5)
        assert first.species == path.parent.name.replace("_", " ")
        assert len(others) == 4 and others[0].score <= first.score + 1e-6


def test_of_copies_the_image_that_was_asked_for_comes_first(tuned: TrialDir, photos: Path, tmp_path: Path) -> None:
    original = next(photos.rglob("*.jpg"))
    copies = [original.with_name(f"{letter}.jpg") for letter in "az"]
    for copy in copies:
        shutil.copy2(original, copy)
    made(tuned.path, photos, tmp_path / "index")
    for path in (original, *copies):
        assert Path(found(tmp_path / "index", path, 1)[0].file) == path


def test_the_embeddings_are_the_tuned_towers_own(tuned: TrialDir, photos: Path, tmp_path: Path) -> None:
    """Images and texts as the loaded model embeds them from the towers' features, and not as the released model does."""
    made(tuned.path, photos, tmp_path / "index")
    opened, config = open_index(tmp_path / "index"), trained_config(tuned)
    towers = load_towers(config.backbone)
    model = load_model(config, tuned, towers.image, towers.text)
    vectors = opened.vectors.reconstruct_n(0, 12)
    with torch.inference_mode():
        images = torch.stack([towers.image.transform(Image.open(photos / name)) for name in opened.rows["file"]])
        kind, blocks = token_kind(config)
        own = model.embed(KINDS[kind].compute(towers.image, images, towers.image.cut_before(blocks))).numpy()
        kind, blocks = token_kind(config, "text")
        tokens = towers.text.transform("a black beetle").unsqueeze(0)
        text = model.embed_texts(KINDS[kind].compute(towers.text, tokens, towers.text.cut_before(blocks)))[0].numpy()
        released = torch.nn.functional.normalize(towers.image.embed(images), dim=-1).numpy()
    assert np.abs(vectors - own).max() < 1e-6 < 1e-3 < np.abs(vectors - released).max()
    hits = found(tmp_path / "index", "a black beetle", 12)
    cosines = own @ text
    assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines)[::-1], abs=1e-6)
    assert hits[0].file == str(photos / opened.rows["file"][int(cosines.argmax())])


def test_a_text_in_a_template_is_that_text(tuned: TrialDir, photos: Path, tmp_path: Path) -> None:
    made(tuned.path, photos, tmp_path / "index")
    in_template = found(tmp_path / "index", "Carabus niger", template="a photo of $SCI$")
    assert in_template == found(tmp_path / "index", "a photo of Carabus niger") != found(tmp_path / "index", "Carabus niger")
    with pytest.raises(UserError, match=r"--template 'a photo': write \$SCI\$ where the text is to stand"):
        found(tmp_path / "index", "Carabus niger", template="a photo")
    with pytest.raises(UserError, match="--template is for texts"):
        found(tmp_path / "index", next(photos.rglob("*.jpg")), template="a photo of $SCI$")


def test_a_released_model_is_searched_by_its_name_with_texts_if_it_reads_them(
    photos: Path, place: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(f"local-dir:{place / 'clip'}", photos, tmp_path / "clip")
    assert len(found(tmp_path / "clip", "a black beetle")) == 5
    monkeypatch.chdir(place)
    made("local-dir:clip", photos, tmp_path / "relative")
    monkeypatch.chdir(tmp_path)
    assert found(tmp_path / "relative", "a black beetle") == found(tmp_path / "clip", "a black beetle")
    write_tiny_open_clip(tmp_path / "tiny")
    for name, words in ((f"local-dir:{tmp_path / 'tiny'}", "its vocabulary is another"), ("pixels:4", "pixels reads no texts")):
        made(name, photos, tmp_path / "index", overwrite=True)
        image = next(photos.rglob("*.jpg"))
        assert Path(found(tmp_path / "index", image)[0].file) == image
        with pytest.raises(UserError, match=words):
            found(tmp_path / "index", "a black beetle")


def test_a_table_names_files_and_species_by_the_trials_columns_or_usual_ones(
    tuned: TrialDir, place: Path, photos: Path, tmp_path: Path
) -> None:
    own = made(tuned.path, place / "data" / "metadata.csv", tmp_path / "own")
    rows, table = open_index(tmp_path / "own").rows, pd.read_csv(place / "data" / "metadata.csv")
    assert own.record["n"] == len(table) and rows["species"].tolist() == table["scientificName"].tolist()
    files = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.jpg"))
    pd.DataFrame({"path": files, "Species": ["Abax ater", None] * 6}).to_parquet(photos / "t.parquet")
    made(tuned.path, photos / "t.parquet", tmp_path / "usual")
    assert open_index(tmp_path / "usual").rows["species"].tolist() == ["Abax ater", None] * 6
    (photos / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"t\.csv: no column is known to hold the images' files: name it filename.*it has a, b"):
        made(tuned.path, photos / "t.csv", tmp_path / "no")


@pytest.mark.skipif(not WINGS.is_dir(), reason=f"needs the real silhouettes in {WINGS}")
def test_real_wing_patterns_are_found_again(place: Path, tmp_path: Path) -> None:
    table = pd.read_csv(WINGS / "metadata.csv").iloc[::40]
    files = [str(WINGS / "images" / name) for name in table["filename"]]
    pd.DataFrame({"filename": files, "species": table["subspecies"]}).to_csv(tmp_path / "wings.csv", index=False)
    said = made(f"local-dir:{place / 'clip'}", tmp_path / "wings.csv", tmp_path / "index")
    assert said.record["n"] == len(table) >= 25 and said.n_bad == 0
    for file, species in list(zip(files, table["subspecies"], strict=True))[::6]:
        first = found(tmp_path / "index", file, 1)[0]
        assert (first.file, first.species) == (file, species)


# ---------------------------------------------------------------- queries that are none
def test_a_query_that_is_neither_image_nor_text_is_refused_in_words(tuned: TrialDir, photos: Path, tmp_path: Path) -> None:
    made(tuned.path, photos, tmp_path / "index")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    for query, words in (
        ("nothing.jpg", "there is no such file, and for a text it looks like a path"),
        ("photos/nothing", "there is no such file"),
        (str(photos), "is a folder: search for one image of it"),
        (" ", "the query is empty"),
        (str(tmp_path / "broken.jpg"), "is not a readable image"),
    ):
        with pytest.raises(UserError, match=words):
            found(tmp_path / "index", query)
    assert found(tmp_path / "index", "male/female of a beetle"), "a text with a blank"
    assert found(tmp_path / "index", "beetle " * 400), "longer than a file's name may be"


def test_few_shots_have_no_tuned_towers(trial_of: Callable[..., TrialDir], photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its head \(simple_shot\) leaves the towers as they were released: name .*local-dir"):
        made(trial_of("few_shot", "data.shots=2").path, photos, tmp_path / "index")
    assert not (tmp_path / "index").exists() and not (tmp_path / "index.parts").exists()
    with pytest.raises(UserError, match="nothing/here is not a trial's folder"):
        made("nothing/here", photos, tmp_path / "index")


# ---------------------------------------------------------------- again, and other things
def test_the_same_command_does_nothing_twice_and_overwrites_nothing_unasked(
    tuned: TrialDir, trial_of: Callable[..., TrialDir], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tuned.path, photos, tmp_path / "index")
    before = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(embed, "compute_features", lambda *_: pytest.fail("an image was embedded again"))
        assert not made(tuned.path, photos, tmp_path / "index").is_new
    with pytest.raises(UserError, match="is an index by another model: name another folder with --out, or add --overwrite"):
        made(trial_of("projection").path, photos, tmp_path / "index")
    with pytest.raises(UserError, match="is an index of kind flat"):
        made(tuned.path, photos, tmp_path / "index", kind="hnsw")
    next(photos.rglob("*.jpg")).unlink()
    with pytest.raises(UserError, match="is an index of other images"):
        made(tuned.path, photos, tmp_path / "index")
    for folder in (photos, Path("."), Path("/")):
        with pytest.raises(UserError, match="is there and is no index"):
            made(tuned.path, photos, folder, overwrite=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    assert made(tuned.path, photos, tmp_path / "index", overwrite=True).record["n"] == 11


def test_an_index_that_was_interrupted_goes_on_and_nothing_half_written_is_there(
    tuned: TrialDir, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []
    compute = embed.compute_features

    def interrupted(backbone: Any, images: Any, *rest: Any) -> Any:
        if sum(done) >= 5 and len(done) == 1:
            done.append(0)
            raise KeyboardInterrupt
        done.append(len(images))
        return compute(backbone, images, *rest)

    monkeypatch.setattr(embed, "compute_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(tuned.path, photos, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    assert made(tuned.path, photos, tmp_path / "index").record["n"] == 12
    assert sum(done) == 12, "what was done is not done again"
    assert not (tmp_path / "index.parts").exists()


def test_bad_images_are_named_and_left_out(
    tuned: TrialDir, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "Abax_ater" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    said = made(tuned.path, photos, tmp_path / "index")
    assert (said.n_bad, said.record["n"]) == (1, 12)
    assert f"{photos}/Abax_ater/broken.jpg: " in "".join(capsys.readouterr())
    rows = pd.read_parquet(tmp_path / "index" / "rows.parquet").set_index("file")
    assert rows.loc["Abax_ater/broken.jpg", "error"] and pd.isna(rows.loc["Abax_ater/broken.jpg", "row"])
    for path in sorted(photos.rglob("SP*.jpg")):
        assert Path(found(tmp_path / "index", path, 1)[0].file) == path
    assert made(tuned.path, photos, tmp_path / "index").n_bad == 1
    for path in photos.rglob("*.jpg"):
        path.write_bytes(b"\xff\xd8\xff no image")
    with pytest.raises(WorkError, match=r"none of the images of .*photos can be read"):
        made(tuned.path, photos, tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ---------------------------------------------------------------- another model than it was made with
def test_a_trial_that_has_moved_or_was_trained_anew_is_noticed(
    tuned: TrialDir, trial_of: Callable[..., TrialDir], photos: Path, tmp_path: Path
) -> None:
    trial = tmp_path / "trial"
    shutil.copytree(tuned.path, trial)
    made(trial, photos, tmp_path / "index")
    expected = found(tmp_path / "index", "a black beetle")
    trial.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=f"{trial}: the trial that this index was made with is not there any more: .*--trial"):
        found(tmp_path / "index", "a black beetle")
    assert found(tmp_path / "index", "a black beetle", trial=tmp_path / "moved") == expected
    with pytest.raises(WorkError, match="is not the model that this index was made with"):
        found(tmp_path / "index", "a black beetle", trial=trial_of("projection").path)
    again = trial_of("lora", "seed=1")  # what training anew leaves at the same place
    shutil.copytree(again.path, trial)
    with pytest.raises(WorkError, match="was trained anew, or is another trial"):
        found(tmp_path / "index", "a black beetle")


def test_a_released_model_with_other_weights_is_noticed(photos: Path, place: Path, tmp_path: Path, root: Path) -> None:
    shutil.copytree(place / "clip", tmp_path / "clip")
    made(f"local-dir:{tmp_path / 'clip'}", photos, tmp_path / "index")
    weights = tmp_path / "clip" / "open_clip_model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights)
    with pytest.raises(WorkError, match="has other weights now than this index was made with"):
        found(tmp_path / "index", "a black beetle")


# ---------------------------------------------------------------- the commands
def test_the_commands_say_what_they_did_and_print_every_form(tuned: TrialDir, photos: Path, place: Path, tmp_path: Path) -> None:
    (photos / "Abax_ater" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    root, out = place / "root", tmp_path / "index"
    said = carabid("index", tuned.path, photos, "--out", out, "--device", "cpu", root=root, check=False)
    assert said.returncode == 1 and f"{out}: 12 images, flat" in said.stdout and "Traceback" not in said.stderr
    assert f"1 images cannot be read and are left out: the column error of {out}/rows.parquet says why" in said.stderr
    image = next(photos.rglob("SP*.jpg"))
    shown = carabid("search", out, image, "--top", "2", root=root).stdout
    assert "1.000" in shown and image.parent.name.replace("_", " ") in shown
    rows = json.loads(carabid("search", out, "a black beetle", "--format", "json", root=root).stdout)
    assert [row["rank"] for row in rows] == list(range(1, 11)) and set(rows[0]) == {"rank", "score", "species", "file"}
    text = carabid("search", out, "a black beetle", "--format", "csv", root=root).stdout
    assert [row["file"] for row in csv.DictReader(io.StringIO(text))] == [row["file"] for row in rows]
    wrong = carabid("search", out, "nothing.jpg", "--format", "yaml", root=root, check=False)
    assert wrong.returncode == 2 and "--format yaml: choose table, csv or json" in wrong.stderr
    (out / "index.faiss").write_bytes(b"")
    damaged = carabid("search", out, "a black beetle", root=root, check=False)
    assert damaged.returncode == 1 and "damaged: " in damaged.stderr and "Traceback" not in damaged.stderr


def test_a_damaged_index_is_not_taken_for_one_that_is_up_to_date(tuned: TrialDir, photos: Path, tmp_path: Path) -> None:
    made(tuned.path, photos, tmp_path / "index")
    (tmp_path / "index" / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(Damaged, match=r"rows\.parquet: its content is not what was written"):
        made(tuned.path, photos, tmp_path / "index")
    assert made(tuned.path, photos, tmp_path / "index", overwrite=True).record["n"] == 12
    assert found(tmp_path / "index", "a black beetle")
