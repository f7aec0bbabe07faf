"""The code that ran is the code that was submitted: snapshots, what they record, and jobs that outlive an edit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from pipeline.disk import provenance
from pipeline.disk.layout import PROJECT, ExperimentDir
from pipeline.disk.writing import read_json
from pipeline.experiments.reading import load_experiment
from pipeline.launch.jobs.pack import log_path
from pipeline.launch.manifest import snapshot
from pipeline.launch.manifest.manifest import make_manifest
from pipeline.launch.manifest.snapshot import take_snapshot
from tests.conftest import Assets
from tests.test_provenance import COMMIT, git
from tests.test_slurm import NO_GPU, SMALL, logs, results, wait_for_all

pytestmark = pytest.mark.jobs

BREAK = "raise RuntimeError('this code was not submitted')\n"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project's package and configurations in a checkout of their own."""
    folder = tmp_path / "checkout"
    for name in ("pipeline", "configs"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    git_commit(folder)
    return folder


def git_commit(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, *COMMIT)
    return git(folder, "rev-parse", "HEAD")


def test_a_snapshot_holds_all_that_the_package_consists_of(take: Callable[[], Path], checkout: Path) -> None:
    """Jobs that run it make pages too."""
    folder = take()
    here, there = (
        {
            str(path.relative_to(base))
            for path in (base / "pipeline").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        for base in (checkout, folder)
    )
    assert here == there and "pipeline/reporting/page/page.css" in there


@pytest.fixture
def experiment(tmp_path: Path) -> ExperimentDir:
    return ExperimentDir(tmp_path / "trained" / "experiment")


@pytest.fixture
def take(checkout: Path, experiment: ExperimentDir, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Take a snapshot of the checkout as it is now."""
    for module in (snapshot, provenance):
        monkeypatch.setattr(module, "PROJECT", checkout)
    return lambda: take_snapshot(experiment)


# ---------------------------------------------------------------- folders
def test_submissions_of_the_same_code_share_a_snapshot(take: Callable[[], Path]) -> None:
    first = take()
    time = first.stat().st_mtime_ns
    assert take() == first and first.stat().st_mtime_ns == time


def test_a_snapshot_holds_every_module_byte_by_byte_and_nothing_half_written(take: Callable[[], Path], checkout: Path) -> None:
    folder = take()
    theirs = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.py")}
    assert theirs == {path.relative_to(checkout): path.read_bytes() for path in checkout.rglob("*.py")}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_edit_makes_another_snapshot_and_leaves_the_first_as_it_was(take: Callable[[], Path], checkout: Path) -> None:
    first, module = take(), checkout / "pipeline" / "stages" / "train.py"
    before = module.read_bytes()
    module.write_text(BREAK)
    second = take()
    assert second != first
    assert (first / "pipeline" / "stages" / "train.py").read_bytes() == before
    assert (second / "pipeline" / "stages" / "train.py").read_text() == BREAK
    module.write_bytes(before)
    assert take() == first


def test_a_new_module_is_part_of_it(take: Callable[[], Path], checkout: Path) -> None:
    first = take()
    (checkout / "pipeline" / "tasks" / "fifth.py").write_text('"""A fifth task."""\n')
    second = take()
    assert second != first and (second / "pipeline" / "tasks" / "fifth.py").exists()
    assert read_json(second / "code.json")["new_files"] == ["pipeline/tasks/fifth.py"]


def test_a_snapshot_names_the_commit_and_the_edits_that_it_is_of(take: Callable[[], Path], checkout: Path) -> None:
    clean, commit = read_json(take() / "code.json"), git(checkout, "rev-parse", "HEAD")
    assert clean == {"commit": commit, "dirty": False, "diff": "", "new_files": []}
    with (checkout / "pipeline" / "cli" / "__init__.py").open("a") as file:
        file.write("# an edit\n")
    dirty = read_json(take() / "code.json")
    assert dirty["commit"] == commit and dirty["dirty"] and "+# an edit" in dirty["diff"]
    edited = git_commit(checkout)
    assert read_json(take() / "code.json") == {"commit": edited, "dirty": False, "diff": "", "new_files": []}


def test_a_later_commit_of_the_same_modules_is_named_rather_than_the_first(take: Callable[[], Path], checkout: Path) -> None:
    first = take()
    (checkout / "README.md").write_text("words\n")
    later = git_commit(checkout)
    assert read_json(take() / "code.json")["commit"] == later != read_json(first / "code.json")["commit"]


def test_submissions_at_once_get_one_whole_snapshot(take: Callable[[], Path]) -> None:
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(lambda _: take(), range(8)))
    assert (folder / "code.json").exists() and [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_runs_in_a_snapshot_says_that_it_is_that_code(take: Callable[[], Path], checkout: Path) -> None:
    """As a job does: Python begins in the snapshot's folder, after the checkout has been edited."""
    folder, commit = take(), git(checkout, "rev-parse", "HEAD")
    (checkout / "pipeline" / "provenance.py").write_text(BREAK)
    code = "import json; from pipeline.disk.provenance import provenance; print(json.dumps(provenance()['code']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == {"commit": commit, "dirty": False, "diff": "", "new_files": []}, done.stderr


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A lab's own task, which an edit can break."""
    return Path(shutil.copy(PROJECT / "docs" / "examples" / "phenology.py", tmp_path))


def test_a_labs_own_task_is_part_of_it(take: Callable[[], Path], experiment: ExperimentDir, own: Path) -> None:
    first, before = take_snapshot(experiment, ["numbers", str(own), str(own)]), own.read_bytes()
    assert [path.read_bytes() for path in (first / "own").iterdir()] == [before]
    own.write_text(BREAK)
    assert len({take(), first, take_snapshot(experiment, [str(own)])}) == 3
    assert [path.read_bytes() for path in (first / "own").iterdir()] == [before]


def test_jobs_run_a_labs_own_task_as_it_was_when_it_was_submitted(tmp_path: Path, own: Path) -> None:
    """A trial of a pack: what it lacks are features, and not the task."""
    shutil.copy(PROJECT / "docs" / "examples" / "phenology.yaml", tmp_path)
    (tmp_path / "stages.csv").write_text("file,plant,stage\n" + "".join(f"{i}.png,{i},{i % 5}\n" for i in range(20)))
    for number in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    paths = (f"paths.trained={tmp_path}/trained", f"paths.features={tmp_path}/features", f"data.source={tmp_path}/stages.csv")
    found = load_experiment(tmp_path / "phenology.yaml", paths)
    made = make_manifest(found, found.trials)
    own.write_text(BREAK)
    command = [sys.executable, "-m", "pipeline.launch.jobs.pack", str(made.path), "1", "together", "0"]
    done = subprocess.run(command, cwd=made.code, env=os.environ | {"PYTHONPATH": ""}, capture_output=True, text=True)
    failure, said = read_json(made.experiment.trial(made.names[0]).failure), log_path(made, 0).read_text()
    assert done.stdout == "begin 0\nend 0 1 failed\n" and str(made.code) in said, done
    assert (failure["kind"], failure["message"] in said) == ("dependency", True), failure["message"]


# ---------------------------------------------------------------- jobs
@pytest.mark.slurm
def test_an_edit_after_the_submission_neither_changes_nor_kills_what_is_queued(
    assets: Assets, environ: Path, checkout: Path
) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    with (checkout / "pipeline" / "cli" / "__init__.py").open("a") as file:
        file.write("# submitted with this edit\n")
    overrides = (*assets.on_pixels(), "seed=0,1", "train.epochs=1", *NO_GPU, *SMALL)
    nodes = ["scontrol", "update", "nodename=n1,n2"]
    subprocess.run([*nodes, "state=drain", "reason=wait"], check=True)
    try:
        jobs = re.findall(r"job (\d+)$", submit(checkout, environ, *overrides), re.M)
        for module in ("stages/train.py", "launch/jobs/jobs.py", "disk/provenance.py"):
            (checkout / "pipeline" / module).write_text(BREAK)
    finally:
        subprocess.run([*nodes, "state=resume"], check=True)
    wait_for_all()
    assert len(jobs) == 4 and len(results(environ)) == 2, logs(environ)
    for path in environ.glob("trained/*/*/provenance.json"):
        for stage in read_json(path).values():
            assert stage["code"]["commit"] == commit and "+# submitted with this edit" in stage["code"]["diff"]


def submit(project: Path, root: Path, *overrides: str) -> str:
    """`carabid submit` of a checkout's own code."""
    command = [sys.executable, "-m", "pipeline.cli", "submit", "configs/beetles/frozen.yaml", *overrides]
    environ = {**os.environ, "PYTHONPATH": str(project), "CARABID_ROOT": str(root)}
    done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
