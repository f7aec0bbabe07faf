"""`carabid publish` against a Hub on this machine, and the card: what is uploaded is what was shown, nothing of this machine is
in it, and whoever downloads it predicts with it."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pandas as pd
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from pipeline import hub as hub_cache
from pipeline.config.trial import Config
from pipeline.disk.layout import TrialDir, experiment_dir
from pipeline.disk.writing import read_hashed, read_json, write_hashed, write_json
from pipeline.errors import UserError, WorkError
from pipeline.experiments.reading import load_config, load_experiment
from pipeline.export import release
from pipeline.export.publish import parse_repository
from pipeline.export.release import prepare
from pipeline.reporting.cards import Told, front_matter, model_card
from pipeline.stages import evaluate, extract, train
from pipeline.stages.predict import Origin, predict_files
from tests.conftest import Assets
from tests.fake_hub import TOKEN, Hub, fake_hub
from tests.test_cli import Said, type_in  # noqa: F401

pytestmark = pytest.mark.jobs
SOMEONE = "/".join(("", "home", "someone"))
LORA = ("train.epochs=1", "model.encoder.blocks=1", "model.encoder.r=4", "model.encoder.alpha=4")
PUBLISHED = (
    "README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.yaml", "model.safetensors",
    "provenance.json", "results.json", "trained.json",
)  # fmt: skip


def done(config: Config, name: str) -> TrialDir:
    """A trial, trained and evaluated."""
    trial = experiment_dir(config).trial(name)
    extract.ensure(config)
    train.run(config, trial)
    evaluate.run(config, trial)
    return trial


@pytest.fixture(scope="module")
def lora(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialDir]:
    """A trial with an adapter that no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARABID_ROOT", str(tmp_path_factory.mktemp("root")))
        yield done(load_experiment("configs/beetles/lora.yaml", (*assets.overrides("lora"), *LORA)).config, "lr=1-00000001")


@pytest.fixture
def trial(lora: TrialDir, root: Path) -> TrialDir:
    """A copy of it."""
    path = root / "trained" / "beetles-lora" / lora.path.name
    shutil.copytree(lora.path, path)
    return TrialDir(path)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub, and who may write there."""
    (tmp_path / "hub" / "models").mkdir(parents=True)
    with fake_hub(tmp_path / "hub") as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        template = f"{running.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def asked(hub: Hub) -> list[str]:
    """What was asked of it, but for what its library asks by itself."""
    return [path for path in hub.asked if not path.startswith("/api/agent")]


# ---------------------------------------------------------------- upload
Typed = Callable[..., Said]


def test_a_dry_run_shows_files_and_card_and_asks_nothing(trial: TrialDir, hub: Hub, type_in: Typed) -> None:  # noqa: F811
    said = type_in("publish", trial.path, "--to", "hf:owner/beetles", "--dry-run", "--license", "cc-by-4.0")
    assert said.status == 0 and hub.asked == [] == hub.commits
    listed = dict(re.findall(r"^ *([\d,]+)  (\S+)$", said.out, re.M)[::-1])
    names = re.findall(r"^ *[\d,]+  (\S+)$", said.out, re.M)
    assert tuple(names) == PUBLISHED and f"{trial.model.stat().st_size:,}" in listed
    assert "nothing was uploaded" in said.out and "license: cc-by-4.0" in said.out and "## How to load it" in said.out
    assert "backbone lies in a folder" in said.err and "licence is unknown" not in said.err


def test_what_is_shown_is_uploaded_as_one_private_commit_and_the_token_is_nowhere(
    trial: TrialDir,
    hub: Hub,
    type_in: Typed,  # noqa: F811
    tmp_path: Path,
) -> None:
    said = type_in("publish", trial.path, "--to", "hf:owner/beetles")
    assert said.status == 0 and said.out == f"{hub.url}/owner/beetles (private)\n"
    assert [sorted(commit["file"]) for commit in hub.commits] == [list(PUBLISHED)] and hub.private == {"owner/beetles"}
    there = tmp_path / "hub" / "models" / "owner" / "beetles"
    assert sorted(p.relative_to(there).as_posix() for p in there.rglob("*") if p.is_file()) == list(PUBLISHED)
    assert (there / "model.safetensors").read_bytes() == trial.model.read_bytes()
    assert TOKEN not in said.out + said.err + "".join(map(str, hub.asked))
    assert not [path for path in there.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_older_files_of_a_model_go_with_the_same_commit_and_others_stay(
    trial: TrialDir,
    hub: Hub,
    type_in: Typed,  # noqa: F811
    tmp_path: Path,
) -> None:
    there = tmp_path / "hub" / "models" / "owner" / "beetles"
    hub.private.add("owner/beetles")
    for name in ("classifier.skops", "text_adapter/adapter_model.safetensors", "figure.png"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("older")
    assert type_in("publish", trial.path, "--to", "hf:owner/beetles").status == 0
    assert sorted(hub.commits[0]["deletedFile"]) == ["classifier.skops", "text_adapter/adapter_model.safetensors"]
    assert (there / "figure.png").exists() and len(hub.commits) == 1


def test_a_model_that_is_public_already_is_written_to_only_on_purpose(
    trial: TrialDir,
    hub: Hub,
    type_in: Typed,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "hub" / "models" / "owner" / "open").mkdir(parents=True)
    said = type_in("publish", trial.path, "--to", "hf:owner/open")
    assert said.status == 2 and "everybody may read it: say --public" in said.err and hub.commits == []
    said = type_in("publish", trial.path, "--to", "hf:owner/open", "--public")
    assert said.out == f"{hub.url}/owner/open (public)\n" and len(hub.commits) == 1


def test_without_a_token_it_says_how_to_log_in(
    trial: TrialDir,
    hub: Hub,
    type_in: Typed,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "another0" * 4)
    said = type_in("publish", trial.path, "--to", "hf:owner/beetles")
    assert said.status == 1 and "`hf auth login`" in said.err and "another0" not in said.err and hub.commits == []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = type_in("publish", trial.path, "--to", "hf:owner/beetles")
    assert said.status == 1 and "not published" in said.err and "offline" in said.err


@pytest.mark.parametrize(
    "to", ["name", "hf:name", "hf:a/b/c", "hf:-a/b", "hf:a/b..c", "hf:a/b--c", "hf:a/b.", "s3:a/b", "hf:a b/c", "hf:"]
)
def test_what_is_no_name_of_the_hub_is_refused(to: str) -> None:
    with pytest.raises(UserError, match="write hf:owner/name"):
        parse_repository(to)
    assert parse_repository("hf:owner/My_model-1.2b") == "owner/My_model-1.2b"


# ---------------------------------------------------------------- downloaded
def said_by(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What the Python of a card prints in a folder with an image and the backbone."""
    (snippet,) = re.findall(r"```python\n(.*?)```", code, re.S)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    exec(compile(snippet, "card", "exec"), {})
    return capsys.readouterr().out


def test_the_card_s_python_loads_it_from_the_hub_and_from_here_with_the_same_predictions(
    trial: TrialDir,
    hub: Hub,
    assets: Assets,
    type_in: Typed,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The folder of the backbone is another one there, without the trial being another one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "clip").symlink_to(assets.clip)
    Image.radial_gradient("L").convert("RGB").save(elsewhere / "image.jpg")
    type_in("publish", trial.path, "--to", "hf:owner/tuned")
    said = list(predict_files(trial.path, [elsewhere / "image.jpg"], Origin(), "cpu"))
    expected = pd.DataFrame(said, index=pd.Index(["image.jpg"], name="image"))
    local = said_by(trial.card.read_text(), elsewhere, monkeypatch, capsys)
    card = (tmp_path / "hub" / "models" / "owner" / "tuned" / "README.md").read_text()
    shutil.rmtree(trial.path)
    assert f"{expected.to_string()}\n" == local == said_by(card, elsewhere, monkeypatch, capsys)
    assert (elsewhere / "tuned" / "config.yaml").exists()


def test_a_lab_s_own_task_is_published_with_its_file(config_of: Callable[..., Config], tmp_path: Path, assets: Assets) -> None:
    (own := tmp_path / "phenology.py").write_text("from pipeline.tasks.beetles import TASK  # noqa: F401\n")
    trial = done(config_of("pixels", f"task={own}"), "seed=0-00000002")
    made = prepare(trial.path, "owner/pixels")
    assert made.files["phenology.py"] == own.read_bytes() and any("phenology.py" in note for note in made.notes)
    downloaded = tmp_path / "downloaded"
    for name, what in made.files.items():
        (downloaded / name).parent.mkdir(parents=True, exist_ok=True)
        (downloaded / name).write_bytes(what if isinstance(what, bytes) else what.read_bytes())
    Image.radial_gradient("L").convert("RGB").save(image := tmp_path / "image.jpg")
    own.unlink()
    assert list(next(predict_files(downloaded, [image], Origin(), "cpu"))) == ["SPEI_30d", "SPEI_1y", "SPEI_2y"]


# ---------------------------------------------------------------- what is not published
def test_nothing_of_this_machine_is_published(trial: TrialDir, assets: Assets) -> None:
    results = read_json(trial.results)
    results["summary"]["warnings"] = [f"{SOMEONE}/photos/a.jpg: a copy of ~/photos/b.jpg; https://huggingface.co/a/b is kept"]
    write_json(trial.results, results)
    made = prepare(trial.path, "owner/beetles")
    texts = {name: (what if isinstance(what, bytes) else what.read_bytes()) for name, what in made.files.items()}
    places = [
        str(trial.path.parents[2]),
        str(assets.data.parent),
        str(Path.home()),
        "/home/someone",
        "/tmp/",
        socket.gethostname(),
    ]
    for name, text in texts.items():
        assert not [place for place in places if f'"{place}'.encode() in text or f"{place}/".encode() in text], name
    config = texts["config.yaml"].decode()
    assert "source: 'not published: beetles'" in config and "name: local-dir:clip" in config and "resources:" not in config
    warning = json.loads(texts["results.json"])["summary"]["warnings"]
    assert warning == ["a.jpg: a copy of b.jpg; https://huggingface.co/a/b is kept"]
    for stage in json.loads(texts["provenance.json"]).values():
        assert stage["code"].keys() == {"commit", "dirty"} and not {"argv", "host", "slurm", "attempts"} & stage.keys()
    assert made.files.keys() == {*PUBLISHED}


def unevaluated(trial: TrialDir) -> None:
    trial.results.unlink()


def untrained(trial: TrialDir) -> None:
    trial.trained.unlink()


def damaged(trial: TrialDir) -> None:
    path = trial.adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def edited(trial: TrialDir) -> None:
    trial.config.write_text(trial.config.read_text().replace("seed: 0", "seed: 1"))


def of_another_model(trial: TrialDir) -> None:
    write_json(trial.results, read_json(trial.results) | {"config_hash": "0" * 64})


def without_figures(trial: TrialDir) -> None:
    write_json(trial.results, {key: value for key, value in read_json(trial.results).items() if key != "figures"})


def without_origin(trial: TrialDir) -> None:
    trial.provenance.write_text("{")


def with_a_place(trial: TrialDir) -> None:
    record = read_hashed(trial.trained)
    write_hashed(trial.trained, record | {"train_domains": [f"{Path.home()}/domain"]})


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (unevaluated, "is not evaluated: `carabid evaluate`"),
        (untrained, "training has not finished"),
        (damaged, "its content is not what was written"),
        (edited, "has been changed since"),
        (of_another_model, "is of another model"),
        (without_figures, r"damaged: .*results\.json"),
        (without_origin, r"damaged: .*provenance\.json"),
        (with_a_place, "line .*, names a folder of this machine"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_done_or_not_whole_is_refused(trial: TrialDir, spoil: Callable[[TrialDir], None], why: str) -> None:
    spoil(trial)
    with pytest.raises(WorkError, match=why):
        prepare(trial.path, "owner/name")


def test_a_secret_is_not_published(trial: TrialDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records hold none; a lab's own code may."""
    secret = {"phenology.py": f"TOKEN = '{TOKEN}'\n"}
    monkeypatch.setattr(release, "_own_task", lambda config: secret)
    with pytest.raises(WorkError, match=r"phenology\.py, line 1, holds a token or a password") as caught:
        prepare(trial.path, "owner/name")
    assert TOKEN not in str(caught.value)


def test_a_licence_is_a_name_and_a_folder_a_trial(trial: TrialDir) -> None:
    with pytest.raises(UserError, match=r"--license CC BY: write it as the Hub does"):
        prepare(trial.path, "owner/name", "CC BY")
    with pytest.raises(UserError, match="is not a trial's folder"):
        prepare(trial.path.parent, "owner/name")


# ---------------------------------------------------------------- the card
def told(trial: TrialDir, **changed: Any) -> Told:
    values = {"config": load_config(trial.config), "record": read_json(trial.trained), "results": read_json(trial.results)}
    return Told(trial, **{**values, **changed})


def test_the_card_is_one_of_the_hub_with_the_figures_of_results(trial: TrialDir) -> None:
    card, results = ModelCard.load(trial.card), read_json(trial.results)
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures == {name: results["figures"][name] for name in ("r2", "in_domain.r2", "out_of_domain.r2", "MAE", "rms")}
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    assert (card.data.license, card.data.library_name, card.data.pipeline_tag) == ("unknown", "carabid", None)
    assert {"carabid", "beetles", "image-regression"} <= set(card.data.tags)
    for part in (
        "these weights: unknown",
        "backbone `clip`: unknown",
        "trained on ",
        "| R² in-domain |",
        "domains that it knows",
    ):
        assert part in card.content, part


def test_the_card_names_base_data_and_licences_that_are_known(
    trial: TrialDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    for kind, name, stated in (
        ("models", "owner/clip", "license: mit"),
        ("datasets", "owner/data", "license: other\nlicense_name: ours"),
    ):
        folder = hub_cache.cached_repository(name, kind)  # type: ignore[arg-type]
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        (folder / "snapshots" / commit / "README.md").write_text(f"---\n{stated}\n---\n# A card\n")
    config = load_config(trial.config)
    on_hub = config.model_copy(update={"data": config.data.model_copy(update={"source": "owner/data"})})
    weights = {"weights": [{"repository": "owner/clip", "commit": commit}]}
    record = read_json(trial.trained)
    record["provenance"] |= weights
    text = model_card(told(trial, config=on_hub, record=record, license="cc-by-4.0"))
    card = ModelCard(text)
    assert (card.data.base_model, card.data.datasets, card.data.license) == (["owner/clip"], ["owner/data"], "cc-by-4.0")
    assert card.data.get("base_model_relation") == "adapter"
    for part in ("these weights: cc-by-4.0", "(https://huggingface.co/owner/clip): mit", "images: ours"):
        assert part in text, part
    assert hub_cache.stated_license("owner/none", "models") is None


def test_the_card_says_what_limits_its_figures(trial: TrialDir) -> None:
    results = read_json(trial.results)
    results["summary"] |= {
        "intervals": {"r2": [-0.5, 0.25]},
        "permuted_targets": True,
        "n_bad_images": 3,
        "warnings": ["few images"],
    }
    config = load_config(trial.config)
    corrected = config.model_copy(update={"data": config.data.model_copy(update={"colour_card": True})})
    text = model_card(told(trial, config=corrected, results=results | {"split": "validation", "selected_on": "validation"}))
    assert "image.jpg --colour-card colour.jpg" in text and "open_trial" not in text
    for part in ("(95 %: -0.500 … 0.250)", "figures are optimistic", "A control:", "3 images could not be read", "- few images"):
        assert part in text, part
    assert front_matter({}, None, "image-classification").to_dict() == {}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("local-dir:/scratch/jane doe/clip", "local-dir:clip"),
        ("/scratch/jane doe/beetles", "beetles"),
        ("file:///data/jane/x", "file://x"),
        ("~jane/data/x", "x"),
        (r"C:\Users\jane\data", "data"),
        ("see /gpfs/lab/x.csv, line 3", "see x.csv, line 3"),
        ("hf-hub:imageomics/bioclip-2", "hf-hub:imageomics/bioclip-2"),
        ("https://example.org/a/b", "https://example.org/a/b"),
    ],
)
def test_of_a_path_its_last_name_remains_whether_or_not_it_is_there(text: str, left: str) -> None:
    assert release._without_paths(text) == left
