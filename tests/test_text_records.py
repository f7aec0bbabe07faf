"""Records of texts and of text towers: they hold for as long as what they tell of is as it was, and no longer."""

from __future__ import annotations

import csv
import shutil
from functools import partial
from pathlib import Path

import open_clip
import pytest

from pipeline.backbones import load_towers
from pipeline.config.trial import Config
from pipeline.data.texts import texts_of
from pipeline.disk.layout import PROJECT
from pipeline.disk.writing import write_json
from pipeline.experiments.reading import load_experiment
from pipeline.features import text_hashes
from pipeline.features.text_hashes import keep_texts, known_text_weights, known_texts, text_weights
from pipeline.tasks import load_task
from tests.lab import write_images
from tests.towers import WORDS, hugging_face, write_model, write_tokenizer


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve images of four species."""
    monkeypatch.setenv("CARABID_ROOT", str(tmp_path / "root"))
    with (tmp_path / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("filename", "species", "toad"))
        writer.writerows((name, f"Bufo sp{'abcd'[i % 4]}", "a toad") for i, name in enumerate(write_images(tmp_path, 12)))
    return tmp_path / "metadata.csv"


def config_of(table: Path, *overrides: str) -> Config:
    named = (f"data.source={table}", *overrides)
    return load_experiment(PROJECT / "configs/species/baseline.yaml", named).trials[0].config


def kept(config: Config) -> None:
    dataset = load_task(config.task).load(config.data)
    keep_texts(config, dataset.signature(), texts_of(dataset, config.texts))


@pytest.mark.parametrize("other", ["data.shots=1", "data.shots=2 data.draw=3", "data.split.seed=7"])
def test_texts_are_known_for_trials_that_train_on_other_images_of_the_same(other: str, table: Path) -> None:
    kept(config_of(table))
    assert known_texts(config_of(table, *other.split())) is not None


@pytest.mark.parametrize("other", ["data.columns.common=toad", "texts.evaluation=$COM$", "data.missing=['a toad']"])
def test_texts_are_not_known_for_trials_whose_texts_are_others(other: str, table: Path) -> None:
    kept(config_of(table))
    assert known_texts(config_of(table)) is not None and known_texts(config_of(table, other)) is None


def test_texts_that_other_code_has_made_are_made_again(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(table)
    kept(config)
    for name in text_hashes.CODE:
        (tmp_path / "code/pipeline" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / "pipeline" / name, tmp_path / "code/pipeline" / name)
    monkeypatch.setattr(text_hashes, "PROJECT", tmp_path / "code")
    assert known_texts(config) is not None
    for name in text_hashes.CODE:
        path = tmp_path / "code/pipeline" / name
        before = path.read_text()
        path.write_text(before + "\n# other code\n")
        assert known_texts(config) is None, name
        path.write_text(before)


def test_a_tokenizer_that_lies_elsewhere_is_part_of_what_is_known_of_a_text_tower(table: Path, tmp_path: Path) -> None:
    described = hugging_face(tmp_path / "bert")
    write_tokenizer(tmp_path / "bert")
    write_model(tmp_path / "model", described)
    write_json(tmp_path / "elsewhere.json", described)
    open_clip.add_model_config(tmp_path / "elsewhere.json")  # (a model in a folder reads the tokenizer beside it)
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    config = config_of(table, "backbone.name=elsewhere", f"backbone.pretrained={weights}")
    before = text_weights(config, partial(load_towers, config.backbone))
    assert known_text_weights(config) == before
    write_tokenizer(tmp_path / "bert", (*WORDS[:-1], "toad"))
    assert known_text_weights(config) is None
    after = text_weights(config, partial(load_towers, config.backbone))
    assert known_text_weights(config) == after and after.transform != before.transform and after.weights == before.weights
