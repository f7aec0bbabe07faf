"""Where a result comes from: which code, by git or by a snapshot, on what, as which job; and nothing of the environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.backbones import origins
from pipeline.config.backbone import OpenClip
from pipeline.config.trial import Config
from pipeline.disk import provenance
from pipeline.disk.layout import experiment_dir
from pipeline.disk.provenance import code_version, installed_version, loaded_code
from pipeline.disk.writing import read_json, write_json
from pipeline.stages import evaluate, extract, train
from tests.test_project import declared

COMMIT = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "now")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one module, which passes for the project."""
    folder = tmp_path / "project"
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline" / "module.py").write_text("first = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, *COMMIT)
    monkeypatch.setattr(provenance, "PROJECT", folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


# ---------------------------------------------------------------- the code
def test_clean_code_is_named_by_its_commit(project: Path) -> None:
    assert code_version() == {"commit": git(project, "rev-parse", "HEAD"), "dirty": False, "diff": "", "new_files": []}


def test_edits_that_are_not_committed_are_kept_as_a_diff(project: Path) -> None:
    (project / "pipeline" / "module.py").write_text("first = 2\n")
    code = code_version()
    assert code["dirty"] and "-first = 1\n+first = 2\n" in code["diff"]


def test_a_new_module_that_git_does_not_know_yet_makes_the_code_dirty(project: Path) -> None:
    """A fifth task is one new file: no diff shows it."""
    (project / "pipeline" / "fifth.py").write_text("pass\n")
    code = code_version()
    assert code["dirty"] and code["diff"] == "" and code["new_files"] == ["pipeline/fifth.py"]


def test_what_git_ignores_and_what_is_no_code_leaves_it_clean(project: Path) -> None:
    (project / ".gitignore").write_text("*.pyc\n")
    (project / "pipeline" / "module.pyc").write_bytes(b"\0")
    (project / "notes.txt").write_text("x")
    assert not code_version()["dirty"]


def test_a_module_in_another_encoding_is_no_obstacle(project: Path) -> None:
    (project / "pipeline" / "module.py").write_bytes("# Käfer\n".encode("latin-1"))
    assert "# K\ufffdfer" in code_version()["diff"]


def test_code_in_a_checkout_of_something_else_has_no_commit(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment often lies in some repository's folder, which says nothing of the packages in it."""
    (project / ".gitignore").write_text("env\n")
    installed = project / "env" / "site-packages"
    (installed / "pipeline").mkdir(parents=True)
    monkeypatch.setattr(provenance, "PROJECT", installed)
    assert code_version() == {"commit": None, "dirty": None}


def test_without_git_there_is_no_commit(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == {"commit": None, "dirty": None}


def test_a_snapshot_says_itself_what_it_is_of(project: Path) -> None:
    """It lies in a folder that may be in a checkout: of what is not the code that runs."""
    recorded = {"commit": "c0ffee", "dirty": True, "diff": "+x", "new_files": []}
    write_json(project / provenance.CODE_RECORD, recorded)
    assert code_version() == recorded


def test_an_edit_while_a_process_runs_is_not_taken_for_its_code(project: Path) -> None:
    loaded_code.cache_clear()
    before = loaded_code()
    (project / "pipeline" / "module.py").write_text("first = 2\n")
    assert loaded_code() == before == provenance.provenance()["code"] != code_version()
    loaded_code.cache_clear()


# ---------------------------------------------------------------- the rest
def test_versions_of_all_packages_that_figures_may_depend_on_are_kept() -> None:
    no_figures = {"pydantic", "pyyaml", "typer", "rich", "jaxtyping", "faiss-cpu", "accelerate", "matplotlib", "jinja2"}
    kept = {name.lower().replace("_", "-") for name in provenance.PACKAGES}
    assert kept == set(declared()) - no_figures
    assert all(installed_version(name) for name in provenance.PACKAGES)


def test_the_most_memory_that_was_used_is_kept() -> None:
    held = b"\1" * 2**28
    assert provenance.provenance()["peak_memory_gib"]["host"] > len(held) / 2**30


def test_a_trial_says_job_and_array_and_holds_nothing_else_of_the_environment(
    config_of: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"SLURM_JOB_ID": "44", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
    others = {"SLURM_OF_NO_INTEREST": "walnut", "A_VARIABLE_OF_MINE": "hazel", "DATABASE_TOKEN": "chestnut"}
    for name, value in (named | others).items():
        monkeypatch.setenv(name, value)
    config = config_of("frozen", "train.epochs=1")
    trial = experiment_dir(config).trial("trial")
    extract.ensure(config)
    train.run(config, trial)
    evaluate.run(config, trial)
    for stage in read_json(trial.provenance).values():
        assert stage["slurm"].items() >= {"job_id": "44", "array_job_id": "41", "array_task_id": "3"}.items()
        assert stage["attempts"][-1]["job"] == "41_3" and stage["restarts"] == 2
        assert stage["code"]["commit"] and stage["packages"]["torch"]
    written = [path for path in trial.path.parent.parent.parent.rglob("*") if path.is_file()]
    assert {trial.provenance, trial.results, trial.trained, trial.config} <= set(written)
    texts = b"".join(path.read_bytes() for path in written)
    assert not [word for pair in others.items() for word in pair if word.encode() in texts]


def test_provenance_is_json() -> None:
    found = provenance.provenance()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# ---------------------------------------------------------------- where weights come from
def test_repositories_of_weights_and_of_what_reads_texts_are_listed_with_their_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.hub.commit_of", lambda name, *_: {"timm/ViT-B-16-SigLIP": "a" * 40}.get(name))
    siglip = OpenClip(name="ViT-B-16-SigLIP", pretrained="webli")
    assert origins(siglip, texts=False) == [{"repository": "timm/ViT-B-16-SigLIP", "commit": "a" * 40}]
    assert {"repository": "timm/ViT-B-16-SigLIP", "commit": "a" * 40} in origins(siglip, texts=True)
    bert = origins(OpenClip(name="roberta-ViT-B-32", pretrained="laion2b_s12b_b32k"), texts=True)
    assert [each["repository"] for each in bert] == ["laion/CLIP-ViT-B-32-roberta-base-laion2B-s12B-b32k", "roberta-base"]
    assert origins(OpenClip(name="ViT-B-32"), texts=True) == []
    assert origins(OpenClip(name="local-dir:/a/folder"), texts=False) == [{"path": "/a/folder"}]
